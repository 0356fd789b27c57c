/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ahead.h - the next frames of a batch, parsed before the first of them is judged.
 *
 * A flow that was not met lately lies in no cache, and waiting for memory costs more than judging a frame. So while the
 * first frames of a batch are judged the flows of the next ones are on their way. Parsing changes nothing, so it may
 * come early; which flow a frame belongs to is found out only at its turn, for flows come and go.
 */
#ifndef COLO_AHEAD_H
#define COLO_AHEAD_H

#include "flow.h"
#include "parse.h"

enum { COLO_AHEAD = 16 }; /* a power of two */

struct colo_arrival {
    struct colo_packet packet;
    uint64_t hash; /* of its flow: colo_table_hash */
    bool same;     /* the flow of the frame before it in this look */
};

/* Looks at the first frames, COLO_AHEAD of `count` at most; returns how many. */
size_t colo_ahead_look(const struct colo_table *table, const struct colo_frame *frames, size_t count,
                       struct colo_arrival out[COLO_AHEAD]);

#endif
