/* SPDX-License-Identifier: Apache-2.0 */
/*
 * workload.h - what a primary and a secondary put out, in memory, for the comparator alone: no socket, no clock.
 *
 * A workload is two arenas of frames, the primary's and the secondary's. A pass feeds all of them in turns, as the
 * engine would after its reads, and carries the actions out by counting them. Only the passes are measured: the
 * arenas are filled anew between them (sequence numbers go on). Filling writes headers, so a pass finds these in the
 * cache; with `evict` of more than the last cache's size it finds every byte cold, as DMA or another core would leave it.
 *
 * The text between the two cffi marks is also the cdef of core/workload.py.
 */
#ifndef COLO_BENCH_WORKLOAD_H
#define COLO_BENCH_WORKLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coloproxy.h"

#pragma GCC visibility push(default)
/* cffi:begin */

enum workload_kind {
    WORKLOAD_TCP,       /* equal streams */
    WORKLOAD_UDP,       /* equal datagrams */
    WORKLOAD_COMMIT,    /* TCP of the primary alone: held, then flushed by a commit */
    WORKLOAD_PARSE,     /* frames are parsed, nothing else */
    WORKLOAD_MEMORY,    /* memcmp of both sides' frames and memcpy of the primary's: what touching the bytes costs */
    WORKLOAD_LOOKUP,    /* flows are found by their ids, nothing else; a frame is a look-up */
};

struct workload_spec {
    enum workload_kind kind;
    uint32_t flows;
    uint32_t length;    /* payload bytes of a primary frame */
    uint32_t recut;     /* payload bytes of a secondary frame; 0: the same */
    uint32_t burst;     /* successive frames of one flow */
    uint32_t frames;    /* primary frames of a pass; rounded up to whole bursts of all flows */
    uint32_t turn;      /* frames fed at once */
    uint64_t skew;      /* payload bytes that the secondary runs behind */
    uint32_t vnet_len;  /* 0, or 12: super-frames with a virtio-net header */
    uint64_t evict;     /* bytes of other memory that are read after each fill; 0: caches stay as they are */
};

struct workload;

/* NULL: no memory, or a spec that makes no sense. The first pass has begun the flows. */
struct workload *workload_create(const struct workload_spec *spec);
void workload_destroy(struct workload *w);
/* Frames for the next pass. */
void workload_fill(struct workload *w);
/* One pass; returns the primary frames released in it (MEMORY: equal and copied, PARSE: parsed, LOOKUP: found). */
uint64_t workload_pass(struct workload *w);
/* Primary frames of one pass, and the bytes of these. */
uint64_t workload_frames(const struct workload *w);
uint64_t workload_bytes(const struct workload *w);
/* By how much the process has grown when comparator and flows were made; exact only for a process's first workload. */
uint64_t workload_grown(const struct workload *w);

/* cffi:end */
#pragma GCC visibility pop

#endif
