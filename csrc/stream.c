/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Both streams of a flow are compared by offset, never frame by frame. `match` is the offset up to which they are
 * equal without a gap. Beyond a gap in the primary's own output (its guest dropped or re-ordered a frame) a few
 * ranges are matched ahead, so that the frame behind the gap need not wait for the retransmission.
 *
 * A position of the stream is a SYN, a payload byte or a FIN; two positions are equal if they are of the same kind
 * and, for payload, of the same value. A SYN's options that bind the connection belong to it.
 */
#include <string.h>

#include "core.h"
#include "load.h"

enum { NO_SCALE = 255 };

enum position { POSITION_SYN, POSITION_DATA, POSITION_FIN };

static int64_t data_start(const struct colo_rec *rec)
{
    return rec->off + (rec->tcp_flags & COLO_TCP_SYN ? 1 : 0);
}

static int64_t data_end(const struct colo_rec *rec)
{
    return data_start(rec) + rec->body_len;
}

int64_t colo_stream_end(const struct colo_rec *rec)
{
    return data_end(rec) + (rec->tcp_flags & COLO_TCP_FIN ? 1 : 0);
}

bool colo_stream_has_range(const struct colo_rec *rec)
{
    return !(rec->tcp_flags & COLO_TCP_RST) && (rec->body_len || rec->tcp_flags & (COLO_TCP_SYN | COLO_TCP_FIN));
}

void colo_stream_next_data(struct colo_flow *flow, const struct colo_rec *rec)
{
    struct colo_rec *next = rec->flow_link.next;

    while (next && !colo_stream_has_range(next))
        next = next->flow_link.next;
    flow->u.tcp.first_data = next;
}

bool colo_stream_is_matched(const struct colo_tcp *tcp, int64_t start, int64_t end)
{
    if (start < 0 && (tcp->mid_stream || tcp->p_syn)) /* before all that is known, or before the SYN: not this stream's */
        return false;
    if (end <= tcp->match)
        return true;
    if (start < tcp->match)
        start = tcp->match;
    for (int i = 0; i < tcp->ranges; i++)
        if (tcp->range[i].start <= start && end <= tcp->range[i].end)
            return true;
    return false;
}

static enum position position_at(const struct colo_rec *rec, int64_t at)
{
    if (at < data_start(rec))
        return POSITION_SYN;
    return at < data_end(rec) ? POSITION_DATA : POSITION_FIN;
}

/* A factor that is there is never "equal" to none: whether windows are scaled at all can't be translated. */
static bool same_scale(const struct colo_syn_options *a, const struct colo_syn_options *b, bool any_scale)
{
    return a->wscale == b->wscale || (any_scale && a->wscale != NO_SCALE && b->wscale != NO_SCALE);
}

static bool same_syn(const struct colo_syn_options *a, const struct colo_syn_options *b, bool any_scale)
{
    return a->mss == b->mss && same_scale(a, b, any_scale) && a->sack_ok == b->sack_ok &&
           a->timestamps == b->timestamps && a->signature == b->signature;
}

/* The first difference in n > 0 bytes that memcmp called different. */
static int64_t first_difference(const uint8_t *a, const uint8_t *b, int64_t n)
{
    int64_t i = 0;

    while (i < n - 1 && a[i] == b[i])
        i++;
    return i;
}

/* How many of n payload bytes from `at` on are equal, or may differ. */
static int64_t compare_bytes(colo_comparator *c, const struct colo_flow *flow, const struct colo_rec *p,
                             const struct colo_rec *s, int64_t at, int64_t n)
{
    const uint8_t *pb = p->data + p->body + (at - data_start(p)), *sb = s->data + s->body + (at - data_start(s));
    struct colo_tolerance *state = colo_flow_tolerance(c, flow);
    struct colo_teller teller = {c, flow, p, s, at};

    if (!state)
        return memcmp(pb, sb, (size_t)n) == 0 ? n : first_difference(pb, sb, n);
    colo_tolerance_seek(state, flow->u.tcp.p_base, at);
    return colo_tolerance_compare(c->tolerances, state, pb, sb, (uint32_t)n, colo_tell_tolerated, &teller);
}

