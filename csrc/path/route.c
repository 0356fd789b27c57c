/* SPDX-License-Identifier: Apache-2.0 */
#include "route.h"

#include <errno.h>
#include <string.h>

#include "inherit.h"
#include "load.h"
#include "marks.h"
#include "sendring.h"

enum {
    CONTROL_BYTES = 1 << 20, /* of the peer's messages that wait for the control plane */
    KEPT_FOR_CONTROL = 64 * 1024, /* of the link's memory, or a quarter of it, for control and marks */
    SYN = 0x02,
};

/* ------------------------------------------------------------------ sending */

void colo_route_left_out(struct colo_path *p, enum colo_path_place place, int nic)
{
    if (p->overrun_told[place])
        return;
    p->overrun_told[place] = true;
    colo_path_tell(p, COLO_PATH_OVERRUN, place, nic, 0, "");
}

void colo_route_send(struct colo_path *p, struct colo_wire *w, const struct colo_wire_frame *frame)
{
    if (colo_wire_send(w, frame->nic, frame->data, frame->len, frame->vnet_len) < 0)
        p->error = ENOMEM;
}

/* To the secondary VM, or of it: what finds no room is left out, as a network would, and a checkpoint makes it good. */
static bool send_or_leave(struct colo_path *p, struct colo_wire *w, const struct colo_wire_frame *frame,
                          enum colo_path_place place)
{
    if (!colo_wire_has_room(w, frame->len)) {
        w->counters.dropped++;
        colo_route_left_out(p, place, frame->nic);
        return false;
    }
    colo_route_send(p, w, frame);
    return true;
}

/* Bytes of the link's memory that frames may still use. */
static uint64_t room_for_frames(const struct colo_path *p)
{
    const uint64_t all = p->config.link.send_bytes;
    struct colo_link_counters n;
    uint64_t used;

    colo_link_counters_of(p->link, &n);
    used = n.queued_bytes + (all / 4 < KEPT_FOR_CONTROL ? all / 4 : KEPT_FOR_CONTROL);
    return used < all ? all - used : 0;
}

static bool push(struct colo_path *p, enum colo_link_type type, const struct colo_wire_frame *frame)
{
    struct colo_link_record record = {.type = (uint8_t)type,
                                      .nic = frame->nic,
                                      .vnet_len = frame->vnet_len,
                                      .len = frame->len,
                                      .data = frame->data};
    const bool pushed =
        room_for_frames(p) >= COLO_RECORD_HEAD + (uint64_t)frame->len && colo_link_push(p->link, &record) == 0;

    if (!pushed)
        colo_route_left_out(p, COLO_PLACE_LINK, frame->nic);
    return pushed;
}

/*
 * Whether the link has room for a frame; how long it has had none is told by full_since. Once frames were left out the
 * secondary needs a checkpoint anyway: the mirror begins again only when half is free, or clients would have to wait
 * for stall_timeout again as soon as one frame had found room.
 */
static bool link_has_room(struct colo_path *p)
{
    const uint64_t room = room_for_frames(p), frame = COLO_RECORD_HEAD + (uint64_t)p->config.max_frame;

    if (room >= frame && (!p->overrun || room >= p->config.link.send_bytes / 2)) {
        p->full_since = 0;
        p->overrun = false;
        return true;
    }
    if (!p->full_since)
        p->full_since = p->now;
    if (p->now - p->full_since >= p->config.stall_timeout)
        p->overrun = true;
    return false;
}

void colo_route_link_room(struct colo_path *p)
{
    (void)link_has_room(p);
}

/* ------------------------------------------------------------- from clients */

static void mirror(struct colo_path *p, const struct colo_wire_frame *frame)
{
    if (p->overrun && !link_has_room(p)) {
        p->counters.mirror_left_out++;
        colo_route_left_out(p, COLO_PLACE_LINK, frame->nic);
        return;
    }
    if (push(p, COLO_LINK_MIRROR, frame))
        p->counters.mirrored++;
    else
        p->counters.mirror_left_out++;
}

static void translate_in(struct colo_path *p, const struct colo_wire_frame *frame)
{
    if (colo_rewriter_in(p->rewriter, frame->nic, frame->data, frame->len, frame->vnet_len, p->now) ==
        COLO_REWRITE_DROP)
        return;
    send_or_leave(p, &p->vm[frame->nic], frame, COLO_PLACE_VM);
}

