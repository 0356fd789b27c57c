/* SPDX-License-Identifier: Apache-2.0 */
/* traffic.c - the loop over the sockets. traffic.h has the theory of operation. */
#include "traffic.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "checkpoint.h"
#include "clock.h"
#include "coloproxy.h"
#include "state.h"

enum {
    MILLISECOND = 1000000,
    STUCK = 20 * MILLISECOND,          /* nothing moved for so long: the secondary may come nearer */
    GIVE_UP_EVERY = 100 * MILLISECOND, /* looks for responses to be given up */
    TIMER_SLACK = 1000,                /* ns */
};

static bool sends(const struct colo_traffic *t)
{
    return t->sockets.primary_in >= 0;
}

/* Both sides say the same at the same time, and no checkpoint makes a difference between them. */
static bool can_echo(const struct colo_traffic_config *c, const struct colo_traffic_sockets *sockets)
{
    return (!c->recut || c->recut == c->length) && !c->skew && !c->loss_ppm && !c->divergence_ppm &&
           sockets->notify < 0;
}

int colo_traffic_create(const struct colo_traffic_config *config, const struct colo_traffic_sockets *sockets,
                        colo_traffic **out)
{
    colo_traffic *t;
    int rc;

    if (colo_traffic_check(config) < 0 || (sockets->primary_in < 0) != (sockets->secondary_in < 0) ||
        (sockets->primary_in < 0 && sockets->outdev < 0) || (config->request_response && sockets->outdev < 0))
        return COLO_ERR_MISUSE;
    t = calloc(1, sizeof *t);
    if (!t)
        return COLO_ERR_NOMEM;
    t->config = *config;
    t->sockets = *sockets;
    colo_traffic_wire_init(&t->wire, &(struct colo_traffic_wire_config){.vnet_hdr = config->vnet_hdr,
                                                        .ipv6 = config->ipv6,
                                                        .udp = config->udp,
                                                        .timestamps = config->timestamps,
                                                        .gso_size = (uint16_t)config->gso_size});
    rc = colo_plan_init(&t->plan, config->flows, config->burst * config->length, !config->udp,
                        config->request_response);
    for (int i = 0; i < 2 && rc == 0; i++)
        rc = colo_speaker_init(&t->side[i], config, i, i == COLO_PRIMARY ? sockets->primary_in : sockets->secondary_in,
                            &t->wire, &t->plan, &t->samples,
                               i == COLO_SECONDARY && can_echo(config, sockets) ? &t->side[COLO_PRIMARY] : NULL);
    if (rc == 0)
        rc = colo_sink_init(&t->sink, config, sockets->outdev, &t->wire, &t->samples, &t->counters);
    if (rc < 0) {
        colo_traffic_destroy(t);
        return rc;
    }
    *out = t;
    return 0;
}

void colo_traffic_destroy(colo_traffic *t)
{
    if (!t)
        return;
    colo_plan_clear(&t->plan);
    colo_speaker_clear(&t->side[0]);
    colo_speaker_clear(&t->side[1]);
    colo_sink_clear(&t->sink);
    free(t);
}

int colo_traffic_closed(struct colo_traffic *t, const char *name, int error)
{
    snprintf(t->fault, sizeof t->fault, "%s: %s", name, error ? strerror(error) : "closed by its peer");
    return COLO_TRAFFIC_CLOSED;
}

static void begin(struct colo_traffic *t, int64_t now)
{
    t->began = t->moved = t->sink.last = now;
    if (t->config.request_response)
        colo_sink_begin(&t->sink, now);
}

/* How far the primary may have come by now: bytes of the plan. */
static uint64_t primary_limit(const struct colo_traffic *t, int64_t now)
{
    const struct colo_traffic_config *c = &t->config;
    const struct colo_speaker *p = &t->side[COLO_PRIMARY], *s = &t->side[COLO_SECONDARY];
    /* Further ahead it would say no more than that one side's socket is full. */
    uint64_t limit = s->cursor.x + c->skew + 2 * (uint64_t)c->turn + s->cut + p->cut;

    if (t->stopped)
        return p->cursor.x;
    if (c->rate > 0) {
        const double due = (double)(now - t->began) * c->rate / 1e9 + 1;

        if (due * c->length < (double)limit)
            limit = (uint64_t)due * c->length;
    }
    if (c->max_segments && c->max_segments * c->length < limit)
        limit = c->max_segments * c->length;
    return limit;
}

