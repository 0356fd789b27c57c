/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pcapng.h - blocks of a capture file, written into a buffer: draft-ietf-opsawg-pcapng, little-endian, Ethernet,
 * times in nanoseconds since the Unix epoch.
 *
 * Each function writes one whole block to out[0..cap) and returns its length, or writes nothing and returns 0 when it
 * does not fit. COLO_PCAPNG_FIT(len, comment_len) bytes are enough for a packet.
 */
#ifndef COLO_PCAPNG_H
#define COLO_PCAPNG_H

#include <stddef.h>
#include <stdint.h>

enum {
    COLO_PCAPNG_DATA_AT = 28,     /* of a packet's block: where its bytes begin */
    COLO_PCAPNG_TEXT_MAX = 65535, /* the longest comment that the format has room for */
};

#define COLO_PCAPNG_FIT(len, comment_len) ((size_t)(len) + (size_t)(comment_len) + COLO_PCAPNG_DATA_AT + 18)

struct colo_pcapng_packet {
    uint32_t interface;   /* in the order of their blocks, from 0 */
    int64_t time;
    const uint8_t *data;
    uint32_t len;         /* of data */
    uint32_t wire_len;    /* >= len: what it was before it was cut */
    const char *comment;
    size_t comment_len;   /* 0: none */
};

/* The header that begins a file. */
size_t colo_pcapng_section(uint8_t *out, size_t cap, const char *comment, size_t comment_len);
/* `snap`: bytes of a frame that are kept at most, 0: all. */
size_t colo_pcapng_interface(uint8_t *out, size_t cap, const char *name, uint32_t snap);
size_t colo_pcapng_packet(uint8_t *out, size_t cap, const struct colo_pcapng_packet *packet);
/* How many packets the interface saw in all, and how many of them are missing. */
size_t colo_pcapng_statistics(uint8_t *out, size_t cap, uint32_t interface, int64_t time, uint64_t received,
                              uint64_t dropped);

#endif
