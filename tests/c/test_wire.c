/* SPDX-License-Identifier: Apache-2.0 */
/* Wires over socket pairs. What needs a TAP or a packet socket is in tests/test_path.py. */
#include "path/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "load.h"

enum { MAX = 2000, LIMIT = 1 << 20 };

struct bench {
    struct colo_wire wire;
    int far;
    /* What the sink has got: */
    uint8_t data[1 << 17];
    size_t len, count;
    uint32_t lens[512];
    uint8_t nics[512], vnet_lens[512];
    size_t room; /* frames that `more` lets through */
};

static struct bench b;

static void sink(void *ctx, const struct colo_wire_frame *frame)
{
    CHECK(ctx == &b);
    REQUIRE(b.len + frame->len <= sizeof b.data && b.count < 512);
    memcpy(b.data + b.len, frame->data, frame->len);
    b.len += frame->len;
    b.nics[b.count] = frame->nic;
    b.vnet_lens[b.count] = frame->vnet_len;
    b.lens[b.count++] = frame->len;
}

static bool more(void *ctx, int nic)
{
    (void)ctx;
    (void)nic;
    return b.count < b.room;
}

static void set_up(enum colo_wire_kind kind, int vnet_len)
{
    const bool stream = kind == COLO_WIRE_STREAM || kind == COLO_WIRE_TAGGED;
    int pair[2];

    b = (struct bench){.room = SIZE_MAX};
    REQUIRE(socketpair(AF_UNIX, (stream ? SOCK_STREAM : SOCK_DGRAM) | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
    colo_wire_init(&b.wire, 5, MAX, LIMIT);
    b.wire.kind = (uint8_t)kind;
    b.wire.vnet_len = (uint8_t)vnet_len;
    b.wire.fds[b.wire.count++] = pair[0];
    b.far = pair[1];
}

static void tear_down(void)
{
    colo_wire_close(&b.wire);
    CHECK_EQ(b.wire.count, 0);
    if (b.far >= 0)
        close(b.far);
}

static int pull(int *error)
{
    return colo_wire_read(&b.wire, sink, more, &b, error);
}

static size_t head_of(uint8_t *out, uint32_t len, uint32_t word, bool tagged)
{
    colo_store32(out, len);
    if (tagged)
        colo_store32(out + 4, word);
    return tagged ? 8 : 4;
}

/* A stream of frames, whole, and cut at each place. */
static void test_streams_at_every_cut(void)
{
    static const uint32_t lens[] = {14, 60, 13, MAX, 15}; /* 13 is no frame */

    for (int tagged = 0; tagged < 2; tagged++) {
        uint8_t stream[5000];
        size_t len = 0;

        for (size_t i = 0; i < 5; i++) {
            const uint32_t vnet = tagged ? (uint32_t[]){0, 12, 0, 10, 0}[i] : 0;

            len += head_of(stream + len, lens[i], (uint32_t)i << 24 | vnet, tagged);
            memset(stream + len, (int)i + 1, lens[i]);
            len += lens[i];
        }
        for (size_t cut = 0; cut < len; cut += cut < 200 ? 1 : 97) {
            int error = 0;

            set_up(tagged ? COLO_WIRE_TAGGED : COLO_WIRE_STREAM, 0);
            CHECK_NOTE("tagged %d, cut %zu", tagged, cut);
            CHECK_EQ(write(b.far, stream, cut), cut);
            CHECK_EQ(pull(&error), COLO_WIRE_OK);
            CHECK_EQ(write(b.far, stream + cut, len - cut), len - cut);
            CHECK_EQ(pull(&error), COLO_WIRE_OK);
            REQUIRE(b.count == 4);
            CHECK_EQ(b.wire.counters.malformed, 1);
            CHECK_EQ(b.wire.counters.frames_in, 4);
            CHECK_EQ(b.lens[2], MAX);
            CHECK_EQ(b.data[b.len - 1], 5);
            CHECK_EQ(b.nics[3], tagged ? 4 : 5);
            CHECK_EQ(b.vnet_lens[1], tagged ? 12 : 0);
            tear_down();
        }
    }
}

static void test_faults(void)
{
    static const struct {
        const char *what;
        int kind;
        uint32_t len, word;
        size_t follows;
        bool closed;
        int fault; /* 1: none */
    } rows[] = {
        {"too long", COLO_WIRE_STREAM, MAX + 1, 0, 0, false, COLO_FAULT_OVERSIZE},
        {"far too long", COLO_WIRE_STREAM, UINT32_MAX, 0, 0, false, COLO_FAULT_OVERSIZE},
        {"empty", COLO_WIRE_STREAM, 0, 0, 0, false, COLO_FAULT_EMPTY},
        {"header of 11", COLO_WIRE_TAGGED, 100, 11, 0, false, COLO_FAULT_VNET},
        {"header beyond the frame", COLO_WIRE_TAGGED, 9, 10, 0, false, COLO_FAULT_VNET},
        {"cut", COLO_WIRE_STREAM, 100, 0, 99, true, COLO_FAULT_TRUNCATED},
        {"closed", COLO_WIRE_STREAM, 100, 0, 100, true, 0},
        {"whole", COLO_WIRE_STREAM, 100, 0, 100, false, 1},
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint8_t data[200] = {0};
        int error = 77, result;
        size_t len;

        CHECK_NOTE("%s", rows[i].what);
        set_up((enum colo_wire_kind)rows[i].kind, 0);
        len = head_of(data, rows[i].len, rows[i].word, rows[i].kind == COLO_WIRE_TAGGED);
        CHECK_EQ(write(b.far, data, len + rows[i].follows), len + rows[i].follows);
        if (rows[i].closed) {
            close(b.far);
            b.far = -1;
        }
        result = pull(&error);
        if (rows[i].closed) {
            CHECK_EQ(result, COLO_WIRE_OK);
            result = pull(&error);
        }
        CHECK_EQ(result, rows[i].fault == 1 ? COLO_WIRE_OK : COLO_WIRE_GONE);
        if (rows[i].fault != 1)
            CHECK_EQ(error, rows[i].fault);
        tear_down();
    }
}

/* What finds no room is neither lost nor handed on: of a stream it waits here, of datagrams in the kernel. */
static void test_room_is_asked_for_before_each_frame(void)
{
    for (int kind = COLO_WIRE_STREAM; kind <= COLO_WIRE_FRAMES; kind++) {
        uint8_t frame[64] = {0};
        int error = 0;

        set_up((enum colo_wire_kind)kind, 0);
        CHECK_NOTE("kind %d", kind);
        for (uint8_t i = 0; i < 5; i++) {
            const size_t head = kind == COLO_WIRE_STREAM ? head_of(frame, 20, 0, false) : 0;

            frame[head] = i;
            CHECK_EQ(send(b.far, frame, head + 20, 0), head + 20);
        }
        for (b.room = 0; b.room < 7; b.room++) {
            CHECK_EQ(pull(&error), COLO_WIRE_OK);
            CHECK_EQ(b.count, b.room < 5 ? b.room : 5);
            CHECK_EQ(b.wire.waits, kind == COLO_WIRE_STREAM && b.room < 5);
        }
        for (uint8_t i = 0; i < 5; i++)
            CHECK_EQ(b.data[i * 20], i);
        tear_down();
    }
}

static void test_a_peer_that_says_more_after_waiting(void)
{
    uint8_t frame[64] = {0};
    int error = 0;

    set_up(COLO_WIRE_STREAM, 0);
    (void)head_of(frame, 20, 0, false);
    CHECK_EQ(write(b.far, frame, 24), 24);
    CHECK_EQ(write(b.far, "\xff\xff\xff\xff", 4), 4); /* nonsense behind it */
    b.room = 0;
    CHECK_EQ(pull(&error), COLO_WIRE_OK);
    b.room = 9;
    CHECK_EQ(pull(&error), COLO_WIRE_GONE);
    CHECK_EQ(error, COLO_FAULT_OVERSIZE);
    CHECK_EQ(b.count, 1);
    tear_down();
}

/* Headers are brought to the wire's length; what a header asks for can't be had without one. */
static void test_virtio_headers(void)
{
    static const struct {
        int wire;
        uint32_t frame;
        uint8_t flags, gso;
        uint32_t len; /* of the Ethernet frame */
        bool refused;
    } rows[] = {
        {0, 0, 0, 0, 60, false},    {0, 10, 0, 0, 60, false},  {0, 12, 0, 0, 60, false},  {0, 10, 1, 0, 60, true},
        {0, 12, 0, 1, 60, true},    {10, 0, 0, 0, 60, false},  {12, 0, 0, 0, 60, false},  {10, 12, 1, 1, 60, false},
        {12, 10, 1, 4, 60, false},  {10, 10, 1, 1, 60, false}, {12, 12, 0, 0, 60, false}, {10, 0, 0, 0, 9000, false},
        {12, 0, 0, 0, 9000, false}, {10, 12, 1, 1, 65000, false}, {0, 12, 2, 0, 60, false},
    };
    static uint8_t frame[66000], got[66000];

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const uint32_t in = rows[i].frame, len = rows[i].len, out = (uint32_t)rows[i].wire;

        CHECK_NOTE("row %zu", i);
        set_up(COLO_WIRE_FRAMES, rows[i].wire);
        memset(frame, 0x11, sizeof frame);
        memset(frame, 0, in);
        if (in) {
            frame[0] = rows[i].flags;
            frame[1] = rows[i].gso;
            frame[6] = 34;
        }
        CHECK_EQ(colo_wire_send(&b.wire, 5, frame, in + len, in), 0);
        CHECK_EQ(b.wire.counters.refused, rows[i].refused);
        if (rows[i].refused) {
            CHECK_EQ(recv(b.far, got, sizeof got, 0), -1);
        } else {
            CHECK_EQ(recv(b.far, got, sizeof got, 0), out + len);
            CHECK_MEM(got + out, frame + in, len);
            if (out && in) {
                CHECK_MEM(got, frame, 10);
            } else {
                for (uint32_t k = 0; k < out; k++)
                    CHECK_EQ(got[k], 0);
            }
            if (out == 12)
                CHECK_EQ(got[10] | got[11], 0);
        }
        tear_down();
    }
}

static void test_datagrams_wait_in_order_when_the_kernel_is_full(void)
{
    uint8_t frame[600] = {0}, got[700];
    uint16_t sent = 0, seen = 0;

    set_up(COLO_WIRE_FRAMES, 10);
    while (!b.wire.blocked && sent < 60000) {
        colo_store16(frame + 40, sent++);
        CHECK_EQ(colo_wire_send(&b.wire, 0, frame, 512, 12), 0);
    }
    REQUIRE(b.wire.blocked);
    for (int i = 0; i < 100; i++) {
        colo_store16(frame + 40, sent++);
        CHECK_EQ(colo_wire_send(&b.wire, 0, frame, 512, 12), 0);
    }
    CHECK_EQ(colo_fifo_len(&b.wire.out), 101 * (8 + 510));
    CHECK_EQ(colo_wire_flush(&b.wire), 0); /* still full */
    while (seen < sent) {
        REQUIRE(recv(b.far, got, sizeof got, 0) == 510);
        CHECK_EQ(colo_load16(got + 38), seen);
        seen++;
        CHECK_EQ(colo_wire_flush(&b.wire), 0);
    }
    CHECK(!b.wire.blocked);
    CHECK_EQ(colo_fifo_len(&b.wire.out), 0);
    tear_down();
}

/* Too long for the other side: it is counted, and what follows goes on its way. */
static void test_frames_longer_than_the_peer_takes(void)
{
    static uint8_t frame[400000], got[100];
    const int small = 4096;

    set_up(COLO_WIRE_FRAMES, 0);
    CHECK_EQ(setsockopt(b.wire.fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
    CHECK_EQ(colo_wire_send(&b.wire, 0, frame, sizeof frame, 0), 0);
    CHECK_EQ(b.wire.counters.refused, 1);
    CHECK_EQ(colo_wire_send(&b.wire, 0, frame, 60, 0), 0);
    CHECK_EQ(recv(b.far, got, sizeof got, 0), 60);
    tear_down();
}

static void test_a_peer_that_is_gone(void)
{
    static uint8_t frame[60];

    for (int kind = COLO_WIRE_STREAM; kind <= COLO_WIRE_FRAMES; kind++) {
        set_up((enum colo_wire_kind)kind, 0);
        close(b.far);
        b.far = -1;
        CHECK_EQ(colo_wire_send(&b.wire, 0, frame, sizeof frame, 0), 0);
        CHECK(colo_wire_flush(&b.wire) > 0);
        tear_down();
        CHECK_EQ(colo_wire_flush(&b.wire), 0);
        CHECK_EQ(colo_wire_send(&b.wire, 0, frame, sizeof frame, 0), 0); /* nobody is there */
        CHECK_EQ(b.wire.counters.refused, 1);
    }
}

/* At a cut of epochs: what is not begun goes away, the rest of the frame that is begun still comes. */
static void test_void(void)
{
    static uint8_t frame[1000], got[1 << 20];
    size_t total = 0, dropped;
    ssize_t n;

    set_up(COLO_WIRE_TAGGED, 0);
    CHECK_EQ(colo_wire_void(&b.wire), 0);
    for (int i = 0; i < 1000; i++)
        CHECK_EQ(colo_wire_send(&b.wire, 7, frame, sizeof frame - 1, 0), 0);
    CHECK_EQ(colo_wire_flush(&b.wire), 0);
    REQUIRE(b.wire.blocked);
    dropped = colo_wire_void(&b.wire);
    CHECK(dropped > 0 && dropped < 1000);
    CHECK_EQ(colo_fifo_len(&b.wire.out), b.wire.begun);
    do {
        n = recv(b.far, got, sizeof got, 0);
        total += n > 0 ? (size_t)n : 0;
        CHECK_EQ(colo_wire_flush(&b.wire), 0);
    } while (n > 0);
    CHECK_EQ(total, (1000 - dropped) * (8 + sizeof frame - 1));
    CHECK_EQ(colo_wire_send(&b.wire, 9, frame, 100, 10), 0);
    CHECK_EQ(colo_wire_flush(&b.wire), 0);
    CHECK_EQ(recv(b.far, got, sizeof got, 0), 108);
    CHECK_MEM(got, "\0\0\0\x64\x09\0\0\x0a", 8);
    tear_down();
}

CHECK_MAIN(
    TEST(test_streams_at_every_cut),
    TEST(test_faults),
    TEST(test_room_is_asked_for_before_each_frame),
    TEST(test_a_peer_that_says_more_after_waiting),
    TEST(test_virtio_headers),
    TEST(test_datagrams_wait_in_order_when_the_kernel_is_full),
    TEST(test_frames_longer_than_the_peer_takes),
    TEST(test_a_peer_that_is_gone),
    TEST(test_void),
)
