/* SPDX-License-Identifier: Apache-2.0 */
#include "judge.h"

#include <assert.h>
#include <errno.h>

enum {
    ACTIONS = 256,
    EVENTS = 8,
    DRAIN_READS = 256, /* at most, of one input at one stop: 128 MiB, more than sockets hold */
};

int colo_judge_init(struct colo_judge *j, const struct colo_engine_config *config, struct colo_report *report)
{
    int error;

    j->report = report;
    j->outlet.fd = -1;
    for (int side = 0; side < 2; side++)
        colo_input_init(&j->inputs[side], &j->pool, side, config);
    error = colo_slab_pool_init(&j->pool, config->slab_size, config->max_slabs);
    if (error)
        return error;
    error = colo_outlet_init(&j->outlet, &j->pool, config);
    if (error)
        return error;
    j->comparator = colo_comparator_create(&config->comparator);
    return j->comparator ? 0 : COLO_ERR_MISUSE;
}

void colo_judge_fini(struct colo_judge *j)
{
    colo_recorder_destroy(j->recorder);
    j->recorder = NULL;
    colo_comparator_destroy(j->comparator);
    j->comparator = NULL;
    colo_outlet_fini(&j->outlet);
    for (int side = 0; side < 2; side++)
        colo_input_fini(&j->inputs[side]);
    colo_slab_pool_fini(&j->pool);
}

/* ---------------------------------------------------------------- actions */

static void carry_out_one(struct colo_judge *j, const struct colo_action *a)
{
    uint64_t before = j->outlet.queue.bytes;
    int error = 0;

    if (j->recorder)
        colo_recorder_action(j->recorder, a, false);
    switch (a->kind) {
    case COLO_RELEASE:
        error = colo_outlet_release(&j->outlet, a);
        break;
    case COLO_EMIT:
        if (colo_outlet_emit(&j->outlet, a) < 0)
            j->error = ENOMEM;
        return;
    default:
        colo_slab_put(&j->pool, colo_slab_of(&j->pool, a->cookie), 1);
        break;
    }
    j->inside--;
    if (error)
        j->error = ENOMEM;
    if (a->kind == COLO_RELEASE && a->reason == COLO_REASON_COMMITTED) {
        j->committed_frames++;
        j->committed_bytes += j->outlet.queue.bytes - before;
    }
}

static void carry_out(struct colo_judge *j)
{
    struct colo_action actions[ACTIONS];
    size_t n;

    do {
        n = colo_comparator_actions(j->comparator, actions, ACTIONS);
        for (size_t i = 0; i < n && !j->error; i++)
            carry_out_one(j, &actions[i]);
    } while (n && !j->error);
    if (j->recorder)
        colo_recorder_publish(j->recorder);
}

static void mark(struct colo_judge *j, enum colo_record_mark what, int64_t now, int64_t resumed)
{
    if (j->recorder)
        colo_recorder_mark(j->recorder, what, now, resumed);
}

void colo_judge_events(struct colo_judge *j)
{
    struct colo_event events[EVENTS];
    size_t n;

    while ((n = colo_comparator_events(j->comparator, events, EVENTS))) {
        for (size_t i = 0; i < n; i++) {
            struct colo_engine_event e = {
                .kind = COLO_ENGINE_COMPARATOR, .time = events[i].time, .event = events[i]};

            if (events[i].kind == COLO_EVENT_WANT_CHECKPOINT) {
                if (j->wanted) /* the engine's own wish for slabs came first */
                    continue;
                j->wanted = true;
            }
            /* In a gap nothing differs: it must not take the place of a file that a difference wants soon after. */
            if (j->recorder && events[i].kind == COLO_EVENT_DIVERGENCE && events[i].cause != COLO_CAUSE_GAP)
                colo_recorder_diverged(j->recorder, events[i].time);
            colo_report_stage(j->report, &e);
        }
    }
}

/* ----------------------------------------------------------------- feeding */

