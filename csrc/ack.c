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
 * SYN and RST are never lowered, for their ACK number must be exact; nor are segments signed by TCP-MD5 (RFC 2385)
 * or TCP-AO (RFC 5925), for the signature covers it.
 */
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "csum.h"
#include "load.h"
#include "seq.h"

enum { TCP_AT_SEQ = 4, TCP_AT_ACK = 8, TCP_AT_DATA_OFFSET = 12, TCP_AT_FLAGS = 13, TCP_AT_CSUM = 16, TCP_AT_URGENT = 18 };

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

static uint32_t header_len(const struct colo_rec *rec)
{
    return (uint32_t)rec->l4 + (uint32_t)(rec->data[rec->l4 + TCP_AT_DATA_OFFSET] >> 4) * 4;
}

static bool may_be_altered(const struct colo_rec *rec)
{
    return !(rec->tcp_flags & (COLO_TCP_SYN | COLO_TCP_RST)) && !rec->tcp_auth && header_len(rec) <= COLO_DEBT_BYTES;
}

/* ------------------------------------------------------------------ debts */

static void remember_header(struct colo_debt *debt, const struct colo_rec *rec)
{
    debt->len = (uint16_t)header_len(rec);
    debt->l3 = rec->l3;
    debt->l4 = rec->l4;
    debt->vnet_len = rec->vnet_len;
    memcpy(debt->head, rec->data, debt->len);
}

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

/*
 * SACK blocks say what was missing when the header was made; in a later ACK they would read as duplicates (RFC 2883),
 * so they become no-operations.
 */
static void blank_sack(uint8_t *p, uint32_t len)
{
    while (len > 1 && p[0] != 0) {
        uint32_t size = p[0] == 1 ? 1 : p[1];

        if (size == 0 || size > len)
            return;
        if (p[0] == 5)
            memset(p, 1, size);
        p += size;
        len -= size;
    }
}

static void finish_lengths(uint8_t *frame, const struct colo_debt *debt)
{
    uint8_t *ip = frame + debt->l3, *tcp = frame + debt->l4;
    uint32_t tcp_len = (uint32_t)debt->len - debt->l4;
    uint64_t sum = 6 + tcp_len; /* the pseudo header's protocol and length */

    if (ip[0] >> 4 == 4) {
        colo_store16(ip + 2, (uint16_t)(debt->len - debt->l3));
        colo_store16(ip + 10, 0);
        colo_store16(ip + 10, colo_csum_fold(colo_csum_add(0, ip, (size_t)(ip[0] & 15) * 4)));
        sum = colo_csum_add(sum, ip + 12, 8);
    } else {
        colo_store16(ip + 4, (uint16_t)(debt->len - debt->l3 - 40));
        sum = colo_csum_add(sum, ip + 8, 32);
    }
    colo_store16(tcp + TCP_AT_CSUM, 0);
    colo_store16(tcp + TCP_AT_CSUM, colo_csum_fold(colo_csum_add(sum, tcp, tcp_len)));
}

/* Tells the client `ack`, with the header in `debt`. */
static void emit_ack(colo_comparator *c, struct colo_flow *flow, const struct colo_debt *debt, int64_t ack,
                     uint8_t reason)
{
    struct colo_tcp *tcp = &flow->u.tcp;
    uint8_t frame[COLO_DEBT_BYTES], *p = frame + debt->l4;

    memcpy(frame, debt->head, debt->len);
    memset(frame, 0, debt->vnet_len); /* no offload is asked for: the checksum is complete */
    colo_store32(p + TCP_AT_SEQ, colo_seq_at(tcp->p_base, tcp->out_high));
    colo_store32(p + TCP_AT_ACK, colo_seq_at(tcp->ack_base, ack));
    p[TCP_AT_FLAGS] = COLO_TCP_ACK;
    colo_store16(p + TCP_AT_URGENT, 0);
    blank_sack(p + 20, (uint32_t)debt->len - debt->l4 - 20);
    finish_lengths(frame, debt);
    if (!colo_output_emit(c, frame, debt->len, debt->vnet_len, reason))
        return; /* out of memory: the debt stays, and is tried again or ends in a checkpoint */
    c->n.acks_emitted++;
    note_told(tcp, ack);
}

