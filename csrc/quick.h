/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quick.h - the common case of TCP, done in one go.
 *
 * Nearly every frame of a busy connection is the next piece of its stream: plain data, nothing but ACK and PSH in its
 * flags, an ACK number that says nothing new, behind a flow with no gap, no debt and no reset. For such a frame tcp.c,
 * stream.c and ack.c have next to nothing to decide, and these functions do what they would do, no more and no less.
 *
 * They return false for any other frame, and for one whose bytes differ: the flow is then as if the frame had not come,
 * but for bytes of earlier frames that may have been found equal, and the ordinary way takes the frame from its start.
 */
#ifndef COLO_QUICK_H
#define COLO_QUICK_H

#include "core.h"

/*
 * `rec` is new: its frame's own fields are set, nothing of its packet is. `flow` is its flow, in whatever epoch it was
 * last seen. True: the record was held, released or discarded.
 */
bool colo_quick_primary(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec,
                        const struct colo_packet *packet);
bool colo_quick_secondary(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec,
                          const struct colo_packet *packet);

/*
 * The next frames of both sides, at one time: true if both have left. False: nothing has changed, the records are the
 * caller's.
 */
bool colo_quick_pair(colo_comparator *c, struct colo_flow *flow, struct colo_rec *p, const struct colo_packet *pp,
                     struct colo_rec *s, const struct colo_packet *sp);

#endif
