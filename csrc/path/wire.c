/* SPDX-License-Identifier: Apache-2.0 */
#include "wire.h"

#include <errno.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <net/ethernet.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "load.h"

enum {
    READ_AHEAD = 256 * 1024, /* of a stream, a turn */
    FRAMES_A_TURN = 64,
    HEAD = 8,                /* the words before a frame in `out` of FRAMES and PACKET, and on a TAGGED wire */
    SHORTEST = ETH_HLEN,
    TAG = 4,                 /* of a VLAN */
    MACS = 12,
};

void colo_wire_init(struct colo_wire *w, uint8_t nic, uint32_t max_frame, size_t out_limit)
{
    *w = (struct colo_wire){.nic = nic, .max_frame = max_frame};
    colo_fifo_init(&w->in, SIZE_MAX);
    colo_fifo_init(&w->out, out_limit);
}

void colo_wire_close(struct colo_wire *w)
{
    for (int i = 0; i < w->count; i++)
        close(w->fds[i]);
    w->count = 0;
    w->broken = 0;
    w->blocked = w->paused = w->waits = false;
    w->begun = 0;
    memset(w->watched, 0, sizeof w->watched);
    colo_fifo_fini(&w->in);
    colo_fifo_fini(&w->out);
}

static bool would_block(int error)
{
    return error == EAGAIN || error == EWOULDBLOCK;
}

/* ----------------------------------------------------------------- reading */

static void hand_on(struct colo_wire *w, colo_wire_sink *sink, void *ctx, struct colo_wire_frame *frame)
{
    w->counters.frames_in++;
    w->counters.bytes_in += frame->len;
    sink(ctx, frame);
}

/* The words before a frame on a stream. Returns their length, 0: not all there yet, or a fault (negative). */
static int read_head(const struct colo_wire *w, const uint8_t *p, size_t len, struct colo_wire_frame *frame)
{
    const int head = w->kind == COLO_WIRE_TAGGED ? HEAD : 4;

    if (len < (size_t)head)
        return 0;
    *frame = (struct colo_wire_frame){.len = colo_load32(p), .nic = w->nic};
    if (frame->len > w->max_frame)
        return COLO_FAULT_OVERSIZE;
    if (!frame->len)
        return COLO_FAULT_EMPTY;
    if (w->kind == COLO_WIRE_TAGGED) {
        uint32_t word = colo_load32(p + 4), vnet_len = word & 0xffffff;

        if ((vnet_len != 0 && vnet_len != 10 && vnet_len != 12) || vnet_len > frame->len)
            return COLO_FAULT_VNET;
        frame->vnet_len = (uint8_t)vnet_len;
        frame->nic = (uint8_t)(word >> 24);
    }
    return head;
}

static int hand_on_stream(struct colo_wire *w, colo_wire_sink *sink, colo_wire_more *more, void *ctx)
{
    struct colo_wire_frame frame;
    int head;

    w->waits = false;
    while ((head = read_head(w, colo_fifo_front(&w->in), colo_fifo_len(&w->in), &frame)) > 0) {
        if (colo_fifo_len(&w->in) - (size_t)head < frame.len)
            return 0;
        w->waits = more && !more(ctx, w->nic);
        if (w->waits)
            return 0;
        frame.data = w->in.data + w->in.from + head;
        if (frame.len - frame.vnet_len < SHORTEST)
            w->counters.malformed++;
        else
            hand_on(w, sink, ctx, &frame);
        colo_fifo_take(&w->in, (size_t)head + frame.len);
    }
    return head;
}

