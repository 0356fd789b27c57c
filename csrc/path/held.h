/* SPDX-License-Identifier: Apache-2.0 */
/* held.h - frames that wait, in order, for their epoch or for the gate: in a fifo, each behind a struct colo_held. */
#ifndef COLO_PATH_HELD_H
#define COLO_PATH_HELD_H

#include "fifo.h"
#include "wire.h"

struct colo_held {
    int64_t time;    /* read at */
    int64_t epoch;   /* PRIMARY: the marks that had come */
    uint32_t len;
    uint8_t nic;
    uint8_t vnet_len;
    uint8_t type;    /* enum colo_link_type */
};

/* Copies the frame; len, nic and vnet_len are its own. LIMIT, NOMEM or 0. */
int colo_held_put(struct colo_fifo *where, const struct colo_held *head, const struct colo_wire_frame *frame);
/* The first; false: none is. The frame may be changed in place, and is there until it is let go. */
bool colo_held_first(const struct colo_fifo *where, struct colo_held *head, struct colo_wire_frame *frame);
void colo_held_let_go(struct colo_fifo *where, const struct colo_held *head);

#endif
