/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>

#include "check.h"
#include "link.h"

enum { DELAY = 20 * 1000 * 1000, HEAD = 8, MAX = 1000, KEPT = 512 * 1024 };

static const int64_t MS = 1000 * 1000;

static const int64_t START = 5000000000LL;

static struct colo_link_config config(void)
{
    struct colo_link_config c;

    colo_link_config_default(&c);
    c.max_record = MAX;
    c.send_bytes = KEPT;
    return c;
}

static colo_link *make(void)
{
    struct colo_link_config c = config();

    return colo_link_create(&c);
}

static struct colo_link_counters counters(const colo_link *l)
{
    struct colo_link_counters c;

    colo_link_counters_of(l, &c);
    return c;
}

/* The n-th record's payload: its length and bytes follow from n. */
static struct colo_link_record numbered(unsigned n)
{
    static uint8_t data[MAX];
    struct colo_link_record r = {.type = (uint8_t)(1 + n % 5), .len = 14 + n * 37 % 500, .data = data};

    if (r.type <= COLO_LINK_LEARN) {
        r.nic = (uint8_t)(n % 3);
        r.vnet_len = (uint8_t[]){0, 10, 12}[n % 3];
    }
    for (uint32_t i = 0; i < r.len; i++)
        data[i] = (uint8_t)(n + i);
    return r;
}

static int push(colo_link *l, unsigned n)
{
    struct colo_link_record r = numbered(n);

    return colo_link_push(l, &r);
}

static void check_record(const struct colo_link_record *got, unsigned n)
{
    struct colo_link_record want = numbered(n);

    CHECK_NOTE("record %u", n);
    CHECK_EQ(got->type, want.type);
    CHECK_EQ(got->nic, want.nic);
    CHECK_EQ(got->vnet_len, want.vnet_len);
    CHECK_EQ(got->len, want.len);
    if (got->len == want.len)
        CHECK_MEM(got->data, want.data, want.len);
}

/* Bytes that are on their way. */
static uint8_t wire[1024 * 1024];

/* All that `l` has to say at that time, into `wire`. */
static size_t speak(colo_link *l, int64_t now)
{
    const uint8_t *data;
    size_t n, all = 0;

    while ((n = colo_link_output(l, &data, now)) > 0) {
        memcpy(wire + all, data, n);
        all += n;
        colo_link_wrote(l, n);
    }
    return all;
}

/* Gives bytes to `l`, in pieces of `piece`, and takes the records: the first is expected to be number `n`. Their count,
 * or -1: the link calls it a fault. */
static int hear_pieces(colo_link *l, const uint8_t *bytes, size_t len, size_t piece, unsigned n, int64_t now)
{
    int count = 0, more;

    for (size_t at = 0; at < len;) {
        struct colo_link_record r;
        uint8_t *to;
        size_t some = colo_link_input(l, &to);

        if (some > piece)
            some = piece;
        if (some > len - at)
            some = len - at;
        if (!CHECK(some > 0))
            return -1;
        memcpy(to, bytes + at, some);
        at += some;
        colo_link_got(l, some, now);
        while ((more = colo_link_next(l, &r)) == 1) {
            check_record(&r, n++);
            count++;
        }
        if (more < 0)
            return -1;
    }
    return count;
}

static int hear(colo_link *l, size_t len, unsigned n, int64_t now)
{
    return hear_pieces(l, wire, len, SIZE_MAX, n, now);
}

struct two {
    colo_link *a, *b;
};

static struct two pair(void)
{
    struct two t = {make(), make()};

    CHECK_EQ(colo_link_connect(t.a, 0, START), COLO_OK);
    CHECK_EQ(colo_link_connect(t.b, 0, START), COLO_OK);
    return t;
}

static void part(struct two *t)
{
    colo_link_destroy(t->a);
    colo_link_destroy(t->b);
}

/* -------------------------------------------------------------- configuration */

static void test_config_without_sense(void)
{
    struct colo_link_config c = config();

    c.max_record = 0;
    CHECK(!colo_link_create(&c));
    c = config();
    c.send_bytes = MAX + HEAD - 1;
    CHECK(!colo_link_create(&c));
    c = config();
    c.keepalive = 0;
    CHECK(!colo_link_create(&c));
    c = config();
    c.timeout = -1;
    CHECK(!colo_link_create(&c));
    c = config();
    c.max_record = UINT32_MAX;
    c.send_bytes = UINT64_MAX;
    CHECK(!colo_link_create(&c));
    colo_link_destroy(NULL);
}