static int read_stream(struct colo_wire *w, colo_wire_sink *sink, colo_wire_more *more, void *ctx, int *error)
{
    uint8_t *room;
    ssize_t n;

    if (w->waits && (*error = hand_on_stream(w, sink, more, ctx)) < 0)
        return COLO_WIRE_GONE;
    if (w->waits)
        return COLO_WIRE_OK;
    room = colo_fifo_room(&w->in, READ_AHEAD);
    if (!room) {
        *error = ENOMEM;
        return COLO_WIRE_GONE;
    }
    do
        n = recv(w->fds[0], room, READ_AHEAD, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n < 0 && would_block(errno))
        return COLO_WIRE_OK;
    if (n <= 0) {
        *error = n < 0 ? errno : colo_fifo_len(&w->in) ? COLO_FAULT_TRUNCATED : 0;
        return COLO_WIRE_GONE;
    }
    colo_fifo_put(&w->in, (size_t)n);
    *error = hand_on_stream(w, sink, more, ctx);
    return *error < 0 ? COLO_WIRE_GONE : COLO_WIRE_OK;
}

/**
 * put_tag_back() - the kernel hands the outermost VLAN tag of a packet socket's frame beside it
 * @buffer: TAG bytes of room, then the frame as read
 *
 * Return: where the frame begins now, for it may use that room
 */
static uint8_t *put_tag_back(uint8_t *buffer, ssize_t *len, uint8_t vnet_len, struct msghdr *msg)
{
    uint8_t *frame = buffer + TAG;

    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        struct tpacket_auxdata aux;
        struct virtio_net_hdr vnet;

        if (c->cmsg_level != SOL_PACKET || c->cmsg_type != PACKET_AUXDATA || c->cmsg_len < CMSG_LEN(sizeof aux))
            continue;
        memcpy(&aux, CMSG_DATA(c), sizeof aux);
        if (!(aux.tp_status & TP_STATUS_VLAN_VALID) || *len < vnet_len + SHORTEST)
            continue;
        memmove(buffer, frame, (size_t)vnet_len + MACS);
        frame = buffer;
        colo_store16(frame + vnet_len + MACS,
                     aux.tp_status & TP_STATUS_VLAN_TPID_VALID ? aux.tp_vlan_tpid : ETHERTYPE_VLAN);
        colo_store16(frame + vnet_len + MACS + 2, aux.tp_vlan_tci);
        *len += TAG;
        if (vnet_len < sizeof vnet)
            continue;
        memcpy(&vnet, frame, sizeof vnet); /* its offsets count from the frame's first byte */
        if (vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)
            vnet.csum_start = (uint16_t)(vnet.csum_start + TAG);
        if (vnet.gso_type != VIRTIO_NET_HDR_GSO_NONE)
            vnet.hdr_len = (uint16_t)(vnet.hdr_len + TAG);
        memcpy(frame, &vnet, sizeof vnet);
    }
    return frame;
}

/* One frame of FRAMES or PACKET, behind TAG bytes of room. Returns its length or -1 with errno. */
static ssize_t read_one(struct colo_wire *w, int fd, uint8_t *buffer, size_t size, uint8_t **frame)
{
    union {
        char bytes[CMSG_SPACE(sizeof(struct tpacket_auxdata))];
        struct cmsghdr align;
    } control;
    struct iovec part = {.iov_base = buffer + TAG, .iov_len = size - TAG};
    struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t n;

    *frame = buffer + TAG;
    if (w->kind != COLO_WIRE_PACKET)
        return read(fd, buffer + TAG, size - TAG);
    n = recvmsg(fd, &msg, MSG_DONTWAIT);
    if (n > 0)
        *frame = put_tag_back(buffer, &n, w->vnet_len, &msg);
    return n;
}

/* An interface that is down: it may come back by itself. */
static bool passing(int error)
{
    return error == ENETDOWN || error == ENOBUFS || error == EINTR || error == EIO;
}

