/* SPDX-License-Identifier: Apache-2.0 */
/* Where frames go, and the epochs of the secondary's: the path without its thread, whose turns are played here. */
#include "path/route.h"

#include "frames.h"
#include "path/marks.h"
#include "path/turn.h"
#include "path_rig.h"

static struct path_rig r;

static void set_up(enum colo_path_role role)
{
    path_init(&r, role);
    path_create(&r);
    r.path->session = true;
}

static bool record(uint8_t type, uint8_t nic, uint8_t vnet_len, uint8_t *data, uint32_t len, const char **why)
{
    struct colo_link_record rec = {.type = type, .nic = nic, .vnet_len = vnet_len, .len = len, .data = data};

    *why = NULL;
    return colo_route_record(r.path, &rec, why);
}

static void frame_from_link(uint8_t type, uint8_t number)
{
    uint8_t frame[PATH_FRAME];
    const char *why;

    path_frame(frame, number, type == COLO_LINK_OUTPUT);
    CHECK(record(type, 0, 0, frame, sizeof frame, &why));
    colo_path_flush(r.path);
}

static void mark(enum colo_mark kind, uint64_t value);

/* The secondary VM's questions for neighbours leave, for the primary VM may have no reason to ask; its probes don't. */
static void test_questions_of_the_secondary(void)
{
    static const struct {
        const char *name;
        uint16_t vlan, type;
        bool probe, whole, leaves;
        uint8_t op; /* of ARP; ICMPv6's type */
    } rows[] = {
        {"request", 0, 0x0806, false, true, true, 1},   {"tagged", 5, 0x0806, false, true, true, 1},
        {"reply", 0, 0x0806, false, true, false, 2},    {"probe", 0, 0x0806, true, true, false, 1},
        {"cut", 0, 0x0806, false, false, false, 1},     {"solicitation", 0, 0x86dd, false, true, true, 135},
        {"DAD", 0, 0x86dd, true, true, false, 135},     {"advertisement", 0, 0x86dd, false, true, false, 136},
        {"cut solicitation", 0, 0x86dd, false, false, false, 135},
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint8_t frame[120] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0, 0, 9}, *p = frame + 12;
        const char *why;
        uint32_t len;

        CHECK_NOTE("%s", rows[i].name);
        set_up(COLO_PATH_PRIMARY);
        if (rows[i].vlan) {
            colo_store16(p, 0x8100);
            colo_store16(p + 2, rows[i].vlan);
            p += 4;
        }
        colo_store16(p, rows[i].type);
        if (rows[i].type == 0x0806) {
            colo_store16(p + 8, rows[i].op);
            colo_store32(p + 16, rows[i].probe ? 0 : 0x0a000009);
            colo_store32(p + 26, 0x0a000001);
            len = (uint32_t)(p + 30 - frame);
        } else {
            p[8] = 58;
            p[9] = 255;
            p[10] = rows[i].probe ? 0 : 0xfd;
            p[42] = rows[i].op;
            len = (uint32_t)(p + 66 - frame);
        }
        CHECK(record(COLO_LINK_OUTPUT, 0, 0, frame, len - !rows[i].whole, &why));
        colo_path_flush(r.path);
        CHECK_EQ(path_silent(r.client[0]), !rows[i].leaves);
        CHECK_EQ(path_counters(&r).asked, rows[i].leaves);
        path_end(&r);
    }
}

static void mark(enum colo_mark kind, uint64_t value)
{
    uint8_t data[9] = {(uint8_t)kind};
    const char *why;

    colo_store32(data + 1, (uint32_t)(value >> 32));
    colo_store32(data + 5, (uint32_t)value);
    CHECK(record(COLO_LINK_MARK, 0, 0, data, sizeof data, &why));
    colo_path_flush(r.path);
}

static void from_vm(uint8_t number)
{
    uint8_t data[PATH_FRAME];
    struct colo_wire_frame frame = {.data = data, .len = sizeof data};

    path_frame(data, number, true);
    colo_route_from_vm(r.path, &frame);
}

static void from_client(uint8_t number)
{
    uint8_t data[PATH_FRAME];
    struct colo_wire_frame frame = {.data = data, .len = sizeof data};

    path_frame(data, number, false);
    colo_route_from_client(r.path, &frame);
}

