/* SPDX-License-Identifier: Apache-2.0 */
/*
 * link.h - the protocol between the two coloproxies of a pair, sans-I/O. docs/link.md has it byte by byte.
 *
 * One connection carries records. The sequenced ones (all that the enum below names) make up one stream of bytes for
 * each direction, which outlives connections: the sender keeps what the peer has not acknowledged, and a new connection
 * goes on at the byte that the peer asks for. Where that byte is kept no more there is a gap: both sides are told, and
 * start anew with streams at 0. Acknowledgements and keepalives go between records and belong to no stream.
 *
 * The link knows no socket and no clock. Who has the right to connect, and TLS, are settled before it is told of a
 * connection (tls.h, coloproxy/path/session.py).
 */
#ifndef COLO_LINK_H
#define COLO_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coloproxy.h"

/* cffi:begin */

typedef struct colo_link colo_link;

enum colo_link_type {
    COLO_LINK_MIRROR = 1,  /* P to S: a frame that came from the client side */
    COLO_LINK_OUTPUT = 2,  /* S to P: a frame of the secondary VM's, rewritten */
    COLO_LINK_LEARN = 3,   /* P to S: a frame with SYN that the primary VM sent and that is about to be released */
    COLO_LINK_MARK = 4,    /* both: where the stream is cut into epochs, see route.h */
    COLO_LINK_CONTROL = 5, /* both: of the control planes, JSON */
    COLO_LINK_INHERIT = 6, /* P to S: connections that the primary's VM has inherited, see inherit.h */
};

struct colo_link_record {
    uint8_t type;          /* enum colo_link_type */
    uint8_t nic;           /* index of the NIC; 0 for MARK, CONTROL and INHERIT */
    uint8_t vnet_len;      /* of a frame's virtio-net header: 0, 10 or 12 */
    uint32_t len;          /* of data */
    const uint8_t *data;
};

struct colo_link_config {
    uint64_t send_bytes;   /* kept for the peer: unsent and unacknowledged; 32 MiB */
    uint32_t max_record;   /* longest payload accepted or sent; 69,632 + 64 */
    int64_t keepalive;     /* ns of silence in our sending after which a ping goes out; 250 ms */
    int64_t timeout;       /* ns without a byte from the peer after which the connection counts as dead; 3 s */
};

struct colo_link_counters {
    uint64_t sent_records, sent_bytes;          /* sequenced; framing included */
    uint64_t received_records, received_bytes;
    uint64_t acked_bytes;                       /* of sent_bytes, by the peer */
    uint64_t queued_bytes;                      /* now: not yet acknowledged */
    uint64_t refused;                           /* pushes that found no room */
    uint64_t resumed;                           /* connections that went on without loss */
    uint64_t gaps;                              /* restarts of streams that had begun */
    int64_t rtt;                                /* ns of the last ping, -1: none yet */
    int64_t rtt_min;
};

void colo_link_config_default(struct colo_link_config *config);
colo_link *colo_link_create(const struct colo_link_config *config); /* NULL: no memory, or no sense */
void colo_link_destroy(colo_link *l);

/*
 * The stream that we have received: its next byte, which is what the peer must go on with. In the hello of a new
 * connection, together with the session's name, so that another session's streams are never mistaken for this one's.
 */
uint64_t colo_link_received(const colo_link *l);

/* Whether a peer that asks to go on at byte `from` can be served without loss. */
bool colo_link_can_resume(const colo_link *l, uint64_t from);
/* A connection is there and the peer asks for byte `from` on: LIMIT when that is kept no more (nothing changes). */
int colo_link_connect(colo_link *l, uint64_t from, int64_t now);
/* It is gone. What is unacknowledged stays; half a received record is forgotten. */
void colo_link_disconnect(colo_link *l);
/* New streams from 0 in both directions; what was kept is thrown away, a fault too. Not while connected: MISUSE. */
int colo_link_restart(colo_link *l);

/* Puts a record into the stream: copied. LIMIT: no room, or no memory (counted as refused); MISUSE: a wrong record. */
int colo_link_push(colo_link *l, const struct colo_link_record *record);
/* Bytes of payload that a push would take now, 0: none. */
size_t colo_link_room(const colo_link *l);

/*
 * Bytes for the connection, contiguous, 128 KiB at most; *data is valid until the next call. 0: nothing to say, or not
 * connected. `wrote`: so many of them are on their way. What was shown once and not written is shown again, with more
 * behind it perhaps: as a transport wants it after COLO_TRANSPORT_WRITE.
 */
size_t colo_link_output(colo_link *l, const uint8_t **data, int64_t now);
void colo_link_wrote(colo_link *l, size_t n);

/* Room for what comes from the connection: read into *data, then say how much by `got`. 0: take records first. */
size_t colo_link_input(colo_link *l, uint8_t **data);
void colo_link_got(colo_link *l, size_t n, int64_t now);
/*
 * The next record received: 1, 0: none is whole, or MISUSE: the peer broke the protocol (colo_link_fault says how), the
 * connection must be dropped and the session with it (restart). record->data is valid until the next call of next,
 * input or disconnect. A record counts as received, and will be acknowledged, when it has been handed out here.
 * Take records always, if only to throw them away: acknowledgements stand between them.
 */
int colo_link_next(colo_link *l, struct colo_link_record *record);
const char *colo_link_fault(const colo_link *l); /* NULL: none */

/* When `tick` (or `output`) wants to be called, INT64_MAX: never. */
int64_t colo_link_deadline(const colo_link *l);
/* true: the peer has been silent too long, drop the connection. Not while records of his wait here to be taken. */
bool colo_link_tick(colo_link *l, int64_t now);

void colo_link_counters_of(const colo_link *l, struct colo_link_counters *out);

/* cffi:end */

#endif
