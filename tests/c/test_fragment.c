/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fragments and super-frames under the sanitizers. Invariant: each frame taken comes back in exactly one action, from a
 * buffer of its own size that is freed at that moment; no primary frame is discarded; limits hold. What is judged equal
 * is the business of tests/test_rules_fragment.py and of the Python model.
 */
#include <stdlib.h>

#include "check.h"
#include "frames.h"
#include "coloproxy.h"
#include "fragment.h"

enum { MAX_FRAMES = 4000, PAYLOAD = 100, V4_HEADER = 34, V6_HEADER = 54 };

struct fed {
    uint8_t *data;
    uint8_t side;
    uint8_t done;
};

struct bench {
    colo_comparator *c;
    struct fed fed[MAX_FRAMES];
    uint32_t count;
    uint64_t order[MAX_FRAMES]; /* cookies of released frames */
    uint32_t released;
    uint64_t rng;
    int64_t now;
};

static uint32_t roll(struct bench *b, uint32_t n)
{
    b->rng = b->rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(b->rng >> 33) % n;
}

static struct bench *bench_new(const struct colo_config *config)
{
    struct bench *b = calloc(1, sizeof *b);
    struct colo_config defaults;

    if (!CHECK(b != NULL))
        abort();
    colo_config_default(&defaults);
    b->c = colo_comparator_create(config ? config : &defaults);
    if (!CHECK(b->c != NULL))
        abort();
    b->now = 1;
    colo_comparator_commit(b->c, b->now, b->now);
    return b;
}

static void carry_out(struct bench *b)
{
    struct colo_action actions[9];
    struct colo_event events[9];
    size_t n;

    while ((n = colo_comparator_actions(b->c, actions, 9)) > 0)
        for (size_t i = 0; i < n; i++) {
            struct fed *fed = &b->fed[actions[i].cookie];

            if (!CHECK(actions[i].kind != COLO_EMIT && !fed->done))
                continue;
            CHECK_EQ(actions[i].side, fed->side);
            CHECK_EQ(actions[i].kind, fed->side == COLO_PRIMARY ? COLO_RELEASE : COLO_DISCARD);
            if (fed->side == COLO_PRIMARY)
                b->order[b->released++] = actions[i].cookie;
            fed->done = 1;
            free(fed->data); /* the comparator must not look at it any more */
            fed->data = NULL;
        }
    while (colo_comparator_events(b->c, events, 9) > 0)
        ;
}

static bool feed(struct bench *b, int side, const uint8_t *data, uint32_t len, uint32_t vnet_len)
{
    struct fed *fed = &b->fed[b->count];
    struct colo_frame frame = {.len = len, .vnet_len = vnet_len, .cookie = b->count};
    long taken;

    if (!CHECK(b->count < MAX_FRAMES))
        return false;
    fed->data = malloc(len ? len : 1); /* the sanitizer guards its end */
    if (!CHECK(fed->data != NULL))
        return false;
    memcpy(fed->data, data, len);
    frame.data = fed->data;
    fed->side = (uint8_t)side;
    taken = colo_comparator_feed(b->c, side, &frame, 1, b->now);
    if (taken != 1) {
        CHECK_EQ(taken, 0);
        free(fed->data);
        fed->data = NULL;
        return false;
    }
    b->count++;
    return true;
}

/* After a last commit all have come back. */
static void bench_end(struct bench *b)
{
    struct colo_counters n;

    b->now++;
    colo_comparator_abort(b->c, b->now);
    colo_comparator_commit(b->c, b->now + 1, b->now + 1);
    carry_out(b);
    colo_comparator_counters(b->c, &n);
    CHECK_EQ(n.held_frames[0] + n.held_frames[1], 0);
    CHECK_EQ(n.held_bytes[0] + n.held_bytes[1], 0);
    CHECK_EQ(n.fragments_waiting[0] + n.fragments_waiting[1], 0);
    for (uint32_t i = 0; i < b->count; i++)
        CHECK(b->fed[i].done);
    colo_comparator_destroy(b->c);
    free(b);
}

