/* SPDX-License-Identifier: Apache-2.0 */
#include "sink.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "clock.h"
#include "coloproxy.h"

enum { BUFFER = 1 << 18, FRAMES = 256, READS = 4 /* of one turn */ };

int colo_sink_init(struct colo_sink *sink, const struct colo_traffic_config *config, int fd,
                   const struct colo_wire *wire, struct colo_samples *samples, struct colo_traffic_counters *counters)
{
    sink->fd = fd;
    sink->kind = config->sink;
    sink->wire = wire;
    sink->samples = samples;
    sink->counters = counters;
    sink->flows = config->flows;
    sink->think_time = config->think_time;
    colo_framing_start(&sink->framing, config->vnet_hdr, COLO_WIRE_FRAME_MAX);
    sink->buffer = malloc(BUFFER);
    sink->flow = calloc(config->flows, sizeof *sink->flow);
    if (config->request_response)
        sink->thoughts = calloc(config->flows, sizeof *sink->thoughts);
    if (!sink->buffer || !sink->flow || (config->request_response && !sink->thoughts))
        return COLO_ERR_NOMEM;
    return 0;
}

void colo_sink_clear(struct colo_sink *sink)
{
    free(sink->buffer);
    free(sink->flow);
    free(sink->thoughts);
    sink->buffer = NULL;
    sink->flow = NULL;
    sink->thoughts = NULL;
}

static void think(struct colo_sink *sink, uint32_t flow, int64_t due)
{
    sink->flow[flow].waiting = false;
    sink->flow[flow].round++;
    sink->thoughts[(sink->first_thought + sink->thinking++) % sink->flows] = (struct colo_sink_thought){due, flow};
}

static bool is_right(const struct colo_sink *sink, const struct colo_traffic_wire_seen *seen, uint64_t offset)
{
    const uint32_t skip = sink->wire->config.udp ? COLO_TRAFFIC_MIN_DATAGRAM : 0;
    const uint32_t phase = (uint32_t)(offset % COLO_PATTERN_PERIOD);

    return memcmp(seen->payload + skip, sink->wire->pattern.bytes + phase + skip, seen->len - skip) == 0;
}

/**
 * verify() - one released frame
 *
 * Sequence numbers are 32 bits of a 64-bit stream offset: the one nearest to the flow's furthest is meant, which is
 * right as long as no segment is late by 2 GiB.
 */
static void verify(struct colo_sink *sink, const struct colo_frame *frame, int64_t now)
{
    struct colo_traffic_counters *n = sink->counters;
    const bool udp = sink->wire->config.udp;
    struct colo_traffic_wire_seen seen;
    struct colo_sink_flow *flow;
    uint64_t at, next;
    int32_t ahead;

    const enum colo_traffic_wire_kind kind = colo_traffic_wire_read(sink->wire, frame->data, frame->len, frame->vnet_len, &seen);
    if (kind == COLO_WIRE_FOREIGN || seen.flow >= sink->flows) {
        n->foreign++;
        return;
    }
    if (kind == COLO_WIRE_SYN)
        return;
    flow = &sink->flow[seen.flow];
    ahead = (int32_t)(seen.seq - (uint32_t)flow->next);
    at = flow->next + (uint64_t)(int64_t)ahead;
    next = at + (udp ? 1 : seen.len);
    n->released_segments++;
    n->released_payload += seen.len;
    if (!is_right(sink, &seen, udp ? at * seen.len : at))
        n->corrupt++;
    if (ahead >= 0) {
        n->gaps += ahead > 0;
        flow->missing += (uint32_t)ahead;
        flow->next = next;
    } else if (flow->missing >= next - at) {
        /* Which bytes are missing isn't kept, only how many: a repeated segment may pass for one that is late. */
        flow->missing -= (uint32_t)(next - at);
        n->late++;
    } else {
        n->repeated++;
    }
    if (seen.tag)
        colo_sample_back(sink->samples, seen.tag, now);
    if (sink->thoughts && flow->waiting && ahead >= 0)
        think(sink, seen.flow, now + sink->think_time);
}

static int take(struct colo_sink *sink, size_t len, int64_t now)
{
    struct colo_frame frames[FRAMES];
    size_t at = 0, used, count;

    do {
        count = colo_framing_scan(&sink->framing, sink->buffer + at, len - at, 0, frames, FRAMES, &used);
        at += used;
        sink->counters->released_frames += count;
        if (sink->kind == COLO_SINK_VERIFY) {
            for (size_t i = 0; i < count; i++)
                verify(sink, &frames[i], now);
        }
    } while (count == FRAMES);
    sink->held = len - at;
    memmove(sink->buffer, sink->buffer + at, sink->held);
    return sink->framing.fault ? COLO_SINK_BROKEN : 0;
}

int colo_sink_read(struct colo_sink *sink, int64_t now)
{
    const int flags = MSG_DONTWAIT | (sink->kind == COLO_SINK_DISCARD ? MSG_TRUNC : 0);
    int total = 0;

    for (int i = 0; i < READS; i++) {
        const size_t room = BUFFER - sink->held;
        const ssize_t n = recv(sink->fd, sink->buffer + sink->held, room, flags);
        int rc;

        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            break;
        if (n <= 0)
            return n ? COLO_ERR_SYSTEM : COLO_SINK_EOF;
        sink->counters->released_bytes += (uint64_t)n;
        total += (int)n;
        if (sink->kind != COLO_SINK_DISCARD) {
            now = colo_clock();
            rc = take(sink, sink->held + (size_t)n, now);
            if (rc < 0)
                return rc;
        }
        if ((size_t)n < room)
            break;
    }
    if (total)
        sink->last = now;
    return total;
}

void colo_sink_begin(struct colo_sink *sink, int64_t now)
{
    for (uint32_t i = 0; i < sink->flows; i++)
        sink->thoughts[i] = (struct colo_sink_thought){now + sink->think_time * i / sink->flows, i};
    sink->thinking = sink->flows;
}

int64_t colo_sink_next_ask(const struct colo_sink *sink)
{
    return sink->thinking ? sink->thoughts[sink->first_thought].due : INT64_MAX;
}

void colo_sink_ask(struct colo_sink *sink, struct colo_plan *plan, uint64_t max, int64_t now)
{
    while (sink->thinking && plan->bursts < max) {
        const struct colo_sink_thought thought = sink->thoughts[sink->first_thought];
        struct colo_sink_flow *flow = &sink->flow[thought.flow];

        if (thought.due > now)
            return;
        sink->first_thought = (sink->first_thought + 1) % sink->flows;
        sink->thinking--;
        flow->waiting = true;
        flow->asked = now;
        colo_plan_ask(plan, thought.flow, flow->round);
    }
}

uint32_t colo_sink_give_up(struct colo_sink *sink, int64_t since, int64_t now)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < sink->flows; i++) {
        if (sink->flow[i].waiting && sink->flow[i].asked < since) {
            think(sink, i, now);
            count++;
        }
    }
    return count;
}
