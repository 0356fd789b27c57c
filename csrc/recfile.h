/* SPDX-License-Identifier: Apache-2.0 */
/*
 * recfile.h - the files of a recording, one after the other. The writer thread's; docs/recording.md has the format.
 * Each file is complete by itself and readable by its owner alone: it holds clients' data.
 */
#ifndef COLO_RECFILE_H
#define COLO_RECFILE_H

#include <stdint.h>

#include "coloproxy.h"
#include "recblock.h"
#include "recout.h"

struct colo_recfile {
    char *path;         /* as given; numbered ones have a number before the suffix. NULL: there is no file */
    uint64_t max_bytes; /* 0: no bound */
    int64_t max_time;
    uint32_t keep, number;
    int64_t opened;     /* the time of its first note, -1: none yet */
    struct colo_recout out;
    uint64_t lost[COLO_PORT_COUNT], lost_before[COLO_PORT_COUNT];
    uint32_t files;
    int64_t last;       /* time of the newest note */
    struct colo_recmode mode;
};

/* Opens the first file. COLO_ERR_NOMEM, COLO_ERR_MISUSE, COLO_ERR_SYSTEM with errno, or 0. After any, call close. */
int colo_recfile_open(struct colo_recfile *f, struct colo_recblock *block, const struct colo_record_config *config);
/*
 * `block` has the note's blocks. Errors, here and below: an errno, or 0. After one the file ends with the last block that
 * was written whole.
 */
int colo_recfile_write(struct colo_recfile *f, struct colo_recblock *block, const struct colo_note *note);
int colo_recfile_flush(struct colo_recfile *f);
/* Ends the file and frees everything. */
int colo_recfile_close(struct colo_recfile *f, struct colo_recblock *block);

#endif
