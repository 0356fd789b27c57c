/* SPDX-License-Identifier: Apache-2.0 */
#include "sample.h"

#include "coloproxy.h"
#include "traffic.h"

uint16_t colo_sample_take(struct colo_samples *s, uint64_t end)
{
    *colo_sample_at(s, s->taken) = (struct colo_sample){.end = end};
    return (uint16_t)(s->taken++ % COLO_SAMPLE_SLOTS + 1);
}

void colo_sample_back(struct colo_samples *s, uint16_t tag, int64_t now)
{
    struct colo_sample *sample = &s->slots[tag - 1];
    const int64_t *at = sample->at;

    /* The secondary's is missing when a checkpoint took its place, or was not waited for: no latency then. */
    if (at[COLO_PRIMARY] && at[COLO_SECONDARY]) {
        const int64_t later = at[COLO_PRIMARY] > at[COLO_SECONDARY] ? at[COLO_PRIMARY] : at[COLO_SECONDARY];

        s->counts[colo_latency_index(now > later ? (uint64_t)(now - later) : 0)]++;
    }
    *sample = (struct colo_sample){0};
}

size_t colo_latency_index(uint64_t ns)
{
    unsigned shift;
    size_t index;

    if (ns < COLO_LATENCY_STEPS)
        return (size_t)ns;
    shift = 63 - (unsigned)__builtin_clzll(ns) - 10; /* so that ns >> shift is in [1024, 2048) */
    index = COLO_LATENCY_STEPS + (size_t)(shift - 1) * (COLO_LATENCY_STEPS / 2) +
            (size_t)((ns >> shift) - COLO_LATENCY_STEPS / 2);
    return index < COLO_LATENCY_COUNTS ? index : COLO_LATENCY_COUNTS - 1;
}

uint64_t colo_traffic_latency_least(size_t index)
{
    const size_t above = index - COLO_LATENCY_STEPS;

    if (index < COLO_LATENCY_STEPS)
        return index;
    return (uint64_t)(above % (COLO_LATENCY_STEPS / 2) + COLO_LATENCY_STEPS / 2)
           << (above / (COLO_LATENCY_STEPS / 2) + 1);
}

uint64_t colo_traffic_latency_greatest(size_t index)
{
    return colo_traffic_latency_least(index + 1) - 1;
}
