/* SPDX-License-Identifier: Apache-2.0 */
/*
 * recfile.h - notes become blocks of a pcapng file; files are rotated. The writer thread's; docs/recording.md has the
 * format. Each file is complete by itself and readable by its owner alone: it holds clients' data.
 */
#ifndef COLO_RECFILE_H
#define COLO_RECFILE_H

#include <stdbool.h>
#include <stdint.h>

#include "coloproxy.h"

enum colo_note_kind {
    COLO_NOTE_RELEASED,
    COLO_NOTE_DISCARDED,
    COLO_NOTE_WITHHELD, /* held at the end */
    COLO_NOTE_DROPPED,  /* never fed */
    COLO_NOTE_EMITTED,
    COLO_NOTE_MARK,
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
    uint8_t kind;
    uint8_t side;
    uint8_t reason;         /* enum colo_reason, or of a mark enum colo_record_mark */
};

struct colo_recfile {
    char *path;         /* as given; numbered ones have a number before the suffix */
    char *comment;      /* of each file */
    uint64_t max_bytes; /* 0: no bound */
    int64_t max_time;
    uint32_t keep, number, snap;
    int64_t wall_offset;
    int fd;             /* -1: none */
    uint64_t size;      /* of what is in the file and in the buffer */
    int64_t opened;     /* the time of its first note, -1: none yet */
    uint8_t *buffer;
    size_t cap, fill;
    uint64_t seen[COLO_PORT_COUNT], lost[COLO_PORT_COUNT], lost_before[COLO_PORT_COUNT];
    uint64_t packets;   /* in all files */
    uint64_t bytes;
    uint32_t files;
    int64_t last;       /* time of the newest note */
    uint8_t mode, mode_before; /* enum colo_mode, by the marks */
    uint64_t epoch;
};

/* Opens the first file. COLO_ERR_NOMEM, COLO_ERR_MISUSE, COLO_ERR_SYSTEM with errno, or 0. After any, call close. */
int colo_recfile_open(struct colo_recfile *f, const struct colo_record_config *config, uint32_t max_frame);
/* Errors: an errno, or 0. After one the file ends with the last block that was written whole. */
int colo_recfile_write(struct colo_recfile *f, const struct colo_note *note);
int colo_recfile_flush(struct colo_recfile *f);
/* Ends the file and frees everything. */
int colo_recfile_close(struct colo_recfile *f);

#endif
