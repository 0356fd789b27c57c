/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rewriter: tables of segments in and segments out.
 *
 * A row's numbers are relative: of a VM's segment seq to that VM's initial number and ack to the client's, of a
 * client's the other way round, the client speaking of the primary's numbers. So what must come out is the same row with the
 * other VM's numbers: the frame is built anew with them and compared byte for byte, checksum included.
 */
#include <stdlib.h>

#include "check.h"
#include "csum.h"
#include "frames.h"
#include "load.h"
#include "parse.h"
#include "rewriter.h"

enum { FIN = 0x01, SYN = 0x02, RST = 0x04, PSH = 0x08, ACK = 0x10, ECE = 0x40, CWR = 0x80 };

enum op { END = 0, LEARN, OUT, IN, MARK, TAKEOVER };

enum want { NONE = COLO_REWRITE_NONE, DONE = COLO_REWRITE_DONE, DROP = COLO_REWRITE_DROP };

#define MS INT64_C(1000000)
#define NO_TS INT32_MIN

struct row {
    enum op op;
    int conn;      /* which connection on the same ports: other initial numbers */
    uint8_t flags;
    int32_t seq, ack;
    int32_t tsval, tsecr; /* relative to the sender's clock and the receiver's; tsval NO_TS: no option */
    uint32_t length;
    enum want want;
    int64_t at;    /* ms */
    int32_t raised; /* what the TSval is above the primary's clock, by the floor */
};

/* The numbers of three connections, for the VMs and the client, and the clocks of the VMs. */
struct numbers {
    uint32_t p[3], s[3], c[3], p_clock, s_clock, c_clock;
};

static const struct numbers NUMBERS[] = {
    {{1000, 50000, 900000}, {777777, 888888, 999999}, {5, 600, 70000}, 10000, 4000000, 99},
    {{0xfffffffe, 3, 0x7ffffffe}, {0x7ffffffe, 0xfffffff0, 0x80000001}, {0xfffffff0, 0, 0x7fffffff},
     0xffffffff, 0x7fffff00, 0x80000000}, /* across 2^32 and 2^31 */
    {{0x80000000, 1, 0}, {0, 0xffffffff, 0x80000000}, {0x7fffffff, 0xffffffff, 1}, 0x7fffffff, 0xfffffff0, 0},
};

struct shape {
    int family, vlans;
    uint32_t vnet_len;
    bool partial; /* NEEDS_CSUM: the field holds the sum of the pseudo header */
    bool odd;     /* the timestamps option lies at an odd offset */
};

static const struct shape SHAPES[] = {
    {4, 0, 0, false, false}, {6, 0, 0, false, false}, {4, 1, 10, false, true}, {6, 2, 12, false, true},
    {4, 2, 12, true, false}, {6, 0, 10, true, true},  {4, 0, 0, false, true},
};

static uint8_t buf[4096], want[4096];

static uint32_t ip_at(const struct shape *shape)
{
    return shape->vnet_len + 14 + 4 * (uint32_t)shape->vlans;
}

static uint32_t tcp_at(const struct shape *shape)
{
    return ip_at(shape) + (shape->family == 6 ? 40 : 20);
}

static void turn_round(uint8_t *frame, const struct shape *shape)
{
    uint8_t *ip = frame + ip_at(shape), *a = ip + (shape->family == 6 ? 8 : 12), tmp[16];
    size_t size = shape->family == 6 ? 16 : 4;

    memcpy(tmp, a, size);
    memcpy(a, a + size, size);
    memcpy(a + size, tmp, size);
}

/* As a host writes it that leaves the checksum to the device. */
static void make_partial(uint8_t *frame, const struct shape *shape, uint32_t tcp_len)
{
    uint32_t at = tcp_at(shape);
    const uint8_t *ip = frame + ip_at(shape);
    uint64_t sum = 6 + tcp_len;

    sum = shape->family == 6 ? colo_csum_add(sum, ip + 8, 32) : colo_csum_add(sum, ip + 12, 8);
    colo_store16(frame + at + 16, (uint16_t)~colo_csum_fold(sum));
    frame[0] = 1;
    frame[6] = (uint8_t)(at - shape->vnet_len);
    frame[8] = 16;
}

struct segment {
    bool from_client;
    uint8_t flags;
    uint32_t seq, ack, length;
    bool ts;
    uint32_t tsval, tsecr;
    const uint8_t *more; /* options, a multiple of 4 bytes */
    uint32_t more_len;
};

static uint32_t build(uint8_t *out, const struct shape *shape, const struct segment *s)
{
    static const uint8_t payload[64] = "what is said";
    uint8_t options[40];
    uint32_t n = 0, len;
    struct frame_spec f = {.family = shape->family, .vlans = shape->vlans, .vnet_len = shape->vnet_len,
                           .sport = s->from_client ? 50000 : 80, .dport = s->from_client ? 80 : 50000, .seq = s->seq,
                           .ack = s->ack, .flags = s->flags, .payload = payload, .payload_len = s->length};

    memset(options, 1, sizeof options); /* NOPs */
    if (s->ts) {
        n = shape->odd ? 1 : 2;
        options[n] = 8;
        options[n + 1] = 10;
        colo_store32(options + n + 2, s->tsval);
        colo_store32(options + n + 6, s->tsecr);
        n = 12;
    }
    if (s->more_len)
        memcpy(options + n, s->more, s->more_len);
    f.options = options;
    f.options_len = n + s->more_len;
    len = frame_build(out, &f);
    if (s->from_client)
        turn_round(out, shape);
    if (shape->partial)
        make_partial(out, shape, 20 + f.options_len + s->length);
    return len;
}

/* The row's segment with the primary's numbers, or the secondary's. */
static struct segment segment_of(const struct row *row, const struct numbers *n, bool primary)
{
    uint32_t vm = primary ? n->p[row->conn] : n->s[row->conn], clock = primary ? n->p_clock : n->s_clock;
    struct segment s = {.from_client = row->op == IN, .flags = row->flags, .length = row->length,
                        .ts = row->tsval != NO_TS};

    if (row->op == IN) {
        s.seq = n->c[row->conn] + (uint32_t)row->seq;
        s.ack = row->flags & ACK ? vm + (uint32_t)row->ack : 0;
        s.tsval = n->c_clock + (uint32_t)row->tsval;
        s.tsecr = row->flags & ACK ? clock + (uint32_t)row->tsecr : 0;
    } else {
        s.seq = vm + (uint32_t)row->seq;
        s.ack = row->flags & ACK ? n->c[row->conn] + (uint32_t)row->ack : 0;
        s.tsval = clock + (uint32_t)row->tsval + (primary ? (uint32_t)row->raised : 0);
        s.tsecr = row->flags & ACK ? n->c_clock + (uint32_t)row->tsecr : 0;
    }
    return s;
}

static colo_rewriter *make(uint32_t max_flows)
{
    struct colo_rewriter_config config;

    colo_rewriter_config_default(&config);
    if (max_flows)
        config.max_flows = max_flows;
    config.hash_seed = 4711;
    return colo_rewriter_create(&config);
}

static void play_row(colo_rewriter *r, const struct row *row, const struct numbers *n, const struct shape *shape)
{
    struct segment before = segment_of(row, n, row->op != OUT), after = segment_of(row, n, row->op == OUT);
    uint32_t len = build(buf, shape, &before);
    int got = 0;

    (void)build(want, shape, row->want == DONE ? &after : &before);
    if (row->op == LEARN)
        got = colo_rewriter_learn(r, 0, buf, len, shape->vnet_len, row->at * MS);
    else if (row->op == OUT)
        got = colo_rewriter_out(r, 0, buf, len, shape->vnet_len, row->at * MS);
    else
        got = colo_rewriter_in(r, 0, buf, len, shape->vnet_len, row->at * MS);
    CHECK_EQ(got, row->op == LEARN ? 0 : (int)row->want);
    CHECK_MEM(buf, want, len);
}

static struct colo_rewriter_counters play_one(const char *what, const struct row *rows, const struct numbers *n,
                                              const struct shape *shape)
{
    struct colo_rewriter_counters counters = {0};
    colo_rewriter *r = make(0);

    if (!CHECK(r != NULL))
        return counters;
    for (size_t i = 0; rows[i].op != END; i++) {
        CHECK_NOTE("%s, row %zu, shape %td, numbers %td", what, i, shape - SHAPES, n - NUMBERS);
        if (rows[i].op == MARK)
            colo_rewriter_mark(r);
        else if (rows[i].op == TAKEOVER)
            colo_rewriter_takeover(r, rows[i].at * MS);
        else
            play_row(r, &rows[i], n, shape);
    }
    colo_rewriter_counters_of(r, &counters);
    colo_rewriter_destroy(r);
    return counters;
}

