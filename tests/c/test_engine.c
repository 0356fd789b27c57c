/* SPDX-License-Identifier: Apache-2.0 */
/* The engine with its real thread, over socket pairs: peers, framing, back-pressure, life and death. */
#include "rig.h"

/* ------------------------------------------------------------- plain passage */

static void test_alone_passes(void)
{
    for (int vnet = 0; vnet < 2; vnet++) {
        struct rig r;

        CHECK_NOTE("vnet %d", vnet);
        rig_init(&r);
        r.config.vnet_hdr = (uint8_t)vnet;
        rig_start(&r);
        for (uint32_t i = 0; i < 20; i++) {
            rig_send(&r, P, i, 60 + i);
            rig_send(&r, S, i, 60 + i);
        }
        for (uint32_t i = 0; i < 20; i++)
            rig_expect(&r, i, 60 + i);
        UNTIL(&r, n.comparator.discarded[COLO_REASON_ALONE] == 20);
        CHECK_EQ(rig_counters(&r).comparator.released[COLO_REASON_ALONE], 20);
        rig_end(&r);
    }
}

static void test_protected_compares(void)
{
    struct rig r;
    struct colo_engine_event e = {0};

    rig_init(&r);
    rig_start(&r);
    CHECK_EQ(colo_engine_checkpoint_commit(r.engine, rig_now()), 0);
    rig_wait(&r, COLO_ENGINE_COMMITTED, NULL);
    rig_send(&r, P, 1, 100);
    UNTIL(&r, n.comparator.held_frames[COLO_PRIMARY] == 1);
    rig_silent(&r);
    rig_send(&r, S, 1, 100);
    rig_expect(&r, 1, 100);
    rig_send(&r, P, 2, 100);
    UNTIL(&r, n.comparator.frames_in[COLO_PRIMARY] == 2);
    CHECK_EQ(colo_engine_checkpoint_commit(r.engine, rig_now()), 0);
    rig_wait(&r, COLO_ENGINE_COMMITTED, &e);
    CHECK_EQ(e.released_frames, 1);
    CHECK_EQ(e.released_bytes, 104);
    rig_expect(&r, 2, 100);
    CHECK_EQ(colo_engine_alone(r.engine), 0);
    rig_send(&r, P, 3, 100);
    rig_expect(&r, 3, 100);
    rig_end(&r);
}

/* Past the lease what is released waits, and the thread sleeps; a later one lets it go, whole and in order. */
static void test_lease(void)
{
    struct rig r;
    uint64_t wakeups;

    rig_init(&r);
    rig_create(&r);
    CHECK_EQ(colo_engine_lease(r.engine, 1), 0); /* before its start, too */
    for (int port = 0; port < COLO_PORT_COUNT; port++)
        rig_attach(&r, port);
    CHECK_EQ(colo_engine_start(r.engine), 0);
    UNTIL(&r, n.connected[OUT]);
    rig_send(&r, P, 1, 100);
    UNTIL(&r, n.lease_waits == 1 && n.out_bytes == 104);
    wakeups = rig_counters(&r).wakeups;
    rig_silent(&r);
    CHECK_EQ(rig_counters(&r).wakeups, wakeups);
    rig_send(&r, P, 2, 200);
    UNTIL(&r, n.out_bytes == 308);
    CHECK_EQ(rig_counters(&r).lease_waits, 1);
    CHECK_EQ(colo_engine_lease(r.engine, rig_now() + (int64_t)3600 * 1000000000), 0);
    rig_expect(&r, 1, 100);
    rig_expect(&r, 2, 200);
    rig_send(&r, P, 3, 100);
    rig_expect(&r, 3, 100);
    CHECK_EQ(colo_engine_lease(r.engine, rig_now()), 0); /* revoked */
    rig_send(&r, P, 4, 100);
    UNTIL(&r, n.lease_waits == 2);
    rig_silent(&r);
    CHECK_EQ(colo_engine_lease(r.engine, INT64_MAX), 0);
    rig_expect(&r, 4, 100);
    rig_end(&r);
}

