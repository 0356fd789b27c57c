/* SPDX-License-Identifier: Apache-2.0 */
/* The small parts of the comparator: sequence numbers, checksums, hash, record pool, flow table. */
#include <stdlib.h>

#include "check.h"
#include "csum.h"
#include "flow.h"
#include "hash.h"
#include "load.h"
#include "seq.h"

static void test_seq_extend(void)
{
    static const struct {
        uint32_t base;
        int64_t ref;
        uint32_t seq;
        int64_t expect;
    } rows[] = {
        {0, 0, 0, 0},
        {0, 0, 0x7fffffff, 0x7fffffff},
        {0, 0, 0x80000000, -0x80000000LL},          /* exactly half way: behind */
        {0xfffffff0, 0, 0x10, 0x20},                /* across 2^32 */
        {0x7ffffff0, 0, 0x80000010, 0x20},          /* across 2^31 */
        {0xfffffff0, 0x20, 0xfffffff8, 8},          /* and back */
        {5, 0x100000000LL, 6, 0x100000001LL},       /* beyond 4 GiB */
        {5, 0x1ffffffffLL, 4, 0x1ffffffffLL},
        {5, 0x1ffffffffLL, 7, 0x200000002LL},
        {1, 0, 0, -1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        CHECK_NOTE("row %zu", i);
        CHECK_EQ(colo_seq_extend(rows[i].base, rows[i].ref, rows[i].seq), rows[i].expect);
        CHECK_EQ(colo_seq_at(rows[i].base, rows[i].expect), rows[i].seq);
    }
}

static void test_csum(void)
{
    /* RFC 1071, section 3: 0001 f203 f4f5 f6f7 sum to ddf2. */
    static const uint8_t rfc1071[] = {0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7};
    uint8_t data[64];
    uint32_t rng = 1;

    CHECK_EQ(colo_csum_fold(colo_csum_add(0, rfc1071, 8)), (uint16_t)~0xddf2);
    CHECK_EQ(colo_csum_fold(colo_csum_add(0, rfc1071, 7)), (uint16_t)~(uint16_t)(0xddf2 - 0xf7));
    /* RFC 1624, section 4: the corner where the older equation gives 0000 instead of ffff. */
    CHECK_EQ(colo_csum_update32(0xdd2f, 0x55550000, 0x32850000), 0x0000);
    for (int i = 0; i < 2000; i++) {
        uint32_t to;
        uint16_t before;

        for (size_t k = 0; k < sizeof data; k++)
            data[k] = (uint8_t)((rng = rng * 1103515245u + 12345u) >> 24);
        to = rng;
        before = colo_csum_fold(colo_csum_add(0, data, sizeof data));
        before = colo_csum_update32(before, colo_load32(data + 8), to);
        colo_store32(data + 8, to);
        CHECK_EQ(before, colo_csum_fold(colo_csum_add(0, data, sizeof data)));
    }
}

static void test_hash_depends_on_all(void)
{
    uint8_t data[50] = {0};
    uint64_t zero = colo_hash(7, data, sizeof data);

    for (size_t bit = 0; bit < sizeof data * 8; bit++) {
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        CHECK_NOTE("bit %zu", bit);
        CHECK(colo_hash(7, data, sizeof data) != zero);
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    for (size_t len = 0; len < sizeof data; len++)
        CHECK(colo_hash(7, data, len) != zero);
    CHECK(colo_hash(8, data, sizeof data) != zero);
}

static void test_pool_limit(void)
{
    struct colo_pool *pool = colo_pool_create(300);
    struct colo_rec *recs[300];

    REQUIRE(pool);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 300; i++) {
            recs[i] = colo_pool_get(pool);
            REQUIRE(recs[i]);
            CHECK_EQ(recs[i]->len, 0);
            recs[i]->len = 1;
        }
        CHECK(colo_pool_get(pool) == NULL);
        for (int i = 0; i < 300; i++)
            colo_pool_put(pool, recs[i]);
    }
    colo_pool_destroy(pool);
    colo_pool_destroy(NULL);
}

static void test_lists(void)
{
    struct colo_rec recs[4];
    struct colo_list list = {NULL, NULL};

    memset(recs, 0, sizeof recs);
    colo_flow_list_push(&list, &recs[1]);
    colo_flow_list_push(&list, &recs[3]);
    colo_flow_list_insert(&list, &recs[1], &recs[2]);
    colo_flow_list_insert(&list, NULL, &recs[0]);
    for (int i = 0; i < 4; i++) {
        CHECK(list.head == &recs[i]);
        colo_flow_list_remove(&list, &recs[i]);
    }
    CHECK(!list.head && !list.tail);
}

static struct colo_flow_id id_of(uint32_t n)
{
    struct colo_flow_id id;

    memset(&id, 0, sizeof id);
    id.family = 4;
    id.cls = COLO_CLASS_TCP;
    colo_store32(id.dst, n);
    return id;
}

