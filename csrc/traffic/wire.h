/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wire.h - frames as QEMU's socket filters carry them: written from templates, and read again.
 *
 * A template is everything before the payload, for one kind of segment. To write a frame is to copy it, to store what
 * changes (lengths, the client, the sequence number, the sample) and to finish the checksums, whose constant parts were
 * summed once. They are right: with a virtio-net header the TCP or UDP checksum is that of the pseudo-header only, as
 * a guest leaves it (VIRTIO_NET_HDR_F_NEEDS_CSUM).
 *
 * Flow i is the client 10.64.0.1 + i / 2^14 (fd00::1:1 + i / 2^14), port 16384 + i % 2^14; the VM is 10.0.0.1 (fd00::1).
 */
#ifndef COLO_TRAFFIC_WIRE_H
#define COLO_TRAFFIC_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pattern.h"

enum {
    COLO_WIRE_HEAD_MAX = 128,    /* what colo_traffic_wire_write() may touch from `out` on, besides the payload */
    COLO_WIRE_FRAME_MAX = 69632, /* the longest frame that QEMU's framing has */
};

struct colo_template {
    uint8_t bytes[COLO_WIRE_HEAD_MAX];
    uint32_t len;    /* of it that are used: everything before the payload */
    uint32_t words;  /* of these: QEMU's length words */
    uint32_t vnet;   /* and the virtio-net header */
    uint32_t l4_len; /* TCP's or UDP's header */
    uint32_t ip_sum, l4_sum; /* of the constant words */
    bool ipv6, udp, timestamps;
};

struct colo_traffic_wire_config {
    bool vnet_hdr, ipv6, udp, timestamps;
    uint16_t gso_size; /* with vnet_hdr: longer TCP segments are super-frames of such ones */
};

struct colo_wire {
    struct colo_traffic_wire_config config;
    struct colo_template data, syn;
    struct colo_pattern pattern;
};

/* One frame to be written. */
struct colo_segment_spec {
    uint32_t flow;
    uint64_t offset; /* stream offset; of a datagram: its number times the length */
    uint32_t phase;
    uint32_t len;
    uint16_t tag;    /* the sample's slot, 0: none */
    uint32_t clock;  /* TCP timestamp */
};

/* What a received frame says. */
enum colo_traffic_wire_kind { COLO_WIRE_FOREIGN, COLO_WIRE_SYN, COLO_WIRE_DATA };

struct colo_traffic_wire_seen {
    const uint8_t *payload;
    uint32_t len;
    uint32_t flow;
    uint32_t seq;    /* of the payload from the stream's beginning, modulo 2^32; of a datagram its number */
    uint16_t tag;
};

void colo_traffic_wire_init(struct colo_wire *w, const struct colo_traffic_wire_config *config);

/* Writes a segment with its payload; returns the bytes of the frame, words included. */
uint32_t colo_traffic_wire_write(const struct colo_wire *w, uint8_t *out, const struct colo_segment_spec *s);

/* Writes the flow's SYN-ACK. */
uint32_t colo_traffic_wire_write_syn(const struct colo_wire *w, uint8_t *out, uint32_t flow, uint32_t clock);

/* Makes one byte of the payload of a frame that colo_traffic_wire_write() made wrong, and its checksum right. */
void colo_traffic_wire_spoil(const struct colo_wire *w, uint8_t *frame, uint32_t len);

/* Reads a frame without its words; it was written as above, or is foreign. */
enum colo_traffic_wire_kind colo_traffic_wire_read(const struct colo_wire *w, const uint8_t *frame, uint32_t len, uint32_t vnet_len,
                                   struct colo_traffic_wire_seen *seen);

#endif
