/* SPDX-License-Identifier: Apache-2.0 */
/*
 * neighbours.h - the link-layer and network addresses that the VM itself claims: by ARP, and by neighbour discovery.
 *
 * After a failover they are announced, so that switches and neighbours send to the new place at once. What a VM
 * forwards for others is none of its addresses: hence not the source of any packet, but only what it says of itself.
 * Bounded: what was not seen for longest makes room, so a guest that makes up thousands loses its own first of all.
 *
 * Its MACs also tell a reflected frame: one that comes from the client side, and whose sender the VM was a moment ago.
 * The moment (COLO_MAC_OWN) is what keeps this from doing harm. An address may move: of VRRP and its like, of a nested
 * VM, of a guest behind the VM's own bridge. The switches believe who spoke last, and so do we, a second later. A guest
 * that sends with its gateway's address keeps itself from hearing the gateway for that second, and nobody else: a
 * switch would have done as much to it, for it too believes who spoke last.
 */
#ifndef COLO_NEIGHBOURS_H
#define COLO_NEIGHBOURS_H

#include "path.h"

enum {
    COLO_NEIGHBOURS_MAX = 256,
    COLO_MACS_MAX = 32,          /* of each NIC */
    COLO_MAC_OWN = 1000000000,   /* ns since the VM's last frame with it that a MAC tells a reflection */
};

struct colo_neighbours;

struct colo_neighbours *colo_neighbours_create(void); /* NULL: no memory */
void colo_neighbours_destroy(struct colo_neighbours *n);
/* A frame of the VM's, without virtio-net header, at least an Ethernet header long. */
void colo_neighbours_learn(struct colo_neighbours *n, uint8_t nic, const uint8_t *frame, size_t len, int64_t now);
/* Six bytes: a MAC that this NIC of the VM has sent from within COLO_MAC_OWN. */
bool colo_neighbours_is_own(const struct colo_neighbours *n, uint8_t nic, const uint8_t *mac, int64_t now);
size_t colo_neighbours_list(const struct colo_neighbours *n, struct colo_neighbour *out, size_t cap);

#endif