/* It ends by itself: a frame that comes after its time waits, with nobody calling. */
static void test_lease_runs_out(void)
{
    struct rig r;
    int64_t until;

    rig_init(&r);
    rig_start(&r);
    until = rig_now() + 5000000;
    CHECK_EQ(colo_engine_lease(r.engine, until), 0);
    while (rig_now() < until)
        poll(NULL, 0, 1);
    rig_send(&r, P, 1, 100);
    UNTIL(&r, n.lease_waits == 1);
    rig_silent(&r);
    /* A limit to what waits is the one of any outdev that takes nothing: the primary is not read any more. */
    CHECK_EQ(rig_counters(&r).bytes_written[OUT], 0);
    rig_end(&r);
}

static void test_timeout_wants_checkpoint(void)
{
    struct rig r;
    struct colo_engine_event e = {0};

    rig_init(&r);
    r.config.comparator.compare_timeout = 1000000;
    rig_start(&r);
    CHECK_EQ(colo_engine_checkpoint_commit(r.engine, rig_now()), 0);
    rig_send(&r, P, 1, 100);
    do
        if (!rig_wait(&r, COLO_ENGINE_COMPARATOR, &e))
            break;
    while (e.event.kind != COLO_EVENT_WANT_CHECKPOINT);
    CHECK_EQ(e.event.cause, COLO_CAUSE_PRIMARY_TIMEOUT);
    rig_end(&r);
}

/* ------------------------------------------------------- a lot of everything */

static void test_everything_arrives(void)
{
    enum { FRAMES = 3000 };

    for (int protected = 0; protected < 2; protected++) {
        struct rig r;
        pthread_t threads[2];
        struct rig_writer writers[2];

        CHECK_NOTE("protected %d", protected);
        rig_init(&r);
        r.config.max_out_bytes = 1 << 20;
        rig_start(&r);
        if (protected)
            CHECK_EQ(colo_engine_checkpoint_commit(r.engine, rig_now()), 0);
        for (int i = 0; i < 2; i++) {
            writers[i] = (struct rig_writer){.rig = &r, .port = i, .frames = FRAMES, .seed = (unsigned)i + 1, .len = rig_any_len};
            CHECK_EQ(pthread_create(&threads[i], NULL, rig_write, &writers[i]), 0);
        }
        for (uint32_t i = 0; i < FRAMES; i++)
            if (!rig_expect(&r, i, rig_any_len(i)))
                break;
        if (check_failures)
            shutdown(r.far[P], SHUT_RDWR), shutdown(r.far[S], SHUT_RDWR);
        for (int i = 0; i < 2; i++)
            pthread_join(threads[i], NULL);
        UNTIL(&r, n.comparator.frames_in[COLO_SECONDARY] == FRAMES);
        UNTIL(&r, n.comparator.held_frames[0] + n.comparator.held_frames[1] == 0);
        UNTIL(&r, n.slabs <= 2); /* the two that are being read into */
        CHECK_EQ(rig_counters(&r).comparator.released[protected ? COLO_REASON_MATCHED : COLO_REASON_ALONE], FRAMES);
        rig_end(&r);
    }
}

/* ------------------------------------------------------------------- peers */

