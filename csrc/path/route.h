/* SPDX-License-Identifier: Apache-2.0 */
/* route.h - where each frame goes, and the epochs of the secondary's. With the path's lock held. */
#ifndef COLO_PATH_ROUTE_H
#define COLO_PATH_ROUTE_H

#include "state.h"

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

/* Puts a frame out; there is room. */
void colo_route_send(struct colo_path *p, struct colo_wire *w, const struct colo_wire_frame *frame);
/* Frames for or of the secondary found no room there: told once an epoch. */
void colo_route_left_out(struct colo_path *p, enum colo_path_place place, int nic);
/* A frame of the secondary's, or for it, has to wait. */
void colo_route_hold(struct colo_path *p, struct colo_fifo *where, enum colo_link_type type,
                     const struct colo_wire_frame *frame);

/* Hands on what was held and may go now. */
void colo_route_held(struct colo_path *p);
void colo_route_forget(struct colo_path *p, int64_t before); /* SECONDARY: what was held and read before that */
void colo_route_forget_inbound(struct colo_path *p, int64_t before); /* ... and for the VM */
void colo_route_give_up_held(struct colo_path *p); /* SECONDARY, about to take over: unless it may go on by itself */
void colo_route_link_room(struct colo_path *p); /* the link may have room again */

#endif
