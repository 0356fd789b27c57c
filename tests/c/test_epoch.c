/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's gate and checkpoints: which frames belong to which epoch, whatever arrives when. */
#include "rig.h"

static void hear(struct rig *r, const char *text)
{
    uint8_t got[256];

    if (rig_recv_all(r->control, got, strlen(text)))
        CHECK_MEM(got, text, strlen(text));
}

static void qemu_says(struct rig *r, const char *text)
{
    CHECK_EQ(send(r->qemu, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

static void commit(struct rig *r, int64_t resumed, uint64_t frames)
{
    struct colo_engine_event e = {0};

    CHECK_EQ(colo_engine_checkpoint_commit(r->engine, resumed), 0);
    if (rig_wait(r, COLO_ENGINE_COMMITTED, &e))
        CHECK_EQ(e.released_frames, frames);
}

/* Running, protected, with a gate through which QEMU's greeting has gone. */
static void start_protected(struct rig *r)
{
    rig_init(r);
    rig_start(r);
    rig_attach_gate(r);
    qemu_says(r, "{\"QMP\": {}}\r\n");
    hear(r, "{\"QMP\": {}}\r\n");
    CHECK_EQ(colo_engine_gate_done(r->engine, 1), 0);
    commit(r, rig_now(), 0);
}

static void test_gate_holds_frames(void)
{
    struct rig r;

    start_protected(&r);
    rig_send(&r, S, 1, 60);
    UNTIL(&r, n.comparator.held_frames[COLO_SECONDARY] == 1);
    qemu_says(&r, "{\"event\": \"STOP\"}\r\n");
    hear(&r, "{\"event\": \"STOP\"}\r\n");
    rig_send(&r, P, 1, 60); /* would match */
    /* The engine's answer to a command sent later than the frame: it has had every chance to read it. */
    for (int i = 0; i < 20; i++) {
        uint64_t before = rig_counters(&r).wakeups;

        CHECK_EQ(colo_engine_gate_done(r.engine, 0), 0);
        UNTIL(&r, n.wakeups > before);
    }
    CHECK_EQ(rig_counters(&r).bytes_read[P], 0);
    rig_silent(&r);
    CHECK_EQ(colo_engine_gate_done(r.engine, 1), 0);
    rig_expect(&r, 1, 60);
    rig_end(&r);
}

/*
 * Frames and a QMP line lie in the sockets when the engine first looks: it reads the frames, then sees the line, and
 * must let them wait.
 */
static void start_with_waiting(struct rig *r, bool primary, bool secondary)
{
    rig_init(r);
    rig_create(r);
    for (int port = 0; port < COLO_PORT_COUNT; port++)
        rig_attach(r, port);
    rig_attach_gate(r);
    CHECK_EQ(colo_engine_checkpoint_commit(r->engine, 0), 0);
    if (primary)
        rig_send(r, P, 1, 60);
    if (secondary)
        rig_send(r, S, 1, 60);
    qemu_says(r, "{\"event\": \"STOP\"}\r\n");
    CHECK_EQ(colo_engine_start(r->engine), 0);
    rig_wait(r, COLO_ENGINE_COMMITTED, NULL);
    hear(r, "{\"event\": \"STOP\"}\r\n");
    UNTIL(r, n.gate_closed == 1);
    if (primary)
        CHECK_EQ(rig_counters(r).bytes_read[P], 64);
    if (secondary)
        CHECK_EQ(rig_counters(r).bytes_read[S], 64);
    CHECK_EQ(rig_counters(r).comparator.frames_in[0], 0);
    CHECK_EQ(rig_counters(r).comparator.frames_in[1], 0);
}

static void test_waiting_frames_are_fed_when_it_opens(void)
{
    struct rig r;

    start_with_waiting(&r, true, true);
    rig_silent(&r);
    CHECK_EQ(colo_engine_gate_done(r.engine, 1), 0);
    rig_expect(&r, 1, 60);
    CHECK_EQ(rig_counters(&r).gate_closed, 1);
    rig_end(&r);
}

static void test_half_a_line_closes(void)
{
    struct rig r;

    start_protected(&r);
    rig_send(&r, S, 1, 60);
    UNTIL(&r, n.comparator.held_frames[COLO_SECONDARY] == 1);
    qemu_says(&r, "{\"eve");
    hear(&r, "{\"eve");
    rig_send(&r, P, 1, 60);
    uint64_t before = rig_counters(&r).wakeups;
    CHECK_EQ(colo_engine_gate_done(r.engine, 1), 0);
    UNTIL(&r, n.wakeups > before);
    rig_silent(&r);
    qemu_says(&r, "nt\": \"RTC_CHANGE\"}\r\n");
    hear(&r, "nt\": \"RTC_CHANGE\"}\r\n");
    CHECK_EQ(colo_engine_gate_done(r.engine, 1), 0);
    rig_expect(&r, 1, 60);
    rig_end(&r);
}

/* A frame that waits at the gate belongs to the epoch in which it was read, whenever the control plane gets round to it. */
static void test_commit_judges_waiting_primary_by_its_time(void)
{
    for (int later = 0; later < 2; later++) {
        struct rig r;

        CHECK_NOTE("read %s RESUME", later ? "after" : "before");
        start_with_waiting(&r, true, false);
        CHECK_EQ(colo_engine_checkpoint_stop(r.engine), 0);
        commit(&r, later ? 1 : rig_now(), later ? 0 : 1);
        CHECK_EQ(colo_engine_gate_done(r.engine, 1), 0);
        if (later) {
            UNTIL(&r, n.comparator.held_frames[COLO_PRIMARY] == 1);
            rig_silent(&r);
            rig_send(&r, S, 1, 60); /* the new epoch's secondary says the same */
        }
        rig_expect(&r, 1, 60);
        rig_end(&r);
    }
}

/* The same without a stop between, and with a RESUME said to be in the future: it can't be. */
static void test_commit_is_never_in_the_future(void)
{
    struct rig r;

    start_protected(&r);
    commit(&r, INT64_MAX, 0);
    rig_send(&r, P, 2, 60);
    UNTIL(&r, n.comparator.held_frames[COLO_PRIMARY] == 1);
    rig_silent(&r);
    rig_end(&r);
}

/*
 * R3. Secondary output of the old epoch: held by the comparator, waiting at the gate, or still in the socket when the
 * control plane says stop. None of it may release a frame of the new epoch.
 */
static void test_old_secondary_proves_nothing(void)
{
    static const char *const where[] = {"in the comparator", "at the gate", "in the socket"};

    for (int i = 0; i < 3; i++) {
        struct rig r;

        CHECK_NOTE("%s", where[i]);
        if (i == 1) {
            start_with_waiting(&r, false, true);
        } else {
            start_protected(&r);
            if (i == 0) {
                rig_send(&r, S, 1, 60);
                UNTIL(&r, n.comparator.held_frames[COLO_SECONDARY] == 1);
            }
            qemu_says(&r, "{\"event\": \"STOP\"}\r\n");
            hear(&r, "{\"event\": \"STOP\"}\r\n");
            if (i == 2)
                rig_send(&r, S, 1, 60);
        }
        CHECK_EQ(colo_engine_checkpoint_stop(r.engine), 0);
        commit(&r, rig_now(), 0);
        CHECK_EQ(colo_engine_gate_done(r.engine, 1), 0);
        UNTIL(&r, n.comparator.discarded[COLO_REASON_STALE] == 1);
        rig_send(&r, P, 1, 60);
        UNTIL(&r, n.comparator.held_frames[COLO_PRIMARY] == 1);
        rig_silent(&r);
        rig_send(&r, S, 1, 60);
        rig_expect(&r, 1, 60);
        rig_end(&r);
    }
}

/*
 * R3 where it hurts: the secondary has filled its share of slabs, so that much of its old output is still in its
 * socket at the stop. All of it is read and thrown away, also what the slabs have no room for.
 */
static void test_old_secondary_beyond_all_limits(void)
{
    for (int frames_limit = 0; frames_limit < 2; frames_limit++) {
        static uint8_t buffer[RIG_FRAME_MAX];
        struct rig r;
        uint32_t sent = 0;
        size_t size, at = 0;
        bool paused = false;
        const uint32_t len = 1400;

        CHECK_NOTE("limit of %s", frames_limit ? "the comparator" : "slabs");
        rig_init(&r);
        r.config.max_slabs = 8;
        if (frames_limit)
            r.config.comparator.max_frames = 100;
        rig_start(&r);
        commit(&r, rig_now(), 0);
        /* As much as goes, to the last byte of the socket. */
        size = rig_frame(&r, buffer, 0, len);
        for (;;) {
            ssize_t n = send(r.far[S], buffer + at, size - at, MSG_NOSIGNAL | MSG_DONTWAIT);

            if (n > 0) {
                at += (size_t)n;
                if (at == size) {
                    size = rig_frame(&r, buffer, ++sent, len);
                    at = 0;
                }
            } else if (paused) {
                break;
            } else {
                paused = rig_counters(&r).pauses[S] > 0;
            }
        }
        CHECK(sent > (frames_limit ? 50 : 500));
        CHECK_EQ(colo_engine_checkpoint_stop(r.engine), 0);
        commit(&r, rig_now(), 0);
        UNTIL(&r, n.bytes_read[S] == (uint64_t)sent * (len + 4) + at);
        rig_send(&r, P, sent - 1, len); /* what the secondary said last, in the old epoch */
        UNTIL(&r, n.comparator.held_frames[COLO_PRIMARY] == 1);
        rig_silent(&r);
        /* The frame that was cut by the stop goes on where it was: the framing is intact. */
        CHECK_EQ(send(r.far[S], buffer + at, size - at, MSG_NOSIGNAL), size - at);
        rig_send(&r, S, sent - 1, len);
        rig_expect(&r, sent - 1, len);
        CHECK(rig_counters(&r).slabs <= 4);
        rig_end(&r);
    }
}

/* Frames of the primary that lie in the socket at the stop are read then, so that their time is before RESUME. */
static void test_stop_drains_the_primary(void)
{
    struct rig r;

    start_protected(&r);
    qemu_says(&r, "{\"event\": \"STOP\"}\r\n");
    hear(&r, "{\"event\": \"STOP\"}\r\n");
    for (uint32_t i = 0; i < 50; i++)
        rig_send(&r, P, i, 1000);
    CHECK_EQ(colo_engine_checkpoint_stop(r.engine), 0);
    UNTIL(&r, n.comparator.held_frames[COLO_PRIMARY] == 50);
    commit(&r, rig_now(), 50);
    for (uint32_t i = 0; i < 50; i++)
        rig_expect(&r, i, 1000);
    rig_end(&r);
}

static void test_abort_goes_on(void)
{
    struct rig r;

    start_protected(&r);
    CHECK_EQ(colo_engine_checkpoint_stop(r.engine), 0);
    rig_send(&r, P, 1, 60);
    rig_send(&r, S, 1, 60);
    UNTIL(&r, n.comparator.held_frames[0] + n.comparator.held_frames[1] == 2);
    rig_silent(&r);
    CHECK_EQ(colo_engine_checkpoint_abort(r.engine), 0);
    rig_expect(&r, 1, 60);
    CHECK_EQ(rig_counters(&r).comparator.commits, 1);
    rig_end(&r);
}

static void test_commands_pass_while_closed(void)
{
    struct rig r;
    uint8_t got[4];

    start_protected(&r);
    qemu_says(&r, "{\"event\": \"STOP\"}\r\n");
    hear(&r, "{\"event\": \"STOP\"}\r\n");
    CHECK_EQ(send(r.control, "ask\n", 4, 0), 4);
    if (rig_recv_all(r.qemu, got, 4))
        CHECK_MEM(got, "ask\n", 4);
    rig_end(&r);
}

static void *read_in_order(void *arg)
{
    struct rig_writer *w = arg;
    static uint8_t want[RIG_FRAME_MAX], got[RIG_FRAME_MAX];

    for (uint32_t i = 0; i < w->frames; i++) {
        size_t size = rig_frame(w->rig, want, i, w->len(i));

        if (!rig_recv_all(w->rig->far[OUT], got, size) || !CHECK_MEM(got, want, size))
            break;
    }
    return NULL;
}

/*
 * R2 and R4 with all at once: two streams at full speed, checkpoints that commit or fail at any moment, slabs and
 * frames that run out all the time. Every frame of the primary comes out once, whole, in order.
 */
static void test_checkpoints_under_load(void)
{
    enum { FRAMES = 6000 };
    struct rig r;
    pthread_t threads[3];
    struct rig_writer w[3];
    struct colo_engine_event e = {0};
    unsigned seed = 11;
    uint64_t written = 0;

    rig_init(&r);
    r.config.max_slabs = 16;
    r.config.comparator.max_frames = 1000;
    r.config.max_out_bytes = 300000;
    rig_start(&r);
    commit(&r, rig_now(), 0);
    for (int i = 0; i < 3; i++) {
        w[i] = (struct rig_writer){.rig = &r, .port = i, .frames = FRAMES, .seed = (unsigned)i, .len = rig_any_len};
        CHECK_EQ(pthread_create(&threads[i], NULL, i == OUT ? read_in_order : rig_write, &w[i]), 0);
    }
    for (uint32_t i = 0; i < FRAMES; i++)
        written += 4 + rig_any_len(i);
    for (int64_t end = rig_now() + (int64_t)PATIENCE_MS * 1000000; rig_now() < end && !check_failures;) {
        if (rig_counters(&r).bytes_written[OUT] == written)
            break;
        CHECK_EQ(colo_engine_checkpoint_stop(r.engine), 0);
        if (rand_r(&seed) % 4 == 0) {
            CHECK_EQ(colo_engine_checkpoint_abort(r.engine), 0);
            continue;
        }
        CHECK_EQ(colo_engine_checkpoint_commit(r.engine, rig_now() - rand_r(&seed) % 100000), 0);
        rig_wait(&r, COLO_ENGINE_COMMITTED, &e);
    }
    CHECK_EQ(rig_counters(&r).bytes_written[OUT], written);
    /* What the secondary has still to say meets nothing any more: nobody commits, so its writer may be stopped for good. */
    for (int port = 0; port < COLO_PORT_COUNT; port++)
        if (port == S || check_failures)
            shutdown(r.far[port], SHUT_RDWR);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    rig_end(&r);
}

/* QMP gone: nothing is judged until the control plane has said how to go on. */
static void test_gate_lost(void)
{
    for (int anew = 0; anew < 2; anew++) {
        struct rig r;
        struct colo_engine_event e = {0};
        uint8_t byte;

        CHECK_NOTE("%s", anew ? "attached anew" : "detached");
        start_protected(&r);
        rig_send(&r, S, 1, 60);
        UNTIL(&r, n.comparator.held_frames[COLO_SECONDARY] == 1);
        rig_close(&r.qemu);
        if (rig_wait(&r, COLO_ENGINE_GATE_LOST, &e))
            CHECK_EQ(e.error, 0);
        CHECK_EQ(recv(r.control, &byte, 1, 0), 0);
        rig_send(&r, P, 1, 60);
        uint64_t before = rig_counters(&r).wakeups;
        CHECK_EQ(colo_engine_gate_done(r.engine, 1), 0);
        UNTIL(&r, n.wakeups > before);
        rig_silent(&r);
        rig_close(&r.control);
        if (anew)
            rig_attach_gate(&r);
        else
            CHECK_EQ(colo_engine_gate_detach(r.engine), 0);
        rig_expect(&r, 1, 60);
        rig_end(&r);
    }
}

CHECK_MAIN(TEST(test_gate_holds_frames), TEST(test_waiting_frames_are_fed_when_it_opens), TEST(test_half_a_line_closes),
           TEST(test_commit_judges_waiting_primary_by_its_time), TEST(test_commit_is_never_in_the_future),
           TEST(test_old_secondary_proves_nothing), TEST(test_old_secondary_beyond_all_limits),
           TEST(test_stop_drains_the_primary), TEST(test_abort_goes_on), TEST(test_commands_pass_while_closed),
           TEST(test_checkpoints_under_load), TEST(test_gate_lost), )
