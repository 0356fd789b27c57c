/* SPDX-License-Identifier: Apache-2.0 */
#include "recorder.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "framing.h"
#include "load.h"

enum {
    FOR_MARKS = 1024,     /* notes that frames leave to marks: without those no replay is right */
    SLABS_PART = 8,       /* of the pool, that may wait for the writer */
    AWAKE_AT = 8,         /* a sleeping writer is woken when this part of a bound is used */
    PASSED_AT_LEAST = 64, /* notes the writer passes before it says so */
    IDLE_MS = 20,         /* the writer looks by itself */
    FED_KEPT = 256,       /* entries of a slab's list that are kept for its next use */
};

/* ------------------------------------------------------------- the writer */

static int64_t clock_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void to_file(struct colo_recorder *r, const struct colo_note *note)
{
    int error = atomic_load_explicit(&r->error, memory_order_relaxed);

    if (!error) {
        error = colo_recfile_write(&r->file, &r->block, note);
        if (!error)
            return;
        atomic_store(&r->error, error);
    }
    atomic_fetch_add_explicit(&r->unfiled, 1, memory_order_relaxed);
}

static void dump(struct colo_recorder *r)
{
    uint32_t head = atomic_load_explicit(&r->dumped_head, memory_order_relaxed);
    struct colo_record_dump *out = &r->dumped[head % COLO_DUMPS];
    uint64_t one = 1;
    ssize_t n;

    if (head - atomic_load_explicit(&r->dumped_tail, memory_order_acquire) == COLO_DUMPS) {
        r->keep.pending = false; /* nobody hears of it */
        atomic_fetch_add(&r->dumps_failed, 1);
        return;
    }
    colo_recring_dump(&r->keep, &r->block, out);
    atomic_fetch_add(out->error ? &r->dumps_failed : &r->dumps, 1);
    atomic_store_explicit(&r->dumped_head, head + 1, memory_order_release);
    if (r->engine_fd >= 0) {
        n = write(r->engine_fd, &one, sizeof one);
        (void)n;
    }
}

static void write_out(struct colo_recorder *r, const struct colo_note *note)
{
    if (note->kind == COLO_NOTE_DIVERGED) {
        colo_recring_diverged(&r->keep, note->time, clock_now());
    } else if (note->kind == COLO_NOTE_SETTLED) {
        if (r->keep.pending)
            dump(r);
    } else {
        colo_recblock_note(&r->block, note);
        if (r->keep.bytes)
            colo_recring_keep(&r->keep, &r->block, note);
        if (r->file.path)
            to_file(r, note); /* the last: it may use the block for another file's beginning */
    }
}

static void flush(struct colo_recorder *r)
{
    int error = atomic_load_explicit(&r->error, memory_order_relaxed);

    if (r->file.path && !error && (error = colo_recfile_flush(&r->file)))
        atomic_store(&r->error, error);
    atomic_store_explicit(&r->written, r->file.out.packets, memory_order_relaxed);
    atomic_store_explicit(&r->bytes, r->file.out.bytes, memory_order_relaxed);
    atomic_store_explicit(&r->files, r->file.files, memory_order_relaxed);
    atomic_store_explicit(&r->ring_bytes, r->keep.head - r->keep.tail, memory_order_relaxed);
}

/* Writes what was noted. `to_the_end`: even when the recording ends meanwhile. */
static void pass(struct colo_recorder *r, bool to_the_end)
{
    uint32_t head = atomic_load_explicit(&r->head, memory_order_acquire);

    while (r->passed != head && (to_the_end || !atomic_load_explicit(&r->ending, memory_order_relaxed))) {
        write_out(r, &r->ring[r->passed % COLO_NOTES]);
        if (++r->passed % PASSED_AT_LEAST == 0)
            atomic_store_explicit(&r->tail, r->passed, memory_order_release);
    }
    atomic_store_explicit(&r->tail, r->passed, memory_order_release);
    if (r->keep.pending && (to_the_end || clock_now() >= r->keep.deadline))
        dump(r);
    flush(r);
}

static void doze(struct colo_recorder *r)
{
    struct pollfd p = {.fd = r->wake_fd, .events = POLLIN};

    atomic_store(&r->sleeping, true);
    if (poll(&p, 1, atomic_load(&r->ending) ? 0 : IDLE_MS) > 0) {
        uint64_t count;
        ssize_t n = read(r->wake_fd, &count, sizeof count);
        (void)n;
    }
    atomic_store(&r->sleeping, false);
}

