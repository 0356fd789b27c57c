/* SPDX-License-Identifier: Apache-2.0 */
/*
 * flow.h - what the comparator knows of one flow (one direction: VM to client), and the table of all flows.
 */
#ifndef COLO_FLOW_H
#define COLO_FLOW_H

#include <string.h>

#include "rec.h"

enum { COLO_OOO_RANGES = 4, COLO_URGENT_MARKS = 4 };

struct colo_range {
    int64_t start;
    int64_t end;
};

/*
 * A header kept so that an ACK number that was held back can be sent later. The client has been told less than the
 * primary acknowledged: a debt.
 */
enum { COLO_DEBT_BYTES = 232 };

struct colo_debt {
    struct colo_debt *next;
    struct colo_debt *prev;
    struct colo_flow *flow;
    int64_t since;
    uint16_t len;      /* of head: up to and with the TCP header */
    uint16_t l3;
    uint16_t l4;
    uint8_t vnet_len;
    uint8_t head[COLO_DEBT_BYTES];
};

/* How the secondary's sequence numbers are to be read. */
enum colo_numbering {
    COLO_NUMBERS_UNKNOWN = 0,
    COLO_NUMBERS_PRIMARY = 1, /* as the primary's: after a checkpoint, or translated by a rewriter */
    COLO_NUMBERS_OWN = 2,     /* relative to its own initial sequence number */
};

struct colo_tcp {
    /* Eight bytes that quick.c reads as one. */
    uint8_t p_known;       /* p_base is valid */
    uint8_t p_acked;       /* p_ack is valid */
    uint8_t s_acked;       /* s_ack is valid */
    uint8_t told_known;    /* told is valid */
    uint8_t met_by_reset;  /* p_base was an RST's: not to be relied on beyond this epoch */
    uint8_t awaits_s_syn;  /* the secondary's frames are the old connection's until its own new SYN */
    uint8_t s_urgents;     /* how many of s_urgent are valid */
    uint8_t ranges;        /* how many of `range` are in use */
    uint32_t p_base;       /* sequence number of offset 0: the primary's ISN, or the first number met */
    uint32_t s_base;       /* the same of the secondary's own numbers */
    uint32_t ack_base;     /* ACK number of ACK offset 0 */
    uint32_t rst_seq;      /* of the secondary's last RST */
    uint32_t rst_ack;
    uint32_t s_echo;       /* the client's timestamp that the secondary echoed last */
    uint32_t p_urgent;     /* the primary's last urgent mark: the low 32 bits of the offset it points at (RFC 6093) */
    uint32_t s_urgent[COLO_URGENT_MARKS]; /* the secondary's last ones in this epoch, and the committed one */
    uint8_t p_urged;       /* p_urgent is valid */
    uint8_t s_echo_known;
    uint32_t old_s_isn;    /* of the connection before this one */
    uint8_t old_s_known;
    uint8_t s_left;        /* diverged, and the secondary speaks of its next connection already */
    uint8_t rst_flags;
    uint8_t p_syn;         /* p_base is an ISN: offset 0 is the SYN */
    uint8_t mid_stream;    /* ... is but the first number met, in this epoch: what lies before it is unknown */
    uint8_t s_own;         /* s_base is valid */
    uint8_t s_syn;         /* ... and is an ISN */
    uint8_t numbering;     /* enum colo_numbering */
    uint8_t ack_known;     /* ack_base is valid */
    uint8_t rst_seen;      /* the secondary sent an RST in this epoch */
    uint8_t rst_spare;     /* further ones that have not served yet */
    uint8_t rst_matched;   /* ... and so did the primary */
    uint8_t unsure;        /* to be forgotten with this epoch: what the primary had sent at its end isn't known */
    int64_t origin;        /* offset of the first payload byte, for people */
    int64_t match;         /* all before this offset is matched or committed */
    int64_t p_high;        /* end of what the primary has sent */
    int64_t s_high;        /* end of what the secondary has sent in this epoch */
    int64_t out_high;      /* end of what has been released */
    int64_t p_ack;         /* highest ACK offset of the primary */
    int64_t s_ack;         /* highest of the secondary, in this epoch or committed */
    int64_t told;          /* highest released to the client */
    struct colo_range range[COLO_OOO_RANGES]; /* matched beyond `match`, sorted, apart */
    struct colo_rec *first_data;  /* first held primary frame that has a range */
    struct colo_rec *rst_rec;     /* the secondary's RST while unmatched */
    struct colo_debt *debt;
    struct colo_list unplaced;    /* secondary frames that wait for the primary's first frame or new SYN */
    struct colo_list later;       /* primary frames from a new SYN on, while older ones are held */
    int64_t gap_at;               /* the flow is in the list of gaps: `match` when it came in */
};

