/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A datagram is evidence only if every receiver would read the same out of its fragments. So one whose fragments
 * contradict each other is `spoiled`: it never becomes whole, and takes up whatever else comes under its key. A primary
 * one waits for the checkpoint that the time-out asks for, a secondary one is dropped. Spoiled is a datagram with
 *   - fragments that overlap with other bytes (RFC 791 leaves open which bytes win, RFC 1858 and 3128 say what that
 *     is used for); in IPv6 fragments that overlap at all, but for exact duplicates (RFC 5722; RFC 8200, section 4.5);
 *   - two ends, or bytes beyond its end; more than 65535 bytes;
 *   - a fragment that is empty, or not the last and no multiple of 8 bytes long (RFC 8200, section 4.5);
 *   - more fragments than COLO_FRAGMENTS_PER_DATAGRAM.
 */
#include "fragment.h"

#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "hash.h"
#include "load.h"

enum { MAX_DATAGRAM = 65535, IPV6_HEADER = 40, FIRST_SPANS = 8 };

struct key {
    struct colo_flow_id id; /* without ports */
    uint32_t ip_id;
};

/* A fragment that brought bytes of its own: [start, end) of the datagram's payload. */
struct span {
    uint32_t start;
    uint32_t end;
    const struct colo_rec *rec;
};

struct reassembly {
    struct reassembly *next_in_bucket;
    struct reassembly *older;
    struct reassembly *newer;
    struct key key;
    uint64_t hash;
    int64_t since;           /* when its first fragment was read */
    struct colo_list frames; /* by flow_link, in order of arrival; in the held list too */
    struct span *spans;      /* sorted by start */
    uint32_t span_count;
    uint32_t span_room;
    uint32_t count;          /* of frames */
    uint32_t covered;        /* bytes of the payload that have come */
    uint32_t total;          /* length of the payload, 0: not known yet */
    uint32_t reach;          /* end of the furthest fragment that is not the last */
    uint32_t header_len;     /* of the first fragment: up to the datagram's payload, without a fragment header */
    uint32_t l3;
    uint32_t next_at;
    uint8_t protocol;
    uint8_t side;
    uint8_t spoiled;
};

struct half {
    struct reassembly **buckets;
    struct reassembly *oldest;
    struct reassembly *newest;
    uint32_t waiting;        /* fragments */
    uint8_t closed;          /* primary: a fragment was not put together in this epoch, so no new datagram is begun */
};

struct colo_fragments {
    struct half half[2];
    uint32_t mask;
    uint32_t limit;
    uint64_t seed;
};

struct colo_fragments *colo_fragments_create(uint32_t limit, uint64_t seed)
{
    struct colo_fragments *f = calloc(1, sizeof *f);
    uint32_t size = 16;

    if (!f)
        return NULL;
    while (size < limit && size < 1u << 16)
        size *= 2;
    f->mask = size - 1;
    f->limit = limit;
    f->seed = seed;
    for (int side = 0; side < 2; side++)
        f->half[side].buckets = calloc(size, sizeof(struct reassembly *));
    if (!f->half[0].buckets || !f->half[1].buckets) {
        colo_fragments_destroy(f);
        return NULL;
    }
    return f;
}

static void destroy(struct reassembly *r)
{
    free(r->spans);
    free(r);
}

static void forget_half(struct colo_fragments *f, struct half *half)
{
    struct reassembly *r, *newer;

    if (half->oldest)
        memset(half->buckets, 0, ((size_t)f->mask + 1) * sizeof(struct reassembly *));
    for (r = half->oldest; r; r = newer) {
        newer = r->newer;
        destroy(r);
    }
    half->oldest = half->newest = NULL;
    half->waiting = 0;
    half->closed = 0;
}

void colo_fragments_destroy(struct colo_fragments *f)
{
    if (!f)
        return;
    for (int side = 0; side < 2; side++) {
        forget_half(f, &f->half[side]);
        free(f->half[side].buckets);
    }
    free(f);
}

uint32_t colo_fragments_waiting(const struct colo_fragments *f, int side)
{
    return f->half[side].waiting;
}

void colo_fragment_forget_all(colo_comparator *c)
{
    for (int side = 0; side < 2; side++)
        forget_half(c->fragments, &c->fragments->half[side]);
}

/* -------------------------------------------------------------- the table */

static void make_key(struct key *key, const struct colo_packet *packet)
{
    memset(key, 0, sizeof *key); /* padding too: keys are compared as bytes */
    key->id = packet->id;
    if (packet->id.family == 6) /* the first fragment's next header counts (RFC 8200, section 4.5) */
        key->id.protocol = 0;
    key->ip_id = packet->ip_id;
}

