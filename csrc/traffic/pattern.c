/* SPDX-License-Identifier: Apache-2.0 */
#include "pattern.h"

void colo_pattern_init(struct colo_pattern *p)
{
    uint32_t x = 2463534242; /* xorshift32, Marsaglia 2003: any numbers that look like none in particular */

    for (size_t i = 0; i < sizeof p->bytes; i++) {
        if (i >= COLO_PATTERN_PERIOD) {
            p->bytes[i] = p->bytes[i - COLO_PATTERN_PERIOD];
            continue;
        }
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        p->bytes[i] = (uint8_t)(x >> 24);
    }
    p->sums[0] = 0;
    for (size_t i = 0; i < COLO_PATTERN_PERIOD; i++)
        p->sums[i + 1] = p->sums[i] + (i % 2 ? p->bytes[i] : (uint32_t)p->bytes[i] << 8);
}

uint64_t colo_pattern_sum(const struct colo_pattern *p, uint32_t phase, uint32_t len)
{
    const uint32_t end = phase + len % COLO_PATTERN_PERIOD;
    uint64_t sum = (uint64_t)(len / COLO_PATTERN_PERIOD) * p->sums[COLO_PATTERN_PERIOD];

    if (end <= COLO_PATTERN_PERIOD)
        sum += p->sums[end] - p->sums[phase];
    else
        sum += p->sums[COLO_PATTERN_PERIOD] - p->sums[phase] + p->sums[end - COLO_PATTERN_PERIOD];
    /* From an odd byte on, high and low bytes have changed places: RFC 1071, section 2 (B). */
    return phase % 2 ? sum << 8 : sum;
}