static void test_peer_breaks_framing(void)
{
    static const struct {
        const char *name;
        uint8_t nics; /* 0: no vnet_hdr */
        const char *bytes;
        size_t len;
        int fault;
        uint32_t bad_value;
        uint64_t position; /* after one good frame of 60 bytes */
    } rows[] = {
        {"an HTTP client", false, "GET / HTTP/1.1\r\n", 16, COLO_FAULT_OVERSIZE, 0x47455420, 64},
        {"one too large", false, "\0\1\x10\1", 4, COLO_FAULT_OVERSIZE, 69633, 64},
        {"empty", false, "\0\0\0\0", 4, COLO_FAULT_EMPTY, 0, 64},
        {"no vnet word", true, "\0\0\0\x3c\x52\x54\0\x12", 8, COLO_FAULT_VNET, 0x52540012, 84},
        {"a NIC's number to one of one", 1, "\0\0\0\x3c\1\0\0\0", 8, COLO_FAULT_VNET, 1 << 24, 84},
        {"no such NIC", 3, "\0\0\0\x3c\3\0\0\0", 8, COLO_FAULT_NIC, 3, 84},
        {"no vnet word, to one of several", 3, "\0\0\0\x3c\x52\x54\0\x12", 8, COLO_FAULT_NIC, 0x52, 84},
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        for (int port = P; port <= S; port++) {
            struct rig r;
            struct colo_engine_event e = {0};
            struct colo_engine_counters n;

            CHECK_NOTE("%s on port %d", rows[i].name, port);
            rig_init(&r);
            r.config.vnet_hdr = rows[i].nics > 0;
            r.config.nics = rows[i].nics ? rows[i].nics : 1;
            rig_start(&r);
            rig_send(&r, port, 1, 60);
            CHECK_EQ(send(r.far[port], rows[i].bytes, rows[i].len, MSG_NOSIGNAL), rows[i].len);
            if (!rig_wait(&r, COLO_ENGINE_LOST, &e)) {
                rig_end(&r);
                continue;
            }
            CHECK_EQ(e.port, port);
            CHECK_EQ(e.error, rows[i].fault);
            CHECK_EQ(e.bad_value, rows[i].bad_value);
            CHECK_EQ(e.position, rows[i].position);
            if (port == P)
                rig_expect(&r, 1, 60); /* the frame before it was good */
            n = rig_counters(&r);
            CHECK_EQ(n.connected[P] + 2 * n.connected[S] + 4 * n.connected[OUT], 7 - (1 << port));
            CHECK_EQ(n.faults[port], 1);
            rig_attach(&r, port); /* the next one is welcome */
            rig_send(&r, P, 2, 60);
            rig_expect(&r, 2, 60);
            rig_end(&r);
        }
    }
}

static void test_peer_closes(void)
{
    static uint8_t buffer[RIG_FRAME_MAX];

    for (size_t part = 0; part < 64; part++) {
        struct rig r;
        struct colo_engine_event e = {0};

        CHECK_NOTE("closed after %zu bytes of a frame", part);
        rig_init(&r);
        rig_start(&r);
        rig_send(&r, P, 1, 60);
        rig_frame(&r, buffer, 2, 60);
        CHECK_EQ(send(r.far[P], buffer, part, 0), part);
        rig_close(&r.far[P]);
        if (rig_wait(&r, COLO_ENGINE_LOST, &e)) {
            CHECK_EQ(e.port, P);
            CHECK_EQ(e.error, part ? COLO_FAULT_TRUNCATED : 0);
            CHECK_EQ(e.bad_value, part < 4 ? 0 : 60);
            CHECK_EQ(e.position, part ? 64 : 0);
        }
        rig_expect(&r, 1, 60);
        rig_attach(&r, P); /* what was cut doesn't show in the new connection */
        rig_send(&r, P, 3, 60);
        rig_expect(&r, 3, 60);
        rig_end(&r);
    }
}

/* Frames that the comparator holds stay valid after their peer is gone. */
static void test_held_frames_outlive_peers(void)
{
    struct rig r;

    rig_init(&r);
    rig_start(&r);
    CHECK_EQ(colo_engine_checkpoint_commit(r.engine, rig_now()), 0);
    rig_send(&r, P, 1, 500);
    UNTIL(&r, n.comparator.held_frames[COLO_PRIMARY] == 1);
    rig_close(&r.far[P]);
    rig_wait(&r, COLO_ENGINE_LOST, NULL);
    rig_attach(&r, P);
    rig_send(&r, P, 2, 500);
    UNTIL(&r, n.comparator.held_frames[COLO_PRIMARY] == 2);
    CHECK_EQ(colo_engine_detach(r.engine, S), 0);
    rig_attach(&r, S);
    rig_send(&r, S, 1, 500);
    rig_send(&r, S, 2, 500);
    rig_expect(&r, 1, 500);
    rig_expect(&r, 2, 500);
    rig_end(&r);
}