static struct reassembly *find(const struct colo_fragments *f, const struct half *half, const struct key *key,
                               uint64_t hash)
{
    struct reassembly *r = half->buckets[hash & f->mask];

    while (r && (r->hash != hash || memcmp(&r->key, key, sizeof *key) != 0))
        r = r->next_in_bucket;
    return r;
}

static struct reassembly *begin(struct colo_fragments *f, struct half *half, const struct key *key, uint64_t hash)
{
    struct reassembly *r = calloc(1, sizeof *r), **bucket = &half->buckets[hash & f->mask];

    if (!r)
        return NULL;
    r->key = *key;
    r->hash = hash;
    r->next_in_bucket = *bucket;
    *bucket = r;
    r->older = half->newest;
    *(r->older ? &r->older->newer : &half->oldest) = r;
    half->newest = r;
    return r;
}

static void end(struct colo_fragments *f, struct half *half, struct reassembly *r)
{
    struct reassembly **at = &half->buckets[r->hash & f->mask];

    while (*at != r)
        at = &(*at)->next_in_bucket;
    *at = r->next_in_bucket;
    *(r->older ? &r->older->newer : &half->oldest) = r->newer;
    *(r->newer ? &r->newer->older : &half->newest) = r->older;
    half->waiting -= r->count;
    destroy(r);
}

/* A secondary datagram is given up. */
static void drop(colo_comparator *c, struct half *half, struct reassembly *r)
{
    struct colo_rec *rec;

    c->n.fragments_dropped += r->count;
    while ((rec = r->frames.head)) {
        colo_flow_list_remove(&r->frames, rec);
        colo_held_remove(c, rec);
        colo_output_discard(c, rec, COLO_REASON_DIVERGED);
    }
    end(c->fragments, half, r);
}

void colo_fragment_expire(colo_comparator *c)
{
    struct half *half = &c->fragments->half[COLO_SECONDARY];

    while (half->oldest && c->now - half->oldest->since >= c->config.compare_timeout)
        drop(c, half, half->oldest);
}

/* ---------------------------------------------------------- putting together */

/* How many bytes of [start, end) are new; *conflict: others are there already, and differ. */
static uint32_t count_new(const struct reassembly *r, const struct colo_rec *rec, uint32_t start, uint32_t stop,
                          bool *conflict)
{
    const uint8_t *body = rec->data + rec->body;
    uint32_t at = start, fresh = 0;

    for (uint32_t i = 0; i < r->span_count && r->spans[i].start < stop && at < stop; i++) {
        const struct span *span = &r->spans[i];
        uint32_t n;

        if (span->end <= at)
            continue;
        if (span->start > at) {
            fresh += span->start - at;
            at = span->start;
        }
        n = (span->end < stop ? span->end : stop) - at;
        if (memcmp(body + (at - start), span->rec->data + span->rec->body + (at - span->start), n) != 0)
            *conflict = true;
        at += n;
    }
    return fresh + (stop - at);
}

static bool has_span(const struct reassembly *r, uint32_t start, uint32_t stop)
{
    for (uint32_t i = 0; i < r->span_count; i++)
        if (r->spans[i].start == start && r->spans[i].end == stop)
            return true;
    return false;
}

static bool add_span(struct reassembly *r, const struct colo_rec *rec, uint32_t start, uint32_t stop)
{
    uint32_t i = r->span_count;

    if (r->span_count == r->span_room) {
        uint32_t room = r->span_room ? 2 * r->span_room : FIRST_SPANS;
        struct span *spans = realloc(r->spans, room * sizeof *spans);

        if (!spans)
            return false;
        r->spans = spans;
        r->span_room = room;
    }
    for (; i > 0 && r->spans[i - 1].start > start; i--)
        r->spans[i] = r->spans[i - 1];
    r->spans[i] = (struct span){start, stop, rec};
    r->span_count++;
    return true;
}

/* The lengths that a fragment states agree with what the others do. */
static bool fits(const struct reassembly *r, const struct colo_packet *packet, uint32_t stop)
{
    if (packet->body_len == 0 || stop > MAX_DATAGRAM || (packet->more && packet->body_len % 8))
        return false;
    if (packet->more)
        return !r->total || stop < r->total;
    return r->total ? stop == r->total : stop > r->reach;
}

/* Takes in what a fragment says; false: it spoils the datagram. */
static bool take_in(struct reassembly *r, const struct colo_rec *rec, const struct colo_packet *packet)
{
    uint32_t start = packet->fragment_at, stop = start + packet->body_len, fresh;
    bool conflict = false;

    if (!fits(r, packet, stop))
        return false;
    fresh = count_new(r, rec, start, stop, &conflict);
    if (conflict)
        return false;
    if (packet->id.family == 6 && fresh != packet->body_len && !has_span(r, start, stop))
        return false;
    if (fresh && !add_span(r, rec, start, stop))
        return false;
    r->covered += fresh;
    if (!packet->more)
        r->total = stop;
    else if (stop > r->reach)
        r->reach = stop;
    if (start == 0 && !r->header_len) {
        r->header_len = packet->l4 - rec->vnet_len;
        r->l3 = packet->l3 - rec->vnet_len;
        r->next_at = packet->next_at - rec->vnet_len;
        r->protocol = packet->id.protocol;
    }
    return true;
}

