/* SPDX-License-Identifier: Apache-2.0 */
/*
 * path.h - the data path of the TAP attach: one thread with epoll that moves the frames of one VM on one host.
 *
 *                 primary                                             secondary
 *
 *     client  VM                                            link                       VM   client
 *       |      ^                                             |                          ^     |
 *     [TAP]---[mirror]----------------------> MIRROR ------->|--[rewriter in]----------[VM] [TAP] closed until
 *       ^      |                                             |                          |     takeover
 *       |    [VM]--> comparator (engine.c) <-- OUTPUT <------|--[rewriter out]<---------'
 *       '------------ released, SYNs told by LEARN --------->|
 *
 * After takeover the secondary's TAP and VM are joined through the rewriter, and the link is out of use. When its VM
 * becomes the primary's of a new pair, in a new path, the connections that still need the rewriter are inherited
 * (colo_path_export, colo_path_import): this primary has a rewriter too, between VM and comparator and between TAP and VM,
 * and tells the secondary of them when a session begins.
 *
 * Epochs on the link. The secondary's VM stands still for a checkpoint: what it says before is of the old epoch, what
 * it says after of the new one, and a MARK in the stream says where the cut is. The primary counts marks and commits:
 * OUTPUT of an epoch that has not begun here waits, OUTPUT of one that is over is dropped (R3). Both count from a SYNC
 * mark on, the answer to a token of the primary's; before it all OUTPUT is dropped. marks.c says why that is enough.
 * The primary marks its VM's STOPs: to a secondary VM that has not run yet goes what clients sent since then, and
 * nothing older, which it would answer anew.
 *
 * What limits do. A frame of the primary VM is never dropped: reading stops until there is room. Frames of clients wait
 * likewise, but for a link that has had no room for stall_timeout they wait no longer: the mirror leaves them out until
 * half of the link's memory is free again, and a checkpoint is wanted. (So a link that is slow, and not stuck, slows
 * clients down to its own pace.) Frames for, or of, the secondary that find no room are dropped, and a checkpoint is
 * wanted; so are the LEARN notices. Each has a counter. A part of the link's memory is kept for marks and control.
 *
 * Events are never lost: those that may come of themselves are told once until they are read, and of each thing that is
 * attached one more, its loss; attaching is refused while 128 lie unread.
 *
 * Threads: all calls [any thread]; each takes the path's lock, which the thread holds while it works, a turn at most.
 */
#ifndef COLO_PATH_H
#define COLO_PATH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coloproxy.h"
#include "link.h"
#include "rewriter.h"
#include "tls.h"

/* cffi:begin */

typedef struct colo_path colo_path;

enum { COLO_PATH_NICS = 16, COLO_PATH_QUEUES = 8 };

enum colo_path_role {
    COLO_PATH_PRIMARY = 0,
    COLO_PATH_SECONDARY = 1,
};

/* How frames stand on a file descriptor. */
enum colo_wire_kind {
    COLO_WIRE_STREAM = 0, /* a stream socket: 4 bytes of length, then the frame; -netdev stream and socket */
    COLO_WIRE_FRAMES = 1, /* one frame a read or write: a TAP, or a connected datagram socket (-netdev dgram) */
    COLO_WIRE_PACKET = 2, /* an AF_PACKET socket bound to an interface: as FRAMES, VLAN tags come beside the frame */
    COLO_WIRE_TAGGED = 3, /* a stream socket to the comparator: framing.h's words with the NIC's number in the second */
};

enum colo_path_place {
    COLO_PLACE_CLIENT = 0,          /* of a NIC: towards the clients, a TAP; up to COLO_PATH_QUEUES of them */
    COLO_PLACE_VM = 1,              /* of a NIC: towards the VM */
    COLO_PLACE_PRIMARY_IN = 2,      /* the comparator's three sockets, nic 0 */
    COLO_PLACE_SECONDARY_IN = 3,
    COLO_PLACE_OUTDEV = 4,
    COLO_PLACE_LINK = 5,            /* in events only */
    COLO_PLACE_COUNT = 6,
};

struct colo_path_config {
    uint8_t role;            /* enum colo_path_role */
    uint8_t nics;            /* 1 to COLO_PATH_NICS */
    uint32_t max_frame;      /* virtio-net header included; 69,632 */
    uint64_t wire_bytes;     /* that may wait for one wire; 4 MiB */
    uint64_t hold_bytes;     /* of the secondary that may wait for their epoch; 32 MiB */
    int64_t stall_timeout;   /* ns; 1 s */
    struct colo_link_config link;
    struct colo_rewriter_config rewriter;
};

