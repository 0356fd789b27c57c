/* SPDX-License-Identifier: Apache-2.0 */
#include "input.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    LEAST_ROOM_PART = 8, /* a read into less than this part of a slab isn't worth its system call */
    LARGE = 16 * 1024,   /* a frame from which on moving a piece of it costs more than a system call */
};

static void start_framing(struct colo_input *in)
{
    colo_framing_start(&in->framing, in->vnet_hdr, in->max_frame);
    in->framing.nics = in->nics;
}

void colo_input_init(struct colo_input *in, struct colo_slab_pool *pool, int side,
                     const struct colo_engine_config *config)
{
    in->pool = pool;
    in->side = (uint8_t)side;
    in->vnet_hdr = config->vnet_hdr;
    in->nics = config->nics;
    in->max_frame = config->max_frame;
    in->fd = -1;
    in->slab = NULL;
    in->start = in->fill = 0;
    in->first = in->count = 0;
    in->last = 0;
    in->ended = false;
    in->scanned = true;
    in->time = 0;
    start_framing(in);
}

void colo_input_fini(struct colo_input *in)
{
    if (in->fd >= 0)
        close(in->fd);
    in->fd = -1;
    for (; in->count; in->first++, in->count--)
        colo_slab_put(in->pool, colo_slab_of(in->pool, in->frames[in->first].cookie), 1);
    if (in->slab)
        colo_slab_put(in->pool, in->slab, 1);
    in->slab = NULL;
}

void colo_input_attach(struct colo_input *in, int fd)
{
    in->fd = fd;
    if (!in->ended)
        start_framing(in);
}

/* All that can be used of a connection that is gone was used: ready for the next one. */
static void forget_connection(struct colo_input *in)
{
    in->start = in->fill;
    in->scanned = true;
    in->ended = false;
    if (in->fd >= 0)
        start_framing(in);
}

void colo_input_detach(struct colo_input *in)
{
    if (in->fd < 0)
        return;
    close(in->fd);
    in->fd = -1;
    /* If an earlier connection's frames still wait, nothing was read of this one. */
    in->ended = true;
    if (in->scanned)
        forget_connection(in);
}

bool colo_input_waits(const struct colo_input *in)
{
    return in->count || !in->scanned;
}

/*
 * Bytes of the frame that comes next, of which `part` are there. Before its length has come: as long as the last one, if
 * that was large, for super-frames come in trains.
 */
static size_t expected(const struct colo_input *in, uint32_t part)
{
    if (part < 4 && in->last >= LARGE)
        return in->last;
    return colo_framing_need(&in->framing, in->slab->data + in->start, part);
}

/*
 * How much to read: `most`, as far as there is room; of large frames only whole ones, as far as can be foreseen, and one
 * at least. What is read of a frame that does not fit behind the others has to be moved to the next slab, which for
 * super-frames would be half of all bytes.
 */
static size_t want(const struct colo_input *in, size_t most)
{
    size_t room = in->pool->size - in->fill, part = in->fill - in->start, frame = expected(in, (uint32_t)part), rest;

    if (frame < LARGE || frame - part > room)
        return room < most ? room : most;
    rest = frame - part;
    if (most <= rest)
        return rest;
    room = (room < most ? room : most) - rest;
    return rest + room / frame * frame;
}

bool colo_input_prepare(struct colo_input *in, bool forced)
{
    const uint32_t size = in->pool->size, part = in->fill - in->start;
    struct colo_slab *next;
    size_t need;

    if (!in->slab) {
        in->slab = colo_slab_take(in->pool, in->side, forced);
        in->start = in->fill = 0;
        return in->slab != NULL;
    }
    need = expected(in, part);
    if (need <= size - in->start && size - in->fill >= size / LEAST_ROOM_PART)
        return true;
    if (in->slab->refs == 1) { /* all its frames are gone: the same slab serves again, and is warm */
        memmove(in->slab->data, in->slab->data + in->start, part);
    } else {
        next = colo_slab_take(in->pool, in->side, forced);
        if (!next) /* the small rest is better than nothing, as long as the frame fits */
            return colo_framing_need(&in->framing, in->slab->data + in->start, part) <= size - in->start && in->fill < size;
        memcpy(next->data, in->slab->data + in->start, part);
        colo_slab_put(in->pool, in->slab, 1);
        in->slab = next;
    }
    in->start = 0;
    in->fill = part;
    return true;
}

long colo_input_read(struct colo_input *in, size_t most)
{
    size_t room = want(in, most);
    ssize_t n;

    do
        n = recv(in->fd, in->slab->data + in->fill, room, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return COLO_ERR_SYSTEM;
    in->fill += (uint32_t)n;
    in->scanned = n == 0 && in->scanned;
    return n;
}

struct colo_framing colo_input_verdict(const struct colo_input *in)
{
    struct colo_framing f = in->framing;
    size_t used = 0;

    if (in->slab) {
        const uint8_t *data = in->slab->data + in->start;
        size_t len = in->fill - in->start;

        colo_framing_scan(&f, data, len, 0, NULL, SIZE_MAX, &used);
        colo_framing_end(&f, data + used, len - used);
    }
    return f;
}

uint32_t colo_input_scan(struct colo_input *in)
{
    size_t used;

    if (in->count || in->scanned)
        return in->count;
    in->first = 0;
    in->count = (uint32_t)colo_framing_scan(&in->framing, in->slab->data + in->start, in->fill - in->start,
                                            colo_slab_cookie(in->slab, in->start), in->frames, COLO_INPUT_BATCH,
                                            &used);
    for (uint32_t i = 0; i < in->count; i++)
        in->frames[i].cookie = colo_slab_with_ordinal(in->frames[i].cookie, (uint8_t)i);
    if (in->count)
        in->last = in->frames[in->count - 1].len + colo_framing_head(in->vnet_hdr);
    in->slab->refs += in->count;
    in->start += (uint32_t)used;
    if (in->count < COLO_INPUT_BATCH) {
        in->scanned = true;
        if (in->ended)
            forget_connection(in);
    }
    return in->count;
}

void colo_input_taken(struct colo_input *in, uint32_t count)
{
    in->first += count;
    in->count -= count;
}

uint64_t colo_input_drop(struct colo_input *in)
{
    uint64_t dropped = 0;

    while (colo_input_scan(in)) {
        for (uint32_t i = 0; i < in->count; i++)
            colo_slab_put(in->pool, colo_slab_of(in->pool, in->frames[in->first + i].cookie), 1);
        dropped += in->count;
        colo_input_taken(in, in->count);
    }
    return dropped;
}