/* How far the secondary may have come: `skew` behind the primary, until that has no more to say. */
static uint64_t secondary_limit(const struct colo_traffic *t)
{
    const uint64_t x = t->side[COLO_PRIMARY].cursor.x;

    if (t->stopped)
        return x;
    return x > t->config.skew ? x - t->config.skew : 0;
}

static int send_side(struct colo_traffic *t, int which, int64_t *now)
{
    const int n = colo_speaker_send(&t->side[which]);

    if (n < 0)
        return colo_traffic_closed(t, which == COLO_PRIMARY ? "primary_in" : "secondary_in", errno);
    if (n > 0) {
        *now = t->moved = colo_clock();
        colo_speaker_stamp(&t->side[which], *now);
    }
    return 0;
}

static int read_outdev(struct colo_traffic *t, int64_t now)
{
    const int n = colo_sink_read(&t->sink, now);

    if (n == COLO_SINK_EOF)
        return colo_traffic_closed(t, "outdev", 0);
    if (n == COLO_SINK_BROKEN) {
        snprintf(t->fault, sizeof t->fault, "outdev: a length of %u after %llu bytes: no framing of QEMU's",
                 t->sink.framing.bad_value, (unsigned long long)t->sink.framing.bad_at);
        return COLO_TRAFFIC_BROKEN;
    }
    if (n < 0)
        return colo_traffic_closed(t, "outdev", errno);
    if (n > 0)
        t->moved = t->sink.last;
    return 0;
}

static void plan_responses(struct colo_traffic *t, int64_t now)
{
    if (now >= t->give_up_at) {
        t->give_up_at = now + GIVE_UP_EVERY;
        t->counters.given_up += colo_sink_give_up(&t->sink, now - t->config.response_timeout, now);
    }
    if (!t->stopped)
        colo_sink_ask(&t->sink, &t->plan, t->config.max_segments ? t->config.max_segments : UINT64_MAX, now);
}

/* One turn: both sides, then outdev, then notify_dev. An enum colo_traffic_end but 0. */
static int turn(struct colo_traffic *t, int64_t now)
{
    struct colo_speaker *p = &t->side[COLO_PRIMARY], *s = &t->side[COLO_SECONDARY];
    int rc = 0;

    if (sends(t)) {
        if (t->config.request_response)
            plan_responses(t, now);
        if (!t->resume && (!s->echoes || colo_speaker_idle(s)))
            colo_speaker_build(p, primary_limit(t, now), false, now);
        rc = send_side(t, COLO_PRIMARY, &now);
        if (!t->resume)
            colo_speaker_build(s, secondary_limit(t), t->stopped, now);
        if (rc == 0)
            rc = send_side(t, COLO_SECONDARY, &now);
        if (rc == 0 && t->resume && now >= t->resume)
            rc = colo_checkpoint_finish(t);
        if (t->config.max_segments && p->cursor.x >= t->config.max_segments * t->config.length)
            t->stopped = true;
    }
    if (rc == 0 && t->sockets.outdev >= 0)
        rc = read_outdev(t, now);
    if (rc == 0 && t->sockets.notify >= 0)
        rc = colo_checkpoint_listen(t, now);
    return rc;
}

/* All that the primary said has come out again, or nothing came for the time that is given for it. */
static bool complete(const struct colo_traffic *t, int64_t now)
{
    const struct colo_speaker *p = &t->side[COLO_PRIMARY], *s = &t->side[COLO_SECONDARY];
    const struct colo_traffic_counters *n = &t->counters;

    if (!t->stopped)
        return false;
    if (!sends(t))
        return true;
    if (now - t->moved >= t->config.drain && !t->resume && !s->late_count)
        return true;
    if (!colo_speaker_idle(p) || !colo_speaker_idle(s) || s->cursor.x < p->cursor.x || s->late_count || t->resume)
        return false;
    if (t->sockets.outdev < 0)
        return true;
    switch (t->config.sink) {
    case COLO_SINK_VERIFY:
        return n->released_segments - n->repeated >= p->total.segments &&
               n->released_frames - n->repeated - n->foreign >= p->total.frames;
    case COLO_SINK_COUNT:
        return n->released_frames >= p->total.frames;
    default:
        return n->released_bytes >= p->total.bytes;
    }
}

static int64_t earlier(int64_t a, int64_t b)
{
    return b && b < a ? b : a;
}

