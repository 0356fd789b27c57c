/* SPDX-License-Identifier: Apache-2.0 */
#include "tcpseg.h"

#include "ipwalk.h"
#include "load.h"
#include "parse.h"
#include "seq.h"

enum {
    PROTO_TCP = 6,
    OPT_END = 0,
    OPT_NOP = 1,
    OPT_WSCALE = 3,
    OPT_SACK = 5,
    OPT_TS = 8,
    OPT_MD5 = 19,
    OPT_AO = 29,
    HEADER = 20,
};

bool colo_tcpopt_next(const uint8_t *data, uint32_t *at, uint32_t header_end, uint32_t end, struct colo_tcpopt *out)
{
    uint32_t here = *at;

    if (here >= header_end || here >= end || data[here] == OPT_END)
        return false;
    *out = (struct colo_tcpopt){here, data[here], 1};
    if (out->kind != OPT_NOP) {
        if (header_end - here < 2 || end - here < 2 || data[here + 1] < 2 || data[here + 1] > header_end - here)
            return false;
        out->len = data[here + 1];
    }
    *at = here + out->len;
    return true;
}

static void read_options(const uint8_t *data, struct colo_tcpseg *seg)
{
    uint32_t at = seg->at + HEADER;
    struct colo_tcpopt opt;

    while (colo_tcpopt_next(data, &at, seg->end, seg->end, &opt)) {
        if (opt.kind == OPT_WSCALE && opt.len == 3) {
            seg->wscale_at = opt.at + 2;
            seg->wscale = data[seg->wscale_at];
        } else if (opt.kind == OPT_TS && opt.len == 10) {
            seg->has_ts = true;
            seg->tsval = colo_load32(data + opt.at + 2);
            seg->tsecr = colo_load32(data + opt.at + 6);
        } else if (opt.kind == OPT_MD5 || opt.kind == OPT_AO) {
            seg->is_signed = true;
        }
    }
}

enum colo_tcpseg_found colo_tcpseg_read(const uint8_t *data, const struct colo_packet *packet, struct colo_tcpseg *out)
{
    uint32_t at = packet->l4, end = packet->body + packet->body_len, header;
    const uint8_t *p;

    *out = (struct colo_tcpseg){.wscale = 255};
    if (packet->id.cls == COLO_CLASS_FRAGMENT) {
        uint8_t protocol = packet->id.protocol;

        at = packet->body;
        if (packet->fragment_at)
            return COLO_TCPSEG_NONE;
        if (packet->id.family == 6 && !colo_ipwalk_extensions(data, &at, end, &protocol))
            return COLO_TCPSEG_NONE;
        if (protocol != PROTO_TCP || end - at < 4)
            return COLO_TCPSEG_NONE;
        out->fragment = true;
    } else if (packet->id.cls != COLO_CLASS_TCP) {
        return COLO_TCPSEG_NONE;
    }
    p = data + at;
    out->at = at;
    out->sport = colo_load16(p);
    out->dport = colo_load16(p + 2);
    if (end - at < HEADER)
        return COLO_TCPSEG_CUT;
    header = (uint32_t)(p[12] >> 4) * 4;
    if (header < HEADER)
        return COLO_TCPSEG_NONE; /* nonsense, which no stack takes */
    if (header > end - at)
        return COLO_TCPSEG_CUT;
    out->end = at + header;
    out->seq = colo_load32(p + 4);
    out->ack = colo_load32(p + 8);
    out->flags = p[13];
    out->window = colo_load16(p + 14);
    out->length = end - out->end + !!(out->flags & COLO_TCP_SYN) + !!(out->flags & COLO_TCP_FIN);
    read_options(data, out);
    return COLO_TCPSEG_WHOLE;
}

static bool is_there(const struct colo_patch *patch, uint32_t at)
{
    return at <= patch->end && patch->end - at >= 4;
}

static void add(struct colo_patch *patch, uint32_t at, uint32_t n)
{
    if (is_there(patch, at))
        colo_patch32(patch, at, colo_load32(patch->data + at) + n);
}

static void add_to_tsecr(struct colo_patch *patch, uint32_t at, const struct colo_translation *tr)
{
    uint32_t value;

    if (!is_there(patch, at))
        return;
    value = colo_load32(patch->data + at) + tr->ts_add;
    if (tr->bounded && colo_seq_extend(tr->latest, 0, value) > 0)
        value = tr->latest;
    colo_patch32(patch, at, value);
}

void colo_tcpseg_translate(struct colo_patch *patch, uint32_t at, const struct colo_translation *tr)
{
    const uint8_t *data = patch->data;
    uint32_t there = patch->end - at, header_end, next = at + HEADER;
    struct colo_tcpopt opt;
    bool acks;

    /* A quote that ends before the flags: but for the client's first SYN all segments have an ACK number. */
    acks = there <= 13 || data[at + 13] & COLO_TCP_ACK;
    if (tr->by_vm)
        add(patch, at + 4, tr->seq_add);
    else if (acks)
        add(patch, at + 8, tr->seq_add);
    if (there <= HEADER)
        return;
    header_end = at + (uint32_t)(data[at + 12] >> 4) * 4;
    while (colo_tcpopt_next(data, &next, header_end, patch->end, &opt)) {
        if (opt.kind == OPT_TS && opt.len == 10 && tr->ts) {
            if (tr->by_vm)
                add(patch, opt.at + 2, tr->ts_add);
            else if (acks)
                add_to_tsecr(patch, opt.at + 6, tr);
        } else if (opt.kind == OPT_SACK && !tr->by_vm) {
            for (uint32_t edge = 2; edge + 4 <= opt.len; edge += 4)
                add(patch, opt.at + edge, tr->seq_add);
        }
    }
}
