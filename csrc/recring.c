/* SPDX-License-Identifier: Apache-2.0 */
#include "recring.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { NAMES = 1000 }; /* of one second */

/* What stands before the blocks of a note. */
struct entry {
    int64_t time;  /* of the verdict */
    int64_t fed;
    uint64_t epoch;
    uint64_t lost[COLO_PORT_COUNT];
    uint32_t len;  /* of the blocks */
    uint16_t packets[COLO_PORT_COUNT];
    uint8_t kind, reason;
};

int colo_recring_open(struct colo_recring *ring, const struct colo_recblock *block,
                      const struct colo_record_config *config)
{
    void *bytes;

    *ring = (struct colo_recring){.cap = config->ring_bytes, .window = config->ring_time, .wait = config->ring_wait,
                                  .gap = config->ring_gap, .dir = -1, .out.fd = -1};
    if (!ring->cap || ring->window <= 0 || ring->wait < 0 || ring->gap < 0)
        return COLO_ERR_MISUSE;
    ring->dir = open(config->ring_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (ring->dir < 0 || faccessat(ring->dir, ".", W_OK | X_OK, 0) < 0)
        return COLO_ERR_SYSTEM;
    /* Takes memory only as far as it was ever filled. */
    bytes = mmap(NULL, ring->cap, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (bytes == MAP_FAILED)
        return COLO_ERR_NOMEM;
    ring->bytes = bytes;
    return colo_recout_init(&ring->out, block);
}

void colo_recring_close(struct colo_recring *ring)
{
    if (!ring->bytes && !ring->cap)
        return;
    if (ring->bytes)
        munmap(ring->bytes, ring->cap);
    if (ring->dir >= 0)
        close(ring->dir);
    colo_recout_fini(&ring->out);
    *ring = (struct colo_recring){.dir = -1, .out.fd = -1};
}

/* ------------------------------------------------------------------- bytes */

/* So many bytes from there on lie together. */
static uint64_t together(const struct colo_recring *ring, uint64_t at, uint64_t len)
{
    uint64_t room = ring->cap - at % ring->cap;

    return len < room ? len : room;
}

static void copy_in(struct colo_recring *ring, const void *from, uint64_t len)
{
    uint64_t first = together(ring, ring->head, len);

    memcpy(ring->bytes + ring->head % ring->cap, from, first);
    memcpy(ring->bytes, (const uint8_t *)from + first, len - first);
    ring->head += len;
}

static struct entry entry_at(const struct colo_recring *ring, uint64_t at)
{
    struct entry e;
    uint64_t first = together(ring, at, sizeof e);

    memcpy(&e, ring->bytes + at % ring->cap, first);
    memcpy((uint8_t *)&e + first, ring->bytes, sizeof e - first);
    return e;
}

/* ----------------------------------------------------------------- entries */

static void forget(struct colo_recring *ring, const struct entry *e)
{
    colo_recmode_follow(&ring->base, &(struct colo_note){.kind = e->kind, .reason = e->reason, .epoch = e->epoch});
    memcpy(ring->base_lost, e->lost, sizeof e->lost);
}

/* Forgets what is older than `from`, and then until `need` bytes are free. */
static void make_room(struct colo_recring *ring, int64_t from, uint64_t need)
{
    while (ring->tail != ring->head) {
        struct entry e = entry_at(ring, ring->tail);

        if (e.time >= from && ring->cap - (ring->head - ring->tail) >= need)
            return;
        forget(ring, &e);
        ring->tail += sizeof e + e.len;
    }
}

void colo_recring_keep(struct colo_recring *ring, const struct colo_recblock *block, const struct colo_note *note)
{
    struct entry e = {.time = note->kind == COLO_NOTE_MARK ? note->time : note->now, .fed = note->time,
                      .epoch = note->epoch, .len = (uint32_t)block->len, .kind = note->kind, .reason = note->reason};
    int64_t from = e.time - ring->window;

    memcpy(e.lost, note->lost, sizeof e.lost);
    memcpy(e.packets, block->packets, sizeof e.packets);
    memcpy(ring->lost, note->lost, sizeof ring->lost);
    if (ring->pending && ring->from < from)
        from = ring->from;
    make_room(ring, from, sizeof e + e.len);
    if (sizeof e + e.len > ring->cap) { /* and nothing of what came before it is left */
        forget(ring, &e);
        return;
    }
    copy_in(ring, &e, sizeof e);
    copy_in(ring, block->data, e.len);
}

/* ------------------------------------------------------------------- dumps */

void colo_recring_diverged(struct colo_recring *ring, int64_t time, int64_t now)
{
    if (ring->pending || (ring->any && time - ring->last < ring->gap))
        return;
    ring->any = ring->pending = true;
    ring->last = ring->diverged = time;
    ring->from = time - ring->window;
    ring->deadline = now + ring->wait;
}

/* A file that is not there yet, by the second in which the VMs diverged. */
static int begin(struct colo_recring *ring, struct colo_recblock *block, char *name, size_t cap)
{
    time_t second = (ring->diverged + block->wall_offset) / 1000000000;
    char utc[24];
    struct tm tm;
    int error = EEXIST;

    if (!gmtime_r(&second, &tm) || !strftime(utc, sizeof utc, "%Y%m%dT%H%M%SZ", &tm))
        return EOVERFLOW;
    for (int n = 1; n < NAMES && error == EEXIST; n++) {
        snprintf(name, cap, "divergence-%s-%d.pcapng", utc, n);
        error = colo_recout_begin(&ring->out, block, ring->dir, name, O_EXCL);
    }
    return error;
}

static int put_entries(struct colo_recring *ring)
{
    int error = 0;

    for (uint64_t at = ring->tail; at != ring->head && !error;) {
        struct entry e = entry_at(ring, at);
        uint64_t first = together(ring, at += sizeof e, e.len);

        error = colo_recout_put(&ring->out, ring->bytes + at % ring->cap, first);
        if (!error)
            error = colo_recout_put(&ring->out, ring->bytes, e.len - first);
        for (int port = 0; port < COLO_PORT_COUNT; port++)
            ring->out.seen[port] += e.packets[port];
        at += e.len;
    }
    return error;
}

/* No frame in the file was fed before the time of its first mark: a clock doesn't go back. */
static int64_t first_fed(const struct colo_recring *ring)
{
    int64_t first = ring->diverged;

    for (uint64_t at = ring->tail; at != ring->head;) {
        struct entry e = entry_at(ring, at);

        first = e.fed < first ? e.fed : first;
        at += sizeof e + e.len;
    }
    return first;
}

void colo_recring_dump(struct colo_recring *ring, struct colo_recblock *block, struct colo_record_dump *out)
{
    uint64_t lost[COLO_PORT_COUNT], before = ring->out.bytes;
    int error, ended;

    *out = (struct colo_record_dump){.time = ring->diverged};
    ring->pending = false;
    make_room(ring, ring->from, 0);
    error = begin(ring, block, out->name, sizeof out->name);
    if (!error) {
        colo_recblock_mode(block, &ring->base, first_fed(ring));
        error = colo_recout_put_block(&ring->out, block);
        if (!error)
            error = put_entries(ring);
        for (int port = 0; port < COLO_PORT_COUNT; port++)
            lost[port] = ring->lost[port] - ring->base_lost[port];
        ended = colo_recout_end(&ring->out, block, lost, ring->diverged);
        error = error ? error : ended;
        if (error)
            unlinkat(ring->dir, out->name, 0); /* half of it explains nothing, and the disk may be full */
    }
    out->error = error;
    out->bytes = ring->out.bytes - before;
}
