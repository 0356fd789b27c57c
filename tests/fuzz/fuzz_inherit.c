/* All or nothing is imported; what was imported is exported again as it was; frames behind it find a rewriter in order. */
/* SPDX-License-Identifier: Apache-2.0 */
#include <stdbool.h>

#include "load.h"
#include "must.h"
#include "path/rewriter.h"
#include "path/rwinherit.h"

enum { FLOWS = 8, HEAD = COLO_RWINHERIT_HEAD, FLOW = COLO_RWINHERIT_FLOW, ROOM = HEAD + FLOWS * FLOW };

static uint64_t inherited(const colo_rewriter *r)
{
    struct colo_rewriter_counters n;

    colo_rewriter_counters_of(r, &n);
    return n.inherited;
}

static long export(const colo_rewriter *r, uint8_t out[ROOM])
{
    uint32_t place = 0;
    const long len = colo_rewriter_export(r, &place, out, ROOM, 0);

    MUST(len >= HEAD && (size_t)len <= colo_rewriter_export_size(r), "%ld", len);
    return len;
}

static int import(colo_rewriter *r, const uint8_t *data, size_t len)
{
    uint8_t *exact = copy_of(data, len);
    const uint64_t before = inherited(r);
    const char *why;
    const int error = colo_rewriter_import(r, exact, len, 0, &why);

    free(exact);
    MUST((error == 0) == (why == NULL), "%d", error);
    MUST(!error || inherited(r) == before, "half of it was taken");
    MUST(!inherited(r) || inherited(r) <= FLOWS, "%llu flows", (unsigned long long)inherited(r));
    return error;
}

/* A frame of one of the flows, with numbers of the input's. */
static void frame(colo_rewriter *r, const uint8_t *flow, struct bytes *b)
{
    uint8_t data[14 + 40 + 20] = {0};
    const bool six = flow[1] == 6, out = take8(b) & 1;
    const size_t size = six ? 16 : 4;
    uint8_t *ip = data + 14, *tcp = ip + (six ? 40 : 20), *src = ip + (six ? 8 : 12);
    const uint32_t len = (uint32_t)(tcp + 20 - data);

    colo_store16(data + 12, six ? 0x86dd : 0x0800);
    ip[0] = six ? 0x60 : 0x45;
    if (six) {
        colo_store16(ip + 4, 20);
        ip[6] = 6;
    } else {
        colo_store16(ip + 2, 40);
        ip[9] = 6;
    }
    memcpy(src + (out ? 0 : size), flow + 12, size);
    memcpy(src + (out ? size : 0), flow + 28, size);
    memcpy(tcp + (out ? 0 : 2), flow + 8, 2);
    memcpy(tcp + (out ? 2 : 0), flow + 10, 2);
    tcp[12] = 5 << 4;
    tcp[13] = take8(b);
    colo_store32(tcp + 4, colo_load32(flow + 72) + take8(b));
    colo_store32(tcp + 8, colo_load32(flow + 76) + take8(b));
    if (out)
        (void)colo_rewriter_out(r, flow[0], data, len, 0, 0);
    else
        (void)colo_rewriter_in(r, flow[0], data, len, 0, 0);
}

/* Input: a byte with the takeover and the number of flows, the flows as they are in a table or raw, then frames. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct bytes b = {data, size};
    struct colo_rewriter_config config = {.max_flows = FLOWS, .hash_seed = 1};
    colo_rewriter *r = colo_rewriter_create(&config), *again = colo_rewriter_create(&config);
    uint8_t table[ROOM], back[ROOM];
    const uint8_t how = take8(&b);
    size_t count = how & 7, len;

    MUST(r && again, "no memory");
    if (how & 8)
        colo_rewriter_takeover(r, 0);
    if (how & 16) { /* raw */
        len = b.left < ROOM ? b.left : ROOM;
        memcpy(table, b.at, len);
        b.left = 0;
    } else {
        count = b.left / FLOW < count ? b.left / FLOW : count;
        len = HEAD + count * FLOW;
        colo_rwinherit_put_head(table, (uint32_t)count);
        memcpy(table + HEAD, b.at, count * FLOW);
        b.at += count * FLOW;
        b.left -= count * FLOW;
    }
    if (import(r, table, len) == 0 && len > HEAD) {
        const long first = export(r, table);

        MUST(import(again, table, (size_t)first) == 0, "what was exported can't be imported");
        MUST(export(again, back) == first, "another length");
        MUST(inherited(again) == (uint64_t)(first - HEAD) / FLOW, "flows are lost");
        MUST(import(again, table, (size_t)first) == (first == HEAD ? 0 : COLO_ERR_MISUSE), "twice");
        while (b.left && first > HEAD)
            frame(r, table + HEAD + take8(&b) % ((size_t)(first - HEAD) / FLOW) * FLOW, &b);
        colo_rewriter_mark(r);
        (void)export(r, back);
    }
    colo_rewriter_disinherit(r);
    MUST(inherited(r) == 0, "still there");
    colo_rewriter_destroy(r);
    colo_rewriter_destroy(again);
    return 0;
}
