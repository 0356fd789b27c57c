/* SPDX-License-Identifier: Apache-2.0 */
#include "neighbours.h"

#include <stdlib.h>

#include "check.h"
#include "load.h"

static const int64_t S = 1000000000;

/* One frame: Ethernet, tags, then the rest as given. */
struct spec {
    uint8_t mac;       /* the last byte of 02:00:00:00:00:xx */
    uint8_t mac_first; /* 0: 02 */
    int tags;
    uint16_t vlan[2];
    uint16_t type;
    const uint8_t *body;
    size_t body_len;
};

static size_t build(uint8_t *out, const struct spec *f)
{
    size_t at = 12;

    memset(out, 0xff, 6);
    memset(out + 6, 0, 6);
    out[6] = f->mac_first ? f->mac_first : 2;
    out[11] = f->mac;
    for (int i = 0; i < f->tags; i++, at += 4) {
        colo_store16(out + at, i + 1 < f->tags ? 0x88a8 : 0x8100);
        colo_store16(out + at + 2, f->vlan[i]);
    }
    colo_store16(out + at, f->type);
    memcpy(out + at + 2, f->body, f->body_len);
    return at + 2 + f->body_len;
}

static const uint8_t *arp(uint8_t a, uint8_t b, uint8_t c, uint8_t d)
{
    static uint8_t body[28];

    memcpy(body, "\0\1\x08\0\6\4\0\1", 8);
    memset(body + 8, 2, 6);
    memcpy(body + 14, (uint8_t[4]){a, b, c, d}, 4);
    return body;
}

/* A solicitation (135) or advertisement (136): `source` and `target` are the last bytes of fd00::xx; 0: none at all. */
static const uint8_t *discovery(uint8_t kind, uint8_t source, uint8_t target)
{
    static uint8_t body[64];

    memset(body, 0, sizeof body);
    body[0] = 0x60;
    body[5] = 24;
    body[6] = 58;
    body[7] = 255;
    body[8] = source ? 0xfd : 0;
    body[23] = source;
    body[40] = kind;
    body[48] = target ? 0xfd : 0;
    body[63] = target;
    return body;
}

static void tell(struct colo_neighbours *n, uint8_t nic, const struct spec *f, int64_t now)
{
    uint8_t frame[200];
    size_t len = build(frame, f);

    colo_neighbours_learn(n, nic, frame, len, now);
}

static struct colo_neighbour list[COLO_NEIGHBOURS_MAX + COLO_PATH_NICS * COLO_MACS_MAX + 1];

/* Those with an address. */
static size_t addresses(const struct colo_neighbours *n)
{
    size_t all = colo_neighbours_list(n, list, sizeof list / sizeof list[0]), count = 0;

    for (size_t i = 0; i < all; i++)
        count += list[i].family != 0;
    return count;
}

static void test_what_a_vm_claims(void)
{
    static uint8_t plain[64];
    const struct {
        const char *what;
        uint16_t type;
        const uint8_t *body;
        size_t len;
        uint8_t family; /* 0: none is learnt */
        uint8_t last;   /* byte of the address */
    } rows[] = {
        {"ARP", 0x0806, arp(10, 0, 0, 9), 28, 4, 9},
        {"a frame of IPv4", 0x0800, plain, 64, 0, 0},
        {"ARP, cut", 0x0806, arp(10, 0, 0, 9), 27, 0, 0},
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct colo_neighbours *n = colo_neighbours_create();

        CHECK_NOTE("%s", rows[i].what);
        tell(n, 0, &(struct spec){.mac = 1, .type = rows[i].type, .body = rows[i].body, .body_len = rows[i].len}, S);
        CHECK_EQ(addresses(n), rows[i].family ? 1 : 0);
        if (rows[i].family) {
            CHECK_EQ(list[0].family, rows[i].family);
            CHECK_EQ(list[0].address[3], rows[i].last);
            CHECK_EQ(list[0].mac[5], 1);
        }
        colo_neighbours_destroy(n);
    }
}

/* Bodies are built one by one: the builders have one buffer each. */
static void test_addresses_that_are_none(void)
{
    static const struct {
        uint8_t a;
        bool learnt;
    } arps[] = {{0, false}, {1, true}, {10, true}, {127, false}, {223, true}, {224, false}, {255, false}};
    static const struct {
        uint8_t kind, source, target;
        uint8_t last; /* of what is learnt, 0: nothing */
    } nds[] = {{135, 7, 8, 7}, {135, 0, 8, 0}, {136, 7, 8, 8}, {136, 7, 0, 0}, {133, 7, 8, 0}};
    struct colo_neighbours *n;

    for (size_t i = 0; i < sizeof arps / sizeof arps[0]; i++) {
        CHECK_NOTE("arp row %zu", i);
        n = colo_neighbours_create();
        tell(n, 0, &(struct spec){.mac = 1, .type = 0x0806, .body = arp(arps[i].a, 0, 0, 1), .body_len = 28}, S);
        CHECK_EQ(addresses(n), arps[i].learnt);
        colo_neighbours_destroy(n);
    }
    for (size_t i = 0; i < sizeof nds / sizeof nds[0]; i++) {
        CHECK_NOTE("neighbour discovery row %zu", i);
        n = colo_neighbours_create();
        tell(n, 0,
             &(struct spec){.mac = 1,
                            .type = 0x86dd,
                            .body = discovery(nds[i].kind, nds[i].source, nds[i].target),
                            .body_len = 64},
             S);
        CHECK_EQ(addresses(n), nds[i].last != 0);
        if (nds[i].last)
            CHECK_EQ(list[0].address[15], nds[i].last);
        colo_neighbours_destroy(n);
    }
}

