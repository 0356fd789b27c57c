/* SPDX-License-Identifier: Apache-2.0 */
#include "schedule.h"

#include <string.h>

#include "csum.h"
#include "load.h"
#include "must.h"
#include "parse.h"

enum { URG = 0x20, PSH = 0x08 };

static const uint32_t isns[4] = {1000, 0xfffffff7u, 0x7ffffff9u, 0xffffffe8u};
static const uint32_t client_isns[4] = {2000, 0x7ffffff6u, 0xfffffffbu, 0xffffffd8u};

/* What the frames so far make of the next one. */
struct state {
    struct schedule *s;
    struct bytes in;
    uint32_t isn, client_isn;
    int gen[2][SCHEDULE_FLOWS], cloned[SCHEDULE_FLOWS], at_stop[SCHEDULE_FLOWS];
    int flip_at; /* not wild: where the secondary is wrong in this epoch, -1: nowhere */
    bool stopped;
    int64_t stopped_at, now;
};

/* ------------------------------------------------------------ frames, as tests/wire.py makes them */

static uint8_t *append(struct step *st, const void *data, uint32_t len)
{
    uint8_t *at = st->frame + st->frame_len;

    MUST(len <= SCHEDULE_FRAME - st->frame_len, "a frame of the grammar is too long");
    if (data)
        memcpy(at, data, len);
    else
        memset(at, 0, len);
    st->frame_len += len;
    return at;
}

static void begin(const struct state *x, struct step *st)
{
    st->frame_len = 0;
    st->vnet_len = x->s->vnet_len;
    append(st, NULL, st->vnet_len);
    if (st->vnet_len) {
        st->frame[6] = 34; /* csum_start, little-endian: it counts with partial checksums only */
        st->frame[8] = 16; /* csum_offset */
    }
}

static void ethernet(struct step *st, uint16_t type, bool vlan)
{
    uint8_t head[18] = {0x52, 0x54, 0, 0, 0, 0xc1, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 0x81, 0, 0, 5};

    colo_store16(head + (vlan ? 16 : 12), type);
    append(st, head, vlan ? 18 : 14);
}

static bool is_v6(uint8_t flow)
{
    return flow == 2;
}

static void addresses(uint8_t flow, uint8_t vm[16], uint8_t client[16])
{
    memset(vm, 0, 16);
    memset(client, 0, 16);
    if (is_v6(flow)) {
        vm[0] = client[0] = 0xfd;
        vm[15] = 1;
        client[15] = 2;
    } else {
        memcpy(vm, "\x0a\0\0\1", 4);
        memcpy(client, "\x0a\0\0\2", 4);
    }
}

/* The frame up to the transport header; `fragment`: 16 bits, IPv4 only. */
static void ip(struct step *st, uint8_t protocol, uint32_t len, uint16_t ident, uint16_t fragment)
{
    uint8_t vm[16], client[16], *p;

    addresses(st->flow, vm, client);
    ethernet(st, is_v6(st->flow) ? 0x86dd : 0x0800, st->flow == 3);
    if (is_v6(st->flow)) {
        p = append(st, NULL, 40);
        p[0] = 0x60;
        colo_store16(p + 4, (uint16_t)len);
        p[6] = protocol;
        p[7] = 64;
        memcpy(p + 8, vm, 16);
        memcpy(p + 24, client, 16);
        return;
    }
    p = append(st, NULL, 20);
    p[0] = 0x45;
    colo_store16(p + 2, (uint16_t)(20 + len));
    colo_store16(p + 4, ident);
    colo_store16(p + 6, fragment);
    p[8] = 64;
    p[9] = protocol;
    memcpy(p + 12, vm, 4);
    memcpy(p + 16, client, 4);
    colo_store16(p + 10, colo_csum_fold(colo_csum_add(0, p, 20)));
}

