/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"
#include "coloproxy.h"
#include "slab.h"

enum { SIZE = 256 };

static void test_counts_references(void)
{
    struct colo_slab_pool pool;
    struct colo_slab *slab;

    REQUIRE(colo_slab_pool_init(&pool, SIZE, 4) == 0);
    slab = colo_slab_take(&pool, COLO_PRIMARY, false);
    REQUIRE(slab != NULL);
    memset(slab->data, 0xa5, SIZE);
    slab->refs += 2;
    colo_slab_put(&pool, slab, 1);
    CHECK_EQ(colo_slab_in_use(&pool), 1);
    colo_slab_put(&pool, slab, 2);
    CHECK_EQ(colo_slab_in_use(&pool), 0);
    CHECK(colo_slab_take(&pool, COLO_SECONDARY, false) == slab); /* the last one put comes first */
    CHECK_EQ(pool.used[COLO_SECONDARY], 1);
    colo_slab_pool_fini(&pool);
}

static void test_cookie_names_a_byte(void)
{
    struct colo_slab_pool pool;
    struct colo_slab *a, *b;

    REQUIRE(colo_slab_pool_init(&pool, SIZE, 4) == 0);
    a = colo_slab_take(&pool, 0, false);
    b = colo_slab_take(&pool, 0, false);
    REQUIRE(a && b);
    CHECK(colo_slab_of(&pool, colo_slab_cookie(a, 7)) == a);
    CHECK(colo_slab_of(&pool, colo_slab_cookie(b, SIZE - 1)) == b);
    CHECK_EQ(colo_slab_at(colo_slab_cookie(b, SIZE - 1)), SIZE - 1);
    colo_slab_pool_fini(&pool);
}

/* Whatever one side does, the other can have its quarter. */
static void test_shares(void)
{
    for (uint32_t max = 4; max <= 40; max += 4) {
        for (int greedy = 0; greedy < 2; greedy++) {
            struct colo_slab_pool pool;
            uint32_t got = 0, other = 0;

            CHECK_NOTE("max %u greedy %d", max, greedy);
            REQUIRE(colo_slab_pool_init(&pool, SIZE, max) == 0);
            while (colo_slab_take(&pool, greedy, false))
                got++;
            while (colo_slab_take(&pool, !greedy, false))
                other++;
            CHECK_EQ(got, max - max / 4);
            CHECK_EQ(other, max / 4);
            colo_slab_pool_fini(&pool);
        }
    }
}

static void test_both_greedy(void)
{
    struct colo_slab_pool pool;
    uint32_t got[2] = {0, 0};
    bool more = true;

    REQUIRE(colo_slab_pool_init(&pool, SIZE, 16) == 0);
    while (more) {
        more = false;
        for (int side = 0; side < 2; side++)
            if (colo_slab_take(&pool, side, false)) {
                got[side]++;
                more = true;
            }
    }
    CHECK_EQ(got[0], 8);
    CHECK_EQ(got[1], 8);
    colo_slab_pool_fini(&pool);
}

/* A forced slab goes beyond the share or the pool, but not twice for a side at its edge. */
static void test_forced(void)
{
    struct colo_slab_pool pool;
    struct colo_slab *forced;

    REQUIRE(colo_slab_pool_init(&pool, SIZE, 8) == 0);
    while (colo_slab_take(&pool, COLO_SECONDARY, false))
        ;
    forced = colo_slab_take(&pool, COLO_SECONDARY, true);
    CHECK(forced != NULL);
    CHECK(colo_slab_take(&pool, COLO_SECONDARY, true) == NULL);
    CHECK(colo_slab_take(&pool, COLO_PRIMARY, false) != NULL); /* 8 of 8 */
    CHECK(colo_slab_take(&pool, COLO_PRIMARY, false) == NULL);
    CHECK(colo_slab_take(&pool, COLO_PRIMARY, true) != NULL);
    CHECK(colo_slab_take(&pool, COLO_PRIMARY, true) != NULL); /* total 10: the table's end */
    CHECK(colo_slab_take(&pool, COLO_PRIMARY, true) == NULL);
    colo_slab_put(&pool, forced, 1);
    CHECK(colo_slab_take(&pool, COLO_SECONDARY, true) != NULL);
    colo_slab_pool_fini(&pool);
}

/* More slabs than are kept when free: the rest goes back to the system, and comes again. */
static void test_returns_memory(void)
{
    enum { MANY = 300 };
    struct colo_slab_pool pool;
    struct colo_slab *slabs[MANY];

    REQUIRE(colo_slab_pool_init(&pool, SIZE, 2 * MANY) == 0);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < MANY; i++) {
            slabs[i] = colo_slab_take(&pool, i & 1, false);
            REQUIRE(slabs[i] != NULL);
            CHECK(colo_slab_of(&pool, colo_slab_cookie(slabs[i], 0)) == slabs[i]);
        }
        for (int i = 0; i < MANY; i++)
            colo_slab_put(&pool, slabs[(i * 7) % MANY], 1);
        CHECK_EQ(colo_slab_in_use(&pool), 0);
        CHECK(pool.kept < MANY);
    }
    colo_slab_pool_fini(&pool);
    colo_slab_pool_fini(&pool); /* harmless */
}

CHECK_MAIN(TEST(test_counts_references), TEST(test_cookie_names_a_byte), TEST(test_shares), TEST(test_both_greedy),
           TEST(test_forced), TEST(test_returns_memory), )
