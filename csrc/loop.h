/* SPDX-License-Identifier: Apache-2.0 */
/*
 * loop.h - the engine's thread: epoll around the judge, the gate and the commands.
 *
 * One wake-up: commands in order, a read of each input, the clock, a look at QMP, and only if the gate is open the
 * judging of what was read; then events, one gathered write, counters. The clock is read after the reads, so that no
 * frame's time is earlier than its arrival. While the gate is closed nothing more is read, and time-outs stand still.
 */
#ifndef COLO_LOOP_H
#define COLO_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "command.h"
#include "coloproxy.h"
#include "gate.h"
#include "judge.h"
#include "ports.h"
#include "report.h"

/* What epoll knows of one descriptor. `generation` tells apart two that had the same number. */
struct colo_watch {
    int fd;
    uint64_t generation;
    uint32_t events; /* 0: not in epoll */
};

enum colo_loop_tag {
    COLO_TAG_PRIMARY = COLO_PORT_PRIMARY_IN,
    COLO_TAG_SECONDARY = COLO_PORT_SECONDARY_IN,
    COLO_TAG_OUTDEV = COLO_PORT_OUTDEV,
    COLO_TAG_QMP,
    COLO_TAG_NEAR,
    COLO_TAG_COMMANDS,
    COLO_TAG_COUNT,
};

struct colo_loop {
    int epoll_fd;
    struct colo_command_queue *commands;
    struct colo_report *report;
    struct colo_ports *ports;
    struct colo_judge judge;
    struct colo_gate gate;
    struct colo_watch watches[COLO_TAG_COUNT];
    uint64_t claims[COLO_PORT_COUNT]; /* of the peers there are, see ports.h */
    uint64_t gate_generation;
    bool paused[COLO_PORT_COUNT];     /* by back-pressure, after the last wake-up */
    bool frames_at_gate;              /* waited, after the last wake-up */
    bool held;                        /* frames waited for a lease, after the last wake-up */
    bool ending;
    int64_t end_by;
    struct colo_engine_counters counters;
};

/* On a zeroed loop. The three pointers must outlive it. COLO_ERR_NOMEM, _SYSTEM, _MISUSE or 0. */
int colo_loop_init(struct colo_loop *l, const struct colo_engine_config *config, struct colo_command_queue *commands,
                   struct colo_report *report, struct colo_ports *ports);
void colo_loop_fini(struct colo_loop *l);

/* The thread's main function: runs until COLO_COMMAND_END, or stages COLO_ENGINE_FATAL. Closes all peers. */
void colo_loop_run(struct colo_loop *l);

#endif
