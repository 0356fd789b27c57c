/* SPDX-License-Identifier: Apache-2.0 */
/* turn.h - the path's thread: waits, and in each turn reads what is ready, routes it and writes what waits. */
#ifndef COLO_PATH_TURN_H
#define COLO_PATH_TURN_H

#include "state.h"

/* The thread's whole life. */
void colo_path_run(struct colo_path *p);
/* Wakes the thread, to look at what has changed. */
void colo_path_wake(struct colo_path *p);
/* Lets go of the connection. @why: for the event, NULL: none is told. With the lock held. */
void colo_path_drop_link(struct colo_path *p, const char *why);
/* Closes all that a place has; no event tells. With the lock held. */
void colo_path_close_wire(struct colo_path *p, struct colo_wire *w);
/* Reads the VM's sides until nothing is left or there is no room, and writes what came of it. With the lock held. */
void colo_path_drain_vm(struct colo_path *p);
/* Writes what can be written. */
void colo_path_flush(struct colo_path *p);

#endif
