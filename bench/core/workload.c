/* SPDX-License-Identifier: Apache-2.0 */
#include "workload.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "flow.h"
#include "load.h"

enum {
    ETH_LEN = 14,
    IP_LEN = 20,
    TCP_LEN = 20,
    UDP_LEN = 8,
    ACTIONS = 256,
    CACHE_LINE = 64,
    MAX_FLOWS = 131072, /* as the comparator's default */
    SYN_ACK = 0x12,
    PSH_ACK = 0x18,
    GSO_TCPV4 = 1,
};

static const int64_t FOREVER = (int64_t)3600 * 1000000000;

struct side {
    uint8_t *arena;
    struct colo_frame *frames;
    uint64_t count;
};

struct workload {
    struct workload_spec spec;
    colo_comparator *comparator;
    struct side sides[2];
    uint32_t header;   /* bytes before the payload */
    uint64_t bytes;    /* of the primary's frames */
    uint64_t stream;   /* payload bytes of each flow before this pass */
    uint64_t per_flow; /* ... and in it */
    uint64_t stride;   /* from one flow to the next one that speaks */
    uint64_t grown;
    int64_t now;
    uint8_t *copy;     /* MEMORY */
    uint8_t *other;    /* what is read to evict the arenas */
    volatile uint64_t sum;
    struct colo_table *table;  /* LOOKUP */
    struct colo_flow_id *ids;  /* ... in the order of the look-ups, one a flow */
};

/* ------------------------------------------------------------------ frames */

static void write_header(const struct workload *w, uint8_t *p, uint32_t flow, uint64_t at, uint32_t length,
                         uint8_t flags)
{
    bool udp = w->spec.kind == WORKLOAD_UDP;
    uint32_t l4 = udp ? UDP_LEN : TCP_LEN;

    memset(p, 0, w->header);
    if (w->spec.vnet_len) {
        p[0] = 1; /* NEEDS_CSUM */
        p[1] = GSO_TCPV4;
        p += w->spec.vnet_len;
    }
    memcpy(p, "\x52\x54\x00\x00\x00\xc1\x52\x54\x00\x12\x34\x56\x08\x00", ETH_LEN);
    p += ETH_LEN;
    p[0] = 0x45;
    colo_store16(p + 2, (uint16_t)(IP_LEN + l4 + length));
    p[8] = 64;
    p[9] = udp ? 17 : 6;
    colo_store32(p + 12, 0x0a000001);
    colo_store32(p + 16, 0x0a000002 + flow / 50000);
    p += IP_LEN;
    colo_store16(p, 80);
    colo_store16(p + 2, (uint16_t)(1024 + flow % 50000));
    if (udp) {
        colo_store16(p + 4, (uint16_t)(UDP_LEN + length));
        return;
    }
    colo_store32(p + 4, (uint32_t)at);
    colo_store32(p + 8, 1);
    p[12] = TCP_LEN / 4 << 4;
    p[13] = flags;
    colo_store16(p + 14, 64240);
}

/* Payload depends on its place in the stream only, so that both sides agree however they are cut. */
static void write_payload(uint8_t *p, uint64_t at, uint32_t length)
{
    for (uint32_t i = 0; i < length; i++)
        p[i] = (uint8_t)(at + i);
}

/*
 * Flows speak in an order that has nothing to do with that of their making, which is that of their memory: else the
 * processor's prefetchers would see each next flow come. The golden ratio keeps neighbours in time apart.
 */
static uint64_t choose_stride(uint64_t flows)
{
    uint64_t stride = flows * 1618 / 2618, a, b;

    for (;; stride++) {
        for (a = flows, b = stride; b;) {
            uint64_t rest = a % b;

            a = b;
            b = rest;
        }
        if (a == 1)
            return stride;
    }
}

static uint32_t nth_flow(const struct workload *w, uint64_t n)
{
    return (uint32_t)(n * w->stride % w->spec.flows);
}

static void fill_side(struct workload *w, int side, bool payload)
{
    const struct workload_spec *spec = &w->spec;
    uint32_t cut = side == COLO_SECONDARY && spec->recut ? spec->recut : spec->length;
    uint64_t burst = (uint64_t)spec->burst * spec->length;
    struct side *s = &w->sides[side];
    uint8_t *p = s->arena;

    s->count = 0;
    for (uint64_t at = 0; at < w->per_flow; at += burst)
        for (uint32_t n = 0; n < spec->flows; n++)
            for (uint64_t from = 0; from < burst; from += cut) {
                uint32_t length = burst - from < cut ? (uint32_t)(burst - from) : cut;

                write_header(w, p, nth_flow(w, n), 1 + w->stream + at + from, length, PSH_ACK);
                if (payload)
                    write_payload(p + w->header, at + from, length);
                s->frames[s->count] = (struct colo_frame){
                    .data = p, .len = w->header + length, .vnet_len = spec->vnet_len, .cookie = s->count};
                s->count++;
                p += (w->header + length + 15) & ~15u;
            }
}