/* ---------------------------------------------------------------------- bytes */

static void test_bytes_of_a_record(void)
{
    static const uint8_t want[] = {0, 0, 0, 13, 1, 2, 12, 0, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 1, 2, 3};
    struct two t = pair();
    struct colo_link_record r = {1, 2, 12, 13, want + HEAD};

    CHECK_EQ(colo_link_push(t.a, &r), COLO_OK);
    CHECK_EQ(speak(t.a, START), sizeof want);
    CHECK_MEM(wire, want, sizeof want);
    part(&t);
}

static void test_bytes_of_acknowledgement_ping_and_pong(void)
{
    static const uint8_t ping[] = {0, 0, 0, 8, 65, 0, 0, 0, 0, 0, 0, 1, 0x38, 0xec, 0xa4, 0x80};
    static const uint8_t pong[] = {0, 0, 0, 8, 66, 0, 0, 0, 0, 0, 0, 1, 0x38, 0xec, 0xa4, 0x80};
    static const uint8_t ack[] = {0, 0, 0, 8, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 59};
    struct two t = pair();

    /* 0x138eca480 = 5,250,000,000 */
    CHECK_EQ(speak(t.a, START + 250 * MS), sizeof ping);
    CHECK_MEM(wire, ping, sizeof ping);
    CHECK_EQ(hear(t.b, sizeof ping, 0, START + 260 * MS), 0);
    CHECK_EQ(speak(t.b, START + 260 * MS), sizeof pong);
    CHECK_MEM(wire, pong, sizeof pong);
    CHECK_EQ(hear(t.a, sizeof pong, 0, START + 270 * MS), 0);
    CHECK_EQ(counters(t.a).rtt, 20 * MS);
    CHECK_EQ(counters(t.a).rtt_min, 20 * MS);
    CHECK_EQ(counters(t.b).rtt, -1);
    push(t.a, 1);
    CHECK_EQ(hear(t.b, speak(t.a, START + 280 * MS), 1, START + 280 * MS), 1);
    CHECK_EQ(speak(t.b, START + 299 * MS), 0);
    CHECK_EQ(colo_link_deadline(t.b), START + 300 * MS);
    CHECK_EQ(speak(t.b, START + 300 * MS), sizeof ack);
    CHECK_MEM(wire, ack, sizeof ack);
    part(&t);
}

/* Whole, byte by byte, in pieces that fit nothing; and what is left when the stream is cut anywhere. */
static void test_pieces_and_truncations(void)
{
    enum { RECORDS = 12 };
    static uint8_t bytes[16384];
    struct two t = pair();
    size_t len, ends[RECORDS], end = 0;

    for (unsigned n = 0; n < RECORDS; n++) {
        push(t.a, n);
        ends[n] = end += HEAD + numbered(n).len;
    }
    len = speak(t.a, START);
    REQUIRE(len == end && len < sizeof bytes);
    memcpy(bytes, wire, len);
    for (size_t piece = 1; piece <= len; piece = piece < 20 ? piece + 1 : piece * 3) {
        colo_link *l = make();

        colo_link_connect(l, 0, START);
        CHECK_EQ(hear_pieces(l, bytes, len, piece, 0, START), RECORDS);
        CHECK_EQ(colo_link_received(l), len);
        colo_link_destroy(l);
    }
    for (size_t cut = 0; cut < len; cut++) {
        colo_link *l = make();
        int whole = 0;

        while (whole < RECORDS && ends[whole] <= cut)
            whole++;
        colo_link_connect(l, 0, START);
        CHECK_NOTE("cut at %zu", cut);
        CHECK_EQ(hear_pieces(l, bytes, cut, SIZE_MAX, 0, START), whole);
        CHECK_EQ(colo_link_received(l), whole ? ends[whole - 1] : 0);
        CHECK(!colo_link_fault(l));
        colo_link_destroy(l);
    }
    part(&t);
}

/* --------------------------------------------------------------------- faults */

#define RECORD(a, b, c, d, type, nic, vnet, zero) (a), (b), (c), (d), (type), (nic), (vnet), (zero)
#define BYTES(...) (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__})
#define U64(n) 0, 0, 0, 0, 0, 0, (uint8_t)((n) >> 8), (uint8_t)(n)

