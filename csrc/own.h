/* SPDX-License-Identifier: Apache-2.0 */
/*
 * own.h - TCP segments of the comparator's own, in the primary's name: ACKs that were held back (ack.c), and the part of
 * a held frame that both VMs have said (part.c). Each is made from the header of a frame of the primary's.
 */
#ifndef COLO_OWN_H
#define COLO_OWN_H

#include "core.h"

enum {
    COLO_TCP_MIN_LEN = 20,
    COLO_TCP_AT_SEQ = 4,
    COLO_TCP_AT_ACK = 8,
    COLO_TCP_AT_DATA_OFFSET = 12,
    COLO_TCP_AT_FLAGS = 13,
    COLO_TCP_AT_CSUM = 16,
    COLO_TCP_AT_URGENT = 18,
};

enum { COLO_OPTION_SACK = 5, COLO_OPTION_TIMESTAMPS = 8, COLO_OPTIONS_MAX = 40 };

/* The payload that fits into a frame of our own behind any header. */
enum { COLO_OWN_BODY_MAX = COLO_EMIT_MAX - COLO_DEBT_BYTES - COLO_OPTIONS_MAX };

struct colo_bytes {
    const uint8_t *data; /* NULL: none */
    uint32_t len;
};

struct colo_own {
    const struct colo_debt *header;
    int64_t off;            /* where it stands in the primary's stream */
    int64_t ack;
    struct colo_bytes sack; /* a whole option */
    struct colo_bytes body; /* COLO_OWN_BODY_MAX bytes at most */
    uint8_t reason;         /* enum colo_reason */
};

/* A segment's option of that kind, its kind and length bytes included; none: it has none. */
struct colo_bytes colo_own_option(const uint8_t *tcp, uint8_t kind);
/* Its ACK number may be another, and its header may serve for one of ours: no SYN, no RST, nothing signed. */
bool colo_own_may_alter(const struct colo_rec *rec);
/* Of a frame that may be altered. */
void colo_own_take_header(struct colo_debt *header, const struct colo_rec *rec);
/* Queues the segment for the client; false: no memory. */
bool colo_own_emit(colo_comparator *c, const struct colo_flow *flow, const struct colo_own *own);

#endif