static uint64_t pseudo(const struct step *st, uint8_t protocol, uint32_t len)
{
    uint8_t vm[16], client[16];
    uint32_t size = is_v6(st->flow) ? 16 : 4;

    addresses(st->flow, vm, client);
    return colo_csum_add(colo_csum_add((uint64_t)protocol + len, vm, size), client, size);
}

static uint16_t port_of(uint8_t flow)
{
    return flow == 1 ? 1001 : 1000;
}

uint8_t schedule_scale(const struct schedule *s, const struct step *step)
{
    if (!s->any_scale || (step->side == COLO_SECONDARY && step->gen % 3 == 2))
        return 255;
    return step->side == COLO_SECONDARY ? 9 : 7;
}

static uint32_t tcp_options(const struct schedule *s, const struct step *st, uint8_t *out, uint32_t cack)
{
    uint8_t *p = out;

    if (st->flags & COLO_TCP_SYN) {
        memcpy(p, "\2\4", 2);
        colo_store16(p + 2, st->options == 3 ? 1400 : 1460);
        p += 4;
    }
    if (st->options == 1) {
        memcpy(p, "\1\1\10\12", 4);
        colo_store32(p + 4, 1000u + st->side);
        colo_store32(p + 8, 2000);
        p += 12;
    }
    if (st->options == 3 && !(st->flags & COLO_TCP_SYN)) {
        memcpy(p, "\5\12", 2);
        colo_store32(p + 2, cack + 100);
        colo_store32(p + 6, cack + 110);
        p += 10;
    }
    if (st->options == 2) {
        memset(p, 0, 18);
        memcpy(p, "\23\22", 2);
        p += 18;
    }
    if (st->flags & COLO_TCP_SYN && schedule_scale(s, st) != 255) {
        memcpy(p, "\3\3", 2);
        p[2] = schedule_scale(s, st);
        p += 3;
    }
    while ((p - out) % 4)
        *p++ = 1;
    return (uint32_t)(p - out);
}

uint8_t schedule_byte(const struct step *st, int off)
{
    uint8_t byte = (uint8_t)('a' + (unsigned)((off + 64) * 7 + st->gen * 3 + st->flow) % 26u);

    return byte ^ (st->flipped || off == st->flip_at ? 0x40 : 0);
}

static void tcp(const struct state *x, struct step *st, uint32_t seq, uint32_t cack, bool spoil, uint16_t urgent)
{
    uint8_t options[40], *p;
    uint32_t options_len = tcp_options(x->s, st, options, cack), len = 20 + options_len + (uint32_t)st->len;
    bool partial = x->s->partial && x->s->vnet_len;
    uint16_t csum;

    begin(x, st);
    if (partial)
        st->frame[0] = 1;
    ip(st, 6, len, (uint16_t)(1 + st->side), 0);
    p = append(st, NULL, 20);
    colo_store16(p, 80);
    colo_store16(p + 2, port_of(st->flow));
    colo_store32(p + 4, seq);
    colo_store32(p + 8, st->flags & COLO_TCP_ACK ? cack : 0);
    p[12] = (uint8_t)((20 + options_len) / 4 << 4);
    p[13] = st->flags;
    colo_store16(p + 14, 502);
    colo_store16(p + 18, urgent);
    append(st, options, options_len);
    for (int i = 0; i < st->len; i++) {
        uint8_t byte = schedule_byte(st, st->off + i);

        append(st, &byte, 1);
    }
    csum = colo_csum_fold(partial ? pseudo(st, 6, len) : colo_csum_add(pseudo(st, 6, len), p, len));
    if (partial)
        csum = (uint16_t)~csum;
    colo_store16(p + 16, spoil ? csum ^ 0x5555 : csum);
}