/* Feeds one batch; true if a frame was taken. */
static bool feed_some(struct colo_judge *j, int side)
{
    struct colo_input *in = &j->inputs[side];
    uint32_t count = colo_input_scan(in);
    long taken;

    if (!count || j->error)
        return false;
    taken = colo_comparator_feed(j->comparator, side, in->frames + in->first, count, in->time);
    if (taken < 0) {
        j->error = taken == COLO_ERR_NOMEM ? ENOMEM : EINVAL;
        return false;
    }
    if (j->recorder && taken)
        colo_recorder_fed(j->recorder, in->frames[in->first].cookie, in->frames[in->first + taken - 1].cookie,
                          (uint32_t)taken, in->time);
    j->inside += (uint64_t)taken;
    colo_input_taken(in, (uint32_t)taken);
    return taken > 0;
}

/* A batch of each side, in step; true if a frame was taken. */
static bool feed_both(struct colo_judge *j)
{
    struct colo_batch batches[2];
    size_t taken[2];

    if (j->error)
        return false;
    for (int side = 0; side < 2; side++) {
        struct colo_input *in = &j->inputs[side];
        uint32_t count = colo_input_scan(in);

        batches[side] = (struct colo_batch){
            .frames = in->frames + in->first, .count = count, .now = in->time, .more = !in->scanned};
    }
    if (!batches[0].count && !batches[1].count)
        return false;
    if (colo_comparator_feed_both(j->comparator, batches, taken) < 0) {
        j->error = EINVAL;
        return false;
    }
    for (int side = 0; side < 2; side++)
        colo_input_taken(&j->inputs[side], (uint32_t)taken[side]);
    j->inside += taken[0] + taken[1];
    return taken[0] || taken[1];
}

/* A recording is replayed in the order of its notes, which are of one side at a time. */
static bool feed_in_turn(struct colo_judge *j)
{
    bool more = feed_some(j, COLO_PRIMARY);

    return feed_some(j, COLO_SECONDARY) || more;
}

void colo_judge_feed(struct colo_judge *j)
{
    /* In small turns, so that the two streams stay in step and little is held. */
    while ((j->recorder ? feed_in_turn : feed_both)(j) && !j->error)
        carry_out(j);
}

void colo_judge_tick(struct colo_judge *j, int64_t now)
{
    if (colo_comparator_deadline(j->comparator) > now)
        return;
    mark(j, COLO_MARK_TICK, now, 0);
    colo_comparator_tick(j->comparator, now);
    carry_out(j);
}

/* ----------------------------------------------------------------- reading */

bool colo_judge_may_read(struct colo_judge *j, int side)
{
    struct colo_input *in = &j->inputs[side];

    /* Both stop for outdev: a secondary that runs ahead of a paused primary would only fill the comparator. */
    return in->fd >= 0 && !colo_input_waits(in) && !colo_outlet_full(&j->outlet) && colo_input_prepare(in, false);
}

int64_t colo_judge_lead(const struct colo_judge *j, int side)
{
    /* What has diverged is held until a commit, whatever the other side says: that is no lead. */
    if (j->wanted)
        return 0;
    return (int64_t)colo_comparator_held_bytes(j->comparator, side) -
           (int64_t)colo_comparator_held_bytes(j->comparator, !side);
}

bool colo_judge_read(struct colo_judge *j, int side, size_t most, int *error)
{
    long n = colo_input_read(&j->inputs[side], most);

    j->reads++;
    if (n > 0)
        j->bytes_read[side] += (uint64_t)n;
    if (n > 0 || (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)))
        return true;
    *error = n < 0 ? errno : 0;
    return false;
}

void colo_judge_out_of_slabs(struct colo_judge *j, int64_t now)
{
    struct colo_counters n;
    struct colo_engine_event e = {.kind = COLO_ENGINE_COMPARATOR, .time = now};

    if (!j->inside && !j->outlet.queue.bytes) /* nobody has them, so it is memory that is wanting */
        j->error = ENOMEM;
    if (j->limit_told || !j->inside)
        return;
    j->limit_told = true;
    colo_comparator_counters(j->comparator, &n);
    e.event = (struct colo_event){
        .kind = COLO_EVENT_LIMIT,
        .cause = COLO_CAUSE_LIMIT_BYTES,
        .epoch = n.epoch,
        .time = now,
        .primary_age = -1,
        .secondary_age = -1,
        .held_frames = n.held_frames[COLO_PRIMARY],
        .held_bytes = n.held_bytes[COLO_PRIMARY],
    };
    colo_report_stage(j->report, &e);
    if (j->wanted)
        return;
    j->wanted = true;
    e.event.kind = COLO_EVENT_WANT_CHECKPOINT;
    colo_report_stage(j->report, &e);
}