static void test_detach_then_attach(void)
{
    struct rig r;
    uint8_t byte;

    rig_init(&r);
    rig_start(&r);
    for (int i = 0; i < 50; i++) {
        for (int port = 0; port < COLO_PORT_COUNT; port++) {
            int old = r.far[port];

            r.far[port] = -1;
            CHECK_EQ(colo_engine_detach(r.engine, port), 0);
            rig_attach(&r, port);
            CHECK_EQ(recv(old, &byte, 1, 0), 0); /* closed */
            close(old);
        }
        rig_send(&r, P, (uint32_t)i, 64);
        rig_expect(&r, (uint32_t)i, 64);
        while (colo_engine_events(r.engine, r.seen, 64))
            ;
    }
    CHECK_EQ(rig_counters(&r).attached[OUT], 51);
    rig_end(&r);
}

static void test_outdev_chatter_is_ignored(void)
{
    struct rig r;

    rig_init(&r);
    rig_start(&r);
    CHECK_EQ(send(r.far[OUT], "hello", 5, 0), 5);
    UNTIL(&r, n.bytes_read[OUT] == 5);
    rig_send(&r, P, 1, 60);
    rig_expect(&r, 1, 60);
    rig_close(&r.far[OUT]);
    rig_wait(&r, COLO_ENGINE_LOST, &r.seen[0]);
    CHECK_EQ(r.seen[0].port, OUT);
    rig_end(&r);
}

/* ------------------------------------------------------------ back-pressure */

/*
 * Fills the port until the engine has paused it for good (the caller sees to that) and its socket is full; returns how
 * many frames went in whole. A part of the next one is in the socket.
 */
static uint32_t fill_until_paused(struct rig *r, int port, uint32_t len)
{
    static uint8_t buffer[RIG_FRAME_MAX];
    const int64_t end = rig_now() + (int64_t)PATIENCE_MS * 1000000;
    uint32_t number = 0;
    size_t size = rig_frame(r, buffer, 0, len), at = 0;
    bool paused = false;

    while (rig_now() < end) {
        ssize_t n = send(r->far[port], buffer + at, size - at, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n > 0) {
            at += (size_t)n;
            if (at == size) {
                size = rig_frame(r, buffer, ++number, len);
                at = 0;
            }
        } else if (paused) { /* it was full after the pause had begun */
            return number;
        } else {
            paused = rig_counters(r).pauses[port] > 0;
        }
    }
    check_fail(__FILE__, __LINE__, "port %d was never paused", port);
    return number;
}

/* Without outdev the released frames wait, the primary is paused, and nothing of it is lost. */
static void test_waits_for_outdev(void)
{
    struct rig r;
    uint32_t sent;

    rig_init(&r);
    r.config.max_out_bytes = 256 * 1024;
    rig_create(&r);
    rig_attach(&r, P);
    rig_attach(&r, S);
    CHECK_EQ(colo_engine_start(r.engine), 0);
    sent = fill_until_paused(&r, P, 1400);
    CHECK(rig_counters(&r).out_bytes > r.config.max_out_bytes);
    CHECK(rig_counters(&r).out_bytes < r.config.max_out_bytes + 2 * r.config.slab_size);
    rig_attach(&r, OUT);
    for (uint32_t i = 0; i < sent; i++)
        if (!rig_expect(&r, i, 1400))
            break;
    CHECK_EQ(rig_counters(&r).pauses[P], 1);
    rig_end(&r);
}

static uint32_t telling_len(uint32_t number)
{
    return 18 + number * 7919 % 30000;
}

/* Reads one whole frame of telling_len from outdev; its number. */
static uint32_t read_frame(struct rig *r)
{
    static uint8_t got[RIG_FRAME_MAX], want[RIG_FRAME_MAX];
    uint32_t number = 0;

    if (!rig_recv_all(r->far[OUT], got, 4 + 18))
        return UINT32_MAX;
    memcpy(&number, got + 4 + 14, 4);
    size_t size = rig_frame(r, want, number, telling_len(number));
    if (!CHECK_MEM(got, want, 4 + 18) || !rig_recv_all(r->far[OUT], got + 22, size - 22))
        return UINT32_MAX;
    CHECK_MEM(got, want, size);
    return number;
}

