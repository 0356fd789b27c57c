/* SPDX-License-Identifier: Apache-2.0 */
#include "parse.h"

#include "load.h"
#include "zero.h"

enum {
    ETH_LEN = 14,
    TYPE_IPV4 = 0x0800,
    TYPE_ARP = 0x0806,
    TYPE_RARP = 0x8035,
    TYPE_VLAN = 0x8100,
    TYPE_QINQ = 0x88a8,
    TYPE_QINQ_OLD = 0x9100,
    TYPE_IPV6 = 0x86dd,
    TYPE_SLOW = 0x8809, /* LACP */
    TYPE_LLDP = 0x88cc,
    PROTO_HOPOPT = 0,
    PROTO_ICMP = 1,
    PROTO_IGMP = 2,
    PROTO_TCP = 6,
    PROTO_UDP = 17,
    PROTO_ROUTING = 43,
    PROTO_FRAGMENT = 44,
    PROTO_AH = 51,
    PROTO_ICMP6 = 58,
    PROTO_DSTOPTS = 60,
    MAX_EXTENSIONS = 8, /* a chain longer than this is hostile: compared as it stands */
    VNET_NEEDS_CSUM = 1,
    VNET_GSO_UDP_L4 = 5,
    VNET_GSO_ECN = 0x80,
    NO_HOLE = UINT32_MAX,
    PADDED_TIMESTAMPS = 0x0101080a, /* RFC 7323, appendix A */
};

/* The part of the frame that is still to be read; `at` and `end` are offsets into data. */
struct cursor {
    const uint8_t *data;
    uint32_t at;
    uint32_t end;
};

static uint32_t left(const struct cursor *c)
{
    return c->end - c->at;
}

static void whole_frame(struct colo_packet *out, uint32_t vnet_len, uint32_t len, uint8_t cls)
{
    out->id.cls = cls;
    out->body = vnet_len;
    out->body_len = len - vnet_len;
}

static void body_is_rest(struct colo_packet *out, const struct cursor *c, uint8_t cls)
{
    out->id.cls = cls;
    out->body = c->at;
    out->body_len = left(c);
}

static bool parse_tcp_options(const uint8_t *p, uint32_t len, struct colo_packet *out)
{
    if (len == 12 && colo_load32(p) == PADDED_TIMESTAMPS) { /* as nearly all segments are sent */
        out->syn.timestamps = 1;
        return true;
    }
    while (len > 0) {
        uint32_t size;

        if (p[0] == 0) /* end of list */
            return true;
        if (p[0] == 1) { /* no operation */
            p++;
            len--;
            continue;
        }
        if (len < 2 || p[1] < 2 || p[1] > len)
            return false;
        size = p[1];
        if (p[0] == 2 && size == 4)
            out->syn.mss = colo_load16(p + 2);
        else if (p[0] == 3 && size == 3)
            out->syn.wscale = p[2];
        else if (p[0] == 4 && size == 2)
            out->syn.sack_ok = 1;
        else if (p[0] == 8 && size == 10)
            out->syn.timestamps = 1;
        else if (p[0] == 19 || p[0] == 29) { /* RFC 2385, RFC 5925 */
            out->tcp_auth = 1;
            out->syn.signature = p[0];
        }
        p += size;
        len -= size;
    }
    return true;
}

/* Ports, numbers, flags and options of a header of `header` bytes, all of which are there. */
static inline void read_tcp_header(const uint8_t *p, uint32_t header, struct colo_packet *out)
{
    out->id.sport = colo_load16(p);
    out->id.dport = colo_load16(p + 2);
    out->seq = colo_load32(p + 4);
    out->ack = colo_load32(p + 8);
    out->tcp_flags = p[13];
    out->csum = colo_load16(p + 16);
    out->syn.wscale = 255;
    /* Options that make no sense are what both VMs' stacks ignore; only the bytes of the stream are judged. */
    if (header > 20)
        (void)parse_tcp_options(p + 20, header - 20, out);
}

