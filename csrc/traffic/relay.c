/* SPDX-License-Identifier: Apache-2.0 */
/*
 * relay.c - a comparator that compares nothing, as fast as sockets allow.
 *
 * Both inputs are read into memory, for whoever compares must see the bytes. The primary's are sent on from where they
 * were read. When outdev is full the primary is not read; the secondary always is.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "coloproxy.h"
#include "traffic.h"

enum { BUFFER = 1 << 18, READS = 4 };

struct relay {
    int epoll, in, out, other;
    uint8_t *buffer, *waste;
    size_t begin, end; /* of the primary's bytes that wait for outdev */
    bool blocked;      /* outdev is full, and epoll will tell */
    bool ended;
};

static int watch(const struct relay *r, int op, int fd, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.fd = fd};

    return epoll_ctl(r->epoll, op, fd, &event) < 0 ? COLO_ERR_SYSTEM : 0;
}

/* Outdev is full or has room again. */
static int set_blocked(struct relay *r, bool blocked)
{
    int rc = 0;

    if (r->blocked != blocked) {
        r->blocked = blocked;
        rc = watch(r, EPOLL_CTL_MOD, r->out, blocked ? EPOLLOUT : 0);
        if (rc == 0 && !r->ended)
            rc = watch(r, blocked ? EPOLL_CTL_DEL : EPOLL_CTL_ADD, r->in, EPOLLIN); /* not 0: HUP would come */
    }
    return rc;
}

static int push(struct relay *r)
{
    while (r->begin < r->end) {
        const ssize_t n = send(r->out, r->buffer + r->begin, r->end - r->begin, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (n < 0)
            return errno == EAGAIN ? set_blocked(r, true) : COLO_ERR_SYSTEM;
        r->begin += (size_t)n;
    }
    return set_blocked(r, false);
}

static int pull(struct relay *r)
{
    int rc = 0;

    for (int i = 0; i < READS && r->begin == r->end && rc == 0; i++) {
        const ssize_t n = recv(r->in, r->buffer, BUFFER, MSG_DONTWAIT);

        if (n < 0)
            return errno == EAGAIN ? 0 : COLO_ERR_SYSTEM;
        if (n == 0) {
            r->ended = true;
            return watch(r, EPOLL_CTL_DEL, r->in, 0);
        }
        r->begin = 0;
        r->end = (size_t)n;
        rc = push(r);
    }
    return rc;
}

static int waste(struct relay *r)
{
    for (int i = 0; i < READS; i++) {
        const ssize_t n = recv(r->other, r->waste, BUFFER, MSG_DONTWAIT);

        if (n < 0)
            return errno == EAGAIN ? 0 : COLO_ERR_SYSTEM;
        if (n == 0)
            return watch(r, EPOLL_CTL_DEL, r->other, 0);
        if (n < BUFFER)
            return 0;
    }
    return 0;
}

static int relay(struct relay *r, int stop_fd)
{
    int rc = 0;

    if (watch(r, EPOLL_CTL_ADD, r->in, EPOLLIN) < 0 || watch(r, EPOLL_CTL_ADD, r->other, EPOLLIN) < 0 ||
        watch(r, EPOLL_CTL_ADD, r->out, 0) < 0 || watch(r, EPOLL_CTL_ADD, stop_fd, EPOLLIN) < 0)
        return COLO_ERR_SYSTEM;
    while (rc == 0 && !(r->ended && r->begin == r->end)) {
        struct epoll_event events[4];
        const int n = epoll_wait(r->epoll, events, 4, -1);

        if (n < 0 && errno != EINTR)
            return COLO_ERR_SYSTEM;
        for (int i = 0; i < n && rc == 0; i++) {
            const int fd = events[i].data.fd;

            if (fd == stop_fd)
                return 0;
            if (fd == r->in)
                rc = pull(r);
            else if (fd == r->other)
                rc = waste(r);
            else if (events[i].events & (EPOLLHUP | EPOLLERR))
                return 0;
            else
                rc = push(r);
        }
    }
    return rc;
}

int colo_relay_run(int primary_in, int secondary_in, int outdev, int stop_fd)
{
    struct relay r = {.in = primary_in, .other = secondary_in, .out = outdev};
    int rc = COLO_ERR_NOMEM, saved;

    r.epoll = epoll_create1(EPOLL_CLOEXEC);
    if (r.epoll < 0)
        return COLO_ERR_SYSTEM;
    r.buffer = malloc(BUFFER);
    r.waste = malloc(BUFFER);
    if (r.buffer && r.waste)
        rc = relay(&r, stop_fd);
    saved = errno;
    free(r.buffer);
    free(r.waste);
    close(r.epoll);
    errno = saved;
    return rc;
}
