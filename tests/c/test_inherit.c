/* SPDX-License-Identifier: Apache-2.0 */
/* Inherited flows: what is exported, what is not imported, what a mark leaves; and how a path tells the other one. */
#include "frames.h"
#include "path/inherit.h"
#include "path/route.h"
#include "path/rwinherit.h"
#include "path/turn.h"
#include "path_rig.h"

enum { FIN = 1, SYN = 2, RST = 4, ACK = 16, HEAD = COLO_RWINHERIT_HEAD, FLOW = COLO_RWINHERIT_FLOW };

#define MS INT64_C(1000000)
#define P 1000u    /* initial number of the primary VM, which the client knows */
#define S 0x20000000u /* of the secondary VM */
#define C 5u       /* of the client */

static uint8_t buf[8192];

static colo_rewriter *make(uint32_t max_flows)
{
    struct colo_rewriter_config config;

    colo_rewriter_config_default(&config);
    config.hash_seed = 4711;
    if (max_flows)
        config.max_flows = max_flows;
    return colo_rewriter_create(&config);
}

static uint32_t build(uint8_t *out, bool from_client, uint16_t port, uint8_t flags, uint32_t seq, uint32_t ack)
{
    struct frame_spec f = {.family = 4, .sport = from_client ? port : 80, .dport = from_client ? 80 : port, .seq = seq,
                           .ack = ack, .flags = flags};
    const uint32_t len = frame_build(out, &f);
    uint8_t address[4];

    if (from_client) {
        memcpy(address, out + 26, 4);
        memcpy(out + 26, out + 30, 4);
        memcpy(out + 30, address, 4);
        out[11] ^= 0x55; /* another sender than the VM */
    }
    return len;
}

/* The number that comes out: of the VM's segment its own, of the client's the ACK. */
static uint32_t give(colo_rewriter *r, bool from_client, uint16_t port, uint8_t flags, uint32_t seq, uint32_t ack)
{
    const uint32_t len = build(buf, from_client, port, flags, seq, ack);

    if (from_client)
        (void)colo_rewriter_in(r, 0, buf, len, 0, 0);
    else
        (void)colo_rewriter_out(r, 0, buf, len, 0, 0);
    return colo_load32(buf + 34 + (from_client ? 8 : 4));
}

static void learn(colo_rewriter *r, uint16_t port, uint32_t isn)
{
    const uint32_t len = build(buf, false, port, SYN | ACK, isn, C + 1);

    CHECK_EQ(colo_rewriter_learn(r, 0, buf, len, 0, 0), 0);
}

/* A connection that the client has answered. */
static void open_one(colo_rewriter *r, uint16_t port)
{
    learn(r, port, P);
    CHECK_EQ(give(r, false, port, SYN | ACK, S, C + 1), P);
    CHECK_EQ(give(r, true, port, ACK, C + 1, P + 1), S + 1);
}

static long export(const colo_rewriter *r, uint8_t *out, size_t cap)
{
    uint32_t place = 0;

    return colo_rewriter_export(r, &place, out, cap, 0);
}

static int import(colo_rewriter *r, const uint8_t *data, size_t len, const char **why)
{
    uint8_t *exact = malloc(len ? len : 1); /* so that a byte too far is found */
    int error;

    memcpy(exact, data, len);
    error = colo_rewriter_import(r, exact, len, 0, why);
    free(exact);
    CHECK_EQ(error == 0, *why == NULL);
    return error;
}

static struct colo_rewriter_counters counters(const colo_rewriter *r)
{
    struct colo_rewriter_counters n;

    colo_rewriter_counters_of(r, &n);
    return n;
}

