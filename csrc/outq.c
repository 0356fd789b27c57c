/* SPDX-License-Identifier: Apache-2.0 */
#include "outq.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "coloproxy.h"
#include "framing.h"

enum {
    FIRST_CAP = 256,
    IOV_BATCH = 1024,  /* IOV_MAX of Linux */
    CALLS_A_TURN = 16, /* then the inputs have their turn */
};

void colo_outq_init(struct colo_outq *q, bool vnet_hdr)
{
    *q = (struct colo_outq){.vnet_hdr = vnet_hdr};
}

static struct colo_outq_entry *entry_at(const struct colo_outq *q, uint32_t i)
{
    return &q->ring[(q->head + i) & (q->cap - 1)];
}

static void pop(struct colo_outq *q)
{
    struct colo_outq_entry *first = entry_at(q, 0);

    colo_slab_put(first->pool, first->slab, first->frames);
    q->head = (q->head + 1) & (q->cap - 1);
    q->count--;
    q->sent = 0;
}

void colo_outq_fini(struct colo_outq *q)
{
    while (q->count)
        pop(q);
    free(q->ring);
    colo_outq_init(q, q->vnet_hdr);
}

static int grow(struct colo_outq *q)
{
    uint32_t cap = q->cap ? q->cap * 2 : FIRST_CAP;
    struct colo_outq_entry *ring = cap ? calloc(cap, sizeof *ring) : NULL;

    if (!ring)
        return COLO_ERR_NOMEM;
    for (uint32_t i = 0; i < q->count; i++)
        ring[i] = *entry_at(q, i);
    free(q->ring);
    q->ring = ring;
    q->cap = cap;
    q->head = 0;
    return 0;
}

int colo_outq_push(struct colo_outq *q, struct colo_slab_pool *pool, struct colo_slab *slab, uint32_t from,
                   uint32_t to)
{
    struct colo_outq_entry *last = q->count ? entry_at(q, q->count - 1) : NULL;

    if (last && last->slab == slab && last->to == from) {
        last->to = to;
        last->frames++;
        q->bytes += to - from;
        return 0;
    }
    if (q->count == q->cap && grow(q) < 0)
        return COLO_ERR_NOMEM;
    *entry_at(q, q->count++) =
        (struct colo_outq_entry){.pool = pool, .slab = slab, .from = from, .to = to, .frames = 1};
    q->bytes += to - from;
    return 0;
}

static void advance(struct colo_outq *q, size_t bytes)
{
    q->bytes -= bytes;
    while (bytes) {
        const struct colo_outq_entry *first = entry_at(q, 0);
        uint32_t left = first->to - first->from - q->sent;

        if (bytes < left) {
            q->sent += (uint32_t)bytes;
            return;
        }
        bytes -= left;
        pop(q);
    }
}

int colo_outq_flush(struct colo_outq *q, int fd, struct colo_outq_written *written)
{
    struct iovec iov[IOV_BATCH];

    for (int calls = 0; q->count && calls < CALLS_A_TURN; calls++) {
        struct msghdr msg = {.msg_iov = iov};
        size_t total = 0;
        ssize_t n;

        while (msg.msg_iovlen < IOV_BATCH && msg.msg_iovlen < q->count) {
            const struct colo_outq_entry *e = entry_at(q, (uint32_t)msg.msg_iovlen);
            uint32_t skip = msg.msg_iovlen ? 0 : q->sent;

            iov[msg.msg_iovlen].iov_base = e->slab->data + e->from + skip;
            iov[msg.msg_iovlen].iov_len = e->to - e->from - skip;
            total += iov[msg.msg_iovlen++].iov_len;
        }
        do
            n = sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
        while (n < 0 && errno == EINTR);
        written->calls++;
        if (n < 0)
            return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : COLO_ERR_SYSTEM;
        written->bytes += (uint64_t)n;
        advance(q, (size_t)n);
        if ((size_t)n < total)
            return 0;
    }
    return 0;
}

void colo_outq_rewind(struct colo_outq *q)
{
    struct colo_outq_entry *first = q->count ? entry_at(q, 0) : NULL;
    uint32_t whole = 0, frames = 0;

    if (!first || !q->sent)
        return;
    /* The framing still stands before each frame in the slab, so its own words tell where the cut one began. */
    for (;;) {
        uint32_t len = colo_framing_length_at(q->vnet_hdr, first->slab->data + first->from + whole);

        if (len > q->sent - whole)
            break;
        whole += len;
        frames++;
    }
    q->bytes += q->sent - whole;
    q->sent = 0;
    first->from += whole;
    first->frames -= frames;
    if (frames)
        colo_slab_put(first->pool, first->slab, frames);
}