/* A UDP datagram's header and body, of which `ident` is the IP packet's. */
static uint32_t udp(const struct step *st, uint8_t *out, const uint8_t *body, uint32_t len, uint16_t sport,
                    uint16_t dport)
{
    uint16_t csum;

    colo_store16(out, sport);
    colo_store16(out + 2, dport);
    colo_store16(out + 4, (uint16_t)(8 + len));
    colo_store16(out + 6, 0);
    memcpy(out + 8, body, len);
    csum = colo_csum_fold(colo_csum_add(pseudo(st, 17, 8 + len), out, 8 + len));
    colo_store16(out + 6, csum ? csum : 0xffff);
    return 8 + len;
}

static void ip_body(const struct state *x, struct step *st, uint8_t protocol, const uint8_t *body, uint32_t len)
{
    begin(x, st);
    ip(st, protocol, len, (uint16_t)(1 + st->side), 0);
    append(st, body, len);
}

/* ------------------------------------------------------------------- steps */

static void make_tcp(struct state *x, struct step *st, int what, bool more)
{
    int where = take8(&x->in), c = take8(&x->in), opts = more ? take8(&x->in) : 0, start, gen;
    int *mine = &x->gen[st->side][st->flow];
    uint32_t isn, cisn;
    bool other_isn;

    st->made = MADE_TCP;
    st->options = opts & 3;
    st->flip_at = -1;
    if (x->s->wild) {
        gen = where >> 6;
        start = where % 64 - 8;
        st->len = c >> 5;
        st->flipped = opts & 4;
        other_isn = st->side == COLO_SECONDARY;
    } else {
        if (*mine < 0 || (what == 5 && (where & 1))) {
            ++*mine;
            what = 5;
        }
        if (st->side == COLO_SECONDARY && *mine > x->gen[COLO_PRIMARY][st->flow])
            what = 5;
        if (*mine <= x->cloned[st->flow] && what == 5)
            what = 3;
        gen = *mine;
        start = what == 4 || what == 6 ? SCHEDULE_LENGTH : where % (SCHEDULE_LENGTH + 1);
        st->len = c >> 5 < SCHEDULE_LENGTH - start ? c >> 5 : SCHEDULE_LENGTH - start;
        if (st->side == COLO_SECONDARY)
            st->flip_at = x->flip_at;
        other_isn = st->side == COLO_SECONDARY && *mine > x->cloned[st->flow];
        opts &= ~(4 | 8);
        if (what == 5) /* the same each time this SYN is said; now and then the two differ */
            st->options = st->side == COLO_SECONDARY && (gen & 3) == 3 ? 3 : gen & 1;
        if (what == 4 || what == 5 || what == 6)
            st->len = 0;
    }
    if (what == 3 || what == 6)
        st->len = 0;
    st->flags = COLO_TCP_ACK;
    st->flags |= what == 4 ? COLO_TCP_FIN : what == 5 ? COLO_TCP_SYN : what == 6 ? COLO_TCP_RST : 0;
    st->flags |= (opts & 8 ? URG : 0) | (opts & 16 ? PSH : 0);
    st->gen = (uint8_t)gen;
    st->ack = what == 5 ? 0 : c % 32;
    st->off = what == 5 ? 0 : start;
    isn = x->isn + 0x28000000u * (uint32_t)(gen & 7);
    cisn = x->client_isn + 1000 * (uint32_t)gen;
    st->seq = isn + 1 + (uint32_t)st->off;
    tcp(x, st, what == 5 ? isn + (other_isn ? 0x40000000u : 0) : st->seq, cisn + 1 + (uint32_t)st->ack,
        opts & 32, opts & 8 ? (uint16_t)(opts >> 6) : 0);
}

static void make_udp(struct state *x, struct step *st)
{
    uint8_t c = take8(&x->in), body[16], out[32];
    uint32_t len = 4 + (c >> 3) % 8;

    st->made = MADE_DATAGRAM;
    st->key = 0x100u | c % 64;
    for (uint32_t i = 0; i < len; i++)
        body[i] = (uint8_t)((c & 7) + i);
    ip_body(x, st, 17, out, udp(st, out, body, len, 80, port_of(st->flow)));
}