static void test_round_trip(void)
{
    uint8_t first[HEAD + 4 * FLOW], second[sizeof first];
    colo_rewriter *a = make(0), *b = make(0);
    const char *why;

    open_one(a, 1);
    open_one(a, 2);
    CHECK_EQ(give(a, false, 2, RST, S + 1, 0), P + 1); /* closed: not handed on */
    learn(a, 3, P);
    CHECK_EQ(give(a, false, 3, SYN | ACK, S, C + 1), P); /* not answered yet */
    learn(a, 4, P);                                        /* the secondary has said nothing: nothing to hand on */
    CHECK_EQ(colo_rewriter_export_size(a), sizeof first);
    CHECK_EQ(export(a, first, sizeof first), HEAD + 2 * FLOW);
    CHECK_EQ(import(b, first, HEAD + 2 * FLOW, &why), 0);
    CHECK_EQ(counters(b).inherited, 2);
    CHECK_EQ(counters(b).flows, 2);
    CHECK_EQ(export(b, second, sizeof second), HEAD + 2 * FLOW);
    if (memcmp(first + HEAD, second + HEAD, FLOW)) /* in any order */
        CHECK(!memcmp(first + HEAD, second + HEAD + FLOW, FLOW) && !memcmp(first + HEAD + FLOW, second + HEAD, FLOW));
    CHECK_EQ(give(b, false, 3, SYN | ACK, S, C + 1), P);
    CHECK_EQ(give(b, false, 1, ACK, S + 1, C + 1), P + 1);
    CHECK_EQ(give(b, true, 1, ACK, C + 1, P + 1), S + 1);
    colo_rewriter_destroy(a);
    colo_rewriter_destroy(b);
}

static void test_pieces(void)
{
    uint8_t piece[HEAD + 3 * FLOW];
    colo_rewriter *a = make(0), *b = make(0);
    const char *why;
    uint32_t place = 0, pieces = 0;
    long len;

    for (uint16_t port = 1; port <= 7; port++)
        open_one(a, port);
    CHECK_EQ(colo_rewriter_export(a, &place, piece, HEAD - 1, 0), COLO_ERR_LIMIT);
    CHECK_EQ(colo_rewriter_export(a, &place, piece, HEAD + FLOW - 1, 0), COLO_ERR_LIMIT);
    for (place = 0; (len = colo_rewriter_export(a, &place, piece, sizeof piece - 1, 0)) > 0; pieces++)
        CHECK_EQ(import(b, piece, (size_t)len, &why), 0);
    CHECK_EQ(pieces, 4);
    CHECK_EQ(counters(b).inherited, 7);
    colo_rewriter_disinherit(b);
    CHECK_EQ(export(b, piece, sizeof piece), HEAD); /* that there is none is told too */
    CHECK_EQ(import(b, piece, HEAD, &why), 0);
    CHECK(colo_rewriter_is_idle(b));
    colo_rewriter_destroy(a);
    colo_rewriter_destroy(b);
}

static void test_nonsense(void)
{
    static const struct {
        const char *what;
        uint32_t at;
        uint8_t value;
    } rows[] = {
        {"magic", 0, 'X'}, {"version", 4, 2}, {"version's rest", 7, 1}, {"count", 11, 3}, {"large count", 8, 1},
        {"family", HEAD + 1, 5}, {"IPv6's address in IPv4", HEAD + 12 + 4, 1}, {"client's", HEAD + 28 + 15, 1},
        {"VLANs", HEAD + 2, 3}, {"VLAN without count", HEAD + 5, 1}, {"reserved", HEAD + 3, 1}, {"flags", HEAD + 44, 8},
        {"scale", HEAD + 47, 15}, {"VM's scale", HEAD + 48, 15}, {"client's scale", HEAD + 49, 15},
        {"padding", HEAD + 51, 1}, {"TSval's shift without any", HEAD + 56, 1}, {"age", HEAD + 64, 1},
        {"FIN acked, never sent", HEAD + 44, 2}, {"the end", HEAD + 95, 1}, {"of the second", HEAD + FLOW + 1, 0},
    };
    uint8_t good[HEAD + 2 * FLOW], bad[sizeof good + 1];
    colo_rewriter *a = make(0), *b = make(0);
    const char *why;

    open_one(a, 1);
    open_one(a, 2);
    CHECK_EQ(export(a, good, sizeof good), (long)sizeof good);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        CHECK_NOTE("%s", rows[i].what);
        memcpy(bad, good, sizeof good);
        bad[rows[i].at] = rows[i].value;
        CHECK_EQ(import(b, bad, sizeof good, &why), COLO_ERR_MISUSE);
        CHECK(colo_rewriter_is_idle(b));
    }
    for (size_t len = 0; len <= sizeof bad; len++) {
        CHECK_NOTE("length %zu", len);
        memcpy(bad, good, sizeof good);
        if (len != sizeof good)
            CHECK_EQ(import(b, bad, len, &why), COLO_ERR_MISUSE);
        CHECK(colo_rewriter_is_idle(b));
    }
    memcpy(bad, good, sizeof good);
    memcpy(bad + HEAD + FLOW, good + HEAD, FLOW);
    CHECK_EQ(import(b, bad, sizeof good, &why), COLO_ERR_MISUSE); /* the same one twice */
    CHECK(colo_rewriter_is_idle(b));
    CHECK_EQ(import(b, good, sizeof good, &why), 0);
    CHECK_EQ(import(b, good, sizeof good, &why), COLO_ERR_MISUSE); /* it is there already */
    CHECK_EQ(counters(b).inherited, 2);
    colo_rewriter_destroy(a);
    colo_rewriter_destroy(b);
}