/* When something is due that no socket tells. */
static int64_t next_due(const struct colo_traffic *t, int64_t now, int64_t until)
{
    const struct colo_speaker *p = &t->side[COLO_PRIMARY], *s = &t->side[COLO_SECONDARY];
    int64_t due = until;

    if (t->resume)
        return earlier(due, t->resume > now ? t->resume : now + MILLISECOND);
    if (t->stopped)
        due = earlier(due, t->moved + t->config.drain);
    if (t->config.rate > 0 && !t->stopped)
        due = earlier(due, t->began + (int64_t)((double)(p->cursor.x / p->cut) * 1e9 / t->config.rate) + 1);
    if (s->late_count)
        due = earlier(due, s->late[s->late_first].due);
    if (t->config.request_response && !t->stopped)
        due = earlier(due, earlier(t->give_up_at, colo_sink_next_ask(&t->sink)));
    if (t->config.skew && !t->stopped)
        due = earlier(due, t->moved + STUCK);
    return due > now ? due : now + MILLISECOND / 20;
}

/* Nothing moved: waits for room, for frames, or for what is due. */
static int wait(struct colo_traffic *t, int64_t now, int64_t until)
{
    struct pollfd fds[4];
    nfds_t count = 0;
    struct timespec ts;
    const int64_t left = next_due(t, now, until) - now;

    for (int i = 0; i < 2; i++) {
        if (!colo_speaker_idle(&t->side[i]))
            fds[count++] = (struct pollfd){.fd = t->side[i].fd, .events = POLLOUT};
    }
    if (t->sockets.outdev >= 0)
        fds[count++] = (struct pollfd){.fd = t->sockets.outdev, .events = POLLIN};
    if (t->sockets.notify >= 0)
        fds[count++] = (struct pollfd){.fd = t->sockets.notify, .events = POLLIN};
    ts = (struct timespec){.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000};
    t->counters.polls++;
    if (ppoll(fds, count, &ts, NULL) < 0)
        return errno == EINTR ? COLO_TRAFFIC_INTERRUPTED : COLO_ERR_SYSTEM;
    return 0;
}

/*
 * The comparator reads no more of the primary, and the secondary may not come nearer: real VMs would not wait for one
 * another for ever either.
 */
static void unstick(struct colo_traffic *t, int64_t now)
{
    struct colo_speaker *p = &t->side[COLO_PRIMARY], *s = &t->side[COLO_SECONDARY];

    if (!t->config.skew || t->resume || colo_speaker_idle(p) || !colo_speaker_idle(s) || now - t->moved < STUCK ||
        s->cursor.x >= p->cursor.x)
        return;
    t->counters.skew_given_up++;
    colo_speaker_build(s, p->cursor.x, false, now);
}

static int run(colo_traffic *t, int64_t until)
{
    for (;;) {
        const int64_t now = colo_clock();
        int64_t before;
        int rc;

        if (now >= until)
            return COLO_TRAFFIC_TIME;
        if (complete(t, now))
            return COLO_TRAFFIC_COMPLETE;
        before = t->moved;
        rc = turn(t, now);
        if (rc != 0)
            return rc;
        if (t->moved == before && !complete(t, now)) {
            unstick(t, now);
            rc = wait(t, now, until);
            if (rc != 0)
                return rc;
        }
    }
}

int colo_traffic_run(colo_traffic *t, int64_t until)
{
    const int slack = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
    int rc;

    /* Rates and think times are met by poll(): 50 us late each time, by default. */
    prctl(PR_SET_TIMERSLACK, TIMER_SLACK, 0, 0, 0);
    if (!t->began)
        begin(t, colo_clock());
    rc = run(t, until);
    if (slack > 0)
        prctl(PR_SET_TIMERSLACK, (unsigned long)slack, 0, 0, 0);
    return rc;
}

void colo_traffic_stop(colo_traffic *t)
{
    t->stopped = true;
    t->moved = colo_clock();
}

void colo_traffic_get_counters(const colo_traffic *t, struct colo_traffic_counters *out)
{
    *out = t->counters;
    for (int i = 0; i < 2; i++)
        out->sent[i] = t->side[i].total;
    out->lost_late = t->side[COLO_SECONDARY].lost_late;
    out->diverged = t->side[COLO_SECONDARY].diverged;
}

const char *colo_traffic_fault(const colo_traffic *t)
{
    return t->fault;
}

size_t colo_traffic_latency(const colo_traffic *t, const uint64_t **counts)
{
    *counts = t->samples.counts;
    return COLO_LATENCY_COUNTS;
}
