/* SPDX-License-Identifier: Apache-2.0 */
/* What the path tells the control plane: events, in order, and counters. */
#include <stdio.h>
#include <unistd.h>

#include "state.h"

/* Those that may come again and again of themselves: one that waits is enough, of OVERRUN one for each place. */
static bool waits_already(const struct colo_path *p, enum colo_path_event_kind kind, enum colo_path_place place)
{
    if (kind == COLO_PATH_LOST || kind == COLO_PATH_GATE_LOST || kind == COLO_PATH_FATAL)
        return false; /* one for each thing that was attached, and for the thread */
    for (size_t i = 0; i < p->event_count; i++) {
        const struct colo_path_event *e = &p->events[(p->first_event + i) % COLO_PATH_EVENTS];

        if (e->kind == kind && e->place == place)
            return true;
    }
    return false;
}

void colo_path_tell(struct colo_path *p, enum colo_path_event_kind kind, enum colo_path_place place, int nic, int error,
                    const char *text)
{
    struct colo_path_event *e;
    uint64_t one = 1;

    if (waits_already(p, kind, place))
        return;
    if (p->event_count == COLO_PATH_EVENTS) { /* can't be, see state.h */
        p->counters.events_lost++;
        return;
    }
    e = &p->events[(p->first_event + p->event_count++) % COLO_PATH_EVENTS];
    *e = (struct colo_path_event){.kind = (uint8_t)kind,
                                  .place = (uint8_t)place,
                                  .nic = (uint8_t)nic,
                                  .error = error,
                                  .time = colo_path_now()};
    snprintf(e->text, sizeof e->text, "%s", text);
    if (write(p->event_fd, &one, sizeof one) < 0) {
        /* It is readable already. */
    }
}

bool colo_path_accepts(const struct colo_path *p)
{
    return p->event_count < COLO_PATH_EVENTS_FEW;
}

int colo_path_event_fd(const colo_path *p)
{
    return p->event_fd;
}

size_t colo_path_events(colo_path *p, struct colo_path_event *out, size_t cap)
{
    size_t n = 0;
    uint64_t count;

    colo_path_lock(p);
    for (; n < cap && p->event_count; n++, p->event_count--) {
        out[n] = p->events[p->first_event];
        p->first_event = (p->first_event + 1) % COLO_PATH_EVENTS;
    }
    if (!p->event_count)
        (void)!read(p->event_fd, &count, sizeof count);
    colo_path_unlock(p);
    return n;
}

static void wire_counters(const struct colo_wire *w, struct colo_wire_counters *out)
{
    *out = w->counters;
    out->queued_bytes = colo_fifo_len(&w->out);
    out->connected = w->count > 0;
}

void colo_path_counters_of(colo_path *p, struct colo_path_counters *out)
{
    colo_path_lock(p);
    for (int nic = 0; nic < p->config.nics; nic++) {
        wire_counters(&p->client[nic], &p->counters.client[nic]);
        wire_counters(&p->vm[nic], &p->counters.vm[nic]);
    }
    for (int i = 0; i < 3; i++)
        wire_counters(&p->comparator[i], &p->counters.comparator[i]);
    colo_link_counters_of(p->link, &p->counters.link);
    if (p->rewriter)
        colo_rewriter_counters_of(p->rewriter, &p->counters.rewriter);
    p->counters.held_bytes = colo_fifo_len(&p->held) + colo_fifo_len(&p->inbound);
    p->counters.marks = p->marks;
    p->counters.commits = p->commits;
    p->counters.link_up = p->transport != NULL;
    p->counters.standing = p->standing;
    p->counters.taken_over = p->taken_over;
    *out = p->counters;
    colo_path_unlock(p);
}