/* Both tables share the limit: what is exported one day must have room where it is imported. */
static void test_limit(void)
{
    uint8_t table[HEAD + 2 * FLOW];
    colo_rewriter *a = make(0), *b = make(2);
    const char *why;

    open_one(a, 1);
    open_one(a, 2);
    CHECK_EQ(export(a, table, sizeof table), (long)sizeof table);
    open_one(b, 9);
    CHECK_EQ(import(b, table, sizeof table, &why), COLO_ERR_LIMIT);
    colo_rewriter_mark(b);
    CHECK_EQ(import(b, table, sizeof table, &why), 0);
    CHECK_EQ(colo_rewriter_learn(b, 0, buf, build(buf, false, 9, SYN | ACK, P, C + 1), 0, 0), COLO_ERR_LIMIT);
    CHECK_EQ(counters(b).refused, 1);
    CHECK_EQ(counters(b).inherited, 2);
    colo_rewriter_destroy(a);
    colo_rewriter_destroy(b);
}

/* Hands a connection on from a survivor to a secondary whose VM is a copy of it: its own numbers are S's. */
static colo_rewriter *heir(void)
{
    uint8_t table[HEAD + FLOW];
    colo_rewriter *a = make(0), *b = make(0);
    const char *why;

    open_one(a, 1);
    CHECK_EQ(export(a, table, sizeof table), (long)sizeof table);
    CHECK_EQ(import(b, table, sizeof table, &why), 0);
    colo_rewriter_destroy(a);
    return b;
}

static void test_a_mark_leaves_it(void)
{
    colo_rewriter *r = heir();

    for (int i = 0; i < 3; i++) {
        CHECK_EQ(give(r, true, 1, ACK, C + 1, P + 1), S + 1);
        CHECK_EQ(give(r, false, 1, ACK, S + 1, C + 1), P + 1);
        open_one(r, 2);
        CHECK_EQ(counters(r).flows, 2);
        colo_rewriter_mark(r);
        CHECK_EQ(counters(r).flows, 1);
        CHECK_EQ(give(r, false, 2, ACK, P + 1, C + 1), P + 1); /* it has the primary's number now */
    }
    colo_rewriter_destroy(r);
}

