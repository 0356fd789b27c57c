/* SPDX-License-Identifier: Apache-2.0 */
/* state.h - what the parts of the path share: route.c moves frames, turn.c is the thread's loop, path.c the calls. */
#ifndef COLO_PATH_STATE_H
#define COLO_PATH_STATE_H

#include <pthread.h>

#include "gate.h"
#include "held.h"
#include "neighbours.h"
#include "path.h"
#include "wire.h"

/*
 * Twelve events at most lie there that may come of themselves (tell.c), and one for each of 37 things that are attached
 * at a time: from COLO_PATH_EVENTS_FEW on nothing more can be attached, so the ring never overflows.
 */
enum { COLO_PATH_EVENTS = 256, COLO_PATH_EVENTS_FEW = 128 };

enum colo_path_phase {
    COLO_PHASE_NEW,
    COLO_PHASE_RUNNING,
    COLO_PHASE_ENDING,  /* the thread writes what waits, until end_by */
    COLO_PHASE_ENDED,
};

struct colo_path {
    struct colo_path_config config;
    pthread_mutex_t lock;    /* guards all of it; the thread holds it while it works */
    pthread_mutex_t door;    /* colo_path_lock */
    pthread_mutex_t join;
    pthread_t thread;
    enum colo_path_phase phase;
    int64_t end_by;
    int epoll_fd;
    int wake_fd;             /* a call has changed what the thread waits for */
    int64_t now;             /* read once a wake-up */
    int error;               /* an errno that ends the thread */

    struct colo_wire client[COLO_PATH_NICS];
    struct colo_wire vm[COLO_PATH_NICS];
    struct colo_wire comparator[3]; /* COLO_PLACE_PRIMARY_IN ... */
    struct colo_neighbours *neighbours;
    colo_rewriter *rewriter; /* SECONDARY; PRIMARY: of inherited connections, NULL if there never were any */

    colo_link *link;
    colo_transport *transport; /* NULL: no connection */
    int64_t session_at;        /* when the session began */
    bool inheritance_old;      /* SECONDARY: what the rewriter has inherited is of the session before */
    bool session;              /* there is, or was, a connection that may go on: records are put in for it */
    bool transport_blocked;    /* it wants to be writable */
    uint32_t transport_watched;
    uint32_t gate_watched[2];  /* QMP, and the near end */
    struct colo_fifo control;  /* messages for the control plane: 4 bytes of length, host order, then the text */
    int64_t full_since;      /* the link has had no room for a frame since then, 0: it has */
    bool overrun;            /* ... and what it should carry is left out, until it has room again */
    bool overrun_told[COLO_PLACE_COUNT]; /* in this epoch */

    struct colo_fifo held;    /* of the secondary VM: PRIMARY until its epoch begins, SECONDARY until the gate opens */
    struct colo_fifo inbound; /* SECONDARY: for the VM, and notices, while it stands: its numbers will be others */
    struct colo_gate gate;    /* SECONDARY */
    int64_t marks;           /* SYNC: 0; -1: none */
    int64_t commits;
    int64_t early_mark;      /* PRIMARY: when a mark came that no STOP known here explains yet, 0: there is none */
    uint64_t token;          /* that a SYNC must bring, 0: any is too late */
    bool hurry;              /* something was read for which there is room now */
    int64_t lease;           /* PRIMARY: nothing goes to the client side from then on */
    bool standing;           /* the VM stands still, for a checkpoint perhaps */
    bool waiting;            /* SECONDARY: ... for its first: what clients sent before it comes with the primary's state */
    bool taken_over;
    uint64_t flows_refused;  /* of the rewriter's, told already */

    struct colo_path_event events[COLO_PATH_EVENTS];
    size_t first_event, event_count;
    int event_fd;
    struct colo_path_counters counters;
};

int64_t colo_path_now(void);
/*
 * A busy thread lets go of the lock for one system call and would have it again before anybody whom it woke could take
 * it. Whoever wants it stands in the door meanwhile, where the thread has to wait behind him.
 */
void colo_path_lock(struct colo_path *p);
void colo_path_unlock(struct colo_path *p);
void colo_path_tell(struct colo_path *p, enum colo_path_event_kind kind, enum colo_path_place place, int nic, int error,
                    const char *text);
/* Whether there is room for the events of one thing more. */
bool colo_path_accepts(const struct colo_path *p);
struct colo_wire *colo_path_wire(struct colo_path *p, int place, int nic);

#endif
