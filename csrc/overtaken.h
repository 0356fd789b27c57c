/* SPDX-License-Identifier: Apache-2.0 */
/*
 * overtaken.h - flows in which the secondary has gone on beyond what the primary waits for, by age: the oldest is all
 * that a time-out needs to look at. There is a list for datagrams and one for streams (gap.c); a flow is in one at most.
 */
#ifndef COLO_OVERTAKEN_H
#define COLO_OVERTAKEN_H

#include "flow.h"

struct colo_overtaken {
    struct colo_flow *oldest;
    struct colo_flow *newest;
};

/* The flow's window begins, or begins anew. `now` is not before that of the flows in the list. */
void colo_overtaken_add(struct colo_overtaken *list, struct colo_flow *flow, int64_t now);
/* A flow in no list stays so. */
void colo_overtaken_remove(struct colo_overtaken *list, struct colo_flow *flow);
void colo_overtaken_clear(struct colo_overtaken *list);

#endif
