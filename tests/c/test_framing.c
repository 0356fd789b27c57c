/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>

#include "check.h"
#include "framing.h"

enum { MAX_FRAME = 69632, CAP = 16 };

/* A stream, and what must come out of it. Lengths and virtio-net header lengths of the frames; then how it ends. */
struct row {
    const char *name;
    uint8_t nics; /* 0: there is no second word */
    const uint8_t *bytes;
    size_t len;
    size_t frames;
    struct {
        uint32_t len, vnet; /* the second word */
        uint8_t first; /* byte of the frame */
    } frame[CAP];
    int fault;
    uint32_t bad_value;
    uint64_t bad_at;
    size_t left; /* bytes of an incomplete frame */
};

#define BYTES(...) (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__})
#define NIC(n) ((uint32_t)(n) << 24)
#define HTTP 'G', 'E', 'T', ' ', '/'

static const struct row rows[] = {
    {"nothing", false, BYTES(0), 0, {{0}}, 0, 0, 0, 1},
    {"one frame", false, BYTES(0, 0, 0, 2, 7, 8), 1, {{2, 0, 7}}, 0, 0, 0, 0},
    {"one byte", false, BYTES(0, 0, 0, 1, 7), 1, {{1, 0, 7}}, 0, 0, 0, 0},
    {"two and a part", false, BYTES(0, 0, 0, 1, 1, 0, 0, 0, 3, 2, 2, 2, 0, 0, 0, 9, 5), 2, {{1, 0, 1}, {3, 0, 2}}, 0, 0,
     0, 5},
    {"empty", false, BYTES(0, 0, 0, 1, 1, 0, 0, 0, 0, 9, 9), 1, {{1, 0, 1}}, COLO_FAULT_EMPTY, 0, 5, 0},
    {"oversize at once", false, BYTES(HTTP), 0, {{0}}, COLO_FAULT_OVERSIZE, 0x47455420, 0, 0},
    {"oversize by one", false, BYTES(0, 1, 0x10, 1), 0, {{0}}, COLO_FAULT_OVERSIZE, MAX_FRAME + 1, 0, 0},
    {"oversize later", false, BYTES(0, 0, 0, 2, 1, 1, 0xff, 0xff, 0xff, 0xff), 1, {{2, 0, 1}}, COLO_FAULT_OVERSIZE,
     0xffffffff, 6, 0},
    {"largest begins", false, BYTES(0, 1, 0x10, 0, 1), 0, {{0}}, 0, 0, 0, 5},
    {"vnet 0, 10, 12", true,
     BYTES(0, 0, 0, 1, 0, 0, 0, 0, 1,                                           /* none */
           0, 0, 0, 11, 0, 0, 0, 10, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9,           /* before the driver */
           0, 0, 0, 13, 0, 0, 0, 12, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9),    /* after it */
     3, {{1, 0, 1}, {11, 10, 2}, {13, 12, 3}}, 0, 0, 0, 0},
    {"vnet header only", true, BYTES(0, 0, 0, 10, 0, 0, 0, 10, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0), 1, {{10, 10, 4}}, 0, 0, 0,
     0},
    {"vnet longer than frame", true, BYTES(0, 0, 0, 9, 0, 0, 0, 10, 0), 0, {{0}}, COLO_FAULT_VNET, 10, 4, 0},
    {"vnet of a wrong length", true, BYTES(0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 60, 0, 0, 0, 11), 1, {{1, 0, 1}},
     COLO_FAULT_VNET, 11, 13, 0},
    /* The two mistakes of a set-up in which only one end has vnet_hdr_support=on. */
    {"no vnet word where one is due", true, BYTES(0, 0, 0, 60, 0x52, 0x54, 0, 0x12, 0x34), 0, {{0}}, COLO_FAULT_VNET,
     0x52540012, 4, 0},
    /* One NIC: QEMU's framing, in which the top byte is part of the length. */
    {"a NIC's number where there is one NIC", true, BYTES(0, 0, 0, 1, 1, 0, 0, 0, 7), 0, {{0}}, COLO_FAULT_VNET, 1 << 24,
     4, 0},
    {"three NICs", 3,
     BYTES(0, 0, 0, 1, 2, 0, 0, 0, 7,                                        /* the last */
           0, 0, 0, 1, 0, 0, 0, 0, 8,                                        /* as QEMU sends it */
           0, 0, 0, 11, 1, 0, 0, 10, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9),       /* with a header */
     3, {{1, NIC(2), 7}, {1, 0, 8}, {11, NIC(1) + 10, 2}}, 0, 0, 0, 0},
    {"a fourth of three", 3, BYTES(0, 0, 0, 1, 2, 0, 0, 0, 7, 0, 0, 0, 1, 3, 0, 0, 0, 7), 1, {{1, NIC(2), 7}},
     COLO_FAULT_NIC, 3, 13, 0},
    {"the last of 255", 255, BYTES(0, 0, 0, 1, 254, 0, 0, 0, 7), 1, {{1, NIC(254), 7}}, 0, 0, 0, 0},
    {"no such NIC before a wrong length", 255, BYTES(0, 0, 0, 1, 255, 0, 0, 11, 7), 0, {{0}}, COLO_FAULT_NIC, 255, 4, 0},
    {"a wrong length of a NIC there is", 2, BYTES(0, 0, 0, 13, 1, 0, 0, 11, 7), 0, {{0}}, COLO_FAULT_VNET, 11, 4, 0},
    {"bytes between NIC and length", 2, BYTES(0, 0, 0, 13, 1, 1, 0, 10, 7), 0, {{0}}, COLO_FAULT_VNET, 0x01000a, 4, 0},
    {"vnet longer than a NIC's frame", 2, BYTES(0, 0, 0, 9, 1, 0, 0, 10, 0), 0, {{0}}, COLO_FAULT_VNET, 10, 4, 0},
    {"oversize before the second word", true, BYTES(HTTP), 0, {{0}}, COLO_FAULT_OVERSIZE, 0x47455420, 0, 0},
};