static size_t events_of(int kind)
{
    struct colo_path_event e[COLO_PATH_EVENTS];
    size_t count = colo_path_events(r.path, e, COLO_PATH_EVENTS), found = 0;

    for (size_t i = 0; i < count; i++)
        found += e[i].kind == kind;
    return found;
}

/* ------------------------------------------------------------------ epochs */

/* The numbers of the frames that the comparator has got, as digits. */
static const char *compared(void)
{
    static char out[64];
    size_t n = 0;

    while (!path_silent(r.comparator[1]) && n + 1 < sizeof out)
        out[n++] = (char)path_next(r.comparator[1], true, true);
    out[n] = '\0';
    return out;
}

/*
 * T a token is given, K the peer answers it, k it answers another, A accept, a accept is refused; M a mark of an epoch;
 * D drain (STOP), d the same, heard of late, C commit, V stand_over (it failed); R the stream begins anew; digits: frames of the secondary's.
 */
static void test_which_frames_are_compared(void)
{
    static const struct {
        const char *script, *compared;
        uint64_t stale, miscounted;
    } rows[] = {
        {"1", "", 1, 0},                 /* nobody has asked */
        {"T1", "", 1, 0},
        {"Tk1a", "", 1, 0},
        {"TKA1", "1", 0, 0},
        {"1T2KA3", "3", 2, 0},
        {"TK1A2", "12", 0, 0},           /* held until accept */
        {"TKAA1", "1", 0, 0},
        {"TKA1D2M3C4", "134", 1, 0},     /* the mark comes in time */
        {"TKA1D2C3M4", "14", 2, 0},      /* it comes late: what was before it is stale */
        {"TKADMC1DMC2DCM3", "123", 0, 0},
        {"TKA1D2V3", "123", 0, 0},       /* the checkpoint has failed */
        {"TKADVDV1DM2C3", "123", 0, 0},
        {"TKA1DC2DC3MM4", "14", 2, 0},   /* both marks late */
        {"TKADC1DMC2", "", 2, 0},        /* one is missing: all is stale until the count is put right */
        {"TKADC1DMC2TKA3", "3", 2, 0},
        {"TKA1M2", "1", 0, 0},           /* of a STOP that will be heard of, or one too many: ... */
        {"TKA1M2d3C4", "1234", 0, 0},    /* the former */
        {"TKA1M2D3MC4", "1", 2, 1},      /* the latter: nothing of it is compared, neither after the next commit */
        {"TKA1M2MC3", "1", 1, 1},
        {"TKA1M2d3MC4", "1", 1, 1},
        {"TKA1M2TKA3", "13", 0, 0},
        {"TKA1DMM2C3", "1", 2, 1},
        {"TKA1DM2MC3", "1", 1, 1},       /* what was held goes too */
        {"TKM1a2", "", 0, 0},            /* an epoch since the answer: another token is wanted */
        {"TKM1aT2KA3", "3", 1, 0},
        {"TKDC1A2", "12", 0, 0},         /* a commit before accept ends no epoch of the secondary's */
        {"TKA1T2KA3", "13", 1, 0},
        {"TKA1R2", "1", 1, 0},
        {"TR1K2a", "", 2, 0},            /* the token was of the stream before */
        {"M1C2", "", 2, 0},
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint64_t token = 41;

        CHECK_NOTE("%s", rows[i].script);
        set_up(COLO_PATH_PRIMARY);
        for (const char *at = rows[i].script; *at; at++) {
            switch (*at) {
            case 'T':
                CHECK_EQ(colo_path_sync(r.path, ++token), 0);
                break;
            case 'K':
                mark(COLO_MARK_SYNC, token);
                break;
            case 'k':
                mark(COLO_MARK_SYNC, token + 1);
                break;
            case 'A':
            case 'a':
                if (at > rows[i].script && at[-1] == 'A') /* a second time */
                    CHECK_EQ(colo_path_accept(r.path), COLO_ERR_MISUSE);
                else
                    CHECK_EQ(colo_path_accept(r.path), *at == 'A' ? 0 : COLO_ERR_MISUSE);
                break;
            case 'M':
                mark(COLO_MARK_EPOCH, 0);
                break;
            case 'D':
            case 'd':
                CHECK_EQ(colo_path_drain(r.path, *at == 'D' ? colo_path_now() : 1), 0);
                break;
            case 'C':
                CHECK_EQ(colo_path_commit(r.path), 0);
                break;
            case 'V':
                CHECK_EQ(colo_path_stand_over(r.path), 0);
                break;
            case 'R':
                CHECK_EQ(colo_path_link_detach(r.path, true), 0);
                r.path->session = true;
                break;
            default:
                frame_from_link(COLO_LINK_OUTPUT, (uint8_t)*at);
            }
        }
        CHECK_STR(compared(), rows[i].compared);
        CHECK_EQ(path_counters(&r).stale, rows[i].stale);
        CHECK_EQ(path_counters(&r).miscounted, rows[i].miscounted);
        CHECK_EQ(events_of(COLO_PATH_MISCOUNTED), rows[i].miscounted);
        path_end(&r);
    }
}

