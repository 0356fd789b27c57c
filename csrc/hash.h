/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hash.h - a seeded 64-bit hash of a byte string, for the flow table and for finding equal datagrams.
 *
 * Clients choose addresses, ports and payloads, so the seed must be secret: without it they can't aim at one bucket.
 * Equality is always decided by memcmp, never by the hash alone.
 */
#ifndef COLO_HASH_H
#define COLO_HASH_H

#include <stddef.h>
#include <stdint.h>

uint64_t colo_hash(uint64_t seed, const uint8_t *p, size_t len);

#endif
