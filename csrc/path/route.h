/* SPDX-License-Identifier: Apache-2.0 */
/* route.h - where each frame goes, and the epochs of the secondary's. With the path's lock held. */
#ifndef COLO_PATH_ROUTE_H
#define COLO_PATH_ROUTE_H

#include "state.h"

enum colo_mark {
    COLO_MARK_SYNC = 0,  /* the answer to a token */
    COLO_MARK_EPOCH = 1, /* what follows is of the secondary's next epoch */
    COLO_MARK_PRIMARY_STOP = 2, /* from the primary: its VM stands still; what it was sent before comes with its state */
};

/* Sinks of the wires' frames; ctx is the path. */
void colo_route_from_client(void *ctx, const struct colo_wire_frame *frame);
void colo_route_from_vm(void *ctx, const struct colo_wire_frame *frame);
void colo_route_released(void *ctx, const struct colo_wire_frame *frame);
void colo_route_nothing(void *ctx, const struct colo_wire_frame *frame); /* the comparator says nothing on its inputs */

/* A record of the link. false: the peer breaks the protocol, *why says how. */
bool colo_route_record(struct colo_path *p, const struct colo_link_record *record, const char **why);

/* Whether a wire may be read: what comes of it finds room. */
bool colo_route_may_read_client(struct colo_path *p, int nic);
bool colo_route_may_read_vm(const struct colo_path *p, int nic);
bool colo_route_may_read_released(const struct colo_path *p);

/* Hands on what was held and may go now. */
void colo_route_held(struct colo_path *p);
void colo_route_mark(struct colo_path *p, enum colo_mark kind, uint64_t value);
void colo_route_forget(struct colo_path *p, int64_t before); /* SECONDARY: what was held and read before that */
void colo_route_forget_inbound(struct colo_path *p, int64_t before); /* ... and for the VM */
void colo_route_link_room(struct colo_path *p); /* the link may have room again */

#endif
