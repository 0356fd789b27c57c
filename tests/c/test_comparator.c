/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random schedules under the sanitizers. Invariant: each frame taken comes back in exactly one action; no primary
 * frame is discarded, none of a flow overtakes another, and after a last commit nothing is held. What may be released
 * when is the business of the Python model (tests/model); here it is memory, lists and accounting.
 */
#include <stdlib.h>

#include "check.h"
#include "frames.h"
#include "parse.h"

enum { MAX_FRAMES = 3000, PATHS = 6, NICS = 2, FLOWS = PATHS * NICS }; /* both NICs have the same addresses and ports */

struct fed {
    uint8_t *data;
    uint32_t flow;
    uint32_t order; /* of its flow and side */
    uint8_t side;
    uint8_t nic;
    uint8_t done;
};

struct world {
    colo_comparator *c;
    struct fed fed[MAX_FRAMES];
    uint32_t count;
    uint32_t next_order[2][FLOWS];
    uint32_t last_released[FLOWS];
    uint64_t rng;
    int64_t now;
};

static uint32_t roll(struct world *w, uint32_t n)
{
    w->rng = w->rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(w->rng >> 33) % n;
}

static void carry_out(struct world *w)
{
    struct colo_action actions[7];
    struct colo_event events[5];
    size_t n;

    while ((n = colo_comparator_actions(w->c, actions, 7)) > 0)
        for (size_t i = 0; i < n; i++) {
            struct fed *fed = &w->fed[actions[i].cookie];
            struct colo_packet p;

            if (actions[i].kind == COLO_EMIT) {
                colo_parse(actions[i].data, actions[i].len, actions[i].vnet_len, &p);
                CHECK_EQ(p.id.cls, COLO_CLASS_TCP);
                CHECK_EQ(p.tcp_flags, COLO_TCP_ACK);
                continue;
            }
            CHECK(!fed->done);
            CHECK_EQ(actions[i].side, fed->side);
            CHECK_EQ(actions[i].nic, fed->nic);
            CHECK_EQ(actions[i].kind, fed->side == COLO_PRIMARY ? COLO_RELEASE : COLO_DISCARD);
            if (fed->side == COLO_PRIMARY && actions[i].reason != COLO_REASON_PASSED) {
                CHECK(fed->order > w->last_released[fed->flow]);
                w->last_released[fed->flow] = fed->order;
            }
            fed->done = 1;
            free(fed->data); /* the comparator must not look at it any more */
            fed->data = NULL;
        }
    while (colo_comparator_events(w->c, events, 5) > 0)
        ;
}

/* Few flows, small sequence space, all flags: collisions of every kind are likely. */
static void feed_random(struct world *w)
{
    static const uint8_t text[] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab";
    static const uint8_t flags[] = {COLO_TCP_ACK, COLO_TCP_ACK, COLO_TCP_ACK, COLO_TCP_ACK, COLO_TCP_SYN,
                                    COLO_TCP_SYN | COLO_TCP_ACK, COLO_TCP_FIN | COLO_TCP_ACK, COLO_TCP_RST,
                                    COLO_TCP_RST | COLO_TCP_ACK, COLO_TCP_SYN | COLO_TCP_FIN | COLO_TCP_RST, 0};
    uint8_t buf[512];
    uint32_t path = roll(w, PATHS);
    uint8_t nic = (uint8_t)roll(w, NICS);
    uint8_t side = (uint8_t)roll(w, 2);
    struct frame_spec f = {.family = path % 2 ? 4 : 6, .sport = (uint16_t)path, .dport = 9, .udp = path >= 4,
                           .seq = (roll(w, 8) ? 0xffffffe0u : 0x7fffffe0u) + roll(w, 64), .ack = roll(w, 64) - 32,
                           .flags = flags[roll(w, sizeof flags)], .payload = text + roll(w, 4),
                           .payload_len = roll(w, 3) ? roll(w, 40) : 0, .vnet_len = roll(w, 2) * 12};
    uint32_t len = frame_build(buf, &f);
    struct fed *fed = &w->fed[w->count];
    struct colo_frame frame = {.len = len, .vnet_len = f.vnet_len, .cookie = w->count, .nic = nic};
    uint32_t flow = path + PATHS * nic;
    long taken;

    fed->data = malloc(len);
    if (!CHECK(fed->data != NULL))
        return;
    memcpy(fed->data, buf, len);
    frame.data = fed->data;
    taken = colo_comparator_feed(w->c, side, &frame, 1, w->now);
    if (!CHECK(taken == 0 || taken == 1) || taken == 0) {
        free(fed->data);
        fed->data = NULL;
        return;
    }
    fed->flow = flow;
    fed->side = side;
    fed->nic = nic;
    fed->order = ++w->next_order[side][flow];
    w->count++;
}

