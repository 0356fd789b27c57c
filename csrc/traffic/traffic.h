/* SPDX-License-Identifier: Apache-2.0 */
/*
 * traffic.h - the public interface of the traffic generator: what a primary and a secondary VM put out, made up.
 *
 *   colo_traffic   drives a comparator's sockets: writes both VMs' frames, reads what is released, checks it, measures.
 *   colo_relay     a comparator that compares nothing: the limit that sockets set for whoever must see the bytes.
 *
 * Theory of operation
 *
 *   All that the VMs say is one line of bytes, the plan (plan.h): bursts of segments, flow after flow, round after
 *   round. A place on it is one number, from which flow, stream offset, sequence number and payload (pattern.h) follow,
 *   so neither side keeps what it sent. The primary cuts the plan every `length` bytes. The secondary walks the same
 *   plan, `skew` bytes behind, with cuts of its own.
 *
 *   Each side (speaker.h) writes a batch of frames, the `turn`, into a small buffer that stays in the cache, and hands it to
 *   its socket with one call; then the other side has its turn, then outdev is read. Nothing blocks; when nothing
 *   moved, poll() waits. There is one thread, the caller's: colo_traffic_run() works until a given time.
 *
 *   Latency is measured on samples (sample.h): the IP identification of the primary's frame, which no comparator may
 *   look at, names the slot where the time is kept at which the later of both sides' frames was handed to the kernel.
 *
 * Conventions are those of coloproxy.h: ns of CLOCK_MONOTONIC; 0 or more on success, a negative `enum colo_error` else.
 * The text between the two cffi marks is also the cdef of the Python binding.
 */
#ifndef COLO_TRAFFIC_H
#define COLO_TRAFFIC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* cffi:begin */

/* The values of enum colo_error that these calls return. */
enum colo_traffic_error {
    COLO_TRAFFIC_ERR_NOMEM = -1,
    COLO_TRAFFIC_ERR_MISUSE = -2,
    COLO_TRAFFIC_ERR_SYSTEM = -4, /* errno tells */
};

enum {
    COLO_TRAFFIC_MAX_FLOWS = 1 << 20,
    COLO_TRAFFIC_MAX_BURST = 4096,
    COLO_TRAFFIC_MAX_LENGTH = 65483, /* 65,535 of IPv4 less its header, TCP's, and timestamps */
    COLO_TRAFFIC_MIN_DATAGRAM = 8,   /* it begins with its number */
    COLO_TRAFFIC_MAX_TURN = 1 << 22,
};

/* What is done with what the comparator releases. */
enum colo_traffic_sink {
    COLO_SINK_VERIFY = 0,  /* every byte of every frame is checked */
    COLO_SINK_COUNT = 1,   /* frames are counted */
    COLO_SINK_DISCARD = 2, /* bytes are counted, and not even copied from the kernel */
};

struct colo_traffic_config {
    uint32_t flows;
    uint32_t length;          /* payload bytes of the primary's segments or datagrams */
    uint32_t recut;           /* of the secondary's segments; 0: length */
    uint32_t burst;           /* segments of one flow before the next has its turn */
    uint32_t turn;            /* bytes given to one socket before the other's turn */
    uint32_t gso_size;        /* with vnet_hdr: longer segments are super-frames of such ones */
    uint64_t skew;            /* the secondary is so many payload bytes behind */
    uint64_t max_segments;    /* of the primary; then it stops by itself. 0: none */
    double rate;              /* segments a second; 0: as fast as it goes */
    uint32_t sample_every;    /* latency of each such segment; 0: of none */
    uint32_t loss_ppm;        /* secondary's segments that come loss_delay late */
    uint32_t divergence_ppm;  /* secondary's segments with a wrong byte */
    int64_t loss_delay;
    int64_t think_time;       /* request_response: from the release of a response to the flow's next */
    int64_t response_timeout; /* request_response: after that the response is given up, and the flow goes on */
    int64_t checkpoint_pause; /* from DO_CHECKPOINT to COLO_CHECKPOINT */
    int64_t drain;            /* at the end: how long to wait without progress */
    uint32_t seed;            /* of loss and divergence */
    uint8_t sink;             /* enum colo_traffic_sink */
    bool request_response;    /* one segment of each flow under way; needs COLO_SINK_VERIFY */
    bool udp;
    bool ipv6;
    bool vnet_hdr;            /* QEMU's vnet_hdr_support=on: a virtio-net header before each frame */
    bool timestamps;          /* TCP's option */
};

