/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Open addressing with linear probing, as in flow.c; flows lie in blocks and never move. All flows of one standing are
 * in a ring in the order of their last use, so that a victim is found at once.
 */
#include "rwtable.h"

#include <stdlib.h>
#include <string.h>

#include "hash.h"

enum { BLOCK = 256 };

struct slot {
    uint32_t tag; /* upper half of the hash */
    uint32_t ref; /* index + 1, 0: empty */
};

struct colo_rwtable {
    struct slot *slots;
    struct colo_rwflow **blocks;
    uint32_t *free; /* stack of indices */
    uint32_t frees;
    uint32_t mask;
    uint32_t limit;
    uint32_t made; /* flows that exist in blocks */
    uint32_t count;
    uint32_t head[COLO_RW_STANDINGS]; /* of each ring: the oldest, index + 1; 0: empty */
    uint64_t evicted;
    uint64_t seed;
};

static struct colo_rwflow *by_link(const struct colo_rwtable *t, uint32_t link)
{
    return &t->blocks[(link - 1) / BLOCK][(link - 1) % BLOCK];
}

struct colo_rwtable *colo_rwtable_create(uint32_t max_flows, uint64_t seed)
{
    struct colo_rwtable *t = calloc(1, sizeof *t);
    uint32_t size = 64;

    if (!t)
        return NULL;
    while (size < max_flows + max_flows / 2)
        size *= 2;
    t->limit = max_flows;
    t->mask = size - 1;
    t->seed = seed;
    t->slots = calloc(size, sizeof *t->slots);
    t->blocks = calloc((size_t)max_flows / BLOCK + 1, sizeof(struct colo_rwflow *));
    t->free = calloc(max_flows, sizeof *t->free);
    if (!t->slots || !t->blocks || !t->free) {
        colo_rwtable_destroy(t);
        return NULL;
    }
    return t;
}

void colo_rwtable_destroy(struct colo_rwtable *t)
{
    if (!t)
        return;
    if (t->blocks)
        for (uint32_t i = 0; i < t->made; i += BLOCK)
            free(t->blocks[i / BLOCK]);
    free(t->blocks);
    free(t->slots);
    free(t->free);
    free(t);
}

struct colo_rwflow *colo_rwtable_find(struct colo_rwtable *t, const struct colo_rwkey *key)
{
    uint64_t hash;

    if (!t->count)
        return NULL;
    hash = colo_hash(t->seed, (const uint8_t *)key, sizeof *key);
    for (uint32_t i = (uint32_t)hash & t->mask; t->slots[i].ref; i = (i + 1) & t->mask) {
        if (t->slots[i].tag == (uint32_t)(hash >> 32)) {
            struct colo_rwflow *flow = by_link(t, t->slots[i].ref);

            if (memcmp(&flow->key, key, sizeof *key) == 0)
                return flow;
        }
    }
    return NULL;
}

static void unslot(struct colo_rwtable *t, const struct colo_rwflow *flow)
{
    uint32_t i = (uint32_t)flow->hash & t->mask, hole, home;

    while (t->slots[i].ref != flow->index + 1)
        i = (i + 1) & t->mask;
    /* Move later members of the run back over the hole, so that no probe stops short (Knuth 6.4, algorithm R). */
    for (hole = i, i = (i + 1) & t->mask; t->slots[i].ref; i = (i + 1) & t->mask) {
        home = (uint32_t)by_link(t, t->slots[i].ref)->hash & t->mask;
        if (((i - home) & t->mask) >= ((i - hole) & t->mask)) {
            t->slots[hole] = t->slots[i];
            hole = i;
        }
    }
    t->slots[hole].ref = 0;
}

static void ring_add(struct colo_rwtable *t, struct colo_rwflow *flow)
{
    uint32_t *head = &t->head[flow->standing], link = flow->index + 1;

    if (!*head) {
        *head = flow->next = flow->prev = link;
        return;
    }
    flow->next = *head;
    flow->prev = by_link(t, *head)->prev;
    by_link(t, flow->prev)->next = link;
    by_link(t, flow->next)->prev = link;
}

