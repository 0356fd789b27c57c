/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcpseg.h - a TCP header as the rewriter needs it: where it lies, its options, and the translation of its fields.
 */
#ifndef COLO_TCPSEG_H
#define COLO_TCPSEG_H

#include <stdbool.h>
#include <stdint.h>

#include "patch.h"

struct colo_packet;

enum colo_tcpseg_found {
    COLO_TCPSEG_NONE = 0, /* no TCP, or not a first fragment: nothing of ours is in it */
    COLO_TCPSEG_CUT = 1,  /* a first fragment that ends before its TCP header does; the ports are there */
    COLO_TCPSEG_WHOLE = 2,
};

struct colo_tcpseg {
    uint32_t at;       /* offset of the TCP header */
    uint32_t end;      /* behind the header's options */
    uint32_t seq, ack;
    uint32_t length;   /* of sequence space: payload, SYN and FIN; of a fragment what is in it */
    uint16_t sport, dport;
    uint16_t window;
    uint8_t flags;
    uint8_t wscale;    /* 255: absent */
    uint32_t wscale_at; /* offset of that byte */
    bool fragment;
    bool is_signed;    /* RFC 2385, RFC 5925 */
    bool has_ts;
    uint32_t tsval, tsecr;
};

/* Finds it in a parsed frame; fills `out` for WHOLE, and the ports for CUT. */
enum colo_tcpseg_found colo_tcpseg_read(const uint8_t *data, const struct colo_packet *packet, struct colo_tcpseg *out);

/* One option: kind and the offset of its first byte; `len` is 1 for NOP. The bytes may end within it, see below. */
struct colo_tcpopt {
    uint32_t at;
    uint8_t kind;
    uint8_t len;
};

/*
 * The option at *at, which moves on. False: no more of them, or nonsense. The header ends at `header_end`, the bytes
 * that are there at `end`, which is less in a quote that was cut.
 */
bool colo_tcpopt_next(const uint8_t *data, uint32_t *at, uint32_t header_end, uint32_t end, struct colo_tcpopt *out);

/* What is added to the fields of one header. */
struct colo_translation {
    bool by_vm;        /* the VM's segment: sequence number and TSval. Else the client's: ACK, SACK blocks and TSecr */
    bool ts;           /* timestamps too */
    bool bounded;      /* TSecr becomes `latest` where it would be later */
    uint32_t seq_add;
    uint32_t ts_add;
    uint32_t latest;
};

/* Translates the header at `at`, as far as it lies before patch->end: 8 bytes of it at least. */
void colo_tcpseg_translate(struct colo_patch *patch, uint32_t at, const struct colo_translation *tr);

#endif
