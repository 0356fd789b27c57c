/* SPDX-License-Identifier: Apache-2.0 */
#include "rec.h"

#include <stdlib.h>
#include "zero.h"

enum { BLOCK = 256 };

struct block {
    struct block *next;
    struct colo_rec recs[BLOCK];
};

struct colo_pool {
    struct block *blocks;
    struct colo_rec *free; /* by link.next; last in, first out, so that it stays in the cache */
    uint32_t limit;
    uint32_t used;
};

struct colo_pool *colo_pool_create(uint32_t limit)
{
    struct colo_pool *pool = calloc(1, sizeof *pool);

    if (pool)
        pool->limit = limit;
    return pool;
}

void colo_pool_destroy(struct colo_pool *pool)
{
    struct block *block, *next;

    if (!pool)
        return;
    for (block = pool->blocks; block; block = next) {
        next = block->next;
        free(block);
    }
    free(pool);
}

struct colo_rec *colo_pool_get_raw(struct colo_pool *pool)
{
    struct colo_rec *rec;

    if (pool->used >= pool->limit)
        return NULL;
    if (!pool->free) {
        struct block *block = malloc(sizeof *block);

        if (!block)
            return NULL;
        block->next = pool->blocks;
        pool->blocks = block;
        for (int i = BLOCK - 1; i >= 0; i--) {
            block->recs[i].link.next = pool->free;
            pool->free = &block->recs[i];
        }
    }
    rec = pool->free;
    pool->free = rec->link.next;
    pool->used++;
    return rec;
}

struct colo_rec *colo_pool_get(struct colo_pool *pool)
{
    struct colo_rec *rec = colo_pool_get_raw(pool);

    if (rec)
        colo_zero(rec, sizeof *rec);
    return rec;
}

void colo_pool_put(struct colo_pool *pool, struct colo_rec *rec)
{
    rec->link.next = pool->free;
    pool->free = rec;
    pool->used--;
}
