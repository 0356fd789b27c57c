/* SPDX-License-Identifier: Apache-2.0 */
#include "loop.h"

#include <errno.h>
#include <limits.h>
#include <sys/epoll.h>
#include <unistd.h>

int colo_loop_init(struct colo_loop *l, const struct colo_engine_config *config, struct colo_command_queue *commands,
                   struct colo_report *report, struct colo_ports *ports)
{
    int error;

    l->commands = commands;
    l->report = report;
    l->ports = ports;
    colo_gate_init(&l->gate);
    error = colo_judge_init(&l->judge, config, report);
    l->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (!error && l->epoll_fd < 0)
        error = COLO_ERR_SYSTEM;
    if (error)
        colo_loop_fini(l);
    return error;
}

void colo_loop_fini(struct colo_loop *l)
{
    colo_gate_detach(&l->gate);
    colo_judge_fini(&l->judge);
    if (l->epoll_fd >= 0)
        close(l->epoll_fd);
    l->epoll_fd = -1;
}

/* ------------------------------------------------------------------- peers */

static int fd_of(const struct colo_loop *l, int port)
{
    return port == COLO_PORT_OUTDEV ? l->judge.outlet.fd : l->judge.inputs[port].fd;
}

static void attach(struct colo_loop *l, const struct colo_command *c)
{
    struct colo_engine_event e = {.kind = COLO_ENGINE_ATTACHED, .port = c->port, .time = colo_clock_now()};

    if (c->port == COLO_PORT_OUTDEV)
        colo_outlet_attach(&l->judge.outlet, c->fd);
    else
        colo_input_attach(&l->judge.inputs[c->port], c->fd);
    l->claims[c->port] = c->generation;
    l->counters.attached[c->port]++;
    colo_report_stage(l->report, &e);
}

static void detach(struct colo_loop *l, int port)
{
    struct colo_watch *w = &l->watches[port];

    /* By hand: closing alone leaves it in epoll if somebody else holds the same socket open. */
    if (w->events && w->generation == l->claims[port])
        epoll_ctl(l->epoll_fd, EPOLL_CTL_DEL, w->fd, NULL);
    w->events = 0;
    if (port == COLO_PORT_OUTDEV)
        colo_outlet_detach(&l->judge.outlet);
    else
        colo_input_detach(&l->judge.inputs[port]);
}

/* The peer is gone by itself: @error is 0, an errno, or the fault in @framing (NULL for outdev). */
static void lose(struct colo_loop *l, int port, int error, const struct colo_framing *framing)
{
    struct colo_engine_event e = {
        .kind = COLO_ENGINE_LOST, .port = (uint8_t)port, .error = error, .time = colo_clock_now()};

    /* A connection that failed with an errno cut its last frame for that reason. */
    if (framing && framing->fault && (framing->fault != COLO_FAULT_TRUNCATED || !error)) {
        e.error = framing->fault;
        e.bad_value = framing->bad_value;
        e.position = framing->bad_at;
        l->counters.faults[port]++;
    }
    colo_ports_free(l->ports, port, l->claims[port]);
    detach(l, port);
    colo_report_stage(l->report, &e);
}

/* A framing fault that turned up when frames were cut. */
static void lose_faulty(struct colo_loop *l)
{
    for (int side = 0; side < 2; side++) {
        struct colo_input *in = &l->judge.inputs[side];

        if (in->fd >= 0 && in->framing.fault && !in->ended) {
            struct colo_framing framing = in->framing;

            lose(l, side, 0, &framing);
        }
    }
}

static void lose_gate(struct colo_loop *l, int error)
{
    struct colo_engine_event e = {.kind = COLO_ENGINE_GATE_LOST, .error = error, .time = colo_clock_now()};

    colo_report_stage(l->report, &e);
}

/* ---------------------------------------------------------------- commands */