static int read_frames(struct colo_wire *w, int fd, int share, colo_wire_sink *sink, colo_wire_more *more, void *ctx,
                       int *error)
{
    const size_t size = (size_t)w->max_frame + 1 + TAG; /* one more: what fills it is too long */
    uint8_t *buffer = colo_fifo_room(&w->in, size);

    if (!buffer) {
        *error = ENOMEM;
        return COLO_WIRE_GONE;
    }
    for (int i = 0; i < share && (!more || more(ctx, w->nic)); i++) {
        struct colo_wire_frame frame = {.vnet_len = w->vnet_len, .nic = w->nic};
        ssize_t n = read_one(w, fd, buffer, size, &frame.data);

        if (n < 0 && would_block(errno))
            return COLO_WIRE_OK;
        if (n < 0 && passing(errno))
            continue;
        if (n < 0) {
            *error = errno;
            return COLO_WIRE_GONE;
        }
        frame.len = (uint32_t)n;
        if (n < w->vnet_len + SHORTEST || (size_t)n > w->max_frame)
            w->counters.malformed++;
        else
            hand_on(w, sink, ctx, &frame);
    }
    return COLO_WIRE_OK;
}

int colo_wire_read(struct colo_wire *w, colo_wire_sink *sink, colo_wire_more *more, void *ctx, int *error)
{
    if (w->kind == COLO_WIRE_STREAM || w->kind == COLO_WIRE_TAGGED)
        return read_stream(w, sink, more, ctx, error);
    for (int i = 0; i < w->count; i++)
        if (read_frames(w, w->fds[i], FRAMES_A_TURN / w->count, sink, more, ctx, error) != COLO_WIRE_OK)
            return COLO_WIRE_GONE;
    return COLO_WIRE_OK;
}

/* ----------------------------------------------------------------- writing */

bool colo_wire_has_room(const struct colo_wire *w, size_t len)
{
    return colo_fifo_has_room(&w->out, len + HEAD);
}

/* A frame in two pieces: its virtio-net header, if that had to be made, and the rest. */
struct pieces {
    struct iovec part[2];
    uint32_t len; /* of both */
};

static int queue(struct colo_wire *w, uint8_t nic, const struct pieces *frame, uint32_t vnet_len)
{
    const size_t head = w->kind == COLO_WIRE_STREAM ? 4 : HEAD;
    uint8_t *room = colo_fifo_room(&w->out, head + frame->len), *at = room + head;

    if (!room)
        return -1;
    colo_store32(room, frame->len);
    if (head == HEAD)
        colo_store32(room + 4, (uint32_t)nic << 24 | vnet_len);
    for (int i = 0; i < 2; at += frame->part[i].iov_len, i++)
        if (frame->part[i].iov_len)
            memcpy(at, frame->part[i].iov_base, frame->part[i].iov_len);
    colo_fifo_put(&w->out, head + frame->len);
    return 0;
}

/*
 * Writes one frame. 0: gone, or refused by the kernel and counted (a guest may send what makes no sense to it or is too
 * long, and an interface may be down); -1: no room now; else an errno: the peer is gone.
 */
static int write_one(struct colo_wire *w, const struct pieces *frame)
{
    ssize_t n;

    do
        n = writev(w->fds[0], frame->part, 2);
    while (n < 0 && errno == EINTR);
    if (n >= 0)
        return 0;
    if (would_block(errno))
        return -1;
    if (errno == EBADFD || errno == ENXIO || errno == ENODEV || errno == ECONNREFUSED || errno == ENOTCONN)
        return errno;
    w->counters.refused++;
    return 0;
}

/* The virtio-net header asks for nothing: the frame is whole without it. */
static bool header_is_idle(const uint8_t *data, uint32_t vnet_len)
{
    return !vnet_len || (!(data[0] & VIRTIO_NET_HDR_F_NEEDS_CSUM) && data[1] == VIRTIO_NET_HDR_GSO_NONE);
}

/* The frame as this wire wants it; `made` is room for a header. false: it can't be had so. */
static bool shape(const struct colo_wire *w, const uint8_t *data, uint32_t len, uint32_t vnet_len, uint8_t made[12],
                  struct pieces *out)
{
    const uint32_t shared = sizeof(struct virtio_net_hdr), wants = w->vnet_len;

