/* SPDX-License-Identifier: Apache-2.0 */
/* framing_ref.h - QEMU's framing decoded the slow and obvious way, from the whole stream. */
#ifndef FRAMING_REF_H
#define FRAMING_REF_H

#include "coloproxy.h"
#include "load.h"
#include "must.h"

enum { REF_FRAMES = 1024 };

struct ref {
    size_t count;
    struct {
        size_t at; /* of the first data byte in the stream */
        uint32_t len, vnet_len;
    } frames[REF_FRAMES];
    int fault;          /* at the end of the stream: TRUNCATED where it ends in a frame */
    uint32_t bad_value;
    uint64_t bad_at;
};

static inline void ref_decode(struct ref *r, const uint8_t *data, size_t size, int vnet_hdr, uint32_t max_frame)
{
    size_t at = 0;

    memset(r, 0, sizeof *r);
    while (at < size && r->count < REF_FRAMES) {
        const size_t head = vnet_hdr ? 8 : 4;
        uint32_t len, vnet = 0;

        len = size - at < 4 ? 0 : colo_load32(data + at);
        r->bad_value = len;
        r->bad_at = at;
        if (size - at < 4) {
            r->fault = COLO_FAULT_TRUNCATED;
            return;
        }
        if (len == 0 || len > max_frame) {
            r->fault = len ? COLO_FAULT_OVERSIZE : COLO_FAULT_EMPTY;
            return;
        }
        if (size - at < head) {
            r->fault = COLO_FAULT_TRUNCATED;
            return;
        }
        if (vnet_hdr)
            vnet = colo_load32(data + at + 4);
        if ((vnet != 0 && vnet != 10 && vnet != 12) || vnet > len) {
            r->fault = COLO_FAULT_VNET;
            r->bad_value = vnet;
            r->bad_at = at + 4;
            return;
        }
        if (size - at < head + len) {
            r->fault = COLO_FAULT_TRUNCATED;
            return;
        }
        r->frames[r->count].at = at + head;
        r->frames[r->count].len = len;
        r->frames[r->count++].vnet_len = vnet;
        at += head + len;
    }
    r->bad_value = 0;
    r->bad_at = 0;
}

#endif