static void obey(struct colo_loop *l, const struct colo_command *c)
{
    switch (c->kind) {
    case COLO_COMMAND_ATTACH:
        attach(l, c);
        break;
    case COLO_COMMAND_DETACH:
        detach(l, c->port);
        break;
    case COLO_COMMAND_GATE_ATTACH:
        l->gate_generation++;
        if (colo_gate_attach(&l->gate, c->fd, c->fd2) < 0) {
            close(c->fd);
            close(c->fd2);
            l->judge.error = ENOMEM;
        }
        break;
    case COLO_COMMAND_GATE_DONE:
        colo_gate_done(&l->gate, (uint64_t)c->value);
        break;
    case COLO_COMMAND_GATE_DETACH:
        colo_gate_detach(&l->gate);
        break;
    case COLO_COMMAND_STOP:
        colo_judge_stop(&l->judge);
        break;
    case COLO_COMMAND_COMMIT:
        colo_judge_commit(&l->judge, c->value);
        break;
    case COLO_COMMAND_ABORT:
        colo_judge_abort(&l->judge);
        break;
    case COLO_COMMAND_ALONE:
        colo_judge_alone(&l->judge);
        break;
    case COLO_COMMAND_END:
        l->ending = true;
        l->end_by = colo_clock_now() + c->value;
        break;
    }
}

static void obey_all(struct colo_loop *l, uint32_t *ready)
{
    struct colo_command c;

    while (!l->judge.error && colo_command_pop(l->commands, &c)) {
        obey(l, &c);
        if (c.kind == COLO_COMMAND_ATTACH) /* it may have sent something already */
            ready[c.port] = EPOLLIN;
        /* A peer that was found faulty must be gone before the next one is attached. */
        lose_faulty(l);
    }
}

/* ----------------------------------------------------------------- wake-up */

static bool may_read(struct colo_loop *l, int side)
{
    return !l->ending && colo_gate_is_open(&l->gate) && colo_judge_may_read(&l->judge, side);
}

/*
 * How much to read of an input: nothing of a side that leads while the other can be read, and of that one no more than
 * brings it up. Frames that come in step leave as pairs; what is read ahead could only be held.
 */
static size_t turn_of(struct colo_loop *l, const uint32_t *ready, int side)
{
    int64_t lead = colo_judge_lead(&l->judge, side);

    if (!ready[side] || !may_read(l, side))
        return 0;
    if (lead >= COLO_JUDGE_STEP && ready[!side] && may_read(l, !side))
        return 0;
    return lead <= -COLO_JUDGE_STEP && ready[!side] ? (size_t)-lead : SIZE_MAX;
}

/* Reads each input once; returns the time, read after the bytes. */
static int64_t read_inputs(struct colo_loop *l, const uint32_t *ready)
{
    size_t most[2] = {turn_of(l, ready, 0), turn_of(l, ready, 1)};
    int64_t now;

    for (int side = 0; side < 2; side++) {
        int error;

        if (most[side] && !colo_judge_read(&l->judge, side, most[side], &error)) {
            struct colo_framing verdict = colo_input_verdict(&l->judge.inputs[side]);

            lose(l, side, error, &verdict);
        }
    }
    now = colo_clock_now();
    for (int side = 0; side < 2; side++)
        if (most[side])
            l->judge.inputs[side].time = now;
    return now;
}

static void serve_gate(struct colo_loop *l)
{
    int error;

    if (l->gate.qmp_fd < 0 && l->gate.near_fd < 0)
        return;
    if (colo_gate_look(&l->gate, &error))
        lose_gate(l, error);
    if (colo_gate_pump(&l->gate, &error))
        lose_gate(l, error);
}

static void serve_outdev(struct colo_loop *l, uint32_t ready)
{
    struct colo_outlet *out = &l->judge.outlet;
    int error;

    if (out->fd >= 0 && ready & ~(uint32_t)EPOLLOUT && !colo_outlet_listen(out, &error))
        lose(l, COLO_PORT_OUTDEV, error, NULL);
    /* A full socket is left alone until epoll says otherwise. */
    if ((!l->paused[COLO_PORT_OUTDEV] || ready & EPOLLOUT) && colo_outlet_flush(out) < 0)
        lose(l, COLO_PORT_OUTDEV, errno, NULL);
}

