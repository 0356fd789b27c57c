/* SPDX-License-Identifier: Apache-2.0 */
/*
 * outlet.h - outdev: carries out RELEASE and EMIT, writes, and survives the loss of its peer.
 *
 * A released frame goes out from the slab it came in, behind the words that it came with; a lowered ACK number is written into it there. A frame of the
 * comparator's own is copied to a small slab. Without a peer the frames wait; colo_outlet_full tells the inputs to
 * wait as well, from config max_out_bytes on until half of that has gone.
 *
 * The lease is the time until which frames may leave. From then on they wait as they do without a peer; a later lease
 * lets them go. It is asked before each write, by a clock that is read then: a process that was stopped between two
 * looks at the clock must not write by the earlier one.
 */
#ifndef COLO_OUTLET_H
#define COLO_OUTLET_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "coloproxy.h"
#include "outq.h"
#include "slab.h"

struct colo_outlet {
    int fd; /* -1: no peer */
    bool vnet_hdr;
    uint64_t max_bytes;
    bool full;
    struct colo_outq queue;
    struct colo_slab_pool *pool;    /* of the inputs' slabs */
    struct colo_slab_pool own_pool; /* of emitted frames */
    struct colo_slab *own;          /* being filled */
    uint32_t own_fill;
    struct colo_outq_written written;
    uint64_t bytes_read;
    _Atomic int64_t lease; /* ns, CLOCK_MONOTONIC; INT64_MAX: for ever. Set by any thread */
};

/* COLO_ERR_NOMEM or 0. */
int colo_outlet_init(struct colo_outlet *o, struct colo_slab_pool *pool, const struct colo_engine_config *config);
void colo_outlet_fini(struct colo_outlet *o);

void colo_outlet_attach(struct colo_outlet *o, int fd);
/* Closes the socket; the frame that was cut is sent again to the next peer. */
void colo_outlet_detach(struct colo_outlet *o);

/* Queue for writing. COLO_ERR_NOMEM or 0. */
int colo_outlet_release(struct colo_outlet *o, const struct colo_action *action);
int colo_outlet_emit(struct colo_outlet *o, const struct colo_action *action);

/* Frames wait, and the lease is over. */
bool colo_outlet_is_held(const struct colo_outlet *o);
/* COLO_ERR_SYSTEM with errno: the peer is lost (the caller detaches). */
int colo_outlet_flush(struct colo_outlet *o);
/* outdev sends nothing: reads away what it sends all the same. False: it has closed; *error 0 or an errno. */
bool colo_outlet_listen(struct colo_outlet *o, int *error);

/* Too much waits: release no more if it can be helped. */
bool colo_outlet_full(struct colo_outlet *o);

#endif