enum colo_path_event_kind {
    COLO_PATH_LOST = 0,      /* `place`, `nic`: the peer is gone; error: 0 (closed), an errno, or a colo_engine_fault */
    COLO_PATH_CONTROL = 1,   /* messages of the peer's control plane wait: colo_path_take_control */
    COLO_PATH_OVERRUN = 2,   /* `place`: frames for or of the secondary were left out there: want a checkpoint */
    COLO_PATH_SYNCED = 3,    /* the peer answered the token: colo_path_accept, when no STOP came since it was given */
    COLO_PATH_FLOWS = 4,     /* the rewriter has no room for new connections: want a checkpoint */
    COLO_PATH_GATE_LOST = 5, /* the QMP socket is gone */
    COLO_PATH_FATAL = 6,     /* the thread ended by itself: `error` is an errno */
    COLO_PATH_EPOCH = 7,     /* a mark came: the secondary runs its next epoch */
    COLO_PATH_MISCOUNTED = 8, /* a mark came that no checkpoint here explains: OUTPUT is dropped, want a new token */
};

struct colo_path_event {
    uint8_t kind;            /* enum colo_path_event_kind */
    uint8_t place;           /* enum colo_path_place */
    uint8_t nic;
    int32_t error;
    int64_t time;            /* CLOCK_MONOTONIC ns */
    char text[160];          /* LOST of the link: why */
};

struct colo_wire_counters {
    uint64_t frames_in, bytes_in;
    uint64_t frames_out, bytes_out; /* handed to the kernel, or put in line; refused ones of those included */
    uint64_t refused;        /* that the other side would not take: it is down, or they make no sense there */
    uint64_t dropped;        /* frames of the secondary's that found no room */
    uint64_t malformed;      /* read, but too short or too long to be a frame */
    uint64_t queued_bytes;   /* now */
    uint64_t pauses;         /* how often reading from it stopped for back-pressure */
    uint8_t connected;
};

struct colo_path_counters {
    struct colo_wire_counters client[16]; /* by NIC */
    struct colo_wire_counters vm[16];
    struct colo_wire_counters comparator[3];
    struct colo_link_counters link;
    struct colo_rewriter_counters rewriter;
    uint64_t mirrored;       /* frames put into the link for the secondary */
    uint64_t mirror_left_out;/* ... that found it full */
    uint64_t reflected;      /* frames from the client side with an address of the VM's own as their sender: dropped */
    uint64_t learned;        /* notices of SYNs put into the link */
    uint64_t asked;          /* questions of the secondary's for neighbours that went to the client side */
    uint64_t learn_left_out; /* ... that found it full */
    uint64_t output;         /* frames of the secondary that came in their epoch */
    uint64_t output_left_out;/* SECONDARY: ... that found the link full */
    uint64_t stale;          /* ... of an epoch that was over, or unknown: dropped */
    uint64_t miscounted;     /* PRIMARY: marks that no checkpoint explained */
    uint64_t wakeups;
    uint64_t held_bytes;     /* now: of the secondary, waiting for their epoch or for the gate */
    uint64_t gate_closed;
    uint64_t events_lost;
    int64_t marks, commits;  /* since the SYNC; -1: none yet, or not accepted */
    uint8_t link_up;
    uint8_t standing;        /* the VM stands still: PRIMARY since drain, SECONDARY since stand */
    uint8_t taken_over;
};

/* An address of the VM's, learnt from ARP and neighbour discovery of its own. */
struct colo_neighbour {
    uint8_t nic;
    uint8_t family;          /* 4, 6, or 0: the MAC alone */
    uint8_t vlan_count;
    uint16_t vlan[2];        /* outermost first */
    uint8_t mac[6];
    uint8_t address[16];     /* IPv4 in the first 4 bytes */
};

void colo_path_config_default(struct colo_path_config *config);
colo_path *colo_path_create(const struct colo_path_config *config); /* NULL: no sense, or no memory */
int colo_path_start(colo_path *p);
/* Ends the thread, after up to linger_ms for what still waits to be written. Idempotent. */
int colo_path_stop(colo_path *p, int linger_ms);
void colo_path_destroy(colo_path *p);

/*
 * Gives the path a file descriptor, which it owns from then on. MISUSE: the place is taken, or can't have that kind;
 * SYSTEM: not a descriptor that can be waited for; LIMIT: too many events lie unread.
 */
int colo_path_attach(colo_path *p, int place, int nic, int fd, int kind, int vnet_len);
int colo_path_detach(colo_path *p, int place, int nic);