static void make_other(struct state *x, struct step *st)
{
    static const uint8_t protocols[4] = {0, 47, 132, 200};
    uint8_t c = take8(&x->in), body[240 + 4] = {0}, out[256], n = c >> 3;
    uint32_t kind = c & 7;

    st->made = MADE_DATAGRAM;
    st->key = 0x200u | c;
    if (st->flow == 1 || (kind > 3 && (kind != 5 || st->flow != 3))) /* these flows are one, without ports */
        st->flow = 0;
    if (kind == 0) { /* echo reply */
        memcpy(out, "\0\0\0\0\0\1\0\0ping", 12);
        out[0] = is_v6(st->flow) ? 129 : 0;
        out[7] = n;
        colo_store16(out + 2, colo_csum_fold(colo_csum_add(is_v6(st->flow) ? pseudo(st, 58, 12) : 0, out, 12)));
        ip_body(x, st, is_v6(st->flow) ? 58 : 1, out, 12);
    } else if (kind <= 3) {
        memset(body, n, 6);
        ip_body(x, st, protocols[kind], body, 6);
    } else if (kind == 4) { /* ARP */
        begin(x, st);
        memcpy(append(st, NULL, 12), "\xff\xff\xff\xff\xff\xff\x52\x54\0\x12\x34\x56", 12);
        append(st, "\x08\x06\0\1\x08\0\6\4\0\1\x52\x54\0\x12\x34\x56\x0a\0\0\1\0\0\0\0\0\0\x0a\0\0\2", 30);
    } else if (kind == 5) {
        begin(x, st);
        ethernet(st, 0x88b5, st->flow == 3);
        memset(append(st, NULL, 6), n, 6);
    } else if (kind == 6) { /* DHCP */
        memcpy(body, "\1\1\6", 3);
        ip_body(x, st, 17, out, udp(st, out, body, 240, 68, 67));
    } else { /* too short for anything */
        begin(x, st);
        memset(append(st, NULL, n), 0xcc, n);
    }
}

/* One of the frames in which a datagram of 48 bytes may come. */
static void make_fragment(struct state *x, struct step *st)
{
    static const uint8_t cuts[8][2] = {{0, 16}, {16, 32}, {32, 48}, {8, 24}, {0, 24}, {24, 48}, {0, 48}, {24, 40}};
    uint8_t c = take8(&x->in), body[40], out[48], head[8];
    uint32_t low, len;
    bool more;

    low = cuts[c >> 2 & 7][0];
    len = cuts[c >> 2 & 7][1] - low;
    more = low + len < 48;
    st->made = MADE_FRAGMENT;
    st->key = c & 3;
    st->off = (int)low;
    st->len = (int)len;
    st->flipped = x->s->wild && (c & 32);
    for (uint32_t i = 0; i < sizeof body; i++)
        body[i] = (uint8_t)(st->key * 50 + i);
    udp(st, out, body, sizeof body, 80, port_of(st->flow));
    out[20] ^= st->flipped ? 0x40 : 0;
    begin(x, st);
    if (is_v6(st->flow)) {
        ip(st, 44, 8 + len, 0, 0);
        memset(head, 0, sizeof head);
        head[0] = 17;
        colo_store16(head + 2, (uint16_t)(low | more));
        head[7] = (uint8_t)(70 + st->key + 10 * st->flow);
        append(st, head, 8);
    } else {
        ip(st, 17, len, (uint16_t)(70 + st->key + 10u * st->flow), (uint16_t)((uint32_t)more << 13 | low / 8));
    }
    append(st, out + low, len);
}

static void make_raw(struct state *x, struct step *st)
{
    uint32_t len = take8(&x->in) % 128;

    if (len > x->in.left)
        len = (uint32_t)x->in.left;
    st->made = MADE_RAW;
    begin(x, st);
    append(st, x->in.at, len);
    x->in.at += len;
    x->in.left -= len;
}

