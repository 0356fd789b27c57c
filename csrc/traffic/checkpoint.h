/* SPDX-License-Identifier: Apache-2.0 */
/*
 * checkpoint.h - what a checkpoint does to the two VMs.
 *
 * The comparator asks (DO_CHECKPOINT); from then on neither VM says anything new, though what was said is still handed
 * on. After checkpoint_pause the secondary is where the primary is, and COLO_CHECKPOINT is sent.
 */
#ifndef COLO_TRAFFIC_CHECKPOINT_H
#define COLO_TRAFFIC_CHECKPOINT_H

#include <stdint.h>

struct colo_traffic;

/* Reads notify_dev. An enum colo_traffic_end, 0: nothing ended. */
int colo_checkpoint_listen(struct colo_traffic *t, int64_t now);

/* The pause is over: to be called until it has ended the checkpoint (t->resume is 0). The same. */
int colo_checkpoint_finish(struct colo_traffic *t);

#endif
