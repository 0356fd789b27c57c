/* SPDX-License-Identifier: Apache-2.0 */
/* The path's life, its wires and its link: calls take the lock, check, and change what the thread works with. */
#include "path.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "inherit.h"
#include "marks.h"
#include "turn.h"

enum { INJECT_MAX = 1514 + 2 * 4 }; /* two VLAN tags */

int64_t colo_path_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void colo_path_lock(struct colo_path *p)
{
    pthread_mutex_lock(&p->door);
    pthread_mutex_lock(&p->lock);
    pthread_mutex_unlock(&p->door);
}

void colo_path_unlock(struct colo_path *p)
{
    pthread_mutex_unlock(&p->lock);
}

void colo_path_config_default(struct colo_path_config *config)
{
    *config = (struct colo_path_config){
        .role = COLO_PATH_PRIMARY,
        .nics = 1,
        .max_frame = 69632,
        .wire_bytes = 4 << 20,
        .hold_bytes = 32 << 20,
        .stall_timeout = 1000000000,
    };
    colo_link_config_default(&config->link);
    colo_rewriter_config_default(&config->rewriter);
}

static bool makes_sense(const struct colo_path_config *c)
{
    return c->role <= COLO_PATH_SECONDARY && c->nics >= 1 && c->nics <= COLO_PATH_NICS && c->max_frame >= 64 &&
           c->max_frame <= 1 << 20 && c->wire_bytes >= c->max_frame && c->wire_bytes <= 1 << 30 &&
           c->hold_bytes >= c->max_frame && c->hold_bytes <= 1 << 30 && c->stall_timeout > 0 &&
           c->link.max_record >= c->max_frame && c->link.send_bytes >= 4 * (uint64_t)c->link.max_record;
}

static void free_all(colo_path *p)
{
    for (int nic = 0; nic < COLO_PATH_NICS; nic++) {
        colo_wire_close(&p->client[nic]);
        colo_wire_close(&p->vm[nic]);
    }
    for (int i = 0; i < 3; i++)
        colo_wire_close(&p->comparator[i]);
    colo_path_drop_link(p, NULL);
    colo_gate_detach(&p->gate);
    colo_link_destroy(p->link);
    colo_rewriter_destroy(p->rewriter);
    colo_neighbours_destroy(p->neighbours);
    colo_fifo_fini(&p->held);
    colo_fifo_fini(&p->inbound);
    colo_fifo_fini(&p->control);
    for (int i = 0; i < 3; i++) {
        int fd = i == 0 ? p->epoll_fd : i == 1 ? p->wake_fd : p->event_fd;

        if (fd >= 0)
            close(fd);
    }
    pthread_mutex_destroy(&p->lock);
    pthread_mutex_destroy(&p->door);
    pthread_mutex_destroy(&p->join);
    free(p);
}

colo_path *colo_path_create(const struct colo_path_config *config)
{
    struct epoll_event e = {.events = EPOLLIN, .data = {.u64 = (uint64_t)250 << 16}};
    colo_path *p;

    if (!config || !makes_sense(config))
        return NULL;
    p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    p->config = *config;
    p->lease = INT64_MAX;
    p->marks = p->commits = -1;
    p->now = colo_path_now();
    pthread_mutex_init(&p->lock, NULL); /* plain mutexes of Linux can't fail */
    pthread_mutex_init(&p->door, NULL);
    pthread_mutex_init(&p->join, NULL);
    for (int nic = 0; nic < COLO_PATH_NICS; nic++) {
        colo_wire_init(&p->client[nic], (uint8_t)nic, config->max_frame, config->wire_bytes);
        colo_wire_init(&p->vm[nic], (uint8_t)nic, config->max_frame, config->wire_bytes);
    }
    for (int i = 0; i < 3; i++)
        colo_wire_init(&p->comparator[i], 0, config->max_frame, config->wire_bytes);
    colo_fifo_init(&p->held, config->hold_bytes);
    colo_fifo_init(&p->inbound, config->hold_bytes);
    colo_fifo_init(&p->control, SIZE_MAX);
    colo_gate_init(&p->gate);
    p->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    p->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    p->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    p->link = colo_link_create(&config->link);
    p->neighbours = colo_neighbours_create();
    if (config->role == COLO_PATH_SECONDARY)
        p->rewriter = colo_rewriter_create(&config->rewriter);
    if (p->epoll_fd < 0 || p->wake_fd < 0 || p->event_fd < 0 || !p->link || !p->neighbours ||
        (config->role == COLO_PATH_SECONDARY && !p->rewriter) ||
        epoll_ctl(p->epoll_fd, EPOLL_CTL_ADD, p->wake_fd, &e) < 0) {
        free_all(p);
        return NULL;
    }
    return p;
}