static void pay(colo_comparator *c, struct colo_flow *flow)
{
    struct colo_tcp *tcp = &flow->u.tcp;
    struct colo_rec *head = flow->p.head;
    int64_t both = tcp->p_ack < tcp->s_ack ? tcp->p_ack : tcp->s_ack;

    if (tcp->told_known && tcp->p_acked && tcp->s_acked && both > tcp->told) {
        if (tcp->debt) {
            emit_ack(c, flow, tcp->debt, both, COLO_REASON_MATCHED);
        } else if (head && is_pure_ack(head) && may_be_altered(head)) {
            struct colo_debt header;

            remember_header(&header, head);
            emit_ack(c, flow, &header, both, COLO_REASON_MATCHED);
        }
    }
    if (tcp->debt && tcp->told >= tcp->p_ack)
        colo_ack_drop_debt(c, flow);
}

void colo_ack_pay_all(colo_comparator *c, uint8_t reason)
{
    while (c->debts) {
        struct colo_debt *debt = c->debts;
        struct colo_tcp *tcp = &debt->flow->u.tcp;

        if (tcp->p_ack > tcp->told && !tcp->renewed) /* an old connection's ACK would disturb the new one */
            emit_ack(c, debt->flow, debt, tcp->p_ack, reason);
        colo_ack_drop_debt(c, debt->flow);
    }
}

/* ---------------------------------------------------------------- release */

static bool reset_is_matched(colo_comparator *c, struct colo_tcp *tcp, const struct colo_rec *rec)
{
    bool same = tcp->rst_seen && tcp->rst_seq == rec->seq && tcp->rst_ack == rec->ack &&
                ((tcp->rst_flags ^ rec->tcp_flags) & COLO_TCP_ACK) == 0;

    if (!same && !tcp->rst_rec)
        return false;
    if (tcp->rst_rec) {
        struct colo_rec *used = tcp->rst_rec;

        tcp->rst_rec = NULL;
        colo_held_remove(c, used);
        colo_output_discard(c, used, COLO_REASON_MATCHED);
    }
    tcp->rst_matched = 1;
    return true;
}

enum leave { STAY, LEAVE, LEAVE_LOWERED };

static enum leave may_leave(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec)
{
    struct colo_tcp *tcp = &flow->u.tcp;
    bool has_range = colo_stream_has_range(rec);

    if (rec->tcp_flags & COLO_TCP_RST)
        return reset_is_matched(c, tcp, rec) ? LEAVE : STAY;
    if (has_range && !colo_stream_is_matched(tcp, rec->off, colo_stream_end(rec)) &&
        !colo_stream_match_beyond(c, flow, rec))
        return STAY;
    if (!(rec->tcp_flags & COLO_TCP_ACK))
        return LEAVE;
    if (!tcp->s_acked)
        return STAY;
    if (colo_seq_extend(tcp->ack_base, tcp->s_ack, rec->ack) <= tcp->s_ack)
        return LEAVE;
    if (!may_be_altered(rec))
        return STAY;
    if (!has_range) {
        const struct colo_rec *data = tcp->first_data;

        if (!data || !may_be_altered(data) || !colo_stream_is_matched(tcp, data->off, colo_stream_end(data)))
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

static void next_data(struct colo_flow *flow, const struct colo_rec *rec)
{
    struct colo_rec *next = rec->flow_link.next;

    while (next && !colo_stream_has_range(next))
        next = next->flow_link.next;
    flow->u.tcp.first_data = next;
}

static void lower(colo_comparator *c, struct colo_tcp *tcp, struct colo_rec *rec)
{
    uint32_t ack = colo_seq_at(tcp->ack_base, tcp->s_ack);

    rec->ack_at = (uint16_t)(rec->l4 + TCP_AT_ACK);
    /* A partial checksum covers the pseudo header only; the rest, our change too, is added when it is completed. */
    rec->csum = rec->csum_partial ? rec->csum : colo_csum_update32(rec->csum, rec->ack, ack);
    rec->ack = ack;
    c->n.acks_lowered++;
}

void colo_ack_release(colo_comparator *c, struct colo_flow *flow)
{
    struct colo_tcp *tcp = &flow->u.tcp;
    struct colo_rec *rec;
    enum leave leave;

    while ((rec = flow->p.head) && (leave = may_leave(c, flow, rec)) != STAY) {
        if (rec == tcp->first_data)
            next_data(flow, rec);
        colo_flow_list_remove(&flow->p, rec);
        colo_held_remove(c, rec);
        if (leave == LEAVE_LOWERED)
            lower(c, tcp, rec);
        if (tcp->debt && may_be_altered(rec))
            remember_header(tcp->debt, rec); /* its timestamps and window are the latest that the client knows */
        colo_ack_note_released(c, flow, rec);
        colo_output_release(c, rec, COLO_REASON_MATCHED);
    }
    pay(c, flow);
}
