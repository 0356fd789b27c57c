/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wire.h - one place where frames come from and go to: its file descriptors, how frames stand on them, what waits.
 *
 * Frames are read in batches and handed to a function one by one, in memory that it may change. Frames to be written
 * go out at once where that is one call a frame, and by colo_wire_flush where many go in one.
 */
#ifndef COLO_WIRE_H
#define COLO_WIRE_H

#include "fifo.h"
#include "path.h"

struct colo_wire_frame {
    uint8_t *data;      /* vnet_len bytes of virtio-net header, then the Ethernet frame */
    uint32_t len;       /* of both */
    uint8_t vnet_len;
    uint8_t nic;        /* TAGGED: as it says, else the wire's */
};

typedef void colo_wire_sink(void *ctx, const struct colo_wire_frame *frame);
/* Whether one more frame of this NIC finds room where it goes. */
typedef bool colo_wire_more(void *ctx, int nic);

struct colo_wire {
    int fds[COLO_PATH_QUEUES];  /* one, but for a TAP with several queues */
    uint8_t count;              /* of them, 0: nothing is attached */
    uint8_t kind;               /* enum colo_wire_kind */
    uint8_t vnet_len;           /* FRAMES, PACKET: what stands before each frame */
    uint8_t nic;
    bool blocked;               /* the last write found no room */
    int broken;                 /* an errno of a write that told that the peer is gone; colo_wire_flush hands it on */
    bool paused;                /* not read now, for back-pressure */
    uint32_t max_frame;
    uint32_t watched[COLO_PATH_QUEUES]; /* epoll events asked for; the loop's */
    struct colo_fifo in;        /* stream kinds: read, not yet handed on */
    struct colo_fifo out;       /* stream kinds: as it goes on the wire; the others: framing.h's words before each */
    size_t begun;               /* stream kinds: what is left of the frame in `out` that is half written, 0: none is */
    bool waits;                 /* stream kinds: a whole frame is in `in` for which there was no room */
    struct colo_wire_counters counters;
};

enum colo_wire_result {
    COLO_WIRE_OK = 0,    /* read until nothing was left, or the turn's share is used */
    COLO_WIRE_GONE = 1,  /* *error: 0 (closed), an errno, or a colo_engine_fault */
};

void colo_wire_init(struct colo_wire *w, uint8_t nic, uint32_t max_frame, size_t out_limit);
void colo_wire_close(struct colo_wire *w); /* closes all; what waits in `out` is lost */

/*
 * Reads up to a turn's share (64 frames, or 256 KiB of a stream), and hands each frame on while `more` (NULL: always)
 * says that there is room. Where that ends a stream's turn w->waits is set: no poll tells of what was read already.
 */
int colo_wire_read(struct colo_wire *w, colo_wire_sink *sink, colo_wire_more *more, void *ctx, int *error);
/* There is room for a frame of `len` bytes. */
bool colo_wire_has_room(const struct colo_wire *w, size_t len);
/*
 * Puts a frame out; without a peer it is counted as refused. -1: no memory. Rooms are the caller's care:
 * colo_wire_has_room. A virtio-net header is brought to the wire's length. Where the wire has none a frame is refused
 * if its header asks for something: a checksum, or segmentation.
 */
int colo_wire_send(struct colo_wire *w, uint8_t nic, const uint8_t *data, uint32_t len, uint32_t vnet_len);
/* Writes what waits. 0, or an errno when the peer is gone. */
int colo_wire_flush(struct colo_wire *w);
/* Stream kinds: throws away the frames that wait and of which nothing is written yet; how many. */
size_t colo_wire_void(struct colo_wire *w);

#endif
