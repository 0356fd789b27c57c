/* SPDX-License-Identifier: Apache-2.0 */
/* clock.h - the one clock of the traffic generator. */
#ifndef COLO_TRAFFIC_CLOCK_H
#define COLO_TRAFFIC_CLOCK_H

#include <stdint.h>
#include <time.h>

/* CLOCK_MONOTONIC in ns. */
static inline int64_t colo_clock(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

#endif