static void *writer_main(void *arg)
{
    const struct sched_param idle = {0};
    struct colo_recorder *r = arg;

    pthread_setname_np(pthread_self(), "colo-recorder");
    /* Only with what CPU the others leave: rather lose records than slow the data path. */
    pthread_setschedparam(pthread_self(), SCHED_IDLE, &idle);
    while (!atomic_load(&r->ending)) {
        pass(r, false);
        if (r->passed == atomic_load_explicit(&r->head, memory_order_relaxed))
            doze(r);
    }
    return NULL;
}

/* -------------------------------------------------------------------- life */

static int start_writer(struct colo_recorder *r)
{
    sigset_t all, before;
    int error;

    r->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (r->wake_fd < 0)
        return COLO_ERR_SYSTEM;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&r->thread, NULL, writer_main, r);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    r->running = !error;
    errno = error;
    return error ? COLO_ERR_SYSTEM : 0;
}

int colo_recorder_create(struct colo_recorder **out, const struct colo_record_config *config,
                         const struct colo_engine_config *engine, struct colo_slab_pool *pool, int engine_fd)
{
    struct colo_recorder *r = calloc(1, sizeof *r);
    size_t slabs = (size_t)pool->max + 2; /* the forced ones as well */
    int error = COLO_ERR_NOMEM;

    if (!r)
        return error;
    r->pool = pool;
    r->vnet_hdr = engine->vnet_hdr;
    r->engine_fd = engine_fd;
    r->wake_fd = r->file.out.fd = r->keep.dir = r->keep.out.fd = -1;
    r->max_slabs = pool->max / SLABS_PART;
    r->ring = calloc(COLO_NOTES, sizeof r->ring[0]);
    r->slab_refs = calloc(slabs, sizeof r->slab_refs[0]);
    r->fed = calloc(slabs, sizeof r->fed[0]);
    if (r->ring && r->slab_refs && r->fed)
        error = config->path || config->ring_dir ? colo_recblock_init(&r->block, config, engine->max_frame)
                                                 : COLO_ERR_MISUSE;
    if (!error && config->ring_dir) /* first: a file of that name stays as it is when this fails */
        error = colo_recring_open(&r->keep, &r->block, config);
    if (!error && config->path)
        error = colo_recfile_open(&r->file, &r->block, config);
    if (!error)
        error = start_writer(r);
    if (error) {
        int cause = errno;

        colo_recorder_destroy(r);
        errno = cause;
        return error;
    }
    *out = r;
    return 0;
}

static void put_ref(struct colo_recorder *r, struct colo_slab *slab)
{
    if (!--r->slab_refs[slab->index])
        r->slabs--;
    colo_slab_put(r->pool, slab, 1);
}

/* Takes back what the writer has passed. */
static void reclaim(struct colo_recorder *r)
{
    uint32_t tail = atomic_load_explicit(&r->tail, memory_order_acquire);

    for (; r->reclaimed != tail; r->reclaimed++) {
        struct colo_note *note = &r->ring[r->reclaimed % COLO_NOTES];

        if (note->slab)
            put_ref(r, note->slab);
        else
            free((void *)(uintptr_t)note->data);
    }
}

void colo_recorder_finish(struct colo_recorder *r)
{
    int error;

    if (!r->running)
        return;
    /* That thread may get little CPU, and more would take a privilege: this one does the rest. */
    colo_recorder_publish(r);
    atomic_store(&r->ending, true);
    uint64_t one = 1;
    ssize_t n = write(r->wake_fd, &one, sizeof one); /* or it looks by itself soon */
    (void)n;
    pthread_join(r->thread, NULL);
    r->running = false;
    pass(r, true);
    reclaim(r);
    if (!r->file.path)
        return;
    memcpy(r->file.lost, r->lost, sizeof r->lost);
    error = colo_recfile_close(&r->file, &r->block);
    atomic_store(&r->bytes, r->file.out.bytes);
    if (error && !atomic_load(&r->error))
        atomic_store(&r->error, error);
}

void colo_recorder_destroy(struct colo_recorder *r)
{
    if (!r)
        return;
    colo_recorder_finish(r);
    if (r->file.path)
        colo_recfile_close(&r->file, &r->block);
    colo_recring_close(&r->keep);
    colo_recblock_fini(&r->block);
    if (r->wake_fd >= 0)
        close(r->wake_fd);
    for (uint32_t i = 0; r->fed && i < r->pool->max + 2; i++)
        free(r->fed[i].entries);
    free(r->fed);
    free(r->slab_refs);
    free(r->ring);
    free(r);
}

/* ----------------------------------------------------------- what was fed */