/* What a peer says to a link that has sent records 0 and 1 (22 and 59 bytes) and one more that it has not written. */
static const struct {
    const char *name;
    const uint8_t *bytes;
    size_t len;
    const char *fault; /* NULL: none */
} hostile[] = {
    {"nothing wrong", BYTES(RECORD(0, 0, 0, 8, 64, 0, 0, 0), U64(22)), NULL},
    {"acknowledges nothing", BYTES(RECORD(0, 0, 0, 8, 64, 0, 0, 0), U64(0)), NULL},
    {"twice the same", BYTES(RECORD(0, 0, 0, 8, 64, 0, 0, 0), U64(22), RECORD(0, 0, 0, 8, 64, 0, 0, 0), U64(22)), NULL},
    {"all", BYTES(RECORD(0, 0, 0, 8, 64, 0, 0, 0), U64(81)), NULL},
    {"beyond", BYTES(RECORD(0, 0, 0, 8, 64, 0, 0, 0), U64(82)), "acknowledges byte 82, only 81 were sent"},
    {"far beyond", BYTES(RECORD(0, 0, 0, 8, 64, 0, 0, 0), 255, 255, 255, 255, 255, 255, 255, 255),
     "acknowledges byte 18446744073709551615, only 81 were sent"},
    {"inside", BYTES(RECORD(0, 0, 0, 8, 64, 0, 0, 0), U64(21)), "acknowledges byte 21, which is inside a record"},
    {"backwards", BYTES(RECORD(0, 0, 0, 8, 64, 0, 0, 0), U64(81), RECORD(0, 0, 0, 8, 64, 0, 0, 0), U64(22)),
     "acknowledges byte 22 after 81"},
    {"pong to no ping", BYTES(RECORD(0, 0, 0, 8, 66, 0, 0, 0), U64(1)), "answers a ping that was never sent"},
    {"type 0", BYTES(RECORD(0, 0, 0, 8, 0, 0, 0, 0)), "sends a record of unknown type 0 (length 8)"},
    {"type 7", BYTES(RECORD(0, 0, 0, 8, 7, 0, 0, 0)), "sends a record of unknown type 7 (length 8)"},
    {"type 67", BYTES(RECORD(0, 0, 0, 8, 67, 0, 0, 0)), "sends a record of unknown type 67 (length 8)"},
    {"plain words", BYTES('G', 'E', 'T', ' ', '/', ' ', 'H', 'T'),
     "sends a record of unknown type 47 (length 1195725856)"},
    {"too long", BYTES(RECORD(0, 0, 3, 233, 1, 0, 0, 0)),
     "a record of type 1 and length 1001 is longer than the limit"},
    {"longest begins", BYTES(RECORD(0, 0, 3, 232, 1, 0, 0, 0)), NULL},
    {"vnet 11", BYTES(RECORD(0, 0, 0, 60, 1, 0, 11, 0)),
     "a record of type 1 and length 60 has a virtio-net header of a wrong length"},
    {"vnet longer than the record", BYTES(RECORD(0, 0, 0, 9, 2, 0, 10, 0)),
     "a record of type 2 and length 9 has a virtio-net header of a wrong length"},
    {"vnet only", BYTES(RECORD(0, 0, 0, 10, 3, 0, 10, 0)), NULL},
    {"mark of a NIC", BYTES(RECORD(0, 0, 0, 10, 4, 1, 0, 0)),
     "a record of type 4 and length 10 names a NIC or a virtio-net header where none belongs"},
    {"control with vnet", BYTES(RECORD(0, 0, 0, 10, 5, 0, 10, 0)),
     "a record of type 5 and length 10 names a NIC or a virtio-net header where none belongs"},
    {"acknowledgement of a NIC", BYTES(RECORD(0, 0, 0, 8, 64, 1, 0, 0)),
     "a record of type 64 and length 8 names a NIC or a virtio-net header where none belongs"},
    {"acknowledgement too short", BYTES(RECORD(0, 0, 0, 7, 64, 0, 0, 0)),
     "a record of type 64 and length 7 has a wrong length"},
    {"ping too long", BYTES(RECORD(0, 0, 0, 9, 65, 0, 0, 0)), "a record of type 65 and length 9 has a wrong length"},
    {"reserved", BYTES(RECORD(0, 0, 0, 10, 1, 0, 0, 1)),
     "a record of type 1 and length 10 has a reserved byte that is not 0"},
};

