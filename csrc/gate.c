/* SPDX-License-Identifier: Apache-2.0 */
#include "gate.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "coloproxy.h"

enum { CALLS_A_TURN = 16 };

void colo_gate_init(struct colo_gate *g)
{
    *g = (struct colo_gate){.qmp_fd = -1, .near_fd = -1};
}

void colo_gate_detach(struct colo_gate *g)
{
    if (g->qmp_fd >= 0)
        close(g->qmp_fd);
    if (g->near_fd >= 0)
        close(g->near_fd);
    free(g->in.data);
    free(g->out.data);
    colo_gate_init(g);
}

int colo_gate_attach(struct colo_gate *g, int qmp_fd, int near_fd)
{
    uint8_t *in = malloc(COLO_GATE_BUFFER), *out = malloc(COLO_GATE_BUFFER);

    if (!in || !out) {
        free(in);
        free(out);
        return COLO_ERR_NOMEM;
    }
    colo_gate_detach(g);
    g->qmp_fd = qmp_fd;
    g->near_fd = near_fd;
    g->in.data = in;
    g->out.data = out;
    return 0;
}

bool colo_gate_is_open(const struct colo_gate *g)
{
    return g->seen == g->done && !g->partial && !g->lost;
}

void colo_gate_done(struct colo_gate *g, uint64_t messages)
{
    uint64_t left = g->seen - g->done;

    g->done += messages < left ? messages : left;
}

static void count_lines(struct colo_gate *g, const uint8_t *data, size_t len)
{
    const uint8_t *end = data + len;

    g->partial = data[len - 1] != '\n';
    while ((data = memchr(data, '\n', (size_t)(end - data)))) {
        g->seen++;
        data++;
    }
}

static bool has_room(const struct colo_gate_pipe *p)
{
    return p->data && (p->from > 0 || p->to < COLO_GATE_BUFFER);
}

/**
 * fill() - one read from @fd to the end of @p
 *
 * Return: bytes read, 0 at the end of the stream, -1 with errno
 */
static ssize_t fill(struct colo_gate_pipe *p, int fd)
{
    ssize_t n;

    if (p->from) {
        memmove(p->data, p->data + p->from, p->to - p->from);
        p->to -= p->from;
        p->from = 0;
    }
    do
        n = recv(fd, p->data + p->to, COLO_GATE_BUFFER - p->to, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n > 0)
        p->to += (size_t)n;
    return n;
}

/**
 * drain() - write as much of @p to @fd as goes
 *
 * Return: 0, or -1 with errno when the connection is broken
 */
static int drain(struct colo_gate_pipe *p, int fd)
{
    while (p->from < p->to) {
        ssize_t n = send(fd, p->data + p->from, p->to - p->from, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -1;
        p->from += (size_t)n;
    }
    p->from = p->to = 0;
    return 0;
}

static void drop(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* Reports the first loss only: the second end follows because we let go of it. */
static bool lose(struct colo_gate *g, int *error, int value)
{
    bool first = !g->lost;

    g->lost = true;
    if (first)
        *error = value;
    return first;
}

/* What waits for the control plane goes out first, then it sees the end of the stream. */
static bool hand_on(struct colo_gate *g, int *error)
{
    if (g->near_fd >= 0 && drain(&g->in, g->near_fd) < 0) {
        int cause = errno;

        drop(&g->near_fd);
        drop(&g->qmp_fd);
        return lose(g, error, cause);
    }
    if (g->qmp_fd < 0 && g->in.from == g->in.to)
        drop(&g->near_fd);
    return false;
}

bool colo_gate_look(struct colo_gate *g, int *error)
{
    bool lost = false;

    /* A bounded look is enough: whatever was read, be it half a line, has closed the gate. So has a full buffer. */
    for (int calls = 0; g->qmp_fd >= 0 && has_room(&g->in) && calls < CALLS_A_TURN; calls++) {
        ssize_t n = fill(&g->in, g->qmp_fd);

        if (n > 0) {
            count_lines(g, g->in.data + g->in.to - (size_t)n, (size_t)n);
            lost |= hand_on(g, error);
            continue;
        }
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            break;
        lost |= lose(g, error, n < 0 ? errno : 0);
        drop(&g->qmp_fd);
        lost |= hand_on(g, error);
    }
    return lost;
}

bool colo_gate_pump(struct colo_gate *g, int *error)
{
    bool lost = hand_on(g, error);

    for (int calls = 0; g->near_fd >= 0 && g->qmp_fd >= 0 && has_room(&g->out) && calls < CALLS_A_TURN; calls++) {
        ssize_t n = fill(&g->out, g->near_fd);

        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            break;
        if (n <= 0) {
            lost |= lose(g, error, n < 0 ? errno : 0);
            (void)drain(&g->out, g->qmp_fd); /* the last command may still be of use to QEMU */
            drop(&g->near_fd);
            drop(&g->qmp_fd);
            break;
        }
        if (drain(&g->out, g->qmp_fd) < 0) {
            lost |= lose(g, error, errno);
            drop(&g->qmp_fd);
            lost |= hand_on(g, error);
        }
    }
    if (g->qmp_fd >= 0 && drain(&g->out, g->qmp_fd) < 0) {
        lost |= lose(g, error, errno);
        drop(&g->qmp_fd);
        lost |= hand_on(g, error);
    }
    return lost;
}

static uint32_t interest(const struct colo_gate_pipe *in, const struct colo_gate_pipe *out)
{
    return (has_room(in) ? (uint32_t)EPOLLIN : 0) | (out->from < out->to ? (uint32_t)EPOLLOUT : 0);
}

uint32_t colo_gate_qmp_interest(const struct colo_gate *g)
{
    return g->qmp_fd < 0 ? 0 : interest(&g->in, &g->out);
}

uint32_t colo_gate_near_interest(const struct colo_gate *g)
{
    if (g->near_fd < 0)
        return 0;
    /* Without QEMU there is nobody to read commands for: only its last lines go out. */
    return g->qmp_fd < 0 ? (uint32_t)EPOLLOUT : interest(&g->out, &g->in);
}
