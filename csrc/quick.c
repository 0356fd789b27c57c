/* SPDX-License-Identifier: Apache-2.0 */
#include "quick.h"

#include <string.h>

#include "seq.h"

enum { EVENTFUL = COLO_TCP_SYN | COLO_TCP_FIN | COLO_TCP_RST | COLO_TCP_URG };

static bool is_plain(uint8_t tcp_flags, uint32_t body_len)
{
    return (tcp_flags & (EVENTFUL | COLO_TCP_ACK)) == COLO_TCP_ACK && body_len;
}

/* Where the eight bytes at the front of colo_tcp say that numbers are known, and nothing out of the way has happened. */
static bool is_settled(const struct colo_tcp *tcp)
{
    static const uint8_t settled[8] = {1, 1, 1, 1, 0, 0, 0, 0};

    _Static_assert(offsetof(struct colo_tcp, ranges) == sizeof settled - 1, "eight bytes, the first four of them flags");
    return memcmp(tcp, settled, sizeof settled) == 0;
}

/* A flow in which nothing waits for a decision, and a frame that brings none. */
static bool is_calm(const colo_comparator *c, const struct colo_flow *flow, const struct colo_packet *packet)
{
    const struct colo_tcp *tcp = &flow->u.tcp;

    return is_plain(packet->tcp_flags, packet->body_len) && is_settled(tcp) && flow->epoch == c->epoch &&
           !flow->diverged && tcp->numbering == COLO_NUMBERS_PRIMARY && !c->tolerances && !tcp->debt && !tcp->rst_rec &&
           !tcp->later.head && !tcp->unplaced.head;
}

static int64_t end_of(const struct colo_rec *rec)
{
    return rec->off + rec->body_len;
}

/* The payload of a new frame, in its stream. */
struct span {
    int64_t from, to;
    const uint8_t *bytes;
};

static struct span span_of(const struct colo_rec *rec, const struct colo_packet *packet, int64_t off)
{
    return (struct span){off, off + packet->body_len, rec->data + packet->body};
}

/* Both cover `at`: how many bytes from there on both have; 0 where these differ. */
static int64_t equal_from(const struct span *a, const struct colo_rec *b, int64_t at)
{
    int64_t n = (a->to < end_of(b) ? a->to : end_of(b)) - at;

    return memcmp(a->bytes + (at - a->from), b->data + b->body + (at - b->off), (size_t)n) == 0 ? n : 0;
}

static bool covers(const struct colo_rec *rec, int64_t at)
{
    return is_plain(rec->tcp_flags, rec->body_len) && rec->off <= at && end_of(rec) > at;
}


static bool has_room(const colo_comparator *c, const struct colo_flow *flow, const struct colo_rec *rec)
{
    return flow->held[rec->side] < c->config.max_flow_frames &&
           flow->held_bytes[rec->side] + rec->len <= c->config.max_flow_bytes;
}

static void hold(colo_comparator *c, struct colo_flow *flow, struct colo_list *list, struct colo_rec *rec,
                 const struct colo_packet *packet, int64_t off)
{
    colo_rec_take_over(rec, packet);
    rec->judged = 1;
    rec->flow = flow;
    rec->off = off;
    colo_held_add(c, rec);
    colo_flow_list_push(list, rec);
}

/* A primary frame that reaches to `end` and acknowledges `ack` leaves. */
static void release(colo_comparator *c, struct colo_tcp *tcp, struct colo_rec *rec, int64_t end, int64_t ack)
{
    if (end > tcp->out_high)
        tcp->out_high = end;
    if (ack > tcp->told)
        tcp->told = ack;
    colo_output_release(c, rec, COLO_REASON_MATCHED);
}

/*
 * Compares a new primary frame with what the secondary has said already. False: there is a difference, or a gap, which
 * gap.c must hear of.
 */
static bool compare_primary(colo_comparator *c, struct colo_flow *flow, const struct span *span)
{
    struct colo_tcp *tcp = &flow->u.tcp;
    struct colo_rec *s;
    int64_t n;

    while (tcp->match < span->to && (s = flow->s.head) && s->off <= tcp->match) {
        if (!covers(s, tcp->match) || !(n = equal_from(span, s, tcp->match)))
            return false;
        tcp->match += n;
        c->n.compared_bytes += (uint64_t)n;
        if (end_of(s) > tcp->match)
            break;
        colo_flow_list_remove(&flow->s, s);
        colo_held_remove(c, s);
        colo_output_discard(c, s, COLO_REASON_MATCHED);
    }
    return tcp->match == span->to || !flow->s.head;
}

