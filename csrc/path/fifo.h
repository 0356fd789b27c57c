/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fifo.h - bytes that wait in order, in one piece of memory that grows up to a limit.
 *
 * What was taken makes room when more is put in: the rest is moved to the front, or into a larger piece, only after at
 * least half as many bytes were taken or put as are moved: a byte costs a bounded number of moves. The piece is no more
 * than four times what waited at most, and one that runs empty keeps no more than 1 MiB.
 */
#ifndef COLO_FIFO_H
#define COLO_FIFO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct colo_fifo {
    uint8_t *data;
    size_t from, to;  /* what waits is data[from..to) */
    size_t size;      /* allocated */
    size_t limit;     /* of what waits */
};

static inline size_t colo_fifo_len(const struct colo_fifo *f)
{
    return f->to - f->from;
}

static inline const uint8_t *colo_fifo_front(const struct colo_fifo *f)
{
    return f->data ? f->data + f->from : NULL;
}

/* `len` bytes fit below the limit. An empty one takes anything once, so that no frame is too long for ever. */
static inline bool colo_fifo_has_room(const struct colo_fifo *f, size_t len)
{
    size_t waits = colo_fifo_len(f);

    return !waits || (waits <= f->limit && len <= f->limit - waits);
}

void colo_fifo_init(struct colo_fifo *f, size_t limit);
void colo_fifo_fini(struct colo_fifo *f);
/* Room for `len` more bytes at the end, whatever the limit says; NULL: no memory. colo_fifo_put makes them count. */
uint8_t *colo_fifo_room(struct colo_fifo *f, size_t len);
void colo_fifo_put(struct colo_fifo *f, size_t len);
/* The first `len` bytes are used: pointers into it, of what was used and of what is left, hold no longer. */
void colo_fifo_take(struct colo_fifo *f, size_t len);
/* All but the first `len` bytes are thrown away. */
void colo_fifo_cut(struct colo_fifo *f, size_t len);

#endif
