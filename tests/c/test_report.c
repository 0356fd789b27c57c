/* SPDX-License-Identifier: Apache-2.0 */
#include <poll.h>

#include "check.h"
#include "report.h"

static bool readable(const struct colo_report *r)
{
    struct pollfd p = {.fd = r->fd, .events = POLLIN};

    return poll(&p, 1, 0) == 1;
}

static struct colo_engine_event ordinary(int64_t time)
{
    return (struct colo_engine_event){
        .kind = COLO_ENGINE_COMPARATOR, .time = time, .event = {.kind = COLO_EVENT_DIVERGENCE}};
}

static void test_visible_when_published(void)
{
    struct colo_report r;
    struct colo_engine_counters n = {.wakeups = 1}, got;
    struct colo_engine_event e = {.kind = COLO_ENGINE_ATTACHED, .time = 5}, out[4];

    REQUIRE(colo_report_init(&r) == 0);
    colo_report_stage(&r, &e);
    CHECK_EQ(colo_report_take(&r, out, 4), 0);
    CHECK(!readable(&r));
    colo_report_publish(&r, &n);
    CHECK(readable(&r));
    colo_report_counters(&r, &got);
    CHECK_EQ(got.wakeups, 1);
    e.time = 6;
    colo_report_stage(&r, &e);
    CHECK_EQ(colo_report_take(&r, out, 4), 1);
    CHECK_EQ(out[0].time, 5);
    CHECK(!readable(&r));
    colo_report_publish(&r, &n);
    CHECK(readable(&r));
    CHECK_EQ(colo_report_take(&r, out, 4), 1);
    CHECK_EQ(out[0].time, 6);
    colo_report_fini(&r);
}

static void test_readable_until_the_last_is_taken(void)
{
    struct colo_report r;
    struct colo_engine_counters n = {0};
    struct colo_engine_event out[2];

    REQUIRE(colo_report_init(&r) == 0);
    for (int i = 0; i < 5; i++) {
        struct colo_engine_event e = ordinary(i);

        colo_report_stage(&r, &e);
    }
    colo_report_publish(&r, &n);
    for (int left = 5; left > 0; left -= 2) {
        CHECK(readable(&r));
        CHECK_EQ(colo_report_take(&r, out, 2), left > 2 ? 2 : left);
        CHECK_EQ(out[0].time, 5 - left);
    }
    CHECK(!readable(&r));
    CHECK_EQ(colo_report_take(&r, out, 2), 0);
    colo_report_fini(&r);
}

/* A flood of differences leaves room for all that must not be lost, and is counted. */
static void test_flood(void)
{
    struct colo_report r;
    struct colo_engine_counters n = {0};
    struct colo_engine_event e, out;
    int important = 0, differences = 0;
    int64_t last = -1;

    REQUIRE(colo_report_init(&r) == 0);
    for (int i = 0; i < 1000; i++) {
        e = ordinary(i);
        colo_report_stage(&r, &e);
        if (i % 5 == 0 && colo_report_accepts(&r)) {
            e = (struct colo_engine_event){.kind = i % 2 ? COLO_ENGINE_LOST : COLO_ENGINE_COMPARATOR, .time = i,
                                           .event = {.kind = COLO_EVENT_WANT_CHECKPOINT}};
            colo_report_stage(&r, &e);
            important++;
        }
    }
    CHECK_EQ(important, 200);
    colo_report_publish(&r, &n);
    while (colo_report_take(&r, &out, 1)) {
        bool is_difference = out.kind == COLO_ENGINE_COMPARATOR && out.event.kind == COLO_EVENT_DIVERGENCE;

        CHECK(out.time >= last);
        last = out.time;
        important -= !is_difference;
        differences += is_difference;
    }
    CHECK_EQ(important, 0);
    CHECK(differences > 200);
    colo_report_counters(&r, &n);
    colo_report_publish(&r, &n);
    colo_report_counters(&r, &n);
    CHECK_EQ(n.events_lost, 1000 - differences);
    colo_report_fini(&r);
}

/* Commands are refused long before the ring is full: whatever 65 queued ones and three peers answer still fits. */
static void test_refuses_in_time(void)
{
    struct colo_report r;
    struct colo_engine_event e = {.kind = COLO_ENGINE_COMMITTED};
    int accepted = 0;

    REQUIRE(colo_report_init(&r) == 0);
    while (colo_report_accepts(&r)) {
        colo_report_stage(&r, &e);
        accepted++;
    }
    for (int i = 0; i < 65 * 3 + 7; i++)
        colo_report_stage(&r, &e); /* asserts that there is room */
    CHECK(accepted > 400);
    colo_report_fini(&r);
}

CHECK_MAIN(TEST(test_visible_when_published), TEST(test_readable_until_the_last_is_taken), TEST(test_flood),
           TEST(test_refuses_in_time), )
