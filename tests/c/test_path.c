/* SPDX-License-Identifier: Apache-2.0 */
/* The path with its thread: two of them as a pair, their links, what they do when something goes, and calls from all over. */
#include "path/path.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>

#include "path/state.h"
#include "path_rig.h"

static struct path_rig p, s; /* primary, secondary */

/* Joins the two; `restart`: a new session. */
static void join(bool restart)
{
    int pair[2];
    uint64_t to_p = restart ? 0 : colo_path_link_received(s.path), to_s = restart ? 0 : colo_path_link_received(p.path);

    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    CHECK_EQ(colo_path_link_attach(p.path, colo_transport_create(NULL, pair[0]), restart, to_p), 0);
    CHECK_EQ(colo_path_link_attach(s.path, colo_transport_create(NULL, pair[1]), restart, to_s), 0);
}

static void synchronise(void)
{
    CHECK_EQ(colo_path_sync(p.path, 99), 0);
    CHECK_EQ(colo_path_answer(s.path, 99), 0);
    CHECK(path_wait(&p, COLO_PATH_SYNCED, NULL));
    CHECK_EQ(colo_path_accept(p.path), 0);
}

static void set_up(uint8_t nics)
{
    path_init(&p, COLO_PATH_PRIMARY);
    path_init(&s, COLO_PATH_SECONDARY);
    p.config.nics = s.config.nics = nics;
    path_create(&p);
    path_create(&s);
    CHECK_EQ(colo_path_start(p.path), 0);
    CHECK_EQ(colo_path_start(s.path), 0);
    join(true);
    synchronise();
}

static void tear_down(void)
{
    CHECK_EQ(path_counters(&p).events_lost + path_counters(&s).events_lost, 0);
    path_end(&p);
    path_end(&s);
}

static void client_says(struct path_rig *r, int nic, uint8_t number)
{
    uint8_t frame[PATH_FRAME];

    path_frame(frame, number, false);
    CHECK_EQ(send(r->client[nic], frame, sizeof frame, 0), sizeof frame);
}

static void vm_says(struct path_rig *r, int nic, uint8_t number)
{
    uint8_t frame[PATH_FRAME + 8];
    size_t len = path_framed(frame, number, true, false);

    CHECK_EQ(send(r->vm[nic], frame, len, MSG_NOSIGNAL), len);
}

static void comparator_releases(uint8_t number)
{
    uint8_t frame[PATH_FRAME + 8];
    size_t len = path_framed(frame, number, true, true);

    CHECK_EQ(send(p.comparator[2], frame, len, MSG_NOSIGNAL), len);
}

/* ------------------------------------------------------------- where frames go */

static void test_a_pair(void)
{
    set_up(2);
    for (int nic = 0; nic < 2; nic++) {
        CHECK_NOTE("nic %d", nic);
        for (uint8_t i = 1; i <= 100; i++) {
            client_says(&p, nic, i);
            CHECK_EQ(path_next(p.vm[nic], true, false), i);
            CHECK_EQ(path_next(s.vm[nic], true, false), i); /* each once, in order */
            vm_says(&p, nic, i);
            CHECK_EQ(path_next(p.comparator[0], true, true), i);
            vm_says(&s, nic, i);
            CHECK_EQ(path_next(p.comparator[1], true, true), i);
        }
    }
    comparator_releases(7);
    CHECK_EQ(path_next(p.client[0], false, false), 7);
    client_says(&s, 0, 8); /* its TAP is closed */
    client_says(&p, 0, 9);
    CHECK_EQ(path_next(s.vm[0], true, false), 9);
    CHECK(path_silent(s.client[0]) && path_silent(p.comparator[1]));
    tear_down();
}

static void test_a_takeover(void)
{
    set_up(1);
    client_says(&p, 0, 1);
    CHECK_EQ(path_next(p.vm[0], true, false), 1);
    CHECK_EQ(path_next(s.vm[0], true, false), 1);
    CHECK_EQ(colo_path_takeover(s.path), 0);
    vm_says(&s, 0, 2);
    CHECK_EQ(path_next(s.client[0], false, false), 2);
    client_says(&s, 0, 3);
    CHECK_EQ(path_next(s.vm[0], true, false), 3);
    CHECK(path_wait(&p, COLO_PATH_LOST, NULL));
    client_says(&p, 0, 4);
    CHECK_EQ(path_next(p.vm[0], true, false), 4);
    CHECK(path_silent(s.vm[0]));
    tear_down();
}

