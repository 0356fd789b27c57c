/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Why no stale frame of the secondary's reaches the comparator (R3). Let the secondary's epochs be numbered from the
 * SYNC on, and the primary's from its accept.
 *
 * (1) The stream is in order, across connections too, and a restart of it forgets both counts. A frame behind the n-th
 *     EPOCH mark that came is of epoch n or, if a mark is missing for want of room, of a later one.
 * (2) There is no mark too many. The secondary's VM begins an epoch only within a checkpoint of the primary's, between
 *     its STOP and RESUME; so a mark that would bring the count beyond commits + 1, or that came before the STOP of
 *     which the primary's control plane hears next (it may hear late), has no checkpoint to explain it: somebody has
 *     stopped and continued the secondary's VM by hand. Then both counts are void until a new token is answered, and
 *     what was held is thrown away before any commit could call it new. accept sees that both begin in the same epoch.
 * (3) A frame is handed to the comparator when its number is the count of commits. By (1) and (2) it is of that epoch
 *     then or, for want of a mark, of the next one: of the copy of a state that the held frames led to. Not stale.
 * (4) It is judged later than it is handed over. At STOP nothing more is handed over, what lies here unwritten is
 *     thrown away, and what lies in the socket is read by the engine's drain before it ends the epoch. (Of a frame that a full
 *     socket took half of, the rest follows while the VM stands: the engine drops it by its time of reading.) commit is
 *     called when the engine has been told, and only then frames of the new epoch follow.
 *
 * One case is left. The secondary's VM is stopped and continued by hand, its control plane could not find out by whom,
 * the mark comes while the primary's VM stands for a checkpoint of its own, and that one's mark comes after the commit:
 * until it does, the one too many stands for it.
 */
#include "marks.h"

#include "load.h"
#include "route.h"

enum { MARK_LEN = 9 }; /* enum colo_mark, then a number */

/* What came so shortly before the primary's STOP may still wait in a socket of its VMM: better twice than never. */
static const int64_t STOP_OVERLAP = 20 * 1000000;

void colo_marks_put(struct colo_path *p, enum colo_mark kind, uint64_t value)
{
    uint8_t data[MARK_LEN];
    struct colo_link_record record = {.type = COLO_LINK_MARK, .len = sizeof data, .data = data};

    data[0] = (uint8_t)kind;
    colo_store32(data + 1, (uint32_t)(value >> 32));
    colo_store32(data + 5, (uint32_t)value);
    /* A mark that is missing is found by the primary: its next commit has none, and it gives a new token. */
    if (colo_link_push(p->link, &record) < 0)
        colo_route_left_out(p, COLO_PLACE_LINK, 0);
}

/* PRIMARY: now, for it is of the present epoch, which goes on; and there is room. */
static bool may_compare(const struct colo_path *p, int64_t epoch, uint32_t len)
{
    return epoch == p->commits && !p->standing && colo_wire_has_room(&p->comparator[1], len);
}

/* PRIMARY: a frame of the secondary's whose epoch is the present one. */
static void compare(struct colo_path *p, const struct colo_wire_frame *frame)
{
    colo_route_send(p, &p->comparator[1], frame);
    p->counters.output++;
}

void colo_marks_held(struct colo_path *p)
{
    struct colo_wire_frame frame;
    struct colo_held head;

    while (colo_held_first(&p->held, &head, &frame)) {
        if (head.epoch < p->commits)
            p->counters.stale++;
        else if (may_compare(p, head.epoch, frame.len))
            compare(p, &frame);
        else
            return;
        colo_held_let_go(&p->held, &head);
    }
}

void colo_marks_output(struct colo_path *p, const struct colo_wire_frame *frame)
{
    if (p->marks < 0 || p->marks < p->commits)
        p->counters.stale++;
    else if (may_compare(p, p->marks, frame->len) && !colo_fifo_len(&p->held))
        compare(p, frame);
    else
        colo_route_hold(p, &p->held, COLO_LINK_OUTPUT, frame);
}

void colo_marks_forget(struct colo_path *p)
{
    p->marks = p->commits = -1;
    p->early_mark = 0;
    if (p->config.role == COLO_PATH_PRIMARY)
        colo_fifo_fini(&p->held);
}

static void miscounted(struct colo_path *p)
{
    p->counters.miscounted++;
    colo_marks_forget(p);
    colo_path_tell(p, COLO_PATH_MISCOUNTED, COLO_PLACE_LINK, 0, 0, "");
}

void colo_marks_explained(struct colo_path *p, int64_t stopped)
{
    if (p->early_mark && p->early_mark < stopped)
        miscounted(p);
    p->early_mark = 0;
}

bool colo_marks_take(struct colo_path *p, const struct colo_link_record *record, const char **why)
{
    uint64_t value;

    if (record->len != MARK_LEN || record->data[0] > COLO_MARK_PRIMARY_STOP ||
        (p->config.role == COLO_PATH_PRIMARY) == (record->data[0] == COLO_MARK_PRIMARY_STOP)) {
        *why = "a mark that makes no sense";
        return false;
    }
    if (record->data[0] == COLO_MARK_PRIMARY_STOP) {
        if (p->waiting)
            colo_route_forget_inbound(p, p->now - STOP_OVERLAP);
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
    } else if (p->commits >= 0 && (p->early_mark || p->marks > p->commits)) {
        miscounted(p);
    } else {
        if (p->commits >= 0 && p->marks == p->commits && !p->standing)
            p->early_mark = p->now;
        if (p->marks >= 0)
            p->marks++;
        /* Told in any case: the other control plane has done what this one has asked it for. */
        colo_path_tell(p, COLO_PATH_EPOCH, COLO_PLACE_LINK, 0, 0, "");
        colo_marks_held(p);
    }
    return true;
}
