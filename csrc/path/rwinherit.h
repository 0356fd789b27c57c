/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rwinherit.h - a flow of the rewriter's as bytes, for whoever goes on with its connection. docs/rewriter.md.
 *
 * A piece is a head, then so many flows of COLO_RWINHERIT_FLOW bytes each; all numbers are big-endian.
 *
 *     head   "CORW", version (1 byte), 3 bytes 0, number of flows (4)
 *
 * What a connection has come to is not in it, but for FINs, which have one number for ever: it goes out of date, and the
 * next segments tell it anew. A point in time is an age in milliseconds, counted from when the piece was made.
 */
#ifndef COLO_RWINHERIT_H
#define COLO_RWINHERIT_H

#include <stddef.h>

#include "rwtable.h"

enum { COLO_RWINHERIT_HEAD = 12, COLO_RWINHERIT_FLOW = 96 };

/* Whether there is anything to hand on: it is translated, and not closed. */
bool colo_rwinherit_wanted(const struct colo_rwflow *f);

void colo_rwinherit_put_head(uint8_t out[COLO_RWINHERIT_HEAD], uint32_t flows);
void colo_rwinherit_put(uint8_t out[COLO_RWINHERIT_FLOW], const struct colo_rwflow *f, int64_t now);

/* The number of flows, which are whole; or -1 and why not. */
long colo_rwinherit_head(const uint8_t *data, size_t len, const char **why);
/* Fills `f`, but for what is the table's own. `then`: when it was made, in our time. NULL, or what is wrong with it. */
const char *colo_rwinherit_flow(const uint8_t in[COLO_RWINHERIT_FLOW], struct colo_rwflow *f, int64_t then);

#endif