static void *thread_main(void *arg)
{
    pthread_setname_np(pthread_self(), "colo-path"); /* as top -H shows it */
    colo_path_run(arg);
    return NULL;
}

int colo_path_start(colo_path *p)
{
    sigset_t all, before;
    int error = COLO_ERR_MISUSE;

    colo_path_lock(p);
    if (p->phase == COLO_PHASE_NEW) {
        sigfillset(&all); /* signals are the control plane's */
        pthread_sigmask(SIG_SETMASK, &all, &before);
        errno = pthread_create(&p->thread, NULL, thread_main, p);
        error = errno ? COLO_ERR_SYSTEM : 0;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (!error)
            p->phase = COLO_PHASE_RUNNING;
    }
    colo_path_unlock(p);
    return error;
}

int colo_path_stop(colo_path *p, int linger_ms)
{
    enum colo_path_phase before;

    pthread_mutex_lock(&p->join);
    colo_path_lock(p);
    before = p->phase;
    p->end_by = colo_path_now() + (int64_t)(linger_ms > 0 ? linger_ms : 0) * 1000000;
    p->phase = before == COLO_PHASE_RUNNING ? COLO_PHASE_ENDING : COLO_PHASE_ENDED;
    colo_path_wake(p);
    colo_path_unlock(p);
    if (before == COLO_PHASE_RUNNING) {
        pthread_join(p->thread, NULL);
        colo_path_lock(p);
        p->phase = COLO_PHASE_ENDED;
        colo_path_unlock(p);
    }
    pthread_mutex_unlock(&p->join);
    return 0;
}

void colo_path_destroy(colo_path *p)
{
    if (!p)
        return;
    colo_path_stop(p, 0);
    free_all(p);
}

/* ------------------------------------------------------------------- the wires */

struct colo_wire *colo_path_wire(struct colo_path *p, int place, int nic)
{
    switch (place) {
    case COLO_PLACE_CLIENT:
        return nic >= 0 && nic < p->config.nics ? &p->client[nic] : NULL;
    case COLO_PLACE_VM:
        return nic >= 0 && nic < p->config.nics ? &p->vm[nic] : NULL;
    case COLO_PLACE_PRIMARY_IN:
    case COLO_PLACE_SECONDARY_IN:
    case COLO_PLACE_OUTDEV:
        return p->config.role == COLO_PATH_PRIMARY && !nic ? &p->comparator[place - COLO_PLACE_PRIMARY_IN] : NULL;
    default:
        return NULL;
    }
}

static bool fits(const struct colo_path *p, const struct colo_wire *w, int place, int kind, int vnet_len)
{
    const bool to_comparator = place >= COLO_PLACE_PRIMARY_IN;

    if (p->phase == COLO_PHASE_ENDED || (vnet_len != 0 && vnet_len != 10 && vnet_len != 12))
        return false;
    if (to_comparator != (kind == COLO_WIRE_TAGGED) || kind < COLO_WIRE_STREAM || kind > COLO_WIRE_TAGGED)
        return false;
    if (vnet_len && (kind == COLO_WIRE_STREAM || kind == COLO_WIRE_TAGGED))
        return false;
    if (!w->count)
        return true;
    return place == COLO_PLACE_CLIENT && kind == COLO_WIRE_FRAMES && w->kind == kind && w->vnet_len == vnet_len &&
           w->count < COLO_PATH_QUEUES;
}

/* Its thread must be able to wait for it: no plain file, and nothing that is attached already. */
static bool can_be_watched(const struct colo_path *p, int fd)
{
    struct epoll_event e = {.events = 0};

    return epoll_ctl(p->epoll_fd, EPOLL_CTL_ADD, fd, &e) == 0 && epoll_ctl(p->epoll_fd, EPOLL_CTL_DEL, fd, NULL) == 0;
}

int colo_path_attach(colo_path *p, int place, int nic, int fd, int kind, int vnet_len)
{
    struct colo_wire *w;
    int flags = fcntl(fd, F_GETFL), one = 1, error = COLO_ERR_MISUSE;

    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        return COLO_ERR_SYSTEM;
    colo_path_lock(p);
    w = colo_path_wire(p, place, nic);
    if (w && fits(p, w, place, kind, vnet_len))
        error = !colo_path_accepts(p) ? COLO_ERR_LIMIT : can_be_watched(p, fd) ? 0 : COLO_ERR_SYSTEM;
    if (!error) {
        if (kind == COLO_WIRE_STREAM)
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* fails on UNIX sockets, which don't need it */
        w->kind = (uint8_t)kind;
        w->vnet_len = (uint8_t)vnet_len;
        w->fds[w->count++] = fd;
        colo_path_wake(p);
    }
    colo_path_unlock(p);
    return error;
}

