/* SPDX-License-Identifier: Apache-2.0 */
/*
 * framing.h - QEMU's framing of packets on a stream socket (net/socket.c, net_fill_rstate()), sans-I/O.
 *
 *     4 bytes   length of what follows the words, big-endian
 *     4 bytes   length of the virtio-net header in it, big-endian; only with vnet_hdr_support=on
 *               (ours, for a VM of several NICs: the top byte is the frame's NIC, which in QEMU's is always 0)
 *     length    virtio-net header, then the Ethernet frame
 *
 * The virtio-net header is 10 bytes until the guest's driver is up and 12 afterwards, 0 when there is none: it is
 * read for each frame.
 */
#ifndef COLO_FRAMING_H
#define COLO_FRAMING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coloproxy.h"

enum { COLO_FRAMING_HEAD_MAX = 8 };

struct colo_framing {
    uint32_t max_frame;  /* the longest length accepted */
    bool vnet_hdr;       /* the second word is there */
    uint8_t nics;        /* more than 1: its top byte is a NIC's number, below this */
    uint64_t position;   /* bytes of the connection that were taken */
    int fault;           /* enum colo_engine_fault, 0: none; then nothing is taken any more */
    uint32_t bad_value;  /* the length, or number of a NIC, that broke it */
    uint64_t bad_at;     /* bytes of the connection before that word */
};

/* The start of a connection: QEMU's framing. Whoever reads the frames of several NICs sets `nics` afterwards. */
void colo_framing_start(struct colo_framing *f, bool vnet_hdr, uint32_t max_frame);

/* Bytes of the words before each frame. */
static inline uint32_t colo_framing_head(bool vnet_hdr)
{
    return vnet_hdr ? 8 : 4;
}

/*
 * Takes up to `cap` whole frames off data[0..len), which must start where the last call stopped. Their data point
 * into `data`; the cookie of a frame whose words start at data[i] is cookie + i. `out` may be NULL: then they are only
 * passed over. *used: bytes taken, always whole frames. A fault is set only when what stands before it was taken.
 */
size_t colo_framing_scan(struct colo_framing *f, const uint8_t *data, size_t len, uint64_t cookie,
                         struct colo_frame *out, size_t cap, size_t *used);

/* How many bytes the frame that starts at data takes in all, as far as its first `len` bytes tell. */
size_t colo_framing_need(const struct colo_framing *f, const uint8_t *data, size_t len);

/* The connection ended with data[0..len) left of it, what the last scan did not take: sets COLO_FAULT_TRUNCATED if len. */
void colo_framing_end(struct colo_framing *f, const uint8_t *data, size_t len);

/*
 * Writes the words before a frame of `len` bytes (virtio-net header included); returns how many bytes. `vnet`: length of
 * that header, or with the NIC in it: colo_framing_vnet_word.
 */
uint32_t colo_framing_write_head(bool vnet_hdr, uint8_t *out, uint32_t len, uint32_t vnet);

/* The second word of a frame, and what it says. */
static inline uint32_t colo_framing_vnet_word(uint8_t nic, uint8_t vnet_len)
{
    return (uint32_t)nic << 24 | vnet_len;
}

static inline uint8_t colo_framing_word_nic(uint32_t word)
{
    return (uint8_t)(word >> 24);
}

static inline uint32_t colo_framing_word_vnet_len(uint32_t word)
{
    return word & 0xffffff;
}

/* The bytes, words included, of the whole frame whose words are at `data`, which a scan has accepted. */
uint32_t colo_framing_length_at(bool vnet_hdr, const uint8_t *data);

#endif
