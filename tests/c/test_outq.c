/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "coloproxy.h"
#include "framing.h"
#include "outq.h"

enum { SIZE = 16384 };

struct bench {
    struct colo_slab_pool pool;
    struct colo_outq q;
    int fd[2];
};

static void set_up(struct bench *b, bool vnet_hdr)
{
    int small = 1;

    CHECK_EQ(colo_slab_pool_init(&b->pool, SIZE, 4096), 0);
    colo_outq_init(&b->q, vnet_hdr);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, b->fd), 0);
    setsockopt(b->fd[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
}

static void tear_down(struct bench *b)
{
    colo_outq_fini(&b->q);
    CHECK_EQ(colo_slab_in_use(&b->pool), 0);
    colo_slab_pool_fini(&b->pool);
    close(b->fd[0]);
    if (b->fd[1] >= 0)
        close(b->fd[1]);
}

/* Writes a frame of `len` bytes of `fill` at `at` and takes its reference; returns where it ends. */
static uint32_t put_frame(const struct bench *b, struct colo_slab *slab, uint32_t at, uint32_t len, int fill)
{
    uint32_t head = colo_framing_write_head(b->q.vnet_hdr, slab->data + at, len, 0);

    memset(slab->data + at + head, fill, len);
    slab->refs++;
    return at + head + len;
}

static void test_neighbours_merge(void)
{
    struct bench b;
    struct colo_slab *s;
    uint32_t at[5] = {0};
    uint8_t got[256];
    struct colo_outq_written w = {0};

    set_up(&b, false);
    s = colo_slab_take(&b.pool, 0, false);
    REQUIRE(s != NULL);
    for (int i = 0; i < 4; i++)
        at[i + 1] = put_frame(&b, s, at[i], 10, 'a' + i);
    CHECK_EQ(colo_outq_push(&b.q, &b.pool, s, at[0], at[1]), 0);
    CHECK_EQ(colo_outq_push(&b.q, &b.pool, s, at[1], at[2]), 0);
    CHECK_EQ(b.q.count, 1);
    CHECK_EQ(colo_outq_push(&b.q, &b.pool, s, at[3], at[4]), 0); /* one was left out */
    CHECK_EQ(b.q.count, 2);
    CHECK_EQ(colo_outq_push(&b.q, &b.pool, s, at[2], at[3]), 0); /* and comes later: order is kept */
    CHECK_EQ(b.q.count, 3);
    CHECK_EQ(b.q.bytes, 4 * 14);
    colo_slab_put(&b.pool, s, 1);

    CHECK_EQ(colo_outq_flush(&b.q, b.fd[0], &w), 0);
    CHECK_EQ(w.calls, 1);
    CHECK_EQ(w.bytes, 4 * 14);
    CHECK_EQ(b.q.bytes, 0);
    CHECK_EQ(read(b.fd[1], got, sizeof got), 4 * 14);
    CHECK_EQ(got[4], 'a');
    CHECK_EQ(got[18], 'b');
    CHECK_EQ(got[32], 'd');
    CHECK_EQ(got[46], 'c');
    CHECK_EQ(colo_slab_in_use(&b.pool), 0);
    tear_down(&b);
}

/* More ranges than one system call takes, and a ring that has to grow while it is wrapped. */
static void test_many_ranges(void)
{
    enum { FRAMES = 3000 };
    struct bench b;
    struct colo_slab *s = NULL;
    struct colo_outq_written w = {0};
    uint32_t next = 0, expected = 0;
    uint8_t got[65536];
    size_t have = 0;

    set_up(&b, true);
    for (uint32_t i = 0; i < FRAMES; i++) {
        if (!s || next + 64 > SIZE) {
            if (s)
                colo_slab_put(&b.pool, s, 1);
            s = colo_slab_take(&b.pool, 0, false);
            next = 0;
        }
        REQUIRE(s != NULL);
        uint32_t from = next;
        next = put_frame(&b, s, from, 4, 0);
        memcpy(s->data + from + 8, &i, 4);
        CHECK_EQ(colo_outq_push(&b.q, &b.pool, s, from, next), 0);
        next++; /* a hole: never neighbours */
        if (i == 200) /* so that the ring's head is not at 0 when it grows */
            CHECK_EQ(colo_outq_flush(&b.q, b.fd[0], &w), 0);
    }
    colo_slab_put(&b.pool, s, 1);
    while (expected < FRAMES) {
        ssize_t n;
        size_t at = 0;

        CHECK_EQ(colo_outq_flush(&b.q, b.fd[0], &w), 0);
        n = read(b.fd[1], got + have, sizeof got - have);
        REQUIRE(n > 0);
        have += (size_t)n;
        for (; have - at >= 12; at += 12, expected++) {
            uint32_t i;

            memcpy(&i, got + at + 8, 4);
            REQUIRE(CHECK_EQ(i, expected));
        }
        memmove(got, got + at, have - at);
        have -= at;
    }
    CHECK_EQ(have, 0);
    CHECK_EQ(b.q.bytes, 0);
    CHECK_EQ(w.bytes, FRAMES * 12);
    tear_down(&b);
}

/* The peer is lost after any number of bytes: the next one gets the cut frame from its start, and all after it. */
static void test_lost_anywhere(void)
{
    enum { FRAMES = 4, LEN = 5, WIRE = FRAMES * (4 + LEN) };

    for (size_t cut = 0; cut <= WIRE; cut++) {
        struct bench b;
        struct colo_slab *s;
        struct colo_outq_written w = {0};
        uint8_t got[WIRE + 1];
        uint32_t at = 0;
        size_t whole = cut - cut % (4 + LEN);

        CHECK_NOTE("cut after %zu", cut);
        set_up(&b, false);
        s = colo_slab_take(&b.pool, 0, false);
        REQUIRE(s != NULL);
        for (int i = 0; i < FRAMES; i++) {
            uint32_t end = put_frame(&b, s, at, LEN, 'a' + i);

            CHECK_EQ(colo_outq_push(&b.q, &b.pool, s, at, end), 0);
            at = end;
        }
        colo_slab_put(&b.pool, s, 1);
        CHECK_EQ(b.q.count, 1);
        /* As flush leaves it after a partial write; the wire can't be made to take an exact number of bytes. */
        b.q.sent = (uint32_t)cut;
        b.q.bytes -= cut;
        if (cut < WIRE) {
            colo_outq_rewind(&b.q);
            CHECK_EQ(b.q.bytes, WIRE - whole);
            CHECK_EQ(s->refs, FRAMES - whole / (4 + LEN));
            CHECK_EQ(colo_outq_flush(&b.q, b.fd[0], &w), 0);
            CHECK_EQ(read(b.fd[1], got, sizeof got), WIRE - whole);
            CHECK_EQ(got[4], 'a' + (int)(whole / (4 + LEN)));
        }
        tear_down(&b);
    }
}

static void test_partial_writes(void)
{
    enum { FRAME = 16000, SLABS = 64 };
    struct bench b;
    struct colo_outq_written w = {0};
    static uint8_t got[SLABS * (FRAME + 4)];
    size_t have = 0;
    int turns = 0;

    set_up(&b, false);
    for (int i = 0; i < SLABS; i++) {
        struct colo_slab *s = colo_slab_take(&b.pool, 0, false);

        REQUIRE(s != NULL);
        CHECK_EQ(colo_outq_push(&b.q, &b.pool, s, 0, put_frame(&b, s, 0, FRAME, i)), 0);
        colo_slab_put(&b.pool, s, 1);
    }
    while (have < sizeof got) {
        ssize_t n;

        CHECK_EQ(colo_outq_flush(&b.q, b.fd[0], &w), 0);
        CHECK_EQ(w.bytes + b.q.bytes, sizeof got);
        n = read(b.fd[1], got + have, 1500);
        REQUIRE(n > 0);
        have += (size_t)n;
        turns++;
    }
    CHECK(turns > SLABS);
    for (int i = 0; i < SLABS; i++) {
        const uint8_t *frame = got + (size_t)i * (FRAME + 4);

        CHECK_MEM(frame, "\0\0\x3e\x80", 4);
        CHECK_EQ(frame[4], i);
        CHECK_EQ(frame[FRAME + 3], i);
    }
    tear_down(&b);
}

static void test_broken_peer(void)
{
    struct bench b;
    struct colo_slab *s;
    struct colo_outq_written w = {0};

    set_up(&b, false);
    s = colo_slab_take(&b.pool, 0, false);
    REQUIRE(s != NULL);
    CHECK_EQ(colo_outq_push(&b.q, &b.pool, s, 0, put_frame(&b, s, 0, 9, 1)), 0);
    colo_slab_put(&b.pool, s, 1);
    close(b.fd[1]);
    b.fd[1] = -1;
    errno = 0;
    CHECK_EQ(colo_outq_flush(&b.q, b.fd[0], &w), COLO_ERR_SYSTEM); /* and no SIGPIPE */
    CHECK_EQ(errno, EPIPE);
    CHECK_EQ(b.q.bytes, 13);
    tear_down(&b);
}

CHECK_MAIN(TEST(test_neighbours_merge), TEST(test_many_ranges), TEST(test_lost_anywhere), TEST(test_partial_writes),
           TEST(test_broken_peer), )
