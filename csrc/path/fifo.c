/* SPDX-License-Identifier: Apache-2.0 */
#include "fifo.h"

#include <stdlib.h>
#include <string.h>

enum {
    SMALLEST = 4096,
    KEPT = 1 << 20, /* an empty one that is larger gives its memory back */
};

void colo_fifo_init(struct colo_fifo *f, size_t limit)
{
    *f = (struct colo_fifo){.limit = limit};
}

void colo_fifo_fini(struct colo_fifo *f)
{
    free(f->data);
    colo_fifo_init(f, f->limit);
}

uint8_t *colo_fifo_room(struct colo_fifo *f, size_t len)
{
    size_t waits = colo_fifo_len(f), size = f->size ? f->size : SMALLEST;
    uint8_t *data;

    if (len <= f->size - f->to)
        return f->data + f->to;
    if (f->from >= waits && len <= f->size - waits) {
        memcpy(f->data, f->data + f->from, waits);
    } else {
        /* Half of what is moved fits behind it then, so that it is not moved again for every few bytes. */
        while (size - waits < len || size - waits < waits / 2)
            size *= 2;
        data = malloc(size);
        if (!data)
            return NULL;
        if (waits)
            memcpy(data, f->data + f->from, waits);
        free(f->data);
        f->data = data;
        f->size = size;
    }
    f->from = 0;
    f->to = waits;
    return f->data + f->to;
}

void colo_fifo_put(struct colo_fifo *f, size_t len)
{
    f->to += len;
}

static void empty(struct colo_fifo *f)
{
    f->from = f->to = 0;
    if (f->size > KEPT)
        colo_fifo_fini(f);
}

void colo_fifo_take(struct colo_fifo *f, size_t len)
{
    f->from += len;
    if (f->from == f->to)
        empty(f);
}

void colo_fifo_cut(struct colo_fifo *f, size_t len)
{
    f->to = f->from + len;
    if (!len)
        empty(f);
}
