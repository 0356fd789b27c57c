/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gate.h - the epoch gate: QMP messages pass through, and are counted, before frames are judged.
 *
 * QEMU writes STOP and RESUME to its QMP socket before a frame of the new state can leave the guest. A proxy that
 * reads frames, then looks at QMP, and judges the frames only when nothing has come can therefore never judge a frame
 * by the rules of an epoch that has ended. The gate owns the QMP socket and one end of a socket pair whose other end
 * the control plane uses as if it were QMP; it moves the bytes both ways and counts the lines that came from QEMU.
 *
 * It is closed while a line, or the beginning of one, has come with which the control plane has not dealt, and from
 * the moment either end is found gone: QEMU may pass a checkpoint that nobody here hears of. Then only a detach or
 * another attach opens it. Bytes only: file descriptors in the ancillary data of a UNIX socket (QMP's getfd) don't pass.
 */
#ifndef COLO_GATE_H
#define COLO_GATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct colo_gate_pipe {
    uint8_t *data; /* COLO_GATE_BUFFER bytes, NULL while nothing is attached */
    size_t from, to;
};

enum { COLO_GATE_BUFFER = 64 * 1024 };

struct colo_gate {
    int qmp_fd;                  /* towards QEMU, -1: gone */
    int near_fd;                 /* our end of the pair, -1: gone */
    struct colo_gate_pipe in;    /* from QEMU to the control plane */
    struct colo_gate_pipe out;   /* and back */
    uint64_t seen, done;         /* lines from QEMU, and those that are dealt with */
    bool partial;                /* the last byte from QEMU was not the end of a line */
    bool lost;                   /* one end went away; reported once by colo_gate_look or colo_gate_pump */
};

void colo_gate_init(struct colo_gate *g);
/* Takes over both non-blocking sockets. COLO_ERR_NOMEM: they stay the caller's. Whatever was attached is detached. */
int colo_gate_attach(struct colo_gate *g, int qmp_fd, int near_fd);
/* Closes both and opens the gate. */
void colo_gate_detach(struct colo_gate *g);

bool colo_gate_is_open(const struct colo_gate *g);
/* The control plane has dealt with `messages` more lines (more than were seen count as all that were seen). */
void colo_gate_done(struct colo_gate *g, uint64_t messages);

/*
 * Both return true when an end was found gone, and then *error is 0 (it was closed) or an errno; QEMU's last lines are
 * still handed on.
 */
bool colo_gate_look(struct colo_gate *g, int *error); /* read from QEMU, and hand on at once */
bool colo_gate_pump(struct colo_gate *g, int *error); /* the way back, and what could not be handed on before */

/* The epoll events each socket waits for; 0: none. */
uint32_t colo_gate_qmp_interest(const struct colo_gate *g);
uint32_t colo_gate_near_interest(const struct colo_gate *g);

#endif