void colo_stream_note_committed(colo_comparator *c, struct colo_flow *flow, const struct colo_rec *rec)
{
    struct colo_tolerance *state = colo_flow_tolerance(c, flow);
    const struct colo_tcp *tcp = &flow->u.tcp;
    const uint8_t *from;

    if (!state || !colo_stream_has_range(rec))
        return;
    if (state->base != tcp->p_base)
        colo_tolerance_seek(state, tcp->p_base, tcp->match);
    if (rec->tcp_flags & COLO_TCP_SYN && state->at == rec->off)
        colo_tolerance_seek(state, tcp->p_base, data_start(rec));
    if (state->at < data_start(rec) || state->at >= data_end(rec))
        return;
    from = rec->data + rec->body + (state->at - data_start(rec));
    colo_tolerance_compare(c->tolerances, state, from, from, (uint32_t)(data_end(rec) - state->at), NULL, NULL);
}

/*
 * Compares two frames that both cover `at`, up to `limit` at most. Returns how many positions are equal; where that
 * stops at a difference, *cause says which, else it is COLO_CAUSE_NONE.
 */
static int64_t compare_span(colo_comparator *c, const struct colo_flow *flow, const struct colo_rec *p,
                            const struct colo_rec *s, int64_t at, int64_t limit, uint8_t *cause)
{
    int64_t from = at;

    *cause = COLO_CAUSE_NONE;
    while (at < limit) {
        enum position kind = position_at(p, at), other = position_at(s, at);
        int64_t n, equal;

        if (kind != other) {
            *cause = kind == POSITION_FIN || other == POSITION_FIN ? COLO_CAUSE_FIN : COLO_CAUSE_PAYLOAD;
            break;
        }
        if (kind == POSITION_FIN)
            return at + 1 - from;
        if (kind == POSITION_SYN) {
            if (!same_syn(&p->syn, &s->syn, c->config.any_scale)) {
                *cause = COLO_CAUSE_SYN_OPTIONS;
                break;
            }
            at++;
            continue;
        }
        n = data_end(p) < data_end(s) ? data_end(p) : data_end(s);
        n = (n < limit ? n : limit) - at;
        equal = compare_bytes(c, flow, p, s, at, n);
        at += equal;
        if (equal < n) {
            *cause = COLO_CAUSE_PAYLOAD;
            break;
        }
        c->n.compared_bytes += (uint64_t)n;
    }
    return at - from;
}

static void drop_secondary(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec)
{
    colo_flow_list_remove(&flow->s, rec);
    colo_held_remove(c, rec);
    colo_output_discard(c, rec, COLO_REASON_MATCHED);
}

/* Secondary frames that lie wholly in matched territory have served. Only the front of the list can. */
static void drop_used(colo_comparator *c, struct colo_flow *flow)
{
    while (flow->s.head && colo_stream_end(flow->s.head) <= flow->u.tcp.match)
        drop_secondary(c, flow, flow->s.head);
}

/* `match` has grown: take in the ranges that it reached. */
static void absorb_ranges(struct colo_tcp *tcp)
{
    while (tcp->ranges && tcp->range[0].start <= tcp->match) {
        if (tcp->range[0].end > tcp->match)
            tcp->match = tcp->range[0].end;
        tcp->ranges--;
        memmove(&tcp->range[0], &tcp->range[1], tcp->ranges * sizeof tcp->range[0]);
    }
}

/* Adds a matched range; false: there is no room for one more. */
static bool add_range(struct colo_tcp *tcp, int64_t start, int64_t end)
{
    struct colo_range *r = tcp->range;
    int first = 0, last;

    while (first < tcp->ranges && r[first].end < start)
        first++;
    for (last = first; last < tcp->ranges && r[last].start <= end; last++) {
        start = r[last].start < start ? r[last].start : start;
        end = r[last].end > end ? r[last].end : end;
    }
    if (first == last && tcp->ranges == COLO_OOO_RANGES)
        return false;
    memmove(&r[first + 1], &r[last], (size_t)(tcp->ranges - last) * sizeof *r);
    r[first] = (struct colo_range){start, end};
    tcp->ranges = (uint8_t)(tcp->ranges - (last - first) + 1);
    return true;
}