static uint32_t seed;

static uint32_t chance(uint32_t n)
{
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % n;
}

/*
 * Two hosts that checkpoint as they may, over a link of any slowness that loses marks for want of room: no frame reaches
 * the comparator in a later epoch than its own.
 */
static void test_no_schedule_lets_a_stale_frame_through(void)
{
    enum { IN_FLIGHT = 64, STEPS = 400 };
    size_t through = 0;

    for (uint32_t run = 1; run <= 200; run++) {
        struct {
            char what; /* F, M, K */
            uint8_t epoch;
            uint64_t token;
        } flight[IN_FLIGHT];
        size_t first = 0, last = 0;
        uint64_t token = 0, asked = 0;       /* given last; that the secondary is to answer */
        int stops = 0, token_stops = 0;
        uint8_t p_epoch = 0, s_epoch = 0;
        bool p_stands = false, s_stands = false, loaded = false, synced = false;

        seed = run;
        CHECK_NOTE("run %u", run);
        set_up(COLO_PATH_PRIMARY);
        for (int step = 0; step < STEPS && !check_failures; step++) {
            const bool room = last - first < IN_FLIGHT;

            switch (chance(8)) {
            case 0:
            case 1: /* the secondary's VM says something */
                if (room && !s_stands) {
                    flight[last % IN_FLIGHT].what = 'F';
                    flight[last++ % IN_FLIGHT].epoch = s_epoch;
                }
                break;
            case 2: /* it stands, and only then the primary's does */
                if (!s_stands && !p_stands) {
                    s_stands = true;
                    loaded = false;
                } else if (s_stands && !p_stands && !loaded) {
                    p_stands = true;
                    stops++;
                    CHECK_EQ(colo_path_drain(r.path, colo_path_now()), 0);
                }
                break;
            case 3: /* it goes on, as a copy or as it was */
                if (p_stands && s_stands) {
                    s_stands = false;
                    loaded = chance(5) != 0;
                    if (loaded) {
                        s_epoch = (uint8_t)(p_epoch + 1);
                        if (room && chance(6)) {
                            flight[last++ % IN_FLIGHT].what = 'M';
                        }
                    }
                } else if (p_stands) { /* and the primary's after it */
                    p_stands = false;
                    if (loaded) {
                        p_epoch++;
                        CHECK_EQ(colo_path_commit(r.path), 0);
                    } else {
                        CHECK_EQ(colo_path_stand_over(r.path), 0);
                    }
                    loaded = false;
                }
                break;
            case 4: /* a token, if the counts are not good */
                if (!synced || r.path->marks != r.path->commits || chance(20) == 0) {
                    token = run * 1000u + (uint32_t)step + 1;
                    token_stops = stops;
                    asked = token;
                    synced = false;
                    CHECK_EQ(colo_path_sync(r.path, token), 0);
                }
                break;
            case 5: /* its answer, never while the VM stands */
                if (asked && !s_stands && room) {
                    flight[last % IN_FLIGHT].what = 'K';
                    flight[last++ % IN_FLIGHT].token = asked;
                    asked = 0;
                }
                break;
            default: /* the link delivers */
                if (first == last)
                    break;
                if (flight[first % IN_FLIGHT].what == 'F') {
                    frame_from_link(COLO_LINK_OUTPUT, (uint8_t)('0' + flight[first % IN_FLIGHT].epoch));
                } else if (flight[first % IN_FLIGHT].what == 'M') {
                    mark(COLO_MARK_EPOCH, 0);
                } else {
                    mark(COLO_MARK_SYNC, flight[first % IN_FLIGHT].token);
                    if (events_of(COLO_PATH_SYNCED) && token_stops == stops && !p_stands)
                        synced = colo_path_accept(r.path) == 0;
                }
                first++;
            }
            while (!path_silent(r.comparator[1])) {
                const int epoch = path_next(r.comparator[1], true, true) - '0';

                CHECK(epoch >= p_epoch);
                CHECK(!p_stands); /* it would be judged in the next epoch */
                through++;
            }
        }
        CHECK_EQ(path_counters(&r).miscounted, 0);
        path_end(&r);
        if (check_failures)
            return;
    }
    CHECK(through > 1000); /* or it says nothing */
}

