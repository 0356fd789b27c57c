/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Epochs begin and end: stop, commit, abort, alone. A commit empties the comparator: each primary frame that it covers
 * leaves, and its flow is told what the primary has sent, so that the next epoch begins where both VMs stand.
 */
#include <string.h>

#include "core.h"

static const int64_t NEVER = INT64_MAX;

static void append(struct colo_list *to, struct colo_list *from)
{
    struct colo_rec *rec;

    while ((rec = colo_list_pop(from)))
        colo_list_push(to, rec);
}

/* Takes a held record out of its flow, which is returned; that forgets all its lists, for all its records leave. */
static struct colo_flow *unlink_from_flow(struct colo_rec *rec)
{
    struct colo_flow *flow = rec->flow;

    colo_flow_uncount(rec);
    rec->flow_link = (struct colo_link){NULL, NULL};
    rec->flow = NULL;
    if (!flow)
        return NULL;
    flow->p = flow->s = (struct colo_list){NULL, NULL};
    if (flow->id.cls == COLO_CLASS_TCP) {
        flow->u.tcp.unplaced = flow->u.tcp.later = (struct colo_list){NULL, NULL};
        flow->u.tcp.rst_rec = flow->u.tcp.first_data = NULL;
    }
    return flow;
}

/*
 * A frame that is judged a second time was judged by the rules of the wrong epoch (the caller did not call stop in
 * time): its flow's idea of what the primary had sent at the commit is not to be trusted.
 */
static void forget_flow_state(struct colo_flow *flow)
{
    if (flow && flow->id.cls == COLO_CLASS_TCP)
        flow->u.tcp.unsure = 1;
}

/*
 * A deferred primary frame that leaves unjudged. `make`: a flow for it is worth having. A TCP segment in fragments leaves
 * a gap in its stream, as one that the guest's own network lost: both sides go on beyond it.
 */
static void absorb(colo_comparator *c, struct colo_rec *rec, bool make)
{
    struct colo_packet packet;
    struct colo_flow *flow;

    colo_rec_parse(rec, &packet);
    if (packet.id.cls != COLO_CLASS_TCP || colo_policy_of(c, &packet.id) != COLO_POLICY_COMPARE)
        return;
    if (!(flow = colo_flow_of(c, &packet.id, colo_table_hash(c->table, &packet.id), make)))
        return; /* without a flow it is met in mid-stream when it speaks again */
    colo_rec_take_over(rec, &packet);
    colo_tcp_absorb(c, flow, rec);
}

static void flush_frame(colo_comparator *c, struct colo_rec *rec, int64_t cut, uint8_t reason, struct colo_list *rest)
{
    if (rec->time >= cut)
        colo_list_push(rest, rec);
    else if (rec->side == COLO_PRIMARY)
        colo_output_release(c, rec, reason);
    else
        colo_output_discard(c, rec, reason == COLO_REASON_COMMITTED ? COLO_REASON_STALE : reason);
}

/* The frames go, each by its own time; nothing that was found out about their datagrams counts any more. */
static void flush_group(colo_comparator *c, struct colo_group *group, int64_t cut, uint8_t reason, struct colo_list *rest)
{
    struct colo_rec *frame;

    if (group->dissolved)
        return;
    group->dissolved = 1;
    while ((frame = group->frames.head)) {
        colo_flow_list_remove(&group->frames, frame);
        flush_frame(c, frame, cut, reason, rest);
    }
    colo_output_retire_group(c, group);
}

/* Secondary frames that were judged before the stop are of the old epoch, whatever the clock says. */
static void discard_judged(colo_comparator *c)
{
    struct colo_rec *rec;

    while ((rec = colo_list_pop(&c->held[COLO_SECONDARY]))) {
        colo_held_uncount(c, rec);
        unlink_from_flow(rec);
        if (rec->group)
            flush_group(c, rec->group, NEVER, COLO_REASON_COMMITTED, NULL);
        else
            colo_output_discard(c, rec, COLO_REASON_STALE);
    }
}