static void test_hostile_peer(void)
{
    for (size_t i = 0; i < sizeof hostile / sizeof hostile[0]; i++) {
        struct two t = pair();
        const uint8_t *data;
        int got;

        CHECK_NOTE("%s", hostile[i].name);
        push(t.a, 0);
        push(t.a, 1);
        CHECK_EQ(speak(t.a, START), 81);
        push(t.a, 2);
        got = hear_pieces(t.a, hostile[i].bytes, hostile[i].len, SIZE_MAX, 0, START);
        CHECK_EQ(got, hostile[i].fault ? -1 : 0);
        if (!hostile[i].fault) {
            CHECK(!colo_link_fault(t.a));
            part(&t);
            continue;
        }
        CHECK_STR(colo_link_fault(t.a), hostile[i].fault);
        /* Nothing more goes either way until a new session. */
        CHECK_EQ(colo_link_output(t.a, &data, START), 0);
        CHECK_EQ(colo_link_deadline(t.a), INT64_MAX);
        colo_link_disconnect(t.a);
        CHECK(!colo_link_can_resume(t.a, 0));
        CHECK_EQ(colo_link_connect(t.a, 0, START), COLO_ERR_LIMIT);
        CHECK_EQ(colo_link_restart(t.a), COLO_OK);
        CHECK_EQ(colo_link_connect(t.a, 0, START), COLO_OK);
        CHECK(!colo_link_fault(t.a));
        part(&t);
    }
}

/* ---------------------------------------------------------------------- limits */

static void test_misuse_of_push(void)
{
    static const uint8_t data[MAX + 1];
    static const struct colo_link_record wrong[] = {
        {0, 0, 0, 20, data},         {7, 0, 0, 20, data}, {64, 0, 0, 8, data}, {COLO_LINK_MIRROR, 0, 11, 20, data},
        {COLO_LINK_MIRROR, 0, 12, 11, data}, {COLO_LINK_MARK, 1, 0, 20, data}, {COLO_LINK_CONTROL, 0, 10, 20, data},
        {COLO_LINK_MIRROR, 0, 0, MAX + 1, data},
    };
    struct two t = pair();

    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        CHECK_NOTE("row %zu", i);
        CHECK_EQ(colo_link_push(t.a, &wrong[i]), COLO_ERR_MISUSE);
    }
    CHECK_EQ(speak(t.a, START), 0);
    CHECK_EQ(counters(t.a).sent_records, 0);
    CHECK_EQ(counters(t.a).refused, 0);
    part(&t);
}

static void test_room(void)
{
    static const uint8_t data[MAX];
    struct colo_link_config c = config();
    colo_link *l;
    struct colo_link_record r = {COLO_LINK_MIRROR, 0, 0, MAX, data};

    c.send_bytes = 2 * (MAX + HEAD) + 100;
    l = colo_link_create(&c);
    CHECK_EQ(colo_link_room(l), MAX);
    CHECK_EQ(colo_link_push(l, &r), COLO_OK);
    CHECK_EQ(colo_link_push(l, &r), COLO_OK);
    CHECK_EQ(colo_link_room(l), 92);
    r.len = 93;
    CHECK_EQ(colo_link_push(l, &r), COLO_ERR_LIMIT);
    r.len = 92;
    CHECK_EQ(colo_link_push(l, &r), COLO_OK);
    CHECK_EQ(colo_link_room(l), 0);
    CHECK_EQ(counters(l).refused, 1);
    CHECK_EQ(counters(l).queued_bytes, c.send_bytes);
    CHECK_EQ(counters(l).sent_records, 3);
    colo_link_destroy(l);
}

/* The ring wraps many times, in every position of a header, and grows while it does. */
static void test_long_stream_wraps(void)
{
    struct colo_link_config c = config();
    struct two t;
    unsigned pushed = 0, heard = 0;

    c.send_bytes = 4 * 1024 * 1024;
    t.a = colo_link_create(&c);
    t.b = make();
    colo_link_connect(t.a, 0, START);
    colo_link_connect(t.b, 0, START);
    for (unsigned round = 0; round < 40; round++) {
        unsigned burst = round == 20 ? 3000 : 500; /* the second is more than the ring's first size */

        for (unsigned i = 0; i < burst; i++)
            CHECK_EQ(push(t.a, pushed++), COLO_OK);
        heard += (unsigned)hear(t.b, speak(t.a, START), heard, START);
        CHECK_EQ(heard, pushed);
        if (round % 7 == 3)
            continue; /* unacknowledged for a while */
        CHECK_EQ(hear(t.a, speak(t.b, START + 20 * MS), 0, START), 0);
        CHECK_EQ(counters(t.a).queued_bytes, 0);
        CHECK_EQ(counters(t.a).acked_bytes, counters(t.a).sent_bytes);
    }
    part(&t);
}

