/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sink.h - the client's side: reads outdev, and checks that each flow's stream comes out once, whole and in order.
 */
#ifndef COLO_TRAFFIC_SINK_H
#define COLO_TRAFFIC_SINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "framing.h"
#include "plan.h"
#include "sample.h"
#include "traffic.h"
#include "wire.h"

struct colo_sink_flow {
    uint64_t next;     /* stream offset behind the furthest segment; of datagrams the number */
    uint32_t missing;  /* before it, in the same unit */
    int64_t asked;     /* responses: when the one under way was planned */
    uint32_t round;    /* responses: how many there were before it */
    bool waiting;      /* responses: one is under way */
};

/* Responses: a client that thinks until `due`. */
struct colo_sink_thought {
    int64_t due;
    uint32_t flow;
};

struct colo_sink {
    int fd;
    int kind; /* enum colo_traffic_sink */
    const struct colo_wire *wire;
    struct colo_samples *samples;
    struct colo_framing framing;
    uint8_t *buffer;
    size_t held; /* bytes of an unfinished frame at its front */
    uint32_t flows;
    struct colo_sink_flow *flow;
    int64_t last; /* when something came */

    int64_t think_time;
    struct colo_sink_thought *thoughts; /* responses: ring of `flows`, in the order of `due`; else NULL */
    uint32_t first_thought, thinking;

    struct colo_traffic_counters *counters;
};

/* `sink` is zeroed. */
int colo_sink_init(struct colo_sink *sink, const struct colo_traffic_config *config, int fd,
                   const struct colo_wire *wire, struct colo_samples *samples, struct colo_traffic_counters *counters);
void colo_sink_clear(struct colo_sink *sink);

/* Reads what is there, within reason: bytes, 0: nothing is; these, and errors, are negative. */
enum { COLO_SINK_EOF = -100, COLO_SINK_BROKEN = -101 };
int colo_sink_read(struct colo_sink *sink, int64_t now);

/* Responses: the clients' first requests, spread over the think time. */
void colo_sink_begin(struct colo_sink *sink, int64_t now);

/* Responses: when the next is due; INT64_MAX: all are under way. */
int64_t colo_sink_next_ask(const struct colo_sink *sink);

/* Responses: plans those that are due, up to `max` in all. */
void colo_sink_ask(struct colo_sink *sink, struct colo_plan *plan, uint64_t max, int64_t now);

/* Responses: gives up those that have been under way since before `since`; how many. */
uint32_t colo_sink_give_up(struct colo_sink *sink, int64_t since, int64_t now);

#endif