void colo_traffic_config_default(struct colo_traffic_config *config);

/* The sockets, non-blocking, which stay the caller's; -1 for one that is not there. */
struct colo_traffic_sockets {
    int primary_in; /* both or none */
    int secondary_in;
    int outdev;
    int notify;
};

struct colo_traffic_sent {
    uint64_t frames;   /* handed to the kernel, SYN-ACKs and repeated ones included */
    uint64_t segments; /* of these: with payload, the first time */
    uint64_t payload;  /* bytes of those */
    uint64_t bytes;    /* all bytes on the socket */
};

struct colo_traffic_counters {
    struct colo_traffic_sent sent[2]; /* by enum colo_side */
    uint64_t released_frames;   /* from outdev */
    uint64_t released_segments; /* with payload; COLO_SINK_VERIFY only, as all below */
    uint64_t released_payload;  /* COLO_SINK_VERIFY only */
    uint64_t released_bytes;    /* on the socket, any sink */
    uint64_t gaps;              /* segments that came with something before them missing */
    uint64_t late;              /* segments that came out after one that follows them */
    uint64_t repeated;          /* segments that came out before, and fill no gap */
    uint64_t corrupt;           /* segments with other payload than the primary's */
    uint64_t foreign;           /* frames that the primary never sent */
    uint64_t lost_late;         /* secondary's segments that came late by loss_ppm */
    uint64_t diverged;          /* secondary's segments with a wrong byte */
    uint64_t checkpoints;
    uint64_t checkpoint_wishes; /* DO_CHECKPOINT messages */
    uint64_t given_up;          /* responses by response_timeout */
    uint64_t skew_given_up;     /* turns in which the secondary came nearer: nothing else moved */
    uint64_t polls;             /* times that nothing could be done */
};

/* Why colo_traffic_run() returned. */
enum colo_traffic_end {
    COLO_TRAFFIC_TIME = 0,        /* `until` has come */
    COLO_TRAFFIC_COMPLETE = 1,    /* all was sent, and released as far as it will be */
    COLO_TRAFFIC_CLOSED = 2,      /* the comparator closed a socket: colo_traffic_fault() */
    COLO_TRAFFIC_BROKEN = 3,      /* outdev or notify sent what is no framing */
    COLO_TRAFFIC_INTERRUPTED = 4, /* by a signal */
};

typedef struct colo_traffic colo_traffic;

/* COLO_TRAFFIC_ERR_MISUSE: the configuration contradicts itself; colo_traffic_check() says the same before. */
int colo_traffic_check(const struct colo_traffic_config *config);
int colo_traffic_create(const struct colo_traffic_config *config, const struct colo_traffic_sockets *sockets,
                        colo_traffic **out);
void colo_traffic_destroy(colo_traffic *t);

/* Works until then: an enum colo_traffic_end, or an error. Traffic begins with the first call. */
int colo_traffic_run(colo_traffic *t, int64_t until);

/* Nothing new from now on; what was begun is finished: call colo_traffic_run() until it is complete. */
void colo_traffic_stop(colo_traffic *t);

void colo_traffic_get_counters(const colo_traffic *t, struct colo_traffic_counters *out);

/* After COLO_TRAFFIC_CLOSED or _BROKEN: "primary_in: Broken pipe". */
const char *colo_traffic_fault(const colo_traffic *t);

/* The histogram of latencies: its counters (they only grow), and the least and the greatest time, in ns, of one. */
size_t colo_traffic_latency(const colo_traffic *t, const uint64_t **counts);
uint64_t colo_traffic_latency_least(size_t index);
uint64_t colo_traffic_latency_greatest(size_t index);

/*
 * Passes what comes from primary_in on to outdev, and throws away what comes from secondary_in; both are read into
 * memory. Until `stop_fd` is readable or a peer has closed and all is passed on. Blocks; the sockets are non-blocking.
 */
int colo_relay_run(int primary_in, int secondary_in, int outdev, int stop_fd);

/* cffi:end */

#endif