static void test_vlans(void)
{
    struct colo_neighbours *n = colo_neighbours_create();

    for (int tags = 0; tags < 3; tags++)
        tell(n, 3,
             &(struct spec){.mac = 1, .tags = tags, .vlan = {0xe123, 0x0064}, .type = 0x0806, .body = arp(10, 0, 0, 1),
                            .body_len = 28},
             S);
    CHECK_EQ(addresses(n), 3);
    for (int tags = 0; tags < 3; tags++) {
        CHECK_EQ(list[tags].nic, 3);
        CHECK_EQ(list[tags].vlan_count, tags);
    }
    CHECK_EQ(list[2].vlan[0], 0x123); /* without its priority */
    CHECK_EQ(list[2].vlan[1], 0x64);
    colo_neighbours_destroy(n);
}

static void test_every_cut_of_a_frame(void)
{
    uint8_t frame[200];
    struct colo_neighbours *n = colo_neighbours_create();

    for (int kind = 0; kind < 2; kind++) {
        size_t len = build(frame, &(struct spec){.mac = 1,
                                                 .tags = 2,
                                                 .type = kind ? 0x86dd : 0x0806,
                                                 .body = kind ? discovery(136, 1, 2) : arp(10, 0, 0, 1),
                                                 .body_len = kind ? 64 : 28});

        for (size_t cut = 14; cut < len; cut++) {
            uint8_t *exact = malloc(cut);

            memcpy(exact, frame, cut);
            colo_neighbours_learn(n, 0, exact, cut, S);
            free(exact);
        }
        CHECK_EQ(addresses(n), 0);
    }
    colo_neighbours_destroy(n);
}

static void test_own_for_a_moment(void)
{
    static const uint8_t mac[6] = {2, 0, 0, 0, 0, 1}, other[6] = {2, 0, 0, 0, 0, 2};
    static const uint8_t body[50];
    struct colo_neighbours *n = colo_neighbours_create();

    CHECK(!colo_neighbours_is_own(n, 0, mac, S));
    tell(n, 0, &(struct spec){.mac = 1, .type = 0x0800, .body = body, .body_len = 50}, S);
    CHECK(colo_neighbours_is_own(n, 0, mac, S));
    CHECK(!colo_neighbours_is_own(n, 1, mac, S)); /* another NIC may hear it */
    CHECK(!colo_neighbours_is_own(n, 0, other, S));
    CHECK(colo_neighbours_is_own(n, 0, mac, S + COLO_MAC_OWN - 1));
    CHECK(!colo_neighbours_is_own(n, 0, mac, S + COLO_MAC_OWN)); /* it may be somebody else's by now */
    tell(n, 0, &(struct spec){.mac = 1, .type = 0x0800, .body = body, .body_len = 50}, 3 * S);
    CHECK(colo_neighbours_is_own(n, 0, mac, 3 * S));
    colo_neighbours_destroy(n);
}

static void test_groups_are_nobody(void)
{
    struct colo_neighbours *n = colo_neighbours_create();

    tell(n, 0, &(struct spec){.mac = 1, .mac_first = 3, .type = 0x0806, .body = arp(10, 0, 0, 1), .body_len = 28}, S);
    CHECK_EQ(colo_neighbours_list(n, list, 10), 0);
    colo_neighbours_destroy(n);
}

/* A guest with thousands of MACs, which still uses its own now and then: that one is kept. */
static void test_a_flood(void)
{
    static const uint8_t mac[6] = {2, 0, 0, 0, 0, 1};
    struct colo_neighbours *n = colo_neighbours_create();
    size_t all, own = 0;

    for (int i = 0; i < 5000; i++) {
        uint8_t frame[60], *body = frame + 14;

        if (i % 16 == 0)
            tell(n, 0, &(struct spec){.mac = 1, .type = 0x0806, .body = arp(10, 9, 9, 9), .body_len = 28}, S + i);
        memset(frame, 0, sizeof frame);
        frame[6] = 6;
        frame[10] = (uint8_t)(i >> 8);
        frame[11] = (uint8_t)i;
        colo_store16(frame + 12, 0x0806);
        memcpy(body, arp(10, 0, (uint8_t)(i >> 8), (uint8_t)i), 28);
        colo_neighbours_learn(n, 0, frame, 42, S + i);
    }
    CHECK(colo_neighbours_is_own(n, 0, mac, S + 5000));
    all = colo_neighbours_list(n, list, sizeof list / sizeof list[0]);
    CHECK_EQ(all, COLO_NEIGHBOURS_MAX + COLO_MACS_MAX);
    for (size_t i = 0; i < all; i++)
        own += list[i].family == 4 && !memcmp(list[i].address, "\x0a\x09\x09\x09", 4);
    CHECK_EQ(own, 1);
    CHECK_EQ(colo_neighbours_list(n, list, 7), 7);
    colo_neighbours_destroy(n);
}

CHECK_MAIN(
    TEST(test_what_a_vm_claims),
    TEST(test_addresses_that_are_none),
    TEST(test_vlans),
    TEST(test_every_cut_of_a_frame),
    TEST(test_own_for_a_moment),
    TEST(test_groups_are_nobody),
    TEST(test_a_flood),
)
