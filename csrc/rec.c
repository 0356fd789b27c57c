/* SPDX-License-Identifier: Apache-2.0 */
#include "rec.h"

#include <stdlib.h>
#include <string.h>

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

static void insert(struct colo_list *list, struct colo_rec *after, struct colo_rec *rec, struct colo_link *(*of)(struct colo_rec *))
{
    struct colo_rec *next = after ? of(after)->next : list->head;

    of(rec)->prev = after;
    of(rec)->next = next;
    if (after)
        of(after)->next = rec;
    else
        list->head = rec;
    if (next)
        of(next)->prev = rec;
    else
        list->tail = rec;
}

static void detach(struct colo_list *list, struct colo_rec *rec, struct colo_link *(*of)(struct colo_rec *))
{
    struct colo_link *link = of(rec);

    if (link->prev)
        of(link->prev)->next = link->next;
    else
        list->head = link->next;
    if (link->next)
        of(link->next)->prev = link->prev;
    else
        list->tail = link->prev;
    link->next = link->prev = NULL;
}

static struct colo_link *age_link(struct colo_rec *rec)
{
    return &rec->link;
}

static struct colo_link *flow_link(struct colo_rec *rec)
{
    return &rec->flow_link;
}

void colo_list_push(struct colo_list *list, struct colo_rec *rec)
{
    insert(list, list->tail, rec, age_link);
}

void colo_list_remove(struct colo_list *list, struct colo_rec *rec)
{
    detach(list, rec, age_link);
}

struct colo_rec *colo_list_pop(struct colo_list *list)
{
    struct colo_rec *rec = list->head;

    if (rec)
        detach(list, rec, age_link);
    return rec;
}

void colo_flow_list_push(struct colo_list *list, struct colo_rec *rec)
{
    insert(list, list->tail, rec, flow_link);
}

void colo_flow_list_insert(struct colo_list *list, struct colo_rec *after, struct colo_rec *rec)
{
    insert(list, after, rec, flow_link);
}

void colo_flow_list_remove(struct colo_list *list, struct colo_rec *rec)
{
    detach(list, rec, flow_link);
}

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

struct colo_rec *colo_pool_get(struct colo_pool *pool)
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
    memset(rec, 0, sizeof *rec);
    return rec;
}

void colo_pool_put(struct colo_pool *pool, struct colo_rec *rec)
{
    rec->link.next = pool->free;
    pool->free = rec;
    pool->used--;
}
