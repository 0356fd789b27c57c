/* SPDX-License-Identifier: Apache-2.0 */
#include "turn.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "route.h"

enum {
    EVENTS = 64,
    LINK_SHARE = 1 << 20,  /* bytes of the link a turn, each way */
    DRAIN_READS = 256,
    TAG_WAKE = 250,        /* places beyond COLO_PLACE_COUNT */
    TAG_QMP = 251,
    TAG_NEAR = 252,
};

struct ready {
    bool client[COLO_PATH_NICS], vm[COLO_PATH_NICS], comparator[3];
    bool link;
};

void colo_path_wake(struct colo_path *p)
{
    uint64_t one = 1;

    if (write(p->wake_fd, &one, sizeof one) < 0) {
        /* The counter is full: it is awake. */
    }
}

/* ------------------------------------------------------------------- the link */

void colo_path_drop_link(struct colo_path *p, const char *why)
{
    char text[sizeof ((struct colo_path_event *)0)->text];

    if (!p->transport)
        return;
    snprintf(text, sizeof text, "%s", why ? why : ""); /* it may be the transport's own */
    colo_link_disconnect(p->link);
    if (p->transport_watched)
        epoll_ctl(p->epoll_fd, EPOLL_CTL_DEL, colo_transport_fd(p->transport), NULL);
    colo_transport_destroy(p->transport);
    p->transport = NULL;
    p->transport_blocked = false;
    p->transport_watched = 0;
    if (why)
        colo_path_tell(p, COLO_PATH_LOST, COLO_PLACE_LINK, 0, 0, text);
}

static bool take_records(struct colo_path *p)
{
    struct colo_link_record record;
    const char *why = NULL;
    int got;

    while ((got = colo_link_next(p->link, &record)) > 0)
        if (!colo_route_record(p, &record, &why))
            break;
    if (got < 0 && !why)
        why = colo_link_fault(p->link) ? colo_link_fault(p->link) : "it broke the protocol";
    if (why) {
        p->session = false;
        colo_path_drop_link(p, why);
    }
    return !why;
}

/* Returns whether more may be there that no poll of the socket tells of. */
static bool read_link(struct colo_path *p)
{
    for (size_t share = 0; p->transport && share < LINK_SHARE;) {
        uint8_t *room;
        size_t size = colo_link_input(p->link, &room);
        long n = size ? colo_transport_read(p->transport, room, size) : 0;

        if (n == COLO_TRANSPORT_READ || n == COLO_TRANSPORT_WRITE)
            return false;
        if (n <= 0) {
            colo_path_drop_link(p, n == COLO_TRANSPORT_CLOSED ? "closed by the peer"
                                   : n < 0                    ? colo_transport_error(p->transport)
                                                              : "no memory for what it sends");
            return false;
        }
        colo_link_got(p->link, (size_t)n, p->now);
        share += (size_t)n;
        if (!take_records(p))
            return false;
    }
    return p->transport != NULL;
}

static void write_link(struct colo_path *p)
{
    const uint8_t *data;
    size_t len;

    for (size_t share = 0; p->transport && share < LINK_SHARE && (len = colo_link_output(p->link, &data, p->now));) {
        long n = colo_transport_write(p->transport, data, len);

        p->transport_blocked = n == COLO_TRANSPORT_WRITE;
        if (n == COLO_TRANSPORT_READ || n == COLO_TRANSPORT_WRITE)
            return;
        if (n < 0) {
            colo_path_drop_link(p, n == COLO_TRANSPORT_CLOSED ? "closed by the peer"
                                                              : colo_transport_error(p->transport));
            return;
        }
        colo_link_wrote(p->link, (size_t)n);
        share += (size_t)n;
    }
    p->transport_blocked = p->transport && colo_link_output(p->link, &data, p->now);
}

/* ------------------------------------------------------------------- the wires */