static struct colo_fed *add_fed(struct colo_fed_list *list, uint32_t at)
{
    /* Entries at or behind this place are of an earlier use of the slab. */
    while (list->count && list->entries[list->count - 1].last >= at)
        list->count--;
    if (!list->count && list->cap > FED_KEPT) {
        free(list->entries);
        *list = (struct colo_fed_list){0};
    }
    if (list->count == list->cap) {
        uint32_t cap = list->cap ? list->cap * 2 : 8;
        struct colo_fed *grown = realloc(list->entries, cap * sizeof *grown);

        if (!grown)
            return NULL;
        list->entries = grown;
        list->cap = cap;
    }
    return &list->entries[list->count++];
}

void colo_recorder_fed(struct colo_recorder *r, uint64_t first, uint64_t last, uint32_t count, int64_t time)
{
    struct colo_fed_list *list = &r->fed[colo_slab_index(first)];
    struct colo_fed *fed = add_fed(list, colo_slab_at(first));

    if (fed) /* else its frames have no number, and are counted as lost */
        *fed = (struct colo_fed){.first = colo_slab_at(first), .last = colo_slab_at(last),
                                 .ordinal = colo_slab_ordinal(first), .seq = r->seq + 1, .time = time};
    r->seq += count;
    r->now = time > r->now ? time : r->now;
}

/* A slab is read from front to end, so what leaves now was mostly fed last: from the end on. */
static const struct colo_fed *find_fed(const struct colo_recorder *r, uint64_t cookie)
{
    const struct colo_fed_list *list = &r->fed[colo_slab_index(cookie)];
    uint32_t at = colo_slab_at(cookie), low = 0, high = list->count;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (list->entries[middle].last < at)
            low = middle + 1;
        else
            high = middle;
    }
    return low < list->count && list->entries[low].first <= at ? &list->entries[low] : NULL;
}

/* ---------------------------------------------------------------- noting */

/* A place for a note, or NULL: then it is counted as lost, by the interface that it would have been on. */
static struct colo_note *place(struct colo_recorder *r, int port, uint32_t left_alone)
{
    struct colo_note *note;

    bool over = atomic_load_explicit(&r->error, memory_order_relaxed) && !r->keep.bytes;

    if (over || r->next - r->reclaimed >= COLO_NOTES - left_alone ||
        (left_alone && r->slabs > r->max_slabs)) {
        r->lost[port]++;
        r->missing++;
        return NULL;
    }
    note = &r->ring[r->next % COLO_NOTES];
    *note = (struct colo_note){.missing = r->missing, .epoch = r->epoch, .now = r->now};
    memcpy(note->lost, r->lost, sizeof note->lost);
    return note;
}

static void placed(struct colo_recorder *r)
{
    r->missing = 0;
    r->next++;
}

static void note_frame(struct colo_recorder *r, struct colo_note *note, uint64_t cookie)
{
    struct colo_slab *slab = colo_slab_of(r->pool, cookie);
    const uint8_t *words = slab->data + colo_slab_at(cookie);
    uint32_t head = colo_framing_head(r->vnet_hdr);

    note->slab = slab;
    note->data = words + head;
    note->len = colo_framing_length_at(r->vnet_hdr, words) - head;
    if (r->vnet_hdr) {
        uint32_t word = colo_load32(words + 4); /* that a scan has accepted */

        note->vnet_len = (uint8_t)colo_framing_word_vnet_len(word);
        note->nic = colo_framing_word_nic(word);
    }
    slab->refs++;
    if (!r->slab_refs[slab->index]++)
        r->slabs++;
    placed(r);
}

void colo_recorder_mark(struct colo_recorder *r, int mark, int64_t now, int64_t resumed)
{
    struct colo_note *note;

    r->seq++;
    if (mark == COLO_MARK_COMMIT)
        r->epoch++;
    r->now = now > r->now ? now : r->now;
    note = place(r, COLO_PORT_OUTDEV, 0);
    if (!note)
        return;
    note->kind = COLO_NOTE_MARK;
    note->reason = (uint8_t)mark;
    note->seq = r->seq;
    note->time = now;
    note->now = resumed;
    placed(r);
}

static void note_emitted(struct colo_recorder *r, const struct colo_action *a)
{
    struct colo_note *note = place(r, COLO_PORT_OUTDEV, FOR_MARKS);
    uint8_t *copy;

    if (!note)
        return;
    copy = malloc(a->len);
    if (!copy) {
        r->lost[COLO_PORT_OUTDEV]++;
        r->missing++;
        return;
    }
    memcpy(copy, a->data, a->len);
    note->kind = COLO_NOTE_EMITTED;
    note->reason = a->reason;
    note->time = r->now;
    note->data = copy;
    note->len = a->len;
    note->vnet_len = a->vnet_len;
    note->nic = a->nic;
    placed(r);
}

