/* SPDX-License-Identifier: Apache-2.0 */
/*
 * input.h - one receiving socket: from bytes in slabs to frames ready to be fed.
 *
 * Reading and cutting into frames are separate steps, for frames may have to wait unfed between them (gate.h). A read
 * happens only when all whole frames of the last one were fed, so all frames here share one time: that of the read.
 * The last bytes of a slab, an incomplete frame, move to the next slab. What was read before a connection ended stays
 * good; a new connection may be attached at once, but is read only after that.
 */
#ifndef COLO_INPUT_H
#define COLO_INPUT_H

#include <stdbool.h>
#include <stdint.h>

#include "coloproxy.h"
#include "framing.h"
#include "slab.h"

enum { COLO_INPUT_BATCH = 64 };

struct colo_input {
    struct colo_slab_pool *pool;
    uint8_t side; /* enum colo_side: the same number as its enum colo_port */
    bool vnet_hdr;
    uint8_t nics; /* see framing.h */
    uint32_t max_frame;
    int fd; /* -1: no peer */
    struct colo_framing framing;
    struct colo_slab *slab;   /* read into at `fill`, cut up from `start` on; NULL: none yet */
    uint32_t start, fill;
    uint32_t last;            /* bytes of the frame that was cut last, words included */
    bool ended;               /* what lies in the slab is the end of a connection that is gone */
    bool scanned;             /* no whole frame is left between start and fill */
    int64_t time;             /* of the read */
    struct colo_frame frames[COLO_INPUT_BATCH]; /* cut, not yet fed: [first, first + count) */
    uint32_t first, count;
};

void colo_input_init(struct colo_input *in, struct colo_slab_pool *pool, int side,
                     const struct colo_engine_config *config);
/* Closes the socket, gives all slabs back. */
void colo_input_fini(struct colo_input *in);

/* A new peer; there must be none (fd == -1). */
void colo_input_attach(struct colo_input *in, int fd);
/* Closes the socket. Whole frames that were read stay. */
void colo_input_detach(struct colo_input *in);

/* Frames wait to be fed, cut or uncut. */
bool colo_input_waits(const struct colo_input *in);

/*
 * Makes room for a read; false when slabs are exhausted. Only when nothing waits. `forced`: see colo_slab_take.
 */
bool colo_input_prepare(struct colo_input *in, bool forced);

/*
 * One read of about `most` bytes at most, after a successful colo_input_prepare. Returns the bytes read (the caller sets `time` with a clock it reads
 * afterwards), 0 when the peer has closed, COLO_ERR_SYSTEM with errno (EAGAIN: nothing there).
 */
long colo_input_read(struct colo_input *in, size_t most);

/* After a read that returned 0 or failed: sets the fault of a frame that was cut off, without taking any frame. */
struct colo_framing colo_input_verdict(const struct colo_input *in);

/*
 * Cuts the next frames if none are cut. Returns how many are; 0 may mean a framing fault of the connection that is
 * still attached: framing.fault. Each frame holds a reference to its slab.
 */
uint32_t colo_input_scan(struct colo_input *in);

/* The first `count` cut frames were handed to the comparator. */
void colo_input_taken(struct colo_input *in, uint32_t count);

/* Throws away all that waits; returns the number of frames. */
uint64_t colo_input_drop(struct colo_input *in);

#endif