void colo_stream_add_secondary(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec)
{
    struct colo_rec *after = flow->s.tail;

    if (colo_stream_is_matched(&flow->u.tcp, rec->off, colo_stream_end(rec))) {
        colo_output_discard(c, rec, COLO_REASON_MATCHED);
        return;
    }
    while (after && after->off > rec->off)
        after = after->flow_link.prev;
    if (after && after->off <= rec->off && colo_stream_end(after) >= colo_stream_end(rec)) {
        colo_output_discard(c, rec, COLO_REASON_MATCHED); /* a retransmission of what still waits */
        return;
    }
    if (colo_flow_is_full(c, flow, rec)) {
        colo_output_discard(c, rec, COLO_REASON_DIVERGED);
        return; /* safe: what is missing can't match; the wanted checkpoint makes it good */
    }
    colo_flow_list_insert(&flow->s, after, rec);
    colo_held_add(c, rec);
}

/*
 * The first position of [at, limit), which both frames cover, where they are not equal; `limit`: there is none. Both
 * are of one side, so any_scale is not asked: a VM announces one factor, and windows are translated by it.
 */
static int64_t first_contradiction(const struct colo_rec *a, const struct colo_rec *b, int64_t at, int64_t limit)
{
    while (at < limit) {
        enum position kind = position_at(a, at);
        const uint8_t *ab, *bb;
        int64_t n;

        if (kind != position_at(b, at) || (kind == POSITION_SYN && !same_syn(&a->syn, &b->syn, false)))
            return at;
        if (kind != POSITION_DATA) {
            at++;
            continue;
        }
        n = data_end(a) < data_end(b) ? data_end(a) : data_end(b);
        n = (n < limit ? n : limit) - at;
        ab = a->data + a->body + (at - data_start(a));
        bb = b->data + b->body + (at - data_start(b));
        if (memcmp(ab, bb, (size_t)n) != 0)
            return at + first_difference(ab, bb, n);
        at += n;
    }
    return limit;
}

bool colo_stream_agrees(colo_comparator *c, struct colo_flow *flow, const struct colo_rec *rec)
{
    int64_t end = colo_stream_end(rec);
    bool sorted = rec->side == COLO_SECONDARY;

    for (const struct colo_rec *held = sorted ? flow->s.head : flow->u.tcp.first_data; held; held = held->flow_link.next) {
        int64_t from = held->off > rec->off ? held->off : rec->off, to = colo_stream_end(held), at;

        if (sorted && held->off >= end)
            break;
        to = to < end ? to : end;
        if (from >= to || !colo_stream_has_range(held))
            continue;
        at = first_contradiction(held, rec, from, to);
        if (at < to) {
            colo_flow_diverged(c, flow, COLO_CAUSE_CONFLICT, held, rec, at);
            return false;
        }
    }
    return true;
}

enum { TCP_AT_URGENT = 18 };

static uint32_t urgent_mark(const struct colo_rec *rec)
{
    return (uint32_t)rec->off + colo_load16(rec->data + rec->l4 + TCP_AT_URGENT);
}

static bool has_mark(const struct colo_tcp *tcp, uint32_t mark)
{
    for (int i = 0; i < tcp->s_urgents; i++)
        if (tcp->s_urgent[i] == mark)
            return true;
    return false;
}

void colo_stream_note_urgent(struct colo_tcp *tcp, const struct colo_rec *rec)
{
    uint32_t mark;

    if ((rec->tcp_flags & (COLO_TCP_URG | COLO_TCP_RST)) != COLO_TCP_URG)
        return;
    mark = urgent_mark(rec);
    if (rec->side == COLO_PRIMARY) {
        tcp->p_urgent = mark;
        tcp->p_urged = 1;
    } else if (!has_mark(tcp, mark)) {
        if (tcp->s_urgents == COLO_URGENT_MARKS) /* the oldest goes */
            memmove(&tcp->s_urgent[0], &tcp->s_urgent[1], --tcp->s_urgents * sizeof tcp->s_urgent[0]);
        tcp->s_urgent[tcp->s_urgents++] = mark;
    }
}

