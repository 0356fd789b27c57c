/* Only a rewritten frame differs, in its TCP header or its quote; a right checksum stays right; flows are bounded. */
/* SPDX-License-Identifier: Apache-2.0 */
#include <stdbool.h>

#include "csum.h"
#include "load.h"
#include "must.h"
#include "parse.h"
#include "path/rewriter.h"

enum { FLOWS = 3, ROOM = 512, MS = 1000000 };

enum act { LEARN = 0, OUT = 1, IN = 2, RAW_LEARN = 3, RAW_OUT = 4, RAW_IN = 5, MARK = 6, TAKEOVER = 7 };

/* Numbers of which some are near to each other, so that few bytes of input are enough for ones that fit. */
static uint32_t number(struct bytes *b)
{
    static const uint32_t bases[8] = {0, 1000, 0x7fffffff, 0x80000000, 0xfffffff0, 0x01000000, 0x80010000, 0x12345678};
    uint8_t choice = take8(b);

    return bases[choice & 7] + (choice >> 3);
}

static uint32_t put_ip(uint8_t *out, bool six, bool from_vm, uint8_t protocol, uint32_t len)
{
    uint8_t vm = from_vm ? 15 : 19;

    memset(out, 0, six ? 40 : 20);
    if (six) {
        out[0] = 0x60;
        colo_store16(out + 4, (uint16_t)len);
        out[6] = protocol;
        out[from_vm ? 23 : 39] = 1;
        out[from_vm ? 39 : 23] = 2;
        return 40;
    }
    out[0] = 0x45;
    colo_store16(out + 2, (uint16_t)(20 + len));
    out[9] = protocol;
    out[vm] = 1;
    out[34 - vm] = 2;
    return 20;
}

static uint64_t pseudo(const uint8_t *ip, bool six, uint8_t protocol, uint32_t len)
{
    return six ? colo_csum_add(protocol + len, ip + 8, 32) : colo_csum_add(protocol + len, ip + 12, 8);
}

static uint32_t put_tcp(uint8_t *out, bool from_vm, struct bytes *b)
{
    uint32_t options = take8(b) & 0x2c, payload = take8(b) & 15;

    memset(out, 0, 20);
    colo_store16(out, from_vm ? 80 : 90 + (take8(b) & 7));
    colo_store16(out + 2, from_vm ? 90 + (take8(b) & 7) : 80);
    out[13] = take8(b);
    colo_store32(out + 4, number(b));
    colo_store32(out + 8, number(b));
    out[12] = (uint8_t)((20 + options) / 4 << 4);
    colo_store16(out + 14, (uint16_t)(take8(b) << 8));
    for (uint32_t i = 0; i < options + payload; i++)
        out[20 + i] = take8(b);
    return 20 + options + payload;
}

/* A frame of one of a few flows, with a right checksum; or an ICMP error that quotes one. */
static uint32_t build(uint8_t *out, bool from_vm, uint32_t vnet_len, struct bytes *b, uint32_t *l4, uint32_t *csum_at)
{
    uint8_t shape = take8(b), segment[256];
    bool six = shape & 1, quote = shape & 2;
    uint32_t at = vnet_len, ip, len, head = six ? 40 : 20;
    uint64_t sum;
    uint8_t protocol = quote ? (six ? 58 : 1) : 6;

    memset(out, 0, at + 14);
    at += 12;
    if (shape & 4) {
        colo_store32(out + at, 0x81000007);
        at += 4;
    }
    colo_store16(out + at, six ? 0x86dd : 0x0800);
    ip = at + 2;
    *l4 = ip + head;
    len = put_tcp(segment, from_vm != quote, b);
    if (quote) {
        uint32_t cut = take8(b);

        memset(out + *l4, 0, 8);
        out[*l4] = six ? 1 : 3;
        (void)put_ip(out + *l4 + 8, six, !from_vm, 6, len);
        len = cut < len ? cut : len;
        memcpy(out + *l4 + 8 + head, segment, len);
        len += 8 + head;
    } else {
        memcpy(out + *l4, segment, len);
    }
    (void)put_ip(out + ip, six, from_vm, protocol, len);
    *csum_at = *l4 + (quote ? 2 : 16);
    sum = quote && !six ? 0 : pseudo(out + ip, six, protocol, len);
    colo_store16(out + *csum_at, colo_csum_fold(colo_csum_add(sum, out + *l4, len)));
    return *l4 + len;
}