void colo_route_from_client(void *ctx, const struct colo_wire_frame *frame)
{
    struct colo_path *p = ctx;

    if (colo_neighbours_is_own(p->neighbours, frame->nic, frame->data + frame->vnet_len + 6, p->now)) {
        p->counters.reflected++;
        return;
    }
    if (p->config.role == COLO_PATH_PRIMARY) {
        if (p->session)
            mirror(p, frame); /* before: the secondary's rewriter wants the client's numbers too */
        if (!p->rewriter || colo_rewriter_in(p->rewriter, frame->nic, frame->data, frame->len, frame->vnet_len,
                                             p->now) != COLO_REWRITE_DROP)
            colo_route_send(p, &p->vm[frame->nic], frame);
    } else if (p->taken_over) {
        translate_in(p, frame);
    } /* else the TAP is closed: whatever comes of it is not for the secondary */
}

bool colo_route_may_read_client(struct colo_path *p, int nic)
{
    if (p->config.role == COLO_PATH_SECONDARY && !p->taken_over)
        return true; /* and throw it away */
    if (!colo_wire_has_room(&p->vm[nic], p->config.max_frame))
        return false;
    /* Without a connection the link fills once, and from then on the mirror leaves out. */
    return !p->session || p->overrun || link_has_room(p);
}

/* --------------------------------------------------------------- from the VM */

/* The secondary's, until they may go on. What finds no room is left out. */
void colo_route_hold(struct colo_path *p, struct colo_fifo *where, enum colo_link_type type,
                     const struct colo_wire_frame *frame)
{
    const struct colo_held head = {.time = p->now, .epoch = p->marks, .type = (uint8_t)type};
    int error = colo_held_put(where, &head, frame);

    if (error == COLO_ERR_NOMEM)
        p->error = ENOMEM;
    if (!error)
        return;
    p->vm[frame->nic].counters.dropped++;
    colo_route_left_out(p, COLO_PLACE_VM, frame->nic);
}

/* The secondary VM's frame, of the epoch that its rewriter is in. */
static void translate_out(struct colo_path *p, const struct colo_wire_frame *frame)
{
    if (colo_rewriter_out(p->rewriter, frame->nic, frame->data, frame->len, frame->vnet_len, p->now) ==
        COLO_REWRITE_DROP)
        return;
    if (p->taken_over)
        colo_route_send(p, &p->client[frame->nic], frame);
    else if (p->session && push(p, COLO_LINK_OUTPUT, frame))
        p->counters.output++;
    else if (p->session)
        p->counters.output_left_out++;
}

/* The primary VM's frame, in the client's numbers: those of the secondary's are too. */
static void to_comparator(struct colo_path *p, const struct colo_wire_frame *frame)
{
    if (!p->rewriter || colo_rewriter_out(p->rewriter, frame->nic, frame->data, frame->len, frame->vnet_len,
                                          p->now) != COLO_REWRITE_DROP)
        colo_route_send(p, &p->comparator[0], frame);
}

void colo_route_from_vm(void *ctx, const struct colo_wire_frame *frame)
{
    struct colo_path *p = ctx;

    colo_neighbours_learn(p->neighbours, frame->nic, frame->data + frame->vnet_len, frame->len - frame->vnet_len,
                          p->now);
    if (p->config.role == COLO_PATH_PRIMARY)
        to_comparator(p, frame);
    else if (p->taken_over)
        translate_out(p, frame);
    else
        colo_route_hold(p, &p->held, COLO_LINK_OUTPUT, frame);
}

bool colo_route_may_read_vm(const struct colo_path *p, int nic)
{
    if (p->config.role == COLO_PATH_PRIMARY)
        return p->comparator[0].count && colo_wire_has_room(&p->comparator[0], p->config.max_frame);
    if (p->taken_over)
        return colo_wire_has_room(&p->client[nic], p->config.max_frame);
    return true;
}

/* ------------------------------------------------- from the comparator */

/*
 * A TCP segment with SYN: the other side's rewriter needs its number before the client can have answered it. A look at a
 * few bytes, for each released frame pays for it; the rewriter decodes what is sent (colo_parse).
 */
