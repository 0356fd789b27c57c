/* SPDX-License-Identifier: Apache-2.0 */
#include "rwinherit.h"

#include <string.h>

#include "load.h"

/* Where each field lies. */
enum {
    NIC = 0, FAMILY = 1, VLAN_COUNT = 2, RESERVED = 3, VLANS = 4, SPORT = 8, DPORT = 10, SRC = 12, DST = 28,
    FLAGS = 44, P_WSCALE = 46, P_SCALE = 47, S_SCALE = 48, C_SCALE = 49, PAD = 50,
    SEQ_SHIFT = 52, TS_SHIFT = 56, P_TS = 60, P_TS_AGE = 64, S_ISN = 72, S_ACK = 76, S_FIN_END = 80, C_FIN_END = 84,
    PAD2 = 88,
};

enum flag {
    TS_KNOWN = 1 << 0, UNSCALED = 1 << 1, ANSWERED = 1 << 2, C_SCALED = 1 << 3, ACTIVE = 1 << 4, ACKED = 1 << 5,
    BEYOND = 1 << 6, S_FIN = 1 << 7, C_FIN = 1 << 8, S_FIN_ACKED = 1 << 9, C_FIN_ACKED = 1 << 10,
    ALL_FLAGS = (1 << 11) - 1,
};

enum { VERSION = 1, MAX_SCALE = 14, MAX_VLAN = 4095 };

static const char MAGIC[4] = "CORW";
static const int64_t NS_PER_MS = 1000000;
static const uint64_t MAX_AGE = UINT64_C(10) * 366 * 24 * 3600 * 1000; /* ms: ten years */

bool colo_rwinherit_wanted(const struct colo_rwflow *f)
{
    return f->known && !f->is_signed && f->standing != COLO_RW_CLOSED &&
           (f->seq_shift || f->ts_shift || f->p_scale != f->s_scale);
}

void colo_rwinherit_put_head(uint8_t out[COLO_RWINHERIT_HEAD], uint32_t flows)
{
    memcpy(out, MAGIC, sizeof MAGIC);
    colo_store32(out + 4, (uint32_t)VERSION << 24);
    colo_store32(out + 8, flows);
}

static unsigned flags_of(const struct colo_rwflow *f)
{
    return (f->ts_known ? TS_KNOWN : 0u) | (f->unscaled ? UNSCALED : 0u) | (f->answered ? ANSWERED : 0u) |
           (f->c_scaled ? C_SCALED : 0u) | (f->s.active ? ACTIVE : 0u) | (f->s.acked ? ACKED : 0u) |
           (f->s_beyond ? BEYOND : 0u) | (f->s_fin ? S_FIN : 0u) | (f->c_fin ? C_FIN : 0u) |
           (f->s_fin_acked ? S_FIN_ACKED : 0u) | (f->c_fin_acked ? C_FIN_ACKED : 0u);
}

void colo_rwinherit_put(uint8_t out[COLO_RWINHERIT_FLOW], const struct colo_rwflow *f, int64_t now)
{
    /* Rounded up: too old a TSval makes the next one later than it need be, too young one makes it too early. */
    const uint64_t age = now > f->p_ts_at ? (uint64_t)((now - f->p_ts_at + NS_PER_MS - 1) / NS_PER_MS) : 0;
    const struct colo_rwkey *key = &f->key;

    memset(out, 0, COLO_RWINHERIT_FLOW);
    out[NIC] = key->nic;
    out[FAMILY] = key->family;
    out[VLAN_COUNT] = key->vlan_count;
    colo_store16(out + VLANS, key->vlan[0]);
    colo_store16(out + VLANS + 2, key->vlan[1]);
    colo_store16(out + SPORT, key->sport);
    colo_store16(out + DPORT, key->dport);
    memcpy(out + SRC, key->src, sizeof key->src);
    memcpy(out + DST, key->dst, sizeof key->dst);
    colo_store16(out + FLAGS, (uint16_t)flags_of(f));
    out[P_WSCALE] = f->p_wscale;
    out[P_SCALE] = f->p_scale;
    out[S_SCALE] = f->s_scale;
    out[C_SCALE] = f->c_scale;
    colo_store32(out + SEQ_SHIFT, f->seq_shift);
    colo_store32(out + TS_SHIFT, f->ts_known ? f->ts_shift : 0);
    colo_store32(out + P_TS, f->p_ts);
    colo_store32(out + P_TS_AGE, (uint32_t)((age < MAX_AGE ? age : MAX_AGE) >> 32));
    colo_store32(out + P_TS_AGE + 4, (uint32_t)(age < MAX_AGE ? age : MAX_AGE));
    colo_store32(out + S_ISN, f->s.isn);
    colo_store32(out + S_ACK, f->s.acked ? f->s.ack : 0);
    colo_store32(out + S_FIN_END, f->s_fin ? f->s_fin_end : 0);
    colo_store32(out + C_FIN_END, f->c_fin ? f->c_fin_end : 0);
}

