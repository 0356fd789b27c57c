/* SPDX-License-Identifier: Apache-2.0 */
/* quote.h - the segment that an ICMP or ICMPv6 error quotes, as far as it does (RFC 792, RFC 1812, RFC 4443). */
#ifndef COLO_QUOTE_H
#define COLO_QUOTE_H

#include <stdbool.h>
#include <stdint.h>

struct colo_packet;

struct colo_quote {
    uint32_t icmp;     /* offset of the message, and behind its end */
    uint32_t icmp_end;
    uint32_t tcp;      /* offset of the quoted TCP header, of which at least 8 bytes are there */
    uint32_t tcp_end;  /* behind the last quoted byte of the segment */
    uint8_t family;
    const uint8_t *src; /* in the frame: 4 or 16 bytes */
    const uint8_t *dst;
    uint16_t sport, dport;
};

/* False: it is no error, or quotes no TCP header. */
bool colo_quote_read(const uint8_t *data, const struct colo_packet *packet, struct colo_quote *out);

#endif
