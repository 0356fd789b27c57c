/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sendring.h - the records that one stream of a link keeps until the peer has acknowledged them.
 *
 * Bytes are named by their 64-bit offset in the stream and lie in a ring whose size is a power of two: it doubles when
 * it is full, up to the limit, and shrinks back when it has run empty, so that a quick link stays in the CPU's cache.
 */
#ifndef COLO_SENDRING_H
#define COLO_SENDRING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { COLO_RECORD_HEAD = 8 }; /* of each record: u32 length of the payload, type, nic, vnet_len, 0 */

struct colo_sendring {
    uint8_t *bytes;  /* NULL while nothing was ever kept */
    uint64_t cap;    /* 0 or a power of two */
    uint64_t limit;  /* of head - tail */
    uint64_t tail;   /* the first byte kept: the start of a record */
    uint64_t head;   /* the end of the last record */
};

/* Appends a record. LIMIT: no room, or no memory; nothing changes. */
int colo_sendring_push(struct colo_sendring *ring, const uint8_t head[COLO_RECORD_HEAD], const uint8_t *data,
                       uint32_t len);
/* The bytes from `at` on that lie together, `want` at most. tail <= at <= head. */
const uint8_t *colo_sendring_at(const struct colo_sendring *ring, uint64_t at, size_t want, size_t *len);
/* Where the record that starts at `at` ends; at < head. */
uint64_t colo_sendring_after(const struct colo_sendring *ring, uint64_t at);
/* Whether a record starts (or the last one ends) at `at`; any `at`. Walks the records from the tail. */
bool colo_sendring_starts(const struct colo_sendring *ring, uint64_t at);
/* Lets go of all before `to`, for which colo_sendring_starts is true. */
void colo_sendring_release(struct colo_sendring *ring, uint64_t to);
/* Throws all away, back to offset 0. */
void colo_sendring_reset(struct colo_sendring *ring);

#endif