/* Plays the rows in all shapes and numbers; what it returns is of the last. */
static struct colo_rewriter_counters play(const char *what, const struct row *rows)
{
    struct colo_rewriter_counters counters = {0};

    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++)
        for (size_t k = 0; k < sizeof NUMBERS / sizeof *NUMBERS; k++)
            counters = play_one(what, rows, &NUMBERS[k], &SHAPES[i]);
    return counters;
}

#define T(val, ecr) .tsval = (val), .tsecr = (ecr)
#define NOTS .tsval = NO_TS

static void test_passive_open(void)
{
    static const struct row notice_first[] = {
        {IN, .flags = SYN, T(0, 0)},
        {LEARN, .flags = SYN | ACK, .ack = 1, T(0, 0)},
        {OUT, .flags = SYN | ACK, .ack = 1, T(0, 0), .want = DONE},
        {IN, .flags = ACK, .seq = 1, .ack = 1, T(1, 0), .want = DONE},
        {IN, .flags = ACK | PSH, .seq = 1, .ack = 1, T(1, 0), .length = 10, .want = DONE},
        {OUT, .flags = ACK, .seq = 1, .ack = 11, T(2, 1), .want = DONE},
        {OUT, .flags = ACK | PSH, .seq = 1, .ack = 11, T(3, 1), .length = 20, .want = DONE},
        {IN, .flags = ACK, .seq = 11, .ack = 21, T(4, 3), .want = DONE},
        {IN, .flags = ACK, .seq = 10, .ack = 21, T(5, 3), .want = DONE},   /* a keepalive */
        {OUT, .flags = ACK, .seq = 20, .ack = 11, T(6, 5), .want = DONE},  /* another */
        {OUT, .flags = RST | ACK, .seq = 21, .ack = 11, NOTS, .want = DONE},
        {END},
    };
    static const struct row notice_last[] = {
        {IN, .flags = SYN, NOTS},
        {OUT, .flags = SYN | ACK, .ack = 1, NOTS, .want = NONE},
        {LEARN, .flags = SYN | ACK, .ack = 1, NOTS},
        {OUT, .flags = SYN | ACK, .ack = 1, NOTS, .want = DONE}, /* sent again */
        {LEARN, .flags = SYN | ACK, .ack = 1, NOTS},
        {IN, .flags = ACK, .seq = 1, .ack = 1, NOTS, .want = DONE},
        {OUT, .flags = SYN | ACK, .ack = 1, NOTS, .want = DONE},
        {OUT, .flags = ACK, .seq = 1, .ack = 1, .length = 3, NOTS, .want = DONE},
        {IN, .flags = RST, .seq = 1, NOTS, .want = NONE}, /* has no number of the VM's */
        {OUT, .flags = RST, .seq = 4, NOTS, .want = DONE},
        {END},
    };
    struct colo_rewriter_counters c = play("notice first", notice_first);

    CHECK_EQ(c.learned, 1);
    CHECK_EQ(c.out_rewritten, 5);
    CHECK_EQ(c.in_rewritten, 4);
    CHECK_EQ(c.fallbacks, 0);
    CHECK_EQ(c.flows, 1);
    c = play("notice last", notice_last);
    CHECK_EQ(c.learned, 1);
}

/* Stock filter-rewriter compares flags for equality: each of these it misses. */
static void test_flags_are_bits(void)
{
    static const struct row rows[] = {
        {LEARN, .flags = SYN | ACK | ECE | PSH, .ack = 1, NOTS},
        {OUT, .flags = SYN | ACK | ECE, .ack = 1, NOTS, .want = DONE},
        {IN, .flags = ACK | PSH | CWR | 0x20, .seq = 1, .ack = 1, .length = 4, NOTS, .want = DONE},
        {OUT, .flags = ACK | PSH | ECE, .seq = 1, .ack = 5, .length = 4, NOTS, .want = DONE},
        {END},
    };
    static const struct row active[] = {
        {OUT, .flags = SYN | ECE | CWR, NOTS, .want = NONE},
        {LEARN, .flags = SYN | ECE | CWR, NOTS},
        {IN, .flags = SYN | ACK | ECE, .ack = 1, NOTS, .want = DONE},
        {OUT, .flags = ACK | CWR, .seq = 1, .ack = 1, NOTS, .want = DONE},
        {END},
    };

    (void)play("passive", rows);
    (void)play("active", active);
}

static void test_active_open(void)
{
    static const struct row rows[] = {
        {LEARN, .flags = SYN, T(0, 0)},
        {OUT, .flags = SYN, T(0, 0), .want = DONE},
        {IN, .flags = SYN | ACK, .ack = 1, T(0, 0), .want = DONE},
        {OUT, .flags = ACK, .seq = 1, .ack = 1, T(1, 0), .want = DONE},
        {OUT, .flags = FIN | ACK, .seq = 1, .ack = 1, T(1, 0), .want = DONE},
        {IN, .flags = FIN | ACK, .seq = 1, .ack = 2, T(2, 1), .want = DONE},
        {OUT, .flags = ACK, .seq = 2, .ack = 2, T(2, 2), .want = DONE},
        /* The same ports again, the secondary first: the old notice has been used up. */
        {OUT, .conn = 1, .flags = SYN, T(9, 0), .want = NONE},
        {LEARN, .conn = 1, .flags = SYN, T(9, 0)},
        {OUT, .conn = 1, .flags = SYN, T(9, 0), .want = DONE},
        {IN, .conn = 1, .flags = SYN | ACK, .ack = 1, T(9, 9), .want = DONE},
        /* And again, the primary first: until its own SYN the secondary's segments are of the old one. */
        {LEARN, .conn = 2, .flags = SYN, T(20, 0)},
        {OUT, .conn = 1, .flags = ACK, .seq = 1, .ack = 1, T(20, 9), .want = DONE},
        {OUT, .conn = 2, .flags = SYN, T(20, 0), .want = DONE},
        {IN, .conn = 2, .flags = SYN | ACK, .ack = 1, T(20, 20), .want = DONE},
        {END},
    };
    static const struct row refused[] = {
        {LEARN, .flags = SYN, NOTS},
        {OUT, .flags = SYN, NOTS, .want = DONE},
        {IN, .flags = RST | ACK, .seq = 0, .ack = 1, NOTS, .want = DONE}, /* in SYN-SENT its ACK number is looked at */
        {END},
    };
    static const struct row simultaneous[] = {
        {OUT, .flags = SYN, NOTS, .want = NONE},
        {LEARN, .flags = SYN, NOTS},
        {IN, .flags = SYN, NOTS, .want = NONE},
        {LEARN, .flags = SYN | ACK, .ack = 1, NOTS},
        {OUT, .flags = SYN | ACK, .ack = 1, NOTS, .want = DONE},
        {IN, .flags = SYN | ACK, .ack = 1, NOTS, .want = DONE},
        {OUT, .flags = ACK, .seq = 1, .ack = 1, .length = 1, NOTS, .want = DONE},
        {END},
    };

    CHECK_EQ(play("active", rows).learned, 3);
    (void)play("refused", refused);
    (void)play("simultaneous", simultaneous);
}

static void test_port_reuse(void)
{
    static const struct row rows[] = {
        {LEARN, .flags = SYN | ACK, .ack = 1, NOTS},
        {OUT, .flags = SYN | ACK, .ack = 1, NOTS, .want = DONE},
        {IN, .flags = ACK, .seq = 1, .ack = 1, NOTS, .want = DONE},
        {IN, .conn = 1, .flags = SYN, NOTS, .want = NONE},
        {OUT, .flags = ACK, .seq = 1, .ack = 1, NOTS, .want = DONE},      /* a challenge ACK: still the old one */
        {LEARN, .conn = 1, .flags = SYN | ACK, .ack = 1, NOTS},
        {OUT, .flags = ACK, .seq = 1, .ack = 1, .length = 2, NOTS, .want = DONE}, /* the primary is quicker */
        {OUT, .conn = 1, .flags = SYN | ACK, .ack = 1, NOTS, .want = DONE},
        {IN, .conn = 1, .flags = ACK, .seq = 1, .ack = 1, NOTS, .want = DONE},
        {OUT, .conn = 1, .flags = ACK, .seq = 1, .ack = 1, .length = 2, NOTS, .want = DONE},
        /* Now the secondary is quicker: what it says is of the new connection, whose shift isn't known. */
        {OUT, .conn = 2, .flags = SYN | ACK, .ack = 1, NOTS, .want = NONE},
        {LEARN, .conn = 2, .flags = SYN | ACK, .ack = 1, NOTS},
        {IN, .conn = 2, .flags = ACK, .seq = 1, .ack = 1, NOTS, .want = DONE},
        {END},
    };
    static const struct row other_client[] = { /* the SYN-ACKs answer different SYNs */
        {LEARN, .conn = 0, .flags = SYN | ACK, .ack = 1, NOTS},
        {OUT, .conn = 1, .flags = SYN | ACK, .ack = 1, NOTS, .want = NONE},
        {IN, .conn = 0, .flags = ACK, .seq = 1, .ack = 1, NOTS, .want = NONE},
        {LEARN, .conn = 1, .flags = SYN | ACK, .ack = 1, NOTS},
        {IN, .conn = 1, .flags = ACK, .seq = 1, .ack = 1, NOTS, .want = DONE},
        {END},
    };

    CHECK_EQ(play("reuse", rows).flows, 1);
    (void)play("other client", other_client);
}