int colo_path_detach(colo_path *p, int place, int nic)
{
    struct colo_wire *w;
    int error = COLO_ERR_MISUSE;

    colo_path_lock(p);
    w = colo_path_wire(p, place, nic);
    if (w) {
        colo_path_close_wire(p, w);
        colo_path_wake(p);
        error = 0;
    }
    colo_path_unlock(p);
    return error;
}

int colo_path_inject(colo_path *p, int nic, const uint8_t *frame, size_t len)
{
    struct colo_wire *w;
    int error = COLO_ERR_MISUSE;

    colo_path_lock(p);
    w = colo_path_wire(p, COLO_PLACE_CLIENT, nic);
    if (w && w->count && len >= 14 && len <= INJECT_MAX && colo_wire_has_room(w, len + 12)) {
        error = colo_wire_send(w, (uint8_t)nic, frame, (uint32_t)len, 0) < 0 ? COLO_ERR_NOMEM : 0;
        colo_path_wake(p);
    }
    colo_path_unlock(p);
    return error;
}

size_t colo_path_neighbours(colo_path *p, struct colo_neighbour *out, size_t cap)
{
    size_t n;

    colo_path_lock(p);
    n = colo_neighbours_list(p->neighbours, out, cap);
    colo_path_unlock(p);
    return n;
}

/* -------------------------------------------------------------------- the link */

/* Nothing of the session before counts any more, nor does the answer to its token. */
static void begin_anew(struct colo_path *p)
{
    (void)colo_link_restart(p->link);
    colo_marks_forget(p);
    p->token = 0;
    p->full_since = 0;
    p->overrun = false;
}

int colo_path_link_attach(colo_path *p, colo_transport *t, bool restart, uint64_t from)
{
    int error = 0;

    colo_path_lock(p);
    p->now = colo_path_now();
    if (p->phase == COLO_PHASE_ENDED) {
        error = COLO_ERR_MISUSE;
    } else if (!colo_path_accepts(p) || (!restart && !colo_link_can_resume(p->link, from))) {
        error = COLO_ERR_LIMIT;
    } else {
        colo_path_drop_link(p, NULL);
        if (restart) {
            begin_anew(p);
            colo_fifo_fini(&p->control); /* of the session that is over */
        }
        if (restart && p->config.role == COLO_PATH_PRIMARY)
            error = colo_inherit_send(p);
        else if (restart)
            colo_inherit_begin(p);
        if (!error)
            error = colo_link_connect(p->link, restart ? 0 : from, p->now);
        if (!error) {
            p->transport = t;
            p->session = true;
            colo_path_wake(p);
        } else if (restart) {
            p->session = false; /* half of it is there */
        }
    }
    colo_path_unlock(p);
    return error;
}

int colo_path_link_detach(colo_path *p, bool end)
{
    colo_path_lock(p);
    colo_path_drop_link(p, NULL);
    if (end) {
        p->session = false;
        begin_anew(p);
    }
    colo_path_wake(p);
    colo_path_unlock(p);
    return 0;
}

uint64_t colo_path_link_received(colo_path *p)
{
    uint64_t at;

    colo_path_lock(p);
    at = colo_link_received(p->link);
    colo_path_unlock(p);
    return at;
}

bool colo_path_link_can_resume(colo_path *p, uint64_t from)
{
    bool can;

    colo_path_lock(p);
    can = p->session && colo_link_can_resume(p->link, from);
    colo_path_unlock(p);
    return can;
}

int colo_path_control(colo_path *p, const uint8_t *data, size_t len)
{
    struct colo_link_record record = {.type = COLO_LINK_CONTROL, .len = (uint32_t)len, .data = data};
    int error = COLO_ERR_MISUSE;

    colo_path_lock(p);
    if (p->session && len && len <= p->config.link.max_record)
        error = colo_link_push(p->link, &record);
    colo_path_wake(p);
    colo_path_unlock(p);
    return error;
}

long colo_path_take_control(colo_path *p, uint8_t *out, size_t cap)
{
    long result = 0;
    uint32_t len;

    colo_path_lock(p);
    if (colo_fifo_len(&p->control)) {
        memcpy(&len, colo_fifo_front(&p->control), sizeof len);
        result = len <= cap ? (long)len : COLO_ERR_LIMIT;
        if (result >= 0) {
            memcpy(out, colo_fifo_front(&p->control) + sizeof len, len);
            colo_fifo_take(&p->control, sizeof len + len);
        }
    }
    colo_path_unlock(p);
    return result;
}
