/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wish.h - the Xen side of a comparator's notify_dev (coloproxy/notify.py has the messages): takes DO_CHECKPOINT,
 * gives COLO_CHECKPOINT. Sans-I/O.
 */
#ifndef COLO_TRAFFIC_WISH_H
#define COLO_TRAFFIC_WISH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { COLO_WISH_MAX = 4096 };

struct colo_wishes {
    uint8_t buffer[COLO_WISH_MAX + 4];
    size_t held;
};

/* Free bytes of the buffer, to be read into; never 0 after a take that did not fail. */
static inline size_t colo_wishes_room(const struct colo_wishes *w)
{
    return sizeof w->buffer - w->held;
}

/* `len` bytes were read to buffer + held: how many DO_CHECKPOINT are complete; negative: it isn't this protocol. */
int colo_wishes_take(struct colo_wishes *w, size_t len);

/* Writes COLO_CHECKPOINT as it goes over the wire; returns its bytes, at most 64. */
size_t colo_wish_answer(bool vnet_hdr, uint8_t *out);

#endif