/* With SYN cookies each SYN-ACK may have another number: the client's ACK says which of them arrived. */
static void test_syn_cookies(void)
{
    static const struct shape *shape = &SHAPES[0];
    colo_rewriter *r = make(0);
    struct segment p1 = {.flags = SYN | ACK, .seq = 1000, .ack = 1}, p2 = {.flags = SYN | ACK, .seq = 2000, .ack = 1};
    struct segment s1 = {.flags = SYN | ACK, .seq = 91000, .ack = 1}, s2 = {.flags = SYN | ACK, .seq = 92000, .ack = 1};
    struct segment first = {.from_client = true, .flags = ACK, .seq = 1, .ack = 1001};
    uint32_t len;

    REQUIRE(r);
    len = build(buf, shape, &p1);
    CHECK_EQ(colo_rewriter_learn(r, 0, buf, len, 0, 0), 0);
    len = build(buf, shape, &s1);
    CHECK_EQ(colo_rewriter_out(r, 0, buf, len, 0, 0), DONE);
    len = build(buf, shape, &p2);
    CHECK_EQ(colo_rewriter_learn(r, 0, buf, len, 0, 0), 0);
    len = build(buf, shape, &s2);
    CHECK_EQ(colo_rewriter_out(r, 0, buf, len, 0, 0), DONE);
    CHECK_EQ(colo_load32(buf + tcp_at(shape) + 4), 2000); /* the newest notice */
    len = build(buf, shape, &first);
    CHECK_EQ(colo_rewriter_in(r, 0, buf, len, 0, 0), DONE);
    CHECK_EQ(colo_load32(buf + tcp_at(shape) + 8), 92001); /* what it acknowledges is the older one */
    colo_rewriter_destroy(r);
}

static void test_checkpoint_forgets(void)
{
    static const struct row rows[] = {
        {LEARN, .flags = SYN | ACK, .ack = 1, NOTS},
        {OUT, .flags = SYN | ACK, .ack = 1, NOTS, .want = DONE},
        {IN, .flags = ACK, .seq = 1, .ack = 1, NOTS, .want = DONE},
        {.op = MARK},
        {IN, .flags = ACK, .seq = 1, .ack = 1, NOTS, .want = NONE},
        {OUT, .flags = ACK, .seq = 1, .ack = 1, NOTS, .want = NONE},
        {END},
    };

    CHECK_EQ(play("mark", rows).flows, 0);
}

/* The primary died with its notice: the client's first ACK says what its number was. */
static void test_fallback(void)
{
    static const struct row passive[] = {
        {OUT, .flags = SYN | ACK, .ack = 1, T(0, 0), .want = NONE},
        {.op = TAKEOVER},
        {OUT, .flags = SYN | ACK, .ack = 1, T(0, 0), .want = NONE},
        {IN, .flags = ACK, .seq = 1, .ack = 1, T(0, 0), .want = DONE},
        {OUT, .flags = ACK, .seq = 1, .ack = 1, T(300, 0), .length = 5, .want = DONE},
        {END},
    };
    static const struct row data_first[] = { /* the ACK of the handshake was lost, and its first data too */
        {OUT, .flags = SYN | ACK, .ack = 1, NOTS, .want = NONE},
        {.op = TAKEOVER},
        {IN, .flags = ACK | PSH, .seq = 21, .ack = 1, .length = 10, NOTS, .want = DONE},
        {IN, .flags = ACK | PSH, .seq = 1, .ack = 1, .length = 20, NOTS, .want = DONE},
        {OUT, .flags = ACK, .seq = 1, .ack = 31, NOTS, .want = DONE},
        {END},
    };
    static const struct row active[] = {
        {OUT, .flags = SYN, NOTS, .want = NONE},
        {.op = TAKEOVER},
        {IN, .flags = ACK, .seq = 1, .ack = 1, NOTS, .want = NONE}, /* no SYN-ACK */
        {IN, .flags = SYN | ACK, .ack = 1, NOTS, .want = DONE},
        {OUT, .flags = ACK, .seq = 1, .ack = 1, NOTS, .want = DONE},
        {END},
    };
    static const struct row not_then[] = { /* the primary lives; a reset; outside the window; data was sent already */
        {OUT, .flags = SYN | ACK, .ack = 1, NOTS, .want = NONE},
        {IN, .flags = ACK, .seq = 1, .ack = 1, NOTS, .want = NONE},
        {.op = TAKEOVER},
        {IN, .flags = RST | ACK, .seq = 1, .ack = 1, NOTS, .want = NONE},
        {IN, .flags = ACK, .seq = 0, .ack = 1, NOTS, .want = NONE},
        {IN, .flags = ACK, .seq = 65537, .ack = 1, NOTS, .want = NONE},
        {OUT, .flags = ACK, .seq = 1, .ack = 1, .length = 1, NOTS, .want = NONE},
        {IN, .flags = ACK, .seq = 1, .ack = 1, NOTS, .want = NONE},
        {END},
    };

    CHECK_EQ(play("passive", passive).fallbacks, 1);
    CHECK_EQ(play("data first", data_first).fallbacks, 1);
    CHECK_EQ(play("active", active).fallbacks, 1);
    CHECK_EQ(play("not then", not_then).fallbacks, 0);
}

