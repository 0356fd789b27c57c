/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of the traffic generator that know no socket. */
#include <stdlib.h>

#include "check.h"
#include "csum.h"
#include "framing.h"
#include "load.h"
#include "plan.h"
#include "sample.h"
#include "traffic.h"
#include "wire.h"
#include "wish.h"

static void test_pattern_sums(void)
{
    static struct colo_pattern p;

    colo_pattern_init(&p);
    for (uint32_t phase = 0; phase < COLO_PATTERN_PERIOD; phase += 131) {
        static const uint32_t lens[] = {0, 1, 2, 3, 64, 1447, 1448, 4077, 4078, 4079, 8157, 65483};

        for (size_t i = 0; i < sizeof lens / sizeof lens[0]; i++) {
            CHECK_NOTE("phase %u len %u", phase, lens[i]);
            CHECK_EQ(colo_csum_fold(colo_pattern_sum(&p, phase, lens[i])),
                     colo_csum_fold(colo_csum_add(0, p.bytes + phase, lens[i])));
        }
    }
}

static void test_plan_goes_round(void)
{
    struct colo_plan plan;
    struct colo_cursor walked, sought;
    const uint32_t step = 7; /* divides the burst */

    REQUIRE(colo_plan_init(&plan, 3, 28, true, false) == 0);
    colo_plan_seek(&plan, &walked, 0);
    for (int i = 0; i < 100; i++) {
        colo_plan_seek(&plan, &sought, walked.x);
        CHECK_NOTE("x %ju", (uintmax_t)walked.x);
        CHECK_EQ(walked.flow, walked.x / 28 % 3);
        CHECK_EQ(walked.offset, walked.x / 84 * 28 + walked.x % 28);
        CHECK_EQ(walked.flow, sought.flow);
        CHECK_EQ(walked.offset, sought.offset);
        CHECK_EQ(walked.phase, sought.phase);
        CHECK_EQ(walked.in_burst, sought.in_burst);
        CHECK_EQ(walked.opening, walked.offset == 0);
        walked.opening = false;
        colo_plan_advance(&plan, &walked, step);
    }
    colo_plan_clear(&plan);
}

static void test_plan_of_responses(void)
{
    struct colo_plan plan;
    struct colo_cursor c;

    REQUIRE(colo_plan_init(&plan, 3, 100, true, true) == 0);
    CHECK_EQ(colo_plan_known(&plan), 0);
    colo_plan_seek(&plan, &c, 0);
    CHECK_EQ(c.in_burst, 100); /* whose it is isn't known */
    colo_plan_ask(&plan, 2, 0);
    colo_plan_ask(&plan, 0, 5);
    CHECK_EQ(colo_plan_known(&plan), 200);
    colo_plan_seek(&plan, &c, 0);
    CHECK_EQ(c.flow, 2);
    CHECK(c.opening);
    colo_plan_advance(&plan, &c, 100);
    CHECK_EQ(c.flow, 0);
    CHECK_EQ(c.offset, 500);
    CHECK(!c.opening);
    colo_plan_advance(&plan, &c, 100);
    CHECK_EQ(c.in_burst, 100);
    colo_plan_clear(&plan);
}

/* The TCP or UDP checksum over pseudo-header and all: 0 if it is right. */
static uint16_t l4_residue(const struct colo_traffic_wire_config *config, const uint8_t *ip, size_t len)
{
    const size_t head = config->ipv6 ? 40 : 20;
    uint64_t sum = colo_csum_add(0, ip + (config->ipv6 ? 8 : 12), config->ipv6 ? 32 : 8);

    sum += (len - head) + (config->udp ? 17 : 6);
    return colo_csum_fold(colo_csum_add(sum, ip + head, len - head));
}

static void check_frame(const struct colo_wire *w, uint8_t *out, uint32_t size, const struct colo_segment_spec *spec)
{
    const struct colo_traffic_wire_config *config = &w->config;
    const uint32_t head = colo_framing_head(config->vnet_hdr), vnet = config->vnet_hdr ? 12 : 0;
    const uint8_t *ip = out + head + vnet + 14;
    struct colo_traffic_wire_seen seen;

    CHECK_EQ(colo_load32(out) + head, size);
    CHECK_EQ(colo_traffic_wire_read(w, out + head, size - head, vnet, &seen), COLO_WIRE_DATA);
    CHECK_EQ(seen.flow, spec->flow);
    CHECK_EQ(seen.len, spec->len);
    CHECK_EQ(seen.tag, spec->tag);
    CHECK_EQ(seen.seq, (uint32_t)(config->udp ? spec->offset / spec->len : spec->offset));
    if (!config->udp)
        CHECK_MEM(seen.payload, w->pattern.bytes + spec->phase, spec->len);
    if (!config->ipv6)
        CHECK_EQ(colo_csum_fold(colo_csum_add(0, ip, 20)), 0);
    if (!config->vnet_hdr)
        CHECK_EQ(l4_residue(config, ip, size - head - 14), 0);
    for (uint32_t cut = 0; cut < size - head; cut += 1 + cut / 8) {
        uint8_t *part = malloc(cut + 1); /* so that reading too far is seen */

        REQUIRE(part);
        memcpy(part, out + head, cut);
        CHECK_EQ(colo_traffic_wire_read(w, part, cut, cut < vnet ? 0 : vnet, &seen), COLO_WIRE_FOREIGN);
        free(part);
    }
}

