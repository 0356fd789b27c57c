/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "gate.h"

struct bench {
    struct colo_gate gate;
    int qemu, control; /* the far ends */
    int error;
};

static void set_up(struct bench *b)
{
    int qmp[2], near[2];

    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, qmp), 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, near), 0);
    colo_gate_init(&b->gate);
    CHECK(colo_gate_is_open(&b->gate));
    CHECK_EQ(colo_gate_attach(&b->gate, qmp[0], near[1]), 0);
    b->qemu = qmp[1];
    b->control = near[0];
    b->error = -1;
}

static void tear_down(struct bench *b)
{
    colo_gate_detach(&b->gate);
    CHECK(colo_gate_is_open(&b->gate));
    if (b->qemu >= 0)
        close(b->qemu);
    if (b->control >= 0)
        close(b->control);
}

static void say(int fd, const char *text)
{
    CHECK_EQ(write(fd, text, strlen(text)), strlen(text));
}

/* All that can be read from fd now, as a string in a static buffer. */
static const char *hear(int fd)
{
    static char text[4096];
    ssize_t n = read(fd, text, sizeof text - 1);

    text[n > 0 ? n : 0] = '\0';
    return text;
}

static void test_counts_lines(void)
{
    static const struct {
        const char *text;
        uint64_t lines; /* of this text */
        bool open_after_done;
    } rows[] = {
        {"{\"QMP\": {}}\r\n", 1, true},
        {"{\"event\": \"STOP\"}\r\n{\"event\": \"RESUME\"}\r\n", 2, true},
        {"{\"event\"", 0, false},
        {": \"STOP\"}\r", 0, false},
        {"\n", 1, true},
        {"a\nb\nc", 2, false},
        {"\n\n\n", 3, true},
    };
    struct bench b;
    uint64_t seen = 0;

    set_up(&b);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        CHECK_NOTE("row %zu", i);
        say(b.qemu, rows[i].text);
        CHECK(!colo_gate_look(&b.gate, &b.error));
        seen += rows[i].lines;
        CHECK_EQ(b.gate.seen, seen);
        CHECK(!colo_gate_is_open(&b.gate));
        CHECK_STR(hear(b.control), rows[i].text);
        colo_gate_done(&b.gate, rows[i].lines);
        CHECK_EQ(colo_gate_is_open(&b.gate), rows[i].open_after_done);
    }
    tear_down(&b);
}

static void test_done_in_parts(void)
{
    struct bench b;

    set_up(&b);
    say(b.qemu, "1\n2\n3\n");
    CHECK(!colo_gate_look(&b.gate, &b.error));
    colo_gate_done(&b.gate, 1);
    CHECK(!colo_gate_is_open(&b.gate));
    colo_gate_done(&b.gate, 2);
    CHECK(colo_gate_is_open(&b.gate));
    colo_gate_done(&b.gate, 5); /* lines that never were: no credit for later ones */
    CHECK(colo_gate_is_open(&b.gate));
    say(b.qemu, "4\n");
    CHECK(!colo_gate_look(&b.gate, &b.error));
    CHECK(!colo_gate_is_open(&b.gate));
    tear_down(&b);
}

static void test_silence_keeps_it_open(void)
{
    struct bench b;

    set_up(&b);
    CHECK(!colo_gate_look(&b.gate, &b.error));
    CHECK(!colo_gate_pump(&b.gate, &b.error));
    CHECK(colo_gate_is_open(&b.gate));
    CHECK_EQ(colo_gate_qmp_interest(&b.gate), EPOLLIN);
    CHECK_EQ(colo_gate_near_interest(&b.gate), EPOLLIN);
    tear_down(&b);
}

static void test_commands_pass(void)
{
    struct bench b;

    set_up(&b);
    say(b.control, "{\"execute\": \"query-status\"}\n");
    CHECK(!colo_gate_pump(&b.gate, &b.error));
    CHECK_STR(hear(b.qemu), "{\"execute\": \"query-status\"}\n");
    CHECK(colo_gate_is_open(&b.gate)); /* its own lines don't count */
    tear_down(&b);
}

