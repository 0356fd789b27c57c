/* SPDX-License-Identifier: Apache-2.0 */
/*
 * path_rig.h - a data path with its far ends, for tests: sockets in place of TAP, VM and comparator; no sleeps.
 *
 * Frames are of an experimental ethertype and have their number in byte 14; they come from MACs of their own.
 */
#ifndef PATH_RIG_H
#define PATH_RIG_H

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "load.h"
#include "path/path.h"

enum { PATH_PATIENCE_MS = 20000, PATH_FRAME = 64 };

struct path_rig {
    struct colo_path_config config;
    colo_path *path;
    int client[COLO_PATH_NICS], vm[COLO_PATH_NICS]; /* far ends, -1: none */
    int comparator[3];
};

static inline int64_t path_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Defaults, to be changed before path_create. */
static inline void path_init(struct path_rig *r, enum colo_path_role role)
{
    memset(r, 0, sizeof *r);
    for (int nic = 0; nic < COLO_PATH_NICS; nic++)
        r->client[nic] = r->vm[nic] = -1;
    for (int i = 0; i < 3; i++)
        r->comparator[i] = -1;
    colo_path_config_default(&r->config);
    r->config.role = (uint8_t)role;
}

/* Returns the far end. */
static inline int path_attach(struct path_rig *r, int place, int nic, int type, int kind)
{
    int pair[2];

    CHECK_EQ(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, pair), 0);
    CHECK_EQ(colo_path_attach(r->path, place, nic, pair[0], kind, 0), 0);
    return pair[1];
}

/* Every NIC has a client side of datagrams and a stream to the VM; the primary a comparator. */
static inline void path_create(struct path_rig *r)
{
    r->path = colo_path_create(&r->config);
    CHECK(r->path != NULL);
    for (int nic = 0; nic < r->config.nics; nic++) {
        r->client[nic] = path_attach(r, COLO_PLACE_CLIENT, nic, SOCK_DGRAM, COLO_WIRE_FRAMES);
        r->vm[nic] = path_attach(r, COLO_PLACE_VM, nic, SOCK_STREAM, COLO_WIRE_STREAM);
    }
    for (int i = 0; i < 3 && r->config.role == COLO_PATH_PRIMARY; i++)
        r->comparator[i] = path_attach(r, COLO_PLACE_PRIMARY_IN + i, 0, SOCK_STREAM, COLO_WIRE_TAGGED);
}

static inline void path_close(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static inline void path_end(struct path_rig *r)
{
    colo_path_destroy(r->path);
    for (int nic = 0; nic < COLO_PATH_NICS; nic++) {
        path_close(&r->client[nic]);
        path_close(&r->vm[nic]);
    }
    for (int i = 0; i < 3; i++)
        path_close(&r->comparator[i]);
}

static inline struct colo_path_counters path_counters(struct path_rig *r)
{
    struct colo_path_counters n;

    colo_path_counters_of(r->path, &n);
    return n;
}

/* A frame from a client (or, `vm`, of the VM). */
static inline void path_frame(uint8_t out[PATH_FRAME], uint8_t number, bool vm)
{
    memset(out, 0, PATH_FRAME);
    memcpy(out, vm ? "\2\0\0\0\0\1\2\0\0\0\0\2\x88\xb5" : "\2\0\0\0\0\2\2\0\0\0\0\1\x88\xb5", 14);
    out[14] = number;
}

/* The same with a stream's words before it; their length is returned with it. */
static inline size_t path_framed(uint8_t out[PATH_FRAME + 8], uint8_t number, bool vm, bool tagged)
{
    const size_t head = tagged ? 8 : 4;

    memset(out, 0, head);
    colo_store32(out, PATH_FRAME);
    path_frame(out + head, number, vm);
    return head + PATH_FRAME;
}

static inline int path_read_all(int fd, uint8_t *out, size_t len)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    size_t at = 0;

    while (at < len) {
        ssize_t n;

        if (poll(&p, 1, PATH_PATIENCE_MS) <= 0)
            return check_fail(__FILE__, __LINE__, "only %zu of %zu bytes came", at, len);
        n = recv(fd, out + at, len - at, MSG_DONTWAIT);
        if (n <= 0)
            return check_fail(__FILE__, __LINE__, "the stream ended after %zu of %zu bytes", at, len);
        at += (size_t)n;
    }
    return 1;
}

/* The number of the next frame of a stream or of datagrams, waited for; -1: none came. */
static inline int path_next(int fd, bool stream, bool tagged)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    uint8_t frame[PATH_FRAME + 8];

    if (stream)
        return path_read_all(fd, frame, PATH_FRAME + (tagged ? 8 : 4)) ? frame[14 + (tagged ? 8 : 4)] : -1;
    if (poll(&p, 1, PATH_PATIENCE_MS) <= 0) {
        check_fail(__FILE__, __LINE__, "no frame came");
        return -1;
    }
    return recv(fd, frame, sizeof frame, MSG_DONTWAIT) == PATH_FRAME ? frame[14] : -1;
}

/* Nothing is there now. */
static inline bool path_silent(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    return poll(&p, 1, 0) == 0;
}

/* Waits for an event; those before it are thrown away. */
static inline int path_wait(struct path_rig *r, int kind, struct colo_path_event *out)
{
    struct pollfd p = {.fd = colo_path_event_fd(r->path), .events = POLLIN};
    struct colo_path_event e;

    for (;;) {
        if (poll(&p, 1, PATH_PATIENCE_MS) <= 0)
            return check_fail(__FILE__, __LINE__, "no event of kind %d came", kind);
        while (colo_path_events(r->path, &e, 1))
            if (e.kind == kind) {
                if (out)
                    *out = e;
                return 1;
            }
    }
}

/* Waits until the counters say so; `n` is in scope of the condition. */
#define PATH_UNTIL(r, cond) \
    do { \
        int64_t until_end_ = path_now() + (int64_t)PATH_PATIENCE_MS * 1000000; \
        for (;;) { \
            struct colo_path_counters n = path_counters(r); \
            if (cond) \
                break; \
            if (path_now() > until_end_) { \
                check_fail(__FILE__, __LINE__, "never came true: %s", #cond); \
                return; \
            } \
            poll(NULL, 0, 0); \
        } \
    } while (0)

#endif
