/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sample.h - latency, from the moment at which the later of both sides' frames was handed to the kernel.
 *
 * A ring of slots for the samples that are under way; a sample's slot number travels in its frame. A slot whose turn
 * comes again before its frame came back is lost to the new one: there is no bound on what a comparator holds.
 *
 * The histogram is log-linear, as HdrHistogram's with three digits: 2,048 equal steps, then 1,024 for each doubling.
 */
#ifndef COLO_TRAFFIC_SAMPLE_H
#define COLO_TRAFFIC_SAMPLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    COLO_SAMPLE_SLOTS = 65535, /* tags 1 to 65,535 */
    COLO_LATENCY_STEPS = 2048,
    COLO_LATENCY_DOUBLINGS = 26, /* up to 2^37 ns, 137 s; what is longer counts as that */
    COLO_LATENCY_COUNTS = COLO_LATENCY_STEPS + COLO_LATENCY_DOUBLINGS * COLO_LATENCY_STEPS / 2,
};

struct colo_sample {
    uint64_t end;   /* place on the plan behind the segment */
    int64_t at[2];  /* by side; 0: not yet */
};

struct colo_samples {
    uint64_t taken; /* how many samples there have been; the newest is number taken - 1 */
    struct colo_sample slots[COLO_SAMPLE_SLOTS];
    uint64_t counts[COLO_LATENCY_COUNTS];
};

static inline struct colo_sample *colo_sample_at(struct colo_samples *s, uint64_t number)
{
    return &s->slots[number % COLO_SAMPLE_SLOTS];
}

/* A new sample, of the segment that ends at `end`; its tag. */
uint16_t colo_sample_take(struct colo_samples *s, uint64_t end);

/* The frame with this tag has come back. */
void colo_sample_back(struct colo_samples *s, uint16_t tag, int64_t now);

size_t colo_latency_index(uint64_t ns);

#endif