long colo_rwinherit_head(const uint8_t *data, size_t len, const char **why)
{
    size_t count;

    *why = "no table of connections";
    if (len < COLO_RWINHERIT_HEAD || memcmp(data, MAGIC, sizeof MAGIC))
        return -1;
    *why = "a table of connections in a version that is not known here";
    if (colo_load32(data + 4) != (uint32_t)VERSION << 24)
        return -1;
    *why = "a table of connections of another length than it says";
    count = colo_load32(data + 8);
    if ((len - COLO_RWINHERIT_HEAD) / COLO_RWINHERIT_FLOW != count || (len - COLO_RWINHERIT_HEAD) % COLO_RWINHERIT_FLOW)
        return -1;
    *why = NULL;
    return (long)count;
}

static bool all_zero(const uint8_t *p, size_t len)
{
    while (len && !*p)
        p++, len--;
    return !len;
}

static const char *take_key(const uint8_t *in, struct colo_rwkey *key)
{
    *key = (struct colo_rwkey){.nic = in[NIC], .family = in[FAMILY], .vlan_count = in[VLAN_COUNT],
                               .vlan = {colo_load16(in + VLANS), colo_load16(in + VLANS + 2)},
                               .sport = colo_load16(in + SPORT), .dport = colo_load16(in + DPORT)};
    memcpy(key->src, in + SRC, sizeof key->src);
    memcpy(key->dst, in + DST, sizeof key->dst);
    if (key->family != 4 && key->family != 6)
        return "a connection that is neither of IPv4 nor of IPv6";
    if (key->family == 4 && (!all_zero(key->src + 4, 12) || !all_zero(key->dst + 4, 12)))
        return "a connection of IPv4 with an address that is too long";
    if (key->vlan_count > 2 || key->vlan[0] > MAX_VLAN || key->vlan[1] > MAX_VLAN ||
        !all_zero(in + VLANS + 2 * in[VLAN_COUNT], 4 - 2 * (size_t)in[VLAN_COUNT]))
        return "a connection with VLAN ids that make no sense";
    return NULL;
}

const char *colo_rwinherit_flow(const uint8_t in[COLO_RWINHERIT_FLOW], struct colo_rwflow *f, int64_t then)
{
    const unsigned flags = colo_load16(in + FLAGS);
    const uint64_t age = (uint64_t)colo_load32(in + P_TS_AGE) << 32 | colo_load32(in + P_TS_AGE + 4);
    struct colo_rwkey key;
    const char *wrong = take_key(in, &key);

    if (wrong)
        return wrong;
    if (in[RESERVED] || !all_zero(in + PAD, 2) || !all_zero(in + PAD2, 8) || flags & ~(unsigned)ALL_FLAGS)
        return "a connection with something that is not known here";
    if (in[P_SCALE] > MAX_SCALE || in[S_SCALE] > MAX_SCALE || in[C_SCALE] > MAX_SCALE)
        return "a connection with a window scale that is too large";
    if (age > MAX_AGE || (!(flags & TS_KNOWN) && colo_load32(in + TS_SHIFT)))
        return "a connection with timestamps that make no sense";
    if (((flags & S_FIN_ACKED) && !(flags & S_FIN)) || ((flags & C_FIN_ACKED) && !(flags & C_FIN)) ||
        (flags & S_FIN_ACKED && flags & C_FIN_ACKED))
        return "a connection that is closed, or half of it";
    *f = (struct colo_rwflow){
        .key = key,
        .s = {.seen = true, .active = flags & ACTIVE, .acked = flags & ACKED, .isn = colo_load32(in + S_ISN),
              .ack = colo_load32(in + S_ACK), .wscale = 255},
        .known = true,
        .ts_known = flags & TS_KNOWN,
        .unscaled = flags & UNSCALED,
        .p_wscale = in[P_WSCALE],
        .p_scale = in[P_SCALE],
        .s_scale = in[S_SCALE],
        .seq_shift = colo_load32(in + SEQ_SHIFT),
        .ts_shift = colo_load32(in + TS_SHIFT),
        .p_ts = colo_load32(in + P_TS),
        .p_ts_at = then - (int64_t)age * NS_PER_MS,
        .s_beyond = flags & BEYOND,
        .answered = flags & ANSWERED,
        .c_scaled = flags & C_SCALED,
        .c_scale = in[C_SCALE],
        .s_fin = flags & S_FIN,
        .c_fin = flags & C_FIN,
        .s_fin_end = colo_load32(in + S_FIN_END),
        .c_fin_end = colo_load32(in + C_FIN_END),
        .s_fin_acked = flags & S_FIN_ACKED,
        .c_fin_acked = flags & C_FIN_ACKED,
        .inherited = true,
        .unplaced = true,
        .unproven = true,
    };
    return NULL;
}