/* --------------------------------------------------------------- acknowledging */

static void test_when_acknowledgements_are_due(void)
{
    static const uint8_t data[MAX];
    struct colo_link_record small = {COLO_LINK_MIRROR, 0, 0, 14, data}, large = {COLO_LINK_MIRROR, 0, 0, MAX, data};
    static const struct {
        bool large;
        unsigned records;
        int64_t at; /* after the records came */
    } rows[] = {{false, 0, INT64_MAX}, {false, 1, DELAY}, {false, 63, DELAY}, {false, 64, 0},
                {true, 64, 0},  {true, 65, 0}};

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct two t = pair();
        struct colo_link_record r;
        uint8_t *to;
        size_t len, all;

        CHECK_NOTE("row %zu", i);
        for (unsigned n = 0; n < rows[i].records; n++)
            colo_link_push(t.a, rows[i].large ? &large : &small);
        len = speak(t.a, START);
        all = len;
        for (size_t at = 0; len; ) {
            size_t some = colo_link_input(t.b, &to);

            some = some < len ? some : len;
            memcpy(to, wire + at, some);
            colo_link_got(t.b, some, START);
            at += some;
            len -= some;
            while (colo_link_next(t.b, &r) == 1)
                ;
        }
        if (rows[i].at)
            CHECK_EQ(speak(t.b, START + (rows[i].at < 20 * MS ? rows[i].at : 20 * MS) - 1), 0);
        CHECK_EQ(colo_link_deadline(t.b), rows[i].at == INT64_MAX ? START + 250 * MS : START + rows[i].at);
        CHECK_EQ(speak(t.b, START + (rows[i].at == INT64_MAX ? 249 * MS : rows[i].at)),
                 rows[i].at == INT64_MAX ? 0 : 16);
        CHECK_EQ(hear(t.a, rows[i].at == INT64_MAX ? 0 : 16, 0, START), 0);
        CHECK_EQ(counters(t.a).acked_bytes, all);
        part(&t);
    }
}

/* Between records, never inside one; and what was offered stays offered until it is written. */
static void test_acknowledgement_waits_for_the_record(void)
{
    struct two t = pair();
    const uint8_t *data, *again;
    size_t n, m;

    push(t.b, 0);
    push(t.a, 5); /* 199 + 8 */
    push(t.a, 6);
    n = colo_link_output(t.a, &data, START);
    CHECK_EQ(n, 2 * HEAD + 199 + 236);
    colo_link_wrote(t.a, 100);
    /* Nothing due: the chunk is the rest of all, offered already. */
    CHECK_EQ(hear(t.a, speak(t.b, START), 0, START), 1);
    push(t.a, 7);
    m = colo_link_output(t.a, &again, START + 20 * MS);
    CHECK_EQ(m, n - 100);
    CHECK(again == data + 100);
    colo_link_wrote(t.a, m - 1);
    CHECK_EQ(colo_link_output(t.a, &again, START + 20 * MS), 1);
    colo_link_wrote(t.a, 1);
    CHECK_EQ(colo_link_output(t.a, &again, START + 20 * MS), 16);
    CHECK_EQ(again[4], 64);
    colo_link_wrote(t.a, 9);
    CHECK_EQ(colo_link_output(t.a, &again, START + 20 * MS), 7);
    colo_link_wrote(t.a, 7);
    n = colo_link_output(t.a, &again, START + 20 * MS);
    CHECK_EQ(n, HEAD + numbered(7).len);
    CHECK_EQ(again[3], numbered(7).len & 255);
    part(&t);
}

/* Also where the part written ends with a record: what was offered behind it is still to be offered first. */
static void test_what_was_offered_goes_first(void)
{
    struct two t = pair();
    const uint8_t *data;
    size_t n;

    push(t.a, 0);
    push(t.a, 1);
    n = colo_link_output(t.a, &data, START);
    CHECK_EQ(n, 22 + 59);
    colo_link_wrote(t.a, 22);
    push(t.b, 0);
    CHECK_EQ(hear(t.a, speak(t.b, START), 0, START), 1);
    CHECK_EQ(colo_link_output(t.a, &data, START + 20 * MS), 59);
    CHECK_EQ(data[4], numbered(1).type);
    colo_link_wrote(t.a, 59);
    CHECK_EQ(colo_link_output(t.a, &data, START + 20 * MS), 16);
    part(&t);
}

