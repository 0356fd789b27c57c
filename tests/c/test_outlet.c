/* SPDX-License-Identifier: Apache-2.0 */
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "framing.h"
#include "outlet.h"

struct bench {
    struct colo_slab_pool pool;
    struct colo_outlet out;
    int far;
};

static void set_up(struct bench *b, bool vnet_hdr)
{
    struct colo_engine_config config;
    int pair[2];

    colo_engine_config_default(&config);
    config.vnet_hdr = vnet_hdr;
    config.max_out_bytes = 1000;
    CHECK_EQ(colo_slab_pool_init(&b->pool, 4096, 8), 0);
    CHECK_EQ(colo_outlet_init(&b->out, &b->pool, &config), 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
    colo_outlet_attach(&b->out, pair[0]);
    b->far = pair[1];
}

static void tear_down(struct bench *b)
{
    colo_outlet_fini(&b->out);
    CHECK_EQ(colo_slab_in_use(&b->pool), 0);
    colo_slab_pool_fini(&b->pool);
    close(b->far);
}

/* A frame of `len` zero bytes in a slab of its own, named by its cookie. */
static uint64_t frame(struct bench *b, uint32_t len, uint32_t vnet_len)
{
    struct colo_slab *s = colo_slab_take(&b->pool, 0, false);
    uint32_t head = colo_framing_write_head(b->out.vnet_hdr, s->data, len, vnet_len);

    memset(s->data + head, 0, len);
    return colo_slab_cookie(s, 0);
}

enum { NIC_7 = 7 << 24 };

static void test_lowered_ack_is_written(void)
{
    for (int vnet = 0; vnet < 2; vnet++) {
        struct bench b;
        uint8_t got[128];
        uint32_t head = vnet ? 8 : 4, len = vnet ? 72 : 60;

        CHECK_NOTE("vnet %d", vnet);
        set_up(&b, vnet);
        struct colo_action a = {.kind = COLO_RELEASE, .cookie = frame(&b, len, vnet ? NIC_7 + 12 : 0), .ack_at = 42,
                                .csum_at = 58, .ack = 0x01020304, .csum = 0xfffe};
        CHECK_EQ(colo_outlet_release(&b.out, &a), 0);
        CHECK_EQ(colo_outlet_flush(&b.out), 0);
        CHECK_EQ(read(b.far, got, sizeof got), head + len);
        if (vnet)
            CHECK_MEM(got, "\0\0\0\x48\7\0\0\x0c", 8); /* the words that it came with */
        CHECK_MEM(got + head + 42, "\1\2\3\4", 4);
        CHECK_MEM(got + head + 58, "\xff\xfe", 2);
        for (uint32_t i = 0; i < len; i++)
            CHECK(i - 42 < 4 || i - 58 < 2 || got[head + i] == 0);
        tear_down(&b);
    }
}

static void test_emitted_frames_are_copied(void)
{
    struct bench b;
    uint8_t mine[66], got[74 * 500];
    size_t have = 0;

    set_up(&b, true);
    for (int i = 0; i < 500; i++) { /* more than one slab of them */
        memset(mine, i, sizeof mine);
        struct colo_action a = {
            .kind = COLO_EMIT, .data = mine, .len = sizeof mine, .vnet_len = 12, .nic = (uint8_t)(i % 3)};
        CHECK_EQ(colo_outlet_emit(&b.out, &a), 0);
        memset(mine, 0xee, sizeof mine); /* the comparator's buffer is its own again */
    }
    CHECK_EQ(b.out.queue.bytes, sizeof got);
    CHECK(b.out.queue.count <= 4); /* side by side in their slabs */
    while (have < sizeof got) {
        CHECK_EQ(colo_outlet_flush(&b.out), 0);
        ssize_t n = read(b.far, got + have, sizeof got - have);
        REQUIRE(n > 0);
        have += (size_t)n;
    }
    for (int i = 0; i < 500; i++) {
        CHECK_MEM(got + 74 * i, "\0\0\0\x42", 4);
        CHECK_EQ(got[74 * i + 4], i % 3);
        CHECK_MEM(got + 74 * i + 5, "\0\0\x0c", 3);
        CHECK_EQ(got[74 * i + 8], i & 255);
        CHECK_EQ(got[74 * i + 73], i & 255);
    }
    CHECK_EQ(colo_slab_in_use(&b.out.own_pool), 1); /* the one being filled */
    tear_down(&b);
}

/* Order is kept between frames of the two pools. */
static void test_order(void)
{
    struct bench b;
    uint8_t mine[20], got[256];

    set_up(&b, false);
    for (int i = 0; i < 3; i++) {
        struct colo_action release = {.kind = COLO_RELEASE, .cookie = frame(&b, 10, 0)};
        memset(mine, 'a' + i, sizeof mine);
        struct colo_action emit = {.kind = COLO_EMIT, .data = mine, .len = sizeof mine};
        CHECK_EQ(colo_outlet_release(&b.out, &release), 0);
        CHECK_EQ(colo_outlet_emit(&b.out, &emit), 0);
    }
    CHECK_EQ(colo_outlet_flush(&b.out), 0);
    CHECK_EQ(read(b.far, got, sizeof got), 3 * (14 + 24));
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(got[i * 38 + 4], 0);
        CHECK_EQ(got[i * 38 + 14 + 4], 'a' + i);
    }
    tear_down(&b);
}

static void test_full_has_two_marks(void)
{
    static const struct {
        uint64_t bytes;
        bool full;
    } rows[] = {{0, false}, {1000, false}, {1001, true}, {501, true}, {500, false}, {1000, false}, {5000, true}};
    struct bench b;

    set_up(&b, false);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        CHECK_NOTE("row %zu", i);
        b.out.queue.bytes = rows[i].bytes;
        CHECK_EQ(colo_outlet_full(&b.out), rows[i].full);
    }
    b.out.queue.bytes = 0;
    tear_down(&b);
}

CHECK_MAIN(TEST(test_lowered_ack_is_written), TEST(test_emitted_frames_are_copied), TEST(test_order),
           TEST(test_full_has_two_marks), )
