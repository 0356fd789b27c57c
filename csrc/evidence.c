/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Events: what differed, with both sides' bytes, and the one wish for a checkpoint of an epoch. The wish has a place
 * of its own, so a full ring can never lose it.
 */
#include <string.h>

#include "core.h"

enum { CONTEXT_BEFORE = 32 };

static const int64_t SAMPLE_EVERY = 1000000000; /* ns */

static void push(colo_comparator *c, const struct colo_event *event)
{
    if (c->ring_count == COLO_EVENT_RING) {
        c->n.events_lost++;
        return;
    }
    c->ring[(c->ring_first + c->ring_count++) % COLO_EVENT_RING] = *event;
}

static struct colo_event make(const colo_comparator *c, uint8_t kind, uint8_t cause, const struct colo_flow *flow)
{
    struct colo_event event;

    memset(&event, 0, sizeof event);
    event.kind = kind;
    event.cause = cause;
    event.epoch = c->epoch;
    event.time = c->now;
    event.primary_age = event.secondary_age = -1;
    event.primary_cookie = event.secondary_cookie = UINT64_MAX;
    event.held_frames = c->n.held_frames[COLO_PRIMARY];
    event.held_bytes = c->n.held_bytes[COLO_PRIMARY];
    if (flow) {
        event.has_flow = 1;
        event.flow = flow->id;
    }
    return event;
}

void colo_want_checkpoint(colo_comparator *c, uint8_t cause, const struct colo_event *because)
{
    if (c->wanted)
        return;
    c->wanted = 1;
    c->want_pending = 1;
    c->want = because ? *because : make(c, COLO_EVENT_WANT_CHECKPOINT, cause, NULL);
    c->want.kind = COLO_EVENT_WANT_CHECKPOINT;
    c->n.checkpoints_wanted++;
}

void colo_policy_wants_checkpoint(colo_comparator *c, const struct colo_flow_id *id)
{
    struct colo_event event;

    if (c->wanted)
        return;
    event = make(c, COLO_EVENT_WANT_CHECKPOINT, COLO_CAUSE_POLICY, NULL);
    event.has_flow = 1;
    event.flow = *id;
    colo_want_checkpoint(c, COLO_CAUSE_POLICY, &event);
}

static void tell_limit(colo_comparator *c, uint8_t cause, const struct colo_flow *flow)
{
    struct colo_event event;

    if (c->limits_told & (1u << cause))
        return;
    c->limits_told |= 1u << cause;
    event = make(c, COLO_EVENT_LIMIT, cause, flow);
    push(c, &event);
    if (c->mode != COLO_MODE_ALONE)
        colo_want_checkpoint(c, cause, &event);
}

void colo_limit_hit(colo_comparator *c, uint8_t cause, const struct colo_flow *flow)
{
    c->n.limits[cause]++;
    tell_limit(c, cause, flow);
}

void colo_limit_near(colo_comparator *c, uint8_t cause)
{
    tell_limit(c, cause, NULL);
}

/* Where a frame's body has the byte of `offset`: a TCP frame's body begins behind its SYN. */
static int64_t body_index(const struct colo_rec *rec, int64_t offset, bool is_tcp)
{
    if (!is_tcp)
        return offset;
    return offset - rec->off - (rec->tcp_flags & COLO_TCP_SYN ? 1 : 0);
}

static uint16_t copy_window(uint8_t *to, const struct colo_rec *rec, int64_t from)
{
    int64_t n = (int64_t)rec->body_len - from;

    if (from < 0 || n <= 0)
        return 0;
    if (n > COLO_EVIDENCE_BYTES)
        n = COLO_EVIDENCE_BYTES;
    memcpy(to, rec->data + rec->body + from, (size_t)n);
    return (uint16_t)n;
}

static void add_bytes(struct colo_event *event, const struct colo_rec *p, const struct colo_rec *s, int64_t offset,
                      bool is_tcp)
{
    int64_t before = CONTEXT_BEFORE, pi = p ? body_index(p, offset, is_tcp) : 0, si = s ? body_index(s, offset, is_tcp) : 0;

    if (p && pi < before)
        before = pi;
    if (s && si < before)
        before = si;
    if (before < 0)
        before = 0;
    event->context = (uint16_t)before;
    if (p)
        event->primary_len = copy_window(event->primary, p, pi - before);
    if (s)
        event->secondary_len = copy_window(event->secondary, s, si - before);
}

