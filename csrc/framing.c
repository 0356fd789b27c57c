/* SPDX-License-Identifier: Apache-2.0 */
#include "framing.h"

#include "load.h"

void colo_framing_start(struct colo_framing *f, bool vnet_hdr, uint32_t max_frame)
{
    *f = (struct colo_framing){.vnet_hdr = vnet_hdr, .max_frame = max_frame, .nics = 1};
}

static void set_fault(struct colo_framing *f, enum colo_engine_fault fault, uint32_t bad_value, uint64_t bad_at)
{
    f->fault = fault;
    f->bad_value = bad_value;
    f->bad_at = bad_at;
}

/**
 * check_head() - read the words at the front of @data as far as they are there
 *
 * A bad length is refused as soon as its four bytes have come: waiting for the second word of a peer that speaks
 * another protocol could take for ever.
 *
 * Return: true when the words are complete and right
 */
static bool check_head(struct colo_framing *f, const uint8_t *data, size_t len, uint32_t *length, uint32_t *vnet_len,
                       uint8_t *nic)
{
    *vnet_len = 0;
    *nic = 0;
    if (len < 4)
        return false;
    *length = colo_load32(data);
    if (*length == 0 || *length > f->max_frame) {
        set_fault(f, *length ? COLO_FAULT_OVERSIZE : COLO_FAULT_EMPTY, *length, f->position);
        return false;
    }
    if (!f->vnet_hdr)
        return true;
    if (len < 8)
        return false;
    *vnet_len = colo_load32(data + 4);
    if (f->nics > 1) {
        *nic = colo_framing_word_nic(*vnet_len);
        *vnet_len = colo_framing_word_vnet_len(*vnet_len);
        if (*nic >= f->nics) {
            set_fault(f, COLO_FAULT_NIC, *nic, f->position + 4);
            return false;
        }
    }
    if ((*vnet_len != 0 && *vnet_len != 10 && *vnet_len != 12) || *vnet_len > *length) {
        set_fault(f, COLO_FAULT_VNET, *vnet_len, f->position + 4);
        return false;
    }
    return true;
}

size_t colo_framing_scan(struct colo_framing *f, const uint8_t *data, size_t len, uint64_t cookie,
                         struct colo_frame *out, size_t cap, size_t *used)
{
    const uint32_t head = colo_framing_head(f->vnet_hdr);
    size_t at = 0, count = 0;
    uint32_t length, vnet_len;
    uint8_t nic;

    while (count < cap && !f->fault && check_head(f, data + at, len - at, &length, &vnet_len, &nic)) {
        if (length > len - at - head)
            break;
        if (out)
            out[count] = (struct colo_frame){
                .data = data + at + head, .len = length, .vnet_len = vnet_len, .cookie = cookie + at,
                .nic = nic};
        count++;
        at += head + length;
        f->position += head + length;
    }
    *used = at;
    return count;
}

size_t colo_framing_need(const struct colo_framing *f, const uint8_t *data, size_t len)
{
    const uint32_t head = colo_framing_head(f->vnet_hdr);

    return len < 4 ? head : head + (size_t)colo_load32(data);
}

void colo_framing_end(struct colo_framing *f, const uint8_t *data, size_t len)
{
    if (!f->fault && len)
        set_fault(f, COLO_FAULT_TRUNCATED, len < 4 ? 0 : colo_load32(data), f->position);
}

uint32_t colo_framing_write_head(bool vnet_hdr, uint8_t *out, uint32_t len, uint32_t vnet)
{
    colo_store32(out, len);
    if (vnet_hdr)
        colo_store32(out + 4, vnet);
    return colo_framing_head(vnet_hdr);
}

uint32_t colo_framing_length_at(bool vnet_hdr, const uint8_t *data)
{
    return colo_framing_head(vnet_hdr) + colo_load32(data);
}
