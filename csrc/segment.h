/* SPDX-License-Identifier: Apache-2.0 */
/*
 * segment.h - UDP super-frames (USO): one frame that the device will cut into datagrams of segment_size bytes, and that
 * is compared as those datagrams. Where a super-frame is cut binds, for a datagram's bounds are what its reader sees.
 */
#ifndef COLO_SEGMENT_H
#define COLO_SEGMENT_H

#include "coloproxy.h"

struct colo_flow;
struct colo_rec;

/* A super-frame of a flow, in no list, taken over from its packet. `size` is less than its body's length. */
void colo_segment_enter(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec, uint32_t size);

#endif
