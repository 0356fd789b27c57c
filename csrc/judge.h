/* SPDX-License-Identifier: Apache-2.0 */
/*
 * judge.h - the engine's work on frames: feed the comparator, carry out its actions, keep the epochs apart.
 *
 * How an epoch is cut. The control plane hears of STOP and RESUME on QMP; the gate keeps frames that were read since
 * unjudged. So at each of its commands there are frames that wait, all of them read before the command.
 *
 *   stop    The secondary stood still before the primary did, so whatever of it can be read now is of the old epoch.
 *           It is read to the end and fed before the comparator hears of the stop. The command may come late, even
 *           after RESUME, so these frames bear the time at which QMP was last found silent, which is before any RESUME:
 *           by the time of their read they could pass for output of the new epoch (R3). What the comparator won't take
 *           is thrown away for the same reason. The primary's frames may be younger than a RESUME that is still
 *           unheard of: they are fed after the stop, and the comparator keeps them by the time of their read.
 *   commit  Frames of both sides that wait are fed first: the comparator, stopped, decides by their time. Fed later,
 *           secondary frames would count as the new epoch's whenever they were read; those it won't take are dropped.
 *
 * Slabs are a limit that the comparator doesn't know: a few small frames can hold many. When an input can get no slab
 * while the comparator holds frames, a LIMIT and a WANT_CHECKPOINT event are made here, once an epoch, with the cause
 * LIMIT_BYTES; a commit gives all slabs back.
 */
#ifndef COLO_JUDGE_H
#define COLO_JUDGE_H

#include <stdbool.h>
#include <stdint.h>

#include "clock.h"
#include "coloproxy.h"
#include "input.h"
#include "outlet.h"
#include "recorder.h"
#include "report.h"
#include "slab.h"

enum { COLO_JUDGE_STEP = 16 * 1024 };

struct colo_judge {
    colo_comparator *comparator;
    struct colo_slab_pool pool;
    struct colo_input inputs[2]; /* by enum colo_side */
    struct colo_outlet outlet;
    struct colo_report *report;
    struct colo_recorder *recorder; /* NULL: nothing is recorded */
    uint64_t inside;     /* frames that the comparator has */
    bool wanted;         /* a checkpoint, in this epoch; told */
    bool limit_told;     /* the engine's own, in this epoch */
    uint64_t committed_frames, committed_bytes; /* released by the commit in progress */
    int64_t quiet_at;    /* the last time at which frames were read and no QMP line had come since (no gate: always) */
    uint64_t reads;      /* system calls */
    uint64_t bytes_read[2];
    int error;           /* an errno that ends the engine */
};

/* On a zeroed judge. COLO_ERR_NOMEM, COLO_ERR_MISUSE (of the comparator's config) or 0; after any, call fini. */
int colo_judge_init(struct colo_judge *j, const struct colo_engine_config *config, struct colo_report *report);
void colo_judge_fini(struct colo_judge *j);

/* Nothing keeps this input from being read (but its gate and its peer's silence): a slab is there, nothing waits. */
bool colo_judge_may_read(struct colo_judge *j, int side);

/* By how many held bytes that side is ahead of the other; negative: it is behind. Less than COLO_JUDGE_STEP is in step. */
int64_t colo_judge_lead(const struct colo_judge *j, int side);

/*
 * One read, of about `most` bytes at most. What comes next is to be stamped by the caller. False: the peer is gone,
 * *error is 0 or an errno.
 */
bool colo_judge_read(struct colo_judge *j, int side, size_t most, int *error);

/* Feeds all that waits, as far as the comparator takes it, and carries out what follows. */
void colo_judge_feed(struct colo_judge *j);
/* Lets the comparator's clock run to `now`. */
void colo_judge_tick(struct colo_judge *j, int64_t now);
/* Hands its events on. */
void colo_judge_events(struct colo_judge *j);
/* An input can get no slab: says so if a checkpoint helps. */
void colo_judge_out_of_slabs(struct colo_judge *j, int64_t now);

void colo_judge_stop(struct colo_judge *j);
void colo_judge_commit(struct colo_judge *j, int64_t resumed);
void colo_judge_abort(struct colo_judge *j);
void colo_judge_alone(struct colo_judge *j);
/* The last call: what is still held or waits goes to the recording, and nowhere else. */
void colo_judge_end_recording(struct colo_judge *j);

#endif
