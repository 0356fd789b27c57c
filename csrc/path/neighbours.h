/* SPDX-License-Identifier: Apache-2.0 */
/*
 * neighbours.h - the link-layer and network addresses that the VM itself claims: by ARP, and by neighbour discovery.
 *
 * After a failover they are announced, so that switches and neighbours send to the new place at once. What a VM
 * forwards for others is none of its addresses: hence not the source of any packet, but only what it says of itself.
 * Bounded: the oldest make room. Its MACs also tell a reflected frame: nobody else sends with them.
 */
#ifndef COLO_NEIGHBOURS_H
#define COLO_NEIGHBOURS_H

#include "path.h"

enum { COLO_NEIGHBOURS_MAX = 256, COLO_MACS_MAX = 32 };

struct colo_neighbours;

struct colo_neighbours *colo_neighbours_create(void); /* NULL: no memory */
void colo_neighbours_destroy(struct colo_neighbours *n);
/* A frame of the VM's, without virtio-net header, at least an Ethernet header long. */
void colo_neighbours_learn(struct colo_neighbours *n, uint8_t nic, const uint8_t *frame, size_t len);
/* Six bytes: a MAC that this NIC of the VM has sent from. */
bool colo_neighbours_is_own(const struct colo_neighbours *n, uint8_t nic, const uint8_t *mac);
size_t colo_neighbours_list(const struct colo_neighbours *n, struct colo_neighbour *out, size_t cap);

#endif