/*
 * By hand, for closing alone leaves it in epoll as long as somebody else holds the same file open, a duplicate of a
 * TAP's descriptor for one; and then epoll tells of its end without end.
 */
void colo_path_close_wire(struct colo_path *p, struct colo_wire *w)
{
    for (int i = 0; i < w->count; i++)
        if (w->watched[i])
            epoll_ctl(p->epoll_fd, EPOLL_CTL_DEL, w->fds[i], NULL);
    colo_wire_close(w);
}

static void lose(struct colo_path *p, struct colo_wire *w, enum colo_path_place place, int error)
{
    colo_path_close_wire(p, w);
    colo_path_tell(p, COLO_PATH_LOST, place, w->nic, error, "");
}

static void read_wire(struct colo_path *p, struct colo_wire *w, enum colo_path_place place, colo_wire_sink *sink,
                      colo_wire_more *more)
{
    int error = 0;

    if (w->count && colo_wire_read(w, sink, more, p, &error) != COLO_WIRE_OK)
        lose(p, w, place, error);
}

static bool room_for_client(void *ctx, int nic)
{
    return colo_route_may_read_client(ctx, nic);
}

static bool room_for_vm(void *ctx, int nic)
{
    return colo_route_may_read_vm(ctx, nic);
}

static bool room_for_released(void *ctx, int nic)
{
    (void)nic;
    return colo_route_may_read_released(ctx);
}

static void look_at_gate(struct colo_path *p)
{
    int error;

    if (p->gate.qmp_fd < 0 && p->gate.near_fd < 0)
        return;
    if (colo_gate_look(&p->gate, &error))
        colo_path_tell(p, COLO_PATH_GATE_LOST, COLO_PLACE_VM, 0, error, "");
    if (colo_gate_pump(&p->gate, &error))
        colo_path_tell(p, COLO_PATH_GATE_LOST, COLO_PLACE_VM, 0, error, "");
}

static void flush_wire(struct colo_path *p, struct colo_wire *w, enum colo_path_place place)
{
    int error = colo_wire_flush(w);

    if (error)
        lose(p, w, place, error);
}

void colo_path_flush(struct colo_path *p)
{
    for (int nic = 0; nic < p->config.nics; nic++) {
        flush_wire(p, &p->client[nic], COLO_PLACE_CLIENT);
        flush_wire(p, &p->vm[nic], COLO_PLACE_VM);
    }
    for (int i = 0; i < 3; i++)
        flush_wire(p, &p->comparator[i], (enum colo_path_place)(COLO_PLACE_PRIMARY_IN + i));
    if (p->transport)
        write_link(p);
    colo_route_link_room(p);
}

void colo_path_drain_vm(struct colo_path *p)
{
    if (p->config.role == COLO_PATH_PRIMARY) {
        flush_wire(p, &p->comparator[0], COLO_PLACE_PRIMARY_IN);
        flush_wire(p, &p->comparator[1], COLO_PLACE_SECONDARY_IN);
    }
    for (int nic = 0; nic < p->config.nics; nic++) {
        struct colo_wire *w = &p->vm[nic];

        for (int reads = 0; reads < DRAIN_READS && w->count && colo_route_may_read_vm(p, nic); reads++) {
            const uint64_t before = w->counters.bytes_in;

            read_wire(p, w, COLO_PLACE_VM, colo_route_from_vm, room_for_vm);
            if (w->counters.bytes_in == before)
                break;
            flush_wire(p, &p->comparator[0], COLO_PLACE_PRIMARY_IN);
        }
    }
}

/* -------------------------------------------------------------- between turns */

static uint64_t tag(int place, int nic, int queue)
{
    return (uint64_t)place << 16 | (uint64_t)nic << 8 | (uint64_t)queue;
}

