/* SPDX-License-Identifier: Apache-2.0 */
#include "recfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "load.h"
#include "pcapng.h"

enum {
    BUFFER = 256 * 1024,
    COMMENT_MAX = 320, /* of a packet: all its words with the longest numbers, and a virtio-net header in hex */
};

static const char *const PORTS[COLO_PORT_COUNT] = {"primary_in", "secondary_in", "outdev"};
static const char *const MARKS[] = {"stop", "commit", "abort", "alone", "tick"};
static const char *const MODES[] = {"alone", "protected", "stopped"};
static const char *const VERDICTS[] = {"released", "discarded", "withheld", "dropped"};

/* ------------------------------------------------------------------ text */

struct text {
    char at[COMMENT_MAX];
    size_t len;
};

static void say(struct text *t, const char *words)
{
    size_t len = strlen(words);

    memcpy(t->at + t->len, words, len);
    t->len += len;
}

static void say_number(struct text *t, const char *name, uint64_t v)
{
    char digits[20];
    size_t n = sizeof digits;

    do
        digits[--n] = (char)('0' + v % 10);
    while (v /= 10);
    say(t, name);
    memcpy(t->at + t->len, digits + n, sizeof digits - n);
    t->len += sizeof digits - n;
}

static void say_hex(struct text *t, const char *name, const uint8_t *data, size_t len)
{
    say(t, name);
    for (size_t i = 0; i < len; i++) {
        t->at[t->len++] = "0123456789abcdef"[data[i] >> 4];
        t->at[t->len++] = "0123456789abcdef"[data[i] & 15];
    }
}

/* ----------------------------------------------------------------- files */

/* The name of the file with that number, to be freed: PATH, or with -NUMBER before the suffix. */
static char *name_of(const struct colo_recfile *f, uint32_t number)
{
    const char *base = strrchr(f->path, '/'), *dot;
    size_t stem, cap = strlen(f->path) + 16;
    char *name = malloc(cap);

    base = base ? base + 1 : f->path;
    dot = strrchr(base, '.');
    stem = dot && dot != base ? (size_t)(dot - f->path) : strlen(f->path);
    if (name && number)
        snprintf(name, cap, "%.*s-%05u%s", (int)stem, f->path, number, f->path + stem);
    else if (name)
        snprintf(name, cap, "%s", f->path);
    return name;
}

/* Nothing of a block that could not be written whole stays in the file. */
int colo_recfile_flush(struct colo_recfile *f)
{
    size_t done = 0;

    while (done < f->fill) {
        ssize_t n = write(f->fd, f->buffer + done, f->fill - done);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            int error = n < 0 ? errno : EIO;

            f->size -= f->fill;
            f->fill = 0;
            if (ftruncate(f->fd, (off_t)f->size) < 0)
                return error; /* it says so already */
            return error;
        }
        done += (size_t)n;
    }
    f->bytes += f->fill;
    f->fill = 0;
    return 0;
}

static int room(struct colo_recfile *f, size_t need)
{
    return f->cap - f->fill < need ? colo_recfile_flush(f) : 0;
}

static void put(struct colo_recfile *f, size_t len)
{
    f->fill += len;
    f->size += len;
}

static int begin_file(struct colo_recfile *f)
{
    char *name = name_of(f, f->number);
    struct stat st;
    int error = 0;

    if (!name)
        return ENOMEM;
    f->fd = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (f->fd < 0)
        error = errno;
    else if (fstat(f->fd, &st) < 0)
        error = errno;
    else if (!S_ISREG(st.st_mode))
        error = EINVAL; /* a pipe could stop, a device must keep its mode */
    else if (fchmod(f->fd, 0600) < 0)
        error = errno;
    free(name);
    if (error)
        return error;
    f->files++;
    f->size = 0;
    f->opened = -1;
    memset(f->seen, 0, sizeof f->seen);
    put(f, colo_pcapng_section(f->buffer + f->fill, f->cap - f->fill, f->comment, strlen(f->comment)));
    for (int port = 0; port < COLO_PORT_COUNT; port++)
        /* No snap length on any, though outdev has one: libpcap refuses files whose interfaces differ in it. */
        put(f, colo_pcapng_interface(f->buffer + f->fill, f->cap - f->fill, PORTS[port], 0));
    return 0;
}