static void test_takeover(void)
{
    static const struct row rows[] = {
        {LEARN, .flags = SYN | ACK, .ack = 1, NOTS},
        {OUT, .flags = SYN | ACK, .ack = 1, NOTS, .want = DONE},
        {IN, .flags = ACK, .seq = 1, .ack = 1, NOTS, .want = DONE},
        {.op = TAKEOVER, .at = 1000},
        {OUT, .flags = ACK, .seq = 1, .ack = 1, .length = 9, NOTS, .want = DONE, .at = 1000},
        {IN, .flags = ACK, .seq = 1, .ack = 10, NOTS, .want = DONE, .at = 90000000}, /* idle for a day */
        {OUT, .flags = FIN | ACK, .seq = 10, .ack = 1, NOTS, .want = DONE, .at = 90000000},
        {IN, .flags = ACK, .seq = 1, .ack = 11, NOTS, .want = DONE, .at = 90000000},
        {IN, .flags = ACK, .seq = 1, .ack = 11, .length = 5, NOTS, .want = DONE, .at = 99000000}, /* half closed */
        {OUT, .flags = ACK, .seq = 11, .ack = 6, NOTS, .want = DONE, .at = 99000000},
        {IN, .flags = FIN | ACK, .seq = 6, .ack = 11, NOTS, .want = DONE, .at = 99000000},
        {OUT, .flags = ACK, .seq = 11, .ack = 7, NOTS, .want = DONE, .at = 99000000},
        {IN, .flags = FIN | ACK, .seq = 6, .ack = 11, NOTS, .want = DONE, .at = 99059999}, /* that ACK was lost */
        {OUT, .flags = ACK, .seq = 11, .ack = 7, NOTS, .want = DONE, .at = 99059999},
        {IN, .flags = FIN | ACK, .seq = 6, .ack = 11, NOTS, .want = NONE, .at = 99119999}, /* 60 s later */
        {END},
    };
    static const struct row fresh[] = {
        {LEARN, .flags = SYN | ACK, .ack = 1, NOTS},
        {OUT, .flags = SYN | ACK, .ack = 1, NOTS, .want = DONE},
        {IN, .flags = ACK, .seq = 1, .ack = 1, NOTS, .want = DONE},
        {.op = TAKEOVER},
        {IN, .conn = 1, .flags = SYN, NOTS, .want = NONE},
        {OUT, .flags = ACK, .seq = 1, .ack = 1, NOTS, .want = DONE}, /* a blind SYN does no harm */
        {OUT, .conn = 1, .flags = SYN | ACK, .ack = 1, NOTS, .want = NONE}, /* but this is another connection */
        {IN, .conn = 1, .flags = ACK, .seq = 1, .ack = 1, NOTS, .want = NONE},
        {END},
    };
    static const struct row reset[] = {
        {LEARN, .flags = SYN | ACK, .ack = 1, NOTS},
        {OUT, .flags = SYN | ACK, .ack = 1, NOTS, .want = DONE},
        {IN, .flags = ACK, .seq = 1, .ack = 1, NOTS, .want = DONE},
        {.op = TAKEOVER},
        {IN, .flags = RST, .seq = 2, NOTS, .want = NONE},                              /* not the exact number */
        {IN, .flags = ACK, .seq = 1, .ack = 1, NOTS, .want = DONE, .at = 60000},
        {IN, .flags = RST, .seq = 1, NOTS, .want = NONE, .at = 60000},
        {OUT, .flags = ACK, .seq = 1, .ack = 1, NOTS, .want = DONE, .at = 60001},       /* it did not take it */
        {IN, .flags = ACK, .seq = 1, .ack = 1, NOTS, .want = DONE, .at = 150000},
        {IN, .flags = RST, .seq = 1, NOTS, .want = NONE, .at = 150000},
        {IN, .flags = ACK, .seq = 1, .ack = 1, NOTS, .want = NONE, .at = 210000},
        {END},
    };
    static const struct row from_now_on[] = {
        {.op = TAKEOVER},
        {OUT, .flags = SYN | ACK, .ack = 1, NOTS, .want = NONE},
        {IN, .flags = ACK, .seq = 1, .ack = 1, NOTS, .want = NONE},
        {LEARN, .conn = 1, .flags = SYN | ACK, .ack = 1, NOTS},
        {OUT, .flags = SYN, NOTS, .want = NONE},
        {END},
    };

    CHECK_EQ(play("takeover", rows).flows, 0);
    CHECK_EQ(play("fresh", fresh).flows, 0);
    CHECK_EQ(play("reset", reset).flows, 0);
    CHECK_EQ(play("from now on", from_now_on).flows, 0);
}

/* What the client knows of the primary's clock: the notice's TSval, then what it echoes. */
static void test_timestamps_never_run_backwards(void)
{
    static const struct row rows[] = {
        {LEARN, .flags = SYN | ACK, .ack = 1, T(0, 0), .at = 0},
        {OUT, .flags = SYN | ACK, .ack = 1, T(0, 0), .want = DONE, .at = 50},
        {IN, .flags = ACK, .seq = 1, .ack = 1, T(0, 0), .want = DONE, .at = 60},
        {OUT, .flags = ACK | PSH, .seq = 1, .ack = 1, T(900, 0), .length = 5, .want = DONE, .at = 1000},
        {IN, .flags = ACK, .seq = 1, .ack = 6, T(0, 900), .want = DONE, .at = 1000},
        {.op = TAKEOVER, .at = 2000},
        /* 1,000 ms ago the client knew of 900: 2,100 is the least. The secondary's clock says 1,900. */
        {OUT, .flags = ACK, .seq = 6, .ack = 1, T(1900, 0), .want = DONE, .raised = 200, .at = 2000},
        {OUT, .flags = ACK, .seq = 6, .ack = 1, T(1950, 0), .want = DONE, .raised = 200, .at = 2050}, /* once */
        {END},
    };
    static const struct row ahead[] = {
        {LEARN, .flags = SYN | ACK, .ack = 1, T(0, 0), .at = 0},
        {OUT, .flags = SYN | ACK, .ack = 1, T(0, 0), .want = DONE, .at = 0},
        {IN, .flags = ACK, .seq = 1, .ack = 1, T(0, 0), .want = DONE, .at = 60},
        {.op = TAKEOVER, .at = 100},
        {OUT, .flags = ACK, .seq = 1, .ack = 1, T(300, 0), .want = DONE, .at = 100}, /* late enough as it is */
        {OUT, .flags = ACK, .seq = 1, .ack = 1, T(301, 0), .want = DONE, .at = 5000},
        {END},
    };

    (void)play("raised", rows);
    (void)play("not raised", ahead);
}

/* An echo of what the secondary VM has not sent would make its round-trip time negative. */
static void test_tsecr_is_bounded(void)
{
    const struct shape *shape = &SHAPES[0];
    struct segment p = {.flags = SYN | ACK, .seq = 1000, .ack = 1, .ts = true, .tsval = 50};
    struct segment s = {.flags = SYN | ACK, .seq = 5000, .ack = 1, .ts = true, .tsval = 0xfffffff0};
    struct segment c = {.from_client = true, .flags = ACK, .seq = 1, .ack = 1001, .ts = true, .tsecr = 55};
    colo_rewriter *r = make(0);
    uint32_t len, at = tcp_at(shape) + 20 + 8;

    REQUIRE(r);
    len = build(buf, shape, &p);
    CHECK_EQ(colo_rewriter_learn(r, 0, buf, len, 0, 0), 0);
    len = build(buf, shape, &s);
    CHECK_EQ(colo_rewriter_out(r, 0, buf, len, 0, 0), DONE);
    len = build(buf, shape, &c);
    CHECK_EQ(colo_rewriter_in(r, 0, buf, len, 0, 0), DONE);
    CHECK_EQ(colo_load32(buf + at), 0xfffffff0);
    c.flags = RST; /* RFC 7323: without ACK the field means nothing */
    len = build(buf, shape, &c);
    CHECK_EQ(colo_rewriter_in(r, 0, buf, len, 0, 0), NONE);
    CHECK_EQ(colo_load32(buf + at), 55);
    colo_rewriter_destroy(r);
}

/* One flow known, 1000 at the primary, 0x80000000 at the secondary; `options` go with both SYN-ACKs. */
static colo_rewriter *known_flow(const struct shape *shape, const uint8_t *p_options, const uint8_t *s_options,
                                 uint32_t options_len)
{
    struct segment p = {.flags = SYN | ACK, .seq = 1000, .ack = 1, .more = p_options, .more_len = options_len};
    struct segment s = {.flags = SYN | ACK, .seq = 0x80000000, .ack = 1, .more = s_options, .more_len = options_len};
    struct segment c = {.from_client = true, .flags = ACK, .seq = 1, .ack = 1001};
    colo_rewriter *r = make(0);
    uint32_t len = build(buf, shape, &p);

    if (!CHECK(r != NULL))
        abort();
    CHECK_EQ(colo_rewriter_learn(r, 0, buf, len, shape->vnet_len, 0), 0);
    len = build(buf, shape, &s);
    (void)colo_rewriter_out(r, 0, buf, len, shape->vnet_len, 0);
    len = build(buf, shape, &c);
    (void)colo_rewriter_in(r, 0, buf, len, shape->vnet_len, 0);
    return r;
}

static void test_sack(void)
{
    static const int counts[] = {1, 2, 3, 4};

    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++)
        for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
            const struct shape *shape = &SHAPES[i];
            uint32_t odd = shape->odd ? 1 : 2, n = (uint32_t)counts[k] * 8;
            uint8_t options[36] = {1, 1, 1, 1};
            struct segment c = {.from_client = true, .flags = ACK, .seq = 1, .ack = 1001, .more = options};
            struct segment o = {.flags = ACK, .seq = 0x80000001, .ack = 1, .more = options};
            colo_rewriter *r = known_flow(shape, NULL, NULL, 0);
            uint32_t len;

            c.more_len = o.more_len = (odd + 2 + n + 3) / 4 * 4;
            options[odd] = 5;
            options[odd + 1] = (uint8_t)(n + 2);
            for (uint32_t b = 0; b < n; b += 4) /* the first is a D-SACK: below the ACK */
                colo_store32(options + odd + 2 + b, 900 + b * 50);
            len = build(buf, shape, &c);
            CHECK_NOTE("%d blocks, shape %zu", counts[k], i);
            CHECK_EQ(colo_rewriter_in(r, 0, buf, len, shape->vnet_len, 0), DONE);
            for (uint32_t b = 0; b < n; b += 4)
                colo_store32(options + odd + 2 + b, 900 + b * 50 + 0x80000000 - 1000);
            c.ack = 0x80000001;
            (void)build(want, shape, &c);
            CHECK_MEM(buf, want, len);
            /* The VM's blocks are of the client's numbers. */
            len = build(buf, shape, &o);
            CHECK_EQ(colo_rewriter_out(r, 0, buf, len, shape->vnet_len, 0), DONE);
            o.seq = 1001;
            (void)build(want, shape, &o);
            CHECK_MEM(buf, want, len);
            colo_rewriter_destroy(r);
        }
}