static void watch(struct colo_path *p, int fd, uint64_t data, uint32_t *watched, uint32_t events)
{
    struct epoll_event e = {.events = events, .data = {.u64 = data}};

    if (fd < 0) /* it was closed, and has left epoll so */
        *watched = events = 0;
    if (*watched == events)
        return;
    if (epoll_ctl(p->epoll_fd, !*watched ? EPOLL_CTL_ADD : events ? EPOLL_CTL_MOD : EPOLL_CTL_DEL, fd, &e) < 0 &&
        !p->error)
        p->error = errno;
    *watched = events;
}

static void arm_wire(struct colo_path *p, struct colo_wire *w, int place, bool may_read)
{
    if (w->count && !may_read && !w->paused)
        w->counters.pauses++;
    w->paused = !may_read;
    p->hurry |= may_read && w->waits;
    for (int i = 0; i < w->count; i++)
        watch(p, w->fds[i], tag(place, w->nic, i), &w->watched[i],
              (may_read ? (uint32_t)EPOLLIN : 0) | (w->blocked && !i ? (uint32_t)EPOLLOUT : 0));
}

static void arm(struct colo_path *p)
{
    const bool reading = p->phase == COLO_PHASE_RUNNING;

    p->hurry = false;

    for (int nic = 0; nic < p->config.nics; nic++) {
        arm_wire(p, &p->client[nic], COLO_PLACE_CLIENT, reading && colo_route_may_read_client(p, nic));
        arm_wire(p, &p->vm[nic], COLO_PLACE_VM, reading && colo_route_may_read_vm(p, nic));
    }
    arm_wire(p, &p->comparator[0], COLO_PLACE_PRIMARY_IN, true);
    arm_wire(p, &p->comparator[1], COLO_PLACE_SECONDARY_IN, true);
    arm_wire(p, &p->comparator[2], COLO_PLACE_OUTDEV, colo_route_may_read_released(p));
    if (p->transport)
        watch(p, colo_transport_fd(p->transport), tag(COLO_PLACE_LINK, 0, 0), &p->transport_watched,
              (uint32_t)EPOLLIN | (p->transport_blocked ? (uint32_t)EPOLLOUT : 0));
    watch(p, p->gate.qmp_fd, tag(TAG_QMP, 0, 0), &p->gate_watched[0], colo_gate_qmp_interest(&p->gate));
    watch(p, p->gate.near_fd, tag(TAG_NEAR, 0, 0), &p->gate_watched[1], colo_gate_near_interest(&p->gate));
}

static int timeout_ms(const struct colo_path *p, bool again)
{
    int64_t due = colo_link_deadline(p->link), left;

    if (again || p->hurry)
        return 0;
    if (!p->transport)
        due = INT64_MAX;
    if (p->full_since && !p->overrun && p->full_since + p->config.stall_timeout < due)
        due = p->full_since + p->config.stall_timeout;
    if (p->phase == COLO_PHASE_ENDING && p->end_by < due)
        due = p->end_by;
    if (due == INT64_MAX)
        return -1;
    left = due - p->now;
    if (left <= 0)
        return 0;
    return left / 1000000 >= INT_MAX ? INT_MAX : (int)((left + 999999) / 1000000);
}

static void note(struct ready *ready, uint64_t data)
{
    const unsigned place = (unsigned)(data >> 16), nic = data >> 8 & 0xff;

    switch (place) {
    case COLO_PLACE_CLIENT:
        ready->client[nic] = true;
        break;
    case COLO_PLACE_VM:
        ready->vm[nic] = true;
        break;
    case COLO_PLACE_PRIMARY_IN:
    case COLO_PLACE_SECONDARY_IN:
    case COLO_PLACE_OUTDEV:
        ready->comparator[place - COLO_PLACE_PRIMARY_IN] = true;
        break;
    case COLO_PLACE_LINK:
        ready->link = true;
        break;
    default: /* the gate is looked at in each turn, and to be awake is enough */
        break;
    }
}

