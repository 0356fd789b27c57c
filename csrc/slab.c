/* SPDX-License-Identifier: Apache-2.0 */
#include "slab.h"

#include <assert.h>
#include <stdlib.h>

#include "coloproxy.h"

enum {
    KEEP = 16,  /* free slabs kept for the next burst */
    FORCED = 2, /* table entries beyond max */
};

int colo_slab_pool_init(struct colo_slab_pool *pool, uint32_t size, uint32_t max)
{
    uint32_t entries = max + FORCED;

    *pool = (struct colo_slab_pool){.size = size, .max = max, .reserve = max / 4};
    pool->table = calloc(entries, sizeof pool->table[0]);
    pool->vacant = calloc(entries, sizeof pool->vacant[0]);
    if (!pool->table || !pool->vacant) {
        colo_slab_pool_fini(pool);
        return COLO_ERR_NOMEM;
    }
    while (pool->vacancies < entries) {
        pool->vacant[pool->vacancies] = entries - 1 - pool->vacancies;
        pool->vacancies++;
    }
    return 0;
}

void colo_slab_pool_fini(struct colo_slab_pool *pool)
{
    if (pool->table)
        for (uint32_t i = 0; i < pool->max + FORCED; i++)
            free(pool->table[i]);
    free(pool->table);
    free(pool->vacant);
    *pool = (struct colo_slab_pool){0};
}

/**
 * may_take() - does the share of @side allow another slab?
 *
 * A forced slab is allowed only right at the edge, so that there is at most one of them a side.
 */
static bool may_take(const struct colo_slab_pool *pool, int side, bool forced)
{
    uint32_t total = colo_slab_in_use(pool);

    if (forced)
        return total < pool->max + FORCED && pool->used[side] <= pool->max - pool->reserve;
    return total < pool->max && pool->used[side] < pool->max - pool->reserve;
}

struct colo_slab *colo_slab_take(struct colo_slab_pool *pool, int side, bool forced)
{
    struct colo_slab *slab = pool->free;

    if (!may_take(pool, side, forced))
        return NULL;
    if (slab) {
        pool->free = slab->next;
        pool->kept--;
    } else {
        slab = malloc(sizeof *slab + pool->size);
        if (!slab)
            return NULL;
        slab->index = pool->vacant[--pool->vacancies];
        pool->table[slab->index] = slab;
    }
    slab->next = NULL;
    slab->refs = 1;
    slab->side = (uint8_t)side;
    pool->used[side]++;
    return slab;
}

void colo_slab_put(struct colo_slab_pool *pool, struct colo_slab *slab, uint32_t count)
{
    assert(slab->refs >= count);
    slab->refs -= count;
    if (slab->refs)
        return;
    pool->used[slab->side]--;
    if (pool->kept < KEEP) {
        slab->next = pool->free;
        pool->free = slab;
        pool->kept++;
    } else {
        pool->table[slab->index] = NULL;
        pool->vacant[pool->vacancies++] = slab->index;
        free(slab);
    }
}