static bool parse_tcp(struct cursor *c, struct colo_packet *out)
{
    const uint8_t *p = c->data + c->at;
    uint32_t header;

    if (left(c) < 20)
        return false;
    header = (uint32_t)(p[12] >> 4) * 4;
    if (header < 20 || header > left(c))
        return false;
    read_tcp_header(p, header, out);
    c->at += header;
    body_is_rest(out, c, COLO_CLASS_TCP);
    return true;
}

static bool parse_udp(struct cursor *c, struct colo_packet *out)
{
    const uint8_t *p = c->data + c->at;
    uint32_t length;
    bool dhcp;

    if (left(c) < 8)
        return false;
    out->id.sport = colo_load16(p);
    out->id.dport = colo_load16(p + 2);
    length = colo_load16(p + 4);
    if (out->uso) /* all that IP carries is cut up, and each datagram gets a length of its own */
        length = left(c);
    if (length < 8 || length > left(c))
        return false;
    if (out->id.family == 4)
        dhcp = (out->id.sport == 67 || out->id.sport == 68) && (out->id.dport == 67 || out->id.dport == 68);
    else
        dhcp = (out->id.sport == 546 || out->id.sport == 547) && (out->id.dport == 546 || out->id.dport == 547);
    c->end = c->at + length;
    c->at += 8;
    body_is_rest(out, c, dhcp ? COLO_CLASS_DHCP : COLO_CLASS_UDP);
    if (out->uso && out->body_len > out->uso)
        out->segment_size = out->uso;
    return true;
}

static bool parse_icmp(struct cursor *c, struct colo_packet *out)
{
    const uint8_t *p = c->data + c->at;

    if (left(c) < 8)
        return false;
    if (p[0] == 0 || p[0] == 8)
        out->id.sport = colo_load16(p + 4);
    out->hole = 2;
    body_is_rest(out, c, COLO_CLASS_ICMP);
    return true;
}

static bool parse_icmp6(struct cursor *c, struct colo_packet *out)
{
    const uint8_t *p = c->data + c->at;
    uint8_t cls = COLO_CLASS_ICMP6;

    if (left(c) < 4)
        return false;
    if (p[0] >= 133 && p[0] <= 137)
        cls = COLO_CLASS_ND;
    else if ((p[0] >= 130 && p[0] <= 132) || p[0] == 143)
        cls = COLO_CLASS_MULTICAST;
    else if ((p[0] == 128 || p[0] == 129) && left(c) >= 8)
        out->id.sport = colo_load16(p + 4);
    out->hole = 2;
    body_is_rest(out, c, cls);
    return true;
}

static bool parse_l4(struct cursor *c, struct colo_packet *out)
{
    out->l4 = c->at;
    switch (out->id.protocol) {
    case PROTO_TCP:
        return parse_tcp(c, out);
    case PROTO_UDP:
        return parse_udp(c, out);
    case PROTO_ICMP:
        if (out->id.family == 4)
            return parse_icmp(c, out);
        break;
    case PROTO_ICMP6:
        if (out->id.family == 6)
            return parse_icmp6(c, out);
        break;
    case PROTO_IGMP:
        if (out->id.family == 4) {
            body_is_rest(out, c, COLO_CLASS_MULTICAST);
            return true;
        }
        break;
    default:
        break;
    }
    body_is_rest(out, c, COLO_CLASS_IP_OTHER);
    return true;
}