static void ring_remove(struct colo_rwtable *t, struct colo_rwflow *flow)
{
    uint32_t *head = &t->head[flow->standing], link = flow->index + 1;

    if (flow->next == link) {
        *head = 0;
        return;
    }
    by_link(t, flow->prev)->next = flow->next;
    by_link(t, flow->next)->prev = flow->prev;
    if (*head == link)
        *head = flow->next;
}

void colo_rwtable_remove(struct colo_rwtable *t, struct colo_rwflow *flow)
{
    unslot(t, flow);
    ring_remove(t, flow);
    t->count--;
    t->free[t->frees++] = flow->index;
}

void colo_rwtable_fill(struct colo_rwflow *flow, const struct colo_rwflow *from)
{
    const struct colo_rwflow own = *flow;

    *flow = *from;
    flow->key = own.key;
    flow->index = own.index;
    flow->next = own.next;
    flow->prev = own.prev;
    flow->hash = own.hash;
    flow->standing = own.standing;
    flow->used_at = own.used_at;
}

static bool grow(struct colo_rwtable *t)
{
    struct colo_rwflow *block = calloc(BLOCK, sizeof *block);

    if (!block)
        return false;
    t->blocks[t->made / BLOCK] = block;
    for (uint32_t i = 0; i < BLOCK && t->made < t->limit; i++, t->made++)
        t->free[t->frees++] = t->made;
    return true;
}

bool colo_rwtable_evict(struct colo_rwtable *t)
{
    struct colo_rwflow *victim = colo_rwtable_oldest(t, COLO_RW_CLOSED);

    if (!victim)
        victim = colo_rwtable_oldest(t, COLO_RW_HALF);
    if (!victim)
        return false;
    colo_rwtable_remove(t, victim);
    t->evicted++;
    return true;
}

struct colo_rwflow *colo_rwtable_add(struct colo_rwtable *t, const struct colo_rwkey *key)
{
    struct colo_rwflow *flow;
    uint32_t i, index;

    if (!t->frees && !(t->made < t->limit && grow(t)) && !colo_rwtable_evict(t))
        return NULL;
    index = t->free[--t->frees];
    flow = by_link(t, index + 1);
    memset(flow, 0, sizeof *flow);
    flow->key = *key;
    flow->hash = colo_hash(t->seed, (const uint8_t *)key, sizeof *key);
    flow->index = index;
    flow->standing = COLO_RW_HALF;
    ring_add(t, flow);
    for (i = (uint32_t)flow->hash & t->mask; t->slots[i].ref; i = (i + 1) & t->mask)
        ;
    t->slots[i] = (struct slot){(uint32_t)(flow->hash >> 32), index + 1};
    t->count++;
    return flow;
}

void colo_rwtable_stand(struct colo_rwtable *t, struct colo_rwflow *flow, uint8_t standing)
{
    if (flow->standing == standing && standing == COLO_RW_LIVE)
        return; /* these are never chosen by age */
    ring_remove(t, flow);
    flow->standing = standing;
    ring_add(t, flow);
}

struct colo_rwflow *colo_rwtable_oldest(struct colo_rwtable *t, uint8_t standing)
{
    return t->head[standing] ? by_link(t, t->head[standing]) : NULL;
}

uint32_t colo_rwtable_places(const struct colo_rwtable *t)
{
    return t->mask + 1;
}

struct colo_rwflow *colo_rwtable_at(const struct colo_rwtable *t, uint32_t place)
{
    return t->slots[place].ref ? by_link(t, t->slots[place].ref) : NULL;
}

void colo_rwtable_clear(struct colo_rwtable *t)
{
    if (!t->count)
        return;
    memset(t->slots, 0, ((size_t)t->mask + 1) * sizeof *t->slots);
    memset(t->head, 0, sizeof t->head);
    t->count = t->frees = 0;
    for (uint32_t i = t->made; i > 0; i--)
        t->free[t->frees++] = i - 1;
}

uint32_t colo_rwtable_count(const struct colo_rwtable *t)
{
    return t->count;
}

uint64_t colo_rwtable_evicted(const struct colo_rwtable *t)
{
    return t->evicted;
}
