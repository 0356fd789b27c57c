/* SPDX-License-Identifier: Apache-2.0 */
/* The ring of the last seconds: bounds, the ring's end, what a dump has. */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "recring.h"

enum { CAP = 20000, FRAME = 1500, SECOND = 1000000000 };

struct bench {
    char dir[64];
    struct colo_recblock block;
    struct colo_recring ring;
    uint8_t frame[FRAME];
};

static int set_up(struct bench *b, int64_t window)
{
    struct colo_record_config config = {.options = "{}", .ring_dir = b->dir, .ring_bytes = CAP, .ring_time = window,
                                        .ring_wait = SECOND, .ring_gap = 10};

    *b = (struct bench){.dir = "/tmp/colo-recring-XXXXXX", .ring.dir = -1};
    CHECK(mkdtemp(b->dir) != NULL);
    CHECK_EQ(colo_recblock_init(&b->block, &config, FRAME), 0);
    return colo_recring_open(&b->ring, &b->block, &config);
}

static void tear_down(struct bench *b)
{
    colo_recring_close(&b->ring);
    colo_recblock_fini(&b->block);
    CHECK_EQ(rmdir(b->dir), 0);
}

static void keep(struct bench *b, struct colo_note note)
{
    note.data = b->frame;
    colo_recblock_note(&b->block, &note);
    colo_recring_keep(&b->ring, &b->block, &note);
}

/* Its length. */
static uint64_t dump(struct bench *b)
{
    struct colo_record_dump out;
    char path[160];
    struct stat st = {0};

    colo_recring_dump(&b->ring, &b->block, &out);
    CHECK_EQ(out.error, 0);
    snprintf(path, sizeof path, "%s/%s", b->dir, out.name);
    CHECK_EQ(stat(path, &st), 0);
    CHECK_EQ(st.st_size, out.bytes);
    CHECK_EQ(st.st_mode & 0777, 0600);
    unlink(path);
    return out.bytes;
}

/* Every place for an entry, headers and blocks across the end included. */
static void test_bytes_are_bounded(void)
{
    struct bench b;
    unsigned dice = 1;

    REQUIRE(set_up(&b, INT64_MAX / 2) == 0);
    for (int i = 0; i < 20000; i++) {
        dice = dice * 1103515245 + 12345;
        keep(&b, (struct colo_note){.kind = (uint8_t)(i % 3), .side = (uint8_t)(i % 3 != 0), .now = i, .time = i - 5,
                                    .seq = (uint64_t)i, .len = dice >> 16 & 1023});
        CHECK(b.ring.head - b.ring.tail <= CAP);
        CHECK(i < 200 || b.ring.head - b.ring.tail > CAP - 4096);
    }
    colo_recring_diverged(&b.ring, 20000, 0);
    CHECK(b.ring.pending);
    CHECK(dump(&b) > CAP / 2);
    CHECK(!b.ring.pending);
    tear_down(&b);
}

static void test_time_is_bounded_and_stands_still_for_a_dump(void)
{
    struct bench b;
    uint64_t two, all;

    REQUIRE(set_up(&b, 100) == 0);
    keep(&b, (struct colo_note){.kind = COLO_NOTE_MARK, .reason = COLO_MARK_COMMIT, .time = 1, .epoch = 1});
    keep(&b, (struct colo_note){.kind = COLO_NOTE_DISCARDED, .side = 1, .now = 50, .len = 100});
    two = b.ring.head - b.ring.tail;
    keep(&b, (struct colo_note){.kind = COLO_NOTE_DISCARDED, .side = 1, .now = 120, .len = 100});
    CHECK_EQ(b.ring.base.mode, COLO_MODE_PROTECTED); /* the commit is forgotten, but not what it did */
    CHECK_EQ(b.ring.base.epoch, 1);
    all = b.ring.head - b.ring.tail;
    CHECK(all > two / 2);
    colo_recring_diverged(&b.ring, 150, 7);
    CHECK_EQ(b.ring.deadline, 7 + SECOND);
    keep(&b, (struct colo_note){.kind = COLO_NOTE_DISCARDED, .side = 1, .now = 1000, .len = 100});
    CHECK(b.ring.head - b.ring.tail > all);
    dump(&b);
    colo_recring_diverged(&b.ring, 159, 0);
    CHECK(!b.ring.pending); /* the last one is too near */
    colo_recring_diverged(&b.ring, 160, 0);
    CHECK(b.ring.pending);
    keep(&b, (struct colo_note){.kind = COLO_NOTE_DISCARDED, .side = 1, .now = 2000, .len = 100});
    CHECK_EQ(b.ring.base.epoch, 1);
    dump(&b);
    tear_down(&b);
}

/* Nothing of what came before a block that the ring is too small for is left: there would be a hole. */
static void test_what_is_larger_than_the_ring(void)
{
    struct bench b;

    REQUIRE(set_up(&b, 100) == 0);
    keep(&b, (struct colo_note){.kind = COLO_NOTE_DISCARDED, .side = 1, .now = 1, .len = 100});
    b.block.len = CAP;
    colo_recring_keep(&b.ring, &b.block, &(struct colo_note){.kind = COLO_NOTE_MARK, .reason = COLO_MARK_ALONE});
    CHECK_EQ(b.ring.head, b.ring.tail);
    colo_recring_diverged(&b.ring, 1, 0);
    CHECK(dump(&b) > 0);
    tear_down(&b);
}

static void test_a_directory_that_cannot_be(void)
{
    struct colo_recblock block;
    struct colo_recring ring;
    struct colo_record_config config = {.options = "{}", .ring_dir = "/nowhere", .ring_bytes = CAP, .ring_time = 1};

    REQUIRE(colo_recblock_init(&block, &config, FRAME) == 0);
    CHECK_EQ(colo_recring_open(&ring, &block, &config), COLO_ERR_SYSTEM);
    colo_recring_close(&ring);
    config.ring_time = 0;
    CHECK_EQ(colo_recring_open(&ring, &block, &config), COLO_ERR_MISUSE);
    colo_recring_close(&ring);
    colo_recblock_fini(&block);
}

CHECK_MAIN(
    TEST(test_bytes_are_bounded),
    TEST(test_time_is_bounded_and_stands_still_for_a_dump),
    TEST(test_what_is_larger_than_the_ring),
    TEST(test_a_directory_that_cannot_be),
)