/* Bytes [low, high) of a datagram's IP payload, as a fragment; what lies beyond the datagram is filled up. */
static uint32_t cut(uint8_t *out, int family, uint32_t low, uint32_t high, bool more, uint16_t id, uint8_t fill)
{
    static uint8_t whole[70000], payload[PAYLOAD];
    struct frame_spec f = {.family = family, .udp = 1, .sport = 53, .dport = 4000, .payload = payload,
                           .payload_len = PAYLOAD};
    uint32_t header = family == 6 ? V6_HEADER : V4_HEADER, at = header;

    for (uint32_t i = 0; i < PAYLOAD; i++)
        payload[i] = (uint8_t)i;
    memset(whole, fill, sizeof whole);
    frame_build(whole, &f);
    memcpy(out, whole, header);
    if (family == 6) {
        colo_store16(out + 18, (uint16_t)(8 + high - low));
        out[20] = 44;
        out[at] = 17;
        out[at + 1] = 0;
        colo_store16(out + at + 2, (uint16_t)(low | more));
        colo_store32(out + at + 4, id);
        at += 8;
    } else {
        colo_store16(out + 16, (uint16_t)(20 + high - low));
        colo_store16(out + 18, id);
        colo_store16(out + 20, (uint16_t)(more << 13 | low / 8));
    }
    memcpy(out + at, whole + header + low, high - low);
    return at + high - low;
}

static uint32_t whole_frame(uint8_t *out, int family)
{
    uint8_t payload[PAYLOAD];
    struct frame_spec f = {.family = family, .udp = 1, .sport = 53, .dport = 4000, .payload = payload,
                           .payload_len = PAYLOAD};

    for (uint32_t i = 0; i < PAYLOAD; i++)
        payload[i] = (uint8_t)i;
    return frame_build(out, &f);
}

static void test_every_order(void)
{
    static const uint32_t points[] = {0, 24, 32, 80, 8 + PAYLOAD};

    for (int family = 4; family <= 6; family += 2)
        for (int order = 0; order < 256; order++) {
            uint32_t index[4] = {order & 3, order >> 2 & 3, order >> 4 & 3, order >> 6 & 3};
            uint8_t buf[256];
            struct bench *b;

            if ((1 << index[0] | 1 << index[1] | 1 << index[2] | 1 << index[3]) != 15)
                continue;
            CHECK_NOTE("family %d, order %02x", family, order);
            b = bench_new(NULL);
            feed(b, COLO_SECONDARY, buf, whole_frame(buf, family), 0);
            for (int i = 0; i < 4; i++) {
                uint32_t k = index[i];

                carry_out(b);
                CHECK_EQ(b->released, 0);
                feed(b, COLO_PRIMARY, buf, cut(buf, family, points[k], points[k + 1], k < 3, 7, 0), 0);
            }
            carry_out(b);
            CHECK_EQ(b->released, 4);
            for (uint32_t i = 0; i < 4; i++)
                CHECK_EQ(b->order[i], i + 1); /* order of arrival */
            bench_end(b);
        }
}

/* Each fragment cut at every length: it is malformed or, where only padding could be missing, whole; never half read. */
static void test_every_truncation(void)
{
    for (int family = 4; family <= 6; family += 2)
        for (uint32_t which = 0; which < 2; which++) {
            uint8_t buf[256];
            uint32_t len = cut(buf, family, which ? 64 : 0, which ? 8 + PAYLOAD : 64, !which, 7, 0);

            for (uint32_t keep = 0; keep < len; keep++) {
                struct bench *b = bench_new(NULL);
                struct colo_counters n;

                CHECK_NOTE("family %d, fragment %u, %u bytes", family, (unsigned)which, (unsigned)keep);
                cut(buf, family, which ? 64 : 0, which ? 8 + PAYLOAD : 64, !which, 7, 0);
                feed(b, COLO_PRIMARY, buf, keep, 0);
                feed(b, COLO_PRIMARY, buf, cut(buf, family, which ? 0 : 64, which ? 64 : 8 + PAYLOAD, which, 7, 0), 0);
                feed(b, COLO_SECONDARY, buf, whole_frame(buf, family), 0);
                carry_out(b);
                colo_comparator_counters(b->c, &n);
                CHECK_EQ(b->released, 0);
                CHECK_EQ(n.datagrams_reassembled, 0);
                bench_end(b);
            }
        }
}

