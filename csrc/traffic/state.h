/* SPDX-License-Identifier: Apache-2.0 */
/* state.h - the generator's state, for the files that make up its loop: traffic.c and checkpoint.c. */
#ifndef COLO_TRAFFIC_STATE_H
#define COLO_TRAFFIC_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "plan.h"
#include "sample.h"
#include "sink.h"
#include "speaker.h"
#include "traffic.h"
#include "wire.h"
#include "wish.h"

struct colo_traffic {
    struct colo_traffic_config config;
    struct colo_traffic_sockets sockets;
    struct colo_traffic_counters counters; /* but for what the sides count */
    struct colo_wire wire;
    struct colo_plan plan;
    struct colo_speaker side[2];
    struct colo_sink sink;
    struct colo_wishes wishes;
    int64_t began;      /* 0: not yet */
    int64_t moved;      /* when something did last */
    int64_t resume;     /* a checkpoint is under way until then; 0: none */
    int64_t give_up_at;
    bool answering;     /* COLO_CHECKPOINT is still to be sent */
    bool stopped;       /* nothing new */
    char fault[96];
    struct colo_samples samples;
};

/* Notes why a socket can't be used any more (errno, 0: its peer closed it); returns COLO_TRAFFIC_CLOSED. */
int colo_traffic_closed(struct colo_traffic *t, const char *name, int error);

#endif
