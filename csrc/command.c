/* SPDX-License-Identifier: Apache-2.0 */
#include "command.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "coloproxy.h"

enum { PLACES = COLO_COMMAND_MAX + 1 };

int colo_command_init(struct colo_command_queue *q)
{
    q->head = q->count = 0;
    q->fd = -1;
    q->closed = false;
    if (pthread_mutex_init(&q->lock, NULL) != 0)
        return COLO_ERR_NOMEM;
    q->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (q->fd >= 0)
        return 0;
    pthread_mutex_destroy(&q->lock);
    return COLO_ERR_SYSTEM;
}

void colo_command_fini(struct colo_command_queue *q)
{
    struct colo_command c;

    if (q->fd < 0)
        return;
    while (colo_command_pop(q, &c)) {
        if (c.kind == COLO_COMMAND_ATTACH || c.kind == COLO_COMMAND_GATE_ATTACH)
            close(c.fd);
        if (c.kind == COLO_COMMAND_GATE_ATTACH)
            close(c.fd2);
    }
    close(q->fd);
    q->fd = -1;
    pthread_mutex_destroy(&q->lock);
}

/**
 * merge() - add @c to the newest command, if it can be
 *
 * Sums of line counts are as good as the counts: nothing stands between them.
 */
static bool merge(struct colo_command_queue *q, const struct colo_command *c)
{
    struct colo_command *last = &q->ring[(q->head + q->count - 1) % PLACES];

    if (!q->count || c->kind != COLO_COMMAND_GATE_DONE || last->kind != COLO_COMMAND_GATE_DONE ||
        last->value > INT64_MAX - c->value)
        return false;
    last->value += c->value;
    return true;
}

void colo_command_wake(struct colo_command_queue *q)
{
    uint64_t one = 1;
    ssize_t n = write(q->fd, &one, sizeof one); /* fails only while the count is at its end, and so readable */
    (void)n;
}

int colo_command_push(struct colo_command_queue *q, const struct colo_command *command)
{
    uint32_t places = command->kind == COLO_COMMAND_END ? PLACES : COLO_COMMAND_MAX;
    int error = 0;

    pthread_mutex_lock(&q->lock);
    if (q->closed) {
        errno = ESHUTDOWN;
        error = COLO_ERR_SYSTEM;
    } else if (!merge(q, command)) {
        if (q->count < places)
            q->ring[(q->head + q->count++) % PLACES] = *command;
        else
            error = COLO_ERR_LIMIT;
    }
    if (!error)
        colo_command_wake(q);
    pthread_mutex_unlock(&q->lock);
    return error;
}

bool colo_command_pop(struct colo_command_queue *q, struct colo_command *out)
{
    bool any;

    pthread_mutex_lock(&q->lock);
    any = q->count > 0;
    if (any) {
        *out = q->ring[q->head];
        q->head = (q->head + 1) % PLACES;
        q->count--;
    } else {
        uint64_t count;
        ssize_t n = read(q->fd, &count, sizeof count); /* nothing waits: not readable any more */
        (void)n;
    }
    pthread_mutex_unlock(&q->lock);
    return any;
}

void colo_command_close(struct colo_command_queue *q)
{
    pthread_mutex_lock(&q->lock);
    q->closed = true;
    pthread_mutex_unlock(&q->lock);
}