static void test_the_largest_datagram(void)
{
    for (int family = 4; family <= 6; family += 2) {
        static const uint32_t sizes[] = {1480, 32768, 256, 248}; /* 248: more than 256 of them */
        uint32_t total = family == 6 ? 65535 : 65515;

        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            static uint8_t buf[70000];
            struct bench *b = bench_new(NULL);
            struct colo_counters n;

            CHECK_NOTE("family %d, pieces of %u", family, (unsigned)sizes[i]);
            for (uint32_t at = 0; at < total; at += sizes[i]) {
                uint32_t stop = at + sizes[i] < total ? at + sizes[i] : total;

                feed(b, COLO_PRIMARY, buf, cut(buf, family, at, stop, stop < total, 7, 0), 0);
            }
            colo_comparator_counters(b->c, &n);
            CHECK_EQ(n.datagrams_reassembled, sizes[i] >= 256);
            CHECK_EQ(n.limits[COLO_CAUSE_LIMIT_FRAGMENTS], sizes[i] < 256);
            /* One byte more is too much. */
            feed(b, COLO_PRIMARY, buf, cut(buf, family, 0, 65512, true, 8, 0), 0);
            feed(b, COLO_PRIMARY, buf, cut(buf, family, 65512, total + 1, false, 8, 0), 0);
            colo_comparator_counters(b->c, &n);
            CHECK_EQ(n.datagrams_reassembled, sizes[i] >= 256);
            bench_end(b);
        }
    }
}

static void test_a_flood_is_bounded(void)
{
    struct colo_config config;
    struct colo_counters n;
    colo_comparator *c;
    uint8_t buf[256];
    uint32_t len = cut(buf, 6, 8, 16, true, 0, 0);
    struct colo_frame frame = {.data = buf, .len = len};
    struct colo_action actions[64];

    colo_config_default(&config);
    config.max_fragments = 100;
    c = colo_comparator_create(&config);
    REQUIRE(c);
    colo_comparator_commit(c, 1, 1);
    for (uint32_t i = 0; i < 50000; i++) {
        colo_store32(buf + V6_HEADER + 4, i); /* held fragments alias this buffer: harmless, they are never whole */
        CHECK_EQ(colo_comparator_feed(c, COLO_SECONDARY, &frame, 1, 2), 1);
        while (colo_comparator_actions(c, actions, 64) > 0)
            ;
    }
    colo_comparator_counters(c, &n);
    CHECK_EQ(n.fragments_waiting[COLO_SECONDARY], 100);
    CHECK_EQ(n.held_frames[COLO_SECONDARY], 100);
    CHECK_EQ(n.fragments_dropped, 49900);
    CHECK_EQ(n.limits[COLO_CAUSE_LIMIT_FRAGMENTS], 49900);
    for (uint32_t i = 0; i < 1000; i++) { /* none of the primary's is dropped */
        colo_store32(buf + V6_HEADER + 4, i);
        CHECK_EQ(colo_comparator_feed(c, COLO_PRIMARY, &frame, 1, 2), 1);
    }
    colo_comparator_counters(c, &n);
    CHECK_EQ(n.fragments_waiting[COLO_PRIMARY], 100);
    CHECK_EQ(n.held_frames[COLO_PRIMARY], 1000);
    colo_comparator_destroy(c);
}

