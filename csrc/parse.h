/* SPDX-License-Identifier: Apache-2.0 */
/*
 * parse.h - one frame, decoded once into host order.
 *
 * Understands Ethernet II and 802.3, up to two VLAN tags (802.1Q, 802.1ad), IPv4, IPv6 with extension headers, TCP,
 * UDP, ICMP and ICMPv6. An IPv6 fragment that is the whole datagram (RFC 6946) is none. Whatever can't be parsed is of class MALFORMED and is compared as a whole, so parsing never
 * fails: there is no frame that the comparator can't judge.
 */
#ifndef COLO_PARSE_H
#define COLO_PARSE_H

#include "coloproxy.h"

enum {
    COLO_TCP_FIN = 0x01,
    COLO_TCP_SYN = 0x02,
    COLO_TCP_RST = 0x04,
    COLO_TCP_ACK = 0x10,
    COLO_TCP_URG = 0x20,
};

/* Options of a SYN that bind the connection for its life (RFC 9293 MSS; RFC 7323 scale, timestamps; RFC 2018; RFC 2385, 5925). */
struct colo_syn_options {
    uint16_t mss;      /* 0: absent */
    uint8_t wscale;    /* 255: absent */
    uint8_t sack_ok;
    uint8_t timestamps;
    uint8_t signature; /* the option's kind: 19 for MD5, 29 for AO; 0: absent */
};

struct colo_packet {
    struct colo_flow_id id;
    uint32_t l3;       /* offsets into the frame's data, virtio-net header included */
    uint32_t l4;
    uint32_t body;     /* what is compared: TCP and UDP payload, other IP payload, or the whole frame */
    uint32_t body_len;
    uint32_t hole;     /* offset in the body of two bytes that are not compared (a checksum), or UINT32_MAX */
    uint32_t tag;      /* must be equal too: of a fragment offset and flag */
    uint32_t ip_id;    /* FRAGMENT: which datagram it belongs to */
    uint32_t fragment_at; /* ... and where in that datagram's payload, in bytes */
    uint32_t next_at;  /* ... IPv6: offset of the byte that announces the fragment header; l4 is that header's offset */
    uint32_t segment_size; /* UDP: a super-frame that the device cuts into datagrams of so many bytes; else 0 */
    uint32_t seq;      /* TCP */
    uint32_t ack;
    uint16_t csum;
    uint16_t uso;      /* the virtio-net header asks for UDP segmentation at so many bytes; 0: it doesn't */
    uint8_t tcp_flags;
    uint8_t tcp_auth;  /* carries an MD5 or AO option: can't be altered */
    uint8_t more;      /* FRAGMENT: not the last one */
    uint8_t csum_partial; /* the virtio-net header says that the checksum is completed later */
    struct colo_syn_options syn;
};

/* Fills `out`, but for id.nic: a frame does not say by which NIC it came. `data` holds vnet_len bytes of virtio-net header and the Ethernet frame. */
void colo_parse(const uint8_t *data, uint32_t len, uint32_t vnet_len, struct colo_packet *out);

#endif
