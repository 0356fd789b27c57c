/* SPDX-License-Identifier: Apache-2.0 */
/* rwstate.h - a rewriter, as its parts see it: rewriter.c translates, rwhand.c exports and imports. */
#ifndef COLO_RWSTATE_H
#define COLO_RWSTATE_H

#include "rewriter.h"
#include "rwtable.h"

struct colo_rewriter {
    struct colo_rwtable *table;
    /* Flows that were imported. They outlive marks; one of `table` on the same ports goes before. NULL: never any. */
    struct colo_rwtable *inherited;
    struct colo_rewriter_config config;
    struct colo_rewriter_counters counters;
    bool taken_over;
};

static inline uint32_t colo_rwstate_inherited(const colo_rewriter *r)
{
    return r->inherited ? colo_rwtable_count(r->inherited) : 0;
}

#endif
