/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rig.h - an engine with its far ends, for tests: sockets in place of QEMU's, no sleeps.
 *
 * Frames are of an experimental ethertype, so the comparator compares them whole, whatever is in them.
 */
#ifndef RIG_H
#define RIG_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "coloproxy.h"

enum {
    P = COLO_PORT_PRIMARY_IN,
    S = COLO_PORT_SECONDARY_IN,
    OUT = COLO_PORT_OUTDEV,
    PATIENCE_MS = 20000, /* a test that waits so long has failed */
};

struct rig {
    struct colo_engine_config config;
    colo_engine *engine;
    int far[COLO_PORT_COUNT]; /* -1: none */
    int qemu, control;        /* far ends of the gate, -1: none */
    struct colo_engine_event seen[64]; /* events taken so far */
    size_t seen_count;
};

static inline int64_t rig_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void rig_attach(struct rig *r, int port)
{
    int pair[2];

    if (r->far[port] >= 0)
        close(r->far[port]);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    CHECK_EQ(colo_engine_attach(r->engine, port, pair[0]), 0);
    r->far[port] = pair[1];
}

static inline void rig_attach_gate(struct rig *r)
{
    int pair[2];

    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    r->qemu = pair[1];
    r->control = colo_engine_gate_attach(r->engine, pair[0]);
    CHECK(r->control >= 0);
}

/* Defaults, to be changed before rig_create. */
static inline void rig_init(struct rig *r)
{
    *r = (struct rig){.far = {-1, -1, -1}, .qemu = -1, .control = -1};
    colo_engine_config_default(&r->config);
    r->config.comparator.compare_timeout = (int64_t)3600 * 1000000000;
    r->config.comparator.reorder_window = (int64_t)3600 * 1000000000;
}

static inline void rig_create(struct rig *r)
{
    r->engine = colo_engine_create(&r->config);
    CHECK(r->engine != NULL);
}

/* Created, all peers attached, running. */
static inline void rig_start(struct rig *r)
{
    rig_create(r);
    for (int port = 0; port < COLO_PORT_COUNT; port++)
        rig_attach(r, port);
    CHECK_EQ(colo_engine_start(r->engine), 0);
}