/* A primary frame leaves by a flush: its flow, if it was in one, still has to know what the primary has sent. */
static void note_flushed(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec, bool make)
{
    if (!rec->judged)
        absorb(c, rec, make);
    else if (flow && flow->id.cls == COLO_CLASS_TCP && rec->later)
        colo_tcp_absorb(c, flow, rec);
    else if (flow && flow->id.cls == COLO_CLASS_TCP) {
        colo_ack_note_released(c, flow, rec);
        colo_stream_note_committed(c, flow, rec);
    }
}

/*
 * Empties the held and deferred lists: primary frames read before `cut_p` are released, secondary ones read before
 * `cut_s` discarded, both for `reason`; the others come back in `rest`, in order of arrival.
 */
static void flush(colo_comparator *c, int64_t cut_p, int64_t cut_s, uint8_t reason, struct colo_list *rest)
{
    struct colo_list all = {NULL, NULL}, deferred = c->deferred;
    struct colo_flow *flow;
    struct colo_rec *rec;

    c->deferred = (struct colo_list){NULL, NULL};
    colo_fragment_forget_all(c);
    colo_overtaken_clear(&c->overtaken); /* first of all: a flow whose frames have left may be evicted by `absorb` */
    colo_overtaken_clear(&c->gaps);
    append(&all, &c->held[COLO_PRIMARY]);
    append(&all, &c->held[COLO_SECONDARY]);
    while ((rec = colo_list_pop(&all)) || (rec = colo_list_pop(&deferred))) {
        int64_t cut = rec->side == COLO_PRIMARY ? cut_p : cut_s;
        bool old = rec->time < cut;

        colo_held_uncount(c, rec);
        if (!old)
            forget_flow_state(rec->flow);
        flow = unlink_from_flow(rec);
        if (old && rec->side == COLO_PRIMARY)
            note_flushed(c, flow, rec, reason == COLO_REASON_COMMITTED);
        if (rec->group)
            flush_group(c, rec->group, cut, reason, rest);
        else
            flush_frame(c, rec, cut, reason, rest);
    }
    colo_ack_pay_all(c, reason);
}

static void begin_epoch(colo_comparator *c)
{
    c->epoch++;
    colo_table_set_epoch(c->table, c->epoch);
    c->wanted = 0;
    c->want_pending = 0;
    c->untracked = 0;
    c->limits_told = 0;
}

static void enter_all(colo_comparator *c, struct colo_list *list)
{
    struct colo_rec *rec;
    int64_t now = c->now;

    while ((rec = colo_list_pop(list))) {
        c->now = rec->time; /* windows run from when it was read */
        colo_enter(c, rec);
    }
    c->now = now;
}

void colo_comparator_stop(colo_comparator *c, int64_t now)
{
    colo_begin_call(c, now);
    if (c->mode == COLO_MODE_STOPPED)
        return;
    c->mode_before = c->mode;
    c->mode = COLO_MODE_STOPPED;
    c->stopped_at = now;
}

void colo_comparator_commit(colo_comparator *c, int64_t resumed, int64_t now)
{
    struct colo_list rest = {NULL, NULL};
    int64_t cut_s = resumed;

    colo_begin_call(c, now);
    if (c->config.keep_gap && c->mode == COLO_MODE_STOPPED && c->stopped_at < resumed)
        cut_s = c->stopped_at;
    if (c->mode == COLO_MODE_STOPPED)
        discard_judged(c);
    flush(c, resumed, cut_s, COLO_REASON_COMMITTED, &rest);
    begin_epoch(c);
    c->mode = COLO_MODE_PROTECTED;
    c->n.commits++;
    enter_all(c, &rest);
}

void colo_comparator_abort(colo_comparator *c, int64_t now)
{
    struct colo_list rest = c->deferred;

    colo_begin_call(c, now);
    if (c->mode != COLO_MODE_STOPPED)
        return;
    c->deferred = (struct colo_list){NULL, NULL};
    for (struct colo_rec *rec = rest.head; rec; rec = rec->link.next)
        colo_held_uncount(c, rec);
    c->mode = c->mode_before;
    c->n.aborts++;
    enter_all(c, &rest);
}

void colo_comparator_alone(colo_comparator *c, int64_t now)
{
    struct colo_list rest = {NULL, NULL};

    colo_begin_call(c, now);
    flush(c, NEVER, NEVER, COLO_REASON_ALONE, &rest);
    begin_epoch(c);
    colo_table_clear(c->table);
    c->mode = COLO_MODE_ALONE;
}
