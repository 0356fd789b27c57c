/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Open addressing with linear probing; a slot is the flow's index and 32 bits of its hash, so that a probe touches
 * the flow itself only where the hash agrees. Flows lie in blocks and never move. The table of slots is made for
 * max_flows at the start (its pages cost nothing until touched), so there is no pause for growing.
 */
#include "flow.h"

#include <stdlib.h>
#include <string.h>

#include "hash.h"

enum {
    BLOCK = 256,
    MAX_LOOK = 256, /* flows that one eviction looks at: bounded time */
};

struct slot {
    uint32_t tag;
    uint32_t ref; /* index + 1, 0: empty */
};

struct colo_table {
    struct slot *slots;
    struct colo_flow **blocks;
    uint32_t *free;   /* indices of flows given back */
    uint32_t frees;
    uint32_t mask;
    uint32_t limit;
    uint32_t made;    /* flows that exist in blocks */
    uint32_t count;
    uint32_t hand;    /* of the clock */
    uint64_t seed;
};

static struct colo_flow *at(const struct colo_table *t, uint32_t index)
{
    return &t->blocks[index / BLOCK][index % BLOCK];
}

struct colo_table *colo_table_create(uint32_t max_flows, uint64_t seed)
{
    struct colo_table *t = calloc(1, sizeof *t);
    uint32_t size = 64;

    if (!t)
        return NULL;
    while (size < max_flows + max_flows / 2)
        size *= 2;
    t->limit = max_flows;
    t->mask = size - 1;
    t->seed = seed;
    t->slots = calloc(size, sizeof *t->slots);
    t->blocks = calloc((size_t)max_flows / BLOCK + 1, sizeof(struct colo_flow *));
    t->free = calloc(max_flows, sizeof *t->free);
    if (!t->slots || !t->blocks || !t->free) {
        colo_table_destroy(t);
        return NULL;
    }
    return t;
}

void colo_table_destroy(struct colo_table *t)
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

static uint64_t hash_of(const struct colo_table *t, const struct colo_flow_id *id)
{
    return colo_hash(t->seed, (const uint8_t *)id, sizeof *id);
}

static struct colo_flow *find(const struct colo_table *t, const struct colo_flow_id *id, uint64_t hash)
{
    uint32_t tag = (uint32_t)(hash >> 32);

    for (uint32_t i = (uint32_t)hash & t->mask; t->slots[i].ref; i = (i + 1) & t->mask) {
        if (t->slots[i].tag == tag) {
            struct colo_flow *flow = at(t, t->slots[i].ref - 1);

            if (memcmp(&flow->id, id, sizeof *id) == 0)
                return flow;
        }
    }
    return NULL;
}

struct colo_flow *colo_table_find(struct colo_table *t, const struct colo_flow_id *id)
{
    struct colo_flow *flow = find(t, id, hash_of(t, id));

    if (flow)
        flow->used = 1;
    return flow;
}

static void unslot(struct colo_table *t, const struct colo_flow *flow)
{
    uint32_t i = (uint32_t)flow->hash & t->mask, hole, home;

    while (t->slots[i].ref != flow->index + 1)
        i = (i + 1) & t->mask;
    /* Move later members of the run back over the hole, so that no probe stops short (Knuth 6.4, algorithm R). */
    for (hole = i, i = (i + 1) & t->mask; t->slots[i].ref; i = (i + 1) & t->mask) {
        home = (uint32_t)at(t, t->slots[i].ref - 1)->hash & t->mask;
        if (((i - home) & t->mask) >= ((i - hole) & t->mask)) {
            t->slots[hole] = t->slots[i];
            hole = i;
        }
    }
    t->slots[hole].ref = 0;
}

static bool is_idle(const struct colo_flow *flow)
{
    return flow->held[0] == 0 && flow->held[1] == 0 && !(flow->id.cls == COLO_CLASS_TCP && flow->u.tcp.debt);
}

static struct colo_flow *pick_victim(struct colo_table *t)
{
    struct colo_flow *second = NULL;
    uint32_t looks = t->made < MAX_LOOK ? t->made : MAX_LOOK;

    for (uint32_t i = 0; i < 2 * looks; i++) {
        struct colo_flow *flow = at(t, t->hand);

        t->hand = t->hand + 1 == t->made ? 0 : t->hand + 1;
        if (!is_idle(flow))
            continue;
        if (flow->closed || !flow->used)
            return flow;
        flow->used = 0;
        if (!second)
            second = flow;
    }
    return second;
}

static bool grow(struct colo_table *t)
{
    struct colo_flow *block = calloc(BLOCK, sizeof *block);

    if (!block)
        return false;
    t->blocks[t->made / BLOCK] = block;
    for (uint32_t i = 0; i < BLOCK && t->made < t->limit; i++, t->made++)
        t->free[t->frees++] = t->made;
    return true;
}

struct colo_flow *colo_table_add(struct colo_table *t, const struct colo_flow_id *id, bool *evicted)
{
    struct colo_flow *flow;
    uint64_t hash = hash_of(t, id);
    uint32_t i, index;

    *evicted = false;
    if (!t->frees && !(t->made < t->limit && grow(t))) {
        flow = t->made ? pick_victim(t) : NULL;
        if (!flow)
            return NULL;
        unslot(t, flow);
        t->count--;
        t->free[t->frees++] = flow->index;
        *evicted = true;
    }
    index = t->free[--t->frees];
    flow = at(t, index);
    memset(flow, 0, sizeof *flow);
    flow->id = *id;
    flow->hash = hash;
    flow->index = index;
    flow->used = 1;
    for (i = (uint32_t)hash & t->mask; t->slots[i].ref; i = (i + 1) & t->mask)
        ;
    t->slots[i].ref = index + 1;
    t->slots[i].tag = (uint32_t)(hash >> 32);
    t->count++;
    return flow;
}

void colo_table_clear(struct colo_table *t)
{
    memset(t->slots, 0, ((size_t)t->mask + 1) * sizeof *t->slots);
    t->frees = 0;
    t->count = 0;
    t->hand = 0;
    for (uint32_t i = t->made; i > 0; i--) {
        at(t, i - 1)->held[0] = at(t, i - 1)->held[1] = 0;
        t->free[t->frees++] = i - 1;
    }
}

uint32_t colo_table_count(const struct colo_table *t)
{
    return t->count;
}