/* A new connection on its ports: of the secondary's alone, of both, and a checkpoint between. */
static void test_ports_taken_again(void)
{
    enum { P2 = 0x40000000, S2 = 0x60000000 };
    colo_rewriter *r = heir();

    CHECK_EQ(give(r, false, 1, ACK, S + 1, C + 1), P + 1);
    CHECK_EQ(give(r, false, 1, SYN | ACK, S2, C + 1), S2); /* the notice has not come */
    CHECK_EQ(counters(r).flows, 2);
    colo_rewriter_mark(r); /* back to the primary, which does not know of it */
    CHECK_EQ(give(r, false, 1, ACK, S + 1, C + 1), P + 1);
    CHECK_EQ(give(r, false, 1, SYN | ACK, S2, C + 1), S2);
    learn(r, 1, P2);
    CHECK_EQ(counters(r).inherited, 0);
    CHECK_EQ(give(r, true, 1, ACK, C + 1, P2 + 1), S2 + 1);
    colo_rewriter_mark(r);
    CHECK_EQ(give(r, false, 1, ACK, P2 + 1, C + 1), P2 + 1);
    colo_rewriter_destroy(r);
    /* The checkpoint before the notice: the copy has the primary's number, and the client's ACK is meant for it. */
    r = heir();
    colo_rewriter_mark(r);
    learn(r, 1, P2);
    CHECK_EQ(give(r, true, 1, ACK, C + 1, P2 + 1), P2 + 1);
    CHECK_EQ(give(r, false, 1, ACK, P2 + 1, C + 1), P2 + 1);
    colo_rewriter_destroy(r);
    /* After a takeover its own new connection has its own numbers. */
    r = heir();
    colo_rewriter_takeover(r, 0);
    CHECK_EQ(give(r, false, 1, SYN | ACK, S2, C + 9), S2);
    CHECK(colo_rewriter_is_idle(r));
    colo_rewriter_destroy(r);
}

/* A mark that was missed leads back to the inherited connection, not to numbers without a shift. */
static void test_missed_mark(void)
{
    enum { S2 = 0x60000000, P2 = 0x40000000 };
    uint8_t table[HEAD + 2 * FLOW];
    colo_rewriter *r = heir();

    CHECK_EQ(give(r, false, 1, ACK, S + 1, C + 1), P + 1);
    open_one(r, 2);
    CHECK_EQ(give(r, false, 2, ACK, P + 1, C + 1), P + 1); /* a copy, as ever: fits only without a shift */
    CHECK_EQ(counters(r).unshifted, 1);
    CHECK_EQ(give(r, false, 1, ACK, S + 1, C + 1), P + 1);
    CHECK_EQ(export(r, table, sizeof table), HEAD + FLOW);
    colo_rewriter_destroy(r);
}

/* An old copy: the connection was closed, and its ports have been taken by one that is not translated. */
static void test_belied(void)
{
    enum { S2 = 0x60000000 };
    colo_rewriter *r = heir();

    CHECK_EQ(give(r, true, 1, ACK, C + 1, S2 + 1), S2 + 1 - (P - S)); /* one is lost */
    CHECK_EQ(give(r, false, 1, ACK, S2 + 1, C + 1), S2 + 1);
    CHECK_EQ(counters(r).belied, 1);
    CHECK(colo_rewriter_is_idle(r));
    colo_rewriter_destroy(r);
    r = heir();
    CHECK_EQ(give(r, false, 1, ACK, S2 + 1, C + 1), S2 + 1 + (P - S));
    CHECK_EQ(give(r, true, 1, ACK, C + 0x10000000, S2 + 1), S2 + 1 - (P - S)); /* who guesses does not know that */
    CHECK_EQ(give(r, true, 1, ACK, C + 1, S2 + 1), S2 + 1);
    CHECK_EQ(counters(r).belied, 1);
    colo_rewriter_destroy(r);
    /* Proven, nothing can belie it any more. */
    r = heir();
    CHECK_EQ(give(r, false, 1, ACK, S + 1, C + 1), P + 1);
    CHECK_EQ(give(r, true, 1, ACK, C + 1, P + 1), S + 1);
    CHECK_EQ(give(r, true, 1, ACK, C + 1, S + 1), S + 1 - (P - S));
    CHECK_EQ(counters(r).belied, 0);
    colo_rewriter_destroy(r);
}