/* Few datagrams, many pieces, most of which contradict some other. */
static void feed_random(struct bench *b)
{
    uint8_t buf[512];
    int family = roll(b, 2) ? 4 : 6;
    uint32_t total = 8 + PAYLOAD, low = roll(b, 14) * 8, high = low + (1 + roll(b, 8)) * 8, len, vnet_len = 0;
    bool last = roll(b, 3) == 0;

    if (last || high > total)
        high = total + (roll(b, 10) ? 0 : roll(b, 20));
    if (high < low)
        high = low;
    if (roll(b, 12) == 0)
        high -= high > low ? 1 : 0;
    switch (roll(b, 8)) {
    case 0:
        len = whole_frame(buf, family);
        break;
    case 1: /* a super-frame */
        vnet_len = 12;
        memset(buf, 0, 12);
        buf[1] = roll(b, 4) ? 5 : (uint8_t)roll(b, 256);
        buf[4] = (uint8_t)roll(b, 120);
        len = 12 + whole_frame(buf + 12, family);
        break;
    default:
        len = cut(buf, family, low, high, !last, (uint16_t)roll(b, 3), (uint8_t)roll(b, 2));
        break;
    }
    for (uint32_t spoil = roll(b, 10) ? 0 : 2; spoil; spoil--)
        buf[vnet_len + roll(b, len - vnet_len)] = (uint8_t)roll(b, 256);
    if (roll(b, 20) == 0)
        len = vnet_len + roll(b, len - vnet_len);
    feed(b, roll(b, 2) ? COLO_PRIMARY : COLO_SECONDARY, buf, len, vnet_len);
}

static void run(uint64_t seed)
{
    struct colo_config config;
    struct colo_counters n;
    struct bench *b;
    uint32_t steps;

    colo_config_default(&config);
    config.max_frames = (uint32_t)(10 + seed % 200);
    config.max_fragments = (uint32_t)(1 + seed % 30);
    config.max_flows = (uint32_t)(1 + seed % 4);
    config.max_flow_frames = (uint32_t)(1 + seed % 50);
    config.reorder_frames = (uint32_t)(1 + seed % 9);
    config.keep_gap = seed % 2;
    config.compare_timeout = 500;
    config.reorder_window = 50;
    b = bench_new(&config);
    b->rng = seed;
    steps = roll(b, 400);
    CHECK_NOTE("seed %llu", (unsigned long long)seed);
    for (uint32_t i = 0; i < steps; i++) {
        b->now += roll(b, 20);
        switch (roll(b, 50)) {
        case 0:
            colo_comparator_stop(b->c, b->now);
            break;
        case 1:
            colo_comparator_commit(b->c, b->now - roll(b, 60), b->now);
            break;
        case 2:
            colo_comparator_abort(b->c, b->now);
            break;
        case 3:
            if (roll(b, 5) == 0)
                colo_comparator_alone(b->c, b->now);
            break;
        case 4:
        case 5:
            b->now += roll(b, 600);
            if (colo_comparator_deadline(b->c) <= b->now) {
                colo_comparator_tick(b->c, b->now);
                CHECK(colo_comparator_deadline(b->c) > b->now);
            }
            break;
        default:
            feed_random(b);
            break;
        }
        if (roll(b, 3))
            carry_out(b);
        colo_comparator_counters(b->c, &n);
        CHECK(n.fragments_waiting[0] <= config.max_fragments && n.fragments_waiting[1] <= config.max_fragments);
    }
    if (roll(b, 4)) {
        bench_end(b);
        return;
    }
    colo_comparator_destroy(b->c); /* while it holds frames */
    for (uint32_t i = 0; i < b->count; i++)
        free(b->fed[i].data);
    free(b);
}

static void test_random_schedules(void)
{
    const char *only = getenv("COLO_SEED");

    if (only) {
        run(strtoull(only, NULL, 0));
        return;
    }
    for (uint64_t seed = 1; seed <= 4000 && check_failures == 0; seed++)
        run(seed);
}

CHECK_MAIN(TEST(test_every_order), TEST(test_every_truncation), TEST(test_the_largest_datagram),
           TEST(test_a_flood_is_bounded), TEST(test_random_schedules))
