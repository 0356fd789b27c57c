/* SPDX-License-Identifier: Apache-2.0 */
#include "outlet.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "framing.h"
#include "load.h"

enum {
    OWN_SLAB = 16 * 1024,
    JUNK_A_TURN = 16,
};

int colo_outlet_init(struct colo_outlet *o, struct colo_slab_pool *pool, const struct colo_engine_config *config)
{
    /*
     * Emitted frames wait in order, so all but two slabs of them are full. They are made only as fast as inputs are
     * read, which stops at max_out_bytes, and by a commit, at most one for each flow: the pool can't be exhausted.
     */
    uint64_t most = (config->max_out_bytes + (uint64_t)config->comparator.max_flows * 256) / OWN_SLAB * 2 + 1024;

    *o = (struct colo_outlet){.fd = -1, .vnet_hdr = config->vnet_hdr, .max_bytes = config->max_out_bytes, .pool = pool};
    atomic_init(&o->lease, INT64_MAX);
    colo_outq_init(&o->queue, o->vnet_hdr);
    return colo_slab_pool_init(&o->own_pool, OWN_SLAB, most < 1 << 20 ? (uint32_t)most : 1 << 20);
}

void colo_outlet_fini(struct colo_outlet *o)
{
    if (o->fd >= 0)
        close(o->fd);
    o->fd = -1;
    colo_outq_fini(&o->queue);
    colo_slab_pool_fini(&o->own_pool);
    o->own = NULL;
}

void colo_outlet_attach(struct colo_outlet *o, int fd)
{
    o->fd = fd;
}

void colo_outlet_detach(struct colo_outlet *o)
{
    if (o->fd < 0)
        return;
    close(o->fd);
    o->fd = -1;
    colo_outq_rewind(&o->queue);
}

int colo_outlet_release(struct colo_outlet *o, const struct colo_action *action)
{
    struct colo_slab *slab = colo_slab_of(o->pool, action->cookie);
    uint32_t at = colo_slab_at(action->cookie);
    uint32_t len = colo_framing_length_at(o->vnet_hdr, slab->data + at);

    if (action->ack_at) {
        uint8_t *frame = slab->data + at + colo_framing_head(o->vnet_hdr);

        assert(action->csum_at + 2u <= len - colo_framing_head(o->vnet_hdr));
        colo_store32(frame + action->ack_at, action->ack);
        colo_store16(frame + action->csum_at, action->csum);
    }
    return colo_outq_push(&o->queue, o->pool, slab, at, at + len);
}

/* A slab of our own with room for `len` more bytes. */
static bool own_room(struct colo_outlet *o, uint32_t len)
{
    if (o->own && o->own->refs == 1) /* all of it has been written */
        o->own_fill = 0;
    if (o->own && len <= OWN_SLAB - o->own_fill)
        return true;
    if (o->own)
        colo_slab_put(&o->own_pool, o->own, 1);
    o->own = colo_slab_take(&o->own_pool, COLO_PRIMARY, false);
    o->own_fill = 0;
    return o->own != NULL;
}

int colo_outlet_emit(struct colo_outlet *o, const struct colo_action *action)
{
    uint32_t from, head;
    int error;

    assert(action->len <= COLO_EMIT_MAX);
    if (!own_room(o, action->len + COLO_FRAMING_HEAD_MAX))
        return COLO_ERR_NOMEM;
    from = o->own_fill;
    head = colo_framing_write_head(o->vnet_hdr, o->own->data + from, action->len,
                                   colo_framing_vnet_word(action->nic, action->vnet_len));
    memcpy(o->own->data + from + head, action->data, action->len);
    o->own->refs++;
    error = colo_outq_push(&o->queue, &o->own_pool, o->own, from, from + head + action->len);
    if (error)
        colo_slab_put(&o->own_pool, o->own, 1);
    else
        o->own_fill = from + head + action->len;
    return error;
}

bool colo_outlet_is_held(const struct colo_outlet *o)
{
    int64_t lease = atomic_load(&o->lease);

    return o->queue.bytes && lease != INT64_MAX && colo_clock_now() >= lease;
}

int colo_outlet_flush(struct colo_outlet *o)
{
    if (o->fd < 0 || !o->queue.bytes || colo_outlet_is_held(o))
        return 0;
    return colo_outq_flush(&o->queue, o->fd, &o->written);
}

bool colo_outlet_listen(struct colo_outlet *o, int *error)
{
    uint8_t junk[4096];

    for (int calls = 0; calls < JUNK_A_TURN; calls++) {
        ssize_t n = recv(o->fd, junk, sizeof junk, MSG_DONTWAIT);

        if (n > 0) {
            o->bytes_read += (uint64_t)n;
            continue;
        }
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
            return true;
        *error = n < 0 ? errno : 0;
        return false;
    }
    return true;
}

bool colo_outlet_full(struct colo_outlet *o)
{
    /* Two marks, so that the inputs are not stopped and started for each frame. */
    o->full = o->queue.bytes > (o->full ? o->max_bytes / 2 : o->max_bytes);
    return o->full;
}