bool colo_stream_urgent_agrees(const struct colo_tcp *tcp, const struct colo_rec *rec)
{
    if (rec->tcp_flags & COLO_TCP_URG)
        return has_mark(tcp, urgent_mark(rec));
    if (data_end(rec) > tcp->out_high)
        for (int i = 0; i < tcp->s_urgents; i++) /* modulo 2^32: is the byte before the mark inside? */
            if (tcp->s_urgent[i] - (uint32_t)data_start(rec) - 1 < rec->body_len)
                return false;
    return true;
}

struct colo_rec *colo_stream_covering(const struct colo_flow *flow)
{
    for (struct colo_rec *rec = flow->u.tcp.first_data; rec; rec = rec->flow_link.next)
        if (colo_stream_has_range(rec) && rec->off <= flow->u.tcp.match && colo_stream_end(rec) > flow->u.tcp.match)
            return rec;
    return NULL;
}

void colo_stream_advance(colo_comparator *c, struct colo_flow *flow)
{
    struct colo_tcp *tcp = &flow->u.tcp;
    struct colo_rec *p, *s;

    for (;;) {
        int64_t limit, equal;
        uint8_t cause;

        absorb_ranges(tcp);
        drop_used(c, flow);
        s = flow->s.head;
        if (!s || s->off > tcp->match || !(p = colo_stream_covering(flow)))
            return;
        limit = colo_stream_end(p) < colo_stream_end(s) ? colo_stream_end(p) : colo_stream_end(s);
        if (tcp->ranges && limit > tcp->range[0].start)
            limit = tcp->range[0].start;
        equal = compare_span(c, flow, p, s, tcp->match, limit, &cause);
        tcp->match += equal;
        if (cause != COLO_CAUSE_NONE) {
            colo_flow_diverged(c, flow, cause, p, s, tcp->match);
            return;
        }
        if (tcp->numbering == COLO_NUMBERS_UNKNOWN && s->body_len && !(s->tcp_flags & COLO_TCP_SYN))
            tcp->numbering = s->own_numbers ? COLO_NUMBERS_OWN : COLO_NUMBERS_PRIMARY;
    }
}

bool colo_stream_match_beyond(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec)
{
    struct colo_tcp *tcp = &flow->u.tcp;
    int64_t at = rec->off, end = colo_stream_end(rec);
    struct colo_rec *s = flow->s.head, *next;

    if (rec->off <= tcp->match)
        return false;
    if (colo_flow_tolerance(c, flow)) /* what may differ there shows only when the gap is closed */
        return false;
    while (at < end) {
        int64_t limit, equal;
        uint8_t cause;
        bool skipped = false;

        for (int i = 0; i < tcp->ranges; i++)
            if (tcp->range[i].start <= at && at < tcp->range[i].end) {
                at = tcp->range[i].end;
                skipped = true;
            }
        if (skipped)
            continue;
        while (s && colo_stream_end(s) <= at)
            s = s->flow_link.next;
        if (!s || s->off > at)
            return false;
        limit = end < colo_stream_end(s) ? end : colo_stream_end(s);
        equal = compare_span(c, flow, rec, s, at, limit, &cause);
        at += equal;
        if (cause != COLO_CAUSE_NONE) {
            colo_flow_diverged(c, flow, cause, rec, s, at);
            return false;
        }
    }
    if (!add_range(tcp, rec->off, end))
        return false;
    for (s = flow->s.head; s; s = next) {
        next = s->flow_link.next;
        if (s->off >= end)
            break;
        if (colo_stream_is_matched(tcp, s->off, colo_stream_end(s)))
            drop_secondary(c, flow, s);
    }
    return true;
}