/* Rules for some of the flows, and in every third world for bytes that may differ: the text's last one. */
static void give_rules(struct world *w, struct colo_config *config)
{
    static const struct colo_tolerance_rule tolerance = {.length = 9, .after_len = 4, .after = "aaaa"};
    static struct colo_rule rules[2];

    for (int i = 0; i < 2; i++)
        rules[i] = (struct colo_rule){{.has = COLO_MATCH_VM_PORT, .vm_port = {(uint16_t)roll(w, PATHS), PATHS}},
                                      (uint8_t)roll(w, COLO_POLICY_COUNT)};
    config->rules = rules;
    config->rules_count = roll(w, 3);
    config->tolerances = &tolerance;
    config->tolerances_count = roll(w, 3) == 0;
}

static void run_world(uint64_t seed)
{
    struct world *w = calloc(1, sizeof *w);
    struct colo_config config;
    struct colo_counters n;
    uint32_t steps;

    REQUIRE(w);
    w->rng = seed;
    colo_config_default(&config);
    config.max_flows = 1 + roll(w, 8);
    config.max_frames = 20 + roll(w, 300);
    config.max_bytes = 4000 + roll(w, 30000);
    config.max_flow_frames = 1 + roll(w, 60);
    config.reorder_frames = 1 + roll(w, 8);
    config.keep_gap = (uint8_t)roll(w, 2);
    config.compare_timeout = 2000;
    config.reorder_window = 50;
    give_rules(w, &config);
    w->c = colo_comparator_create(&config);
    REQUIRE(w->c);
    CHECK_NOTE("seed %llu", (unsigned long long)seed);
    steps = roll(w, MAX_FRAMES);
    for (uint32_t i = 0; i < steps && w->count < MAX_FRAMES; i++) {
        w->now += roll(w, 20);
        switch (roll(w, 40)) {
        case 0:
            colo_comparator_stop(w->c, w->now);
            break;
        case 1:
            colo_comparator_commit(w->c, w->now - roll(w, 60), w->now);
            break;
        case 2:
            colo_comparator_abort(w->c, w->now);
            break;
        case 3:
            if (roll(w, 10) == 0)
                colo_comparator_alone(w->c, w->now);
            break;
        case 4:
            if (colo_comparator_deadline(w->c) <= w->now) {
                colo_comparator_tick(w->c, w->now);
                CHECK(colo_comparator_deadline(w->c) > w->now);
            }
            break;
        default:
            feed_random(w);
            break;
        }
        if (roll(w, 3))
            carry_out(w);
        colo_comparator_counters(w->c, &n);
        CHECK(n.held_frames[0] <= config.max_frames / 2 && n.held_frames[1] <= config.max_frames / 2);
    }
    if (roll(w, 4)) { /* else: destroyed while it holds frames */
        colo_comparator_abort(w->c, w->now); /* else keep_gap keeps what came since the stop */
        colo_comparator_commit(w->c, w->now + 1, w->now + 1);
        carry_out(w);
        colo_comparator_counters(w->c, &n);
        CHECK_EQ(n.held_frames[0] + n.held_frames[1], 0);
        CHECK_EQ(n.held_bytes[0] + n.held_bytes[1], 0);
        for (uint32_t i = 0; i < w->count; i++)
            CHECK(w->fed[i].done);
        CHECK_EQ(n.released[0] + n.released[1] + n.released[2] + n.released[3], n.frames_in[0]);
    }
    colo_comparator_destroy(w->c);
    for (uint32_t i = 0; i < w->count; i++)
        free(w->fed[i].data);
    free(w);
}

static void test_random_schedules(void)
{
    const char *only = getenv("COLO_SEED");

    if (only) {
        run_world(strtoull(only, NULL, 0));
        return;
    }
    for (uint64_t seed = 1; seed <= 1500 && check_failures == 0; seed++)
        run_world(seed);
}

