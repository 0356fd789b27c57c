/* Any bytes give the same records, counters and fault however they are cut; records fit the limits; none is lost. */
/* SPDX-License-Identifier: Apache-2.0 */
#include "link.h"
#include "must.h"

enum { MAX = 300, KEPT = 4096, PUSHED = 3 };

static const int64_t PING_AT = 1LL << 33; /* no second one for as long again */

/* What one link made of the stream. */
struct outcome {
    uint64_t received, records, sum;
    uint64_t acked, queued;
    int64_t rtt;
    char fault[128];
};

static uint32_t dice; /* where to cut: derived from the input's first byte */

static uint32_t roll(uint32_t sides)
{
    dice = dice * 1664525u + 1013904223u;
    return (dice >> 16) % sides;
}

/* A link that has sent a ping and three records. */
static colo_link *talker(void)
{
    static const uint8_t data[MAX];
    struct colo_link_config config;
    struct colo_link_record record = {COLO_LINK_MIRROR, 0, 0, 22, data};
    const uint8_t *out;
    colo_link *l;
    size_t n;

    colo_link_config_default(&config);
    config.max_record = MAX;
    config.send_bytes = KEPT;
    config.keepalive = PING_AT;
    l = colo_link_create(&config);
    MUST(l && colo_link_connect(l, 0, 0) == 0, "no link");
    n = colo_link_output(l, &out, PING_AT);
    MUST(n == 16 && out[4] == 65, "no ping");
    colo_link_wrote(l, n);
    for (int i = 0; i < PUSHED; i++)
        MUST(colo_link_push(l, &record) == 0, "no room");
    n = colo_link_output(l, &out, PING_AT);
    MUST(n == 90, "%zu bytes", n);
    colo_link_wrote(l, n);
    return l;
}

static void take(colo_link *l, struct outcome *o)
{
    struct colo_link_record r;
    int more;

    while ((more = colo_link_next(l, &r)) == 1) {
        MUST(r.len <= MAX && r.type >= COLO_LINK_MIRROR && r.type <= COLO_LINK_INHERIT, "type %u length %u", r.type,
             r.len);
        MUST(r.vnet_len == 0 || ((r.vnet_len == 10 || r.vnet_len == 12) && r.vnet_len <= r.len), "vnet %u of %u",
             r.vnet_len, r.len);
        o->records++;
        o->sum = o->sum * 31 + r.type + r.nic * 7u + r.vnet_len;
        for (uint32_t i = 0; i < r.len; i++)
            o->sum = o->sum * 31 + r.data[i];
    }
    MUST((more < 0) == (colo_link_fault(l) != NULL), "%d, and fault %s", more, colo_link_fault(l));
}

/* It has its say in between: acknowledgements and pongs, whole or in part, which changes nothing of what it hears. */
static void speak(colo_link *l)
{
    const uint8_t *out;
    size_t n = colo_link_output(l, &out, PING_AT + 1000 + roll(2) * 100000000);

    MUST(n <= 48, "%zu bytes of acknowledgement, ping and pong", n);
    if (n)
        colo_link_wrote(l, 1 + roll((uint32_t)n));
}

static void hear(struct outcome *o, const uint8_t *stream, size_t size, uint32_t most)
{
    colo_link *l = talker();
    struct colo_link_counters c;
    size_t at = 0;

    *o = (struct outcome){0};
    while (at < size && !colo_link_fault(l)) {
        uint8_t *room;
        size_t some = colo_link_input(l, &room), wanted = 1 + roll(most);

        MUST(some > 0, "no room, though all was taken");
        some = some < wanted ? some : wanted;
        some = some < size - at ? some : size - at;
        memcpy(room, stream + at, some);
        colo_link_got(l, some, PING_AT + 1000);
        at += some;
        take(l, o);
        speak(l);
    }
    o->received = colo_link_received(l);
    colo_link_counters_of(l, &c);
    MUST(c.received_bytes == o->received && c.received_records == o->records, "counters don't agree");
    MUST(o->received <= size, "%llu bytes received of %zu", (unsigned long long)o->received, size);
    MUST(c.acked_bytes + c.queued_bytes == 90 && c.acked_bytes % 30 == 0, "acknowledged %llu",
         (unsigned long long)c.acked_bytes);
    o->acked = c.acked_bytes;
    o->queued = c.queued_bytes;
    o->rtt = c.rtt;
    snprintf(o->fault, sizeof o->fault, "%s", colo_link_fault(l) ? colo_link_fault(l) : "");
    /* What is not acknowledged is there for the next connection; but a fault ends the session. */
    colo_link_disconnect(l);
    MUST(colo_link_can_resume(l, o->acked) == !o->fault[0], "resumption after: %s", o->fault);
    MUST(colo_link_restart(l) == 0 && colo_link_connect(l, 0, PING_AT + 2000) == 0, "no new session");
    speak(l);
    colo_link_destroy(l);
}

/* Input: one byte that decides the cuts, then what the peer says. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct outcome whole, cut;
    uint8_t *stream;

    if (!size)
        return 0;
    stream = copy_of(data + 1, size - 1);
    dice = data[0];
    hear(&whole, stream, size - 1, 65536);
    for (uint32_t most = 1; most <= 64; most *= 8) {
        hear(&cut, stream, size - 1, most);
        MUST(cut.received == whole.received && cut.records == whole.records && cut.sum == whole.sum, "other records");
        MUST(cut.acked == whole.acked && cut.queued == whole.queued && cut.rtt == whole.rtt, "other counters");
        MUST(strcmp(cut.fault, whole.fault) == 0, "fault \"%s\", not \"%s\"", cut.fault, whole.fault);
    }
    free(stream);
    return 0;
}