static void test_table_finds_and_evicts(void)
{
    enum { LIMIT = 1000 };
    struct colo_table *table = colo_table_create(LIMIT, 42);
    struct colo_flow_id id;

    REQUIRE(table);
    for (uint32_t n = 0; n < LIMIT; n++) {
        id = id_of(n);
        CHECK(colo_table_find(table, &id) == NULL);
        REQUIRE(colo_table_add(table, &id));
    }
    CHECK_EQ(*colo_table_evictions(table), 0);
    for (uint32_t n = 0; n < LIMIT; n++) {
        struct colo_flow *flow;

        id = id_of(n);
        flow = colo_table_find(table, &id);
        REQUIRE(flow);
        CHECK_MEM(&flow->id, &id, sizeof id);
        flow->held[0] = 1; /* not idle */
    }
    id = id_of(LIMIT);
    CHECK(colo_table_add(table, &id) == NULL); /* none is idle */
    CHECK_EQ(colo_table_count(table), LIMIT);
    id = id_of(77);
    colo_table_find(table, &id)->held[0] = 0;
    for (uint32_t n = 0; n < 5000; n++) { /* only number 77's place is ever given away, again and again */
        struct colo_flow *flow;

        id = id_of(LIMIT + n);
        do
            flow = colo_table_add(table, &id);
        while (!flow); /* the search for a victim is bounded: it may need several calls to come round */
        CHECK_EQ(*colo_table_evictions(table), n + 1);
        CHECK(colo_table_find(table, &id) == flow);
    }
    for (uint32_t n = 0; n < LIMIT; n++) {
        id = id_of(n);
        CHECK_EQ(colo_table_find(table, &id) != NULL, n != 77);
    }
    colo_table_clear(table);
    CHECK_EQ(colo_table_count(table), 0);
    id = id_of(1);
    CHECK(colo_table_find(table, &id) == NULL);
    CHECK(colo_table_add(table, &id) != NULL);
    colo_table_destroy(table);
    colo_table_destroy(NULL);
}

static void make_room(struct colo_table *table, uint32_t first, uint32_t count)
{
    for (uint32_t n = 0; n < count; n++) {
        struct colo_flow_id id = id_of(first + n);

        REQUIRE(colo_table_add(table, &id));
    }
}

static bool is_there(struct colo_table *table, uint32_t n)
{
    struct colo_flow_id id = id_of(n);

    return colo_table_find(table, &id) != NULL;
}

static void test_idle_flows_make_room_by_standing(void)
{
    struct colo_table *table = colo_table_create(96, 1);

    REQUIRE(table);
    for (uint32_t n = 0; n < 96; n++) {
        struct colo_flow_id id = id_of(n);
        static const uint8_t standings[3] = {COLO_LIVE, COLO_FRESH, COLO_SPARE};

        colo_table_set_standing(table, colo_table_add(table, &id), standings[n % 3]);
    }
    make_room(table, 1000, 32);
    for (uint32_t n = 0; n < 96; n++) {
        CHECK_NOTE("flow %u", (unsigned)n);
        CHECK_EQ(is_there(table, n), n % 3 != 2);
    }
    make_room(table, 2000, 500); /* the newcomers are FRESH: they push out FRESH ones, the old ones first */
    for (uint32_t n = 0; n < 96; n++) {
        CHECK_NOTE("flow %u", (unsigned)n);
        CHECK_EQ(is_there(table, n), n % 3 == 0);
    }
    colo_table_destroy(table);
}

static void test_newcomers_leave_live_flows_alone(void)
{
    struct colo_table *table = colo_table_create(80, 1);
    struct colo_flow_id id;

    REQUIRE(table);
    make_room(table, 0, 80);
    for (uint32_t n = 0; n < 70; n++) {
        id = id_of(n);
        colo_table_set_standing(table, colo_table_find(table, &id), COLO_LIVE);
    }
    for (uint32_t n = 70; n < 80; n++) {
        id = id_of(n);
        colo_table_find(table, &id)->held[0] = 1; /* half-open connections that wait for the secondary */
    }
    id = id_of(1000);
    CHECK(colo_table_add(table, &id) == NULL); /* refused: a flood can't push out what is live and idle */
    CHECK_EQ(*colo_table_evictions(table), 0);
    for (uint32_t n = 70; n < 80; n++) {
        id = id_of(n);
        colo_table_set_standing(table, colo_table_find(table, &id), COLO_LIVE); /* 70 is their share: one for one */
        CHECK_EQ(*colo_table_evictions(table), n - 69);
    }
    CHECK_EQ(colo_table_count(table), 70);
    make_room(table, 2000, 10);
    colo_table_destroy(table);
}

static void test_a_live_flow_in_use_gets_a_second_chance(void)
{
    struct colo_table *table = colo_table_create(80, 1);
    struct colo_flow_id id;

    REQUIRE(table);
    for (uint32_t n = 0; n < 2000; n++) {
        id = id_of(n);
        colo_table_set_standing(table, colo_table_add(table, &id), COLO_LIVE);
        CHECK(is_there(table, 3) || n < 3); /* looked up all the time */
    }
    CHECK(!is_there(table, 4));
    CHECK_EQ(colo_table_count(table), 70);
    colo_table_destroy(table);
}

static void test_idle_flow_size(void)
{
    CHECK(sizeof(struct colo_flow) <= 512);
}

CHECK_MAIN(TEST(test_seq_extend), TEST(test_csum), TEST(test_hash_depends_on_all), TEST(test_pool_limit),
           TEST(test_lists), TEST(test_table_finds_and_evicts), TEST(test_idle_flows_make_room_by_standing),
           TEST(test_newcomers_leave_live_flows_alone), TEST(test_a_live_flow_in_use_gets_a_second_chance),
           TEST(test_idle_flow_size))