void workload_fill(struct workload *w)
{
    w->stream += w->per_flow;
    for (int side = 0; side < 2; side++)
        fill_side(w, side, false);
    for (uint64_t at = 0; at < w->spec.evict; at += CACHE_LINE)
        w->sum += w->other[at];
}

/* ------------------------------------------------------------------ passes */

static uint64_t carry_out(struct workload *w)
{
    struct colo_action actions[ACTIONS];
    uint64_t released = 0;
    size_t n;

    while ((n = colo_comparator_actions(w->comparator, actions, ACTIONS)))
        for (size_t i = 0; i < n; i++)
            released += actions[i].kind == COLO_RELEASE;
    return released;
}

static uint64_t feed(struct workload *w, int side, uint64_t from, uint64_t to)
{
    uint64_t released = 0;

    while (from < to) {
        uint64_t n = to - from < w->spec.turn ? to - from : w->spec.turn;
        long taken = colo_comparator_feed(w->comparator, side, w->sides[side].frames + from, n, w->now);

        if (taken <= 0)
            abort(); /* the limits are wide enough for every spec that create accepts */
        from += (uint64_t)taken;
        released += carry_out(w);
    }
    return released;
}

/* As the engine does it: a turn of each side, in step. */
static uint64_t compare(struct workload *w)
{
    const struct side *p = &w->sides[COLO_PRIMARY], *s = &w->sides[COLO_SECONDARY];
    uint64_t at[2] = {0, 0}, sent[2] = {0, 0}, released = 0;

    while (at[0] < p->count || at[1] < s->count) {
        uint64_t to[2] = {at[0] + w->spec.turn < p->count ? at[0] + w->spec.turn : p->count, at[1]};
        struct colo_batch batches[2];
        size_t taken[2];

        for (uint64_t i = at[0]; i < to[0]; i++)
            sent[0] += p->frames[i].len - w->header;
        for (; to[1] < s->count && (to[0] == p->count || sent[1] + w->spec.skew < sent[0]); to[1]++)
            sent[1] += s->frames[to[1]].len - w->header;
        for (int side = 0; side < 2; side++)
            batches[side] = (struct colo_batch){
                .frames = w->sides[side].frames + at[side], .count = to[side] - at[side], .now = w->now};
        if (colo_comparator_feed_both(w->comparator, batches, taken) < 0 || taken[0] != batches[0].count ||
            taken[1] != batches[1].count)
            abort(); /* the limits are wide enough for every spec that create accepts */
        released += carry_out(w);
        memcpy(at, to, sizeof at);
        w->now += 1000;
    }
    return released;
}

static uint64_t commit(struct workload *w)
{
    uint64_t released = feed(w, COLO_PRIMARY, 0, w->sides[COLO_PRIMARY].count);

    w->now += 1000;
    colo_comparator_stop(w->comparator, w->now);
    w->now += 1000;
    colo_comparator_commit(w->comparator, w->now, w->now);
    return released + carry_out(w);
}

static uint64_t parse(struct workload *w)
{
    const struct side *p = &w->sides[COLO_PRIMARY];
    struct colo_description d;
    uint64_t parsed = 0;

    for (uint64_t i = 0; i < p->count; i++)
        parsed += colo_frame_describe(&p->frames[i], &d) == 0 && d.body_len == w->spec.length;
    return parsed;
}

static uint64_t touch(struct workload *w)
{
    const struct side *p = &w->sides[COLO_PRIMARY], *s = &w->sides[COLO_SECONDARY];
    uint64_t equal = 0;

    for (uint64_t i = 0; i < p->count; i++) {
        equal += memcmp(p->frames[i].data, s->frames[i].data, p->frames[i].len) == 0;
        memcpy(w->copy + (p->frames[i].data - p->arena), p->frames[i].data, p->frames[i].len);
    }
    return equal;
}

static uint64_t look_up(struct workload *w)
{
    uint64_t found = 0, n = 0;

    for (uint64_t i = 0; i < w->sides[COLO_PRIMARY].count; i++) {
        found += colo_table_find(w->table, &w->ids[n]) != NULL;
        n = n + 1 < w->spec.flows ? n + 1 : 0;
    }
    return found;
}

__attribute__((noinline)) uint64_t workload_pass(struct workload *w)
{
    switch (w->spec.kind) {
    case WORKLOAD_COMMIT:
        return commit(w);
    case WORKLOAD_PARSE:
        return parse(w);
    case WORKLOAD_MEMORY:
        return touch(w);
    case WORKLOAD_LOOKUP:
        return look_up(w);
    default:
        return compare(w);
    }
}

uint64_t workload_frames(const struct workload *w)
{
    return w->sides[COLO_PRIMARY].count;
}

uint64_t workload_bytes(const struct workload *w)
{
    return w->bytes;
}

uint64_t workload_grown(const struct workload *w)
{
    return w->grown;
}

/* ---------------------------------------------------------------- creation */