/* A frame fed before, with some bytes changed. */
static bool make_copy(struct state *x, struct step *st)
{
    uint32_t which = take8(&x->in), edits = st->flow, frames = 0;

    for (size_t i = 0; i < x->s->count; i++)
        frames += x->s->steps[i].kind == STEP_FEED;
    if (!frames)
        return false;
    which %= frames;
    for (size_t i = 0; i < x->s->count; i++) {
        const struct step *from = &x->s->steps[i];

        if (from->kind != STEP_FEED || which--)
            continue;
        memcpy(st->frame, from->frame, from->frame_len);
        st->frame_len = from->frame_len;
        st->vnet_len = from->vnet_len;
        break;
    }
    st->made = MADE_RAW;
    for (; edits; edits--) {
        uint8_t at = take8(&x->in), value = take8(&x->in);

        if (st->frame_len)
            st->frame[at % st->frame_len] = value;
    }
    return true;
}

static void make_commit(struct state *x, struct step *st, uint8_t b)
{
    uint8_t how = b >> 4 & 3, flip = take8(&x->in);
    bool by_stop;

    st->kind = STEP_COMMIT;
    if (x->s->wild) {
        const int64_t times[4] = {x->now + 1, x->stopped ? x->stopped_at + 1 : x->now, x->now - 3000, x->now};

        st->resumed = times[how];
    } else {
        by_stop = how & 1;
        st->resumed = by_stop ? x->stopped_at + 1 : x->now + 1;
        for (int f = 0; f < SCHEDULE_FLOWS; f++)
            x->cloned[f] = x->gen[COLO_SECONDARY][f] = by_stop ? x->at_stop[f] : x->gen[COLO_PRIMARY][f];
        x->flip_at = flip < SCHEDULE_LENGTH ? flip : -1;
    }
    if (x->now < st->resumed)
        x->now = st->resumed;
    st->now = x->now;
    x->stopped = false;
}

/* False: the bytes are no step. */
static bool make_step(struct state *x, struct step *st)
{
    static const int64_t spans[8] = {0, 1000000, 9999999, 10000000, 25000000, 1000000000, 3000000000, 4000000000};
    const bool wild = x->s->wild;
    uint8_t b = take8(&x->in), what = b & 15;

    memset(st, 0, offsetof(struct step, frame));
    x->now += 1000;
    st->kind = STEP_FEED;
    st->flow = b >> 4 & 3;
    st->side = b >> 6 & 1;
    st->flip_at = -1;
    if (!wild && x->stopped)
        st->side = COLO_PRIMARY;
    st->now = x->now;
    if (what <= 6) {
        make_tcp(x, st, what, b & 128);
    } else if (what == 7) {
        make_udp(x, st);
    } else if (what == 8) {
        make_other(x, st);
    } else if (what == 9) {
        make_fragment(x, st);
    } else if (what == 10) {
        if (!wild)
            return false;
        make_raw(x, st);
    } else if (what == 11) {
        return wild && make_copy(x, st);
    } else if (what == 12) {
        st->kind = STEP_TICK;
        st->now = x->now += spans[b >> 4 & 7];
    } else if (what == 13) {
        st->kind = STEP_STOP;
        if (!x->stopped) {
            x->stopped_at = x->now;
            memcpy(x->at_stop, x->gen[COLO_PRIMARY], sizeof x->at_stop);
        }
        x->stopped = true;
    } else if (what == 14) {
        if (!wild && !x->stopped)
            return false;
        make_commit(x, st, b);
    } else {
        st->kind = (b >> 4 & 7) == 7 ? STEP_ALONE : STEP_ABORT;
        x->stopped = false;
    }
    return true;
}