/* --------------------------------------------------------- between wake-ups */

static void watch(struct colo_loop *l, enum colo_loop_tag tag, int fd, uint64_t generation, uint32_t events)
{
    struct colo_watch *w = &l->watches[tag];
    struct epoll_event e = {.events = events, .data = {.u32 = tag}};
    int op;

    if (w->fd != fd || w->generation != generation) /* the old one left epoll when it was closed */
        *w = (struct colo_watch){.fd = fd, .generation = generation};
    if (w->events == events)
        return;
    op = !w->events ? EPOLL_CTL_ADD : events ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;
    if (epoll_ctl(l->epoll_fd, op, fd, &e) < 0 && !l->judge.error)
        l->judge.error = errno;
    w->events = events;
}

/* An input that may not be read leaves epoll: a closed peer would be reported over and over. */
static void arm_input(struct colo_loop *l, int side)
{
    const struct colo_input *in = &l->judge.inputs[side];
    bool readable = may_read(l, side), paused;

    watch(l, (enum colo_loop_tag)side, in->fd, l->claims[side], readable ? (uint32_t)EPOLLIN : 0);
    paused = in->fd >= 0 && !readable && !l->ending && colo_gate_is_open(&l->gate);
    if (paused && !l->paused[side])
        l->counters.pauses[side]++;
    if (paused && !colo_input_waits(in) && !l->judge.outlet.full)
        colo_judge_out_of_slabs(&l->judge, colo_clock_now());
    l->paused[side] = paused;
}

static void arm(struct colo_loop *l)
{
    const struct colo_outlet *out = &l->judge.outlet;
    bool held = colo_outlet_is_held(out); /* then a writable socket is no reason to wake up */
    bool blocked = out->fd >= 0 && out->queue.bytes && !held;
    bool at_gate = !colo_gate_is_open(&l->gate) &&
                   (colo_input_waits(&l->judge.inputs[0]) || colo_input_waits(&l->judge.inputs[1]));

    watch(l, COLO_TAG_COMMANDS, l->commands->fd, 0, EPOLLIN);
    arm_input(l, COLO_PRIMARY);
    arm_input(l, COLO_SECONDARY);
    watch(l, COLO_TAG_OUTDEV, out->fd, l->claims[COLO_PORT_OUTDEV],
          out->fd < 0 ? 0 : (uint32_t)EPOLLIN | (blocked ? (uint32_t)EPOLLOUT : 0));
    watch(l, COLO_TAG_QMP, l->gate.qmp_fd, l->gate_generation, colo_gate_qmp_interest(&l->gate));
    watch(l, COLO_TAG_NEAR, l->gate.near_fd, l->gate_generation, colo_gate_near_interest(&l->gate));
    if (blocked && !l->paused[COLO_PORT_OUTDEV])
        l->counters.pauses[COLO_PORT_OUTDEV]++;
    l->paused[COLO_PORT_OUTDEV] = blocked;
    if (at_gate && !l->frames_at_gate)
        l->counters.gate_closed++;
    l->frames_at_gate = at_gate;
    if (held && !l->held)
        l->counters.lease_waits++;
    l->held = held;
}

static void publish_recording(struct colo_loop *l)
{
    struct colo_recorder *r = l->judge.recorder;
    struct colo_engine_event e = {.kind = COLO_ENGINE_DUMPED};

    if (!r)
        return;
    colo_recorder_publish(r);
    while (colo_recorder_dumped(r, &e.dump)) {
        e.error = e.dump.error;
        e.time = colo_clock_now();
        colo_report_stage(l->report, &e);
    }
    colo_recorder_counters(r, &l->counters);
    if (!l->counters.record_error || r->told)
        return;
    r->told = true;
    e = (struct colo_engine_event){.kind = COLO_ENGINE_RECORD_ENDED};
    e.error = l->counters.record_error;
    e.time = colo_clock_now();
    colo_report_stage(l->report, &e);
}

