/* SPDX-License-Identifier: Apache-2.0 */
/*
 * command.h - the bounded queue of what the control plane asks of the engine's thread.
 *
 * Any thread pushes, the engine's thread pops, in order; an eventfd wakes it. Successive gate_done of the control
 * plane, of which there is one for each QMP line, become one entry.
 */
#ifndef COLO_COMMAND_H
#define COLO_COMMAND_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

enum colo_command_kind {
    COLO_COMMAND_ATTACH,      /* port, fd, generation */
    COLO_COMMAND_DETACH,      /* port */
    COLO_COMMAND_GATE_ATTACH, /* fd: QEMU's, fd2: our end of the pair */
    COLO_COMMAND_GATE_DONE,   /* value: lines */
    COLO_COMMAND_GATE_DETACH,
    COLO_COMMAND_STOP,
    COLO_COMMAND_COMMIT, /* value: the time of RESUME */
    COLO_COMMAND_ABORT,
    COLO_COMMAND_ALONE,
    COLO_COMMAND_END, /* value: ns to go on writing */
};

struct colo_command {
    uint8_t kind;
    uint8_t port;
    int fd, fd2; /* owned by the command; the kinds that have none leave them alone */
    uint64_t generation;
    int64_t value;
};

enum { COLO_COMMAND_MAX = 64 };

struct colo_command_queue {
    pthread_mutex_t lock;
    int fd; /* readable while commands wait */
    bool closed;
    struct colo_command ring[COLO_COMMAND_MAX + 1]; /* one place is kept for COLO_COMMAND_END */
    uint32_t head, count;
};

/* COLO_ERR_NOMEM, COLO_ERR_SYSTEM or 0. */
int colo_command_init(struct colo_command_queue *q);
/* Closes the descriptors of commands that were never popped. */
void colo_command_fini(struct colo_command_queue *q);

/*
 * COLO_ERR_LIMIT when the queue is full, COLO_ERR_SYSTEM with ESHUTDOWN when it is closed: the descriptors stay
 * the caller's. END always finds room.
 */
int colo_command_push(struct colo_command_queue *q, const struct colo_command *command);
/* Makes the thread turn once, without a command. */
void colo_command_wake(struct colo_command_queue *q);
bool colo_command_pop(struct colo_command_queue *q, struct colo_command *out);
/* Nobody will pop any more: from now on nothing is accepted. */
void colo_command_close(struct colo_command_queue *q);

#endif