static void test_frames(void)
{
    static struct colo_wire w;
    static uint8_t out[COLO_WIRE_FRAME_MAX + COLO_WIRE_HEAD_MAX];
    static const uint32_t lens[] = {10, 11, 64, 1448, 9000, 65400};

    for (unsigned kind = 0; kind < 16; kind++) {
        const struct colo_traffic_wire_config config = {
            .vnet_hdr = kind & 1, .ipv6 = kind & 2, .udp = kind & 4, .timestamps = kind & 8, .gso_size = 1448};

        if (config.udp && config.timestamps)
            continue;
        colo_traffic_wire_init(&w, &config);
        for (size_t i = 0; i < sizeof lens / sizeof lens[0]; i++) {
            struct colo_segment_spec spec = {.flow = 40000, .len = lens[i], .tag = 777, .clock = 123456};
            uint32_t size;

            spec.offset = (uint64_t)lens[i] * 5000000; /* past 2^32 for the longer ones */
            spec.phase = (uint32_t)(spec.offset % COLO_PATTERN_PERIOD);
            size = colo_traffic_wire_write(&w, out, &spec);
            CHECK_NOTE("kind %u len %u", kind, lens[i]);
            check_frame(&w, out, size, &spec);
            if (config.vnet_hdr) {
                const bool gso = !config.udp && lens[i] > 1448;

                CHECK_EQ(out[8], 1);
                CHECK_EQ(out[9], gso ? (config.ipv6 ? 4 : 1) : 0);
                CHECK_EQ(out[12] | out[13] << 8, gso ? 1448 : 0);
                continue;
            }
            colo_traffic_wire_spoil(&w, out, size);
            CHECK_EQ(l4_residue(&config, out + 4 + 14, size - 4 - 14), 0);
            CHECK(memcmp(out + w.data.len, w.pattern.bytes + spec.phase, spec.len) != 0);
        }
    }
}

static void test_syn_ack(void)
{
    static struct colo_wire w;
    uint8_t out[COLO_WIRE_HEAD_MAX];
    struct colo_traffic_wire_seen seen;

    for (unsigned kind = 0; kind < 4; kind++) {
        const struct colo_traffic_wire_config config = {.ipv6 = kind & 1, .timestamps = kind & 2, .gso_size = 1448};
        uint32_t size;

        colo_traffic_wire_init(&w, &config);
        size = colo_traffic_wire_write_syn(&w, out, 99999, 42);
        CHECK_EQ(colo_traffic_wire_read(&w, out + 4, size - 4, 0, &seen), COLO_WIRE_SYN);
        CHECK_EQ(seen.flow, 99999);
        CHECK_EQ(l4_residue(&config, out + 4 + 14, size - 4 - 14), 0);
    }
}

static void test_latency_buckets(void)
{
    CHECK_EQ(colo_latency_index(0), 0);
    CHECK_EQ(colo_latency_index(2047), 2047);
    CHECK_EQ(colo_latency_index(UINT64_MAX), COLO_LATENCY_COUNTS - 1);
    for (size_t i = 0; i < COLO_LATENCY_COUNTS - 1; i++) {
        const uint64_t least = colo_traffic_latency_least(i), greatest = colo_traffic_latency_greatest(i);

        CHECK_NOTE("bucket %zu", i);
        REQUIRE(colo_latency_index(least) == i && colo_latency_index(greatest) == i);
        REQUIRE(colo_traffic_latency_least(i + 1) == greatest + 1);
        REQUIRE(greatest - least <= least / 1000);
    }
}

static void test_wishes(void)
{
    static const uint8_t said[] = "\0\0\0\x0d" "DO_CHECKPOINT" "\0\0\0\0" "\0\0\0\x19" "COLO_COMPARE_GET_XEN_INIT"
                                  "\0\0\0\x0d" "DO_CHECKPOINT";
    const size_t len = sizeof said - 1;

    for (size_t cut = 0; cut <= len; cut++) {
        struct colo_wishes w = {.held = 0};
        int count;

        memcpy(w.buffer, said, cut);
        count = colo_wishes_take(&w, cut);
        memcpy(w.buffer + w.held, said + cut, len - cut);
        count += colo_wishes_take(&w, len - cut);
        CHECK_NOTE("cut %zu", cut);
        CHECK_EQ(count, 2);
        CHECK_EQ(w.held, 0);
    }
    struct colo_wishes w = {.held = 0};
    memcpy(w.buffer, "GET /", 5);
    CHECK(colo_wishes_take(&w, 5) < 0);
}

CHECK_MAIN(TEST(test_pattern_sums), TEST(test_plan_goes_round), TEST(test_plan_of_responses), TEST(test_frames),
           TEST(test_syn_ack), TEST(test_latency_buckets), TEST(test_wishes), )
