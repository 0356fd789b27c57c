/* SPDX-License-Identifier: Apache-2.0 */
/*
 * outq.h - released frames, in order, on their way to outdev.
 *
 * An entry is a range of a slab, words of the framing included; frames released one after the other that lie side by
 * side become one range, so that a burst that came in whole goes out as one iovec. When the peer is lost in the
 * middle of a frame, the next one gets that frame from its start: a new connection is new framing. Frames that were
 * written whole to the old one are gone with it, as on any link that breaks.
 */
#ifndef COLO_OUTQ_H
#define COLO_OUTQ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "slab.h"

struct colo_outq_entry {
    struct colo_slab_pool *pool;
    struct colo_slab *slab;
    uint32_t from, to; /* of slab->data */
    uint32_t frames;   /* in it, each with a reference to the slab */
};

struct colo_outq {
    bool vnet_hdr;
    struct colo_outq_entry *ring; /* `cap` entries, a power of two */
    uint32_t cap, head, count;
    uint32_t sent;  /* bytes of the first entry that are written */
    uint64_t bytes; /* that wait */
};

void colo_outq_init(struct colo_outq *q, bool vnet_hdr);
/* Gives up the frames that wait. */
void colo_outq_fini(struct colo_outq *q);

/*
 * Queues the frame slab->data[from..to) and takes over one reference to the slab.
 * COLO_ERR_NOMEM: the queue could not grow, the reference stays the caller's.
 */
int colo_outq_push(struct colo_outq *q, struct colo_slab_pool *pool, struct colo_slab *slab, uint32_t from,
                   uint32_t to);

struct colo_outq_written {
    uint64_t bytes;
    uint64_t calls;
};

/*
 * Writes to the non-blocking socket `fd` until all is written, the socket is full, or it was enough for one turn.
 * Adds to *written. COLO_ERR_SYSTEM with errno when the connection is broken; else 0, and q->bytes tells what waits.
 */
int colo_outq_flush(struct colo_outq *q, int fd, struct colo_outq_written *written);

/* The peer is lost: the frame that was cut begins anew. */
void colo_outq_rewind(struct colo_outq *q);

#endif
