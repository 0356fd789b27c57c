/* SPDX-License-Identifier: Apache-2.0 */
#include "wire.h"

#include <string.h>

#include "csum.h"
#include "framing.h"
#include "load.h"

enum {
    ETH_LEN = 14,
    IP4_LEN = 20,
    IP6_LEN = 40,
    TCP_LEN = 20,
    UDP_LEN = 8,
    VNET_LEN = 12,
    PROTO_TCP = 6,
    PROTO_UDP = 17,
    FLAG_SYN = 2,
    FLAG_PSH = 8,
    FLAG_ACK = 16,
    VM_TCP_PORT = 80,
    VM_UDP_PORT = 5201,
    PORT_BITS = 14,
    FIRST_PORT = 1 << PORT_BITS,
    GSO_TCP4 = 1, /* VIRTIO_NET_HDR_GSO_*, virtio 1.2, section 5.1.6 */
    GSO_TCP6 = 4,
    NEEDS_CSUM = 1,
    IP4_FIRST_CLIENT = 10 << 24 | 64 << 16 | 1,
    IP6_FIRST_CLIENT = 1 << 16 | 1, /* the last 32 bits */
    DATAGRAM_NUMBER = 8,
};

static const uint8_t ethernet[12] = {0x52, 0x54, 0, 0xc1, 0x1e, 0x57, 0x52, 0x54, 0, 0x12, 0x34, 0x56};
static const uint8_t ip4_vm[4] = {10, 0, 0, 1};
static const uint8_t ip6_net[12] = {0xfd};

