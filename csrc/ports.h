/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ports.h - which of the engine's ports have a peer, as the control plane sees it.
 *
 * A port is claimed by attach, before the engine's thread has taken the socket over, and freed by detach or when the
 * thread has lost the peer. Each claim has a number of its own, so that the late loss of an earlier peer can't free the
 * claim of its successor. Any thread.
 */
#ifndef COLO_PORTS_H
#define COLO_PORTS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "coloproxy.h"

struct colo_ports {
    pthread_mutex_t lock;
    uint64_t claim[COLO_PORT_COUNT]; /* the number of the one that holds the port, 0: free */
    uint64_t claims;
};

/* Returns the claim's number, 0 when the port is taken. */
static inline uint64_t colo_ports_claim(struct colo_ports *p, int port)
{
    uint64_t claim = 0;

    pthread_mutex_lock(&p->lock);
    if (!p->claim[port])
        claim = p->claim[port] = ++p->claims;
    pthread_mutex_unlock(&p->lock);
    return claim;
}

/* Frees the port if `claim` holds it; `claim` 0: whoever does. Returns the claim freed, 0: none. */
static inline uint64_t colo_ports_free(struct colo_ports *p, int port, uint64_t claim)
{
    uint64_t freed = 0;

    pthread_mutex_lock(&p->lock);
    if (!claim || p->claim[port] == claim) {
        freed = p->claim[port];
        p->claim[port] = 0;
    }
    pthread_mutex_unlock(&p->lock);
    return freed;
}

#endif