/* Idle connections are closed by the client: the first that is heard of them is a FIN. */
static void test_closing(void)
{
    colo_rewriter *r = heir();

    colo_rewriter_takeover(r, 0);
    CHECK_EQ(give(r, true, 1, FIN | ACK, C + 1, P + 1), S + 1);
    CHECK_EQ(give(r, false, 1, FIN | ACK, S + 1, C + 2), P + 1);
    CHECK_EQ(give(r, true, 1, ACK, C + 2, P + 2), S + 2);
    CHECK_EQ(export(r, buf, sizeof buf), HEAD);
    (void)colo_rewriter_out(r, 0, buf, build(buf, false, 9, ACK, 1, 1), 0, 60000 * MS);
    CHECK(colo_rewriter_is_idle(r));
    colo_rewriter_destroy(r);
}

/* ------------------------------------------------------------------- the paths */

static struct path_rig r;

static void from(bool vm, uint8_t flags, uint32_t seq, uint32_t ack)
{
    struct colo_wire_frame frame = {.data = buf, .len = build(buf, !vm, 1, flags, seq, ack)};

    if (vm)
        colo_route_from_vm(r.path, &frame);
    else
        colo_route_from_client(r.path, &frame);
    colo_path_flush(r.path);
}

/* The sequence number (`ack`: the ACK number) of the next frame there. */
static uint32_t next(int fd, size_t head, bool ack)
{
    uint8_t words[8], frame[256] = {0};

    if (!path_read_all(fd, words, head) || !path_read_all(fd, frame, colo_load32(words)))
        return 0;
    return colo_load32(frame + 34 + (ack ? 8 : 4));
}

static size_t table_of_one(uint8_t *out, size_t cap)
{
    colo_rewriter *h = heir();
    const long len = export(h, out, cap);

    colo_rewriter_destroy(h);
    return (size_t)len;
}

static void test_a_primary_translates(void)
{
    uint8_t table[HEAD + FLOW], again[HEAD + FLOW];
    const char *why;

    path_init(&r, COLO_PATH_PRIMARY);
    path_create(&r);
    CHECK_EQ(colo_path_export_size(r.path), HEAD);
    CHECK_EQ(colo_path_export(r.path, again, HEAD - 1), COLO_ERR_LIMIT);
    CHECK_EQ(colo_path_export(r.path, again, sizeof again), HEAD);
    (void)table_of_one(table, sizeof table);
    CHECK_EQ(colo_path_import(r.path, table, sizeof table - 1, 0, &why), COLO_ERR_MISUSE);
    CHECK_EQ(colo_path_import(r.path, table, sizeof table, 0, &why), 0);
    from(true, ACK, S + 1, C + 1);
    CHECK_EQ(next(r.comparator[0], 8, false), P + 1);
    from(false, ACK, C + 1, P + 1);
    CHECK_EQ(next(r.vm[0], 4, true), S + 1);
    CHECK_EQ(path_counters(&r).rewriter.inherited, 1);
    CHECK_EQ(colo_path_export(r.path, again, sizeof again), (long)sizeof again);
    CHECK_MEM(again, table, HEAD + 64);
    CHECK_MEM(again + HEAD + 72, table + HEAD + 72, FLOW - 72); /* it is older now */
    r.path->session = true;
    CHECK_EQ(colo_path_import(r.path, table, sizeof table, 0, &why), COLO_ERR_MISUSE);
    path_end(&r);
}

static bool inherit_record(uint8_t first, const uint8_t *table, size_t len, const char **why)
{
    uint8_t data[1 + HEAD + FLOW] = {first};
    struct colo_link_record record = {.type = COLO_LINK_INHERIT, .len = (uint32_t)len + 1, .data = data};

    memcpy(data + 1, table, len);
    *why = NULL;
    return colo_route_record(r.path, &record, why);
}