bool colo_quick_primary(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec,
                        const struct colo_packet *packet)
{
    struct colo_tcp *tcp = &flow->u.tcp;
    struct span span;
    int64_t off;

    if (!is_calm(c, flow, packet) || flow->standing == COLO_FRESH || !has_room(c, flow, rec))
        return false;
    off = colo_seq_extend(tcp->p_base, tcp->p_high, packet->seq);
    if (off != tcp->p_high || packet->ack != colo_seq_at(tcp->ack_base, tcp->p_ack))
        return false;
    span = span_of(rec, packet, off);
    if (flow->s.head && (flow->p.head || off != tcp->match || tcp->p_ack > tcp->s_ack ||
                         !compare_primary(c, flow, &span)))
        return false;
    tcp->p_high = span.to;
    if (tcp->match == span.to) {
        release(c, tcp, rec, span.to, tcp->p_ack);
    } else {
        hold(c, flow, &flow->p, rec, packet, off);
        if (!tcp->first_data)
            tcp->first_data = rec;
    }
    return true;
}

/* Compares a new secondary frame with the primary's that are held. False: with a difference, or with no plain one. */
static bool compare_secondary(colo_comparator *c, struct colo_flow *flow, const struct span *span)
{
    struct colo_tcp *tcp = &flow->u.tcp;
    int64_t n;

    for (struct colo_rec *p = flow->p.head; p && tcp->match < span->to; p = p->flow_link.next) {
        if (!covers(p, tcp->match) || !(n = equal_from(span, p, tcp->match)))
            return false;
        tcp->match += n;
        c->n.compared_bytes += (uint64_t)n;
    }
    return true;
}

static void release_matched(colo_comparator *c, struct colo_flow *flow)
{
    struct colo_tcp *tcp = &flow->u.tcp;
    struct colo_rec *p;

    while ((p = flow->p.head)) {
        bool plain = is_plain(p->tcp_flags, p->body_len);
        int64_t ack = colo_seq_extend(tcp->ack_base, tcp->s_ack, p->ack);

        if (plain && end_of(p) > tcp->match)
            return;
        if (!plain || ack > tcp->s_ack) {
            colo_ack_release(c, flow); /* it may have to leave lowered, or not at all */
            return;
        }
        colo_stream_next_data(flow, p);
        colo_flow_list_remove(&flow->p, p);
        colo_held_remove(c, p);
        release(c, tcp, p, end_of(p), ack);
    }
}

bool colo_quick_secondary(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec,
                          const struct colo_packet *packet)
{
    struct colo_tcp *tcp = &flow->u.tcp;
    struct span span;
    int64_t off;

    if (!is_calm(c, flow, packet) || !has_room(c, flow, rec))
        return false;
    off = colo_seq_extend(tcp->p_base, tcp->s_high, packet->seq);
    if (off != tcp->s_high || packet->ack != colo_seq_at(tcp->ack_base, tcp->s_ack))
        return false;
    span = span_of(rec, packet, off);
    if (flow->s.head) { /* the secondary leads: nothing of the primary's is there that this could cover */
        if (flow->p.head)
            return false;
    } else if (off != tcp->match || !compare_secondary(c, flow, &span)) {
        return false;
    }
    tcp->s_high = span.to;
    if (packet->syn.timestamps)
        colo_ack_note_echo(flow, rec->data + packet->l4);
    if (tcp->match == span.to)
        colo_output_discard(c, rec, COLO_REASON_MATCHED);
    else
        hold(c, flow, &flow->s, rec, packet, off);
    release_matched(c, flow);
    return true;
}

bool colo_quick_pair(colo_comparator *c, struct colo_flow *flow, struct colo_rec *p, const struct colo_packet *pp,
                     struct colo_rec *s, const struct colo_packet *sp)
{
    struct colo_tcp *tcp = &flow->u.tcp;
    int64_t off = colo_seq_extend(tcp->p_base, tcp->p_high, pp->seq);

    if (pp->seq != sp->seq || pp->body_len != sp->body_len || !is_calm(c, flow, pp) ||
        !is_plain(sp->tcp_flags, sp->body_len) || flow->standing == COLO_FRESH || flow->p.head || flow->s.head)
        return false;
    if (off != tcp->p_high || off != tcp->s_high || off != tcp->match || tcp->p_ack > tcp->s_ack ||
        pp->ack != colo_seq_at(tcp->ack_base, tcp->p_ack) || sp->ack != colo_seq_at(tcp->ack_base, tcp->s_ack))
        return false;
    if (memcmp(p->data + pp->body, s->data + sp->body, pp->body_len) != 0)
        return false;
    c->n.compared_bytes += pp->body_len;
    tcp->match = tcp->p_high = tcp->s_high = off + pp->body_len;
    if (sp->syn.timestamps)
        colo_ack_note_echo(flow, s->data + sp->l4);
    colo_output_discard(c, s, COLO_REASON_MATCHED);
    release(c, tcp, p, tcp->match, tcp->p_ack);
    return true;
}
