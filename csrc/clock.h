/* SPDX-License-Identifier: Apache-2.0 */
/* clock.h - the engine's clock. The comparator has none: it is told the time. */
#ifndef COLO_CLOCK_H
#define COLO_CLOCK_H

#include <stdint.h>
#include <time.h>

/* ns, CLOCK_MONOTONIC */
static inline int64_t colo_clock_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

#endif