/* A control plane that does not read: the buffer fills, QEMU's bytes stay in its socket, nothing is lost or reordered. */
static void pour(struct bench *b, bool backwards)
{
    enum { TOTAL = 1 << 20 };
    int from = backwards ? b->control : b->qemu, to = backwards ? b->qemu : b->control;
    uint8_t chunk[5000], got[7000];
    size_t sent = 0, have = 0;
    bool was_full = false;

    while (have < TOTAL) {
        for (;;) { /* as much as goes */
            size_t len = TOTAL - sent < sizeof chunk ? TOTAL - sent : sizeof chunk;
            ssize_t n;

            for (size_t i = 0; i < len; i++)
                chunk[i] = (uint8_t)((sent + i) % 251);
            n = len ? write(from, chunk, len) : 0;
            if (n <= 0)
                break;
            sent += (size_t)n;
            CHECK(!colo_gate_look(&b->gate, &b->error));
            CHECK(!colo_gate_pump(&b->gate, &b->error));
        }
        was_full |= !((backwards ? colo_gate_near_interest(&b->gate) : colo_gate_qmp_interest(&b->gate)) & EPOLLIN);
        ssize_t n = read(to, got, sizeof got);
        REQUIRE(n > 0);
        for (ssize_t i = 0; i < n; i++)
            REQUIRE(got[i] == (have + (size_t)i) % 251);
        have += (size_t)n;
        CHECK(!colo_gate_look(&b->gate, &b->error));
        CHECK(!colo_gate_pump(&b->gate, &b->error));
    }
    CHECK(was_full);
}

static void test_back_pressure(void)
{
    for (int backwards = 0; backwards < 2; backwards++) {
        struct bench b;

        CHECK_NOTE("backwards %d", backwards);
        set_up(&b);
        pour(&b, backwards);
        CHECK_EQ(colo_gate_is_open(&b.gate), backwards);
        tear_down(&b);
    }
}

static void test_qemu_gone(void)
{
    struct bench b;

    set_up(&b);
    say(b.qemu, "{\"event\": \"SHUTDOWN\"}\n");
    close(b.qemu);
    b.qemu = -1;
    CHECK(colo_gate_look(&b.gate, &b.error));
    CHECK_EQ(b.error, 0);
    CHECK_STR(hear(b.control), "{\"event\": \"SHUTDOWN\"}\n");
    CHECK_EQ(read(b.control, &b.error, 1), 0); /* end of the stream */
    CHECK_EQ(b.gate.seen, 1);
    colo_gate_done(&b.gate, 1);
    CHECK(!colo_gate_is_open(&b.gate)); /* checkpoints may pass unheard of: only a detach opens it */
    CHECK(!colo_gate_look(&b.gate, &b.error));
    CHECK(!colo_gate_pump(&b.gate, &b.error));
    CHECK_EQ(colo_gate_qmp_interest(&b.gate), 0);
    CHECK_EQ(colo_gate_near_interest(&b.gate), 0);
    tear_down(&b);
}

static void test_control_gone(void)
{
    struct bench b;

    set_up(&b);
    say(b.control, "last\n");
    close(b.control);
    b.control = -1;
    CHECK(colo_gate_pump(&b.gate, &b.error));
    CHECK_EQ(b.error, 0);
    CHECK_STR(hear(b.qemu), "last\n");
    CHECK_EQ(read(b.qemu, &b.error, 1), 0);
    CHECK(!colo_gate_is_open(&b.gate));
    tear_down(&b);
}

static void test_control_gone_with_lines_for_it(void)
{
    struct bench b;

    set_up(&b);
    close(b.control);
    b.control = -1;
    say(b.qemu, "{\"event\": \"STOP\"}\n");
    CHECK(colo_gate_look(&b.gate, &b.error)); /* one report, */
    CHECK_EQ(b.error, EPIPE);
    CHECK(!colo_gate_pump(&b.gate, &b.error)); /* not two */
    CHECK(!colo_gate_is_open(&b.gate));
    tear_down(&b);
}

static void test_attach_anew(void)
{
    struct bench b;
    int qmp[2], near[2];

    set_up(&b);
    say(b.qemu, "{\"event\": \"STOP\"}\n{");
    CHECK(!colo_gate_look(&b.gate, &b.error));
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, qmp), 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, near), 0);
    CHECK_EQ(colo_gate_attach(&b.gate, qmp[0], near[1]), 0);
    CHECK(colo_gate_is_open(&b.gate)); /* the new connection's lines count from 0 */
    say(qmp[1], "x\n");
    CHECK(!colo_gate_look(&b.gate, &b.error));
    CHECK_STR(hear(near[0]), "x\n");
    close(qmp[1]);
    close(near[0]);
    tear_down(&b);
}

CHECK_MAIN(TEST(test_counts_lines), TEST(test_done_in_parts), TEST(test_silence_keeps_it_open),
           TEST(test_commands_pass), TEST(test_back_pressure), TEST(test_qemu_gone), TEST(test_control_gone),
           TEST(test_control_gone_with_lines_for_it), TEST(test_attach_anew), )
