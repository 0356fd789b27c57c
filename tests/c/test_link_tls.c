/* SPDX-License-Identifier: Apache-2.0 */
/* A link over a transport, as the data path drives them: sockets that fill up, writes that must be repeated, cuts. */
#include <stdlib.h>
#include <sys/socket.h>

#include "check.h"
#include "link.h"
#include "tls.h"

enum { RECORDS = 6000, CUTS = 12 };

static const uint8_t KEY[32] = {7};
static const int64_t MS = 1000 * 1000;

struct end {
    colo_link *link;
    colo_tls *keys;
    colo_transport *transport;
    unsigned pushed, heard;
    unsigned blocked; /* writes that would have */
    bool gone;
};

static uint32_t dice = 1;

static uint32_t roll(uint32_t sides)
{
    dice = dice * 1664525u + 1013904223u;
    return (dice >> 16) % sides;
}

static uint32_t length_of(unsigned n)
{
    return n % 50 == 7 ? 60000 : 4 + n * 131 % 1600;
}

static void push_some(struct end *e)
{
    static uint8_t data[60000];

    for (unsigned i = roll(200); i > 0 && e->pushed < RECORDS; i--) {
        struct colo_link_record r = {COLO_LINK_MIRROR, 0, 0, length_of(e->pushed), data};

        memset(data, (int)(e->pushed & 255), r.len);
        memcpy(data, &e->pushed, 4);
        if (colo_link_push(e->link, &r) < 0)
            return;
        e->pushed++;
    }
}

static void take_all(struct end *e)
{
    struct colo_link_record r;
    int more;

    while ((more = colo_link_next(e->link, &r)) == 1) {
        unsigned n;

        REQUIRE(r.len >= 4);
        memcpy(&n, r.data, 4);
        CHECK_EQ(n, e->heard);
        CHECK_EQ(r.len, length_of(n));
        CHECK(r.len == 4 || r.data[r.len - 1] == (n & 255));
        e->heard++;
    }
    CHECK_EQ(more, 0);
}

/* As far as the socket lets it. */
static void write_all(struct end *e, int64_t now)
{
    const uint8_t *data;
    size_t n;

    while ((n = colo_link_output(e->link, &data, now)) > 0) {
        long done = colo_transport_write(e->transport, data, n);

        if (done <= 0) {
            e->blocked += done == COLO_TRANSPORT_WRITE;
            e->gone |= done != COLO_TRANSPORT_WRITE;
            return;
        }
        colo_link_wrote(e->link, (size_t)done);
    }
}

static void read_all(struct end *e, int64_t now)
{
    uint8_t *room;
    size_t n;

    while ((n = colo_link_input(e->link, &room)) > 0) {
        long done = colo_transport_read(e->transport, room, n);

        if (done <= 0) {
            e->gone |= done != COLO_TRANSPORT_READ;
            return;
        }
        colo_link_got(e->link, (size_t)done, now);
        take_all(e);
    }
}

static bool join(struct end ends[2], int64_t now)
{
    uint64_t asks[2] = {colo_link_received(ends[0].link), colo_link_received(ends[1].link)};
    int fds[2], results[2] = {1, 1};

    if (!CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0))
        return false;
    for (int i = 0; i < 2; i++) {
        colo_transport_destroy(ends[i].transport);
        ends[i].transport = colo_transport_create(ends[i].keys, fds[i]);
        ends[i].gone = false;
        colo_link_disconnect(ends[i].link);
        CHECK_EQ(colo_link_connect(ends[i].link, asks[1 - i], now), COLO_OK);
    }
    for (int i = 0; i < 10 && (results[0] || results[1]); i++)
        for (int k = 0; k < 2; k++)
            results[k] = colo_transport_handshake(ends[k].transport);
    return CHECK(!results[0] && !results[1]);
}

static void carry(bool tls)
{
    char text[200];
    struct colo_link_config config;
    struct end ends[2] = {{0}};
    int64_t now = 1000 * MS;
    unsigned cuts = 0;

    colo_link_config_default(&config);
    config.send_bytes = 1024 * 1024;
    for (int i = 0; i < 2; i++) {
        ends[i].link = colo_link_create(&config);
        ends[i].keys = tls ? colo_tls_psk(i, "pair", KEY, sizeof KEY, text, sizeof text) : NULL;
    }
    REQUIRE(join(ends, now));
    for (unsigned round = 0; ends[0].heard < RECORDS || ends[1].heard < RECORDS; round++) {
        struct end *e = &ends[roll(2)];

        REQUIRE(round < 1000000);
        now += roll(3) * MS;
        push_some(e);
        if (roll(4))
            write_all(e, now);
        if (roll(3))
            read_all(e, now);
        CHECK(!colo_link_tick(e->link, now));
        /* A cut in the middle of whatever goes on. */
        if (cuts < CUTS && ends[0].heard + ends[1].heard > (cuts + 1) * (2 * RECORDS / (CUTS + 1))) {
            cuts++;
            shutdown(colo_transport_fd(e->transport), SHUT_RDWR);
            read_all(e, now);
            write_all(e, now);
            CHECK(e->gone);
            REQUIRE(join(ends, now));
        }
        REQUIRE(!ends[0].gone && !ends[1].gone);
    }
    for (int i = 0; i < 2; i++) {
        struct colo_link_counters c;

        colo_link_counters_of(ends[i].link, &c);
        CHECK_EQ(c.received_records, RECORDS);
        CHECK_EQ(c.resumed, CUTS);
        CHECK_EQ(c.gaps, 0);
        CHECK(ends[i].blocked > 0);
        colo_link_destroy(ends[i].link);
        colo_transport_destroy(ends[i].transport);
        colo_tls_destroy(ends[i].keys);
    }
}

static void test_over_tls(void)
{
    carry(true);
}

static void test_over_plain_text(void)
{
    carry(false);
}

CHECK_MAIN(
    TEST(test_over_tls),
    TEST(test_over_plain_text),
)
