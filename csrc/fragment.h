/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fragment.h - puts IPv4 and IPv6 datagrams together again (RFC 791, RFC 8200).
 *
 * Fragments wait here, by side, VLANs, addresses, protocol and IP ID, until their datagram is whole. It is then a group
 * (group.h) and is judged as what it is: UDP, TCP, anything. Its flow does not know that it came in pieces; nor need
 * the other side have cut it alike, or at all.
 *
 * Waiting fragments are held like any other frame: in the comparator's list of their side, with no flow. So a commit
 * covers them, the time-out finds them, limits count them.
 */
#ifndef COLO_FRAGMENT_H
#define COLO_FRAGMENT_H

#include "coloproxy.h"
#include "parse.h"

enum { COLO_FRAGMENTS_PER_DATAGRAM = 256 }; /* 64 KiB in frames of 296 bytes; more pieces are hostile */

struct colo_rec;
struct colo_fragments;

/* `limit`: waiting fragments of one side. NULL: no memory. */
struct colo_fragments *colo_fragments_create(uint32_t limit, uint64_t seed);
void colo_fragments_destroy(struct colo_fragments *f);
/* Fragments that wait, of that side. */
uint32_t colo_fragments_waiting(const struct colo_fragments *f, int side);

/*
 * A fragment, in no list. It waits, or completes its datagram, which then enters its flow. At the limit a secondary
 * fragment pushes out the oldest incomplete datagram; a primary one is held without being put together, and until the
 * next epoch no new datagram of the primary is (limit-fragments).
 */
void colo_fragment_enter(colo_comparator *c, struct colo_rec *rec, const struct colo_packet *packet);
/* Drops secondary fragments that have waited for the rest of their datagram as long as the time-out. */
void colo_fragment_expire(colo_comparator *c);
/* Before a flush: fragments that wait become frames like any other, held without a flow. */
void colo_fragment_forget_all(colo_comparator *c);

#endif
