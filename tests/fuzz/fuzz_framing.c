/* A framed stream gives the same frames and fault however it is cut, and nothing beyond what has come is read. */
/* SPDX-License-Identifier: Apache-2.0 */
#include "framing.h"
#include "framing_ref.h"

static uint32_t dice; /* where to cut: derived from the input's second byte */

static uint32_t roll(uint32_t sides)
{
    dice = dice * 1664525u + 1013904223u;
    return (dice >> 16) % sides;
}

static void agrees(const struct ref *ref, size_t number, const struct colo_frame *frame, const uint8_t *stream)
{
    MUST(number < ref->count, "frame %zu, there are %zu", number, ref->count);
    MUST(frame->len == ref->frames[number].len && frame->vnet_len == ref->frames[number].vnet_len, "frame %zu: %u/%u",
         number, frame->len, frame->vnet_len);
    MUST(memcmp(frame->data, stream + ref->frames[number].at, frame->len) == 0, "frame %zu has other bytes", number);
}

static void ends_the_same(const struct ref *ref, const struct colo_framing *f)
{
    MUST(f->fault == ref->fault, "fault %d, not %d", f->fault, ref->fault);
    if (f->fault)
        MUST(f->bad_value == ref->bad_value && f->bad_at == ref->bad_at, "bad value %u at %llu, not %u at %llu",
             f->bad_value, (unsigned long long)f->bad_at, ref->bad_value, (unsigned long long)ref->bad_at);
}

/* All in one call, without and with room for the frames. */
static void scan_whole(const struct ref *ref, const uint8_t *stream, size_t size, bool vnet_hdr, uint32_t max_frame)
{
    static struct colo_frame frames[REF_FRAMES];
    struct colo_framing f;
    size_t used, count;

    for (int keep = 0; keep < 2; keep++) {
        colo_framing_start(&f, vnet_hdr, max_frame);
        count = colo_framing_scan(&f, stream, size, 0, keep ? frames : NULL, REF_FRAMES, &used);
        MUST(count == ref->count, "%zu frames, not %zu", count, ref->count);
        MUST(used <= size && f.position == used, "%zu of %zu bytes used", used, size);
        for (size_t i = 0; keep && i < count; i++) {
            agrees(ref, i, &frames[i], stream);
            MUST(frames[i].cookie == ref->frames[i].at - colo_framing_head(vnet_hdr), "cookie of frame %zu", i);
        }
        if (count == REF_FRAMES)
            return;
        colo_framing_end(&f, stream + used, size - used);
        ends_the_same(ref, &f);
    }
}

/* In reads of any size into a buffer that ends where its last byte is; what is left over stays in front. */
static void scan_cut(const struct ref *ref, const uint8_t *stream, size_t size, bool vnet_hdr, uint32_t max_frame)
{
    struct colo_framing f;
    uint8_t *buffer = copy_of(NULL, 0);
    size_t have = 0, came = 0, number = 0;

    colo_framing_start(&f, vnet_hdr, max_frame);
    while (came < size && !f.fault && number < ref->count + 1) {
        size_t more = 1 + roll(roll(2) ? 4 : 64), used, count;
        struct colo_frame frames[4];

        if (more > size - came)
            more = size - came;
        buffer = realloc(buffer, have + more);
        MUST(buffer, "no memory");
        memcpy(buffer + have, stream + came, more);
        have += more;
        came += more;
        do {
            size_t need;
            uint8_t *rest;

            count = colo_framing_scan(&f, buffer, have, 0, frames, 1 + roll(4), &used);
            for (size_t i = 0; i < count; i++)
                agrees(ref, number++, &frames[i], stream);
            have -= used;
            rest = copy_of(buffer + used, have);
            free(buffer);
            buffer = rest;
            need = colo_framing_need(&f, buffer, have);
            if (!f.fault && !count)
                MUST(need > have, "%zu of %zu bytes are there, and no frame came", have, need);
        } while (count);
    }
    if (number < REF_FRAMES) {
        if (!f.fault)
            colo_framing_end(&f, buffer, have);
        MUST(number == ref->count, "%zu frames, not %zu", number, ref->count);
        ends_the_same(ref, &f);
    }
    free(buffer);
}

/* Input: one byte of options, one that decides the cuts, then the stream. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct ref ref;
    bool vnet_hdr;
    uint32_t max_frame;
    uint8_t *stream;

    if (size < 2)
        return 0;
    vnet_hdr = data[0] & 1;
    max_frame = data[0] & 2 ? 69632 : 40;
    dice = data[1];
    stream = copy_of(data + 2, size - 2);
    ref_decode(&ref, stream, size - 2, vnet_hdr, max_frame);
    scan_whole(&ref, stream, size - 2, vnet_hdr, max_frame);
    scan_cut(&ref, stream, size - 2, vnet_hdr, max_frame);
    free(stream);
    return 0;
}
