/* SPDX-License-Identifier: Apache-2.0 */
/*
 * recblock.h - a note of what the engine saw becomes blocks of a pcapng file; docs/recording.md has the format.
 */
#ifndef COLO_RECBLOCK_H
#define COLO_RECBLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coloproxy.h"

enum colo_note_kind {
    COLO_NOTE_RELEASED,
    COLO_NOTE_DISCARDED,
    COLO_NOTE_WITHHELD, /* held at the end */
    COLO_NOTE_DROPPED,  /* never fed */
    COLO_NOTE_EMITTED,
    COLO_NOTE_MARK,
    COLO_NOTE_DIVERGED, /* for the ring alone, as the next: the VMs differ */
    COLO_NOTE_SETTLED,  /* what was held then has its verdict */
};

enum colo_record_mark {
    COLO_MARK_STOP,
    COLO_MARK_COMMIT,
    COLO_MARK_ABORT,
    COLO_MARK_ALONE,
    COLO_MARK_TICK,
};

struct colo_slab;

struct colo_note {
    uint64_t seq;
    uint64_t epoch;
    int64_t time;           /* of its feeding */
    int64_t now;            /* of its verdict; a commit's mark: when the primary resumed */
    const uint8_t *data;    /* virtio-net header included; EMITTED: a copy of the note's own */
    struct colo_slab *slab; /* that data lies in, or NULL */
    uint64_t lost[COLO_PORT_COUNT]; /* so far */
    uint32_t len;
    uint32_t missing;       /* notes, right before this one */
    uint32_t old_ack;       /* ack_at != 0: what stood there before it was lowered */
    uint16_t ack_at, csum_at, old_csum;
    uint8_t vnet_len;
    uint8_t nic;
    uint8_t kind;
    uint8_t side;
    uint8_t reason;         /* enum colo_reason, or of a mark enum colo_record_mark */
};

/* The comparator's mode, by the marks. */
struct colo_recmode {
    uint64_t epoch;
    uint8_t mode, before; /* enum colo_mode */
};

void colo_recmode_follow(struct colo_recmode *m, const struct colo_note *note);

struct colo_recblock {
    char *comment;       /* of each file */
    int64_t wall_offset;
    uint32_t snap;
    uint8_t *data;       /* the blocks of one note */
    size_t cap, len;
    uint16_t packets[COLO_PORT_COUNT]; /* among them */
};

/* COLO_ERR_NOMEM, COLO_ERR_MISUSE or 0. After any, call fini. */
int colo_recblock_init(struct colo_recblock *b, const struct colo_record_config *config, uint32_t max_frame);
void colo_recblock_fini(struct colo_recblock *b);
/* The blocks that begin a file, in the place of a note's. */
void colo_recblock_head(struct colo_recblock *b);
/* A file that doesn't begin at the beginning says in which mode the comparator is. */
void colo_recblock_mode(struct colo_recblock *b, const struct colo_recmode *mode, int64_t time);
void colo_recblock_note(struct colo_recblock *b, const struct colo_note *note);
/* How many packets each interface should have, and how many of them are missing. */
void colo_recblock_tail(struct colo_recblock *b, const uint64_t seen[COLO_PORT_COUNT],
                        const uint64_t lost[COLO_PORT_COUNT], int64_t time);

#endif