static void test_window_scale(void)
{
    static const struct {
        uint8_t p, s; /* 255: absent */
        uint16_t window, want;
    } rows[] = {
        {7, 7, 1000, 1000}, {7, 4, 1000, 125}, {4, 7, 1000, 8000}, {0, 14, 65535, 65535}, {255, 2, 100, 400},
        {2, 255, 100, 25},  {14, 0, 65535, 3}, {15, 14, 9, 9},     {255, 0, 77, 77},
    };

    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct shape *shape = &SHAPES[1];
        uint8_t p_options[4] = {1, 3, 3, rows[i].p}, s_options[4] = {1, 3, 3, rows[i].s};
        struct segment o = {.flags = ACK, .seq = 0x80000001, .ack = 1};
        struct colo_rewriter_counters counters;
        colo_rewriter *r;
        uint32_t len, at = tcp_at(shape);
        uint16_t csum;

        if (rows[i].p == 255)
            memset(p_options, 1, 4);
        if (rows[i].s == 255)
            memset(s_options, 1, 4);
        r = known_flow(shape, p_options, s_options, 4);
        len = build(buf, shape, &o);
        csum = colo_load16(buf + at + 16);
        colo_store16(buf + at + 16, colo_csum_update32(csum, 1024, rows[i].window));
        colo_store16(buf + at + 14, rows[i].window);
        CHECK_NOTE("row %zu", i);
        CHECK_EQ(colo_rewriter_out(r, 0, buf, len, 0, 0), DONE);
        CHECK_EQ(colo_load16(buf + at + 14), rows[i].want);
        CHECK_EQ(colo_csum_fold(colo_csum_add(colo_csum_add(26, buf + ip_at(shape) + 8, 32), buf + at, 20)), 0);
        colo_rewriter_counters_of(r, &counters);
        CHECK_EQ(counters.window_scaled, rows[i].window != rows[i].want);
        colo_rewriter_destroy(r);
    }
}

/* A SYN or SYN-ACK of the secondary's, sent again: the first that the client gets if the primary's was held. */
static void test_scale_of_a_syn(void)
{
    enum { LIVES, DIES, ANSWERED }; /* the primary; ANSWERED: the client had its SYN-ACK before it died */
    static const struct {
        int when;
        uint8_t p, s, option; /* 255: absent */
        uint16_t want;        /* of a window of 1000, said after the client's answer */
    } rows[] = {
        {LIVES, 7, 9, 9, 4000},     /* the comparator must see the secondary's own */
        {DIES, 7, 9, 7, 4000},      {DIES, 9, 7, 9, 250},       {DIES, 7, 7, 7, 1000},
        {DIES, 0, 3, 0, 8000},      {DIES, 15, 13, 15, 500},    /* 15 counts as 14: RFC 7323, section 2.3 */
        {ANSWERED, 7, 9, 7, 4000},
        {DIES, 255, 255, 255, 1000},
        {DIES, 7, 255, 255, 1000},  /* it goes by what it gets: unscaled ... */
        {DIES, 255, 4, 4, 1000},    /* ... and by the secondary's factor */
        {ANSWERED, 7, 255, 255, 7}, /* an answer to the primary's SYN-ACK, by its factor */
    };

    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (size_t k = 0; k < 2 * (sizeof SHAPES / sizeof *SHAPES); k++) {
            const struct shape *shape = &SHAPES[k / 2];
            bool active = k % 2;
            uint8_t flags = active ? SYN : SYN | ACK, p_options[4], s_options[4], options[4];
            struct segment p = {.flags = flags, .seq = 1000, .ack = !active, .more = p_options, .more_len = 4};
            struct segment s = {.flags = flags, .seq = 0x80000000, .ack = !active, .more = s_options, .more_len = 4};
            struct segment c = {.from_client = true, .flags = active ? SYN | ACK : ACK, .seq = !active, .ack = 1001,
                                .more = options, .more_len = 4};
            struct segment o = {.flags = ACK, .seq = 0x80000001, .ack = 1};
            uint32_t len, at = tcp_at(shape);
            colo_rewriter *r = make(0);
            uint16_t csum;

            REQUIRE(r);
            CHECK_NOTE("row %zu, shape %zu, active %d", i, k / 2, active);
            memcpy(p_options, rows[i].p == 255 ? "\1\1\1\1" : "\1\3\3", 4);
            memcpy(s_options, rows[i].s == 255 ? "\1\1\1\1" : "\1\3\3", 4);
            p_options[3] = rows[i].p == 255 ? 1 : rows[i].p;
            s_options[3] = rows[i].s == 255 ? 1 : rows[i].s;
            memcpy(options, "\1\3\3\5", 4); /* the client's own */
            len = build(buf, shape, &p);
            CHECK_EQ(colo_rewriter_learn(r, 0, buf, len, shape->vnet_len, 0), 0);
            len = build(buf, shape, &s);
            CHECK_EQ(colo_rewriter_out(r, 0, buf, len, shape->vnet_len, 0), DONE);
            s.seq = 1000;
            (void)build(want, shape, &s);
            CHECK_MEM(buf, want, len); /* while the primary lives it keeps its option */
            s.seq = 0x80000000;
            if (rows[i].when == ANSWERED) {
                len = build(buf, shape, &c);
                CHECK_EQ(colo_rewriter_in(r, 0, buf, len, shape->vnet_len, 0), DONE);
            }
            if (rows[i].when != LIVES)
                colo_rewriter_takeover(r, 0);
            len = build(buf, shape, &s);
            CHECK_EQ(colo_rewriter_out(r, 0, buf, len, shape->vnet_len, 0), DONE);
            s.seq = 1000;
            s_options[3] = rows[i].s == 255 ? 1 : rows[i].option;
            (void)build(want, shape, &s);
            CHECK_MEM(buf, want, len); /* its checksum too */
            if (rows[i].when != ANSWERED) {
                len = build(buf, shape, &c);
                CHECK_EQ(colo_rewriter_in(r, 0, buf, len, shape->vnet_len, 0), DONE);
            }
            len = build(buf, shape, &o);
            csum = colo_load16(buf + at + 16);
            if (!shape->partial)
                colo_store16(buf + at + 16, colo_csum_update32(csum, colo_load16(buf + at + 14), 1000));
            colo_store16(buf + at + 14, 1000);
            CHECK_EQ(colo_rewriter_out(r, 0, buf, len, shape->vnet_len, 0), DONE);
            CHECK_EQ(colo_load16(buf + at + 14), rows[i].want);
            colo_rewriter_destroy(r);
        }
}

/* A device that completes another checksum than this segment's: ours is complete. */
static void test_partial_elsewhere(void)
{
    const struct shape *shape = &SHAPES[4];
    struct segment o = {.flags = ACK, .seq = 0x80000001, .ack = 1};
    colo_rewriter *r = known_flow(shape, NULL, NULL, 0);
    uint32_t len = build(buf, shape, &o), at = tcp_at(shape);
    uint16_t before = colo_load16(buf + at + 16);

    buf[6]++; /* csum_start */
    CHECK_EQ(colo_rewriter_out(r, 0, buf, len, 12, 0), DONE);
    CHECK_EQ(colo_load16(buf + at + 16), colo_csum_update32(before, 0x80000001, 1001));
    colo_rewriter_destroy(r);
}