/* Feeds `len` bytes of the row in pieces that end where `cuts` says so: each byte's bit. */
struct run {
    struct colo_framing f;
    const uint8_t *buffer;
    size_t start, fill, count;
    struct colo_frame frames[CAP];
};

static void piece(struct run *r, size_t upto)
{
    size_t used;

    r->fill = upto;
    r->count += colo_framing_scan(&r->f, r->buffer + r->start, r->fill - r->start, 1000 + r->start,
                                  r->frames + r->count, CAP - r->count, &used);
    r->start += used;
}

static void verify(const struct row *row, const struct run *r)
{
    CHECK_EQ(r->count, row->frames);
    CHECK_EQ(r->f.fault, row->fault);
    if (row->fault) {
        CHECK_EQ(r->f.bad_value, row->bad_value);
        CHECK_EQ(r->f.bad_at, row->bad_at);
    } else {
        CHECK_EQ(r->fill - r->start, row->left);
    }
    CHECK_EQ(r->f.position, r->start);
    for (size_t i = 0; i < r->count && i < row->frames; i++) {
        const struct colo_frame *f = &r->frames[i];
        uint32_t head = colo_framing_head(row->nics);

        CHECK_EQ(f->len, row->frame[i].len);
        CHECK_EQ(colo_framing_vnet_word(f->nic, (uint8_t)f->vnet_len), row->frame[i].vnet);
        CHECK_EQ(f->data[0], row->frame[i].first);
        CHECK_EQ(f->cookie - 1000 + head, f->data - r->buffer);
        CHECK_EQ(colo_framing_length_at(row->nics, f->data - head), head + f->len);
    }
}

/* The bytes in a buffer of exactly their size, so that the sanitizer sees a read behind them. */
static uint8_t *exact(const uint8_t *bytes, size_t len)
{
    uint8_t *copy = malloc(len ? len : 1);

    if (len)
        memcpy(copy, bytes, len);
    return copy;
}

static void begin(struct run *r, const struct row *row, const uint8_t *buffer)
{
    *r = (struct run){.buffer = buffer};
    colo_framing_start(&r->f, row->nics, MAX_FRAME);
    CHECK_EQ(r->f.nics, 1);
    if (row->nics > 1)
        r->f.nics = row->nics;
}

static void test_whole(void)
{
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint8_t *buffer = exact(rows[i].bytes, rows[i].len);
        struct run r;

        CHECK_NOTE("%s", rows[i].name);
        begin(&r, &rows[i], buffer);
        piece(&r, rows[i].len);
        verify(&rows[i], &r);
        free(buffer);
    }
}

static void test_byte_by_byte(void)
{
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint8_t *buffer = exact(rows[i].bytes, rows[i].len);
        struct run r;

        CHECK_NOTE("%s", rows[i].name);
        begin(&r, &rows[i], buffer);
        for (size_t k = 1; k <= rows[i].len; k++)
            piece(&r, k);
        verify(&rows[i], &r);
        free(buffer);
    }
}

static void test_split_anywhere(void)
{
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        for (size_t cut = 0; cut <= rows[i].len; cut++) {
            uint8_t *buffer = exact(rows[i].bytes, rows[i].len);
            struct run r;

            CHECK_NOTE("%s cut at %zu", rows[i].name, cut);
            begin(&r, &rows[i], buffer);
            piece(&r, cut);
            piece(&r, rows[i].len);
            verify(&rows[i], &r);
            free(buffer);
        }
    }
}