static bool has_syn(const struct colo_wire_frame *frame)
{
    const uint8_t *p = frame->data + frame->vnet_len, *end = frame->data + frame->len;
    uint32_t at = 12;
    uint16_t type;

    for (int tags = 0; tags < 3; tags++) {
        if ((size_t)(end - p) < at + 2u)
            return false;
        type = colo_load16(p + at);
        at += 2;
        if (type != 0x8100 && type != 0x88a8)
            break;
        at += 2;
    }
    if (type == 0x0800) {
        if ((size_t)(end - p) < at + 20u || p[at + 9] != 6)
            return false;
        at += (p[at] & 15u) * 4;
    } else if (type == 0x86dd) {
        if ((size_t)(end - p) < at + 40u)
            return false;
        if (p[at + 6] != 6) /* extension headers: the rewriter looks closer */
            return p[at + 6] == 0 || p[at + 6] == 43 || p[at + 6] == 44 || p[at + 6] == 60;
        at += 40;
    } else {
        return false;
    }
    return (size_t)(end - p) >= at + 14u && p[at + 13] & SYN;
}

void colo_route_released(void *ctx, const struct colo_wire_frame *frame)
{
    struct colo_path *p = ctx;

    if (frame->nic >= p->config.nics) {
        p->comparator[2].counters.malformed++;
        return;
    }
    if (p->session && has_syn(frame)) {
        if (push(p, COLO_LINK_LEARN, frame))
            p->counters.learned++;
        else /* the rewriter's fallback is left, and the checkpoint that is wanted now */
            p->counters.learn_left_out++;
    }
    colo_route_send(p, &p->client[frame->nic], frame);
}

/* By a fresh clock: the thread may just have been stopped for seconds, in the middle of a turn. */
static bool lease_is_over(const struct colo_path *p)
{
    return p->lease != INT64_MAX && colo_path_now() >= p->lease;
}

bool colo_route_may_read_released(const struct colo_path *p)
{
    if (lease_is_over(p))
        return false;
    for (int nic = 0; nic < p->config.nics; nic++)
        if (!colo_wire_has_room(&p->client[nic], p->config.max_frame))
            return false;
    return true;
}

void colo_route_nothing(void *ctx, const struct colo_wire_frame *frame)
{
    (void)ctx;
    (void)frame;
}

/* ---------------------------------------------------------------- what is held */

/* SECONDARY: what the VM reads and says now is of the epoch that the rewriter is in. */
static bool vm_is_settled(const struct colo_path *p)
{
    return p->taken_over || (!p->standing && colo_gate_is_open(&p->gate));
}

static void to_vm(struct colo_path *p, enum colo_link_type type, const struct colo_wire_frame *frame)
{
    if (type == COLO_LINK_LEARN)
        (void)colo_rewriter_learn(p->rewriter, frame->nic, frame->data, frame->len, frame->vnet_len, p->now);
    else
        translate_in(p, frame);
}

void colo_route_held(struct colo_path *p)
{
    struct colo_wire_frame frame;
    struct colo_held head;

    if (p->config.role == COLO_PATH_PRIMARY) {
        colo_marks_held(p);
        return;
    }
    if (!vm_is_settled(p))
        return;
    for (; colo_held_first(&p->inbound, &head, &frame); colo_held_let_go(&p->inbound, &head))
        to_vm(p, head.type, &frame);
    for (; colo_held_first(&p->held, &head, &frame); colo_held_let_go(&p->held, &head))
        translate_out(p, &frame);
}

void colo_route_forget(struct colo_path *p, int64_t before)
{
    struct colo_wire_frame frame;
    struct colo_held head;

    while (colo_held_first(&p->held, &head, &frame) && head.time < before) {
        p->counters.stale++;
        colo_held_let_go(&p->held, &head);
    }
}

void colo_route_forget_inbound(struct colo_path *p, int64_t before)
{
    struct colo_wire_frame frame;
    struct colo_held head;

    while (colo_held_first(&p->inbound, &head, &frame) && head.time < before)
        colo_held_let_go(&p->inbound, &head);
}

/* For a VM that waits the newest count: the oldest make room. */
static void hold_inbound(struct colo_path *p, enum colo_link_type type, const struct colo_wire_frame *frame)
{
    struct colo_wire_frame oldest;
    struct colo_held head;

    while (p->waiting && !colo_fifo_has_room(&p->inbound, sizeof head + frame->len) &&
           colo_held_first(&p->inbound, &head, &oldest))
        colo_held_let_go(&p->inbound, &head);
    colo_route_hold(p, &p->inbound, type, frame);
}