static void fill(colo_comparator *c, struct colo_event *event, const struct colo_flow *flow, const struct colo_rec *p,
                 const struct colo_rec *s, int64_t offset)
{
    bool is_tcp = flow && flow->id.cls == COLO_CLASS_TCP;

    if (p) {
        event->primary_age = c->now - p->time;
        event->primary_cookie = p->cookie;
    }
    if (s) {
        event->secondary_age = c->now - s->time;
        event->secondary_cookie = s->cookie;
    }
    add_bytes(event, p, s, offset, is_tcp);
    event->offset = is_tcp ? offset - flow->u.tcp.origin : offset;
}

void colo_flow_diverged(colo_comparator *c, struct colo_flow *flow, uint8_t cause, const struct colo_rec *p,
                        const struct colo_rec *s, int64_t offset)
{
    struct colo_event event = make(c, COLO_EVENT_DIVERGENCE, cause, flow);

    fill(c, &event, flow, p, s, offset);
    flow->diverged = 1;
    c->n.divergences[cause]++;
    push(c, &event);
    colo_want_checkpoint(c, cause, &event);
    /* After `fill`: p and s may be among what is dropped now. */
    if (flow->id.cls == COLO_CLASS_TCP)
        colo_tcp_drop_secondary(c, flow, COLO_REASON_DIVERGED);
    else
        colo_datagram_drop_secondary(c, flow);
}

void colo_flow_tolerated(colo_comparator *c, const struct colo_flow *flow, uint8_t rule, const struct colo_rec *p,
                         const struct colo_rec *s, int64_t offset)
{
    struct colo_event event;

    c->n.tolerated++;
    c->n.tolerated_by[rule]++;
    if (c->now < c->tolerated_at[rule])
        return;
    c->tolerated_at[rule] = c->now + SAMPLE_EVERY;
    event = make(c, COLO_EVENT_TOLERATED, COLO_CAUSE_NONE, flow);
    event.rule = rule;
    fill(c, &event, flow, p, s, offset);
    push(c, &event);
}

void colo_tell_tolerated(void *context, uint8_t rule, uint32_t index)
{
    const struct colo_teller *t = context;

    colo_flow_tolerated(t->c, t->flow, rule, t->p, t->s, t->at + index);
}

void colo_flow_timed_out(colo_comparator *c, struct colo_flow *flow, uint8_t cause, const struct colo_rec *rec,
                         int64_t since)
{
    struct colo_event event = make(c, COLO_EVENT_DIVERGENCE, cause, flow);
    bool is_secondary = rec && rec->side == COLO_SECONDARY;
    int64_t offset = 0;

    if (rec && !flow) { /* held without one: a fragment, or for want of room */
        struct colo_packet packet;

        colo_rec_parse(rec, &packet);
        event.has_flow = 1;
        event.flow = packet.id;
    }
    if (rec && flow && flow->id.cls == COLO_CLASS_TCP) {
        const struct colo_tcp *tcp = &flow->u.tcp;

        offset = rec->off < tcp->match && tcp->match < colo_stream_end(rec) ? tcp->match : rec->off;
        if (rec->tcp_flags & COLO_TCP_RST || tcp->rst_rec)
            event.cause = cause = COLO_CAUSE_RST;
    }
    fill(c, &event, flow, is_secondary ? NULL : rec, is_secondary ? rec : NULL, offset);
    if (!rec)
        event.primary_age = c->now - since;
    c->n.divergences[cause]++;
    push(c, &event);
    colo_want_checkpoint(c, cause, &event);
}

size_t colo_events_fetch(colo_comparator *c, struct colo_event *out, size_t cap)
{
    size_t n = 0;

    while (n < cap && c->ring_count) {
        out[n++] = c->ring[c->ring_first];
        c->ring_first = (c->ring_first + 1) % COLO_EVENT_RING;
        c->ring_count--;
    }
    if (n < cap && c->want_pending) { /* behind its evidence */
        out[n++] = c->want;
        c->want_pending = 0;
    }
    return n;
}
