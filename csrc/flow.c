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
    MAX_LOOK = 256, /* flows of one standing that one eviction looks at: bounded time */
};

struct slot {
    uint32_t tag;
    uint32_t ref; /* index + 1, 0: empty */
};

/* All flows of one standing, in a ring; the clock's hand is at its head. Links are index + 1, 0: empty. */
struct ring {
    uint32_t head;
    uint32_t count;
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
    uint32_t live_share; /* how many LIVE flows no newcomer pushes out */
    struct ring rings[COLO_STANDINGS];
    uint64_t evicted;
    uint64_t epoch;
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
    t->live_share = max_flows - (max_flows + 7) / 8;
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

uint64_t colo_table_hash(const struct colo_table *t, const struct colo_flow_id *id)
{
    return colo_hash(t->seed, (const uint8_t *)id, sizeof *id);
}

/* Where a search for that hash begins. */
static const struct slot *home_of(const struct colo_table *t, uint64_t hash)
{
    return &t->slots[(uint32_t)hash & t->mask];
}

void colo_table_fetch_slot(const struct colo_table *t, uint64_t hash)
{
    __builtin_prefetch(home_of(t, hash));
}

/* The flow at the search's first step; at our load most searches take one. */
void colo_table_fetch_flow(const struct colo_table *t, uint64_t hash)
{
    const struct slot *slot = home_of(t, hash);

    if (slot->ref && slot->tag == (uint32_t)(hash >> 32)) {
        const char *flow = (const char *)at(t, slot->ref - 1);

        for (size_t line = 0; line < sizeof(struct colo_flow); line += 64)
            __builtin_prefetch(flow + line);
    }
}

static struct colo_flow *find(const struct colo_table *t, const struct colo_flow_id *id, uint64_t hash)
{
    uint32_t tag = (uint32_t)(hash >> 32);

    for (uint32_t i = (uint32_t)hash & t->mask; t->slots[i].ref; i = (i + 1) & t->mask) {
        if (t->slots[i].tag == tag) {
            struct colo_flow *flow = at(t, t->slots[i].ref - 1);

            if (colo_flow_id_equal(&flow->id, id))
                return flow;
        }
    }
    return NULL;
}

struct colo_flow *colo_table_find_hashed(struct colo_table *t, const struct colo_flow_id *id, uint64_t hash)
{
    struct colo_flow *flow = find(t, id, hash);

    if (flow)
        flow->used = 1;
    return flow;
}

struct colo_flow *colo_table_find(struct colo_table *t, const struct colo_flow_id *id)
{
    return colo_table_find_hashed(t, id, colo_table_hash(t, id));
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

/* One that has diverged must be known until the commit, or it would diverge again. */
static bool is_idle(const struct colo_table *t, const struct colo_flow *flow)
{
    return flow->held[0] == 0 && !(flow->diverged && flow->epoch == t->epoch) && flow->held[1] == 0 && !(flow->id.cls == COLO_CLASS_TCP && flow->u.tcp.debt);
}

static struct colo_flow *by_link(const struct colo_table *t, uint32_t link)
{
    return at(t, link - 1);
}

static void ring_add(struct colo_table *t, struct colo_flow *flow)
{
    struct ring *ring = &t->rings[flow->standing];
    uint32_t link = flow->index + 1;

    if (!ring->head) {
        ring->head = flow->next = flow->prev = link;
    } else { /* behind all others: the hand comes to it last */
        flow->next = ring->head;
        flow->prev = by_link(t, ring->head)->prev;
        by_link(t, flow->prev)->next = link;
        by_link(t, flow->next)->prev = link;
    }
    ring->count++;
}

static void ring_remove(struct colo_table *t, struct colo_flow *flow)
{
    struct ring *ring = &t->rings[flow->standing];
    uint32_t link = flow->index + 1;

    if (flow->next == link) {
        ring->head = 0;
    } else {
        by_link(t, flow->prev)->next = flow->next;
        by_link(t, flow->next)->prev = flow->prev;
        if (ring->head == link)
            ring->head = flow->next;
    }
    ring->count--;
}

/*
 * LIVE flows by the clock: an idle one not used since the hand passed it last, else the first idle one met. The others
 * by age, for the oldest are the likeliest to be idle: whoever floods us looks at few. NULL: met none.
 */
static struct colo_flow *pick_of(struct colo_table *t, uint8_t standing)
{
    struct ring *ring = &t->rings[standing];
    struct colo_flow *second = NULL;
    uint32_t looks = ring->count < MAX_LOOK ? ring->count : MAX_LOOK;

    while (looks--) {
        struct colo_flow *flow = by_link(t, ring->head);

        ring->head = flow->next;
        if (!is_idle(t, flow))
            continue;
        if (!flow->used || standing != COLO_LIVE)
            return flow;
        flow->used = 0;
        if (!second)
            second = flow;
    }
    return second;
}

static struct colo_flow *pick_victim(struct colo_table *t)
{
    struct colo_flow *flow = pick_of(t, COLO_SPARE);

    if (!flow)
        flow = pick_of(t, COLO_FRESH);
    if (!flow && t->rings[COLO_LIVE].count > t->live_share)
        flow = pick_of(t, COLO_LIVE);
    return flow;
}

static void evict(struct colo_table *t, struct colo_flow *flow)
{
    unslot(t, flow);
    ring_remove(t, flow);
    t->count--;
    t->evicted++;
    t->free[t->frees++] = flow->index;
}

void colo_table_set_standing(struct colo_table *t, struct colo_flow *flow, uint8_t standing)
{
    struct ring *live = &t->rings[COLO_LIVE];
    struct colo_flow *victim;

    if (flow->standing == standing)
        return;
    ring_remove(t, flow);
    if (standing == COLO_LIVE && live->count && live->count >= t->live_share && (victim = pick_of(t, COLO_LIVE)))
        evict(t, victim);
    flow->standing = standing;
    ring_add(t, flow);
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

struct colo_flow *colo_table_add(struct colo_table *t, const struct colo_flow_id *id)
{
    struct colo_flow *flow;
    uint64_t hash = colo_table_hash(t, id);
    uint32_t i, index;

    if (!t->frees && !(t->made < t->limit && grow(t))) {
        flow = pick_victim(t);
        if (!flow)
            return NULL;
        evict(t, flow);
    }
    index = t->free[--t->frees];
    flow = at(t, index);
    memset(flow, 0, sizeof *flow);
    flow->id = *id;
    flow->hash = hash;
    flow->index = index;
    flow->used = 1;
    flow->standing = id->cls == COLO_CLASS_TCP ? COLO_FRESH : COLO_SPARE;
    ring_add(t, flow);
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
    memset(t->rings, 0, sizeof t->rings);
    t->frees = 0;
    t->count = 0;
    for (uint32_t i = t->made; i > 0; i--) {
        at(t, i - 1)->held[0] = at(t, i - 1)->held[1] = 0;
        t->free[t->frees++] = i - 1;
    }
}

void colo_table_set_epoch(struct colo_table *t, uint64_t epoch)
{
    t->epoch = epoch;
}

const uint64_t *colo_table_evictions(const struct colo_table *t)
{
    return &t->evicted;
}

uint32_t colo_table_count(const struct colo_table *t)
{
    return t->count;
}