static inline void rig_close(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static inline void rig_end(struct rig *r)
{
    colo_engine_destroy(r->engine);
    for (int port = 0; port < COLO_PORT_COUNT; port++)
        rig_close(&r->far[port]);
    rig_close(&r->qemu);
    rig_close(&r->control);
}

/* Takes events until one of this kind comes; those before it are in r->seen. */
static inline int rig_wait(struct rig *r, int kind, struct colo_engine_event *out)
{
    struct pollfd p = {.fd = colo_engine_event_fd(r->engine), .events = POLLIN};
    struct colo_engine_event e;

    for (;;) {
        if (poll(&p, 1, PATIENCE_MS) <= 0)
            return check_fail(__FILE__, __LINE__, "no event of kind %d came", kind);
        while (colo_engine_events(r->engine, &e, 1)) {
            if (r->seen_count < sizeof r->seen / sizeof r->seen[0])
                r->seen[r->seen_count++] = e;
            if (e.kind == kind) {
                if (out)
                    *out = e;
                return 1;
            }
        }
    }
}

static inline struct colo_engine_counters rig_counters(const struct rig *r)
{
    struct colo_engine_counters n;

    colo_engine_counters(r->engine, &n);
    return n;
}

/* The counters are published at the end of each wake-up: waits until they say so. `n` is in scope of the condition. */
#define UNTIL(r, cond) \
    do { \
        int64_t until_end_ = rig_now() + (int64_t)PATIENCE_MS * 1000000; \
        for (;;) { \
            struct colo_engine_counters n = rig_counters(r); \
            if (cond) \
                break; \
            if (rig_now() > until_end_) { \
                check_fail(__FILE__, __LINE__, "never came true: %s", #cond); \
                return; \
            } \
            poll(NULL, 0, 0); \
        } \
    } while (0)

/* Builds one framed frame: `len` bytes from the Ethernet header on, numbered; returns the bytes written to out. */
static inline size_t rig_frame(const struct rig *r, uint8_t *out, uint32_t number, uint32_t len)
{
    static const uint8_t ethernet[14] = {2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 2, 0x88, 0xb5};
    const uint32_t vnet = r->config.vnet_hdr ? 12 : 0, all = len + vnet;
    size_t at = 0;

    for (int shift = 24; shift >= 0; shift -= 8)
        out[at++] = (uint8_t)(all >> shift);
    if (vnet) {
        memset(out + at, 0, 4 + vnet);
        out[at + 3] = (uint8_t)vnet;
        at += 4 + vnet;
    }
    for (uint32_t i = 0; i < len; i++)
        out[at + i] = i < 14 ? ethernet[i] : (uint8_t)(number * 31 + i);
    for (uint32_t i = 0; i < 4 && 14 + i < len; i++)
        out[at + 14 + i] = (uint8_t)(number >> (8 * i));
    return at + len;
}

enum { RIG_FRAME_MAX = 70000 };

/* Sends one frame from the far end of `port`; the socket must have room for it. */
static inline void rig_send(struct rig *r, int port, uint32_t number, uint32_t len)
{
    static uint8_t buffer[RIG_FRAME_MAX];
    size_t size = rig_frame(r, buffer, number, len);

    CHECK_EQ(send(r->far[port], buffer, size, MSG_NOSIGNAL), size);
}

static inline int rig_recv_all(int fd, uint8_t *out, size_t len)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    size_t at = 0;

    while (at < len) {
        ssize_t n;

        if (poll(&p, 1, PATIENCE_MS) <= 0)
            return check_fail(__FILE__, __LINE__, "only %zu of %zu bytes came", at, len);
        n = recv(fd, out + at, len - at, MSG_DONTWAIT);
        if (n <= 0)
            return check_fail(__FILE__, __LINE__, "the stream ended after %zu of %zu bytes", at, len);
        at += (size_t)n;
    }
    return 1;
}

/* A thread that sends `frames` numbered frames of length len(number), until the engine closes the socket. */
struct rig_writer {
    const struct rig *rig;
    int port;
    uint32_t frames;
    unsigned seed;
    uint32_t (*len)(uint32_t number);
};

static inline uint32_t rig_any_len(uint32_t number)
{
    uint32_t h = number * 2654435761u;

    /* mostly ordinary frames, some minimal ones, some of the largest size there is */
    return h % 16 == 0 ? 69632 - (h >> 8) % 3 : h % 5 == 0 ? 14 + (h >> 8) % 20 : 60 + (h >> 8) % 1455;
}

/* Sends the numbered frames in pieces that know nothing of frames. */
static inline void *rig_write(void *arg)
{
    struct rig_writer *w = arg;
    uint8_t *buffer = malloc(2 * RIG_FRAME_MAX);
    size_t have = 0;
    uint32_t next = 0;

    while (next < w->frames || have) {
        if (next < w->frames && have < RIG_FRAME_MAX) {
            have += rig_frame(w->rig, buffer + have, next, w->len(next));
            next++;
            continue;
        }
        size_t piece = 1 + (size_t)rand_r(&w->seed) % 40000;
        ssize_t n = send(w->rig->far[w->port], buffer, piece < have ? piece : have, MSG_NOSIGNAL);

        if (n <= 0)
            break;
        have -= (size_t)n;
        memmove(buffer, buffer + n, have);
    }
    free(buffer);
    return NULL;
}

/* The next frame at the far end of outdev must be this one, byte for byte. */
static inline int rig_expect(struct rig *r, uint32_t number, uint32_t len)
{
    static uint8_t want[RIG_FRAME_MAX], got[RIG_FRAME_MAX];
    size_t size = rig_frame(r, want, number, len);

    return rig_recv_all(r->far[OUT], got, size) && CHECK_MEM(got, want, size);
}

/* Nothing has come out of outdev. Say first, with UNTIL, when the engine must have decided. */
static inline int rig_silent(struct rig *r)
{
    uint8_t byte;

    return CHECK_EQ(recv(r->far[OUT], &byte, 1, MSG_DONTWAIT | MSG_PEEK), -1);
}

static inline size_t rig_open_fds(void)
{
    size_t count = 0;

    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

#endif
