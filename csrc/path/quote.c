/* SPDX-License-Identifier: Apache-2.0 */
#include "quote.h"

#include "ipwalk.h"
#include "load.h"
#include "parse.h"

enum {
    ICMP_HEADER = 8,
    PROTO_TCP = 6,
    ENOUGH = 8, /* ports and sequence number: what RFC 792 promises */
};

static bool is_error(uint8_t cls, uint8_t type)
{
    if (cls == COLO_CLASS_ICMP)
        return type == 3 || type == 4 || type == 5 || type == 11 || type == 12;
    return cls == COLO_CLASS_ICMP6 && type < 128;
}

/* RFC 4884: what follows the quote in the message is not part of it. 0: the message doesn't say how long it is. */
static uint32_t stated_length(const uint8_t *icmp, uint8_t cls)
{
    if (cls == COLO_CLASS_ICMP)
        return icmp[0] == 3 || icmp[0] == 11 || icmp[0] == 12 ? icmp[5] * 4u : 0;
    return icmp[0] == 1 || icmp[0] == 3 ? icmp[4] * 8u : 0;
}

static bool read_ip(const uint8_t *data, uint32_t at, uint32_t end, struct colo_quote *out)
{
    const uint8_t *ip = data + at;
    uint32_t header, length;
    uint8_t protocol;

    if (out->family == 4) {
        if (end - at < 20 || ip[0] >> 4 != 4 || ip[9] != PROTO_TCP || colo_load16(ip + 6) & 0x1fff)
            return false;
        header = (uint32_t)(ip[0] & 15) * 4;
        length = colo_load16(ip + 2);
        if (header < 20 || header > end - at || length < header)
            return false;
        out->src = ip + 12;
        out->dst = ip + 16;
        out->tcp = at + header;
    } else {
        if (end - at < 40 || ip[0] >> 4 != 6)
            return false;
        length = 40 + (uint32_t)colo_load16(ip + 4);
        protocol = ip[6];
        out->src = ip + 8;
        out->dst = ip + 24;
        out->tcp = at + 40;
        if (!colo_ipwalk_extensions(data, &out->tcp, end, &protocol) || protocol != PROTO_TCP)
            return false;
    }
    out->tcp_end = length < end - at ? at + length : end;
    return out->tcp_end >= out->tcp && out->tcp_end - out->tcp >= ENOUGH;
}

bool colo_quote_read(const uint8_t *data, const struct colo_packet *packet, struct colo_quote *out)
{
    uint32_t end = packet->body + packet->body_len, stated;
    const uint8_t *icmp = data + packet->body;

    if ((packet->id.cls != COLO_CLASS_ICMP && packet->id.cls != COLO_CLASS_ICMP6) || packet->body_len < ICMP_HEADER ||
        !is_error(packet->id.cls, icmp[0]))
        return false;
    *out = (struct colo_quote){.icmp = packet->body, .icmp_end = end, .family = packet->id.family};
    stated = stated_length(icmp, packet->id.cls);
    if (stated && stated < end - packet->body - ICMP_HEADER)
        end = packet->body + ICMP_HEADER + stated;
    if (!read_ip(data, packet->body + ICMP_HEADER, end, out))
        return false;
    out->sport = colo_load16(data + out->tcp);
    out->dport = colo_load16(data + out->tcp + 2);
    return true;
}