void colo_route_give_up_held(struct colo_path *p)
{
    if (!vm_is_settled(p))
        colo_route_forget(p, INT64_MAX);
}

/* ------------------------------------------------------------- from the link */

/*
 * PRIMARY: an ARP request, or a neighbour solicitation, of the secondary VM's. The comparator swallows its copy of what
 * both ask; but it may ask when the primary VM has no reason to, and nobody would answer. So its questions leave too: they
 * carry the same addresses, and the answer comes to both. Probes for its own address (RFC 5227, RFC 4862) don't.
 */
static bool is_question(const struct colo_wire_frame *frame)
{
    static const uint8_t none[16];
    const uint8_t *p = frame->data + frame->vnet_len + 12, *end = frame->data + frame->len;

    for (int tags = 0; tags < 2 && (size_t)(end - p) >= 6; tags++)
        p += colo_load16(p) == 0x8100 || colo_load16(p) == 0x88a8 ? 4 : 0;
    if ((size_t)(end - p) >= 30 && colo_load16(p) == 0x0806) /* sender and target at 14 and 24 of the packet */
        return colo_load16(p + 8) == 1 && memcmp(p + 16, none, 4) && memcmp(p + 16, p + 26, 4);
    return (size_t)(end - p) >= 66 && colo_load16(p) == 0x86dd && p[8] == 58 && p[9] == 255 && p[42] == 135 &&
           memcmp(p + 10, none, 16);
}

static void ask(struct colo_path *p, const struct colo_wire_frame *frame)
{
    if (!is_question(frame) || lease_is_over(p) || !colo_wire_has_room(&p->client[frame->nic], frame->len))
        return;
    p->counters.asked++;
    colo_route_send(p, &p->client[frame->nic], frame);
}

static bool take_control(struct colo_path *p, const struct colo_link_record *record, const char **why)
{
    uint8_t *room;

    if (!record->len) {
        *why = "an empty message for the control plane";
        return false;
    }
    if (colo_fifo_len(&p->control) + record->len + 4 > CONTROL_BYTES) {
        *why = "more messages for the control plane than it can read";
        return false;
    }
    room = colo_fifo_room(&p->control, record->len + 4);
    if (!room) {
        p->error = ENOMEM;
        return true;
    }
    memcpy(room, &record->len, 4);
    memcpy(room + 4, record->data, record->len);
    colo_fifo_put(&p->control, record->len + 4);
    colo_path_tell(p, COLO_PATH_CONTROL, COLO_PLACE_LINK, 0, 0, "");
    return true;
}

bool colo_route_record(struct colo_path *p, const struct colo_link_record *record, const char **why)
{
    const bool primary = p->config.role == COLO_PATH_PRIMARY;
    /* The link's buffer is ours while the record is: the rewriter changes it in place. */
    struct colo_wire_frame frame = {.data = (uint8_t *)(uintptr_t)record->data,
                                    .len = record->len,
                                    .vnet_len = record->vnet_len,
                                    .nic = record->nic};

    switch (record->type) {
    case COLO_LINK_CONTROL:
        return take_control(p, record, why);
    case COLO_LINK_MARK:
        return colo_marks_take(p, record, why);
    case COLO_LINK_INHERIT:
        if (primary)
            break;
        return colo_inherit_take(p, record, why);
    case COLO_LINK_OUTPUT:
    case COLO_LINK_MIRROR:
    case COLO_LINK_LEARN:
        if (primary != (record->type == COLO_LINK_OUTPUT))
            break;
        /* Longer ones fit the link, but the comparator would take them for the end of all sense. */
        if (record->nic >= p->config.nics || record->len < record->vnet_len + 14u ||
            record->len > p->config.max_frame) {
            *why = "a frame of no NIC, or too short or too long to be one";
            return false;
        }
        if (primary) {
            ask(p, &frame);
            colo_marks_output(p, &frame);
        } else if (p->taken_over) {
            p->counters.stale++;
        } else if (vm_is_settled(p) && !colo_fifo_len(&p->inbound)) {
            to_vm(p, (enum colo_link_type)record->type, &frame);
        } else {
            hold_inbound(p, (enum colo_link_type)record->type, &frame);
        }
        return true;
    default:
        break;
    }
    *why = "a record that its role does not send";
    return false;
}