/* The comparator is behind: its frames wait, and what it has not begun to read at STOP is of no use to it any more. */
static void test_a_comparator_that_is_slow(void)
{
    uint8_t big[60000];
    const char *why;
    struct colo_path_counters n;
    int count = 0;

    memset(big, 0, sizeof big);
    path_init(&r, COLO_PATH_PRIMARY);
    r.config.wire_bytes = 1 << 17;
    r.config.hold_bytes = 1 << 20;
    path_create(&r);
    CHECK_EQ(colo_path_sync(r.path, 1), 0);
    mark(COLO_MARK_SYNC, 1);
    CHECK_EQ(colo_path_accept(r.path), 0);
    for (; path_counters(&r).held_bytes < 500000 && count < 1000; count++) {
        CHECK(record(COLO_LINK_OUTPUT, 0, 0, big, sizeof big, &why));
        colo_path_flush(r.path);
    }
    CHECK_EQ(events_of(COLO_PATH_OVERRUN), 0);
    n = path_counters(&r);
    CHECK_EQ(n.comparator[1].dropped + n.stale, 0);
    CHECK(n.comparator[1].queued_bytes <= r.config.wire_bytes);
    CHECK_EQ(colo_path_drain(r.path, colo_path_now()), 0);
    n = path_counters(&r);
    CHECK(n.comparator[1].queued_bytes <= sizeof big + 8);
    CHECK(n.stale > 0);
    mark(COLO_MARK_EPOCH, 0);
    CHECK_EQ(colo_path_commit(r.path), 0);
    CHECK_EQ(path_counters(&r).held_bytes, 0);
    path_end(&r);
}

/* ------------------------------------------------------------------ limits */

static void test_what_finds_no_room_to_wait_is_told(void)
{
    uint8_t big[60000] = {0};
    const char *why;
    struct colo_path_counters n;

    path_init(&r, COLO_PATH_PRIMARY);
    r.config.hold_bytes = 100000;
    path_create(&r);
    CHECK_EQ(colo_path_sync(r.path, 1), 0);
    mark(COLO_MARK_SYNC, 1); /* not accepted: all is held */
    for (int i = 0; i < 5; i++)
        CHECK(record(COLO_LINK_OUTPUT, 0, 0, big, sizeof big, &why));
    n = path_counters(&r);
    CHECK_EQ(n.vm[0].dropped, 4);
    CHECK(n.held_bytes <= r.config.hold_bytes);
    CHECK_EQ(events_of(COLO_PATH_OVERRUN), 1); /* once an epoch */
    CHECK(record(COLO_LINK_OUTPUT, 0, 0, big, sizeof big, &why));
    CHECK_EQ(events_of(COLO_PATH_OVERRUN), 0);
    CHECK_EQ(colo_path_commit(r.path), 0);
    CHECK(record(COLO_LINK_OUTPUT, 0, 0, big, sizeof big, &why));
    CHECK_EQ(events_of(COLO_PATH_OVERRUN), 1);
    path_end(&r);
}

