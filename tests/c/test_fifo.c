/* SPDX-License-Identifier: Apache-2.0 */
#include "fifo.h"

#include <stdlib.h>

#include "check.h"

static uint8_t expected; /* the next byte to come out, and ... */
static uint8_t next;     /* ... to go in */

static void put(struct colo_fifo *f, size_t len)
{
    uint8_t *room = colo_fifo_room(f, len);

    REQUIRE(room != NULL);
    for (size_t i = 0; i < len; i++)
        room[i] = next++;
    colo_fifo_put(f, len);
}

static void take(struct colo_fifo *f, size_t len)
{
    REQUIRE(colo_fifo_len(f) >= len);
    for (size_t i = 0; i < len; i++)
        CHECK_EQ(colo_fifo_front(f)[i], expected++);
    colo_fifo_take(f, len);
}

static struct colo_fifo fresh(size_t limit)
{
    struct colo_fifo f;

    colo_fifo_init(&f, limit);
    expected = next = 0;
    return f;
}

static void test_order_through_moves_and_growth(void)
{
    static const struct {
        size_t put, take;
    } rows[] = {{1, 0}, {4000, 4001}, {4096, 1}, {1, 4000}, {5000, 96}, {300000, 5000}, {1, 300001}, {7, 7}};
    struct colo_fifo f = fresh(SIZE_MAX);

    for (int round = 0; round < 3; round++)
        for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
            CHECK_NOTE("round %d, row %zu", round, i);
            put(&f, rows[i].put);
            take(&f, rows[i].take);
        }
    CHECK_EQ(colo_fifo_len(&f), 0);
    colo_fifo_fini(&f);
}

/* Nearly full, with little taken and put each time: it must not be copied whole for each few bytes. */
static void test_moves_are_few(void)
{
    enum { WAITS = 1 << 20, STEP = 100, STEPS = 50000 };
    struct colo_fifo f = fresh(SIZE_MAX);
    size_t moved = 0;

    put(&f, WAITS);
    for (int i = 0; i < STEPS; i++) {
        const size_t to = f.to;

        put(&f, STEP);
        if (f.to != to + STEP)
            moved += WAITS;
        take(&f, STEP);
    }
    CHECK(moved <= (size_t)3 * (WAITS + STEP * STEPS));
    CHECK(f.size <= (size_t)4 * (WAITS + STEP));
    colo_fifo_fini(&f);
}

static void test_memory_is_given_back(void)
{
    static const struct {
        size_t burst;
        bool kept;
    } rows[] = {{100, true}, {1 << 19, true}, {(1 << 20) + 1, false}, {10 << 20, false}};

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct colo_fifo f = fresh(SIZE_MAX);

        CHECK_NOTE("row %zu", i);
        put(&f, rows[i].burst);
        take(&f, rows[i].burst - 1);
        CHECK(f.data != NULL);
        take(&f, 1);
        CHECK_EQ(f.data != NULL, rows[i].kept);
        CHECK_EQ(colo_fifo_len(&f), 0);
        put(&f, 10);
        take(&f, 10);
        colo_fifo_fini(&f);
    }
}

static void test_limit(void)
{
    struct colo_fifo f = fresh(100);

    CHECK(colo_fifo_has_room(&f, 1000)); /* an empty one takes anything once */
    put(&f, 60);
    CHECK(colo_fifo_has_room(&f, 40));
    CHECK(!colo_fifo_has_room(&f, 41));
    CHECK(!colo_fifo_has_room(&f, SIZE_MAX));
    put(&f, 60); /* whoever must not lose it goes beyond */
    CHECK(!colo_fifo_has_room(&f, 0));
    take(&f, 120);
    CHECK(colo_fifo_has_room(&f, 101));
    colo_fifo_fini(&f);
    CHECK_EQ(f.limit, 100);
}

static void test_cut(void)
{
    struct colo_fifo f = fresh(SIZE_MAX);

    put(&f, 10);
    take(&f, 2);
    colo_fifo_cut(&f, 3);
    CHECK_EQ(colo_fifo_len(&f), 3);
    take(&f, 3);
    next = expected;
    put(&f, 5);
    colo_fifo_cut(&f, 0);
    CHECK_EQ(colo_fifo_len(&f), 0);
    colo_fifo_fini(&f);
}

CHECK_MAIN(
    TEST(test_order_through_moves_and_growth),
    TEST(test_moves_are_few),
    TEST(test_memory_is_given_back),
    TEST(test_limit),
    TEST(test_cut),
)