static uint64_t resident(void)
{
    unsigned long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");

    if (f) {
        if (fscanf(f, "%*u %lu", &pages) != 1)
            pages = 0;
        fclose(f);
    }
    return (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static bool begin_flows(struct workload *w)
{
    uint8_t head[256];
    struct colo_frame frame = {.data = head, .len = w->header, .vnet_len = w->spec.vnet_len};

    colo_comparator_commit(w->comparator, w->now, w->now);
    if (w->spec.kind == WORKLOAD_UDP)
        return true;
    for (uint32_t flow = 0; flow < w->spec.flows; flow++) {
        write_header(w, head, flow, 0, 0, SYN_ACK);
        for (int side = 0; side < 2; side++)
            if (colo_comparator_feed(w->comparator, side, &frame, 1, w->now) != 1)
                return false;
        if (carry_out(w) != 1)
            return false;
    }
    return true;
}

static bool make_comparator(struct workload *w)
{
    uint64_t before = resident();
    struct colo_config config;

    colo_config_default(&config);
    config.compare_timeout = FOREVER;
    config.max_flow_frames = config.max_frames = 1 << 24;
    config.max_flow_bytes = config.max_bytes = UINT64_MAX / 4;
    config.max_flows = MAX_FLOWS;
    config.hash_seed = 1;
    w->comparator = colo_comparator_create(&config);
    if (!w->comparator || !begin_flows(w))
        return false;
    w->grown = resident() - before;
    return true;
}

static bool make_table(struct workload *w)
{
    uint8_t head[256];
    struct colo_packet packet;

    w->table = colo_table_create(MAX_FLOWS, 1);
    w->ids = calloc(w->spec.flows, sizeof *w->ids);
    if (!w->table || !w->ids)
        return false;
    for (uint32_t flow = 0; flow < w->spec.flows; flow++) {
        write_header(w, head, flow, 0, 0, SYN_ACK);
        colo_parse(head, w->header, w->spec.vnet_len, &packet);
        if (!colo_table_add(w->table, &packet.id))
            return false;
    }
    for (uint32_t n = 0; n < w->spec.flows; n++) {
        write_header(w, head, nth_flow(w, n), 0, 0, SYN_ACK);
        colo_parse(head, w->header, w->spec.vnet_len, &packet);
        w->ids[n] = packet.id;
    }
    return true;
}

static bool make_side(struct workload *w, int side, uint32_t cut)
{
    uint64_t bursts = (uint64_t)w->spec.flows * (w->per_flow / ((uint64_t)w->spec.burst * w->spec.length));
    uint64_t frames = bursts * (((uint64_t)w->spec.burst * w->spec.length + cut - 1) / cut);
    struct side *s = &w->sides[side];

    s->arena = malloc(frames * ((w->header + cut + 15) & ~15u));
    s->frames = calloc(frames, sizeof *s->frames);
    if (!s->arena || !s->frames)
        return false;
    fill_side(w, side, true);
    return true;
}

/* What a kind needs beside the arenas. */
static bool make_rest(struct workload *w)
{
    if (w->spec.evict) {
        w->other = malloc(w->spec.evict);
        if (!w->other)
            return false;
        memset(w->other, 1, w->spec.evict); /* pages that were never written are all the same one */
    }
    if (w->spec.kind == WORKLOAD_MEMORY) {
        uint64_t size = w->bytes + w->sides[0].count * 16;

        w->copy = malloc(size);
        if (w->copy)
            memset(w->copy, 1, size); /* the first pass shall not be the one that faults the pages in */
        return w->copy != NULL;
    }
    if (w->spec.kind == WORKLOAD_LOOKUP)
        return make_table(w);
    return make_comparator(w);
}

struct workload *workload_create(const struct workload_spec *spec)
{
    uint64_t turn_of_all = (uint64_t)spec->flows * spec->burst; /* frames until each flow has had its burst */
    struct workload *w = calloc(1, sizeof *w);

    if (!w || !spec->flows || spec->flows > MAX_FLOWS || !spec->length || !spec->burst || !spec->turn) {
        free(w);
        return NULL;
    }
    w->spec = *spec;
    w->now = 1000;
    w->header = spec->vnet_len + ETH_LEN + IP_LEN + (spec->kind == WORKLOAD_UDP ? UDP_LEN : TCP_LEN);
    w->stride = choose_stride(spec->flows);
    w->per_flow = (spec->frames + turn_of_all - 1) / turn_of_all * spec->burst * spec->length;
    if (!make_side(w, COLO_PRIMARY, spec->length) ||
        !make_side(w, COLO_SECONDARY, spec->recut ? spec->recut : spec->length)) {
        workload_destroy(w);
        return NULL;
    }
    for (uint64_t i = 0; i < w->sides[0].count; i++)
        w->bytes += w->sides[0].frames[i].len;
    if (!make_rest(w)) {
        workload_destroy(w);
        return NULL;
    }
    w->stream = -w->per_flow;
    return w;
}

void workload_destroy(struct workload *w)
{
    if (!w)
        return;
    colo_comparator_destroy(w->comparator);
    colo_table_destroy(w->table);
    for (int side = 0; side < 2; side++) {
        free(w->sides[side].arena);
        free(w->sides[side].frames);
    }
    free(w->ids);
    free(w->other);
    free(w->copy);
    free(w);
}