static bool parse_ipv4(struct cursor *c, struct colo_packet *out)
{
    const uint8_t *p = c->data + c->at;
    uint32_t header, total, fragment;

    if (left(c) < 20 || p[0] >> 4 != 4)
        return false;
    header = (uint32_t)(p[0] & 15) * 4;
    total = colo_load16(p + 2);
    if (header < 20 || total < header || total > left(c))
        return false;
    out->l3 = c->at;
    out->id.family = 4;
    out->id.protocol = p[9];
    memcpy(out->id.src, p + 12, 4);
    memcpy(out->id.dst, p + 16, 4);
    c->end = c->at + total; /* trims Ethernet padding */
    c->at += header;
    fragment = colo_load16(p + 6) & 0x3fff; /* more-fragments flag and offset */
    if (fragment) {
        out->tag = fragment;
        out->ip_id = colo_load16(p + 4);
        out->fragment_at = (fragment & 0x1fff) * 8;
        out->more = (fragment & 0x2000) != 0;
        out->l4 = c->at;
        body_is_rest(out, c, COLO_CLASS_FRAGMENT);
        return true;
    }
    return parse_l4(c, out);
}

static bool parse_ipv6(struct cursor *c, struct colo_packet *out)
{
    const uint8_t *p = c->data + c->at;
    uint32_t length, next_at = c->at + 6; /* where the next header is named */
    int extensions;

    if (left(c) < 40 || p[0] >> 4 != 6)
        return false;
    length = colo_load16(p + 4);
    if (length > left(c) - 40)
        return false;
    out->l3 = c->at;
    out->id.family = 6;
    out->id.protocol = p[6];
    memcpy(out->id.src, p + 8, 16);
    memcpy(out->id.dst, p + 24, 16);
    c->at += 40;
    c->end = c->at + length;

    for (extensions = 0; extensions < MAX_EXTENSIONS; extensions++) {
        uint32_t size, fragment;

        p = c->data + c->at;
        switch (out->id.protocol) {
        case PROTO_HOPOPT:
        case PROTO_ROUTING:
        case PROTO_DSTOPTS:
            if (left(c) < 8)
                return false;
            size = ((uint32_t)p[1] + 1) * 8;
            break;
        case PROTO_AH: /* RFC 4302: counted in words of four bytes, minus two */
            if (left(c) < 12)
                return false;
            size = ((uint32_t)p[1] + 2) * 4;
            break;
        case PROTO_FRAGMENT:
            if (left(c) < 8)
                return false;
            fragment = colo_load16(p + 2);
            size = 8;
            if ((fragment & 0xfff9) == 0) /* offset 0 and no more to come: RFC 6946 */
                break;
            out->id.protocol = p[0];
            out->tag = fragment | 0x10000u;
            out->ip_id = colo_load32(p + 4);
            out->fragment_at = fragment & 0xfff8;
            out->more = fragment & 1;
            out->next_at = next_at;
            out->l4 = c->at;
            c->at += 8;
            body_is_rest(out, c, COLO_CLASS_FRAGMENT);
            return true;
        default:
            return parse_l4(c, out);
        }
        if (size > left(c))
            return false;
        out->id.protocol = p[0];
        next_at = c->at;
        c->at += size;
    }
    return false;
}

/* Reads the VLAN tags; returns the ethertype, or 0 where the frame ends before it. */
static uint16_t parse_ethertype(struct cursor *c, struct colo_packet *out)
{
    uint16_t type = colo_load16(c->data + c->at + 12);

    c->at += ETH_LEN;
    while (type == TYPE_VLAN || type == TYPE_QINQ || type == TYPE_QINQ_OLD) {
        if (left(c) < 4)
            return 0;
        if (out->id.vlan_count == 2)
            break;
        out->id.vlan[out->id.vlan_count++] = colo_load16(c->data + c->at) & 0x0fff;
        type = colo_load16(c->data + c->at + 2);
        c->at += 4;
    }
    return type;
}

/* 01:80:c2:00:00:0x never leaves a link: STP, LACP, LLDP, pause (IEEE 802.1Q, table 8-1). */
static bool is_link_local(const uint8_t *mac)
{
    static const uint8_t prefix[5] = {0x01, 0x80, 0xc2, 0x00, 0x00};
    return memcmp(mac, prefix, sizeof prefix) == 0 && mac[5] < 0x10;
}