/* Every truncation: no frame that isn't whole, no read behind the end, TRUNCATED unless it ends between two frames. */
static void test_truncated(void)
{
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        for (size_t len = 0; len <= rows[i].len; len++) {
            uint8_t *buffer = exact(rows[i].bytes, len);
            struct run r;
            size_t left;

            CHECK_NOTE("%s truncated to %zu", rows[i].name, len);
            begin(&r, &rows[i], buffer);
            piece(&r, len);
            left = r.fill - r.start;
            if (!r.f.fault) {
                CHECK(colo_framing_need(&r.f, buffer + r.start, left) > left);
                colo_framing_end(&r.f, buffer + r.start, left);
                CHECK_EQ(r.f.fault, left ? COLO_FAULT_TRUNCATED : 0);
                if (left) {
                    CHECK_EQ(r.f.bad_at, r.start);
                    CHECK_EQ(r.f.bad_value, left < 4 ? 0 : buffer[r.start] << 24 | buffer[r.start + 1] << 16 |
                                                               buffer[r.start + 2] << 8 | buffer[r.start + 3]);
                }
            }
            free(buffer);
        }
    }
}

static void test_cap_and_count_only(void)
{
    static const uint8_t bytes[] = {0, 0, 0, 1, 1, 0, 0, 0, 1, 2, 0, 0, 0, 1, 3, 0, 0, 0, 1};
    struct colo_framing f, g;
    struct colo_frame out[2];
    size_t used;

    colo_framing_start(&f, false, MAX_FRAME);
    g = f;
    CHECK_EQ(colo_framing_scan(&f, bytes, sizeof bytes, 0, out, 2, &used), 2);
    CHECK_EQ(used, 10);
    CHECK_EQ(colo_framing_scan(&f, bytes + used, sizeof bytes - used, 10, out, 2, &used), 1);
    CHECK_EQ(used, 5);
    CHECK_EQ(out[0].cookie, 10);
    CHECK_EQ(colo_framing_scan(&g, bytes, sizeof bytes, 0, NULL, SIZE_MAX, &used), 3);
    CHECK_EQ(used, 15);
    CHECK_EQ(g.position, f.position);
}

/* A fault waits until the frames before it are taken, and nothing is taken behind it. */
static void test_fault_comes_last(void)
{
    static const uint8_t bytes[] = {0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1};
    struct colo_framing f;
    struct colo_frame out[1];
    size_t used;

    colo_framing_start(&f, false, MAX_FRAME);
    CHECK_EQ(colo_framing_scan(&f, bytes, sizeof bytes, 0, out, 1, &used), 1);
    CHECK_EQ(f.fault, 0);
    CHECK_EQ(colo_framing_scan(&f, bytes + 5, sizeof bytes - 5, 0, out, 1, &used), 0);
    CHECK_EQ(f.fault, COLO_FAULT_EMPTY);
    CHECK_EQ(colo_framing_scan(&f, bytes + 9, sizeof bytes - 9, 0, out, 1, &used), 0);
    CHECK_EQ(used, 0);
}

static void test_need(void)
{
    static const uint8_t head[] = {0, 1, 0x10, 0, 0, 0, 0, 12};
    struct colo_framing f;

    for (int vnet = 0; vnet < 2; vnet++) {
        colo_framing_start(&f, vnet, MAX_FRAME);
        for (size_t len = 0; len <= sizeof head; len++)
            CHECK_EQ(colo_framing_need(&f, head, len), (vnet ? 8 : 4) + (len < 4 ? 0 : MAX_FRAME));
    }
}

static void test_write_head(void)
{
    uint8_t out[8];

    CHECK_EQ(colo_framing_write_head(false, out, 0x010203, 0), 4);
    CHECK_MEM(out, "\0\1\2\3", 4);
    CHECK_EQ(colo_framing_write_head(true, out, 60, colo_framing_vnet_word(200, 10)), 8);
    CHECK_MEM(out, "\0\0\0\x3c\xc8\0\0\x0a", 8);
    CHECK_EQ(colo_framing_write_head(true, out, 60, 12), 8);
    CHECK_MEM(out, "\0\0\0\074\0\0\0\014", 8);
}

CHECK_MAIN(TEST(test_whole), TEST(test_byte_by_byte), TEST(test_split_anywhere), TEST(test_truncated),
           TEST(test_cap_and_count_only), TEST(test_fault_comes_last), TEST(test_need), TEST(test_write_head), )
