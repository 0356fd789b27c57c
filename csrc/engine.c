/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's public calls: they check, queue a command for the thread, and return. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "loop.h"

enum colo_engine_state {
    NEW,     /* commands are queued until it starts */
    RUNNING, /* the thread is there, or has ended by itself and waits to be joined */
    ENDED,   /* joined: no command is accepted any more */
};

struct colo_engine {
    struct colo_engine_config config;
    struct colo_command_queue commands;
    struct colo_report report;
    struct colo_ports ports;
    struct colo_loop loop; /* the thread's, once it runs */
    pthread_mutex_t lock;  /* guards `state`, and makes claim-and-queue one step */
    pthread_mutex_t join;  /* held while somebody ends the thread */
    enum colo_engine_state state;
    pthread_t thread;
};

void colo_engine_config_default(struct colo_engine_config *config)
{
    *config = (struct colo_engine_config){
        .nics = 1,
        .max_frame = 69632, /* NET_BUFSIZE of QEMU: what its own reader accepts */
        .slab_size = 512 * 1024, /* what a read takes at most: docs/performance.md */
        /* 384 MiB, allocated as needed: densely filled, more than max_bytes of the comparator and max_out_bytes. */
        .max_slabs = 768,
        .max_out_bytes = 16 << 20,
    };
    colo_config_default(&config->comparator);
}

static bool makes_sense(const struct colo_engine_config *c)
{
    return c->max_frame >= 14 && c->max_frame <= 1 << 24 && c->slab_size <= 1 << 28 &&
           c->slab_size >= c->max_frame + COLO_FRAMING_HEAD_MAX && c->max_slabs >= 8 && c->max_slabs < (1 << 24) - 2 &&
           c->max_out_bytes > 0 && (c->nics == 1 || (c->nics > 1 && c->vnet_hdr));
}

colo_engine *colo_engine_create(const struct colo_engine_config *config)
{
    colo_engine *e;

    if (!config || !makes_sense(config))
        return NULL;
    e = calloc(1, sizeof *e);
    if (!e)
        return NULL;
    e->config = *config;
    e->config.comparator.rules = NULL; /* the caller's */
    e->config.comparator.tolerances = NULL;
    if (colo_command_init(&e->commands) < 0)
        goto no_commands;
    if (colo_report_init(&e->report) < 0)
        goto no_report;
    if (colo_loop_init(&e->loop, config, &e->commands, &e->report, &e->ports) < 0)
        goto no_loop;
    /* Plain mutexes of Linux: initialising one can't fail. */
    pthread_mutex_init(&e->ports.lock, NULL);
    pthread_mutex_init(&e->lock, NULL);
    pthread_mutex_init(&e->join, NULL);
    return e;

no_loop:
    colo_report_fini(&e->report);
no_report:
    colo_command_fini(&e->commands);
no_commands:
    free(e);
    return NULL;
}

int colo_engine_record(colo_engine *e, const struct colo_record_config *config)
{
    int error = COLO_ERR_MISUSE;

    pthread_mutex_lock(&e->lock);
    if (e->state == NEW && !e->loop.judge.recorder)
        error = colo_recorder_create(&e->loop.judge.recorder, config, &e->config, &e->loop.judge.pool,
                                     e->commands.fd);
    pthread_mutex_unlock(&e->lock);
    return error;
}

void colo_engine_destroy(colo_engine *e)
{
    if (!e)
        return;
    colo_engine_stop(e, 0);
    colo_loop_fini(&e->loop);
    colo_report_fini(&e->report);
    colo_command_fini(&e->commands);
    pthread_mutex_destroy(&e->ports.lock);
    pthread_mutex_destroy(&e->lock);
    pthread_mutex_destroy(&e->join);
    free(e);
}

/* --------------------------------------------------------------- the thread */

static void *thread_main(void *arg)
{
    colo_engine *e = arg;

    pthread_setname_np(pthread_self(), "colo-engine"); /* as top -H shows it */
    colo_loop_run(&e->loop);
    return NULL;
}

int colo_engine_start(colo_engine *e)
{
    sigset_t all, before;
    int error = 0;

    pthread_mutex_lock(&e->lock);
    if (e->state != NEW) {
        pthread_mutex_unlock(&e->lock);
        return COLO_ERR_MISUSE;
    }
    /* Signals are the control plane's. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&e->thread, NULL, thread_main, e);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!error)
        e->state = RUNNING;
    pthread_mutex_unlock(&e->lock);
    errno = error;
    return error ? COLO_ERR_SYSTEM : 0;
}

int colo_engine_stop(colo_engine *e, int linger_ms)
{
    struct colo_command end = {
        .kind = COLO_COMMAND_END, .value = (int64_t)(linger_ms > 0 ? linger_ms : 0) * 1000000};
    enum colo_engine_state before;

    pthread_mutex_lock(&e->join);
    pthread_mutex_lock(&e->lock);
    before = e->state;
    e->state = ENDED;
    pthread_mutex_unlock(&e->lock);
    if (before == RUNNING) {
        colo_command_push(&e->commands, &end); /* has its own place in the queue */
        pthread_join(e->thread, NULL);
    }
    pthread_mutex_unlock(&e->join);
    return 0;
}

