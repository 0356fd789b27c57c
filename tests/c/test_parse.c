/* SPDX-License-Identifier: Apache-2.0 */
/* One frame, decoded: whole, with trailing bytes, and cut at every length (each cut in a buffer of its own size). */
#include <stdlib.h>

#include "check.h"
#include "frames.h"
#include "parse.h"

static const uint8_t SYN_OPTIONS[] = {2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 3, 3, 7};

static uint8_t buf[4096];

static void test_tcp_rows(void)
{
    for (int family = 4; family <= 6; family += 2)
        for (int vlans = 0; vlans <= 2; vlans++)
            for (uint32_t vnet_len = 0; vnet_len <= 12; vnet_len += vnet_len ? 2 : 10) {
                struct frame_spec f = {.family = family, .vlans = vlans, .sport = 80, .dport = 50000, .seq = 0xfffffff0,
                                       .ack = 0x80000001, .flags = COLO_TCP_SYN | COLO_TCP_ACK,
                                       .options = SYN_OPTIONS, .options_len = sizeof SYN_OPTIONS,
                                       .payload = (const uint8_t *)"hello", .payload_len = 5, .padding = 7,
                                       .vnet_len = vnet_len};
                uint32_t len = frame_build(buf, &f);
                struct colo_packet p;

                CHECK_NOTE("family %d, %d vlans, vnet %u", family, vlans, (unsigned)vnet_len);
                colo_parse(buf, len, vnet_len, &p);
                CHECK_EQ(p.id.cls, COLO_CLASS_TCP);
                CHECK_EQ(p.id.family, family);
                CHECK_EQ(p.id.vlan_count, vlans);
                CHECK_EQ(p.id.sport, 80);
                CHECK_EQ(p.id.dport, 50000);
                CHECK_EQ(p.seq, 0xfffffff0);
                CHECK_EQ(p.ack, 0x80000001);
                CHECK_EQ(p.tcp_flags, COLO_TCP_SYN | COLO_TCP_ACK);
                CHECK_EQ(p.syn.mss, 1460);
                CHECK_EQ(p.syn.wscale, 7);
                CHECK_EQ(p.syn.sack_ok, 1);
                CHECK_EQ(p.syn.timestamps, 1);
                CHECK_EQ(p.body_len, 5); /* padding trimmed */
                CHECK_MEM(buf + p.body, "hello", 5);
                CHECK_EQ(p.csum_partial, 0);
            }
}

static void test_every_truncation(void)
{
    for (int udp = 0; udp < 2; udp++)
        for (int family = 4; family <= 6; family += 2) {
            struct frame_spec f = {.family = family, .vlans = 2, .udp = udp, .payload = (const uint8_t *)"0123456789",
                                   .payload_len = 10, .vnet_len = 12, .flags = COLO_TCP_ACK};
            uint32_t len = frame_build(buf, &f);

            for (uint32_t cut = 0; cut < len; cut++) {
                uint8_t *exact = malloc(cut ? cut : 1); /* the sanitizer guards its end */
                struct colo_packet p;
                uint32_t vnet_len = cut < 12 ? 0 : 12;

                REQUIRE(exact);
                memcpy(exact, buf, cut);
                colo_parse(exact, cut, vnet_len, &p);
                CHECK_NOTE("udp %d, family %d, cut %u", udp, family, (unsigned)cut);
                if (vnet_len)
                    CHECK_EQ(p.id.cls, COLO_CLASS_MALFORMED); /* never half a parse */
                CHECK(p.body + p.body_len <= cut);
                free(exact);
            }
        }
}

static void test_random_bytes_stay_inside(void)
{
    uint32_t rng = 99;

    for (int i = 0; i < 200000; i++) {
        struct frame_spec f = {.family = i % 2 ? 4 : 6, .vlans = i % 3, .udp = i % 5 == 0,
                               .payload = (const uint8_t *)"payload", .payload_len = 7, .flags = COLO_TCP_ACK,
                               .options = SYN_OPTIONS, .options_len = i % 7 ? 0 : (uint32_t)sizeof SYN_OPTIONS};
        uint32_t len = frame_build(buf, &f);
        struct colo_packet p;
        uint8_t *exact;

        for (int k = 0; k < 3; k++) {
            rng = rng * 1103515245u + 12345u;
            buf[12 + (rng >> 8) % (len - 12)] = (uint8_t)(rng >> 24);
        }
        exact = malloc(len);
        REQUIRE(exact);
        memcpy(exact, buf, len);
        colo_parse(exact, len, 0, &p);
        CHECK_NOTE("round %d", i);
        CHECK(p.id.cls < COLO_CLASS_COUNT);
        CHECK(p.body + (uint64_t)p.body_len <= len);
        free(exact);
    }
}

static uint8_t class_of(const uint8_t *frame, uint32_t len)
{
    struct colo_packet p;

    colo_parse(frame, len, 0, &p);
    return p.id.cls;
}

static uint32_t ip_frame(int family, uint8_t protocol, const uint8_t *body, uint32_t len)
{
    uint32_t at;

    memset(buf, 0, 128);
    colo_store16(buf + 12, family == 4 ? 0x0800 : 0x86dd);
    if (family == 4) {
        buf[14] = 0x45;
        colo_store16(buf + 16, (uint16_t)(20 + len));
        buf[23] = protocol;
        at = 34;
    } else {
        buf[14] = 0x60;
        colo_store16(buf + 18, (uint16_t)len);
        buf[20] = protocol;
        at = 54;
    }
    memcpy(buf + at, body, len);
    return at + len;
}

