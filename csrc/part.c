/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of a held frame that both VMs have said.
 *
 * Frames leave whole. Where a client's window is closed, a VM fills what is left of it with a short segment, and two VMs
 * that met the window's edge at other moments end theirs at other bytes. The primary's longer one then waits for bytes
 * that the secondary will say only after an ACK; the client waits for the frame. Nothing would move until a time-out.
 *
 * The primary breaks this by itself: a time-out or a tail loss probe makes it say again what nobody acknowledged (RFC 6298,
 * RFC 8985). So where it repeats bytes while a frame waits of which the secondary has said a part only, the repeated
 * bytes that both have said go to the client at once. The frame still waits, and leaves whole later: an overlap is legal.
 *
 * Header and timestamps are the waiting frame's. The repetition's are newer, and to a client that has seen those the
 * waiting frame would be an old duplicate (PAWS, RFC 7323).
 */
#include "own.h"

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

void colo_part_repeat(colo_comparator *c, struct colo_flow *flow, const struct colo_rec *rec)
{
    struct colo_tcp *tcp = &flow->u.tcp;
    const struct colo_rec *held = tcp->first_data;
    struct colo_own own = {.off = rec->off, .ack = tcp->told, .reason = COLO_REASON_MATCHED};
    struct colo_debt header;
    int64_t end;

    if (rec->tcp_flags & (COLO_TCP_SYN | COLO_TCP_RST | COLO_TCP_URG) || tcp->p_urged || tcp->s_urgents || !tcp->told_known)
        return;
    if (!colo_own_may_alter(held) || colo_stream_is_matched(tcp, held->off, colo_stream_end(held)))
        return;
    end = least(rec->off + least(rec->body_len, COLO_OWN_BODY_MAX), tcp->match);
    if (end <= rec->off || !colo_stream_is_matched(tcp, rec->off, end))
        return;
    own.header = &header;
    own.body = (struct colo_bytes){rec->data + rec->body, (uint32_t)(end - rec->off)};
    colo_own_take_header(&header, held);
    if (!colo_own_emit(c, flow, &own))
        return; /* out of memory: the primary will say it again */
    c->n.parts_emitted++;
    if (end > tcp->out_high)
        tcp->out_high = end;
}