void colo_recorder_action(struct colo_recorder *r, const struct colo_action *a, bool withheld)
{
    struct colo_note *note;
    const struct colo_fed *fed;

    if (a->kind == COLO_EMIT) {
        if (!withheld)
            note_emitted(r, a);
        return;
    }
    note = place(r, a->side, FOR_MARKS);
    if (!note)
        return;
    fed = find_fed(r, a->cookie);
    if (!fed) {
        r->lost[a->side]++;
        r->missing++;
        return;
    }
    note->kind = withheld ? COLO_NOTE_WITHHELD : a->kind == COLO_RELEASE ? COLO_NOTE_RELEASED : COLO_NOTE_DISCARDED;
    note->side = a->side;
    note->reason = a->reason;
    note->seq = fed->seq + colo_slab_ordinal(a->cookie) - fed->ordinal;
    note->time = fed->time;
    if (a->reason == COLO_REASON_COMMITTED) /* the epoch that it was sent in */
        note->epoch--;
    note_frame(r, note, a->cookie);
    if (a->ack_at && !withheld) {
        note->ack_at = a->ack_at;
        note->csum_at = a->csum_at;
        note->old_ack = colo_load32(note->data + a->ack_at);
        note->old_csum = colo_load16(note->data + a->csum_at);
    }
}

void colo_recorder_dropped(struct colo_recorder *r, int side, uint64_t cookie, int64_t time)
{
    struct colo_note *note = place(r, side, FOR_MARKS);

    if (!note)
        return;
    note->kind = COLO_NOTE_DROPPED;
    note->side = (uint8_t)side;
    note->time = time;
    note_frame(r, note, cookie);
}

static void tell_ring(struct colo_recorder *r, enum colo_note_kind kind, int64_t time)
{
    /* The last one's place stays a mark's. Without this the dump waits for its deadline, or there is none. */
    struct colo_note *note = r->next - r->reclaimed < COLO_NOTES - FOR_MARKS ? &r->ring[r->next % COLO_NOTES] : NULL;

    if (!note)
        return;
    *note = (struct colo_note){.kind = (uint8_t)kind, .time = time};
    r->next++;
}

void colo_recorder_diverged(struct colo_recorder *r, int64_t time)
{
    if (!r->keep.bytes || r->diverged)
        return;
    r->diverged = true;
    tell_ring(r, COLO_NOTE_DIVERGED, time);
}

void colo_recorder_settled(struct colo_recorder *r)
{
    if (!r->diverged)
        return;
    r->diverged = false;
    tell_ring(r, COLO_NOTE_SETTLED, 0);
}

bool colo_recorder_dumped(struct colo_recorder *r, struct colo_record_dump *out)
{
    uint32_t tail = atomic_load_explicit(&r->dumped_tail, memory_order_relaxed);

    if (tail == atomic_load_explicit(&r->dumped_head, memory_order_acquire))
        return false;
    *out = r->dumped[tail % COLO_DUMPS];
    atomic_store_explicit(&r->dumped_tail, tail + 1, memory_order_release);
    return true;
}

void colo_recorder_publish(struct colo_recorder *r)
{
    uint32_t waiting;

    atomic_store_explicit(&r->head, r->next, memory_order_release);
    reclaim(r);
    waiting = r->next - r->reclaimed;
    if ((waiting > COLO_NOTES / AWAKE_AT || r->slabs > r->max_slabs / AWAKE_AT) &&
        atomic_load_explicit(&r->sleeping, memory_order_relaxed) && atomic_exchange(&r->sleeping, false)) {
        uint64_t one = 1;
        ssize_t n = write(r->wake_fd, &one, sizeof one);
        (void)n;
    }
}

void colo_recorder_counters(const struct colo_recorder *r, struct colo_engine_counters *out)
{
    out->recorded = atomic_load_explicit(&r->written, memory_order_relaxed);
    out->recorded_bytes = atomic_load_explicit(&r->bytes, memory_order_relaxed);
    out->record_files = atomic_load_explicit(&r->files, memory_order_relaxed);
    out->record_lost = r->lost[0] + r->lost[1] + r->lost[2] +
                       atomic_load_explicit(&r->unfiled, memory_order_relaxed);
    out->record_error = atomic_load_explicit(&r->error, memory_order_relaxed);
    out->ring_bytes = atomic_load_explicit(&r->ring_bytes, memory_order_relaxed);
    out->dumps = atomic_load_explicit(&r->dumps, memory_order_relaxed);
    out->dumps_failed = atomic_load_explicit(&r->dumps_failed, memory_order_relaxed);
}
