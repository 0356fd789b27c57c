/* SPDX-License-Identifier: Apache-2.0 */
/* The path's calls about epochs, and the gate that keeps them exact on the secondary. */
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "inherit.h"
#include "marks.h"
#include "route.h"
#include "turn.h"

/* Begins a call of one role: locked, and the time read; false: it is the other role's, or over. */
static bool begin(colo_path *p, enum colo_path_role role)
{
    colo_path_lock(p);
    p->now = colo_path_now();
    return p->config.role == role && p->phase != COLO_PHASE_ENDED;
}

static int end(colo_path *p, bool was_done)
{
    if (was_done) {
        memset(p->overrun_told, 0, sizeof p->overrun_told);
        colo_path_wake(p);
    }
    colo_path_unlock(p);
    return was_done ? 0 : COLO_ERR_MISUSE;
}

int colo_path_drain(colo_path *p, int64_t stopped)
{
    bool may = begin(p, COLO_PATH_PRIMARY);

    if (may) {
        colo_marks_explained(p, stopped);
        colo_path_drain_vm(p);
        if (p->session)
            colo_marks_put(p, COLO_MARK_PRIMARY_STOP, 0);
        p->standing = true;
        p->counters.stale += colo_wire_void(&p->comparator[1]);
    }
    return end(p, may);
}

int colo_path_lease(colo_path *p, int64_t until)
{
    bool may = begin(p, COLO_PATH_PRIMARY);

    if (may)
        p->lease = until;
    return end(p, may);
}

int colo_path_commit(colo_path *p)
{
    bool may = begin(p, COLO_PATH_PRIMARY);

    if (may) {
        p->standing = false;
        if (p->commits >= 0)
            p->commits++;
        colo_route_held(p);
        colo_path_flush(p);
    }
    return end(p, may);
}

int colo_path_sync(colo_path *p, uint64_t token)
{
    bool may = begin(p, COLO_PATH_PRIMARY) && token;

    if (may) {
        p->token = token;
        colo_marks_forget(p);
    }
    return end(p, may);
}

int colo_path_accept(colo_path *p)
{
    bool may = begin(p, COLO_PATH_PRIMARY) && p->marks == 0 && p->commits < 0;

    if (may) {
        p->commits = 0;
        colo_route_held(p);
        colo_path_flush(p);
    }
    return end(p, may);
}

static int stand(colo_path *p, bool waiting)
{
    bool may = begin(p, COLO_PATH_SECONDARY) && !p->taken_over;

    if (may) {
        colo_path_drain_vm(p);
        p->standing = true;
        p->waiting = waiting;
    }
    return end(p, may);
}

int colo_path_wait(colo_path *p)
{
    return stand(p, true);
}

int colo_path_stand(colo_path *p)
{
    return stand(p, false);
}

int colo_path_epoch(colo_path *p, int64_t resumed)
{
    bool may = begin(p, COLO_PATH_SECONDARY) && !p->taken_over;

    if (may) {
        colo_route_forget(p, resumed);
        colo_rewriter_mark(p->rewriter);
        colo_inherit_settle(p);
        colo_marks_put(p, COLO_MARK_EPOCH, 0);
        p->standing = p->waiting = false;
        colo_route_held(p);
        colo_path_flush(p);
    }
    return end(p, may);
}

int colo_path_stand_over(colo_path *p)
{
    bool may = begin(p, p->config.role);

    if (may) {
        p->standing = p->waiting = false;
        colo_route_held(p);
        colo_path_flush(p);
    }
    return end(p, may);
}

int colo_path_answer(colo_path *p, uint64_t token)
{
    bool may = begin(p, COLO_PATH_SECONDARY) && p->session && !p->taken_over;

    if (may) {
        colo_marks_put(p, COLO_MARK_SYNC, token);
        colo_path_flush(p);
    }
    return end(p, may);
}

int colo_path_takeover(colo_path *p)
{
    bool may = begin(p, COLO_PATH_SECONDARY) && !p->taken_over;

    if (may) {
        colo_path_drop_link(p, NULL);
        p->session = false;
        colo_route_give_up_held(p);
        p->taken_over = true;
        p->standing = p->waiting = false;
        colo_rewriter_takeover(p->rewriter, p->now);
        colo_route_held(p);
        colo_path_flush(p);
    }
    return end(p, may);
}

/* ------------------------------------------------------------------- the gate */

int colo_path_gate_attach(colo_path *p, int qmp_fd)
{
    int pair[2], error = COLO_ERR_MISUSE;
    bool may;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
        return COLO_ERR_SYSTEM;
    if (fcntl(qmp_fd, F_SETFL, fcntl(qmp_fd, F_GETFL) | O_NONBLOCK) < 0) {
        error = COLO_ERR_SYSTEM;
    } else {
        may = begin(p, COLO_PATH_SECONDARY);
        if (may)
            error = colo_path_accepts(p) ? colo_gate_attach(&p->gate, qmp_fd, pair[1]) : COLO_ERR_LIMIT;
        if (!error)
            p->gate_watched[0] = p->gate_watched[1] = 0; /* the earlier ones left epoll when they were closed */
        colo_path_wake(p);
        colo_path_unlock(p);
    }
    if (!error)
        return pair[0];
    close(pair[0]);
    close(pair[1]);
    return error;
}

int colo_path_gate_done(colo_path *p, uint64_t messages)
{
    bool may = begin(p, COLO_PATH_SECONDARY);

    if (may)
        colo_gate_done(&p->gate, messages);
    colo_path_wake(p);
    colo_path_unlock(p);
    return may ? 0 : COLO_ERR_MISUSE;
}

int colo_path_gate_detach(colo_path *p)
{
    bool may = begin(p, COLO_PATH_SECONDARY);

    if (may) {
        colo_gate_detach(&p->gate);
        p->gate_watched[0] = p->gate_watched[1] = 0;
    }
    colo_path_wake(p);
    colo_path_unlock(p);
    return may ? 0 : COLO_ERR_MISUSE;
}