/* The checksum of a frame that build made: 0 where it is right. */
static uint16_t residue(const uint8_t *frame, uint32_t len, uint32_t l4, uint32_t csum_at)
{
    bool six = colo_load16(frame + l4 - 22) != 0x0800, quote = csum_at == l4 + 2;
    const uint8_t *ip = frame + l4 - (six ? 40 : 20);
    uint64_t sum = quote && !six ? 0 : pseudo(ip, six, quote ? 58 : 6, len - l4);

    return colo_csum_fold(colo_csum_add(sum, frame + l4, len - l4));
}

static int give(colo_rewriter *r, enum act act, uint8_t *frame, uint32_t len, uint32_t vnet_len, int64_t now)
{
    if (act == LEARN)
        return colo_rewriter_learn(r, 0, frame, len, vnet_len, now);
    if (act == OUT)
        return colo_rewriter_out(r, 0, frame, len, vnet_len, now);
    return colo_rewriter_in(r, 0, frame, len, vnet_len, now);
}

/* Input: acts; a byte says which, and how much time passes before it. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint32_t vnets[4] = {0, 10, 12, 3};
    struct bytes b = {data, size};
    struct colo_rewriter_config config = {.max_flows = FLOWS, .hash_seed = 1};
    colo_rewriter *r = colo_rewriter_create(&config);
    int64_t now = 0;

    MUST(r, "no memory");
    while (b.left) {
        uint8_t first = take8(&b), frame[ROOM + 64], *exact;
        enum act act = first & 7;
        uint32_t vnet_len = vnets[first >> 3 & 3], len, l4 = 0, csum_at = 0;
        struct colo_rewriter_counters counters;
        int got;

        now += (int64_t)MS << (first >> 5) * 3;
        if (act == MARK || act == TAKEOVER) {
            if (act == MARK)
                colo_rewriter_mark(r);
            else
                colo_rewriter_takeover(r, now);
            continue;
        }
        if (act >= RAW_LEARN) {
            act -= RAW_LEARN;
            len = take8(&b);
            len = len < b.left ? len : (uint32_t)b.left;
            memcpy(frame, b.at, len);
            b.at += len;
            b.left -= len;
        } else {
            len = build(frame, act != IN, vnet_len, &b, &l4, &csum_at);
        }
        exact = copy_of(frame, len);
        got = give(r, act, exact, len, vnet_len, now);
        if (vnet_len > len)
            MUST(got == COLO_ERR_MISUSE, "%d", got);
        else if (act == LEARN)
            MUST(got == 0 || got == COLO_ERR_LIMIT, "%d", got);
        else
            MUST(got >= COLO_REWRITE_NONE && got <= COLO_REWRITE_DROP, "%d", got);
        MUST((memcmp(exact, frame, len) != 0) == (got == COLO_REWRITE_DONE), "%d", got);
        if (l4) {
            uint32_t end = csum_at == l4 + 2 ? len : l4 + (uint32_t)(frame[l4 + 12] >> 4) * 4;

            MUST(memcmp(exact, frame, l4 + 4 - (csum_at == l4 + 2 ? 2 : 0)) == 0, "bytes before the header");
            MUST(memcmp(exact + end, frame + end, len - end) == 0, "bytes behind the header");
            MUST(residue(exact, len, l4, csum_at) == 0, "the checksum is wrong now");
        }
        free(exact);
        colo_rewriter_counters_of(r, &counters);
        MUST(counters.flows <= FLOWS, "%llu flows", (unsigned long long)counters.flows);
    }
    colo_rewriter_destroy(r);
    return 0;
}