static void test_mark_that_was_missed(void)
{
    static const struct {
        uint32_t seq;
        uint8_t flags;
        enum want want;
        int unshifted;
    } rows[] = {
        {1001, ACK, NONE, 1},                    /* the primary's number */
        {1001 + (1 << 24), ACK, NONE, 1},        /* at the edge of the window */
        {1001 + (1 << 24) + 1, ACK, DONE, 0},    /* neither fits: as known */
        {1001 - (1 << 24), ACK, NONE, 1},
        {1001, RST | ACK, DONE, 0},              /* a reset may have any number */
        {0x80000001 + (1 << 24), ACK, DONE, 0},
        {0x80000001, ACK, DONE, 0},
    };

    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct shape *shape = &SHAPES[0];
        struct segment c = {.from_client = true, .flags = SYN}; /* its scale is 0: so the least radius */
        struct segment o = {.flags = rows[i].flags, .seq = rows[i].seq, .ack = 1};
        struct colo_rewriter_counters counters;
        colo_rewriter *r = known_flow(shape, NULL, NULL, 0);
        uint32_t len = build(buf, shape, &c);

        CHECK_EQ(colo_rewriter_in(r, 0, buf, len, 0, 0), NONE);
        c = (struct segment){.from_client = true, .flags = ACK, .seq = 1, .ack = 1001};
        len = build(buf, shape, &c);
        CHECK_EQ(colo_rewriter_in(r, 0, buf, len, 0, 0), DONE);
        len = build(buf, shape, &o);
        CHECK_NOTE("row %zu", i);
        CHECK_EQ(colo_rewriter_out(r, 0, buf, len, 0, 0), rows[i].want);
        CHECK_EQ(colo_load32(buf + tcp_at(shape) + 4), rows[i].want == DONE ? o.seq + 1000 - 0x80000000 : o.seq);
        colo_rewriter_counters_of(r, &counters);
        CHECK_EQ(counters.unshifted, rows[i].unshifted);
        CHECK_EQ(counters.flows, !rows[i].unshifted);
        colo_rewriter_destroy(r);
    }
}

/* Number 0 in an RST with ACK is no number of the flow's, unless it is. */
static void test_reset_without_a_number(void)
{
    const struct shape *shape = &SHAPES[0];
    struct segment o = {.flags = RST | ACK, .seq = 0, .ack = 77};
    colo_rewriter *r = known_flow(shape, NULL, NULL, 0);
    uint32_t len = build(buf, shape, &o);

    CHECK_EQ(colo_rewriter_out(r, 0, buf, len, 0, 0), NONE);
    colo_rewriter_destroy(r);
}

static void test_signed_segments(void)
{
    static const struct {
        uint8_t kind, len;
    } rows[] = {{19, 18}, {29, 16}};

    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct shape *shape = &SHAPES[0];
        uint8_t options[20] = {1, 1, rows[i].kind, rows[i].len};
        struct segment o = {.flags = ACK, .seq = 0x80000001, .ack = 1, .more = options, .more_len = 20};
        struct segment c = {.from_client = true, .flags = ACK, .seq = 1, .ack = 1001, .more = options, .more_len = 20};
        struct colo_rewriter_counters counters;
        colo_rewriter *r = known_flow(shape, NULL, NULL, 0);
        uint32_t len = build(buf, shape, &o);

        memcpy(want, buf, len);
        CHECK_EQ(colo_rewriter_out(r, 0, buf, len, 0, 0), NONE);
        CHECK_MEM(buf, want, len);
        len = build(buf, shape, &c);
        memcpy(want, buf, len);
        CHECK_EQ(colo_rewriter_in(r, 0, buf, len, 0, 0), NONE);
        CHECK_MEM(buf, want, len);
        colo_rewriter_counters_of(r, &counters);
        CHECK_EQ(counters.signed_segments, 2);
        colo_rewriter_destroy(r);
    }
}

/* Other NIC, VLAN, port or address: another flow. */
static void test_what_names_a_flow(void)
{
    const struct shape *shape = &SHAPES[2]; /* one VLAN, a header of 10 bytes */
    uint32_t ip = ip_at(shape);
    const uint32_t places[] = {ip - 3, ip + 12, ip + 19, ip + 21, ip + 23};
    struct segment o = {.flags = ACK, .seq = 0x80000001, .ack = 1};
    colo_rewriter *r = known_flow(shape, NULL, NULL, 0);
    uint32_t len = build(buf, shape, &o);

    CHECK_EQ(colo_rewriter_out(r, 1, buf, len, 10, 0), NONE);
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        (void)build(buf, shape, &o);
        buf[places[i]] ^= 1;
        CHECK_NOTE("place %zu", i);
        CHECK_EQ(colo_rewriter_out(r, 0, buf, len, 10, 0), NONE);
    }
    (void)build(buf, shape, &o);
    buf[ip - 4] |= 0xe0; /* priority and DEI name none */
    CHECK_EQ(colo_rewriter_out(r, 0, buf, len, 10, 0), DONE);
    colo_rewriter_destroy(r);
}

/* A segmentation super-frame: only its headers are looked at. */
static void test_super_frame(void)
{
    static uint8_t payload[65535 - 40], big[70000], expected[70000];
    struct frame_spec f = {.sport = 80, .dport = 50000, .seq = 0x80000001, .ack = 1, .flags = ACK,
                           .payload = payload, .payload_len = sizeof payload, .vnet_len = 12};
    const struct shape shape = {4, 0, 12, false, false};
    colo_rewriter *r = known_flow(&shape, NULL, NULL, 0);
    uint32_t len = frame_build(big, &f);

    big[1] = 1; /* TCP over IPv4, 1,448 bytes each */
    colo_store16(big + 4, 0xa805);
    CHECK_EQ(colo_rewriter_out(r, 0, big, len, 12, 0), DONE);
    f.seq = 1001;
    CHECK_EQ(frame_build(expected, &f), len);
    expected[1] = 1;
    colo_store16(expected + 4, 0xa805);
    CHECK_MEM(big, expected, len);
    colo_rewriter_destroy(r);
}

/* Cuts an IP packet's payload after `cut` bytes (a multiple of 8), as the first fragment. Returns the new length. */
static uint32_t first_fragment(uint8_t *frame, const struct shape *shape, uint32_t cut)
{
    uint32_t ip = ip_at(shape), at = tcp_at(shape);

    if (shape->family == 4) {
        colo_store16(frame + ip + 2, (uint16_t)(20 + cut));
        colo_store16(frame + ip + 6, 0x2000);
        return at + cut;
    }
    memmove(frame + at + 8, frame + at, cut);
    memcpy(frame + at, "\x06\0\0\1\0\0\0\x09", 8);
    frame[ip + 6] = 44;
    colo_store16(frame + ip + 4, (uint16_t)(8 + cut));
    return at + 8 + cut;
}

static void test_fragments(void)
{
    static const uint8_t options[16] = {1, 1, 5, 10, 0, 0, 4, 0, 0, 0, 5, 0};
    static const struct {
        uint32_t cut;
        enum want want;
    } rows[] = {{8, DROP}, {16, DROP}, {24, DROP}, {32, DROP}, {40, DONE}, {48, DONE}};

    for (size_t k = 0; k < 2; k++)
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            const struct shape *shape = &SHAPES[k];
            struct segment c = {.from_client = true, .flags = ACK, .seq = 1, .ack = 1001, .length = 60,
                                .more = options, .more_len = 16};
            struct colo_rewriter_counters counters;
            colo_rewriter *r = known_flow(shape, NULL, NULL, 0);
            uint32_t at = tcp_at(shape), len, blocks[2] = {0x400, 0x500};

            (void)build(buf, shape, &c);
            len = first_fragment(buf, shape, rows[i].cut);
            memcpy(want, buf, len);
            CHECK_NOTE("family %d, cut after %u", shape->family, (unsigned)rows[i].cut);
            CHECK_EQ(colo_rewriter_in(r, 0, buf, len, 0, 0), rows[i].want);
            if (rows[i].want == DONE) {
                uint8_t moved[16];

                memcpy(moved, options, 16);
                for (int b = 0; b < 2; b++)
                    colo_store32(moved + 4 + 4 * b, blocks[b] + 0x80000000 - 1000);
                c.ack = 0x80000001;
                c.more = moved;
                (void)build(want, shape, &c); /* so the checksum is right for the whole segment */
                CHECK_EQ(first_fragment(want, shape, rows[i].cut), len);
            }
            CHECK_MEM(buf, want, len);
            colo_rewriter_counters_of(r, &counters);
            CHECK_EQ(counters.dropped, rows[i].want == DROP);
            /* A later fragment has none of our fields; nor has a first one of an unknown flow. */
            c = (struct segment){.from_client = true, .flags = ACK, .seq = 1, .ack = 1001, .length = 40};
            (void)build(buf, shape, &c);
            len = first_fragment(buf, shape, 16);
            if (shape->family == 4)
                buf[ip_at(shape) + 7] = 2;
            else
                buf[at + 3] = 16 << 3 | 1;
            CHECK_EQ(colo_rewriter_in(r, 0, buf, len, 0, 0), NONE);
            (void)build(buf, shape, &c);
            len = first_fragment(buf, shape, 16);
            CHECK_EQ(colo_rewriter_in(r, 3, buf, len, 0, 0), NONE);
            colo_rewriter_destroy(r);
        }
}

