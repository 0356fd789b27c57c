/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A TCP frame arrives: which connection of its flow it belongs to, and at which stream offset.
 *
 * A flow is a pair of addresses and ports in one direction. Over time it carries several connections (generations),
 * each begun by a SYN with a new initial sequence number. The primary's frames decide which generation is current:
 *   - primary frames from a new SYN on wait in `later` while frames of the old generation are held;
 *   - secondary frames wait in `unplaced` until the primary's first frame is known, or, from a new SYN of the
 *     secondary on, until the primary's new SYN has come.
 *
 * The secondary's numbers. Its SYN carries its own ISN. What follows is in the primary's numbers where a rewriter
 * translates (QEMU's filter-rewriter leaves the SYN-ACK as it is) and after a checkpoint, in its own otherwise. A
 * frame is placed by whichever reading lies nearer to where the stream stands; the first payload that matches settles
 * it for the epoch. A wrong guess can't release anything: the bytes would not agree.
 */
#include <string.h>

#include "core.h"
#include "seq.h"

/* A frame further from the stream's position than this was not numbered like it. */
static const int64_t NEAR = (int64_t)1 << 26;

static int64_t distance(int64_t a, int64_t b)
{
    return a < b ? b - a : a - b;
}

static void discard_list(colo_comparator *c, struct colo_list *list, uint8_t reason)
{
    struct colo_rec *rec;

    while ((rec = list->head)) {
        colo_flow_list_remove(list, rec);
        colo_held_remove(c, rec);
        colo_output_discard(c, rec, reason);
    }
}

void colo_tcp_drop_secondary(colo_comparator *c, struct colo_flow *flow, uint8_t reason)
{
    struct colo_rec *rst = flow->u.tcp.rst_rec;

    colo_gap_forget(c, flow);
    discard_list(c, &flow->s, reason);
    if (rst) {
        flow->u.tcp.rst_rec = NULL;
        colo_held_remove(c, rst);
        colo_output_discard(c, rst, reason);
    }
}

/* The primary opens a new connection on these ports; nothing of the old one is held any more. */
static void begin_generation(colo_comparator *c, struct colo_flow *flow)
{
    struct colo_list unplaced = flow->u.tcp.unplaced, later = flow->u.tcp.later;
    uint32_t old_s_isn = flow->u.tcp.s_base;
    uint8_t old_s_known = flow->u.tcp.s_syn;

    colo_tcp_drop_secondary(c, flow, COLO_REASON_STALE);
    colo_ack_drop_debt(c, flow);
    memset(&flow->u.tcp, 0, sizeof flow->u.tcp);
    flow->u.tcp.unplaced = unplaced;
    flow->u.tcp.later = later;
    flow->u.tcp.old_s_isn = old_s_isn;
    flow->u.tcp.old_s_known = old_s_known;
    flow->u.tcp.awaits_s_syn = 1;
    colo_table_set_standing(c->table, flow, COLO_FRESH);
}

void colo_tcp_refresh(colo_comparator *c, struct colo_flow *flow)
{
    struct colo_tcp *tcp = &flow->u.tcp;

    if (!tcp->p_known)
        colo_table_set_standing(c->table, flow, COLO_FRESH);
    if (!tcp->p_known || tcp->unsure || tcp->met_by_reset) { /* a reset's number says little of a stream */
        memset(tcp, 0, sizeof *tcp);
        return;
    }
    /* The secondary is a copy of the primary as it was: numbers, data sent, data acknowledged. */
    tcp->s_own = 1;
    tcp->s_syn = tcp->p_syn;
    tcp->s_base = tcp->p_base;
    tcp->numbering = COLO_NUMBERS_PRIMARY;
    tcp->match = tcp->s_high = tcp->out_high = tcp->p_high;
    tcp->mid_stream = 0;
    tcp->ranges = 0;
    tcp->rst_seen = tcp->rst_spare = tcp->rst_matched = tcp->s_left = tcp->awaits_s_syn = 0;
    tcp->rst_rec = tcp->first_data = NULL;
    tcp->unplaced = (struct colo_list){NULL, NULL};
    tcp->s_echo_known = 0;
    tcp->s_urgents = tcp->p_urged;
    tcp->s_urgent[0] = tcp->p_urgent;
    if (tcp->p_acked) {
        tcp->s_acked = tcp->told_known = 1;
        tcp->s_ack = tcp->told = tcp->p_ack;
    } else {
        tcp->s_acked = tcp->told_known = 0;
    }
}

/* Its SYN, sent again: by then a rewriter knows the primary's number, and our own translates it as all that follows. */
static bool is_translated_syn(const struct colo_tcp *tcp, const struct colo_rec *rec)
{
    return tcp->s_syn && tcp->p_syn && rec->seq == tcp->p_base;
}

static int64_t place_secondary(struct colo_tcp *tcp, struct colo_rec *rec)
{
    int64_t near = tcp->s_high, as_primary = colo_seq_extend(tcp->p_base, near, rec->seq), as_own;

    if (rec->tcp_flags & COLO_TCP_SYN) {
        if (is_translated_syn(tcp, rec))
            return 0;
        tcp->s_own = tcp->s_syn = 1;
        tcp->s_base = rec->seq;
        return 0;
    }
    if (tcp->numbering == COLO_NUMBERS_PRIMARY)
        return as_primary;
    if (!tcp->s_own) {
        if (distance(as_primary, near) <= NEAR)
            return as_primary;
        /* Met in mid-stream, with numbers of its own: the first frame is taken to stand where the stream stands. */
        tcp->s_own = 1;
        tcp->s_base = rec->seq - (uint32_t)tcp->match;
    }
    as_own = colo_seq_extend(tcp->s_base, near, rec->seq);
    if (tcp->numbering == COLO_NUMBERS_UNKNOWN && distance(as_primary, near) <= distance(as_own, near))
        return as_primary;
    rec->own_numbers = 1;
    return as_own;
}

/* The secondary's SYN has come: what it said before was of another connection, whose ports this one has. */
static void forget_before_syn(colo_comparator *c, struct colo_flow *flow)
{
    struct colo_tcp *tcp = &flow->u.tcp;

    colo_tcp_drop_secondary(c, flow, COLO_REASON_STALE);
    tcp->rst_seen = tcp->rst_spare = tcp->s_acked = tcp->s_echo_known = tcp->s_urgents = 0;
    tcp->s_high = 0;
    tcp->ranges = 0;
}

/* A secondary frame of the current generation, in no list. */
static void enter_secondary(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec)
{
    struct colo_tcp *tcp = &flow->u.tcp;

    if (rec->tcp_flags & COLO_TCP_RST) {
        tcp->rst_seen = 1;
        tcp->rst_seq = rec->seq;
        tcp->rst_ack = rec->ack;
        tcp->rst_flags = rec->tcp_flags;
        if (tcp->rst_matched || tcp->rst_rec) {
            if (tcp->rst_spare < UINT8_MAX)
                tcp->rst_spare++;
            colo_output_discard(c, rec, COLO_REASON_MATCHED);
        } else {
            tcp->rst_rec = rec;
            colo_held_add(c, rec);
        }
        return;
    }
    if (rec->tcp_flags & COLO_TCP_SYN && !tcp->s_syn)
        forget_before_syn(c, flow);
    rec->off = place_secondary(tcp, rec);
    colo_stream_note_urgent(tcp, rec);
    if (rec->tcp_flags & COLO_TCP_ACK) {
        colo_ack_note(flow, COLO_SECONDARY, rec->ack);
        colo_ack_note_echo(flow, rec->data + rec->l4);
    }
    if (!colo_stream_has_range(rec)) {
        if (rec->tcp_flags & COLO_TCP_ACK)
            colo_ack_repeat(c, flow, rec);
        colo_output_discard(c, rec, COLO_REASON_MATCHED);
        return;
    }
    if (flow->s.head && rec->off < tcp->s_high && !colo_stream_agrees(c, flow, rec)) {
        colo_output_discard(c, rec, COLO_REASON_DIVERGED);
        return;
    }
    if (colo_stream_end(rec) > tcp->s_high && distance(rec->off, tcp->s_high) <= NEAR)
        tcp->s_high = colo_stream_end(rec);
    colo_stream_add_secondary(c, flow, rec);
}

static bool is_other_generation(const struct colo_tcp *tcp, const struct colo_rec *rec)
{
    if (!(rec->tcp_flags & COLO_TCP_SYN))
        return false;
    return tcp->s_syn ? rec->seq != tcp->s_base && !is_translated_syn(tcp, rec) : !tcp->p_syn;
}

static void wait_unplaced(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec)
{
    struct colo_tcp *tcp = &flow->u.tcp;

    if (!tcp->p_known && !colo_stream_has_range(rec) && !(rec->tcp_flags & COLO_TCP_RST)) {
        if (rec->tcp_flags & COLO_TCP_ACK && !tcp->unplaced.head)
            colo_ack_note(flow, COLO_SECONDARY, rec->ack);
        if (!tcp->unplaced.head) {
            colo_output_discard(c, rec, COLO_REASON_MATCHED);
            return;
        }
    }
    if (colo_flow_is_full(c, flow, rec)) {
        colo_output_discard(c, rec, COLO_REASON_DIVERGED);
        return;
    }
    colo_flow_list_push(&tcp->unplaced, rec);
    colo_held_add(c, rec);
}

static void arrive_secondary(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec)
{
    struct colo_tcp *tcp = &flow->u.tcp;

    if (tcp->awaits_s_syn && tcp->p_known) {
        if (!(rec->tcp_flags & COLO_TCP_SYN) || (tcp->old_s_known && rec->seq == tcp->old_s_isn)) {
            colo_output_discard(c, rec, COLO_REASON_STALE); /* of the connection that the primary has left */
            return;
        }
        tcp->awaits_s_syn = 0;
    }
    if (!tcp->p_known || tcp->unplaced.head || is_other_generation(tcp, rec))
        wait_unplaced(c, flow, rec);
    else
        enter_secondary(c, flow, rec);
}

/* The flow may have diverged: then only a commit helps; but what the secondary acknowledges still counts. */
static void take_secondary(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec)
{
    struct colo_tcp *tcp = &flow->u.tcp;

    if (!flow->diverged) {
        arrive_secondary(c, flow, rec);
        return;
    }
    if (is_other_generation(tcp, rec))
        tcp->s_left = 1;
    if ((rec->tcp_flags & (COLO_TCP_ACK | COLO_TCP_RST | COLO_TCP_SYN)) == COLO_TCP_ACK && tcp->p_known && !tcp->s_left &&
        !tcp->awaits_s_syn && !tcp->unplaced.head)
        colo_ack_note(flow, COLO_SECONDARY, rec->ack);
    colo_output_discard(c, rec, COLO_REASON_DIVERGED);
}

/* The primary's first frame of a generation is known: what the secondary said of it can be placed. */
static void place_waiting(colo_comparator *c, struct colo_flow *flow)
{
    struct colo_list waiting = flow->u.tcp.unplaced;
    struct colo_rec *rec;

    flow->u.tcp.unplaced = (struct colo_list){NULL, NULL};
    while ((rec = waiting.head)) {
        colo_flow_list_remove(&waiting, rec);
        colo_held_remove(c, rec);
        take_secondary(c, flow, rec);
    }
}

/* A primary frame of the current generation: where it stands in the stream, and how far the primary has got. */
static void note_sent(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec)
{
    struct colo_tcp *tcp = &flow->u.tcp;
    bool is_reset = rec->tcp_flags & COLO_TCP_RST;

    if (!tcp->p_known) {
        tcp->p_known = 1;
        tcp->p_base = rec->seq;
        tcp->p_syn = (rec->tcp_flags & COLO_TCP_SYN) != 0;
        tcp->origin = tcp->p_syn;
        tcp->mid_stream = !tcp->p_syn;
        tcp->met_by_reset = is_reset;
    }
    rec->off = colo_seq_extend(tcp->p_base, tcp->p_high, rec->seq);
    if (tcp->met_by_reset && !is_reset && distance(rec->off, 0) <= NEAR) {
        tcp->met_by_reset = 0; /* its number was the stream's, but where the stream ends only this frame tells */
        tcp->p_high = colo_stream_end(rec);
    }
    if (!is_reset && colo_stream_end(rec) > tcp->p_high)
        tcp->p_high = colo_stream_end(rec);
    if (!is_reset && rec->tcp_flags & COLO_TCP_ACK)
        colo_ack_note(flow, COLO_PRIMARY, rec->ack);
    colo_stream_note_urgent(tcp, rec);
    if (rec->tcp_flags & (COLO_TCP_FIN | COLO_TCP_RST))
        colo_table_set_standing(c->table, flow, COLO_SPARE);
    else if (flow->standing == COLO_FRESH && !(rec->tcp_flags & COLO_TCP_SYN))
        colo_table_set_standing(c->table, flow, COLO_LIVE);
}

/* A primary frame of the current generation; it is in the held list already. */
static void enter_primary(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec)
{
    struct colo_tcp *tcp = &flow->u.tcp;
    bool first = !tcp->p_known;
    int64_t sent = tcp->p_high;

    note_sent(c, flow, rec);
    /* Only what goes back behind the stream's end can contradict what is held: other frames don't pay for the look. */
    if (tcp->first_data && rec->off < sent && !flow->diverged && colo_stream_has_range(rec))
        if (colo_stream_agrees(c, flow, rec))
            colo_part_repeat(c, flow, rec);
    colo_flow_list_push(&flow->p, rec);
    if (!tcp->first_data && colo_stream_has_range(rec))
        tcp->first_data = rec;
    if (first && tcp->unplaced.head)
        place_waiting(c, flow);
    /* Bytes before those that the flow was met with: whether a commit covers them can't be known. */
    if (tcp->mid_stream && rec->off < 0 && colo_stream_has_range(rec) && !flow->diverged)
        colo_flow_diverged(c, flow, COLO_CAUSE_MID_STREAM, rec, NULL, rec->off);
}

static bool is_new_connection(const struct colo_tcp *tcp, const struct colo_rec *rec)
{
    return (rec->tcp_flags & COLO_TCP_SYN) && tcp->p_known && !(tcp->p_syn && rec->seq == tcp->p_base);
}

static void arrive_primary(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec)
{
    struct colo_tcp *tcp = &flow->u.tcp;

    if (tcp->later.head || (is_new_connection(tcp, rec) && flow->p.head)) {
        colo_flow_list_push(&tcp->later, rec);
        rec->later = 1;
        return;
    }
    if (is_new_connection(tcp, rec))
        begin_generation(c, flow);
    enter_primary(c, flow, rec);
}

/*
 * One side has reset the connection and will say no more on it; what the other says beyond that is a difference at
 * once, with no need to wait for a time-out. (A secondary behind a rewriter that leaves IPv6 alone resets each new
 * IPv6 connection: the checkpoint makes good for that too.)
 */
static void check_reset(colo_comparator *c, struct colo_flow *flow)
{
    const struct colo_rec *head = flow->p.head, *s = flow->s.head, *rst = flow->u.tcp.rst_rec;
    int64_t offset;

    if (flow->diverged || !head)
        return;
    offset = head->off > flow->u.tcp.match ? head->off : flow->u.tcp.match;
    if (head->tcp_flags & COLO_TCP_RST ? s != NULL : rst && !s)
        colo_flow_diverged(c, flow, COLO_CAUSE_RST, head, s ? s : rst, offset);
}

void colo_tcp_absorb(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec)
{
    if (flow->u.tcp.unsure)
        return;
    if (is_new_connection(&flow->u.tcp, rec))
        begin_generation(c, flow);
    note_sent(c, flow, rec);
    colo_ack_note_released(c, flow, rec);
    colo_stream_note_committed(c, flow, rec);
}

/* Compares and releases as far as it goes; then takes in the next generation, if one waits. */
static void settle_generations(colo_comparator *c, struct colo_flow *flow)
{
    for (;;) {
        struct colo_list later = flow->u.tcp.later;
        struct colo_rec *rec;

        if (!flow->diverged)
            colo_stream_advance(c, flow);
        colo_ack_release(c, flow);
        check_reset(c, flow);
        if (flow->p.head || !later.head)
            return;
        flow->u.tcp.later = (struct colo_list){NULL, NULL};
        while ((rec = later.head)) {
            colo_flow_list_remove(&later, rec);
            rec->later = 0;
            arrive_primary(c, flow, rec);
        }
    }
}

static void settle(colo_comparator *c, struct colo_flow *flow)
{
    settle_generations(c, flow);
    colo_gap_watch(c, flow);
}

void colo_tcp_primary(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec)
{
    (void)colo_flow_is_full(c, flow, rec); /* asks for a checkpoint; the frame is kept */
    colo_held_add(c, rec);
    arrive_primary(c, flow, rec);
    settle(c, flow);
}

void colo_tcp_secondary(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec)
{
    take_secondary(c, flow, rec);
    settle(c, flow);
}
