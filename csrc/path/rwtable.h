/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rwtable.h - the rewriter's flows and their table.
 *
 * When the table is full a closed flow makes room, the one not used for longest, else such a half-open one. Flows that
 * the client has answered never do: whoever sends SYNs can't push them out.
 */
#ifndef COLO_RWTABLE_H
#define COLO_RWTABLE_H

#include <stdbool.h>
#include <stdint.h>

/* No padding, unused bytes 0: compared and hashed as a whole. */
struct colo_rwkey {
    uint8_t nic;
    uint8_t family;
    uint8_t vlan_count;
    uint8_t zero;
    uint16_t vlan[2];
    uint16_t sport;  /* of the VM */
    uint16_t dport;  /* of the client */
    uint8_t src[16]; /* of the VM */
    uint8_t dst[16];
};

enum colo_rwstanding {
    COLO_RW_CLOSED = 0, /* both directions are closed, or it was reset: kept for retransmissions */
    COLO_RW_HALF = 1,   /* the client has not answered the VM's SYN or SYN-ACK yet */
    COLO_RW_LIVE = 2,
    COLO_RW_STANDINGS = 3,
};

/* The last SYN or SYN-ACK of one of the two VMs. */
struct colo_rwsyn {
    bool seen;
    bool active;     /* was sent without ACK: the VM opens the connection */
    bool acked;      /* `ack` is valid */
    bool has_ts;
    uint8_t wscale;  /* 255: absent */
    bool used;       /* of the primary's: has given a shift ... */
    uint32_t used_by; /* ... to the secondary's SYN of this number */
    uint32_t isn;
    uint32_t ack;    /* the client's initial number + 1 */
    uint32_t tsval;  /* of the first of them, when it is sent again */
    int64_t at;
};

struct colo_rwflow {
    struct colo_rwkey key;
    uint32_t index, next, prev; /* for the table; links are index + 1 */
    uint64_t hash;
    uint8_t standing;           /* enum colo_rwstanding; changed by colo_rwtable_stand only */
    int64_t used_at;

    struct colo_rwsyn p, p_before, s; /* s: of the connection that the secondary VM speaks of now; p may be ahead */

    /* The shift, and what else goes with it: of s's connection. */
    bool known;
    bool ts_known;
    bool ts_floored;     /* since the takeover the timestamps have been looked at */
    bool is_signed;      /* the VM signs its segments */
    bool unscaled;       /* the peer's SYN-ACK refused window scaling */
    uint8_t p_wscale;    /* the option of the primary's SYN, 255: absent */
    uint8_t p_scale, s_scale; /* what it means */
    uint32_t seq_shift;  /* the primary's number less the secondary's */
    uint32_t ts_shift;
    uint32_t p_ts;       /* the client knows of this TSval of the primary's ... */
    int64_t p_ts_at;     /* ... since then */
    uint32_t s_ts;       /* last TSval of the secondary's, in its own numbers */

    /* How far the connection has come. "s" numbers are the secondary's own. */
    uint32_t s_next;     /* behind the last byte that the secondary VM sent */
    bool s_beyond;       /* it has sent more than its SYN or SYN-ACK */
    bool answered;       /* the client has acknowledged the VM's SYN */
    bool s_acks;         /* s_ack is valid */
    uint32_t s_ack;      /* highest number of the client's that it acknowledged */
    bool c_acks;         /* c_ack is valid */
    uint32_t c_ack;      /* highest number that the client acknowledged: the primary's */
    uint32_t c_window;   /* bytes, at most */
    bool c_scaled;       /* c_scale is known */
    uint8_t c_scale;
    uint32_t c_next;     /* behind the last byte that the client sent; not before s_ack */
    bool s_fin, c_fin;   /* seen, and the numbers behind them: */
    uint32_t s_fin_end, c_fin_end;
    bool s_fin_acked, c_fin_acked;
    bool reset;          /* closed by an RST: any other output of the VM's shows that it was not */

    /* Of one that was imported (rwinherit.h): how far it has come is not in the import, for that goes out of date. */
    bool inherited;
    bool unplaced;       /* the VM has not spoken yet: s_next and s_ts are not known */
    bool unproven;       /* nothing has shown yet that the connection still is the one with this shift */
};

struct colo_rwtable;

struct colo_rwtable *colo_rwtable_create(uint32_t max_flows, uint64_t seed);
void colo_rwtable_destroy(struct colo_rwtable *t);
/* NULL: none. */
struct colo_rwflow *colo_rwtable_find(struct colo_rwtable *t, const struct colo_rwkey *key);
/* A new one, zeroed and HALF; the key is not in the table yet. NULL: no room. */
struct colo_rwflow *colo_rwtable_add(struct colo_rwtable *t, const struct colo_rwkey *key);
void colo_rwtable_remove(struct colo_rwtable *t, struct colo_rwflow *flow);
/* Makes it equal to another one, but for its key and what is the table's own. */
void colo_rwtable_fill(struct colo_rwflow *flow, const struct colo_rwflow *from);
/* Changes its standing if it is another one; in either case it is the one used last among its like. */
void colo_rwtable_stand(struct colo_rwtable *t, struct colo_rwflow *flow, uint8_t standing);
/* The one of this standing that was not used for longest, or NULL. */
struct colo_rwflow *colo_rwtable_oldest(struct colo_rwtable *t, uint8_t standing);
/* Removes one that may make room; false: there is none. */
bool colo_rwtable_evict(struct colo_rwtable *t);
/* To go through all: place 0 to colo_rwtable_places() - 1, NULL where there is none. A removal may move others. */
uint32_t colo_rwtable_places(const struct colo_rwtable *t);
struct colo_rwflow *colo_rwtable_at(const struct colo_rwtable *t, uint32_t place);
void colo_rwtable_clear(struct colo_rwtable *t);
uint32_t colo_rwtable_count(const struct colo_rwtable *t);
uint64_t colo_rwtable_evicted(const struct colo_rwtable *t);

#endif