/* An ICMP error to or from the VM that quotes `cut` bytes of the TCP segment in `quoted`. */
static uint32_t build_error(uint8_t *out, const struct shape *shape, uint8_t *quoted, uint32_t cut, bool partial)
{
    uint32_t ip = ip_at(shape), at = tcp_at(shape), header = at - ip, body = 8 + header + cut;
    uint64_t sum = 0;

    memcpy(out, quoted, at);
    memset(out, 0, shape->vnet_len);
    turn_round(out, shape); /* whoever got it complains */
    out[ip + (shape->family == 6 ? 6 : 9)] = shape->family == 6 ? 58 : 1;
    colo_store16(out + ip + (shape->family == 6 ? 4 : 2), (uint16_t)(shape->family == 6 ? body : 20 + body));
    memset(out + at, 0, 8);
    out[at] = shape->family == 6 ? 1 : 3;
    memcpy(out + at + 8, quoted + ip, header + cut);
    if (shape->family == 6)
        sum = colo_csum_add(58 + body, out + ip + 8, 32);
    if (partial) {
        out[0] = 1;
        out[6] = (uint8_t)(at - shape->vnet_len);
        out[8] = 2;
        colo_store16(out + at + 2, (uint16_t)~colo_csum_fold(sum));
    } else {
        colo_store16(out + at + 2, colo_csum_fold(colo_csum_add(sum, out + at, body)));
    }
    return at + body;
}

static void test_quotes(void)
{
    static uint8_t inner[4096];

    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++)
        for (int from_client = 0; from_client < 2; from_client++)
            for (uint32_t cut = 0; cut <= 44; cut++)
                for (int partial = 0; partial <= (SHAPES[i].vnet_len != 0); partial++) {
                    struct shape shape = SHAPES[i];
                    uint8_t sack[12] = {1, 1, 5, 10}, moved[12] = {1, 1, 5, 10};
                    struct segment p = {.flags = SYN | ACK, .seq = 1000, .ack = 1, .ts = true, .tsval = 5000};
                    struct segment s = {.flags = SYN | ACK, .seq = 0x80000000, .ack = 1, .ts = true, .tsval = 70};
                    struct segment q = {.from_client = from_client, .flags = ACK, .length = 4, .ts = true,
                                        .more = sack, .more_len = 12};
                    struct colo_rewriter_counters counters;
                    colo_rewriter *r = make(0);
                    uint32_t len;
                    bool has = cut >= (from_client ? 12 : 8);
                    int got;

                    REQUIRE(r);
                    shape.partial = false;
                    len = build(buf, &shape, &p);
                    CHECK_EQ(colo_rewriter_learn(r, 0, buf, len, shape.vnet_len, 0), 0);
                    len = build(buf, &shape, &s);
                    CHECK_EQ(colo_rewriter_out(r, 0, buf, len, shape.vnet_len, 0), DONE);
                    colo_store32(sack + 4, from_client ? 0x80000100 : 33);
                    colo_store32(moved + 4, from_client ? 1256 : 33);
                    colo_store32(sack + 8, from_client ? 0x80000200 : 44);
                    colo_store32(moved + 8, from_client ? 1512 : 44);
                    q.seq = from_client ? 1 : 1001; /* as it was on the wire */
                    q.ack = from_client ? 0x80000001 : 1;
                    q.tsval = from_client ? 9 : 5001;
                    q.tsecr = from_client ? 71 : 9;
                    (void)build(inner, &shape, &q);
                    len = build_error(buf, &shape, inner, cut, partial);
                    q.seq = from_client ? 1 : 0x80000001;
                    q.ack = from_client ? 1001 : 1;
                    q.tsval = from_client ? 9 : 71;
                    q.tsecr = from_client ? 5001 : 9;
                    q.more = moved;
                    (void)build(inner, &shape, &q);
                    (void)build_error(want, &shape, inner, cut, partial);
                    CHECK_NOTE("shape %zu, from client %d, cut %u, partial %d", i, from_client, (unsigned)cut, partial);
                    if (from_client)
                        got = colo_rewriter_out(r, 0, buf, len, shape.vnet_len, 0);
                    else
                        got = colo_rewriter_in(r, 0, buf, len, shape.vnet_len, 0);
                    CHECK_EQ(got, has ? DONE : NONE);
                    colo_rewriter_counters_of(r, &counters);
                    CHECK_EQ(counters.icmp_rewritten, has);
                    if (cut < 44) { /* part of a field can't be translated; nor are checksums right then */
                        uint32_t at = tcp_at(&shape) + 8 + tcp_at(&shape) - ip_at(&shape);

                        if (has)
                            CHECK_MEM(buf + at, want + at, from_client ? 12 : 8);
                        if (!partial && shape.family == 4)
                            CHECK_EQ(colo_csum_fold(colo_csum_add(0, buf + tcp_at(&shape), len - tcp_at(&shape))), 0);
                    } else {
                        CHECK_MEM(buf, want, len);
                    }
                    colo_rewriter_destroy(r);
                }
}

static void test_quotes_of_others(void)
{
    static uint8_t inner[4096];
    const struct shape *shape = &SHAPES[0];
    struct segment q = {.flags = ACK, .seq = 1001, .ack = 1};
    colo_rewriter *r = known_flow(shape, NULL, NULL, 0);
    uint32_t len, at = tcp_at(shape);
    const struct {
        uint32_t place;
        uint8_t value;
    } rows[] = {
        {at, 8},             /* an echo request */
        {at + 8, 0x46},      /* IP options that are not there */
        {at + 8, 0x65},
        {at + 8 + 9, 17},    /* UDP */
        {at + 8 + 7, 1},     /* a later fragment */
        {at + 8 + 3, 19},    /* an IP length less than the header's */
        {at + 8 + 20, 0x77}, /* another port */
        {at + 5, 6},         /* RFC 4884: only 24 bytes are the quote */
    };

    (void)build(inner, shape, &q);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        len = build_error(buf, shape, inner, 8, false);
        buf[rows[i].place] = rows[i].value;
        memcpy(want, buf, len);
        CHECK_NOTE("row %zu", i);
        CHECK_EQ(colo_rewriter_in(r, 0, buf, len, 0, 0), NONE);
        CHECK_MEM(buf, want, len);
    }
    len = build_error(buf, shape, inner, 8, false);
    CHECK_EQ(colo_rewriter_in(r, 0, buf, len, 0, 0), DONE);
    colo_rewriter_destroy(r);
}

/* Each cut in a buffer of its own size: the sanitizer guards its end. */
static void test_every_truncation(void)
{
    static uint8_t inner[4096];

    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++)
        for (int kind = 0; kind < 3; kind++) {
            const struct shape *shape = &SHAPES[i];
            uint8_t sack[12] = {1, 1, 5, 10};
            struct segment o = {.flags = ACK, .seq = 0x80000001, .ack = 1, .length = 9, .more = sack, .more_len = 12};
            struct segment q = {.from_client = true, .flags = ACK, .seq = 1, .ack = 0x80000001};
            colo_rewriter *r = known_flow(shape, NULL, NULL, 0);
            uint32_t len;

            o.from_client = kind == 1;
            len = build(want, shape, kind == 2 ? &q : &o);
            if (kind == 2) {
                memcpy(inner, want, len);
                len = build_error(want, shape, inner, 20, false);
            }
            for (uint32_t cut = 0; cut < len; cut++) {
                uint8_t *exact = malloc(cut ? cut : 1);
                int got;

                REQUIRE(exact);
                memcpy(exact, want, cut);
                CHECK_NOTE("shape %zu, kind %d, cut %u", i, kind, (unsigned)cut);
                if (kind == 1)
                    got = colo_rewriter_in(r, 0, exact, cut, shape->vnet_len, 0);
                else
                    got = colo_rewriter_out(r, 0, exact, cut, shape->vnet_len, 0);
                CHECK_EQ(got, cut < shape->vnet_len ? COLO_ERR_MISUSE : NONE);
                CHECK_EQ(colo_rewriter_learn(r, 0, exact, cut, shape->vnet_len, 0),
                         cut < shape->vnet_len ? COLO_ERR_MISUSE : 0);
                CHECK_MEM(exact, want, cut);
                free(exact);
            }
            colo_rewriter_destroy(r);
        }
}

static int learn_port(colo_rewriter *r, const struct shape *shape, uint16_t port, int64_t now)
{
    struct segment p = {.flags = SYN | ACK, .seq = 1000, .ack = 1};
    uint32_t len = build(buf, shape, &p);

    colo_store16(buf + tcp_at(shape) + 2, port);
    return colo_rewriter_learn(r, 0, buf, len, shape->vnet_len, now);
}

