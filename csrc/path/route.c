/* SPDX-License-Identifier: Apache-2.0 */
#include "route.h"

#include <errno.h>
#include <string.h>

#include "load.h"

enum {
    CONTROL_BYTES = 1 << 20, /* of the peer's messages that wait for the control plane */
    SYN = 0x02,
    MARK_LEN = 9,            /* enum colo_mark, then a number */
};

/* What came so shortly before the primary's STOP may still wait in a socket of its VMM: better twice than never. */
static const int64_t stop_overlap = 20 * 1000000;

/* ------------------------------------------------------------------ sending */

static void left_out(struct colo_path *p, enum colo_path_place place, int nic)
{
    if (p->overrun_told[place])
        return;
    p->overrun_told[place] = true;
    colo_path_tell(p, COLO_PATH_OVERRUN, place, nic, 0, "");
}

static void send(struct colo_path *p, struct colo_wire *w, const struct colo_wire_frame *frame)
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
        left_out(p, place, frame->nic);
        return false;
    }
    send(p, w, frame);
    return true;
}

static bool push(struct colo_path *p, enum colo_link_type type, const struct colo_wire_frame *frame)
{
    struct colo_link_record record = {.type = (uint8_t)type,
                                      .nic = frame->nic,
                                      .vnet_len = frame->vnet_len,
                                      .len = frame->len,
                                      .data = frame->data};
    int error = colo_link_push(p->link, &record);

    if (error == COLO_ERR_NOMEM)
        p->error = ENOMEM;
    if (error)
        left_out(p, COLO_PLACE_LINK, frame->nic);
    return !error;
}

/* Whether the link has room for a frame; how long it has had none is told by full_since. */
static bool link_has_room(struct colo_path *p)
{
    if (colo_link_room(p->link) >= p->config.max_frame) {
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
        left_out(p, COLO_PLACE_LINK, frame->nic);
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

    if (colo_neighbours_is_own(p->neighbours, frame->nic, frame->data + frame->vnet_len + 6)) {
        p->counters.reflected++;
        return;
    }
    if (p->config.role == COLO_PATH_PRIMARY) {
        send(p, &p->vm[frame->nic], frame);
        if (p->session)
            mirror(p, frame);
    } else if (p->taken_over) {
        translate_in(p, frame);
    } /* else the TAP is closed: whatever comes of it is not for the secondary */
}

bool colo_route_may_read_client(struct colo_path *p, int nic)
{
    if (p->config.role == COLO_PATH_SECONDARY)
        return true;
    if (!colo_wire_has_room(&p->vm[nic], p->config.max_frame))
        return false;
    /* Without a connection the link fills once, and from then on the mirror leaves out. */
    return !p->session || p->overrun || link_has_room(p);
}

/* --------------------------------------------------------------- from the VM */

/* false: there was no room. */
static bool hold(struct colo_path *p, struct colo_fifo *where, enum colo_link_type type,
                 const struct colo_wire_frame *frame)
{
    struct colo_held head = {.time = p->now,
                             .epoch = p->marks,
                             .len = frame->len,
                             .nic = frame->nic,
                             .vnet_len = frame->vnet_len,
                             .type = (uint8_t)type};
    uint8_t *room;

    if (!colo_fifo_has_room(where, sizeof head + frame->len)) {
        p->vm[frame->nic].counters.dropped++;
        left_out(p, COLO_PLACE_VM, frame->nic);
        return false;
    }
    room = colo_fifo_room(where, sizeof head + frame->len);
    if (!room) {
        p->error = ENOMEM;
        return false;
    }
    memcpy(room, &head, sizeof head);
    memcpy(room + sizeof head, frame->data, frame->len);
    colo_fifo_put(where, sizeof head + frame->len);
    return true;
}

/* The first that is held; false: none is. */
static bool first_held(struct colo_fifo *where, struct colo_held *head, struct colo_wire_frame *frame)
{
    if (!colo_fifo_len(where))
        return false;
    memcpy(head, colo_fifo_front(where), sizeof *head);
    *frame = (struct colo_wire_frame){.data = where->data + where->from + sizeof *head,
                                      .len = head->len,
                                      .vnet_len = head->vnet_len,
                                      .nic = head->nic};
    return true;
}

static void let_go(struct colo_fifo *where, const struct colo_held *head)
{
    colo_fifo_take(where, sizeof *head + head->len);
}

/* The secondary VM's frame, of the epoch that its rewriter is in. */
static void translate_out(struct colo_path *p, const struct colo_wire_frame *frame)
{
    if (colo_rewriter_out(p->rewriter, frame->nic, frame->data, frame->len, frame->vnet_len, p->now) ==
        COLO_REWRITE_DROP)
        return;
    if (p->taken_over)
        send(p, &p->client[frame->nic], frame);
    else if (p->session && push(p, COLO_LINK_OUTPUT, frame))
        p->counters.output++;
}

void colo_route_from_vm(void *ctx, const struct colo_wire_frame *frame)
{
    struct colo_path *p = ctx;

    colo_neighbours_learn(p->neighbours, frame->nic, frame->data + frame->vnet_len, frame->len - frame->vnet_len);
    if (p->config.role == COLO_PATH_PRIMARY)
        send(p, &p->comparator[0], frame);
    else if (p->taken_over)
        translate_out(p, frame);
    else
        (void)hold(p, &p->held, COLO_LINK_OUTPUT, frame);
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

/* A TCP segment with SYN: the other side's rewriter needs its number before the client can have answered it. */
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
    if (p->session && has_syn(frame) && push(p, COLO_LINK_LEARN, frame))
        p->counters.learned++;
    send(p, &p->client[frame->nic], frame);
}

bool colo_route_may_read_released(const struct colo_path *p)
{
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

/* -------------------------------------------------------------------- epochs */

void colo_route_mark(struct colo_path *p, enum colo_mark kind, uint64_t value)
{
    uint8_t data[MARK_LEN];
    struct colo_link_record record = {.type = COLO_LINK_MARK, .len = sizeof data, .data = data};

    data[0] = (uint8_t)kind;
    colo_store32(data + 1, (uint32_t)(value >> 32));
    colo_store32(data + 5, (uint32_t)value);
    /* A mark that is missing is found by the primary: its next commit has none, and it gives a new token. */
    if (colo_link_push(p->link, &record) < 0)
        left_out(p, COLO_PLACE_LINK, 0);
}

/* PRIMARY: a frame of the secondary's whose epoch is the present one. */
static void compare(struct colo_path *p, const struct colo_wire_frame *frame)
{
    if (send_or_leave(p, &p->comparator[1], frame, COLO_PLACE_SECONDARY_IN))
        p->counters.output++;
}

static void held_of_primary(struct colo_path *p)
{
    struct colo_wire_frame frame;
    struct colo_held head;

    while (first_held(&p->held, &head, &frame) && head.epoch <= p->commits) {
        if (head.epoch < p->commits)
            p->counters.stale++;
        else
            compare(p, &frame);
        let_go(&p->held, &head);
    }
}

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
        held_of_primary(p);
        return;
    }
    if (!vm_is_settled(p))
        return;
    for (; first_held(&p->inbound, &head, &frame); let_go(&p->inbound, &head))
        to_vm(p, head.type, &frame);
    for (; first_held(&p->held, &head, &frame); let_go(&p->held, &head))
        translate_out(p, &frame);
}

