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