static void test_records_that_break_the_protocol(void)
{
    static uint8_t data[70000];
    static const struct {
        const char *what;
        uint8_t role, type, nic, vnet_len;
        uint32_t len;
        bool fine;
    } rows[] = {
        {"output", COLO_PATH_PRIMARY, COLO_LINK_OUTPUT, 0, 0, 60, true},
        {"output of the last NIC", COLO_PATH_PRIMARY, COLO_LINK_OUTPUT, 1, 12, 72, true},
        {"output of no NIC", COLO_PATH_PRIMARY, COLO_LINK_OUTPUT, 2, 0, 60, false},
        {"output of NIC 255", COLO_PATH_PRIMARY, COLO_LINK_OUTPUT, 255, 0, 60, false},
        {"the least", COLO_PATH_PRIMARY, COLO_LINK_OUTPUT, 0, 12, 26, true},
        {"too short", COLO_PATH_PRIMARY, COLO_LINK_OUTPUT, 0, 12, 25, false},
        {"nothing", COLO_PATH_PRIMARY, COLO_LINK_OUTPUT, 0, 0, 0, false},
        {"the longest", COLO_PATH_PRIMARY, COLO_LINK_OUTPUT, 0, 0, 69632, true},
        {"longer than a frame, not than a record", COLO_PATH_PRIMARY, COLO_LINK_OUTPUT, 0, 0, 69633, false},
        {"mirror to a primary", COLO_PATH_PRIMARY, COLO_LINK_MIRROR, 0, 0, 60, false},
        {"learn to a primary", COLO_PATH_PRIMARY, COLO_LINK_LEARN, 0, 0, 60, false},
        {"a mark", COLO_PATH_PRIMARY, COLO_LINK_MARK, 0, 0, 9, true},
        {"a short mark", COLO_PATH_PRIMARY, COLO_LINK_MARK, 0, 0, 8, false},
        {"a long mark", COLO_PATH_PRIMARY, COLO_LINK_MARK, 0, 0, 10, false},
        {"a message", COLO_PATH_PRIMARY, COLO_LINK_CONTROL, 0, 0, 1, true},
        {"an empty message", COLO_PATH_PRIMARY, COLO_LINK_CONTROL, 0, 0, 0, false},
        {"no type", COLO_PATH_PRIMARY, 6, 0, 0, 60, false},
        {"mirror", COLO_PATH_SECONDARY, COLO_LINK_MIRROR, 1, 10, 60, true},
        {"mirror of no NIC", COLO_PATH_SECONDARY, COLO_LINK_MIRROR, 2, 0, 60, false},
        {"mirror, too long", COLO_PATH_SECONDARY, COLO_LINK_MIRROR, 0, 0, 69633, false},
        {"learn", COLO_PATH_SECONDARY, COLO_LINK_LEARN, 0, 0, 60, true},
        {"learn, too short", COLO_PATH_SECONDARY, COLO_LINK_LEARN, 0, 0, 13, false},
        {"output to a secondary", COLO_PATH_SECONDARY, COLO_LINK_OUTPUT, 0, 0, 60, false},
        {"a mark to a secondary", COLO_PATH_SECONDARY, COLO_LINK_MARK, 0, 0, 9, false},
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const char *why;

        CHECK_NOTE("%s", rows[i].what);
        path_init(&r, (enum colo_path_role)rows[i].role);
        r.config.nics = 2;
        path_create(&r);
        CHECK_EQ(record(rows[i].type, rows[i].nic, rows[i].vnet_len, data, rows[i].len, &why), rows[i].fine);
        CHECK_EQ(why == NULL, rows[i].fine);
        CHECK_EQ(r.path->error, 0);
        path_end(&r);
    }
}

static void test_control_messages_wait_for_a_reader_up_to_a_limit(void)
{
    static uint8_t data[60000], out[60000];
    const char *why;
    int count = 0;

    set_up(COLO_PATH_PRIMARY);
    while (record(COLO_LINK_CONTROL, 0, 0, data, sizeof data, &why) && count < 100)
        data[0] = (uint8_t)++count;
    CHECK_EQ(count, (1 << 20) / (60000 + 4));
    CHECK(why != NULL);
    CHECK_EQ(events_of(COLO_PATH_CONTROL), 1);
    CHECK_EQ(colo_path_take_control(r.path, out, 59999), COLO_ERR_LIMIT);
    for (int i = 0; i < count; i++) {
        CHECK_EQ(colo_path_take_control(r.path, out, sizeof out), 60000);
        CHECK_EQ(out[0], i);
    }
    CHECK_EQ(colo_path_take_control(r.path, out, sizeof out), 0);
    path_end(&r);
}