/*
 * outdev is replaced in the middle of frames, again and again. Frames that the old socket had taken whole are gone
 * with it, but each new connection begins with a whole frame, and goes on in order to the last one.
 */
static void test_outdev_lost_mid_frame(void)
{
    enum { FRAMES = 2000, ROUNDS = 40 };
    struct rig r;
    pthread_t thread;
    struct rig_writer w;
    uint32_t next = 0;
    unsigned seed = 7;

    rig_init(&r);
    r.config.max_out_bytes = 64 * 1024;
    rig_start(&r);
    w = (struct rig_writer){.rig = &r, .port = P, .frames = FRAMES, .seed = 3, .len = telling_len};
    CHECK_EQ(pthread_create(&thread, NULL, rig_write, &w), 0);
    for (int round = 0; next < FRAMES && !check_failures; round++) {
        uint32_t good = round < ROUNDS ? (uint32_t)rand_r(&seed) % 10 + 1 : FRAMES;
        bool first = true;
        uint8_t cut[1000];

        while (good-- && next < FRAMES && !check_failures) {
            uint32_t number = read_frame(&r);

            CHECK(number < FRAMES && (first ? number >= next : number == next));
            first = false;
            next = number + 1;
        }
        if (next >= FRAMES)
            break;
        CHECK(recv(r.far[OUT], cut, 1 + (size_t)rand_r(&seed) % sizeof cut, 0) > 0);
        rig_close(&r.far[OUT]);
        r.seen_count = 0;
        rig_wait(&r, COLO_ENGINE_LOST, NULL);
        rig_attach(&r, OUT);
    }
    if (check_failures)
        shutdown(r.far[P], SHUT_RDWR);
    pthread_join(thread, NULL);
    CHECK(rig_counters(&r).attached[OUT] > ROUNDS / 2);
    rig_end(&r);
}

/*
 * Slabs run out before any limit of the comparator: a checkpoint is wanted, once, the other side still gets through,
 * and the commit makes room. Nothing of the primary is lost.
 */
static void test_slabs_run_out(void)
{
    struct rig r;
    uint32_t sent;
    struct colo_engine_event e = {0};
    int limits = 0, wanted = 0;

    rig_init(&r);
    r.config.max_slabs = 8;
    rig_start(&r);
    CHECK_EQ(colo_engine_checkpoint_commit(r.engine, rig_now()), 0);
    rig_wait(&r, COLO_ENGINE_COMMITTED, NULL);
    sent = fill_until_paused(&r, P, 1400);
    CHECK_EQ(rig_counters(&r).slabs, 7); /* 6 of the primary */
    rig_send(&r, S, 0, 1400);
    rig_expect(&r, 0, 1400);
    CHECK_EQ(colo_engine_checkpoint_commit(r.engine, rig_now()), 0);
    rig_wait(&r, COLO_ENGINE_COMMITTED, &e);
    CHECK(e.released_frames > 400);
    for (size_t i = 0; i < r.seen_count; i++) {
        const struct colo_event *c = &r.seen[i].event;

        if (r.seen[i].kind != COLO_ENGINE_COMPARATOR)
            continue;
        CHECK_EQ(c->cause, COLO_CAUSE_LIMIT_BYTES);
        limits += c->kind == COLO_EVENT_LIMIT;
        wanted += c->kind == COLO_EVENT_WANT_CHECKPOINT;
    }
    CHECK_EQ(limits, 1);
    CHECK_EQ(wanted, 1);
    CHECK_EQ(colo_engine_alone(r.engine), 0);
    for (uint32_t i = 1; i < sent; i++)
        if (!rig_expect(&r, i, 1400))
            break;
    rig_end(&r);
}

