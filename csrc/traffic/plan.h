/* SPDX-License-Identifier: Apache-2.0 */
/*
 * plan.h - the order in which the flows' bytes are said, as one line: burst after burst of burst x length bytes.
 *
 * Bursts go round the flows in turn, so where a place on the line lies in which stream is arithmetic. With responses
 * to requests it is not: there a burst is one segment, a flow's next comes when its client has thought, and a ring of
 * the newest `flows` bursts (there are never more under way) remembers their flows.
 */
#ifndef COLO_TRAFFIC_PLAN_H
#define COLO_TRAFFIC_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct colo_plan_burst {
    uint32_t flow;
    uint32_t round; /* how many bursts this flow had before */
};

struct colo_plan {
    uint32_t flows;
    uint32_t burst_bytes;
    bool opens;                    /* a flow's first burst begins with a SYN-ACK */
    struct colo_plan_burst *asked; /* responses: ring of `asked_cap` (a power of two); else NULL */
    size_t asked_cap;
    uint64_t bursts;               /* responses: how many there have been */
};

/* A place on the line. */
struct colo_cursor {
    uint64_t x;         /* bytes from the beginning */
    uint64_t burst;     /* number of the burst, not with responses */
    uint64_t offset;    /* in the flow's stream */
    uint32_t flow;
    uint32_t in_burst;  /* bytes of the burst before it; burst_bytes: the next burst's flow is not known yet */
    uint32_t phase;     /* offset % COLO_PATTERN_PERIOD */
    bool opening;       /* a SYN-ACK is due first */
};

/* `responses`: bursts are appended by colo_plan_ask(). */
int colo_plan_init(struct colo_plan *plan, uint32_t flows, uint32_t burst_bytes, bool opens, bool responses);
void colo_plan_clear(struct colo_plan *plan);

/* Responses: the next burst is this flow's, for the round'th time. */
void colo_plan_ask(struct colo_plan *plan, uint32_t flow, uint32_t round);

/* To x, which with responses may not lie more than `flows` bursts back. */
void colo_plan_seek(const struct colo_plan *plan, struct colo_cursor *c, uint64_t x);

/* Past `len` bytes, which end in the cursor's burst. */
void colo_plan_advance(const struct colo_plan *plan, struct colo_cursor *c, uint32_t len);

/* Bytes of the plan that are known: all that there can be, or those asked for. */
uint64_t colo_plan_known(const struct colo_plan *plan);

#endif