    *out = (struct pieces){.len = len};
    if (w->kind != COLO_WIRE_TAGGED && vnet_len != wants) {
        if (!wants && !header_is_idle(data, vnet_len))
            return false;
        /* 12 bytes are the 10 of all and a count of merged buffers, which is 0 outside of a guest's ring. */
        memset(made, 0, 12);
        if (vnet_len && wants)
            memcpy(made, data, shared);
        data += vnet_len;
        len -= vnet_len;
        out->part[0] = (struct iovec){.iov_base = made, .iov_len = wants};
        out->len = wants + len;
    }
    out->part[1] = (struct iovec){.iov_base = (void *)(uintptr_t)data, .iov_len = len};
    return true;
}

int colo_wire_send(struct colo_wire *w, uint8_t nic, const uint8_t *data, uint32_t len, uint32_t vnet_len)
{
    struct pieces frame;
    uint8_t made[12];
    int wrote;

    if (!w->count || vnet_len > len || !shape(w, data, len, vnet_len, made, &frame)) {
        w->counters.refused++;
        return 0;
    }
    if (w->kind != COLO_WIRE_TAGGED)
        vnet_len = w->vnet_len;
    w->counters.frames_out++;
    w->counters.bytes_out += frame.len;
    if (w->kind == COLO_WIRE_STREAM || w->kind == COLO_WIRE_TAGGED || colo_fifo_len(&w->out))
        return queue(w, nic, &frame, vnet_len);
    wrote = write_one(w, &frame);
    w->blocked = wrote < 0;
    if (wrote > 0)
        w->broken = wrote;
    return wrote < 0 ? queue(w, nic, &frame, vnet_len) : 0;
}

static size_t first_length(const struct colo_wire *w)
{
    return (w->kind == COLO_WIRE_STREAM ? 4 : HEAD) + (size_t)colo_load32(colo_fifo_front(&w->out));
}

/* So many bytes of a stream are written: where in a frame is it now? */
static void note_written(struct colo_wire *w, size_t n)
{
    while (n) {
        size_t left = w->begun ? w->begun : first_length(w), some = n < left ? n : left;

        colo_fifo_take(&w->out, some);
        w->begun = left - some;
        n -= some;
    }
}

static int flush_stream(struct colo_wire *w)
{
    while (colo_fifo_len(&w->out)) {
        ssize_t n = send(w->fds[0], colo_fifo_front(&w->out), colo_fifo_len(&w->out), MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && would_block(errno)) {
            w->blocked = true;
            return 0;
        }
        if (n < 0)
            return errno;
        note_written(w, (size_t)n);
    }
    w->blocked = false;
    return 0;
}

static int flush_frames(struct colo_wire *w)
{
    while (colo_fifo_len(&w->out)) {
        const uint8_t *front = colo_fifo_front(&w->out);
        uint32_t len = colo_load32(front);
        const struct pieces frame = {.part[1] = {.iov_base = (void *)(uintptr_t)(front + HEAD), .iov_len = len}};
        int wrote = write_one(w, &frame);

        w->blocked = wrote < 0;
        if (wrote)
            return wrote < 0 ? 0 : wrote;
        colo_fifo_take(&w->out, HEAD + len);
    }
    w->blocked = false;
    return 0;
}

int colo_wire_flush(struct colo_wire *w)
{
    if (!w->count || w->broken || !colo_fifo_len(&w->out))
        return w->broken;
    return w->kind == COLO_WIRE_STREAM || w->kind == COLO_WIRE_TAGGED ? flush_stream(w) : flush_frames(w);
}

size_t colo_wire_void(struct colo_wire *w)
{
    size_t at = w->begun, end = colo_fifo_len(&w->out), count = 0;

    for (; at < end; count++)
        at += (w->kind == COLO_WIRE_STREAM ? 4 : HEAD) + (size_t)colo_load32(colo_fifo_front(&w->out) + at);
    colo_fifo_cut(&w->out, w->begun);
    return count;
}
