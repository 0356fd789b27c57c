/* SPDX-License-Identifier: Apache-2.0 */
/* Each block byte by byte against the format's tables, and every buffer that is too small. */
#include "check.h"
#include "pcapng.h"

static void test_section(void)
{
    static const uint8_t want[] = {
        0x0a, 0x0d, 0x0d, 0x0a, 0x3c, 0, 0, 0, 0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        1, 0, 5, 0, 'h', 'e', 'l', 'l', 'o', 0, 0, 0,
        4, 0, 9, 0, 'c', 'o', 'l', 'o', 'p', 'r', 'o', 'x', 'y', 0, 0, 0,
        0, 0, 0, 0, 0x3c, 0, 0, 0,
    };
    uint8_t got[128];

    CHECK_EQ(colo_pcapng_section(got, sizeof got, "hello", 5), sizeof want);
    CHECK_MEM(got, want, sizeof want);
}

static void test_interface(void)
{
    static const uint8_t want[] = {
        1, 0, 0, 0, 0x28, 0, 0, 0, 1, 0, 0, 0, 0x80, 0, 0, 0,
        2, 0, 4, 0, 'e', 't', 'h', '0', 9, 0, 1, 0, 9, 0, 0, 0,
        0, 0, 0, 0, 0x28, 0, 0, 0,
    };
    uint8_t got[64];

    CHECK_EQ(colo_pcapng_interface(got, sizeof got, "eth0", 128), sizeof want);
    CHECK_MEM(got, want, sizeof want);
}

static void test_packet(void)
{
    static const uint8_t want[] = {
        6, 0, 0, 0, 0x38, 0, 0, 0, 2, 0, 0, 0, 4, 3, 2, 1, 8, 7, 6, 5,
        5, 0, 0, 0, 0x64, 0, 0, 0, 'f', 'r', 'a', 'm', 'e', 0, 0, 0,
        1, 0, 6, 0, 's', 'e', 'q', '=', '1', '2', 0, 0, 0, 0, 0, 0, 0x38, 0, 0, 0,
    };
    struct colo_pcapng_packet packet = {.interface = 2, .time = 0x0102030405060708, .len = 5, .wire_len = 100,
                                        .data = (const uint8_t *)"frame", .comment = "seq=12", .comment_len = 6};
    uint8_t got[64];

    CHECK_EQ(colo_pcapng_packet(got, sizeof got, &packet), sizeof want);
    CHECK_MEM(got, want, sizeof want);
}

static void test_mark(void)
{
    static const uint8_t want[] = {
        6, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0,
    };
    struct colo_pcapng_packet packet = {.time = 1};
    uint8_t got[64];

    CHECK_EQ(colo_pcapng_packet(got, sizeof got, &packet), sizeof want);
    CHECK_MEM(got, want, sizeof want);
}

static void test_statistics(void)
{
    static const uint8_t want[] = {
        5, 0, 0, 0, 0x34, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0,
        4, 0, 8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 5, 0, 8, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x34, 0, 0, 0,
    };
    uint8_t got[64];

    CHECK_EQ(colo_pcapng_statistics(got, sizeof got, 1, 7, 9, (uint64_t)1 << 32), sizeof want);
    CHECK_MEM(got, want, sizeof want);
}

/* Every remainder of both lengths: blocks are multiples of four, and FIT is never too little. */
static void test_padding(void)
{
    uint8_t data[8] = {1, 2, 3, 4, 5, 6, 7, 8}, got[96];

    for (uint32_t len = 0; len <= 8; len++) {
        for (size_t text = 0; text <= 8; text++) {
            struct colo_pcapng_packet packet = {
                .data = data, .len = len, .wire_len = len, .comment = "comments", .comment_len = text};
            size_t size;

            CHECK_NOTE("%u bytes, comment of %zu", len, text);
            memset(got, 0xee, sizeof got);
            size = colo_pcapng_packet(got, COLO_PCAPNG_FIT(len, text), &packet);
            REQUIRE(size >= 32 && size % 4 == 0);
            CHECK_EQ(got[4], size);
            CHECK_EQ(got[size - 4], size);
            CHECK_EQ(got[size], 0xee);
            CHECK_MEM(got + COLO_PCAPNG_DATA_AT, data, len);
            for (uint32_t at = COLO_PCAPNG_DATA_AT + len; at % 4; at++)
                CHECK_EQ(got[at], 0);
        }
    }
}

static void test_what_does_not_fit(void)
{
    struct colo_pcapng_packet packet = {.data = (const uint8_t *)"x", .len = 1, .comment = "c", .comment_len = 1};
    static char text[COLO_PCAPNG_TEXT_MAX + 2];
    static uint8_t got[COLO_PCAPNG_TEXT_MAX + 256];

    memset(text, 'a', sizeof text - 1);
    for (size_t cap = 0; cap < 48; cap++) {
        CHECK_NOTE("%zu bytes", cap);
        CHECK_EQ(colo_pcapng_packet(got, cap, &packet), 0);
        CHECK_EQ(colo_pcapng_section(got, cap, "c", 1), 0);
        CHECK_EQ(colo_pcapng_statistics(got, cap, 0, 0, 0, 0), 0);
        CHECK_EQ(got[0], 0);
    }
    CHECK_EQ(colo_pcapng_packet(got, 48, &packet), 48);
    CHECK_EQ(colo_pcapng_interface(got, 39, "eth0", 0), 0);
    packet.comment = text;
    packet.comment_len = COLO_PCAPNG_TEXT_MAX;
    CHECK(colo_pcapng_packet(got, sizeof got, &packet) > COLO_PCAPNG_TEXT_MAX);
    packet.comment_len++;
    CHECK_EQ(colo_pcapng_packet(got, sizeof got, &packet), 0);
    CHECK_EQ(colo_pcapng_section(got, sizeof got, text, packet.comment_len), 0);
    CHECK_EQ(colo_pcapng_interface(got, sizeof got, text, 0), 0);
}

CHECK_MAIN(
    TEST(test_section),
    TEST(test_interface),
    TEST(test_packet),
    TEST(test_mark),
    TEST(test_statistics),
    TEST(test_padding),
    TEST(test_what_does_not_fit),
)