/* ------------------------------------------------------------------ epochs */

/* Throws away what waits of an input. */
static void drop(struct colo_judge *j, int side)
{
    struct colo_input *in = &j->inputs[side];

    if (j->recorder)
        while (colo_input_scan(in)) {
            for (uint32_t i = 0; i < in->count; i++) {
                uint64_t cookie = in->frames[in->first + i].cookie;

                colo_recorder_dropped(j->recorder, side, cookie, in->time);
                colo_slab_put(&j->pool, colo_slab_of(&j->pool, cookie), 1);
            }
            colo_input_taken(in, in->count);
            colo_recorder_publish(j->recorder);
        }
    colo_input_drop(in);
}

/*
 * Reads an input until nothing is left and feeds it. A peer that is gone is found again, and reported, by the loop's
 * next read. `old`: the frames are of the epoch that ends, however late they are read; what the comparator won't take
 * of them is thrown away, and not even want of slabs ends the reading.
 */
static void drain(struct colo_judge *j, int side, bool old)
{
    struct colo_input *in = &j->inputs[side];

    if (old && in->time > j->quiet_at)
        in->time = j->quiet_at;
    for (int reads = 0; reads < DRAIN_READS && !j->error; reads++) {
        long n;

        while (feed_some(j, side))
            carry_out(j);
        if (old)
            drop(j, side);
        if (in->fd < 0 || in->framing.fault || colo_input_waits(in) || !colo_input_prepare(in, old))
            return;
        n = colo_input_read(in, SIZE_MAX);
        j->reads++;
        if (n <= 0)
            return;
        j->bytes_read[side] += (uint64_t)n;
        in->time = old ? j->quiet_at : colo_clock_now();
    }
}

void colo_judge_stop(struct colo_judge *j)
{
    int64_t now;

    drain(j, COLO_SECONDARY, true);
    now = colo_clock_now();
    mark(j, COLO_MARK_STOP, now, 0);
    colo_comparator_stop(j->comparator, now);
    drain(j, COLO_PRIMARY, false);
}

void colo_judge_commit(struct colo_judge *j, int64_t resumed)
{
    struct colo_engine_event e = {.kind = COLO_ENGINE_COMMITTED};
    int64_t now;

    colo_judge_feed(j);
    drop(j, COLO_SECONDARY);
    colo_judge_events(j);
    now = colo_clock_now();
    j->committed_frames = j->committed_bytes = 0;
    j->wanted = j->limit_told = false;
    resumed = resumed < now ? resumed : now;
    mark(j, COLO_MARK_COMMIT, now, resumed);
    colo_comparator_commit(j->comparator, resumed, now);
    carry_out(j);
    if (j->recorder)
        colo_recorder_settled(j->recorder);
    e.time = now;
    e.released_frames = j->committed_frames;
    e.released_bytes = j->committed_bytes;
    colo_report_stage(j->report, &e);
}

void colo_judge_abort(struct colo_judge *j)
{
    int64_t now = colo_clock_now();

    mark(j, COLO_MARK_ABORT, now, 0);
    colo_comparator_abort(j->comparator, now);
    carry_out(j);
}

void colo_judge_alone(struct colo_judge *j)
{
    colo_judge_events(j);
    int64_t now = colo_clock_now();

    mark(j, COLO_MARK_ALONE, now, 0);
    colo_comparator_alone(j->comparator, now);
    j->wanted = j->limit_told = false;
    carry_out(j);
    if (j->recorder)
        colo_recorder_settled(j->recorder);
}

void colo_judge_end_recording(struct colo_judge *j)
{
    struct colo_action actions[ACTIONS];
    size_t n;

    if (!j->recorder)
        return;
    /* The comparator gives all it holds only to one who is alone. Nobody carries these actions out. */
    colo_comparator_alone(j->comparator, colo_clock_now());
    while ((n = colo_comparator_actions(j->comparator, actions, ACTIONS)))
        for (size_t i = 0; i < n; i++)
            colo_recorder_action(j->recorder, &actions[i], true);
    for (int side = 0; side < 2; side++)
        drop(j, side);
    colo_recorder_finish(j->recorder);
}