/* A link that moves nothing: clients wait for stall_timeout, then the mirror leaves them out; control still finds room. */
static void test_a_link_that_is_stuck(void)
{
    const int64_t begin = 1000000000;
    struct colo_path_counters n;
    uint64_t before;

    path_init(&r, COLO_PATH_PRIMARY);
    r.config.link.send_bytes = 1 << 20;
    path_create(&r);
    r.path->session = true;
    r.path->now = begin;
    for (int i = 0; i < 1000000 && colo_route_may_read_client(r.path, 0); i++) {
        from_client(1);
        r.path->vm[0].out.from = r.path->vm[0].out.to = 0; /* the VM reads all */
    }
    n = path_counters(&r);
    CHECK_EQ(n.mirror_left_out, 0);
    CHECK(n.link.queued_bytes > (1 << 20) - (1 << 16) - 69632 - 100);
    r.path->now = begin + r.config.stall_timeout - 1;
    CHECK(!colo_route_may_read_client(r.path, 0));
    CHECK_EQ(events_of(COLO_PATH_OVERRUN), 0);
    r.path->now = begin + r.config.stall_timeout;
    colo_route_link_room(r.path);
    CHECK(colo_route_may_read_client(r.path, 0));
    from_client(2);
    CHECK_EQ(path_counters(&r).mirror_left_out, 1);
    CHECK_EQ(events_of(COLO_PATH_OVERRUN), 1);
    before = path_counters(&r).link.sent_records;
    CHECK_EQ(colo_path_control(r.path, (const uint8_t *)"alone", 5), 0);
    CHECK_EQ(path_counters(&r).link.sent_records, before + 1);
    CHECK_EQ(colo_link_restart(r.path->link), 0); /* all of it has gone out */
    CHECK(colo_route_may_read_client(r.path, 0));
    from_client(3);
    CHECK_EQ(path_counters(&r).mirror_left_out, 1);
    path_end(&r);
}

/* One frame's room is not enough to begin the mirror again, half of the memory is. */
static void test_the_mirror_begins_again_at_half(void)
{
    uint8_t sink[1 << 16];
    const uint8_t *data;
    struct colo_link_record dummy;
    colo_link *far;
    uint64_t queued;

    path_init(&r, COLO_PATH_PRIMARY);
    r.config.link.send_bytes = 1 << 20;
    path_create(&r);
    r.path->session = true;
    r.path->now = 1000000000;
    far = colo_link_create(&r.config.link);
    CHECK_EQ(colo_link_connect(r.path->link, 0, r.path->now), 0);
    CHECK_EQ(colo_link_connect(far, 0, r.path->now), 0);
    while (colo_route_may_read_client(r.path, 0)) {
        from_client(1);
        r.path->vm[0].out.from = r.path->vm[0].out.to = 0;
    }
    r.path->now += r.config.stall_timeout;
    colo_route_link_room(r.path);
    CHECK(r.path->overrun);
    do { /* the link moves, a little at a time, and is acknowledged */
        size_t len = colo_link_output(r.path->link, &data, r.path->now), room;
        uint8_t *in;

        queued = path_counters(&r).link.queued_bytes;
        colo_route_link_room(r.path);
        CHECK_EQ(r.path->overrun, queued > (1 << 20) - (1 << 16) - (1 << 19));
        len = len < sizeof sink ? len : sizeof sink;
        room = colo_link_input(far, &in);
        len = len < room ? len : room;
        if (len)
            memcpy(in, data, len);
        colo_link_wrote(r.path->link, len);
        colo_link_got(far, len, r.path->now);
        while (colo_link_next(far, &dummy) > 0)
            ;
        r.path->now += 100000000;
        len = colo_link_output(far, &data, r.path->now);
        room = colo_link_input(r.path->link, &in);
        len = len < room ? len : room;
        if (len)
            memcpy(in, data, len);
        colo_link_wrote(far, len);
        colo_link_got(r.path->link, len, r.path->now);
        CHECK_EQ(colo_link_next(r.path->link, &dummy), 0);
    } while (queued > 1000 && !check_failures);
    CHECK(!r.path->overrun);
    colo_link_disconnect(r.path->link);
    colo_link_destroy(far);
    path_end(&r);
}

/* ----------------------------------------------------------- of the primary */

static void released(const uint8_t *data, uint32_t len, uint8_t nic, uint8_t vnet_len)
{
    uint8_t copy[2000];
    struct colo_wire_frame frame = {.data = copy, .len = len, .nic = nic, .vnet_len = vnet_len};

    memcpy(copy, data, len);
    colo_route_released(r.path, &frame);
}