/* How many acknowledgements are among the records that have been written. */
static unsigned acknowledgements(size_t len)
{
    unsigned count = 0;

    for (size_t at = 0; at < len; at += HEAD + ((size_t)wire[at + 2] << 8 | wire[at + 3]))
        count += wire[at + 4] == 64;
    return count;
}

/* The thresholds count from the last acknowledgement, and a new connection begins with none due: the hello has told. */
static void test_thresholds_start_anew(void)
{
    static const uint8_t data[MAX];
    struct colo_link_record r = {COLO_LINK_MIRROR, 0, 0, MAX, data};
    struct two t = pair();
    unsigned acks = 0;

    for (unsigned n = 0; n < 188; n++) {
        struct colo_link_record got;
        uint8_t *to;
        size_t len;

        colo_link_push(t.a, &r);
        len = speak(t.a, START);
        colo_link_input(t.b, &to);
        memcpy(to, wire, len);
        colo_link_got(t.b, len, START);
        CHECK_EQ(colo_link_next(t.b, &got), 1);
        acks += acknowledgements(speak(t.b, START));
    }
    CHECK_EQ(acks, 2); /* after 64 and 128 records */
    colo_link_disconnect(t.a);
    colo_link_disconnect(t.b);
    CHECK_EQ(colo_link_connect(t.b, 0, START), COLO_OK);
    CHECK_EQ(colo_link_deadline(t.b), START + 250 * MS);
    CHECK_EQ(speak(t.b, START + 249 * MS), 0);
    CHECK_EQ(colo_link_connect(t.a, colo_link_received(t.b), START), COLO_OK);
    CHECK_EQ(counters(t.a).queued_bytes, 0);
    CHECK_EQ(counters(t.a).acked_bytes, counters(t.a).sent_bytes);
    for (unsigned n = 0; n < 25; n++)
        push(t.a, n);
    CHECK_EQ(hear(t.b, speak(t.a, START), 0, START), 25);
    CHECK_EQ(acknowledgements(speak(t.b, START)), 0);
    part(&t);
}

/* Moves the stream on to that offset; all is acknowledged. */
static void move_on(struct two *t, uint64_t offset)
{
    static const uint8_t data[MAX];
    struct colo_link_record got;
    uint64_t at = counters(t->a).sent_bytes;

    while (at < offset) {
        struct colo_link_record r = {COLO_LINK_MIRROR, 0, 0, MAX, data};
        uint64_t left = offset - at;
        uint8_t *to;
        size_t len;

        if (left < 2 * (HEAD + MAX))
            r.len = left > HEAD + MAX ? MAX / 2 : (uint32_t)left - HEAD;
        CHECK_EQ(colo_link_push(t->a, &r), COLO_OK);
        at += HEAD + r.len;
        len = speak(t->a, START);
        colo_link_input(t->b, &to);
        memcpy(to, wire, len);
        colo_link_got(t->b, len, START);
        CHECK_EQ(colo_link_next(t->b, &got), 1);
        CHECK_EQ(hear(t->a, speak(t->b, START + 20 * MS), 0, START), 0);
    }
    CHECK_EQ(at, offset);
    CHECK_EQ(counters(t->a).queued_bytes, 0);
}

/* Where the ring ends, in each byte of a header: records come through, a pong goes between records only. */
static void test_the_end_of_the_ring(void)
{
    enum { RING = 256 * 1024 };

    for (unsigned before = 0; before <= 20; before++) {
        struct two t = pair();
        const uint8_t *data;
        size_t n;

        CHECK_NOTE("%u bytes before the end", before);
        move_on(&t, RING - before);
        push(t.a, 5); /* 207 bytes */
        push(t.a, 6);
        if (before) {
            n = colo_link_output(t.a, &data, START);
            CHECK_EQ(n, before);
            memcpy(wire, data, n);
            colo_link_wrote(t.a, n);
            CHECK_EQ(hear_pieces(t.b, wire, before, SIZE_MAX, 5, START), 0);
            n = speak(t.b, START + 400 * MS);
            CHECK_EQ(n, 16);
            CHECK_EQ(wire[4], 65);
            CHECK_EQ(hear(t.a, n, 0, START), 0);
            n = colo_link_output(t.a, &data, START);
            CHECK_EQ(n, 207 - before);
        }
        CHECK_EQ(hear(t.b, speak(t.a, START), 5, START), 2);
        /* The peer goes on from the second record: found by its header. */
        colo_link_disconnect(t.a);
        CHECK(colo_link_can_resume(t.a, RING - before + 207));
        CHECK(!colo_link_can_resume(t.a, RING - before + 206));
        part(&t);
    }
}