/* What is released when the lease is over waits, and leaves in order when there is another one. */
static void test_a_lease(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    set_up(1);
    CHECK_EQ(colo_path_lease(s.path, 1), COLO_ERR_MISUSE); /* the primary's */
    CHECK_EQ(colo_path_lease(p.path, (now.tv_sec + 3600) * INT64_C(1000000000)), 0);
    comparator_releases(1);
    CHECK_EQ(path_next(p.client[0], false, false), 1);
    CHECK_EQ(colo_path_lease(p.path, now.tv_sec * INT64_C(1000000000)), 0);
    for (uint8_t i = 2; i <= 50; i++)
        comparator_releases(i);
    CHECK(path_silent(p.client[0]));
    client_says(&p, 0, 51); /* the other way is as ever */
    CHECK_EQ(path_next(p.vm[0], true, false), 51);
    CHECK_EQ(path_next(s.vm[0], true, false), 51);
    CHECK(path_silent(p.client[0]));
    CHECK_EQ(colo_path_lease(p.path, INT64_MAX), 0);
    for (uint8_t i = 2; i <= 50; i++)
        CHECK_EQ(path_next(p.client[0], false, false), i);
    tear_down();
}

/* A checkpoint, in the order in which both sides hear of it. */
static void test_checkpoints(void)
{
    set_up(1);
    for (uint8_t i = 1; i < 50; i++) {
        CHECK_NOTE("checkpoint %u", i);
        vm_says(&s, 0, i);
        CHECK_EQ(path_next(p.comparator[1], true, true), i);
        CHECK_EQ(colo_path_stand(s.path), 0);
        CHECK_EQ(colo_path_drain(p.path, path_now()), 0);
        vm_says(&s, 0, (uint8_t)(i + 100)); /* read while it stands: of before */
        PATH_UNTIL(&s, n.held_bytes > 0);
        CHECK_EQ(colo_path_epoch(s.path, path_now()), 0);
        CHECK(path_wait(&p, COLO_PATH_EPOCH, NULL));
        CHECK_EQ(colo_path_commit(p.path), 0);
    }
    CHECK_EQ(path_counters(&s).stale, 49);
    CHECK_EQ(path_counters(&p).marks, 49);
    CHECK_EQ(path_counters(&p).commits, 49);
    tear_down();
}

/* ------------------------------------------------------------------ the gate */

static void test_a_gate_holds_until_qmp_is_dealt_with(void)
{
    int pair[2], control;
    char text[20];

    for (int take_over = 0; take_over < 2; take_over++) {
        CHECK_NOTE("takeover %d", take_over);
        set_up(1);
        CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        control = colo_path_gate_attach(s.path, pair[0]);
        CHECK(control >= 0);
        CHECK_EQ(write(pair[1], "STOP\n", 5), 5);
        CHECK(path_read_all(control, (uint8_t *)text, 5));
        vm_says(&s, 0, 1);
        client_says(&p, 0, 2);
        CHECK_EQ(path_next(p.vm[0], true, false), 2);
        PATH_UNTIL(&s, n.vm[0].frames_in == 1 && n.link.received_records > 0 && n.held_bytes > 2 * PATH_FRAME);
        CHECK(path_silent(s.vm[0]) && path_silent(p.comparator[1]));
        if (take_over) {
            CHECK_EQ(colo_path_takeover(s.path), 0);
            CHECK_EQ(path_next(s.vm[0], true, false), 2);
            CHECK_EQ(path_counters(&s).stale, 1);
            vm_says(&s, 0, 3);
            CHECK_EQ(path_next(s.client[0], false, false), 3);
        } else {
            CHECK_EQ(colo_path_gate_done(s.path, 1), 0);
            CHECK_EQ(path_next(s.vm[0], true, false), 2);
            CHECK_EQ(path_next(p.comparator[1], true, true), 1);
        }
        close(pair[1]);
        CHECK(path_wait(&s, COLO_PATH_GATE_LOST, NULL));
        CHECK_EQ(colo_path_gate_detach(s.path), 0);
        close(control);
        tear_down();
    }
}

