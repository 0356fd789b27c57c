/* SPDX-License-Identifier: Apache-2.0 */
/*
 * speaker.h - one VM's output: batches of frames for one socket, made along the plan.
 *
 * A batch is written when the one before it has wholly been handed to the kernel, so the buffer begins at 0 each time
 * and its bytes are still in the cache when send() copies them.
 *
 * A secondary that says what the primary says, in the same segments and at the same time, is given the primary's batch
 * itself (`echoes`): made once, sent twice.
 */
#ifndef COLO_TRAFFIC_SPEAKER_H
#define COLO_TRAFFIC_SPEAKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "plan.h"
#include "sample.h"
#include "traffic.h"
#include "wire.h"

enum { COLO_SPEAKER_NOTES = 4096, COLO_SPEAKER_LATE = 4096 };

/* The sample whose frame ends at this byte of the batch. */
struct colo_speaker_note {
    uint32_t end;
    struct colo_sample *sample;
};

/* A segment of the secondary's that was left out, and comes at `due`. */
struct colo_speaker_late {
    int64_t due;
    uint64_t offset;
    uint32_t flow, len;
};

struct colo_speaker {
    int fd;
    int side;      /* enum colo_side */
    uint32_t cut;  /* payload bytes of a segment */
    uint32_t turn;
    uint32_t loss_ppm, divergence_ppm;
    int64_t loss_delay;
    uint32_t random;

    const struct colo_wire *wire;
    const struct colo_plan *plan;
    struct colo_samples *samples;
    const struct colo_speaker *echoes; /* secondary: the primary, or NULL */
    uint64_t batches;                  /* how many there have been */
    uint64_t sample_every; /* primary: bytes of the plan from one sample to the next; 0: none */
    uint64_t next_sample;  /* primary: the plan's byte; secondary: the sample's number */

    struct colo_cursor cursor; /* behind the batch */
    uint8_t *batch;            /* the primary's, of one that echoes */
    uint32_t built, sent;      /* bytes of the batch */
    struct colo_cursor begun;  /* where the batch begins */
    struct colo_traffic_sent of_batch;
    uint32_t notes, noted; /* of the batch; of these, how many are through */
    struct colo_speaker_note note[COLO_SPEAKER_NOTES];

    struct colo_speaker_late *late; /* ring of COLO_SPEAKER_LATE; secondary with loss only */
    uint32_t late_first, late_count;

    struct colo_traffic_sent total; /* of whole batches */
    uint64_t lost_late, diverged;
};

/* `side` is zeroed. The pointers it is given must outlive it. `echoes`: see above. */
int colo_speaker_init(struct colo_speaker *side, const struct colo_traffic_config *config, int which, int fd,
                   const struct colo_wire *wire, const struct colo_plan *plan, struct colo_samples *samples,
                      const struct colo_speaker *echoes);
void colo_speaker_clear(struct colo_speaker *side);

/* Writes a batch, if none is under way: up to the plan's byte `limit`, cutting short there only if `last`. */
void colo_speaker_build(struct colo_speaker *side, uint64_t limit, bool last, int64_t now);

/* Hands on what is left of the batch: bytes taken, 0: the socket is full; or COLO_ERR_SYSTEM. */
int colo_speaker_send(struct colo_speaker *side);

/* Stamps the samples that the last send took. */
void colo_speaker_stamp(struct colo_speaker *side, int64_t now);

static inline bool colo_speaker_idle(const struct colo_speaker *side)
{
    return side->sent == side->built;
}

/* Where the first frame begins that is not wholly with the kernel. */
struct colo_cursor colo_speaker_handed(const struct colo_speaker *side);

/*
 * A checkpoint made this VM the other one's copy: it goes on at `to`. Of its batch only the frame that is partly
 * with the kernel remains.
 */
void colo_speaker_become(struct colo_speaker *side, const struct colo_cursor *to);

#endif