/* ------------------------------------------------------------------ keepalive */

static void test_keepalive_and_death(void)
{
    struct two t = pair();
    size_t n;

    CHECK_EQ(colo_link_deadline(t.a), START + 250 * MS);
    CHECK_EQ(speak(t.a, START + 249 * MS), 0);
    CHECK_EQ(speak(t.a, START + 250 * MS), 16);
    CHECK_EQ(colo_link_deadline(t.a), START + 500 * MS);
    /* A silent peer: pings go on, then the connection is dead. */
    for (int64_t at = 500; at < 3000; at += 250) {
        CHECK(!colo_link_tick(t.a, START + at * MS));
        CHECK_EQ(speak(t.a, START + at * MS), 16);
    }
    CHECK_EQ(colo_link_deadline(t.a), START + 3000 * MS);
    CHECK(!colo_link_tick(t.a, START + 3000 * MS - 1));
    CHECK(colo_link_tick(t.a, START + 3000 * MS));
    colo_link_disconnect(t.a);
    CHECK(!colo_link_tick(t.a, START + 9000 * MS));
    CHECK_EQ(colo_link_deadline(t.a), INT64_MAX);
    /* Our own records are no silence; the peer's are life. */
    push(t.b, 0);
    n = speak(t.b, START + 200 * MS);
    CHECK_EQ(colo_link_deadline(t.b), START + 450 * MS);
    CHECK_EQ(colo_link_connect(t.a, 0, START), COLO_OK);
    CHECK_EQ(hear(t.a, n, 0, START + 2900 * MS), 1);
    CHECK(!colo_link_tick(t.a, START + 5899 * MS));
    CHECK(colo_link_tick(t.a, START + 5900 * MS));
    part(&t);
}

/* Bytes that can't be written are no reason to wake up for; records that we don't take are not the peer's silence. */
static void test_no_spinning_and_no_false_death(void)
{
    struct two t = pair();
    const uint8_t *data;
    uint8_t *to;
    struct colo_link_record r;
    size_t n;

    push(t.a, 0);
    CHECK_EQ(colo_link_output(t.a, &data, START), 22);
    CHECK_EQ(colo_link_deadline(t.a), START + 3000 * MS);
    n = speak(t.a, START);
    colo_link_input(t.b, &to);
    memcpy(to, wire, n);
    colo_link_got(t.b, n, START);
    CHECK(!colo_link_tick(t.b, START + 60000 * MS));
    CHECK_EQ(colo_link_next(t.b, &r), 1);
    CHECK(!colo_link_tick(t.b, START + 62999 * MS));
    CHECK(colo_link_tick(t.b, START + 63000 * MS));
    part(&t);
}

static void test_input_is_full_only_with_a_record_in_it(void)
{
    struct two t = pair();
    struct colo_link_record r;
    uint8_t *to;
    size_t n, at = 0, room, full = 0; /* how often it was full */
    unsigned heard = 0, pushed = 0;

    while (push(t.a, pushed) == COLO_OK)
        pushed++;
    n = speak(t.a, START);
    while (at < n) {
        room = colo_link_input(t.b, &to);
        if (!room) {
            full++;
            CHECK_EQ(colo_link_next(t.b, &r), 1);
            check_record(&r, heard++);
            continue;
        }
        room = room < n - at ? room : n - at;
        memcpy(to, wire + at, room);
        colo_link_got(t.b, room, START);
        at += room;
    }
    while (colo_link_next(t.b, &r) == 1)
        check_record(&r, heard++);
    CHECK_EQ(heard, pushed);
    CHECK(full > 0);
    part(&t);
}

/* --------------------------------------------------------------------- resume */