/* Little-endian: virtio 1.0 and later; only there is the header 12 bytes long. */
static void store16_le(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

/* RFC 6528 in spirit: another one for each flow, the same on both sides as behind a rewriter. */
static uint32_t initial_seq(uint32_t flow)
{
    return (flow + 1) * 2654435761u;
}

static uint8_t *put_ip(struct colo_template *t, uint8_t *p)
{
    const uint8_t proto = t->udp ? PROTO_UDP : PROTO_TCP;

    if (t->ipv6) {
        p[0] = 0x60;
        p[6] = proto;
        p[7] = 64;
        memcpy(p + 8, ip6_net, 12);
        colo_store32(p + 20, 1);
        memcpy(p + 24, ip6_net, 12);
        t->l4_sum = (uint32_t)colo_csum_add(0, p + 8, 28) + proto;
        return p + IP6_LEN;
    }
    p[0] = 0x45;
    p[6] = 0x40; /* don't fragment */
    p[8] = 64;
    p[9] = proto;
    memcpy(p + 12, ip4_vm, 4);
    t->ip_sum = (uint32_t)colo_csum_add(0, p, 16);
    t->l4_sum = (uint32_t)colo_csum_add(0, p + 12, 4) + proto;
    return p + IP4_LEN;
}

static void put_tcp(struct colo_template *t, uint8_t *p, bool syn)
{
    uint8_t *option = p + TCP_LEN;

    colo_store16(p, VM_TCP_PORT);
    colo_store32(p + 8, 1000000001); /* what the client is told it has sent: its request, long ago */
    p[13] = syn ? FLAG_SYN | FLAG_ACK : FLAG_PSH | FLAG_ACK;
    colo_store16(p + 14, 65160);
    if (syn) {
        static const uint8_t mss_sack[] = {2, 4, 0x05, 0xb4, 4, 2};
        static const uint8_t wscale[] = {1, 3, 3, 7};

        memcpy(option, mss_sack, sizeof mss_sack);
        option += sizeof mss_sack;
        memcpy(option + (t->timestamps ? 10 : 2), wscale, sizeof wscale);
        if (!t->timestamps)
            memcpy(option, "\1\1", 2);
    } else if (t->timestamps) {
        memcpy(option, "\1\1", 2);
        option += 2;
    }
    if (t->timestamps) {
        option[0] = 8;
        option[1] = 10;
        colo_store32(option + 6, 1000); /* the client's clock */
    }
    t->l4_len = TCP_LEN + (t->timestamps ? 12 : 0) + (syn ? (t->timestamps ? 8 : 12) : 0);
    p[12] = (uint8_t)(t->l4_len / 4 << 4);
}

static void make_template(struct colo_template *t, const struct colo_traffic_wire_config *config, bool syn)
{
    uint8_t *p;

    *t = (struct colo_template){
        .ipv6 = config->ipv6,
        .udp = config->udp,
        .timestamps = config->timestamps,
        .words = colo_framing_head(config->vnet_hdr),
        .vnet = config->vnet_hdr ? VNET_LEN : 0,
    };
    colo_framing_write_head(config->vnet_hdr, t->bytes, 0, t->vnet);
    p = t->bytes + t->words + t->vnet;
    memcpy(p, ethernet, sizeof ethernet);
    colo_store16(p + 12, t->ipv6 ? 0x86dd : 0x0800);
    p = put_ip(t, p + ETH_LEN);
    if (t->udp) {
        colo_store16(p, VM_UDP_PORT);
        t->l4_len = UDP_LEN;
    } else {
        put_tcp(t, p, syn);
    }
    if (config->vnet_hdr) {
        uint8_t *v = t->bytes + t->words;

        v[0] = NEEDS_CSUM;
        store16_le(v + 6, (uint16_t)(p - v - VNET_LEN)); /* csum_start */
        store16_le(v + 8, t->udp ? 6 : 16);              /* csum_offset */
    } else {
        t->l4_sum += (uint32_t)colo_csum_add(0, p, t->l4_len);
    }
    t->len = (uint32_t)(p - t->bytes) + t->l4_len;
}

void colo_traffic_wire_init(struct colo_wire *w, const struct colo_traffic_wire_config *config)
{
    w->config = *config;
    colo_pattern_init(&w->pattern);
    make_template(&w->data, config, false);
    if (config->udp)
        w->syn = w->data;
    else
        make_template(&w->syn, config, true);
}

/* colo_csum_fold() for sums below 2^48, without a loop. */
static inline uint16_t fold(uint64_t sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static inline uint64_t add32(uint64_t sum, uint32_t v)
{
    return sum + (v >> 16) + (v & 0xffff);
}

/*
 * write_head() - the template with this frame's fields
 * @body: sum of the payload's words, which lie at an even distance from the checksum's beginning
 */
static inline void write_head(const struct colo_wire *w, const struct colo_template *t, uint8_t *out,
                              const struct colo_segment_spec *s, uint32_t seq, uint64_t body)
{
    const uint16_t port = (uint16_t)(FIRST_PORT + (s->flow & (FIRST_PORT - 1)));
    const uint32_t l4_len = t->l4_len + s->len;
    uint8_t *ip = out + t->words + t->vnet + ETH_LEN, *l4 = out + t->len - t->l4_len;
    uint64_t sum = t->l4_sum + l4_len;
    uint32_t client;

    memcpy(out, t->bytes, COLO_WIRE_HEAD_MAX); /* a constant: a few wide moves */
    colo_store32(out, t->len - t->words + s->len);
    if (t->ipv6) {
        client = IP6_FIRST_CLIENT + (s->flow >> PORT_BITS);
        colo_store16(ip + 2, s->tag);
        colo_store16(ip + 4, (uint16_t)l4_len);
        colo_store32(ip + 36, client);
    } else {
        const uint16_t total = (uint16_t)(IP4_LEN + l4_len);

        client = IP4_FIRST_CLIENT + (s->flow >> PORT_BITS);
        colo_store16(ip + 2, total);
        colo_store16(ip + 4, s->tag);
        colo_store32(ip + 16, client);
        colo_store16(ip + 10, fold(add32((uint64_t)t->ip_sum + total + s->tag, client)));
    }
    sum = add32(sum, client);
    colo_store16(l4 + 2, port);
    if (t->udp) {
        colo_store16(l4 + 4, (uint16_t)l4_len);
    } else {
        colo_store32(l4 + 4, seq);
        if (t->timestamps)
            colo_store32(l4 + t->l4_len - 8 - (t == &w->syn ? 4 : 0), s->clock);
    }
    if (t->vnet) {
        /* VIRTIO_NET_HDR_F_NEEDS_CSUM: what the device adds the rest to, not complemented. */
        colo_store16(l4 + (t->udp ? 6 : 16), (uint16_t)~fold(sum));
        if (!t->udp && s->len > w->config.gso_size) {
            uint8_t *v = out + t->words;

            v[1] = t->ipv6 ? GSO_TCP6 : GSO_TCP4;
            store16_le(v + 2, (uint16_t)(t->len - t->words - t->vnet));
            store16_le(v + 4, w->config.gso_size);
        }
        return;
    }
    sum += body + port;
    if (t->udp) {
        const uint16_t csum = fold(sum + l4_len);

        colo_store16(l4 + 6, csum ? csum : 0xffff); /* 0 says that there is none: RFC 768 */
        return;
    }
    sum = add32(sum, seq);
    if (t->timestamps)
        sum = add32(sum, s->clock);
    colo_store16(l4 + 16, fold(sum));
}

uint32_t colo_traffic_wire_write(const struct colo_wire *w, uint8_t *out, const struct colo_segment_spec *s)
{
    const struct colo_template *t = &w->data;
    uint8_t *payload = out + t->len;
    uint64_t body = 0;

    if (t->udp) {
        const uint64_t number = s->offset / s->len;

        /* The number stands over the pattern's first bytes. */
        if (!t->vnet) {
            body = colo_pattern_sum(&w->pattern, (s->phase + DATAGRAM_NUMBER) % COLO_PATTERN_PERIOD,
                                    s->len - DATAGRAM_NUMBER);
            body = add32(add32(body, (uint32_t)(number >> 32)), (uint32_t)number);
        }
        write_head(w, t, out, s, 0, body);
        memcpy(payload, w->pattern.bytes + s->phase, s->len);
        colo_store32(payload, (uint32_t)(number >> 32));
        colo_store32(payload + 4, (uint32_t)number);
    } else {
        if (!t->vnet)
            body = colo_pattern_sum(&w->pattern, s->phase, s->len);
        write_head(w, t, out, s, initial_seq(s->flow) + 1 + (uint32_t)s->offset, body);
        memcpy(payload, w->pattern.bytes + s->phase, s->len);
    }
    return t->len + s->len;
}

uint32_t colo_traffic_wire_write_syn(const struct colo_wire *w, uint8_t *out, uint32_t flow, uint32_t clock)
{
    const struct colo_segment_spec s = {.flow = flow, .clock = clock};

    write_head(w, &w->syn, out, &s, initial_seq(flow), 0);
    return w->syn.len;
}

void colo_traffic_wire_spoil(const struct colo_wire *w, uint8_t *frame, uint32_t len)
{
    const struct colo_template *t = &w->data;
    const uint32_t payload = len - t->len;
    /* The last whole word: behind a datagram's number, and at an even distance. */
    uint8_t *word = frame + t->len + (payload < 2 ? 0 : (payload - 2) & ~1u);
    uint8_t *csum = frame + t->len - t->l4_len + (t->udp ? 6 : 16);
    const uint32_t before = payload < 2 ? (uint32_t)word[0] << 8 : colo_load16(word);

    word[0] ^= 0x20;
    if (!t->vnet)
        colo_store16(csum, colo_csum_update32(colo_load16(csum), before, before ^ 0x2000));
}

enum colo_traffic_wire_kind colo_traffic_wire_read(const struct colo_wire *w, const uint8_t *frame, uint32_t len, uint32_t vnet_len,
                                   struct colo_traffic_wire_seen *seen)
{
    const bool ipv6 = w->config.ipv6, udp = w->config.udp;
    const uint32_t ip_len = ipv6 ? IP6_LEN : IP4_LEN;
    const uint8_t *ip = frame + vnet_len + ETH_LEN, *l4 = ip + ip_len;
    uint32_t l4_len = udp ? UDP_LEN : TCP_LEN, total, client;

    if (len < vnet_len + ETH_LEN + ip_len + l4_len || colo_load16(ip - 2) != (ipv6 ? 0x86dd : 0x0800))
        return COLO_WIRE_FOREIGN;
    if (ipv6) {
        total = IP6_LEN + colo_load16(ip + 4);
        client = colo_load32(ip + 36) - IP6_FIRST_CLIENT;
        seen->tag = colo_load16(ip + 2);
    } else {
        total = colo_load16(ip + 2);
        client = colo_load32(ip + 16) - IP4_FIRST_CLIENT;
        seen->tag = colo_load16(ip + 4);
    }
    if (ip[ipv6 ? 6 : 9] != (udp ? PROTO_UDP : PROTO_TCP) || colo_load16(l4) != (udp ? VM_UDP_PORT : VM_TCP_PORT) ||
        colo_load16(l4 + 2) >> PORT_BITS != 1)
        return COLO_WIRE_FOREIGN;
    if (!udp)
        l4_len = (uint32_t)(l4[12] >> 4) * 4;
    if (l4_len < TCP_LEN && !udp)
        return COLO_WIRE_FOREIGN;
    if (total < ip_len + l4_len || total > len - vnet_len - ETH_LEN || client >= 1u << (31 - PORT_BITS))
        return COLO_WIRE_FOREIGN;
    seen->payload = l4 + l4_len;
    seen->len = total - ip_len - l4_len;
    seen->flow = client << PORT_BITS | (colo_load16(l4 + 2) & (FIRST_PORT - 1));
    if (udp) {
        if (seen->len < DATAGRAM_NUMBER)
            return COLO_WIRE_FOREIGN;
        seen->seq = colo_load32(seen->payload + 4);
        return COLO_WIRE_DATA;
    }
    seen->seq = colo_load32(l4 + 4) - initial_seq(seen->flow) - 1;
    if (l4[13] & FLAG_SYN)
        return seen->len == 0 && seen->seq == UINT32_MAX ? COLO_WIRE_SYN : COLO_WIRE_FOREIGN;
    return seen->len ? COLO_WIRE_DATA : COLO_WIRE_FOREIGN;
}
