/* SPDX-License-Identifier: Apache-2.0 */
/*
 * recorder.h - what the engine saw, on its way to a file: the engine's half, and a thread that writes.
 *
 * The data path must not feel it. A frame is not copied: a note of 96 bytes with a reference to its slab goes into a
 * ring of fixed size; the writer's thread, of the lowest priority, makes a block of it (recfile.c). The place of a
 * note is used again when the writer has passed it, and then the engine's thread drops the reference: slabs stay
 * confined to it. When the ring is full, or too many slabs are waited for, a frame is not recorded: that is counted,
 * and the next note says how many are missing. Nothing ever waits for the disk but the end.
 *
 * A frame is noted when its action is carried out. When it was fed, and as the how-manieth, is remembered by slab: one
 * entry for each batch, and the frame's ordinal in its batch is part of its cookie.
 */
#ifndef COLO_RECORDER_H
#define COLO_RECORDER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "coloproxy.h"
#include "recblock.h"
#include "recfile.h"
#include "recring.h"
#include "slab.h"

enum {
    COLO_NOTES = 1 << 15,
    COLO_DUMPS = 8, /* that the engine has not told of yet */
};

/* A batch of frames that were fed: where the first and the last lie in their slab. */
struct colo_fed {
    uint32_t first, last;
    uint32_t ordinal; /* of the first, in its cookie */
    uint64_t seq;     /* of the first */
    int64_t time;
};

struct colo_fed_list { /* of one slab, in the order of places */
    struct colo_fed *entries;
    uint32_t count, cap;
};

struct colo_recorder {
    /* Shared with the writer. `head` and `tail` run freely; a note is ring[i % COLO_NOTES]. */
    struct colo_note *ring;
    _Atomic uint32_t head; /* the engine's: notes before it are there to be written */
    _Atomic uint32_t tail; /* the writer's: notes before it are no longer needed */
    _Atomic bool sleeping;
    _Atomic bool ending;
    _Atomic int error;     /* an errno: the file is at its end */
    _Atomic uint64_t written, bytes, unfiled; /* unfiled: notes behind that end */
    _Atomic uint32_t files;
    _Atomic uint64_t ring_bytes;
    _Atomic uint32_t dumps, dumps_failed;
    struct colo_record_dump dumped[COLO_DUMPS];
    _Atomic uint32_t dumped_head; /* the writer's: so many have been tried */
    _Atomic uint32_t dumped_tail; /* the engine's: so many were told */
    int wake_fd, engine_fd;
    pthread_t thread;
    bool running;
    /* The writer's, while it runs. */
    uint32_t passed;
    struct colo_recblock block;
    struct colo_recfile file; /* without a path: none */
    struct colo_recring keep; /* without bytes: none */
    /* The engine's own. */
    struct colo_slab_pool *pool;
    bool vnet_hdr;
    uint32_t next, reclaimed; /* notes before `next` are made, before `reclaimed` free again */
    uint32_t max_slabs, slabs; /* with references of ours */
    uint32_t *slab_refs;       /* of ours, by slab index */
    struct colo_fed_list *fed; /* by slab index */
    uint64_t seq;              /* of the last thing fed */
    int64_t now;
    uint64_t epoch;
    uint32_t missing;          /* notes, since the last one that found a place */
    uint64_t lost[COLO_PORT_COUNT];
    bool told;                 /* the error */
    bool diverged;             /* in this epoch */
};

/*
 * Opens the first file and starts the writer. `engine_fd`: an eventfd that wakes the engine's thread when there is
 * something to tell, or -1. COLO_ERR_NOMEM, _MISUSE, _SYSTEM with errno (the file, the directory) or 0.
 */
int colo_recorder_create(struct colo_recorder **out, const struct colo_record_config *config,
                         const struct colo_engine_config *engine, struct colo_slab_pool *pool, int engine_fd);
/* Writes what was noted, closes the file, joins the writer, drops all references. NULL is fine. */
void colo_recorder_destroy(struct colo_recorder *r);
/* The first half of that: counters stay. Idempotent. */
void colo_recorder_finish(struct colo_recorder *r);

/* `count` frames, from the one with cookie `first` to `last` in one slab, were fed with time `time`. */
void colo_recorder_fed(struct colo_recorder *r, uint64_t first, uint64_t last, uint32_t count, int64_t time);
/* Something that is no frame was given to the comparator. `mark`: enum colo_record_mark. */
void colo_recorder_mark(struct colo_recorder *r, int mark, int64_t now, int64_t resumed);
/* An action is about to be carried out; its frame's ACK number is not yet lowered. */
void colo_recorder_action(struct colo_recorder *r, const struct colo_action *action, bool withheld);
/* A frame that was never fed is thrown away. */
void colo_recorder_dropped(struct colo_recorder *r, int side, uint64_t cookie, int64_t time);
/* The VMs differ since `time`: the ring is written to a file when this epoch has ended. Once an epoch. */
void colo_recorder_diverged(struct colo_recorder *r, int64_t time);
/* The epoch has ended, and the actions that follow from it were noted. */
void colo_recorder_settled(struct colo_recorder *r);
/* A file for a divergence that was not told of yet. */
bool colo_recorder_dumped(struct colo_recorder *r, struct colo_record_dump *out);
/* Hands what was noted to the writer, and takes back what it has passed. After the actions were carried out. */
void colo_recorder_publish(struct colo_recorder *r);
void colo_recorder_counters(const struct colo_recorder *r, struct colo_engine_counters *out);

#endif
