/* SPDX-License-Identifier: Apache-2.0 */
/* csum.h - the Internet checksum (RFC 1071) and its incremental update (RFC 1624). */
#ifndef COLO_CSUM_H
#define COLO_CSUM_H

#include <stddef.h>
#include <stdint.h>

/* Adds `len` bytes to a running sum of big-endian 16-bit words; an odd last byte is padded with zero. */
uint64_t colo_csum_add(uint64_t sum, const uint8_t *p, size_t len);

/* Folds a running sum and complements it: the value of the checksum field. */
uint16_t colo_csum_fold(uint64_t sum);

/* The checksum field after a 32-bit field that it covers went from `from` to `to` (RFC 1624, equation 3). */
uint16_t colo_csum_update32(uint16_t csum, uint32_t from, uint32_t to);

#endif