static void test_a_secondary_is_told(void)
{
    uint8_t table[HEAD + FLOW], none[HEAD];
    const char *why;

    (void)table_of_one(table, sizeof table);
    colo_rwinherit_put_head(none, 0);
    path_init(&r, COLO_PATH_SECONDARY);
    path_create(&r);
    r.path->session = true;
    CHECK(!inherit_record(1, table, sizeof table, &why)); /* not at a session's beginning */
    CHECK_STR(why, "a piece of the inherited connections that makes no sense here");
    colo_inherit_begin(r.path);
    CHECK(!inherit_record(0, table, sizeof table, &why));
    CHECK(!inherit_record(1, table, sizeof table - 1, &why));
    colo_inherit_begin(r.path);
    CHECK(inherit_record(1, table, sizeof table, &why));
    CHECK(!inherit_record(0, table, sizeof table, &why)); /* twice the same */
    CHECK_STR(why, "a connection that is there twice");
    CHECK_EQ(path_counters(&r).rewriter.inherited, 1);
    CHECK_EQ(colo_path_export(r.path, buf, sizeof buf), COLO_ERR_MISUSE); /* its VM is nobody's yet */
    CHECK_EQ(colo_path_epoch(r.path, 0), 0);
    CHECK_EQ(path_counters(&r).rewriter.inherited, 1);
    /* The next session: what it says counts, as soon as it does. */
    colo_inherit_begin(r.path);
    CHECK_EQ(path_counters(&r).rewriter.inherited, 1);
    CHECK(inherit_record(1, none, sizeof none, &why));
    CHECK_EQ(path_counters(&r).rewriter.inherited, 0);
    /* A primary that says nothing has none: at the latest when the VM is its copy. */
    colo_inherit_begin(r.path);
    CHECK(inherit_record(1, table, sizeof table, &why));
    colo_inherit_begin(r.path);
    CHECK_EQ(colo_path_epoch(r.path, 0), 0);
    CHECK_EQ(path_counters(&r).rewriter.inherited, 0);
    /* After the takeover nobody tells it any more. */
    colo_inherit_begin(r.path);
    CHECK(inherit_record(1, table, sizeof table, &why));
    CHECK_EQ(colo_path_takeover(r.path), 0);
    CHECK_EQ(colo_path_export(r.path, buf, sizeof buf), HEAD + FLOW);
    from(true, ACK, S + 1, C + 1);
    from(false, ACK, C + 1, P + 1);
    CHECK_EQ(next(r.vm[0], 4, true), S + 1);
    path_end(&r);
    path_init(&r, COLO_PATH_PRIMARY);
    path_create(&r);
    CHECK(!inherit_record(1, table, sizeof table, &why));
    CHECK_STR(why, "a record that its role does not send");
    path_end(&r);
}

/* A flow that is inherited costs no more memory than one that is learnt. */
static void test_budget(void)
{
    enum { MANY = 20000 };
    const size_t size = HEAD + (size_t)MANY * FLOW;
    colo_rewriter *a = make(MANY), *b = make(MANY);
    uint8_t *table = malloc(size);
    const char *why;

    for (uint16_t port = 1; port <= MANY; port++) {
        learn(a, port, P);
        (void)give(a, false, port, SYN | ACK, S, C + 1);
        (void)give(a, true, port, ACK, C + 1, P + 1);
    }
    CHECK(sizeof(struct colo_rwflow) <= 272);
    CHECK_EQ(colo_rewriter_export_size(a), size);
    CHECK_EQ(export(a, table, size), (long)size);
    CHECK_EQ(import(b, table, size, &why), 0);
    CHECK_EQ(counters(b).inherited, MANY);
    free(table);
    colo_rewriter_destroy(a);
    colo_rewriter_destroy(b);
}

CHECK_MAIN(
    TEST(test_round_trip),
    TEST(test_pieces),
    TEST(test_nonsense),
    TEST(test_limit),
    TEST(test_a_mark_leaves_it),
    TEST(test_ports_taken_again),
    TEST(test_missed_mark),
    TEST(test_belied),
    TEST(test_closing),
    TEST(test_a_primary_translates),
    TEST(test_a_secondary_is_told),
    TEST(test_budget),
)