static void test_classes(void)
{
    static const struct {
        const char *name;
        int family;
        uint8_t protocol;
        uint8_t body[24];
        uint32_t len;
        uint8_t expect;
    } rows[] = {
        {"udp", 4, 17, {0, 53, 1, 0, 0, 9, 0, 0, 'x'}, 9, COLO_CLASS_UDP},
        {"udp length too large", 4, 17, {0, 53, 1, 0, 0, 10, 0, 0, 'x'}, 9, COLO_CLASS_MALFORMED},
        {"udp length below header", 4, 17, {0, 53, 1, 0, 0, 7, 0, 0, 'x'}, 9, COLO_CLASS_MALFORMED},
        {"dhcp", 4, 17, {0, 68, 0, 67, 0, 8}, 8, COLO_CLASS_DHCP},
        {"dhcpv6", 6, 17, {2, 34, 2, 35, 0, 8}, 8, COLO_CLASS_DHCP},
        {"icmp echo", 4, 1, {0, 0, 0, 0, 0, 1, 0, 1}, 8, COLO_CLASS_ICMP},
        {"icmp short", 4, 1, {0, 0, 0, 0}, 4, COLO_CLASS_MALFORMED},
        {"icmpv6 echo", 6, 58, {129, 0, 0, 0, 0, 1, 0, 1}, 8, COLO_CLASS_ICMP6},
        {"neighbour solicitation", 6, 58, {135, 0, 0, 0}, 4, COLO_CLASS_ND},
        {"mld report", 6, 58, {143, 0, 0, 0}, 4, COLO_CLASS_MULTICAST},
        {"mld behind hop-by-hop", 6, 0, {58, 0, 5, 2, 0, 0, 1, 0, 143, 0, 0, 0}, 12, COLO_CLASS_MULTICAST},
        {"icmp in ipv6", 6, 1, {8, 0, 0, 0, 0, 0, 0, 0}, 8, COLO_CLASS_IP_OTHER},
        {"igmp", 4, 2, {0x16, 0, 0, 0}, 4, COLO_CLASS_MULTICAST},
        {"sctp", 4, 132, {1, 2, 3, 4}, 4, COLO_CLASS_IP_OTHER},
        {"esp", 6, 50, {1, 2, 3, 4}, 4, COLO_CLASS_IP_OTHER},
        {"empty", 4, 200, {0}, 0, COLO_CLASS_IP_OTHER},
        {"ipv6 fragment", 6, 44, {17, 0, 0, 1, 0, 0, 0, 1, 0}, 9, COLO_CLASS_FRAGMENT},
        {"extension past the end", 6, 60, {6, 9, 0, 0, 0, 0, 0, 0}, 8, COLO_CLASS_MALFORMED},
        {"authentication header", 6, 51, {17, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 53, 1, 0, 0, 8, 0, 0}, 20,
         COLO_CLASS_UDP},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint32_t len = ip_frame(rows[i].family, rows[i].protocol, rows[i].body, rows[i].len);

        CHECK_NOTE("%s", rows[i].name);
        CHECK_EQ(class_of(buf, len), rows[i].expect);
    }
}

static void test_link_classes(void)
{
    static const struct {
        uint8_t dst5;
        uint16_t type;
        uint8_t expect;
    } rows[] = {
        {0x00, 0x0806, COLO_CLASS_ARP},   {0x00, 0x8035, COLO_CLASS_ARP}, {0x0e, 0x88cc, COLO_CLASS_LINK},
        {0x00, 0x0026, COLO_CLASS_LINK} /* STP: 802.3 length */,           {0x99, 0x88b5, COLO_CLASS_OTHER},
        {0x00, 0x8100, COLO_CLASS_MALFORMED} /* the tag is cut off */,
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        memset(buf, 0, 64);
        memcpy(buf, "\x01\x80\xc2\0\0", 5);
        buf[5] = rows[i].dst5;
        colo_store16(buf + 12, rows[i].type);
        CHECK_NOTE("type %04x", rows[i].type);
        CHECK_EQ(class_of(buf, 16), rows[i].expect);
    }
}

static void test_ipv4_fragments_by_offset(void)
{
    uint32_t len = ip_frame(4, 17, (const uint8_t *)"fragment", 8);
    struct colo_packet first, second;

    colo_store16(buf + 20, 0x2000);
    colo_parse(buf, len, 0, &first);
    colo_store16(buf + 20, 0x0001);
    colo_parse(buf, len, 0, &second);
    CHECK_EQ(first.id.cls, COLO_CLASS_FRAGMENT);
    CHECK_EQ(second.id.cls, COLO_CLASS_FRAGMENT);
    CHECK(first.tag != second.tag);
}

static void test_bad_tcp_options_do_not_hurt(void)
{
    static const uint8_t rows[][4] = {{2, 0, 0, 0}, {2, 1, 0, 0}, {2, 40, 0, 0}, {1, 1, 1, 3}, {0, 2, 9, 9}};

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct frame_spec f = {.options = rows[i], .options_len = 4, .flags = COLO_TCP_SYN};
        struct colo_packet p;
        uint32_t len = frame_build(buf, &f);

        CHECK_NOTE("row %zu", i);
        colo_parse(buf, len, 0, &p);
        CHECK_EQ(p.id.cls, COLO_CLASS_TCP);
        CHECK_EQ(p.syn.mss, 0);
    }
}

CHECK_MAIN(TEST(test_tcp_rows), TEST(test_every_truncation), TEST(test_random_bytes_stay_inside), TEST(test_classes),
           TEST(test_link_classes), TEST(test_ipv4_fragments_by_offset), TEST(test_bad_tcp_options_do_not_hurt))