static void publish(struct colo_loop *l)
{
    struct colo_engine_counters *n = &l->counters;
    const struct colo_judge *j = &l->judge;

    colo_comparator_counters(j->comparator, &n->comparator);
    n->bytes_read[COLO_PORT_PRIMARY_IN] = j->bytes_read[COLO_PRIMARY];
    n->bytes_read[COLO_PORT_SECONDARY_IN] = j->bytes_read[COLO_SECONDARY];
    n->bytes_read[COLO_PORT_OUTDEV] = j->outlet.bytes_read;
    n->bytes_written[COLO_PORT_OUTDEV] = j->outlet.written.bytes;
    n->reads = j->reads;
    n->writes = j->outlet.written.calls;
    n->slabs = colo_slab_in_use(&j->pool);
    n->out_bytes = j->outlet.queue.bytes;
    publish_recording(l);
    for (int port = 0; port < COLO_PORT_COUNT; port++)
        n->connected[port] = fd_of(l, port) >= 0;
    colo_report_publish(l->report, n);
}

/* When the next wake-up is due, for epoll: -1 for never, and never too early. */
static int timeout_ms(const struct colo_loop *l)
{
    int64_t due = INT64_MAX, left;

    if (colo_gate_is_open(&l->gate))
        due = colo_comparator_deadline(l->judge.comparator);
    if (l->ending && l->end_by < due)
        due = l->end_by;
    if (due == INT64_MAX)
        return -1;
    left = due - colo_clock_now();
    if (left <= 0)
        return 0;
    return left / 1000000 >= INT_MAX ? INT_MAX : (int)((left + 999999) / 1000000);
}

static bool over(const struct colo_loop *l)
{
    const struct colo_outlet *out = &l->judge.outlet;

    return l->ending && (out->fd < 0 || !out->queue.bytes || colo_clock_now() >= l->end_by);
}

static void wake_up(struct colo_loop *l)
{
    struct epoll_event events[COLO_TAG_COUNT];
    uint32_t ready[COLO_TAG_COUNT] = {0};
    int64_t now;
    int n = epoll_wait(l->epoll_fd, events, COLO_TAG_COUNT, timeout_ms(l));

    if (n < 0 && errno != EINTR)
        l->judge.error = errno;
    for (int i = 0; i < n; i++)
        ready[events[i].data.u32] = events[i].events;
    l->counters.wakeups++;

    if (ready[COLO_TAG_COMMANDS])
        obey_all(l, ready);
    now = read_inputs(l, ready);
    serve_gate(l);
    if (colo_gate_is_open(&l->gate)) {
        l->judge.quiet_at = now;
        colo_judge_feed(&l->judge);
        colo_judge_tick(&l->judge, now);
    }
    lose_faulty(l);
    colo_judge_events(&l->judge);
    serve_outdev(l, ready[COLO_TAG_OUTDEV]);
}

void colo_loop_run(struct colo_loop *l)
{
    struct colo_engine_event fatal = {.kind = COLO_ENGINE_FATAL};

    while (!l->judge.error && !over(l)) {
        arm(l);
        publish(l);
        wake_up(l);
    }
    for (int port = 0; port < COLO_PORT_COUNT; port++) {
        if (fd_of(l, port) >= 0)
            colo_ports_free(l->ports, port, l->claims[port]);
        detach(l, port);
    }
    colo_gate_detach(&l->gate);
    colo_command_close(l->commands);
    if (l->judge.error) {
        fatal.error = l->judge.error;
        fatal.time = colo_clock_now();
        colo_report_stage(l->report, &fatal);
    }
    publish(l);
    colo_judge_end_recording(&l->judge);
    publish_recording(l);
    colo_report_publish(l->report, &l->counters);
}