/* ------------------------------------------------------------------ the link */

static void test_a_link_that_comes_back(void)
{
    struct colo_path_event e = {0};

    set_up(1);
    for (uint8_t i = 1; i <= 20; i++) {
        CHECK_NOTE("round %u", i);
        client_says(&p, 0, i);
        CHECK_EQ(path_next(p.vm[0], true, false), i);
        CHECK_EQ(colo_path_link_detach(s.path, false), 0);
        CHECK(path_wait(&p, COLO_PATH_LOST, &e));
        CHECK_EQ(e.place, COLO_PLACE_LINK);
        client_says(&p, 0, (uint8_t)(i + 100)); /* meanwhile */
        CHECK_EQ(path_next(p.vm[0], true, false), i + 100);
        CHECK(colo_path_link_can_resume(p.path, colo_path_link_received(s.path)));
        join(false);
        CHECK_EQ(path_next(s.vm[0], true, false), i);
        CHECK_EQ(path_next(s.vm[0], true, false), i + 100);
    }
    vm_says(&s, 0, 7); /* the epochs go on too */
    CHECK_EQ(path_next(p.comparator[1], true, true), 7);
    tear_down();
}

/* Each way in which a peer can be bad, and what is told. */
static void test_peers_that_are_bad(void)
{
    static const struct {
        const char *what;
        uint8_t data[40];
        size_t len;
        bool unread; /* he goes without reading what we have said: a reset */
    } rows[] = {
        {"he closes", {0}, 0, false},
        {"he closes with data unread", {0}, 0, true},
        {"an unknown type", {0, 0, 0, 1, 77}, 9, false},
        {"a type of ours", {0, 0, 0, 16, COLO_LINK_MIRROR}, 24, false},
        {"a frame of no NIC", {0, 0, 0, 16, COLO_LINK_OUTPUT, 1}, 24, false},
        {"a mark that makes no sense", {0, 0, 0, 9, COLO_LINK_MARK, 0, 0, 0, 9}, 17, false},
        {"a good frame, then nonsense",
         {0, 0, 0, 16, COLO_LINK_OUTPUT, 0, 0, 0, [24] = 0xff, 0xff, 0xff, 0xff},
         32,
         false},
    };

    path_init(&p, COLO_PATH_PRIMARY);
    path_create(&p);
    CHECK_EQ(colo_path_start(p.path), 0);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct colo_path_event e = {0};
        int pair[2];

        CHECK_NOTE("%s", rows[i].what);
        CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        CHECK_EQ(colo_path_link_attach(p.path, colo_transport_create(NULL, pair[0]), true, 0), 0);
        if (rows[i].unread) {
            struct pollfd there = {.fd = pair[1], .events = POLLIN};

            CHECK_EQ(colo_path_control(p.path, (const uint8_t *)"hear me", 7), 0);
            CHECK_EQ(poll(&there, 1, PATH_PATIENCE_MS), 1);
        }
        if (rows[i].len)
            CHECK_EQ(write(pair[1], rows[i].data, rows[i].len), rows[i].len);
        if (!rows[i].len)
            close(pair[1]);
        REQUIRE(path_wait(&p, COLO_PATH_LOST, &e));
        CHECK_EQ(e.place, COLO_PLACE_LINK);
        CHECK(e.text[0] != '\0');
        if (rows[i].len) {
            CHECK(!colo_path_link_can_resume(p.path, 0)); /* the session is over */
            close(pair[1]);
        }
    }
    CHECK_EQ(colo_path_detach(p.path, COLO_PLACE_OUTDEV, 0), 0); /* it lives */
    path_end(&p);
}

/* ----------------------------------------------------------------- the wires */

