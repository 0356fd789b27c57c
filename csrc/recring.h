/* SPDX-License-Identifier: Apache-2.0 */
/*
 * recring.h - the last seconds of what the engine saw, in memory, for a file of its own when the VMs differ. The
 * writer thread's; a dump has the format of a recording that begins in the middle.
 *
 * What is kept is bounded by time (that of the verdict, for a held frame has none before the commit) and by bytes. The
 * frames that differ are held too, so a dump waits for the end of their epoch, but not for ever. While it waits nothing
 * grows too old for it; the bound of the bytes holds always.
 */
#ifndef COLO_RECRING_H
#define COLO_RECRING_H

#include <stdbool.h>
#include <stdint.h>

#include "coloproxy.h"
#include "recblock.h"
#include "recout.h"

struct colo_recring {
    uint8_t *bytes;      /* NULL: there is no ring */
    uint64_t cap;
    uint64_t head, tail; /* run freely: entries lie from tail to head, at their place modulo cap */
    int64_t window, wait, gap;
    int dir;             /* of the dumps */
    struct colo_recmode base; /* before the oldest entry */
    uint64_t base_lost[COLO_PORT_COUNT], lost[COLO_PORT_COUNT];
    bool pending;        /* a dump is asked for */
    int64_t from;        /* its first verdict's time */
    int64_t diverged;    /* when the VMs did */
    int64_t deadline;    /* CLOCK_MONOTONIC */
    bool any;            /* was asked for; the last one for: */
    int64_t last;
    struct colo_recout out;
};

/* COLO_ERR_NOMEM, COLO_ERR_MISUSE, COLO_ERR_SYSTEM with errno (the directory), or 0. After any, call close. */
int colo_recring_open(struct colo_recring *ring, const struct colo_recblock *block,
                      const struct colo_record_config *config);
void colo_recring_close(struct colo_recring *ring);

/* Keeps the blocks of a note, which `block` has. */
void colo_recring_keep(struct colo_recring *ring, const struct colo_recblock *block, const struct colo_note *note);
/* The VMs differ since `time`; `now`: CLOCK_MONOTONIC. Asks for a dump, if the last one is long enough ago. */
void colo_recring_diverged(struct colo_recring *ring, int64_t time, int64_t now);
/* Writes what is kept to a file of its own; `block` is used for that. No dump is asked for any more. */
void colo_recring_dump(struct colo_recring *ring, struct colo_recblock *block, struct colo_record_dump *out);

#endif