/*
 * Gives it a connection whose handshake and hello are over; owned from then on, not on failure. `restart`: a new
 * session, else go on at byte `from` of ours. LIMIT: that is not kept any more, or too many events lie unread.
 */
int colo_path_link_attach(colo_path *p, colo_transport *t, bool restart, uint64_t from);
/* Closes the connection; `end`: and the session with it, nothing is mirrored any more. */
int colo_path_link_detach(colo_path *p, bool end);
uint64_t colo_path_link_received(colo_path *p);
bool colo_path_link_can_resume(colo_path *p, uint64_t from);

/* Messages between the control planes, in order, opaque here. LIMIT: no room. */
int colo_path_control(colo_path *p, const uint8_t *data, size_t len);
/* The next one: its length, 0: none. LIMIT: longer than cap. */
long colo_path_take_control(colo_path *p, uint8_t *out, size_t cap);

/*
 * PRIMARY. Reads what the VM's sides hold and hands it to the comparator: at STOP, before colo_engine_checkpoint_stop.
 * From then until commit or stand_over what the secondary says is held: it can't be compared in this epoch any more.
 * `stopped`: since when the VM stands still, CLOCK_MONOTONIC ns.
 */
int colo_path_drain(colo_path *p, int64_t stopped);
/* A checkpoint has committed, and the engine was told so: the secondary's next epoch is this one's. */
int colo_path_commit(colo_path *p);
/*
 * OUTPUT is dropped from now on until the peer has answered `token` (not 0) by a SYNC mark, and then held until
 * `accept`. MISUSE: it was not answered, or the secondary has begun another epoch since: give a new one.
 */
int colo_path_sync(colo_path *p, uint64_t token);
int colo_path_accept(colo_path *p);

/*
 * PRIMARY. From `until` (CLOCK_MONOTONIC ns) on nothing goes to the client side: released frames wait where they are.
 * Whoever may be taken over from gives himself no longer than the other will wait for a sign of life, and again and
 * again more. So one that stood still for long, thread and all, says nothing when it goes on. INT64_MAX, as in the
 * beginning: for ever.
 */
int colo_path_lease(colo_path *p, int64_t until);
/*
 * SECONDARY. The VM waits for its first state, or nobody knows yet what it does. As stand, but what clients send is kept
 * only from the primary's next STOP on, or as far as there is room: the rest comes with the primary's state.
 */
int colo_path_wait(colo_path *p);
/* The VM stands still for a checkpoint: what it says is held. */
int colo_path_stand(colo_path *p);
/* It goes on as the primary's copy since `resumed` (CLOCK_MONOTONIC ns): what was read before is dropped. */
int colo_path_epoch(colo_path *p, int64_t resumed);
/* It goes on as it was. PRIMARY: the checkpoint has failed. */
int colo_path_stand_over(colo_path *p);
/* Answers the primary's token. */
int colo_path_answer(colo_path *p, uint64_t token);
/*
 * The primary is gone: the VM's frames go to the TAP, and back. What was held of it is dropped, if it is not certain
 * that the VM that said it is still the same (a checkpoint is under way, or the gate is closed): clients will ask
 * again.
 */
int colo_path_takeover(colo_path *p);

/*
 * What colo_rewriter_export says, in one piece: of a secondary after takeover, or of a primary. LIMIT: `cap` is less than
 * export_size says. MISUSE: a secondary whose VM is nobody's yet.
 */
long colo_path_export(colo_path *p, uint8_t *out, size_t cap);
size_t colo_path_export_size(colo_path *p);
/*
 * PRIMARY, before there is a session: its VM goes on with the connections of a table that was exported `age` ns ago.
 * Errors as of colo_rewriter_import; MISUSE too for a secondary, and while there is a session.
 */
int colo_path_import(colo_path *p, const uint8_t *data, size_t len, int64_t age, const char **why);

/* The epoch gate of the secondary's QMP; as the engine's, which see. */
int colo_path_gate_attach(colo_path *p, int qmp_fd);
int colo_path_gate_done(colo_path *p, uint64_t messages);
int colo_path_gate_detach(colo_path *p);

/* A frame of our own, without virtio-net header, to the client side. MISUSE: too long, no room, or nothing is there. */
int colo_path_inject(colo_path *p, int nic, const uint8_t *frame, size_t len);
size_t colo_path_neighbours(colo_path *p, struct colo_neighbour *out, size_t cap);

int colo_path_event_fd(const colo_path *p);
size_t colo_path_events(colo_path *p, struct colo_path_event *out, size_t cap);
void colo_path_counters_of(colo_path *p, struct colo_path_counters *out);

/* cffi:end */

#endif