/* Writes a port into the segment in buf; its checksum stays right. */
static void set_port(const struct shape *shape, uint32_t at, uint16_t port)
{
    uint8_t *csum = buf + tcp_at(shape) + 16, *p = buf + tcp_at(shape) + at;

    colo_store16(csum, colo_csum_update32(colo_load16(csum), colo_load16(p), port));
    colo_store16(p, port);
}

static int speak_port(colo_rewriter *r, const struct shape *shape, uint16_t port, bool from_client, uint8_t flags)
{
    struct segment s = {.from_client = from_client, .flags = flags, .seq = 1, .ack = 1001};
    uint32_t len;

    if (!from_client) {
        s.seq = 0x80000000;
        s.ack = 1;
    }
    len = build(buf, shape, &s);
    set_port(shape, from_client ? 0 : 2, port);
    if (from_client)
        return colo_rewriter_in(r, 0, buf, len, shape->vnet_len, 0);
    return colo_rewriter_out(r, 0, buf, len, shape->vnet_len, 0);
}

static void test_limits(void)
{
    const struct shape *shape = &SHAPES[0];
    struct colo_rewriter_counters counters;
    colo_rewriter *r = make(8);

    REQUIRE(r);
    for (uint16_t port = 1; port <= 4; port++) {
        CHECK_EQ(learn_port(r, shape, port, 0), 0);
        CHECK_EQ(speak_port(r, shape, port, false, SYN | ACK), DONE);
        CHECK_EQ(speak_port(r, shape, port, true, ACK), DONE);
    }
    for (uint32_t port = 100; port < 60000; port++) /* a flood of SYNs */
        CHECK_EQ(learn_port(r, shape, (uint16_t)port, 0), 0);
    colo_rewriter_counters_of(r, &counters);
    CHECK_EQ(counters.flows, 8);
    CHECK_EQ(counters.evicted, 59900 - 4);
    CHECK_EQ(counters.refused, 0);
    for (uint16_t port = 1; port <= 4; port++) /* pushed out none of these */
        CHECK_EQ(speak_port(r, shape, port, true, ACK), DONE);
    for (uint16_t port = 5; port <= 8; port++) {
        CHECK_EQ(learn_port(r, shape, port, 0), 0);
        CHECK_EQ(speak_port(r, shape, port, false, SYN | ACK), DONE);
        CHECK_EQ(speak_port(r, shape, port, true, ACK), DONE);
    }
    CHECK_EQ(learn_port(r, shape, 9, 0), COLO_ERR_LIMIT);
    CHECK_EQ(speak_port(r, shape, 9, false, SYN | ACK), NONE);
    colo_rewriter_counters_of(r, &counters);
    CHECK_EQ(counters.refused, 2);
    CHECK_EQ(speak_port(r, shape, 3, false, RST), DONE); /* a closed one makes room */
    CHECK_EQ(learn_port(r, shape, 9, 0), 0);
    CHECK_EQ(speak_port(r, shape, 3, true, ACK), NONE);
    CHECK_EQ(speak_port(r, shape, 4, true, ACK), DONE);
    colo_rewriter_mark(r);
    colo_rewriter_counters_of(r, &counters);
    CHECK_EQ(counters.flows, 0);
    CHECK_EQ(learn_port(r, shape, 9, 0), 0);
    colo_rewriter_destroy(r);
}

/* What a bad cable did to a client's segment must teach nothing, for the VM drops it: not a shift, and no end. */
static void test_damaged_segments(void)
{
    const struct shape *shape = &SHAPES[0];
    struct segment syn = {.flags = SYN | ACK, .seq = 1000, .ack = 501};
    struct segment wrong = {.from_client = true, .flags = ACK, .seq = 501, .ack = 7777};
    struct segment right = {.from_client = true, .flags = ACK, .seq = 501, .ack = 92001};
    struct colo_rewriter_counters counters;
    colo_rewriter *r = make(8);
    uint32_t len;

    REQUIRE(r);
    len = build(buf, shape, &syn); /* no notice: the first ACK will tell */
    CHECK_EQ(colo_rewriter_out(r, 0, buf, len, shape->vnet_len, 0), NONE);
    colo_rewriter_takeover(r, 0);
    len = build(buf, shape, &wrong);
    buf[len - 1 - 3] ^= 1; /* of the header's last bytes, or the payload's: the checksum no longer fits */
    CHECK_EQ(colo_rewriter_in(r, 0, buf, len, shape->vnet_len, 0), NONE);
    len = build(buf, shape, &right);
    CHECK_EQ(colo_rewriter_in(r, 0, buf, len, shape->vnet_len, 0), DONE);
    CHECK_EQ(colo_load32(buf + tcp_at(shape) + 8), 1001);
    colo_rewriter_counters_of(r, &counters);
    CHECK_EQ(counters.damaged, 1);
    CHECK_EQ(counters.fallbacks, 1);
    colo_rewriter_destroy(r);
}

/* Half-open ones make room by their last use. */
static void test_the_oldest_makes_room(void)
{
    const struct shape *shape = &SHAPES[0];
    colo_rewriter *r = make(3);

    REQUIRE(r);
    for (uint16_t port = 1; port <= 3; port++)
        CHECK_EQ(learn_port(r, shape, port, 0), 0);
    CHECK_EQ(learn_port(r, shape, 1, 0), 0); /* again: 2 is the oldest now */
    CHECK_EQ(learn_port(r, shape, 4, 0), 0);
    CHECK_EQ(speak_port(r, shape, 1, false, SYN | ACK), DONE);
    CHECK_EQ(speak_port(r, shape, 3, false, SYN | ACK), DONE);
    CHECK_EQ(speak_port(r, shape, 2, false, SYN | ACK), NONE);
    colo_rewriter_destroy(r);
}

static void test_creation(void)
{
    struct colo_rewriter_config config;

    colo_rewriter_config_default(&config);
    CHECK_EQ(config.max_flows, 65536);
    config.max_flows = 0;
    CHECK(colo_rewriter_create(&config) == NULL);
    config.max_flows = UINT32_MAX;
    CHECK(colo_rewriter_create(&config) == NULL);
    colo_rewriter_destroy(NULL);
}

static void test_random_bytes(void)
{
    uint32_t rng = 7;

    for (int i = 0; i < 60000; i++) {
        const struct shape *shape = &SHAPES[(size_t)i % (sizeof SHAPES / sizeof *SHAPES)];
        uint8_t sack[12] = {1, 1, 5, 10};
        struct segment o = {.flags = ACK, .seq = 0x80000001, .ack = 1, .ts = true, .more = sack, .more_len = 12};
        colo_rewriter *r = known_flow(shape, NULL, NULL, 0);
        uint32_t len;
        uint8_t *exact;
        int got;

        o.from_client = i % 2;
        len = build(buf, shape, &o);
        for (int k = 0; k < 3; k++) {
            rng = rng * 1103515245u + 12345u;
            buf[shape->vnet_len + 12 + (rng >> 8) % (len - shape->vnet_len - 12)] = (uint8_t)(rng >> 24);
        }
        exact = malloc(len);
        REQUIRE(exact);
        memcpy(exact, buf, len);
        got = i % 2 ? colo_rewriter_in(r, 0, exact, len, shape->vnet_len, 0)
                    : colo_rewriter_out(r, 0, exact, len, shape->vnet_len, 0);
        CHECK_NOTE("round %d", i);
        CHECK(got >= NONE && got <= DROP);
        if (got != DONE)
            CHECK_MEM(exact, buf, len);
        free(exact);
        colo_rewriter_destroy(r);
    }
}

CHECK_MAIN(
    TEST(test_passive_open),
    TEST(test_flags_are_bits),
    TEST(test_active_open),
    TEST(test_port_reuse),
    TEST(test_syn_cookies),
    TEST(test_checkpoint_forgets),
    TEST(test_fallback),
    TEST(test_takeover),
    TEST(test_timestamps_never_run_backwards),
    TEST(test_tsecr_is_bounded),
    TEST(test_sack),
    TEST(test_window_scale),
    TEST(test_scale_of_a_syn),
    TEST(test_partial_elsewhere),
    TEST(test_mark_that_was_missed),
    TEST(test_reset_without_a_number),
    TEST(test_signed_segments),
    TEST(test_what_names_a_flow),
    TEST(test_super_frame),
    TEST(test_fragments),
    TEST(test_quotes),
    TEST(test_quotes_of_others),
    TEST(test_every_truncation),
    TEST(test_damaged_segments),
    TEST(test_limits),
    TEST(test_the_oldest_makes_room),
    TEST(test_creation),
    TEST(test_random_bytes),
)
