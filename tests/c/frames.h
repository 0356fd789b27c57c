/* SPDX-License-Identifier: Apache-2.0 */
/* frames.h - builds real frames for the C tests: Ethernet, VLAN, IPv4 or IPv6, TCP, UDP. */
#ifndef FRAMES_H
#define FRAMES_H

#include <string.h>

#include "csum.h"
#include "load.h"

struct frame_spec {
    int family;             /* 4 (also 0) or 6 */
    int vlans;
    uint16_t sport, dport;
    uint32_t seq, ack;
    uint8_t flags;
    const uint8_t *options;
    uint32_t options_len;   /* multiple of 4 */
    const uint8_t *payload;
    uint32_t payload_len;
    uint32_t padding;       /* Ethernet padding behind the IP packet */
    uint32_t vnet_len;
    int udp;
};

/* Writes the frame to `out` (large enough); returns its length, virtio-net header included. */
__attribute__((unused)) static uint32_t frame_build(uint8_t *out, const struct frame_spec *f)
{
    static const uint8_t macs[12] = {2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1};
    uint32_t l4_header = f->udp ? 8 : 20 + f->options_len, l4_len = l4_header + f->payload_len, at = f->vnet_len;
    uint64_t sum = (f->udp ? 17u : 6u) + l4_len;
    uint8_t *l4;

    memset(out, 0, f->vnet_len);
    memcpy(out + at, macs, sizeof macs);
    at += 12;
    for (int i = 0; i < f->vlans; i++, at += 4) {
        colo_store16(out + at, i + 1 < f->vlans ? 0x88a8 : 0x8100);
        colo_store16(out + at + 2, (uint16_t)(100 + i));
    }
    colo_store16(out + at, f->family == 6 ? 0x86dd : 0x0800);
    at += 2;
    if (f->family == 6) {
        memset(out + at, 0, 40);
        out[at] = 0x60;
        colo_store16(out + at + 4, (uint16_t)l4_len);
        out[at + 6] = f->udp ? 17 : 6;
        out[at + 7] = 64;
        out[at + 8] = out[at + 24] = 0xfd;
        out[at + 23] = 2;
        out[at + 39] = 9;
        sum = colo_csum_add(sum, out + at + 8, 32);
        at += 40;
    } else {
        memset(out + at, 0, 20);
        out[at] = 0x45;
        colo_store16(out + at + 2, (uint16_t)(20 + l4_len));
        out[at + 8] = 64;
        out[at + 9] = f->udp ? 17 : 6;
        memcpy(out + at + 12, "\x0a\0\0\x02\x0a\0\0\x09", 8);
        colo_store16(out + at + 10, colo_csum_fold(colo_csum_add(0, out + at, 20)));
        sum = colo_csum_add(sum, out + at + 12, 8);
        at += 20;
    }
    l4 = out + at;
    memset(l4, 0, l4_header);
    colo_store16(l4, f->sport);
    colo_store16(l4 + 2, f->dport);
    if (f->udp) {
        colo_store16(l4 + 4, (uint16_t)l4_len);
    } else {
        colo_store32(l4 + 4, f->seq);
        colo_store32(l4 + 8, f->ack);
        l4[12] = (uint8_t)(l4_header / 4 << 4);
        l4[13] = f->flags;
        colo_store16(l4 + 14, 1024);
        if (f->options_len)
            memcpy(l4 + 20, f->options, f->options_len);
    }
    if (f->payload_len)
        memcpy(l4 + l4_header, f->payload, f->payload_len);
    colo_store16(l4 + (f->udp ? 6 : 16), colo_csum_fold(colo_csum_add(sum, l4, l4_len)));
    memset(l4 + l4_len, 0xee, f->padding);
    return at + l4_len + f->padding;
}

#endif