/* The datagram's frame, as if it had come in one: the first fragment's header, then all payload. */
static uint8_t *put_together(const struct reassembly *r)
{
    const struct colo_rec *first = r->spans[0].rec;
    uint32_t ip_len = r->header_len - r->l3 + r->total;
    uint8_t *out, *ip;

    if (ip_len > MAX_DATAGRAM + (r->key.id.family == 6 ? IPV6_HEADER : 0))
        return NULL;
    out = malloc((size_t)r->header_len + r->total);
    if (!out)
        return NULL;
    memcpy(out, first->data + first->vnet_len, r->header_len);
    for (uint32_t i = 0; i < r->span_count; i++)
        memcpy(out + r->header_len + r->spans[i].start, r->spans[i].rec->data + r->spans[i].rec->body,
               r->spans[i].end - r->spans[i].start);
    ip = out + r->l3;
    if (r->key.id.family == 6) {
        out[r->next_at] = r->protocol; /* the header before the fragment header names what came behind it */
        colo_store16(ip + 4, (uint16_t)(ip_len - IPV6_HEADER));
    } else {
        colo_store16(ip + 2, (uint16_t)ip_len);
        memset(ip + 4, 0, 4); /* IP ID, flags and offset */
        memset(ip + 10, 0, 2);
    }
    return out;
}

/* All has come: the datagram enters its flow. False: it can't. */
static bool complete(colo_comparator *c, struct half *half, struct reassembly *r)
{
    struct colo_group *group = colo_group_create(1);
    struct colo_rec *rec;

    if (!group || !(group->bytes = put_together(r))) {
        colo_group_destroy(group);
        return false;
    }
    group->datagrams[0].data = group->bytes;
    group->datagrams[0].len = r->header_len + r->total;
    group->datagrams[0].side = r->side;
    group->datagrams[0].nic = r->key.id.nic;
    group->datagrams[0].time = r->frames.tail->time;
    while ((rec = r->frames.head)) {
        colo_flow_list_remove(&r->frames, rec);
        colo_held_remove(c, rec);
        colo_group_add_frame(group, rec);
    }
    end(c->fragments, half, r);
    c->n.datagrams_reassembled++;
    colo_enter_datagram(c, &group->datagrams[0]);
    return true;
}

/* Makes room at the limit; false: there is none, the fragment has been dealt with. */
static bool make_room(colo_comparator *c, struct half *half, struct colo_rec *rec, struct reassembly *r)
{
    colo_limit_hit(c, COLO_CAUSE_LIMIT_FRAGMENTS, NULL);
    if (rec->side == COLO_SECONDARY) {
        while (half->waiting >= c->fragments->limit)
            drop(c, half, half->oldest);
        return true;
    }
    if (r)
        r->spoiled = 1;
    half->closed = 1;
    colo_held_add(c, rec);
    return false;
}

void colo_fragment_enter(colo_comparator *c, struct colo_rec *rec, const struct colo_packet *packet)
{
    struct colo_fragments *f = c->fragments;
    struct half *half = &f->half[rec->side];
    struct reassembly *r;
    struct key key;
    uint64_t hash;

    make_key(&key, packet);
    hash = colo_hash(f->seed, (const uint8_t *)&key, sizeof key);
    r = find(f, half, &key, hash);
    rec->body = packet->body;
    rec->body_len = packet->body_len;
    rec->judged = 1;
    if (half->waiting >= f->limit) {
        if (!make_room(c, half, rec, r))
            return;
        r = find(f, half, &key, hash);
    }
    if (!r && !half->closed && (r = begin(f, half, &key, hash))) {
        r->since = rec->time;
        r->side = rec->side;
    }
    if (!r && rec->side == COLO_SECONDARY) {
        colo_output_discard(c, rec, COLO_REASON_DIVERGED);
        return;
    }
    colo_held_add(c, rec);
    if (!r) {
        half->closed = 1;
        return;
    }
    if (r->count == COLO_FRAGMENTS_PER_DATAGRAM && !r->spoiled) {
        colo_limit_hit(c, COLO_CAUSE_LIMIT_FRAGMENTS, NULL);
        r->spoiled = 1;
    }
    r->count++;
    half->waiting++;
    colo_flow_list_push(&r->frames, rec);
    if (!r->spoiled && !take_in(r, rec, packet))
        r->spoiled = 1;
    if (!r->spoiled && r->total && r->covered == r->total && !complete(c, half, r))
        r->spoiled = 1;
}