struct colo_datagrams {
    uint32_t matched;             /* held frames that are matched and wait for an earlier one */
};

/*
 * What would be lost with an idle flow, and so the order in which they make room.
 *
 * Whoever sends SYNs makes FRESH flows, whoever sends datagrams SPARE ones; to make one LIVE takes a handshake. So
 * LIVE flows have seven eighths of the table for themselves: within that share no newcomer pushes one out, only a flow
 * that becomes LIVE while the share is full. What is left is for all others, so that they always have a place too.
 */
enum colo_standing {
    COLO_SPARE = 0, /* nothing: not TCP, or the primary has closed or reset the connection */
    COLO_FRESH = 1, /* little: of a TCP connection the primary has sent no more than its SYN or SYN-ACK */
    COLO_LIVE = 2,  /* the place in both streams: the flow would be met again in mid-stream */
    COLO_STANDINGS = 3,
};

struct colo_flow {
    struct colo_flow_id id;
    uint8_t used;          /* for the table: touched since the clock's hand passed */
    uint8_t standing;      /* enum colo_standing; changed by colo_table_set_standing only */
    uint8_t diverged;      /* waits for the next commit */
    uint32_t index;        /* in the table */
    uint32_t next, prev;   /* for the table: of the same standing */
    uint32_t held[2];      /* frames inside, by side */
    uint64_t held_bytes[2];
    uint64_t hash;
    uint64_t epoch;        /* of the state below; older: colo_flow_refresh comes first */
    struct colo_list p;    /* held primary frames, in order of arrival */
    struct colo_list s;    /* unmatched secondary frames; TCP: by offset, else by arrival */
    union {
        struct colo_tcp tcp;
        struct colo_datagrams dg;
    } u;
    int64_t overtaken_since;           /* of this and the next: overtaken.h; 0: in no list */
    struct colo_flow *overtaken_next;
    struct colo_flow *overtaken_prev;
};

_Static_assert(sizeof(struct colo_flow_id) == 48, "whole words, and no padding");

/* Ids are compared for each frame: as words, for gcc makes a call of memcmp. */
static inline bool colo_flow_id_equal(const struct colo_flow_id *a, const struct colo_flow_id *b)
{
    const size_t size = sizeof *a;
    uint64_t differ = 0, x, y;

    for (size_t at = 0; at < size; at += 8) {
        memcpy(&x, (const char *)a + at, sizeof x);
        memcpy(&y, (const char *)b + at, sizeof y);
        differ |= x ^ y;
    }
    return !differ;
}

struct colo_table;

struct colo_table *colo_table_create(uint32_t max_flows, uint64_t seed);
void colo_table_destroy(struct colo_table *table);
/* The flow, or NULL. */
struct colo_flow *colo_table_find(struct colo_table *table, const struct colo_flow_id *id);
/* The same in steps, for one who knows early which flows he will want: hash, fetch the slot, fetch the flow, find. */
uint64_t colo_table_hash(const struct colo_table *table, const struct colo_flow_id *id);
void colo_table_fetch_slot(const struct colo_table *table, uint64_t hash);
void colo_table_fetch_flow(const struct colo_table *table, uint64_t hash);
struct colo_flow *colo_table_find_hashed(struct colo_table *table, const struct colo_flow_id *id, uint64_t hash);
/*
 * A new, zeroed flow with id, hash, index and standing set. When the table is full an idle flow (nothing held, no
 * debt) makes room, by standing; none that has diverged in this epoch; among LIVE ones one not used lately, among others the oldest. NULL: none may, or memory is out.
 */
struct colo_flow *colo_table_add(struct colo_table *table, const struct colo_flow_id *id);
/* May evict an idle flow (not this one) that is LIVE, where this one becomes the one too many of them. */
void colo_table_set_standing(struct colo_table *table, struct colo_flow *flow, uint8_t standing);
/* The epoch in which a flow's divergence counts. */
void colo_table_set_epoch(struct colo_table *table, uint64_t epoch);
/* Where it stands how many have been evicted so far; for as long as the table lives. */
const uint64_t *colo_table_evictions(const struct colo_table *table);
void colo_table_clear(struct colo_table *table);
uint32_t colo_table_count(const struct colo_table *table);

#endif