static int end_file(struct colo_recfile *f)
{
    int error;

    if (f->fd < 0)
        return 0;
    error = room(f, 1024);
    for (int port = 0; port < COLO_PORT_COUNT && !error; port++) {
        uint64_t lost = f->lost[port] - f->lost_before[port];

        put(f, colo_pcapng_statistics(f->buffer + f->fill, f->cap - f->fill, (uint32_t)port, f->last + f->wall_offset,
                                      f->seen[port] + lost, lost));
        f->lost_before[port] = f->lost[port];
    }
    if (!error)
        error = colo_recfile_flush(f);
    if (close(f->fd) < 0 && !error)
        error = errno;
    f->fd = -1;
    return error;
}

int colo_recfile_open(struct colo_recfile *f, const struct colo_record_config *config, uint32_t max_frame)
{
    static const char head[] = "coloproxy recording 1 ";
    size_t len = strlen(config->options) + sizeof head;
    int error;

    *f = (struct colo_recfile){.fd = -1, .max_bytes = config->max_bytes, .max_time = config->max_time,
                               .keep = config->keep, .number = config->number, .snap = config->outdev_snap,
                               .wall_offset = config->wall_offset, .opened = -1};
    if (len > COLO_PCAPNG_TEXT_MAX || ((f->max_bytes || f->max_time) && !f->number))
        return COLO_ERR_MISUSE;
    /* Every packet fits the empty buffer, and so do the blocks that begin and end a file. */
    f->cap = COLO_PCAPNG_FIT(max_frame, COMMENT_MAX) + COLO_PCAPNG_TEXT_MAX + 1024;
    if (f->cap < BUFFER)
        f->cap = BUFFER;
    f->path = strdup(config->path);
    f->comment = malloc(len);
    f->buffer = malloc(f->cap);
    if (!f->path || !f->comment || !f->buffer)
        return COLO_ERR_NOMEM;
    snprintf(f->comment, len, "%s%s", head, config->options);
    error = begin_file(f);
    errno = error;
    return error ? COLO_ERR_SYSTEM : 0;
}

int colo_recfile_close(struct colo_recfile *f)
{
    int error = end_file(f);

    free(f->path);
    free(f->comment);
    free(f->buffer);
    f->path = f->comment = NULL;
    f->buffer = NULL;
    return error;
}

/* --------------------------------------------------------------- packets */

static int put_packet(struct colo_recfile *f, const struct colo_pcapng_packet *packet, uint8_t **bytes)
{
    int error = room(f, COLO_PCAPNG_FIT(packet->len, packet->comment_len));

    if (error)
        return error;
    if (bytes)
        *bytes = f->buffer + f->fill + COLO_PCAPNG_DATA_AT;
    put(f, colo_pcapng_packet(f->buffer + f->fill, f->cap - f->fill, packet));
    f->seen[packet->interface]++;
    f->packets++;
    return 0;
}

/* A file that doesn't begin at the beginning says in which mode the comparator is. */
static int put_mode(struct colo_recfile *f, int64_t time)
{
    struct text t = {.len = 0};

    say(&t, "coloproxy seq=0 mark=mode mode=");
    say(&t, MODES[f->mode]);
    say_number(&t, " epoch=", f->epoch);
    return put_packet(f, &(struct colo_pcapng_packet){.interface = COLO_PORT_OUTDEV, .time = time + f->wall_offset,
                                                      .comment = t.at, .comment_len = t.len}, NULL);
}

static int rotate(struct colo_recfile *f, int64_t time)
{
    int error = end_file(f);

    if (!error) {
        if (f->keep && f->number >= f->keep) {
            char *oldest = name_of(f, f->number + 1 - f->keep);

            if (oldest)
                unlink(oldest); /* it may be gone already */
            free(oldest);
        }
        f->number++;
        error = begin_file(f);
    }
    return error ? error : put_mode(f, time);
}

static void follow_mode(struct colo_recfile *f, const struct colo_note *note)
{
    f->epoch = note->epoch;
    switch (note->reason) {
    case COLO_MARK_STOP:
        if (f->mode != COLO_MODE_STOPPED)
            f->mode_before = f->mode;
        f->mode = COLO_MODE_STOPPED;
        break;
    case COLO_MARK_COMMIT:
        f->mode = COLO_MODE_PROTECTED;
        break;
    case COLO_MARK_ABORT:
        if (f->mode == COLO_MODE_STOPPED)
            f->mode = f->mode_before;
        break;
    case COLO_MARK_ALONE:
        f->mode = COLO_MODE_ALONE;
        break;
    default:
        break;
    }
}