/* struct virtio_net_hdr (virtio 1.2, section 5.1.6): flags, gso_type, hdr_len, gso_size, ...; little-endian. */
static void parse_vnet(const uint8_t *data, uint32_t vnet_len, struct colo_packet *out)
{
    out->csum_partial = data[0] & VNET_NEEDS_CSUM;
    if (vnet_len >= 6 && (data[1] & ~VNET_GSO_ECN) == VNET_GSO_UDP_L4)
        out->uso = (uint16_t)(data[4] | data[5] << 8);
}

/*
 * Most frames of a busy VM: TCP in IPv4 without VLAN, IP options or fragments. False: any other, or one that makes no
 * sense; the long way then begins anew. What is written is what that would write.
 */
static bool parse_plain_tcp(const uint8_t *data, uint32_t len, uint32_t vnet_len, struct colo_packet *out)
{
    const uint32_t l3 = vnet_len + ETH_LEN, l4 = l3 + 20;
    const uint8_t *ip = data + l3, *tcp = data + l4;
    uint32_t total, header;

    if (len - vnet_len < ETH_LEN + 40 || colo_load16(ip - 2) != TYPE_IPV4 || ip[0] != 0x45 || ip[9] != PROTO_TCP ||
        colo_load16(ip + 6) & 0x3fff)
        return false;
    total = colo_load16(ip + 2);
    header = (uint32_t)(tcp[12] >> 4) * 4;
    if (total > len - l3 || header < 20 || total < 20 + header)
        return false;
    out->id.family = 4;
    out->id.protocol = PROTO_TCP;
    out->id.cls = COLO_CLASS_TCP;
    out->id.ethertype = TYPE_IPV4;
    memcpy(out->id.src, ip + 12, 4);
    memcpy(out->id.dst, ip + 16, 4);
    out->l3 = l3;
    out->l4 = l4;
    out->body = l4 + header;
    out->body_len = total - 20 - header;
    read_tcp_header(tcp, header, out);
    return true;
}

void colo_parse(const uint8_t *data, uint32_t len, uint32_t vnet_len, struct colo_packet *out)
{
    struct cursor c;
    bool parsed = true;

    colo_zero(out, sizeof *out);
    out->hole = NO_HOLE;
    if (vnet_len > len || len - vnet_len < ETH_LEN) {
        whole_frame(out, vnet_len > len ? len : vnet_len, len, COLO_CLASS_MALFORMED);
        return;
    }
    if (vnet_len)
        parse_vnet(data, vnet_len, out);
    if (parse_plain_tcp(data, len, vnet_len, out))
        return;
    c = (struct cursor){data, vnet_len, len};
    out->id.ethertype = parse_ethertype(&c, out);
    switch (out->id.ethertype) {
    case TYPE_IPV4:
        parsed = parse_ipv4(&c, out);
        break;
    case TYPE_IPV6:
        parsed = parse_ipv6(&c, out);
        break;
    case 0:
        parsed = false;
        break;
    case TYPE_ARP:
    case TYPE_RARP:
        whole_frame(out, vnet_len, len, COLO_CLASS_ARP);
        break;
    case TYPE_LLDP:
    case TYPE_SLOW:
        whole_frame(out, vnet_len, len, COLO_CLASS_LINK);
        break;
    default:
        whole_frame(out, vnet_len, len, is_link_local(data + vnet_len) ? COLO_CLASS_LINK : COLO_CLASS_OTHER);
        break;
    }
    if (!parsed) { /* forget what was read halfway: the whole frame is the evidence */
        uint16_t ethertype = out->id.ethertype;

        colo_zero(out, sizeof *out);
        out->hole = NO_HOLE;
        out->id.ethertype = ethertype;
        whole_frame(out, vnet_len, len, COLO_CLASS_MALFORMED);
    }
    if (out->id.family == 0) {
        memcpy(out->id.dst, data + vnet_len, 6);
        memcpy(out->id.src, data + vnet_len + 6, 6);
    }
}