void colo_route_forget(struct colo_path *p, int64_t before)
{
    struct colo_wire_frame frame;
    struct colo_held head;

    while (first_held(&p->held, &head, &frame) && head.time < before) {
        p->counters.stale++;
        let_go(&p->held, &head);
    }
}

void colo_route_forget_inbound(struct colo_path *p, int64_t before)
{
    struct colo_wire_frame frame;
    struct colo_held head;

    while (first_held(&p->inbound, &head, &frame) && head.time < before)
        let_go(&p->inbound, &head);
}

/* For a VM that waits the newest count: the oldest make room. */
static void hold_inbound(struct colo_path *p, enum colo_link_type type, const struct colo_wire_frame *frame)
{
    struct colo_wire_frame oldest;
    struct colo_held head;

    while (p->waiting && !colo_fifo_has_room(&p->inbound, sizeof head + frame->len) &&
           first_held(&p->inbound, &head, &oldest))
        let_go(&p->inbound, &head);
    (void)hold(p, &p->inbound, type, frame);
}

/* PRIMARY */
static void take_output(struct colo_path *p, const struct colo_wire_frame *frame)
{
    if (p->marks < 0 || p->marks < p->commits)
        p->counters.stale++;
    else if (p->marks == p->commits && !colo_fifo_len(&p->held))
        compare(p, frame);
    else
        (void)hold(p, &p->held, COLO_LINK_OUTPUT, frame);
}

static bool take_mark(struct colo_path *p, const struct colo_link_record *record, const char **why)
{
    uint64_t value;

    if (record->len != MARK_LEN || record->data[0] > COLO_MARK_PRIMARY_STOP ||
        (p->config.role == COLO_PATH_PRIMARY) == (record->data[0] == COLO_MARK_PRIMARY_STOP)) {
        *why = "a mark that makes no sense";
        return false;
    }
    if (record->data[0] == COLO_MARK_PRIMARY_STOP) {
        if (p->waiting)
            colo_route_forget_inbound(p, p->now - stop_overlap);
        return true;
    }
    value = (uint64_t)colo_load32(record->data + 1) << 32 | colo_load32(record->data + 5);
    if (record->data[0] == COLO_MARK_SYNC) {
        if (!p->token || value != p->token) /* of an earlier question */
            return true;
        p->token = 0;
        p->marks = 0;
        p->commits = -1;
        colo_path_tell(p, COLO_PATH_SYNCED, COLO_PLACE_LINK, 0, 0, "");
    } else if (p->marks >= 0) {
        p->marks++;
        colo_path_tell(p, COLO_PATH_EPOCH, COLO_PLACE_LINK, 0, 0, "");
        colo_route_held(p);
    }
    return true;
}

/* ------------------------------------------------------------- from the link */

static bool take_control(struct colo_path *p, const struct colo_link_record *record, const char **why)
{
    uint8_t *room;

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
        return take_mark(p, record, why);
    case COLO_LINK_OUTPUT:
    case COLO_LINK_MIRROR:
    case COLO_LINK_LEARN:
        if (primary != (record->type == COLO_LINK_OUTPUT))
            break;
        if (record->nic >= p->config.nics || record->len < record->vnet_len + 14u) {
            *why = "a frame of no NIC, or too short to be one";
            return false;
        }
        if (primary)
            take_output(p, &frame);
        else if (p->taken_over)
            p->counters.stale++;
        else if (vm_is_settled(p) && !colo_fifo_len(&p->inbound))
            to_vm(p, (enum colo_link_type)record->type, &frame);
        else
            hold_inbound(p, (enum colo_link_type)record->type, &frame);
        return true;
    default:
        break;
    }
    *why = "a record that its role does not send";
    return false;
}