static int put_mark(struct colo_recfile *f, const struct colo_note *note, struct text *t)
{
    say_number(t, " seq=", note->seq);
    say(t, " mark=");
    say(t, MARKS[note->reason]);
    say_number(t, " epoch=", note->epoch);
    if (note->reason == COLO_MARK_COMMIT)
        say_number(t, " resumed=", (uint64_t)(note->now + f->wall_offset));
    follow_mode(f, note);
    return put_packet(f, &(struct colo_pcapng_packet){.interface = COLO_PORT_OUTDEV,
                                                      .time = note->time + f->wall_offset, .comment = t->at,
                                                      .comment_len = t->len}, NULL);
}

/* What went to outdev, as it went. */
static int put_sent(struct colo_recfile *f, const struct colo_note *note)
{
    struct text t = {.len = 0};
    uint32_t len = note->len - note->vnet_len, wire_len = len;

    say_number(&t, "coloproxy epoch=", note->epoch);
    if (note->seq)
        say_number(&t, " of=", note->seq);
    say(&t, note->kind == COLO_NOTE_EMITTED ? " emitted reason=" : " reason=");
    say(&t, colo_reason_name(note->reason));
    if (note->ack_at)
        say(&t, " ack=lowered");
    /* The bytes are those of the frame on primary_in. */
    if (note->kind == COLO_NOTE_RELEASED && f->snap && len > f->snap)
        len = f->snap;
    return put_packet(f, &(struct colo_pcapng_packet){.interface = COLO_PORT_OUTDEV, .time = note->now + f->wall_offset,
                                                      .data = note->data + note->vnet_len, .len = len,
                                                      .wire_len = wire_len, .comment = t.at, .comment_len = t.len},
                      NULL);
}

static int put_fed(struct colo_recfile *f, const struct colo_note *note, struct text *t)
{
    uint32_t len = note->len - note->vnet_len;
    uint8_t *bytes;
    int error;

    if (note->seq)
        say_number(t, " seq=", note->seq);
    say_number(t, " epoch=", note->epoch);
    say(t, " verdict=");
    say(t, VERDICTS[note->kind]);
    if (note->kind == COLO_NOTE_RELEASED || note->kind == COLO_NOTE_DISCARDED) {
        say(t, " reason=");
        say(t, colo_reason_name(note->reason));
    }
    if (note->vnet_len)
        say_hex(t, " vnet=", note->data, note->vnet_len);
    error = put_packet(f, &(struct colo_pcapng_packet){.interface = note->side, .time = note->time + f->wall_offset,
                                                       .data = note->data + note->vnet_len, .len = len,
                                                       .wire_len = len, .comment = t->at, .comment_len = t->len},
                       &bytes);
    if (!error && note->ack_at) {
        colo_store32(bytes + note->ack_at - note->vnet_len, note->old_ack);
        colo_store16(bytes + note->csum_at - note->vnet_len, note->old_csum);
    }
    return error;
}

int colo_recfile_write(struct colo_recfile *f, const struct colo_note *note)
{
    struct text t = {.len = 0};
    bool full, old;
    int error = 0;

    if (f->opened < 0)
        f->opened = note->time;
    full = f->max_bytes && f->size >= f->max_bytes;
    old = f->max_time && note->time - f->opened >= f->max_time;
    if (full || old) {
        error = rotate(f, note->time);
        if (error)
            return error;
        f->opened = note->time;
    }
    f->last = note->time;
    memcpy(f->lost, note->lost, sizeof f->lost);
    say(&t, "coloproxy");
    if (note->missing)
        say_number(&t, " lost=", note->missing);
    switch (note->kind) {
    case COLO_NOTE_MARK:
        return put_mark(f, note, &t);
    case COLO_NOTE_EMITTED:
        return put_sent(f, note);
    case COLO_NOTE_RELEASED:
        error = put_fed(f, note, &t);
        return error ? error : put_sent(f, note);
    default:
        return put_fed(f, note, &t);
    }
}