/* One TCP flow or one bag of datagrams on each NIC, with the same addresses and ports: neither proves the other's. */
static void test_nics_are_apart(void)
{
    struct row {
        const char *name;
        int side;
        uint8_t nic;
        uint32_t seq, ack;
        const char *payload;
        const char *then; /* the actions: side, NIC; an ACK of the comparator's own is 'a', NIC */
    };
    static const struct row tcp[] = {
        {"NIC 0 says", 0, 0, 1000, 7, "abc", ""},
        {"another NIC's says the same", 1, 1, 1000, 7, "abc", ""},
        {"NIC 1 says it as well", 0, 1, 1000, 7, "abc", "s1p1"},
        {"and the copy of the first", 1, 0, 1000, 7, "abc", "s0p0"},
        {"its ACK is ahead", 0, 1, 1003, 9, "def", ""},
        {"so it leaves lowered", 1, 1, 1003, 7, "def", "s1p1"},
        {"NIC 0 has nothing to do with it", 1, 0, 1003, 9, "", "s0"},
        {"the debt is paid on NIC 1", 1, 1, 1006, 9, "", "s1a1"},
    };
    static const struct row udp[] = {
        {"NIC 0 says", 0, 0, 0, 0, "abc", ""},
        {"another NIC's says the same", 1, 2, 0, 0, "abc", ""},
        {"the copy", 1, 0, 0, 0, "abc", "s0p0"},
        {"NIC 2 says it as well", 0, 2, 0, 0, "abc", "s2p2"},
    };
    static const struct {
        const struct row *rows;
        size_t count;
        int udp;
    } tables[] = {{tcp, sizeof tcp / sizeof tcp[0], 0}, {udp, sizeof udp / sizeof udp[0], 1}};

    for (size_t t = 0; t < 4; t++) {
        static uint8_t buf[8][256];
        struct colo_config config;
        colo_comparator *c;

        colo_config_default(&config);
        c = colo_comparator_create(&config);
        REQUIRE(c);
        colo_comparator_commit(c, 0, 0);
        for (size_t i = 0; i < tables[t / 2].count; i++) {
            const struct row *row = &tables[t / 2].rows[i];
            struct frame_spec f = {.family = t % 2 ? 6 : 4, .sport = 80, .dport = 9, .udp = tables[t / 2].udp,
                                   .seq = row->seq, .ack = row->ack, .flags = COLO_TCP_ACK,
                                   .payload = (const uint8_t *)row->payload,
                                   .payload_len = (uint32_t)strlen(row->payload)};
            struct colo_frame frame = {.data = buf[i], .len = frame_build(buf[i], &f), .cookie = i, .nic = row->nic};
            struct colo_action actions[8];
            char then[32] = "", *at = then;
            size_t n;

            CHECK_NOTE("%s, IPv%d: %s", f.udp ? "UDP" : "TCP", f.family, row->name);
            CHECK_EQ(colo_comparator_feed(c, row->side, &frame, 1, 1), 1);
            while ((n = colo_comparator_actions(c, actions, 8)) > 0)
                for (size_t k = 0; k < n; k++) {
                    *at++ = actions[k].kind == COLO_EMIT ? 'a' : "ps"[actions[k].side];
                    *at++ = (char)('0' + actions[k].nic);
                }
            if (!CHECK(strcmp(then, row->then) == 0))
                fprintf(stderr, "  got %s, not %s\n", then, row->then);
        }
        colo_comparator_destroy(c);
    }
}

static void test_misuse_is_refused(void)
{
    struct colo_config config;
    struct colo_frame frame = {.data = (const uint8_t *)"x", .len = 1, .vnet_len = 12};
    colo_comparator *c;

    colo_config_default(&config);
    CHECK(colo_comparator_create(NULL) == NULL);
    config.max_flows = 0;
    CHECK(colo_comparator_create(&config) == NULL);
    colo_config_default(&config);
    c = colo_comparator_create(&config);
    REQUIRE(c);
    CHECK_EQ(colo_comparator_feed(c, 2, &frame, 1, 0), COLO_ERR_MISUSE);
    CHECK_EQ(colo_comparator_feed(c, COLO_PRIMARY, &frame, 1, 0), COLO_ERR_MISUSE); /* header longer than frame */
    colo_comparator_destroy(c);
    colo_comparator_destroy(NULL);
}

CHECK_MAIN(TEST(test_random_schedules), TEST(test_nics_are_apart),
           TEST(test_misuse_is_refused))