static void test_syns_are_told(void)
{
    static const struct {
        struct frame_spec spec;
        bool told;
    } rows[] = {
        {{.flags = 0x02}, true},
        {{.flags = 0x12}, true},
        {{.flags = 0x10}, false},
        {{.family = 6, .flags = 0x12}, true},
        {{.family = 6, .flags = 0x11}, false},
        {{.flags = 0x12, .vlans = 1}, true},
        {{.flags = 0x12, .vlans = 2, .family = 6}, true},
        {{.flags = 0x12, .vnet_len = 12}, true},
        {{.udp = 1}, false},
    };
    uint8_t frame[500];

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint32_t len = frame_build(frame, &rows[i].spec);

        CHECK_NOTE("row %zu", i);
        set_up(COLO_PATH_PRIMARY);
        released(frame, len, 0, (uint8_t)rows[i].spec.vnet_len);
        CHECK_EQ(path_counters(&r).learned, rows[i].told);
        CHECK_EQ(path_counters(&r).client[0].frames_out, 1);
        for (uint32_t cut = 14 + rows[i].spec.vnet_len; cut < len; cut++) { /* no byte beyond the end is looked at */
            struct colo_wire_frame part = {.len = cut, .vnet_len = (uint8_t)rows[i].spec.vnet_len, .data = malloc(cut)};

            memcpy(part.data, frame, cut);
            colo_route_released(r.path, &part);
            free(part.data);
        }
        path_end(&r);
    }
}

static void test_a_syn_that_can_not_be_told_is_counted(void)
{
    uint8_t frame[200];
    uint32_t len = frame_build(frame, &(struct frame_spec){.flags = 0x12});
    int i = 0;

    path_init(&r, COLO_PATH_PRIMARY);
    r.config.link.send_bytes = 1 << 19;
    path_create(&r);
    r.path->session = true;
    for (; i < 100000 && !path_counters(&r).learn_left_out; i++) {
        released(frame, len, 0, 0);
        (void)recv(r.client[0], frame + 150, 1, MSG_DONTWAIT);
    }
    CHECK_EQ(path_counters(&r).learned, (uint64_t)i - 1);
    CHECK_EQ(path_counters(&r).client[0].frames_out, i); /* it leaves all the same */
    CHECK_EQ(events_of(COLO_PATH_OVERRUN), 1);
    path_end(&r);
}

static void test_frames_of_no_nic_from_the_comparator(void)
{
    uint8_t frame[60] = {0};

    set_up(COLO_PATH_PRIMARY);
    released(frame, sizeof frame, 1, 0);
    released(frame, sizeof frame, 255, 0);
    CHECK_EQ(path_counters(&r).comparator[2].malformed, 2);
    CHECK_EQ(path_counters(&r).client[0].frames_out, 0);
    path_end(&r);
}

static void test_reflections(void)
{
    uint8_t data[PATH_FRAME];
    struct colo_wire_frame frame = {.data = data, .len = sizeof data};

    set_up(COLO_PATH_PRIMARY);
    r.path->now = 1000000000;
    from_vm(1);
    path_frame(data, 2, true); /* the VM's own, from the client side */
    colo_route_from_client(r.path, &frame);
    CHECK_EQ(path_counters(&r).reflected, 1);
    CHECK_EQ(path_counters(&r).mirrored, 0);
    r.path->now += 1000000000; /* the address has moved: VRRP, a nested VM */
    colo_route_from_client(r.path, &frame);
    CHECK_EQ(path_counters(&r).reflected, 1);
    CHECK_EQ(path_counters(&r).mirrored, 1);
    path_end(&r);
}

/* --------------------------------------------------------- of the secondary */

static void test_a_closed_tap_passes_nothing(void)
{
    set_up(COLO_PATH_SECONDARY);
    CHECK(colo_route_may_read_client(r.path, 0));
    from_client(1);
    from_vm(2);
    colo_route_held(r.path);
    colo_path_flush(r.path);
    CHECK(path_silent(r.client[0]) && path_silent(r.vm[0]));
    CHECK_EQ(path_counters(&r).output, 1); /* to the primary */
    path_end(&r);
}

static void test_a_secondary_that_stands(void)
{
    set_up(COLO_PATH_SECONDARY);
    r.path->now = 100;
    frame_from_link(COLO_LINK_MIRROR, 1);
    CHECK_EQ(path_next(r.vm[0], true, false), 1);
    CHECK_EQ(colo_path_stand(r.path), 0);
    r.path->now = 200;
    frame_from_link(COLO_LINK_MIRROR, 2);
    from_vm(3); /* of before */
    r.path->now = INT64_MAX / 2;
    from_vm(4); /* of the copy */
    colo_route_held(r.path);
    CHECK(path_silent(r.vm[0]));
    CHECK_EQ(path_counters(&r).output, 0);
    CHECK_EQ(colo_path_epoch(r.path, INT64_MAX / 4), 0);
    CHECK_EQ(path_next(r.vm[0], true, false), 2);
    CHECK_EQ(path_counters(&r).output, 1);
    CHECK_EQ(path_counters(&r).stale, 1);
    CHECK_EQ(path_counters(&r).held_bytes, 0);
    CHECK_EQ(path_counters(&r).link.sent_records, 2); /* the mark, the frame */
    path_end(&r);
}