/* The comparator's own limit: what it doesn't take waits, and goes on after the commit. */
static void test_comparator_is_full(void)
{
    struct rig r;
    uint32_t sent;

    rig_init(&r);
    r.config.comparator.max_frames = 200;
    rig_start(&r);
    CHECK_EQ(colo_engine_checkpoint_commit(r.engine, rig_now()), 0);
    sent = fill_until_paused(&r, P, 200);
    CHECK_EQ(rig_counters(&r).comparator.held_frames[COLO_PRIMARY], 100);
    for (uint32_t i = 0; i < sent; i++) {
        struct pollfd out = {.fd = r.far[OUT], .events = POLLIN};
        int64_t end = rig_now() + (int64_t)PATIENCE_MS * 1000000;

        /* A commit covers what was read before it, which may be nothing: the next one will. */
        while (poll(&out, 1, 10) == 0 && rig_now() < end)
            CHECK_EQ(colo_engine_checkpoint_commit(r.engine, rig_now()), 0);
        if (!rig_expect(&r, i, 200))
            break;
        while (colo_engine_events(r.engine, r.seen, 64))
            ;
    }
    rig_end(&r);
}

/* ------------------------------------------------------------ life and death */

static void test_misuse(void)
{
    struct rig r;
    int pair[2], dgram = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int unconnected = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    rig_init(&r);
    rig_start(&r);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    CHECK_EQ(colo_engine_start(r.engine), COLO_ERR_MISUSE);
    CHECK_EQ(colo_engine_attach(r.engine, P, pair[0]), COLO_ERR_MISUSE); /* has one */
    CHECK_EQ(colo_engine_attach(r.engine, -1, pair[0]), COLO_ERR_MISUSE);
    CHECK_EQ(colo_engine_attach(r.engine, 3, pair[0]), COLO_ERR_MISUSE);
    CHECK_EQ(colo_engine_detach(r.engine, 3), COLO_ERR_MISUSE);
    CHECK_EQ(colo_engine_detach(r.engine, P), 0);
    CHECK_EQ(colo_engine_attach(r.engine, P, -1), COLO_ERR_SYSTEM);
    CHECK_EQ(colo_engine_attach(r.engine, P, dgram), COLO_ERR_SYSTEM);
    CHECK_EQ(colo_engine_attach(r.engine, P, unconnected), COLO_ERR_SYSTEM);
    CHECK_EQ(colo_engine_gate_attach(r.engine, dgram), COLO_ERR_SYSTEM);
    CHECK_EQ(colo_engine_attach(r.engine, P, pair[0]), 0); /* failures left the port free */
    CHECK_EQ(colo_engine_stop(r.engine, 0), 0);
    CHECK_EQ(colo_engine_stop(r.engine, 1000), 0);
    CHECK_EQ(colo_engine_start(r.engine), COLO_ERR_MISUSE);
    CHECK_EQ(colo_engine_attach(r.engine, P, pair[1]), COLO_ERR_MISUSE);
    CHECK_EQ(colo_engine_alone(r.engine), COLO_ERR_MISUSE);
    rig_end(&r);
    close(pair[1]);
    close(dgram);
    close(unconnected);
    colo_engine_destroy(NULL);
}

static void test_config_is_checked(void)
{
    struct colo_engine_config good, c;

    colo_engine_config_default(&good);
    CHECK(colo_engine_create(NULL) == NULL);
    c = good, c.slab_size = c.max_frame + 7; /* no room for the words */
    CHECK(colo_engine_create(&c) == NULL);
    c = good, c.max_slabs = 7;
    CHECK(colo_engine_create(&c) == NULL);
    c = good, c.max_frame = 0;
    CHECK(colo_engine_create(&c) == NULL);
    c = good, c.nics = 0;
    CHECK(colo_engine_create(&c) == NULL);
    c = good, c.nics = 2; /* no word to have the number in */
    CHECK(colo_engine_create(&c) == NULL);
    c = good, c.max_out_bytes = 0;
    CHECK(colo_engine_create(&c) == NULL);
    c = good, c.comparator.max_frames = 0;
    CHECK(colo_engine_create(&c) == NULL);
}

static void *stop_with_linger(void *engine)
{
    colo_engine_stop(engine, PATIENCE_MS);
    return NULL;
}

