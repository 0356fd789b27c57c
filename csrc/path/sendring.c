/* SPDX-License-Identifier: Apache-2.0 */
#include "sendring.h"

#include <stdlib.h>
#include <string.h>

#include "coloproxy.h"
#include "load.h"

static const uint64_t FIRST_CAP = 256 * 1024;
static const uint64_t IDLE_CAP = 1024 * 1024; /* a ring that has run empty keeps no more than this */

static uint64_t together(const struct colo_sendring *ring, uint64_t at, uint64_t len)
{
    uint64_t room = ring->cap - (at & (ring->cap - 1));

    return len < room ? len : room;
}

static void copy_in(struct colo_sendring *ring, const uint8_t *from, size_t len)
{
    uint64_t first;

    if (!len)
        return;
    first = together(ring, ring->head, len);
    memcpy(ring->bytes + (ring->head & (ring->cap - 1)), from, first);
    if (first < len)
        memcpy(ring->bytes, from + first, len - first);
    ring->head += len;
}

/*
 * What lies together from any offset on is after doubling at least as long as before: so it is copied in two pieces at
 * most, and output that was offered once can be offered again, as TLS wants it.
 */
static bool grow(struct colo_sendring *ring, uint64_t need)
{
    uint64_t cap = ring->cap ? ring->cap : FIRST_CAP, at = ring->tail;
    uint8_t *bytes;

    while (cap < need)
        cap *= 2;
    bytes = malloc(cap);
    if (!bytes)
        return false;
    while (at < ring->head) {
        uint64_t to = at & (cap - 1), some = together(ring, at, ring->head - at);

        memcpy(bytes + to, ring->bytes + (at & (ring->cap - 1)), some);
        at += some;
    }
    free(ring->bytes);
    ring->bytes = bytes;
    ring->cap = cap;
    return true;
}

int colo_sendring_push(struct colo_sendring *ring, const uint8_t head[COLO_RECORD_HEAD], const uint8_t *data,
                       uint32_t len)
{
    uint64_t need = ring->head - ring->tail + COLO_RECORD_HEAD + len;

    if (need > ring->limit || (need > ring->cap && !grow(ring, need)))
        return COLO_ERR_LIMIT;
    copy_in(ring, head, COLO_RECORD_HEAD);
    copy_in(ring, data, len);
    return COLO_OK;
}

const uint8_t *colo_sendring_at(const struct colo_sendring *ring, uint64_t at, size_t want, size_t *len)
{
    uint64_t rest = ring->head - at;

    *len = (size_t)together(ring, at, rest < want ? rest : want);
    return ring->bytes + (at & (ring->cap - 1));
}

uint64_t colo_sendring_after(const struct colo_sendring *ring, uint64_t at)
{
    uint8_t len[4];

    if (together(ring, at, sizeof len) == sizeof len)
        return at + COLO_RECORD_HEAD + colo_load32(ring->bytes + (at & (ring->cap - 1)));
    for (unsigned i = 0; i < sizeof len; i++)
        len[i] = ring->bytes[(at + i) & (ring->cap - 1)];
    return at + COLO_RECORD_HEAD + colo_load32(len);
}

bool colo_sendring_starts(const struct colo_sendring *ring, uint64_t at)
{
    uint64_t start = ring->tail;

    if (at < ring->tail || at > ring->head)
        return false;
    while (start < at)
        start = colo_sendring_after(ring, start);
    return start == at;
}

void colo_sendring_release(struct colo_sendring *ring, uint64_t to)
{
    ring->tail = to;
    if (ring->tail == ring->head && ring->cap > IDLE_CAP) {
        free(ring->bytes);
        ring->bytes = NULL;
        ring->cap = 0;
    }
}

void colo_sendring_reset(struct colo_sendring *ring)
{
    free(ring->bytes);
    *ring = (struct colo_sendring){.limit = ring->limit};
}