static void test_a_secondary_that_goes_on_as_it_was(void)
{
    set_up(COLO_PATH_SECONDARY);
    CHECK_EQ(colo_path_stand(r.path), 0);
    from_vm(1);
    frame_from_link(COLO_LINK_MIRROR, 2);
    CHECK_EQ(colo_path_stand_over(r.path), 0);
    CHECK_EQ(path_counters(&r).output, 1);
    CHECK_EQ(path_counters(&r).stale, 0);
    CHECK_EQ(path_next(r.vm[0], true, false), 2);
    path_end(&r);
}

/* What was held is the VM's as it is only if no checkpoint was under way. */
static void test_takeover(void)
{
    for (int standing = 0; standing < 2; standing++) {
        CHECK_NOTE("standing %d", standing);
        set_up(COLO_PATH_SECONDARY);
        if (standing)
            CHECK_EQ(colo_path_stand(r.path), 0);
        from_vm(1);
        frame_from_link(COLO_LINK_MIRROR, 2);
        CHECK_EQ(colo_path_takeover(r.path), 0);
        CHECK_EQ(path_next(r.vm[0], true, false), 2);
        if (!standing)
            CHECK_EQ(path_next(r.client[0], false, false), 1);
        CHECK(path_silent(r.client[0]));
        CHECK_EQ(path_counters(&r).stale, standing);
        from_vm(3);
        CHECK_EQ(path_next(r.client[0], false, false), 3);
        from_client(4);
        colo_path_flush(r.path);
        CHECK_EQ(path_next(r.vm[0], true, false), 4);
        frame_from_link(COLO_LINK_MIRROR, 5); /* a late one of the primary's */
        CHECK(path_silent(r.vm[0]));
        CHECK_EQ(colo_path_takeover(r.path), COLO_ERR_MISUSE);
        CHECK_EQ(colo_path_epoch(r.path, 1), COLO_ERR_MISUSE);
        path_end(&r);
    }
}

static void test_calls_of_the_other_role(void)
{
    set_up(COLO_PATH_SECONDARY);
    CHECK_EQ(colo_path_drain(r.path, 1), COLO_ERR_MISUSE);
    CHECK_EQ(colo_path_commit(r.path), COLO_ERR_MISUSE);
    CHECK_EQ(colo_path_sync(r.path, 1), COLO_ERR_MISUSE);
    CHECK_EQ(colo_path_accept(r.path), COLO_ERR_MISUSE);
    path_end(&r);
    set_up(COLO_PATH_PRIMARY);
    CHECK_EQ(colo_path_sync(r.path, 0), COLO_ERR_MISUSE);
    CHECK_EQ(colo_path_accept(r.path), COLO_ERR_MISUSE);
    CHECK_EQ(colo_path_stand(r.path), COLO_ERR_MISUSE);
    CHECK_EQ(colo_path_epoch(r.path, 1), COLO_ERR_MISUSE);
    CHECK_EQ(colo_path_answer(r.path, 1), COLO_ERR_MISUSE);
    CHECK_EQ(colo_path_takeover(r.path), COLO_ERR_MISUSE);
    path_end(&r);
}

CHECK_MAIN(
    TEST(test_questions_of_the_secondary),
    TEST(test_which_frames_are_compared),
    TEST(test_no_schedule_lets_a_stale_frame_through),
    TEST(test_a_comparator_that_is_slow),
    TEST(test_what_finds_no_room_to_wait_is_told),
    TEST(test_records_that_break_the_protocol),
    TEST(test_control_messages_wait_for_a_reader_up_to_a_limit),
    TEST(test_a_link_that_is_stuck),
    TEST(test_the_mirror_begins_again_at_half),
    TEST(test_syns_are_told),
    TEST(test_a_syn_that_can_not_be_told_is_counted),
    TEST(test_frames_of_no_nic_from_the_comparator),
    TEST(test_reflections),
    TEST(test_a_closed_tap_passes_nothing),
    TEST(test_a_secondary_that_stands),
    TEST(test_a_secondary_that_goes_on_as_it_was),
    TEST(test_takeover),
    TEST(test_calls_of_the_other_role),
)