/* The descriptors that an epoll instance watches. */
static int watched(int epoll_fd)
{
    char name[64], line[200];
    int count = 0;
    FILE *f;

    snprintf(name, sizeof name, "/proc/self/fdinfo/%d", epoll_fd);
    f = fopen(name, "r");
    while (f && fgets(line, sizeof line, f))
        count += strncmp(line, "tfd:", 4) == 0;
    if (f)
        fclose(f);
    return count;
}

/* Somebody else holds the same file open (of TAPs we do ourselves, for the carrier): closing it must be enough. */
static void test_a_closed_wire_leaves_epoll(void)
{
    struct colo_path_event e = {0};
    int before, pair[2], copies[2];

    path_init(&p, COLO_PATH_PRIMARY);
    path_create(&p);
    CHECK_EQ(colo_path_start(p.path), 0);
    CHECK_EQ(colo_path_detach(p.path, COLO_PLACE_VM, 0), 0);
    CHECK_EQ(colo_path_detach(p.path, COLO_PLACE_CLIENT, 0), 0);
    PATH_UNTIL(&p, n.wakeups > 0); /* all the others are watched by then */
    before = watched(p.path->epoll_fd);
    for (int round = 0; round < 2; round++) {
        CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        copies[round] = fcntl(pair[0], F_DUPFD_CLOEXEC, 0);
        CHECK_EQ(colo_path_attach(p.path, COLO_PLACE_VM, 0, pair[0], COLO_WIRE_STREAM, 0), 0);
        CHECK_EQ(write(pair[1], "\0\0\0\x0e" "12345678901234", 18), 18);
        PATH_UNTIL(&p, n.vm[0].frames_in == (uint64_t)round + 1);
        CHECK_EQ(watched(p.path->epoll_fd), before + 1);
        if (round == 0) {
            close(pair[1]); /* he goes */
            CHECK(path_wait(&p, COLO_PATH_LOST, &e));
            CHECK_EQ(e.place, COLO_PLACE_VM);
        } else {
            CHECK_EQ(colo_path_detach(p.path, COLO_PLACE_VM, 0), 0); /* we do */
            close(pair[1]);
        }
        CHECK_EQ(watched(p.path->epoll_fd), before);
    }
    close(copies[0]);
    close(copies[1]);
    path_end(&p);
}

