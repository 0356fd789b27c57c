/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ACK rule (DESIGN.md, R1): a client throws away what it was told has arrived, so no ACK number leaves that the
 * secondary has not sent too.
 *
 * A frame with payload does not wait for that. It leaves with the ACK number lowered to what both have acknowledged
 * (`s_ack`: lowering happens only where the primary's is above it), and the flow owes the rest: a debt, which keeps
 * the header of the latest frame released. When the secondary's ACK catches up an ACK of our own pays it.
 *
 * A frame without payload is not lowered by itself: to the client that would be a duplicate ACK (RFC 5681), and
 * three of them a sign of loss. It waits at its place; what the secondary has acknowledged meanwhile is told by an ACK
 * of our own, made from the waiting frame's header. Only when a frame with payload behind it is ready does it leave
 * lowered, for order within a flow is never broken.
 *
 * The secondary may have missed a segment that the primary has (mirrored frames can be lost in its NIC). Then it sends
 * duplicate ACKs with SACK blocks, which alone can tell the client what to send again before its RTO: each is repeated
 * in the primary's name. That tells nothing that both don't have, for the primary has acknowledged more.
 *
 * SYN and RST are never lowered, for their ACK number must be exact; nor are segments signed by TCP-MD5 (RFC 2385)
 * or TCP-AO (RFC 5925), for the signature covers it.
 */
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "csum.h"
#include "load.h"
#include "own.h"
#include "seq.h"

static const struct colo_bytes NO_SACK = {NULL, 0};

static int64_t ack_reference(const struct colo_tcp *tcp)
{
    if (tcp->p_acked)
        return tcp->p_ack;
    return tcp->s_acked ? tcp->s_ack : 0;
}

void colo_ack_note(struct colo_flow *flow, int side, uint32_t ack)
{
    struct colo_tcp *tcp = &flow->u.tcp;
    uint8_t *known = side == COLO_PRIMARY ? &tcp->p_acked : &tcp->s_acked;
    int64_t *highest = side == COLO_PRIMARY ? &tcp->p_ack : &tcp->s_ack, off;

    if (!tcp->ack_known) {
        tcp->ack_known = 1;
        tcp->ack_base = ack;
    }
    off = colo_seq_extend(tcp->ack_base, *known ? *highest : ack_reference(tcp), ack);
    if (!*known || off > *highest)
        *highest = off;
    *known = 1;
}

static void note_told(struct colo_tcp *tcp, int64_t ack)
{
    if (!tcp->told_known || ack > tcp->told)
        tcp->told = ack;
    tcp->told_known = 1;
}

static bool is_pure_ack(const struct colo_rec *rec)
{
    return !colo_stream_has_range(rec) && !(rec->tcp_flags & COLO_TCP_RST);
}

/* ------------------------------------------------------------------ debts */

static struct colo_debt *make_debt(colo_comparator *c, struct colo_flow *flow)
{
    struct colo_debt *debt = flow->u.tcp.debt;

    if (debt)
        return debt;
    debt = c->debts_free;
    if (debt) {
        c->debts_free = debt->next;
    } else {
        debt = malloc(sizeof *debt); /* at most one a flow, so max_flows bounds them */
        if (!debt)
            return NULL;
    }
    debt->flow = flow;
    debt->since = c->now;
    debt->next = NULL;
    debt->prev = c->debts_tail;
    *(debt->prev ? &debt->prev->next : &c->debts) = debt;
    c->debts_tail = debt;
    flow->u.tcp.debt = debt;
    return debt;
}

void colo_ack_drop_debt(colo_comparator *c, struct colo_flow *flow)
{
    struct colo_debt *debt = flow->u.tcp.debt;

    if (!debt)
        return;
    *(debt->prev ? &debt->prev->next : &c->debts) = debt->next;
    *(debt->next ? &debt->next->prev : &c->debts_tail) = debt->prev;
    debt->next = c->debts_free;
    c->debts_free = debt;
    flow->u.tcp.debt = NULL;
}

/* --------------------------------------------------------- ACKs of our own */

static void emit_ack(colo_comparator *c, struct colo_flow *flow, const struct colo_debt *header, int64_t ack,
                     struct colo_bytes sack, uint8_t reason)
{
    struct colo_own own = {.header = header, .off = flow->u.tcp.out_high, .ack = ack, .sack = sack, .reason = reason};

    if (!colo_own_emit(c, flow, &own))
        return; /* out of memory: the debt stays, and is tried again or ends in a checkpoint */
    c->n.acks_emitted++;
    note_told(&flow->u.tcp, ack);
}

/* The header for an ACK of our own: the debt's, or the waiting frame's in *made; NULL: there is none. */
static const struct colo_debt *header_for(const struct colo_flow *flow, struct colo_debt *made)
{
    const struct colo_rec *head = flow->p.head;

    if (flow->u.tcp.debt)
        return flow->u.tcp.debt;
    if (!head || !is_pure_ack(head) || !colo_own_may_alter(head))
        return NULL;
    colo_own_take_header(made, head);
    return made;
}

static void pay(colo_comparator *c, struct colo_flow *flow)
{
    struct colo_tcp *tcp = &flow->u.tcp;
    int64_t both = tcp->p_ack < tcp->s_ack ? tcp->p_ack : tcp->s_ack;
    const struct colo_debt *header;
    struct colo_debt made;

    if (tcp->told_known && tcp->p_acked && tcp->s_acked && both > tcp->told && (header = header_for(flow, &made)))
        emit_ack(c, flow, header, both, NO_SACK, COLO_REASON_MATCHED);
    if (tcp->debt && tcp->told >= tcp->p_ack)
        colo_ack_drop_debt(c, flow);
}

void colo_ack_note_echo(struct colo_flow *flow, const uint8_t *header)
{
    struct colo_bytes timestamps = colo_own_option(header, COLO_OPTION_TIMESTAMPS);

    if (timestamps.len == 10) {
        flow->u.tcp.s_echo = colo_load32(timestamps.data + 6);
        flow->u.tcp.s_echo_known = 1;
    }
}

void colo_ack_repeat(colo_comparator *c, struct colo_flow *flow, const struct colo_rec *rec)
{
    struct colo_tcp *tcp = &flow->u.tcp;
    const struct colo_debt *header;
    struct colo_debt made;
    struct colo_bytes sack;

    if (!tcp->p_acked || !tcp->told_known || tcp->p_ack <= tcp->s_ack || tcp->told != tcp->s_ack ||
        rec->ack != colo_seq_at(tcp->ack_base, tcp->s_ack))
        return;
    sack = colo_own_option(rec->data + rec->l4, COLO_OPTION_SACK);
    header = header_for(flow, &made);
    if (sack.data && header)
        emit_ack(c, flow, header, tcp->s_ack, sack, COLO_REASON_MATCHED);
}

void colo_ack_pay_all(colo_comparator *c, uint8_t reason)
{
    while (c->debts) {
        struct colo_debt *debt = c->debts;
        struct colo_tcp *tcp = &debt->flow->u.tcp;

        if (tcp->p_ack > tcp->told && !tcp->unsure)
            emit_ack(c, debt->flow, debt, tcp->p_ack, NO_SACK, reason);
        colo_ack_drop_debt(c, debt->flow);
    }
}

/* ---------------------------------------------------------------- release */

static bool reset_is_matched(colo_comparator *c, struct colo_tcp *tcp, const struct colo_rec *rec)
{
    bool same = tcp->rst_seen && tcp->rst_seq == rec->seq && tcp->rst_ack == rec->ack &&
                ((tcp->rst_flags ^ rec->tcp_flags) & COLO_TCP_ACK) == 0;

    if (!same && !tcp->rst_rec && !tcp->rst_spare)
        return false;
    if (!tcp->rst_rec) {
        if (!same)
            tcp->rst_spare--;
    } else {
        struct colo_rec *used = tcp->rst_rec;

        tcp->rst_rec = NULL;
        colo_held_remove(c, used);
        colo_output_discard(c, used, COLO_REASON_MATCHED);
    }
    tcp->rst_matched = 1;
    return true;
}

static bool is_covered(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec)
{
    if (flow->diverged) /* what is matched may be what has been contradicted since */
        return false;
    return (colo_stream_is_matched(&flow->u.tcp, rec->off, colo_stream_end(rec)) ||
            colo_stream_match_beyond(c, flow, rec)) &&
           colo_stream_urgent_agrees(&flow->u.tcp, rec);
}

enum leave { STAY, LEAVE, LEAVE_LOWERED };

static enum leave may_leave(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec)
{
    struct colo_tcp *tcp = &flow->u.tcp;
    bool has_range = colo_stream_has_range(rec);

    if (rec->tcp_flags & COLO_TCP_RST)
        return !flow->diverged && reset_is_matched(c, tcp, rec) ? LEAVE : STAY;
    if (has_range ? !is_covered(c, flow, rec) : !colo_stream_urgent_agrees(tcp, rec))
        return STAY;
    if (!(rec->tcp_flags & COLO_TCP_ACK))
        return LEAVE;
    if (!tcp->s_acked)
        return STAY;
    if (colo_seq_extend(tcp->ack_base, tcp->s_ack, rec->ack) <= tcp->s_ack)
        return LEAVE;
    if (!colo_own_may_alter(rec))
        return STAY;
    if (!has_range) {
        struct colo_rec *data = tcp->first_data;

        if (!data || !colo_own_may_alter(data) || !is_covered(c, flow, data))
            return STAY;
    }
    return make_debt(c, flow) ? LEAVE_LOWERED : STAY;
}

void colo_ack_note_released(colo_comparator *c, struct colo_flow *flow, const struct colo_rec *rec)
{
    struct colo_tcp *tcp = &flow->u.tcp;

    if (!(rec->tcp_flags & COLO_TCP_RST)) {
        if (colo_stream_end(rec) > tcp->out_high)
            tcp->out_high = colo_stream_end(rec);
        if (rec->tcp_flags & COLO_TCP_ACK)
            note_told(tcp, colo_seq_extend(tcp->ack_base, tcp->p_ack, rec->ack));
    }
    if (tcp->debt && tcp->told >= tcp->p_ack)
        colo_ack_drop_debt(c, flow);
}

static void lower(colo_comparator *c, struct colo_tcp *tcp, struct colo_rec *rec)
{
    uint32_t ack = colo_seq_at(tcp->ack_base, tcp->s_ack);

    rec->ack_at = (uint16_t)(rec->l4 + COLO_TCP_AT_ACK);
    /* A partial checksum covers the pseudo header only; the rest, our change too, is added when it is completed. */
    rec->csum = rec->csum_partial ? rec->csum : colo_csum_update32(rec->csum, rec->ack, ack);
    rec->ack = ack;
    c->n.acks_lowered++;
}

/*
 * A pure ACK that waited for the secondary is about to leave. If its echo is older than the secondary's, the secondary
 * got there by a retransmission, and the old echo would call that spurious (see own.c): an ACK with the right echo
 * goes first, which makes this one old news to the client.
 */
static void tell_first(colo_comparator *c, struct colo_flow *flow, const struct colo_rec *rec)
{
    struct colo_tcp *tcp = &flow->u.tcp;
    struct colo_bytes timestamps;
    struct colo_debt header;

    if (!tcp->s_echo_known || !tcp->told_known || !is_pure_ack(rec) || !colo_own_may_alter(rec) ||
        colo_seq_extend(tcp->ack_base, tcp->told, rec->ack) <= tcp->told)
        return;
    timestamps = colo_own_option(rec->data + rec->l4, COLO_OPTION_TIMESTAMPS);
    if (timestamps.len != 10 || colo_seq_extend(colo_load32(timestamps.data + 6), 0, tcp->s_echo) <= 0)
        return;
    colo_own_take_header(&header, rec);
    emit_ack(c, flow, &header, tcp->p_ack < tcp->s_ack ? tcp->p_ack : tcp->s_ack, NO_SACK, COLO_REASON_MATCHED);
}

void colo_ack_release(colo_comparator *c, struct colo_flow *flow)
{
    struct colo_tcp *tcp = &flow->u.tcp;
    struct colo_rec *rec;
    enum leave leave;

    while ((rec = flow->p.head) && (leave = may_leave(c, flow, rec)) != STAY) {
        if (leave == LEAVE)
            tell_first(c, flow, rec);
        if (rec == tcp->first_data)
            colo_stream_next_data(flow, rec);
        colo_flow_list_remove(&flow->p, rec);
        colo_held_remove(c, rec);
        if (leave == LEAVE_LOWERED)
            lower(c, tcp, rec);
        if (tcp->debt && colo_own_may_alter(rec))
            colo_own_take_header(tcp->debt, rec); /* its timestamps and window are the latest that the client knows */
        colo_ack_note_released(c, flow, rec);
        colo_output_release(c, rec, COLO_REASON_MATCHED);
    }
    pay(c, flow);
}