/* Returns whether the link may have more that epoll does not know of. */
static bool turn(struct colo_path *p, const struct ready *ready)
{
    bool again = false, gate_was_open = colo_gate_is_open(&p->gate);

    if (p->transport && (ready->link || colo_transport_pending(p->transport)))
        again = read_link(p);
    for (int nic = 0; nic < p->config.nics; nic++)
        if ((ready->vm[nic] || p->vm[nic].waits) && colo_route_may_read_vm(p, nic))
            read_wire(p, &p->vm[nic], COLO_PLACE_VM, colo_route_from_vm, room_for_vm);
    look_at_gate(p);
    if (gate_was_open && !colo_gate_is_open(&p->gate))
        p->counters.gate_closed++;
    colo_route_held(p);
    if ((ready->comparator[2] || p->comparator[2].waits) && colo_route_may_read_released(p))
        read_wire(p, &p->comparator[2], COLO_PLACE_OUTDEV, colo_route_released, room_for_released);
    for (int i = 0; i < 2; i++)
        if (ready->comparator[i])
            read_wire(p, &p->comparator[i], (enum colo_path_place)(COLO_PLACE_PRIMARY_IN + i), colo_route_nothing,
                      NULL);
    for (int nic = 0; nic < p->config.nics; nic++)
        if ((ready->client[nic] || p->client[nic].waits) && colo_route_may_read_client(p, nic))
            read_wire(p, &p->client[nic], COLO_PLACE_CLIENT, colo_route_from_client, room_for_client);
    if (p->transport && colo_link_tick(p->link, p->now))
        colo_path_drop_link(p, "it has been silent too long");
    colo_path_flush(p);
    if (p->rewriter) {
        colo_rewriter_counters_of(p->rewriter, &p->counters.rewriter);
        if (p->counters.rewriter.refused != p->flows_refused && !p->taken_over)
            colo_path_tell(p, COLO_PATH_FLOWS, COLO_PLACE_VM, 0, 0, "");
        p->flows_refused = p->counters.rewriter.refused;
    }
    return again;
}

static bool nothing_waits(const struct colo_path *p)
{
    for (int nic = 0; nic < p->config.nics; nic++)
        if (colo_fifo_len(&p->client[nic].out) || colo_fifo_len(&p->vm[nic].out))
            return false;
    return true;
}

/* @quiet: all that the comparator had released when the end was asked for is here. */
static bool over(struct colo_path *p, bool quiet)
{
    return p->error || (p->phase == COLO_PHASE_ENDING && ((quiet && nothing_waits(p)) || p->now >= p->end_by));
}

void colo_path_run(struct colo_path *p)
{
    const struct colo_wire *released = &p->comparator[2];
    struct epoll_event events[EVENTS];
    bool again = false, quiet = false, ending, could, moved;

    colo_path_lock(p);
    while (!over(p, quiet)) {
        const uint64_t before = released->counters.bytes_in;
        struct ready ready = {0};
        int n, wait;
        uint64_t count;

        arm(p);
        wait = timeout_ms(p, again);
        colo_path_unlock(p);
        n = epoll_wait(p->epoll_fd, events, EVENTS, wait);
        colo_path_lock(p);
        if (n < 0 && errno != EINTR)
            p->error = errno;
        for (int i = 0; i < n; i++)
            if (events[i].data.u64 == tag(TAG_WAKE, 0, 0))
                (void)!read(p->wake_fd, &count, sizeof count);
            else
                note(&ready, events[i].data.u64);
        p->now = colo_path_now();
        p->counters.wakeups++;
        ending = p->phase == COLO_PHASE_ENDING;
        could = colo_route_may_read_released(p);
        ready.comparator[2] |= ending; /* epoll was not asked while there was no room */
        again = turn(p, &ready);
        moved = released->counters.bytes_in != before;
        quiet = ending && could && !moved && !released->waits; /* it was read, and nothing was there */
        again |= ending && (moved || could != colo_route_may_read_released(p));
    }
    if (p->error)
        colo_path_tell(p, COLO_PATH_FATAL, COLO_PLACE_COUNT, 0, p->error, "");
    colo_path_unlock(p);
}
