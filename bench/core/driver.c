/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One workload, from the command line: for callgrind, perf and people.
 *
 *     driver NAME=VALUE ...      fields of workload_spec, passes=N, kind=tcp|udp|commit|parse|memory|lookup
 *
 * Prints the medians over the passes as one line of JSON; one more pass comes before them, to warm up. Under callgrind: --toggle-collect=workload_pass.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "workload.h"

enum { MAX_PASSES = 1000 };

static const char *const kinds[] = {"tcp", "udp", "commit", "parse", "memory", "lookup"};

static double seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void usage(const char *what)
{
    fprintf(stderr, "driver: %s\nusage: driver [kind=tcp|udp|commit|parse|memory|lookup] [flows=N] [length=BYTES] "
                    "[recut=BYTES] [burst=N] [frames=N] [turn=N] [skew=BYTES] [vnet=0|12] [evict=BYTES] [passes=N]\n",
            what);
    exit(2);
}

static void set(struct workload_spec *spec, uint32_t *passes, const char *arg)
{
    const char *value = strchr(arg, '=');
    size_t len = value ? (size_t)(value - arg) : 0;
    uint64_t number;
    char *end;

    if (!value++)
        usage(arg);
    if (len == 4 && !strncmp(arg, "kind", len)) {
        for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
            if (!strcmp(value, kinds[i])) {
                spec->kind = (enum workload_kind)i;
                return;
            }
        usage(arg);
    }
    number = strtoull(value, &end, 10);
    if (end == value || *end)
        usage(arg);
    struct {
        const char *name;
        uint32_t *at;
    } fields[] = {{"flows", &spec->flows}, {"length", &spec->length}, {"recut", &spec->recut},
                  {"burst", &spec->burst}, {"frames", &spec->frames}, {"turn", &spec->turn},
                  {"vnet", &spec->vnet_len}, {"passes", passes}};
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
        if (len == strlen(fields[i].name) && !strncmp(arg, fields[i].name, len)) {
            *fields[i].at = (uint32_t)number;
            return;
        }
    if (len == 4 && !strncmp(arg, "skew", len))
        spec->skew = number;
    else if (len == 5 && !strncmp(arg, "evict", len))
        spec->evict = number;
    else
        usage(arg);
}

int main(int argc, char **argv)
{
    struct workload_spec spec = {.flows = 1, .length = 1448, .burst = 16, .frames = 32768, .turn = 64};
    uint32_t passes = 15;
    double took[MAX_PASSES];
    struct workload *w;

    for (int i = 1; i < argc; i++)
        set(&spec, &passes, argv[i]);
    if (!passes || passes > MAX_PASSES)
        usage("passes=1..1000");
    w = workload_create(&spec);
    if (!w)
        usage("no memory, or a workload that makes no sense");
    for (uint32_t i = 0; i <= passes; i++) {
        double begin;

        workload_fill(w);
        begin = seconds();
        if (workload_pass(w) != workload_frames(w)) {
            fprintf(stderr, "driver: not every frame was released\n");
            return 1;
        }
        if (i)
            took[i - 1] = seconds() - begin;
    }
    qsort(took, passes, sizeof took[0], by_value);
    printf("{\"kind\": \"%s\", \"flows\": %u, \"length\": %u, \"frames\": %llu, \"ns_per_frame\": %.2f, "
           "\"min\": %.2f, \"max\": %.2f, \"gbit_per_s\": %.2f, \"grown\": %llu}\n",
           kinds[spec.kind], spec.flows, spec.length, (unsigned long long)workload_frames(w),
           took[passes / 2] * 1e9 / (double)workload_frames(w), took[0] * 1e9 / (double)workload_frames(w),
           took[passes - 1] * 1e9 / (double)workload_frames(w),
           (double)workload_bytes(w) * 8 / took[passes / 2] / 1e9, (unsigned long long)workload_grown(w));
    workload_destroy(w);
    return 0;
}
