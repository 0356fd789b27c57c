/* SPDX-License-Identifier: Apache-2.0 */
#include "report.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
    RING = 768,
    ORDINARY_MAX = RING / 3,    /* divergences and limits are dropped from here on */
    ACCEPT_MAX = RING / 3 * 2,  /* commands are refused from here on: what is queued already fits above */
};

int colo_report_init(struct colo_report *r)
{
    memset(r, 0, sizeof *r);
    r->fd = -1;
    if (pthread_mutex_init(&r->lock, NULL) != 0)
        return COLO_ERR_NOMEM;
    r->ring = calloc(RING, sizeof r->ring[0]);
    r->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (r->ring && r->fd >= 0)
        return 0;
    int error = r->ring ? COLO_ERR_SYSTEM : COLO_ERR_NOMEM;
    colo_report_fini(r);
    return error;
}

void colo_report_fini(struct colo_report *r)
{
    if (r->fd >= 0)
        close(r->fd);
    free(r->ring);
    pthread_mutex_destroy(&r->lock);
    memset(r, 0, sizeof *r);
    r->fd = -1;
}

static bool is_ordinary(const struct colo_engine_event *e)
{
    return e->kind == COLO_ENGINE_RECORD_ENDED || e->kind == COLO_ENGINE_DUMPED ||
           (e->kind == COLO_ENGINE_COMPARATOR && e->event.kind != COLO_EVENT_WANT_CHECKPOINT);
}

void colo_report_stage(struct colo_report *r, const struct colo_engine_event *event)
{
    pthread_mutex_lock(&r->lock);
    size_t waiting = r->visible + r->staged;

    if (waiting < (is_ordinary(event) ? ORDINARY_MAX : RING)) {
        r->ring[(r->head + waiting) % RING] = *event;
        r->staged++;
    } else {
        assert(is_ordinary(event));
        r->events_lost++;
    }
    pthread_mutex_unlock(&r->lock);
}

void colo_report_publish(struct colo_report *r, const struct colo_engine_counters *counters)
{
    pthread_mutex_lock(&r->lock);
    r->counters = *counters;
    r->counters.events_lost = r->events_lost;
    if (r->staged) {
        if (!r->visible) {
            uint64_t one = 1;
            ssize_t n = write(r->fd, &one, sizeof one); /* can only fail when the count is at its end: it is readable */
            (void)n;
        }
        r->visible += r->staged;
        r->staged = 0;
    }
    pthread_mutex_unlock(&r->lock);
}

size_t colo_report_take(struct colo_report *r, struct colo_engine_event *out, size_t cap)
{
    size_t n = 0;

    pthread_mutex_lock(&r->lock);
    while (n < cap && r->visible) {
        out[n++] = r->ring[r->head];
        r->head = (r->head + 1) % RING;
        r->visible--;
    }
    if (!r->visible) {
        uint64_t count;
        ssize_t got = read(r->fd, &count, sizeof count); /* EAGAIN when it was not readable: as well */
        (void)got;
    }
    pthread_mutex_unlock(&r->lock);
    return n;
}

void colo_report_counters(struct colo_report *r, struct colo_engine_counters *out)
{
    pthread_mutex_lock(&r->lock);
    *out = r->counters;
    pthread_mutex_unlock(&r->lock);
}

bool colo_report_accepts(struct colo_report *r)
{
    pthread_mutex_lock(&r->lock);
    bool accepts = r->visible + r->staged < ACCEPT_MAX;
    pthread_mutex_unlock(&r->lock);
    return accepts;
}