/* What waits for outdev is written before the end, if there is time for it. */
static void test_stop_lingers(void)
{
    enum { LEN = 60000, FRAMES = 16 };

    for (int linger = 0; linger < 2; linger++) {
        struct rig r;
        pthread_t stopper;
        uint8_t byte;

        CHECK_NOTE("linger %d", linger);
        rig_init(&r);
        rig_start(&r);
        for (uint32_t i = 0; i < FRAMES; i++)
            rig_send(&r, P, i, LEN);
        UNTIL(&r, n.comparator.released[COLO_REASON_ALONE] == FRAMES);
        CHECK(rig_counters(&r).out_bytes > 0);
        if (linger) {
            CHECK_EQ(pthread_create(&stopper, NULL, stop_with_linger, r.engine), 0);
            for (uint32_t i = 0; i < FRAMES; i++)
                if (!rig_expect(&r, i, LEN))
                    break;
            CHECK_EQ(recv(r.far[OUT], &byte, 1, 0), 0);
            pthread_join(stopper, NULL);
            CHECK_EQ(rig_counters(&r).out_bytes, 0);
            CHECK_EQ(rig_counters(&r).connected[OUT], 0);
        } else {
            CHECK_EQ(colo_engine_stop(r.engine, 0), 0); /* at once, although outdev is full */
            CHECK(rig_counters(&r).out_bytes > 0);
        }
        rig_end(&r);
    }
}

/* Commands that were never carried out: their sockets are closed all the same. */
static void test_never_started(void)
{
    struct rig r;
    uint8_t byte;

    rig_init(&r);
    rig_create(&r);
    for (int port = 0; port < COLO_PORT_COUNT; port++)
        rig_attach(&r, port);
    rig_attach_gate(&r);
    CHECK_EQ(colo_engine_checkpoint_stop(r.engine), 0);
    CHECK_EQ(colo_engine_stop(r.engine, 100), 0);
    colo_engine_destroy(r.engine);
    r.engine = NULL;
    for (int port = 0; port < COLO_PORT_COUNT; port++)
        CHECK_EQ(recv(r.far[port], &byte, 1, 0), 0);
    CHECK_EQ(recv(r.qemu, &byte, 1, 0), 0);
    CHECK_EQ(recv(r.control, &byte, 1, 0), 0);
    rig_end(&r);
}

/* The queue of commands is bounded: it says so, and what it refused stays the caller's. */
static void test_command_queue_is_bounded(void)
{
    struct rig r;
    int accepted = 0;

    rig_init(&r);
    rig_create(&r);
    while (colo_engine_checkpoint_abort(r.engine) == 0)
        accepted++;
    CHECK_EQ(accepted, 64);
    CHECK_EQ(colo_engine_gate_done(r.engine, 1), COLO_ERR_LIMIT);
    CHECK_EQ(colo_engine_start(r.engine), 0);
    UNTIL(&r, n.wakeups > 0);
    CHECK_EQ(colo_engine_checkpoint_abort(r.engine), 0);
    for (int i = 0; i < 1000; i++)
        CHECK_EQ(colo_engine_gate_done(r.engine, 1), 0); /* neighbours become one */
    rig_end(&r);
}

static void test_no_descriptor_leaks(void)
{
    size_t before = rig_open_fds();

    test_everything_arrives();
    test_detach_then_attach();
    test_peer_closes();
    test_misuse();
    test_never_started();
    CHECK_EQ(rig_open_fds(), before);
}

CHECK_MAIN(TEST(test_alone_passes), TEST(test_protected_compares), TEST(test_lease), TEST(test_lease_runs_out),
           TEST(test_timeout_wants_checkpoint),
           TEST(test_everything_arrives), TEST(test_peer_breaks_framing), TEST(test_peer_closes),
           TEST(test_held_frames_outlive_peers), TEST(test_detach_then_attach), TEST(test_outdev_chatter_is_ignored),
           TEST(test_waits_for_outdev), TEST(test_outdev_lost_mid_frame), TEST(test_slabs_run_out),
           TEST(test_comparator_is_full), TEST(test_misuse), TEST(test_config_is_checked), TEST(test_stop_lingers),
           TEST(test_never_started), TEST(test_command_queue_is_bounded), TEST(test_no_descriptor_leaks), )