/* ---------------------------------------------------------------- commands */

/* With e->lock held. `telling`: events will answer, so earlier ones must have been read. */
static int push(colo_engine *e, const struct colo_command *c, bool telling)
{
    if (e->state == ENDED)
        return COLO_ERR_MISUSE;
    if (telling && !colo_report_accepts(&e->report))
        return COLO_ERR_LIMIT;
    return colo_command_push(&e->commands, c);
}

static int command(colo_engine *e, struct colo_command c, bool telling)
{
    int error;

    pthread_mutex_lock(&e->lock);
    error = push(e, &c, telling);
    pthread_mutex_unlock(&e->lock);
    return error;
}

static int prepare_fd(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        return COLO_ERR_SYSTEM;
    return 0;
}

/* A connected stream socket? */
static int check_socket(int fd)
{
    struct sockaddr_storage peer;
    socklen_t len = sizeof peer;
    int type = 0;
    socklen_t type_len = sizeof type;

    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_len) < 0 ||
        getpeername(fd, (struct sockaddr *)&peer, &len) < 0)
        return COLO_ERR_SYSTEM;
    if (type != SOCK_STREAM) {
        errno = EPROTOTYPE;
        return COLO_ERR_SYSTEM;
    }
    return prepare_fd(fd);
}

int colo_engine_attach(colo_engine *e, int port, int fd)
{
    struct colo_command c = {.kind = COLO_COMMAND_ATTACH, .port = (uint8_t)port, .fd = fd};
    int one = 1, error;

    if (port < 0 || port >= COLO_PORT_COUNT)
        return COLO_ERR_MISUSE;
    error = check_socket(fd);
    if (error)
        return error;
    if (port == COLO_PORT_OUTDEV)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* fails on UNIX sockets, which don't need it */
    pthread_mutex_lock(&e->lock);
    c.generation = colo_ports_claim(&e->ports, port);
    error = c.generation ? push(e, &c, true) : COLO_ERR_MISUSE;
    if (error && c.generation)
        colo_ports_free(&e->ports, port, c.generation);
    pthread_mutex_unlock(&e->lock);
    return error;
}

int colo_engine_detach(colo_engine *e, int port)
{
    struct colo_command c = {.kind = COLO_COMMAND_DETACH, .port = (uint8_t)port};
    int error;

    if (port < 0 || port >= COLO_PORT_COUNT)
        return COLO_ERR_MISUSE;
    pthread_mutex_lock(&e->lock);
    error = push(e, &c, false);
    if (!error)
        colo_ports_free(&e->ports, port, 0);
    pthread_mutex_unlock(&e->lock);
    return error;
}

int colo_engine_gate_attach(colo_engine *e, int qmp_fd)
{
    struct colo_command c = {.kind = COLO_COMMAND_GATE_ATTACH, .fd = qmp_fd};
    int pair[2], error;

    error = check_socket(qmp_fd);
    if (error)
        return error;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return COLO_ERR_SYSTEM;
    c.fd2 = pair[1];
    error = prepare_fd(pair[1]);
    if (!error)
        error = command(e, c, true);
    if (error) {
        int cause = errno;

        close(pair[0]);
        close(pair[1]);
        errno = cause;
        return error;
    }
    return pair[0];
}

int colo_engine_gate_done(colo_engine *e, uint64_t messages)
{
    if (messages > INT64_MAX)
        return COLO_ERR_MISUSE;
    return command(e, (struct colo_command){.kind = COLO_COMMAND_GATE_DONE, .value = (int64_t)messages}, false);
}

int colo_engine_gate_detach(colo_engine *e)
{
    return command(e, (struct colo_command){.kind = COLO_COMMAND_GATE_DETACH}, false);
}

int colo_engine_checkpoint_stop(colo_engine *e)
{
    return command(e, (struct colo_command){.kind = COLO_COMMAND_STOP}, false);
}

int colo_engine_checkpoint_commit(colo_engine *e, int64_t resumed)
{
    return command(e, (struct colo_command){.kind = COLO_COMMAND_COMMIT, .value = resumed}, true);
}

int colo_engine_checkpoint_abort(colo_engine *e)
{
    return command(e, (struct colo_command){.kind = COLO_COMMAND_ABORT}, false);
}

int colo_engine_alone(colo_engine *e)
{
    return command(e, (struct colo_command){.kind = COLO_COMMAND_ALONE}, false);
}

int colo_engine_lease(colo_engine *e, int64_t until)
{
    atomic_store(&e->loop.judge.outlet.lease, until);
    colo_command_wake(&e->commands); /* what waits may go now */
    return 0;
}

/* ----------------------------------------------------------------- reports */

int colo_engine_event_fd(const colo_engine *e)
{
    return e->report.fd;
}

size_t colo_engine_events(colo_engine *e, struct colo_engine_event *out, size_t cap)
{
    return colo_report_take(&e->report, out, cap);
}

void colo_engine_counters(colo_engine *e, struct colo_engine_counters *out)
{
    colo_report_counters(&e->report, out);
}