static void test_what_can_not_be_attached(void)
{
    int pair[2], file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

    path_init(&p, COLO_PATH_PRIMARY);
    path_create(&p);
    CHECK_EQ(colo_path_start(p.path), 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    CHECK_EQ(colo_path_attach(p.path, COLO_PLACE_VM, 0, pair[0], COLO_WIRE_STREAM, 0), COLO_ERR_MISUSE); /* taken */
    CHECK_EQ(colo_path_detach(p.path, COLO_PLACE_VM, 0), 0);
    CHECK_EQ(colo_path_attach(p.path, COLO_PLACE_VM, 0, file, COLO_WIRE_FRAMES, 0), COLO_ERR_SYSTEM);
    CHECK_EQ(colo_path_attach(p.path, COLO_PLACE_VM, 0, -1, COLO_WIRE_FRAMES, 0), COLO_ERR_SYSTEM);
    CHECK_EQ(colo_path_attach(p.path, COLO_PLACE_VM, 1, pair[0], COLO_WIRE_STREAM, 0), COLO_ERR_MISUSE);
    CHECK_EQ(colo_path_attach(p.path, COLO_PLACE_VM, -1, pair[0], COLO_WIRE_STREAM, 0), COLO_ERR_MISUSE);
    CHECK_EQ(colo_path_attach(p.path, COLO_PLACE_LINK, 0, pair[0], COLO_WIRE_STREAM, 0), COLO_ERR_MISUSE);
    CHECK_EQ(colo_path_attach(p.path, COLO_PLACE_VM, 0, pair[0], COLO_WIRE_TAGGED, 0), COLO_ERR_MISUSE);
    CHECK_EQ(colo_path_attach(p.path, COLO_PLACE_VM, 0, pair[0], COLO_WIRE_STREAM, 10), COLO_ERR_MISUSE);
    CHECK_EQ(colo_path_attach(p.path, COLO_PLACE_VM, 0, pair[0], COLO_WIRE_FRAMES, 11), COLO_ERR_MISUSE);
    CHECK_EQ(colo_path_attach(p.path, COLO_PLACE_VM, 0, pair[0], COLO_WIRE_STREAM, 0), 0);
    CHECK_EQ(colo_path_stop(p.path, 0), 0);
    CHECK_EQ(colo_path_attach(p.path, COLO_PLACE_VM, 0, pair[1], COLO_WIRE_STREAM, 0), COLO_ERR_MISUSE);
    close(pair[1]);
    close(file);
    path_end(&p);
}

/* Nobody reads the events: no loss is left out, what could bring more of them is refused. */
static void test_no_event_is_lost(void)
{
    struct colo_path_event e[COLO_PATH_EVENTS];
    size_t count;
    int lost = 0;

    path_init(&p, COLO_PATH_PRIMARY);
    path_create(&p);
    CHECK_EQ(colo_path_start(p.path), 0);
    CHECK_EQ(colo_path_detach(p.path, COLO_PLACE_VM, 0), 0);
    for (; lost < 1000; lost++) {
        int pair[2], error;

        CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        error = colo_path_attach(p.path, COLO_PLACE_VM, 0, pair[0], COLO_WIRE_STREAM, 0);
        close(pair[1]);
        if (error) {
            CHECK_EQ(error, COLO_ERR_LIMIT);
            close(pair[0]);
            break;
        }
        PATH_UNTIL(&p, !n.vm[0].connected);
    }
    CHECK_EQ(lost, COLO_PATH_EVENTS_FEW);
    count = colo_path_events(p.path, e, COLO_PATH_EVENTS);
    CHECK_EQ(count, lost);
    for (size_t i = 0; i < count; i++)
        CHECK(e[i].kind == COLO_PATH_LOST && e[i].place == COLO_PLACE_VM);
    CHECK_EQ(path_counters(&p).events_lost, 0);
    path_end(&p);
}

static void test_inject(void)
{
    uint8_t frame[1600] = {0};

    path_init(&p, COLO_PATH_SECONDARY);
    path_create(&p);
    CHECK_EQ(colo_path_start(p.path), 0);
    CHECK_EQ(colo_path_inject(p.path, 0, frame, 13), COLO_ERR_MISUSE);
    CHECK_EQ(colo_path_inject(p.path, 0, frame, 1523), COLO_ERR_MISUSE);
    CHECK_EQ(colo_path_inject(p.path, 1, frame, 60), COLO_ERR_MISUSE);
    path_frame(frame, 5, true);
    CHECK_EQ(colo_path_inject(p.path, 0, frame, PATH_FRAME), 0);
    CHECK_EQ(path_next(p.client[0], false, false), 5);
    CHECK_EQ(colo_path_detach(p.path, COLO_PLACE_CLIENT, 0), 0);
    CHECK_EQ(colo_path_inject(p.path, 0, frame, PATH_FRAME), COLO_ERR_MISUSE);
    path_end(&p);
}

/* ------------------------------------------------------------------ the end */

struct released {
    int fd;
    int count;
};

static void *read_all_of(void *arg)
{
    const struct released *what = arg;

    for (int i = 0; i < what->count; i++)
        if (path_next(what->fd, true, false) != (uint8_t)i)
            return arg; /* another one, or none */
    return NULL;
}

/* What the comparator has released when the end is asked for reaches the clients, read or not. */
static void test_stop_lingers_for_what_was_released(void)
{
    uint8_t frame[PATH_FRAME + 8];
    struct released what;
    ssize_t n;
    size_t len;
    pthread_t reader;
    void *problem;

    path_init(&p, COLO_PATH_PRIMARY);
    p.config.max_frame = 2048; /* so that most of it waits for the thread */
    p.config.wire_bytes = 2048;
    path_create(&p);
    path_close(&p.client[0]);
    CHECK_EQ(colo_path_detach(p.path, COLO_PLACE_CLIENT, 0), 0);
    p.client[0] = path_attach(&p, COLO_PLACE_CLIENT, 0, SOCK_STREAM, COLO_WIRE_STREAM);
    CHECK_EQ(colo_path_start(p.path), 0);
    what = (struct released){.fd = p.client[0]};
    do { /* until all is full, and part of a frame is in */
        len = path_framed(frame, (uint8_t)what.count, true, true);
        n = send(p.comparator[2], frame, len, MSG_NOSIGNAL | MSG_DONTWAIT);
        what.count += n > 0;
    } while (n == (ssize_t)len || path_counters(&p).comparator[2].pauses == 0);
    CHECK(what.count > 100);
    CHECK_EQ(pthread_create(&reader, NULL, read_all_of, &what), 0);
    if (n > 0)
        CHECK_EQ(send(p.comparator[2], frame + n, len - (size_t)n, MSG_NOSIGNAL), len - (size_t)n);
    CHECK_EQ(colo_path_stop(p.path, PATH_PATIENCE_MS), 0);
    CHECK_EQ(colo_path_detach(p.path, COLO_PLACE_CLIENT, 0), 0); /* a reader that lacks something fails now */
    CHECK_EQ(pthread_join(reader, &problem), 0);
    CHECK(problem == NULL);
    path_end(&p);
}

static void test_stop_without_a_start_and_twice(void)
{
    path_init(&p, COLO_PATH_SECONDARY);
    path_create(&p);
    CHECK_EQ(colo_path_stop(p.path, 10), 0);
    CHECK_EQ(colo_path_start(p.path), COLO_ERR_MISUSE);
    CHECK_EQ(colo_path_stop(p.path, 10), 0);
    path_end(&p);
    colo_path_destroy(NULL);
}

/* ------------------------------------------------------------------ threads */

static void *call_about(void *arg)
{
    static _Thread_local struct colo_neighbour list[64];
    struct path_rig *r = arg;
    struct colo_path_event e[8];
    uint8_t frame[PATH_FRAME], text[100];

    path_frame(frame, 200, true);
    for (int i = 0; i < 300; i++) {
        struct colo_path_counters n = path_counters(r);

        (void)n;
        (void)colo_path_neighbours(r->path, list, 64);
        (void)colo_path_events(r->path, e, 8);
        (void)colo_path_take_control(r->path, text, sizeof text);
        (void)colo_path_control(r->path, (const uint8_t *)"hello", 5);
        (void)colo_path_link_received(r->path);
        (void)colo_path_drain(r->path, path_now());
        (void)colo_path_stand_over(r->path);
        (void)colo_path_detach(r->path, COLO_PLACE_CLIENT, 3);
        (void)colo_path_inject(r->path, 2, frame, sizeof frame);
    }
    return NULL;
}

static void test_calls_from_many_threads(void)
{
    pthread_t callers[4];

    set_up(4);
    for (int i = 0; i < 4; i++)
        CHECK_EQ(pthread_create(&callers[i], NULL, call_about, i & 1 ? &p : &s), 0);
    for (int i = 0; i < 1000; i++) {
        client_says(&p, 0, (uint8_t)i);
        CHECK_EQ(path_next(p.vm[0], true, false), (uint8_t)i);
        CHECK_EQ(path_next(s.vm[0], true, false), (uint8_t)i);
        vm_says(&p, 1, (uint8_t)i);
        CHECK_EQ(path_next(p.comparator[0], true, true), (uint8_t)i);
    }
    for (int i = 0; i < 4; i++)
        CHECK_EQ(pthread_join(callers[i], NULL), 0);
    tear_down();
}

CHECK_MAIN(
    TEST(test_a_pair),
    TEST(test_a_takeover),
    TEST(test_a_lease),
    TEST(test_checkpoints),
    TEST(test_a_gate_holds_until_qmp_is_dealt_with),
    TEST(test_a_link_that_comes_back),
    TEST(test_peers_that_are_bad),
    TEST(test_a_closed_wire_leaves_epoll),
    TEST(test_what_can_not_be_attached),
    TEST(test_no_event_is_lost),
    TEST(test_inject),
    TEST(test_stop_lingers_for_what_was_released),
    TEST(test_stop_without_a_start_and_twice),
    TEST(test_calls_from_many_threads),
)
