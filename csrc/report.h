/* SPDX-License-Identifier: Apache-2.0 */
/*
 * report.h - what the engine's thread tells the control plane: events, in order, and a snapshot of the counters.
 *
 * Both are staged by the thread and become visible together at the end of a wake-up, so that counters read after an
 * event include what it is about.
 *
 * The ring is bounded. Divergences and limits use the first third of it, and are counted when they find it used. The
 * rest is for events that must never be lost (peers, commits, wanted checkpoints): each of those is the answer to a
 * command, a bounded number for each (the wanted checkpoint belongs to the commit that began its epoch), and
 * colo_report_accepts says no to commands while the events of earlier ones lie unread. So the ring can't overflow.
 */
#ifndef COLO_REPORT_H
#define COLO_REPORT_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#include "coloproxy.h"

struct colo_report {
    pthread_mutex_t lock;         /* guards everything here */
    int fd;                       /* readable while events wait */
    struct colo_engine_event *ring;
    size_t head, visible, staged; /* staged ones lie behind the visible ones */
    uint64_t events_lost;
    struct colo_engine_counters counters;
};

/* COLO_ERR_NOMEM, COLO_ERR_SYSTEM or 0. */
int colo_report_init(struct colo_report *r);
void colo_report_fini(struct colo_report *r);

/* The engine's thread: */
void colo_report_stage(struct colo_report *r, const struct colo_engine_event *event);
void colo_report_publish(struct colo_report *r, const struct colo_engine_counters *counters);

/* Any thread: */
size_t colo_report_take(struct colo_report *r, struct colo_engine_event *out, size_t cap);
void colo_report_counters(struct colo_report *r, struct colo_engine_counters *out);
bool colo_report_accepts(struct colo_report *r);

#endif
