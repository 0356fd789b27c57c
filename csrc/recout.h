/* SPDX-License-Identifier: Apache-2.0 */
/*
 * recout.h - one open file of a recording. What is in it ends with a whole block whatever happens to the disk.
 */
#ifndef COLO_RECOUT_H
#define COLO_RECOUT_H

#include <stddef.h>
#include <stdint.h>

#include "recblock.h"

struct colo_recout {
    int fd;        /* -1: none */
    uint64_t size; /* of what is in the file and in the buffer */
    uint64_t seen[COLO_PORT_COUNT];
    uint64_t bytes, packets; /* in all files; bytes as they were written */
    uint8_t *buffer;
    size_t cap, fill;
};

/* `block`: the largest thing that will be put is one that fits it. COLO_ERR_NOMEM or 0. */
int colo_recout_init(struct colo_recout *o, const struct colo_recblock *block);
void colo_recout_fini(struct colo_recout *o);

/* Errors below: an errno, or 0. */

/* Opens `name`, beneath `dir` or AT_FDCWD, with mode 0600, and begins it. `flags`: O_TRUNC, or O_EXCL. */
int colo_recout_begin(struct colo_recout *o, struct colo_recblock *block, int dir, const char *name, int flags);
int colo_recout_put(struct colo_recout *o, const void *data, size_t len);
/* What `block` has, its packets counted. */
int colo_recout_put_block(struct colo_recout *o, const struct colo_recblock *block);
int colo_recout_flush(struct colo_recout *o);
/* Ends and closes it. Nothing is open: 0. */
int colo_recout_end(struct colo_recout *o, struct colo_recblock *block, const uint64_t lost[COLO_PORT_COUNT],
                    int64_t time);

#endif
