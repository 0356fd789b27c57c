/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slab.h - a bounded pool of receive slabs, counted by the frames that still lie in them.
 *
 * A socket is read straight into a slab, frames are judged where they lie, and what is released is sent from the
 * same bytes: nothing is copied, nothing is allocated per frame. A slab goes back to the pool when its reader has
 * moved on and its last frame is gone. One held frame keeps its whole slab, so the pool's bound is a limit of its own.
 *
 * Each of two sides owns a quarter of the pool that the other can never take: neither input can starve the other.
 * Slabs are allocated when first needed; a few are kept when free, the rest goes back to the system. One thread.
 */
#ifndef COLO_SLAB_H
#define COLO_SLAB_H

#include <stdbool.h>
#include <stdint.h>

struct colo_slab {
    struct colo_slab *next; /* in the list of free ones */
    uint32_t index;         /* of this slab in its pool */
    uint32_t refs;          /* the reader's, and one for each frame */
    uint8_t side;           /* to whose share it counts */
    uint8_t data[];         /* the pool's size */
};

struct colo_slab_pool {
    uint32_t size;            /* bytes of one slab */
    uint32_t max;             /* slabs */
    uint32_t reserve;         /* slabs of each side that the other can't take */
    uint32_t used[2];         /* by side */
    uint32_t kept;            /* free ones kept */
    struct colo_slab *free;   /* the last one put is the first one taken: it is still in the cache */
    struct colo_slab **table; /* by index; max + 2 entries, one forced slab for each side */
    uint32_t *vacant;         /* stack of indices without a slab */
    uint32_t vacancies;
};

/* A pool of `max` slabs of `size` bytes, max >= 4. COLO_ERR_NOMEM or 0. */
int colo_slab_pool_init(struct colo_slab_pool *pool, uint32_t size, uint32_t max);
/* Frees every slab, those in use as well. Harmless on a zeroed pool. */
void colo_slab_pool_fini(struct colo_slab_pool *pool);

/*
 * A slab with one reference, counted to `side`; NULL when its share, the pool, or memory is exhausted.
 * `forced` gives one slab beyond the share: for the drain that a checkpoint must not go without.
 */
struct colo_slab *colo_slab_take(struct colo_slab_pool *pool, int side, bool forced);

/* Drops `count` references. */
void colo_slab_put(struct colo_slab_pool *pool, struct colo_slab *slab, uint32_t count);

/* A frame's name: its slab and the place of its first byte there. */
static inline uint64_t colo_slab_cookie(const struct colo_slab *slab, uint32_t at)
{
    return (uint64_t)slab->index << 32 | at;
}

/* The upper 8 bits are the reader's, for the frame's ordinal in its batch. */
static inline uint64_t colo_slab_with_ordinal(uint64_t cookie, uint8_t ordinal)
{
    return cookie | (uint64_t)ordinal << 56;
}

static inline uint8_t colo_slab_ordinal(uint64_t cookie)
{
    return (uint8_t)(cookie >> 56);
}

static inline uint32_t colo_slab_index(uint64_t cookie)
{
    return (uint32_t)(cookie >> 32) & 0xffffff;
}

static inline struct colo_slab *colo_slab_of(const struct colo_slab_pool *pool, uint64_t cookie)
{
    return pool->table[colo_slab_index(cookie)];
}

static inline uint32_t colo_slab_at(uint64_t cookie)
{
    return (uint32_t)cookie;
}

static inline uint32_t colo_slab_in_use(const struct colo_slab_pool *pool)
{
    return pool->used[0] + pool->used[1];
}

#endif
