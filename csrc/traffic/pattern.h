/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pattern.h - the payload: a fixed function of the stream offset, the same for both sides and all flows.
 *
 * The byte at offset o is bytes[o % COLO_PATTERN_PERIOD]: any stretch of a stream is one memcpy, and its Internet
 * checksum a difference of two partial sums. The period divides by no usual segment length, so a segment at a wrong
 * offset shows.
 */
#ifndef COLO_TRAFFIC_PATTERN_H
#define COLO_TRAFFIC_PATTERN_H

#include <stddef.h>
#include <stdint.h>

/* Even (twice a prime), so that a byte is high or low in its 16-bit word in each period alike. */
enum { COLO_PATTERN_PERIOD = 4078, COLO_PATTERN_MAX = 65536 };

struct colo_pattern {
    uint32_t sums[COLO_PATTERN_PERIOD + 1]; /* of the 16-bit words before that byte */
    uint8_t bytes[COLO_PATTERN_PERIOD + COLO_PATTERN_MAX];
};

void colo_pattern_init(struct colo_pattern *p);

/* The sum of the 16-bit big-endian words of `len` bytes from phase (offset % COLO_PATTERN_PERIOD) on. */
static inline uint64_t colo_pattern_sum(const struct colo_pattern *p, uint32_t phase, uint32_t len)
{
    const uint32_t end = phase + len % COLO_PATTERN_PERIOD;
    uint64_t sum = (uint64_t)(len / COLO_PATTERN_PERIOD) * p->sums[COLO_PATTERN_PERIOD] - p->sums[phase];

    if (end <= COLO_PATTERN_PERIOD)
        sum += p->sums[end];
    else
        sum += (uint64_t)p->sums[COLO_PATTERN_PERIOD] + p->sums[end - COLO_PATTERN_PERIOD];
    /* From an odd byte on, high and low bytes have changed places: RFC 1071, section 2 (B). */
    return sum << phase % 2 * 8;
}

#endif
