/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's half against a real writer: numbers by cookie, references that come back, bounds. Made for TSan too. */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "framing.h"
#include "recorder.h"

enum { SLABS = 16, SLAB = 4096, FRAME = 60 };

struct bench {
    char path[64];
    struct colo_slab_pool pool;
    struct colo_recorder *r;
};

static int set_up(struct bench *b)
{
    struct colo_engine_config config;
    struct colo_record_config record = {.path = b->path, .options = "{}", .outdev_snap = 32};
    int fd;

    *b = (struct bench){.path = "/tmp/colo-recorder-XXXXXX"};
    fd = mkstemp(b->path);
    CHECK(fd >= 0);
    close(fd);
    colo_engine_config_default(&config);
    config.max_frame = 2048;
    CHECK_EQ(colo_slab_pool_init(&b->pool, SLAB, SLABS), 0);
    return colo_recorder_create(&b->r, &record, &config, &b->pool, -1);
}

static void tear_down(struct bench *b)
{
    colo_recorder_destroy(b->r);
    CHECK_EQ(colo_slab_in_use(&b->pool), 0);
    colo_slab_pool_fini(&b->pool);
    unlink(b->path);
}

/* Puts frames into a slab, each with a reference; returns how many. */
static uint32_t fill(struct colo_slab *slab, uint64_t *cookies)
{
    uint32_t at = 0, count = 0;

    while (at + 4 + FRAME <= SLAB) {
        uint32_t head = colo_framing_write_head(false, slab->data + at, FRAME, 0);

        memset(slab->data + at + head, (int)count, FRAME);
        cookies[count] = colo_slab_with_ordinal(colo_slab_cookie(slab, at), (uint8_t)count);
        slab->refs++;
        at += head + FRAME;
        count++;
    }
    return count;
}

static void test_references_come_back(void)
{
    struct bench b;
    uint64_t cookies[SLAB / FRAME], n_fed = 0;
    struct colo_engine_counters n;

    REQUIRE(set_up(&b) == 0);
    for (int round = 0; round < 2000; round++) {
        struct colo_slab *slab = colo_slab_take(&b.pool, round % 2, false);
        uint32_t count;

        REQUIRE(slab);
        count = fill(slab, cookies);
        colo_recorder_fed(b.r, cookies[0], cookies[count - 1], count, round);
        n_fed += count;
        for (uint32_t i = 0; i < count; i++) {
            struct colo_action a = {.kind = round % 2 ? COLO_DISCARD : COLO_RELEASE, .side = (uint8_t)(round % 2),
                                    .cookie = cookies[i]};

            colo_recorder_action(b.r, &a, false);
            colo_slab_put(&b.pool, slab, 1);
        }
        colo_recorder_mark(b.r, COLO_MARK_TICK, round, 0);
        colo_recorder_publish(b.r);
        CHECK(b.r->slabs <= b.r->max_slabs + 1);
        colo_slab_put(&b.pool, slab, 1);
    }
    CHECK_EQ(b.r->seq, n_fed + 2000);
    colo_recorder_finish(b.r);
    colo_recorder_counters(b.r, &n);
    CHECK_EQ(n.record_error, 0);
    CHECK_EQ(n.record_files, 1);
    /* A release is two packets, and what was lost is counted once. */
    CHECK(n.recorded + 2 * n.record_lost >= n_fed + n_fed / 2 + 2000);
    CHECK(n.recorded > 0);
    tear_down(&b);
}

static void test_the_bound_holds_without_a_writer(void)
{
    struct bench b;
    uint64_t cookies[SLAB / FRAME];

    REQUIRE(set_up(&b) == 0);
    /* Nothing is published, so nothing comes back. */
    for (int i = 0; i < 8; i++) {
        struct colo_slab *slab = colo_slab_take(&b.pool, i % 2, false);
        uint32_t count;

        REQUIRE(slab);
        count = fill(slab, cookies);
        colo_recorder_fed(b.r, cookies[0], cookies[count - 1], count, 1);
        for (uint32_t k = 0; k < count; k++) {
            struct colo_action a = {.kind = COLO_DISCARD, .side = (uint8_t)(i % 2), .cookie = cookies[k]};

            colo_recorder_action(b.r, &a, false);
        }
        colo_slab_put(&b.pool, slab, count + 1);
    }
    CHECK_EQ(b.r->slabs, b.r->max_slabs + 1);
    CHECK(b.r->lost[0] + b.r->lost[1] > 0);
    tear_down(&b);
}

/* A slab that is used again forgets what lay in it; a frame that was never fed has no number. */
static void test_numbers(void)
{
    struct bench b;
    uint64_t cookies[SLAB / FRAME];
    struct colo_slab *slab;
    uint32_t count;

    REQUIRE(set_up(&b) == 0);
    slab = colo_slab_take(&b.pool, 0, false);
    count = fill(slab, cookies);
    REQUIRE(count > 10);
    colo_recorder_fed(b.r, cookies[0], cookies[4], 5, 10);
    colo_recorder_fed(b.r, cookies[5], cookies[7], 3, 20);
    colo_recorder_fed(b.r, cookies[0], cookies[2], 3, 30);
    for (uint32_t i = 0; i < 6; i++)
        colo_recorder_action(b.r, &(struct colo_action){.kind = COLO_DISCARD, .cookie = cookies[i]}, false);
    CHECK_EQ(b.r->next, 3);
    for (uint32_t i = 0; i < 3; i++) {
        CHECK_EQ(b.r->ring[i].seq, 9 + i);
        CHECK_EQ(b.r->ring[i].time, 30);
    }
    CHECK_EQ(b.r->lost[0], 3);
    CHECK_EQ(b.r->missing, 3);
    colo_recorder_mark(b.r, COLO_MARK_COMMIT, 40, 35);
    CHECK_EQ(b.r->ring[3].missing, 3);
    CHECK_EQ(b.r->ring[3].epoch, 1);
    CHECK_EQ(b.r->missing, 0);
    colo_slab_put(&b.pool, slab, count + 1);
    tear_down(&b);
}

static void test_a_file_that_cannot_be(void)
{
    struct colo_slab_pool pool;
    struct colo_engine_config config;
    struct colo_record_config record = {.path = "/nowhere/at/all", .options = "{}"};
    struct colo_recorder *r = NULL;

    colo_engine_config_default(&config);
    REQUIRE(colo_slab_pool_init(&pool, SLAB, SLABS) == 0);
    CHECK_EQ(colo_recorder_create(&r, &record, &config, &pool, -1), COLO_ERR_SYSTEM);
    record.max_bytes = 1; /* without a number */
    CHECK_EQ(colo_recorder_create(&r, &record, &config, &pool, -1), COLO_ERR_MISUSE);
    CHECK(r == NULL);
    colo_slab_pool_fini(&pool);
}

CHECK_MAIN(
    TEST(test_references_come_back),
    TEST(test_the_bound_holds_without_a_writer),
    TEST(test_numbers),
    TEST(test_a_file_that_cannot_be),
)