/* The connection is cut when any number of whole records, and any part of the next, has come. */
static void test_resume_at_every_record(void)
{
    enum { RECORDS = 20 };

    for (unsigned cut = 0; cut <= RECORDS; cut++)
        for (unsigned extra = 0; extra < 30; extra += 7) {
            struct two t = pair();
            size_t len = 0, n;

            CHECK_NOTE("cut after %u and %u", cut, extra);
            for (unsigned i = 0; i < RECORDS; i++) {
                push(t.a, i);
                if (i < cut)
                    len += HEAD + numbered(i).len;
            }
            n = speak(t.a, START);
            CHECK_EQ(hear_pieces(t.b, wire, len + extra < n ? len + extra : n, SIZE_MAX, 0, START) >= (int)cut, 1);
            colo_link_disconnect(t.a);
            colo_link_disconnect(t.b);
            len = colo_link_received(t.b);
            CHECK(colo_link_can_resume(t.a, len));
            CHECK_EQ(colo_link_connect(t.a, len, START), COLO_OK);
            CHECK_EQ(colo_link_connect(t.b, 0, START), COLO_OK);
            push(t.a, RECORDS);
            cut = cut > RECORDS ? RECORDS : cut;
            {
                unsigned had = (unsigned)counters(t.b).received_records;

                CHECK_EQ(hear(t.b, speak(t.a, START), had, START), (int)(RECORDS + 1 - had));
            }
            CHECK_EQ(counters(t.a).resumed, 1);
            CHECK_EQ(counters(t.a).gaps, 0);
            CHECK_EQ(counters(t.b).received_records, RECORDS + 1);
            part(&t);
        }
}

static void test_gap(void)
{
    struct two t = pair();
    size_t n;

    for (unsigned i = 0; i < 3; i++)
        push(t.a, i);
    n = speak(t.a, START);
    CHECK_EQ(hear(t.b, n, 0, START), 3);
    CHECK_EQ(hear(t.a, speak(t.b, START + 20 * MS), 0, START), 0);
    push(t.a, 3);
    CHECK_EQ(colo_link_restart(t.a), COLO_ERR_MISUSE);
    colo_link_disconnect(t.a);
    /* Acknowledged and let go; inside a record; never sent; the two that are kept. */
    CHECK(!colo_link_can_resume(t.a, 0));
    CHECK(!colo_link_can_resume(t.a, n - 1));
    CHECK(!colo_link_can_resume(t.a, n + 1));
    CHECK(!colo_link_can_resume(t.a, n + HEAD + numbered(3).len));
    CHECK(!colo_link_can_resume(t.a, UINT64_MAX));
    CHECK(colo_link_can_resume(t.a, n));
    CHECK_EQ(colo_link_connect(t.a, 0, START), COLO_ERR_LIMIT);
    CHECK_EQ(counters(t.a).queued_bytes, HEAD + numbered(3).len);
    CHECK_EQ(colo_link_restart(t.a), COLO_OK);
    CHECK_EQ(counters(t.a).gaps, 1);
    CHECK_EQ(counters(t.a).queued_bytes, 0);
    CHECK_EQ(colo_link_received(t.a), 0);
    CHECK_EQ(colo_link_connect(t.a, 0, START), COLO_OK);
    CHECK_EQ(counters(t.a).resumed, 0);
    CHECK_EQ(speak(t.a, START), 0);
    part(&t);
}

/* A record of which only a part was written before the cut is sent whole on the next connection. */
static void test_half_a_record_is_sent_again(void)
{
    struct two t = pair();
    const uint8_t *data;

    push(t.a, 9);
    CHECK(colo_link_output(t.a, &data, START) > 20);
    colo_link_wrote(t.a, 20);
    colo_link_disconnect(t.a);
    CHECK(!colo_link_can_resume(t.a, 20));
    CHECK_EQ(colo_link_output(t.a, &data, START), 0);
    CHECK_EQ(colo_link_connect(t.a, 0, START), COLO_OK);
    CHECK_EQ(hear(t.b, speak(t.a, START), 9, START), 1);
    part(&t);
}

CHECK_MAIN(
    TEST(test_config_without_sense),
    TEST(test_bytes_of_a_record),
    TEST(test_bytes_of_acknowledgement_ping_and_pong),
    TEST(test_pieces_and_truncations),
    TEST(test_hostile_peer),
    TEST(test_misuse_of_push),
    TEST(test_room),
    TEST(test_long_stream_wraps),
    TEST(test_when_acknowledgements_are_due),
    TEST(test_acknowledgement_waits_for_the_record),
    TEST(test_what_was_offered_goes_first),
    TEST(test_thresholds_start_anew),
    TEST(test_the_end_of_the_ring),
    TEST(test_keepalive_and_death),
    TEST(test_no_spinning_and_no_false_death),
    TEST(test_input_is_full_only_with_a_record_in_it),
    TEST(test_resume_at_every_record),
    TEST(test_gap),
    TEST(test_half_a_record_is_sent_again),
)