static void configure(struct schedule *s, uint8_t a, uint8_t b)
{
    static const uint32_t vnet_lens[4] = {0, 10, 12, 0};
    struct colo_config *c = &s->config;

    s->wild = a & 1;
    s->tight = a & 2;
    s->keep_gap = a & 4;
    s->vnet_len = vnet_lens[a >> 5 & 3];
    s->rules = b & 3;
    s->tolerant = b & 4;
    s->partial = b & 8;
    s->any_scale = b & 16;
    colo_config_default(c);
    c->keep_gap = s->keep_gap;
    c->any_scale = s->any_scale;
    c->reorder_window = 10000000;
    c->gap_window = 50000000;
    c->hash_seed = 1;
    /* Not where the model is strict: it doesn't forget what the client was told on a flow that made room. */
    c->max_flows = s->tight && s->wild ? 3 : 1024;
    c->max_frames = s->tight ? 24 : 4096;
    c->max_bytes = s->tight ? 4000 : 1u << 20;
    c->max_flow_frames = s->tight ? 8 : 1024;
    c->max_flow_bytes = s->tight ? 700 : 1u << 20;
    c->max_fragments = s->tight ? 3 : 1024;
    c->rules = s->rule;
    if (s->rules & 1) { /* UDP to port 1001 */
        s->rule[c->rules_count].match = (struct colo_match){.has = COLO_MATCH_CLASS | COLO_MATCH_CLIENT_PORT,
                                                            .classes = 1u << COLO_CLASS_UDP,
                                                            .client_port = {1001, 1001}};
        s->rule[c->rules_count++].action = COLO_POLICY_PASS;
    }
    if (s->rules & 2) { /* TCP in VLAN 5 */
        s->rule[c->rules_count].match = (struct colo_match){
            .has = COLO_MATCH_CLASS | COLO_MATCH_VLAN, .classes = 1u << COLO_CLASS_TCP, .vlan = 5};
        s->rule[c->rules_count++].action = COLO_POLICY_DROP_SECONDARY;
    }
    c->tolerances = &s->tolerance;
    c->tolerances_count = s->tolerant;
    s->tolerance = (struct colo_tolerance_rule){.length = 3, .after_len = 4};
    memcpy(s->tolerance.after, "ahov", 4);
}

void schedule_decode(struct schedule *s, const uint8_t *data, size_t size)
{
    struct state x = {.s = s, .in = {data, size}, .flip_at = -1, .now = 2};
    uint8_t a = take8(&x.in), b = take8(&x.in);

    memset(s, 0, offsetof(struct schedule, steps));
    configure(s, a, b);
    x.isn = isns[a >> 3 & 3];
    x.client_isn = client_isns[a >> 3 & 3];
    for (int f = 0; f < SCHEDULE_FLOWS; f++)
        x.gen[0][f] = x.gen[1][f] = x.cloned[f] = x.at_stop[f] = -1;
    memset(s->steps, 0, 2 * sizeof s->steps[0]);
    s->steps[0].kind = STEP_STOP;
    s->steps[1].kind = STEP_COMMIT;
    s->steps[1].resumed = 1;
    s->steps[1].now = 2;
    s->count = 2;
    while (x.in.left && s->count < SCHEDULE_STEPS)
        if (make_step(&x, &s->steps[s->count]))
            s->count++;
}

void schedule_print(const struct schedule *s)
{
    static const char *const names[] = {"feed", "tick", "stop", "commit", "abort", "alone"};

    printf("wild=%d tight=%d keep_gap=%d rules=%d tolerant=%d any_scale=%d vnet=%u\n", s->wild, s->tight, s->keep_gap,
           s->rules, s->tolerant, s->any_scale, s->vnet_len);
    for (size_t i = 0; i < s->count; i++) {
        const struct step *st = &s->steps[i];

        printf("%lld %s", (long long)st->now, names[st->kind]);
        if (st->kind == STEP_COMMIT)
            printf(" %lld", (long long)st->resumed);
        if (st->kind == STEP_FEED) {
            printf(" %c ", "PS"[st->side]);
            for (uint32_t j = 0; j < st->frame_len; j++)
                printf("%02x", st->frame[j]);
        }
        putchar('\n');
    }
}
