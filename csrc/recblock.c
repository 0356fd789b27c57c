/* SPDX-License-Identifier: Apache-2.0 */
#include "recblock.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "load.h"
#include "pcapng.h"

enum {
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

/* -------------------------------------------------------------------- life */

int colo_recblock_init(struct colo_recblock *b, const struct colo_record_config *config, uint32_t max_frame)
{
    static const char head[] = "coloproxy recording 1 ";
    size_t len = strlen(config->options) + sizeof head;

    *b = (struct colo_recblock){.wall_offset = config->wall_offset, .snap = config->outdev_snap};
    if (len > COLO_PCAPNG_TEXT_MAX)
        return COLO_ERR_MISUSE;
    /* A frame as it came and as it went; or what begins or ends a file. */
    b->cap = 2 * COLO_PCAPNG_FIT(max_frame, COMMENT_MAX) + COLO_PCAPNG_TEXT_MAX + 1024;
    b->comment = malloc(len);
    b->data = malloc(b->cap);
    if (!b->comment || !b->data)
        return COLO_ERR_NOMEM;
    snprintf(b->comment, len, "%s%s", head, config->options);
    return 0;
}

void colo_recblock_fini(struct colo_recblock *b)
{
    free(b->comment);
    free(b->data);
    b->comment = NULL;
    b->data = NULL;
}

static void clear(struct colo_recblock *b)
{
    b->len = 0;
    memset(b->packets, 0, sizeof b->packets);
}

void colo_recblock_head(struct colo_recblock *b)
{
    clear(b);
    b->len = colo_pcapng_section(b->data, b->cap, b->comment, strlen(b->comment));
    for (int port = 0; port < COLO_PORT_COUNT; port++)
        /* No snap length on any, though outdev has one: libpcap refuses files whose interfaces differ in it. */
        b->len += colo_pcapng_interface(b->data + b->len, b->cap - b->len, PORTS[port], 0);
}

void colo_recblock_tail(struct colo_recblock *b, const uint64_t seen[COLO_PORT_COUNT],
                        const uint64_t lost[COLO_PORT_COUNT], int64_t time)
{
    clear(b);
    for (int port = 0; port < COLO_PORT_COUNT; port++)
        b->len += colo_pcapng_statistics(b->data + b->len, b->cap - b->len, (uint32_t)port, time + b->wall_offset,
                                         seen[port] + lost[port], lost[port]);
}

/* ----------------------------------------------------------------- packets */

/* Where its bytes lie now. */
static uint8_t *put_packet(struct colo_recblock *b, const struct colo_pcapng_packet *packet)
{
    uint8_t *bytes = b->data + b->len + COLO_PCAPNG_DATA_AT;
    size_t len = colo_pcapng_packet(b->data + b->len, b->cap - b->len, packet);

    assert(len);
    b->len += len;
    b->packets[packet->interface]++;
    return bytes;
}

void colo_recblock_mode(struct colo_recblock *b, const struct colo_recmode *mode, int64_t time)
{
    struct text t = {.len = 0};

    clear(b);
    say(&t, "coloproxy seq=0 mark=mode mode=");
    say(&t, MODES[mode->mode]);
    say_number(&t, " epoch=", mode->epoch);
    put_packet(b, &(struct colo_pcapng_packet){.interface = COLO_PORT_OUTDEV, .time = time + b->wall_offset,
                                               .comment = t.at, .comment_len = t.len});
}

static void put_mark(struct colo_recblock *b, const struct colo_note *note, struct text *t)
{
    say_number(t, " seq=", note->seq);
    say(t, " mark=");
    say(t, MARKS[note->reason]);
    say_number(t, " epoch=", note->epoch);
    if (note->reason == COLO_MARK_COMMIT)
        say_number(t, " resumed=", (uint64_t)(note->now + b->wall_offset));
    put_packet(b, &(struct colo_pcapng_packet){.interface = COLO_PORT_OUTDEV, .time = note->time + b->wall_offset,
                                               .comment = t->at, .comment_len = t->len});
}

/* Left out for the first, which most VMs have alone. */
static void say_nic(struct text *t, const struct colo_note *note)
{
    if (note->nic)
        say_number(t, " nic=", note->nic);
}

/* What went to outdev, as it went. */
static void put_sent(struct colo_recblock *b, const struct colo_note *note)
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
    say_nic(&t, note);
    /* The bytes are those of the frame on primary_in. */
    if (note->kind == COLO_NOTE_RELEASED && b->snap && len > b->snap)
        len = b->snap;
    put_packet(b, &(struct colo_pcapng_packet){.interface = COLO_PORT_OUTDEV, .time = note->now + b->wall_offset,
                                               .data = note->data + note->vnet_len, .len = len,
                                               .wire_len = wire_len, .comment = t.at, .comment_len = t.len});
}

static void put_fed(struct colo_recblock *b, const struct colo_note *note, struct text *t)
{
    uint32_t len = note->len - note->vnet_len;
    uint8_t *bytes;

    if (note->seq)
        say_number(t, " seq=", note->seq);
    say_number(t, " epoch=", note->epoch);
    say(t, " verdict=");
    say(t, VERDICTS[note->kind]);
    if (note->kind == COLO_NOTE_RELEASED || note->kind == COLO_NOTE_DISCARDED) {
        say(t, " reason=");
        say(t, colo_reason_name(note->reason));
    }
    say_nic(t, note);
    if (note->vnet_len)
        say_hex(t, " vnet=", note->data, note->vnet_len);
    bytes = put_packet(b, &(struct colo_pcapng_packet){.interface = note->side, .time = note->time + b->wall_offset,
                                                       .data = note->data + note->vnet_len, .len = len,
                                                       .wire_len = len, .comment = t->at, .comment_len = t->len});
    if (note->ack_at) {
        colo_store32(bytes + note->ack_at - note->vnet_len, note->old_ack);
        colo_store16(bytes + note->csum_at - note->vnet_len, note->old_csum);
    }
}

void colo_recblock_note(struct colo_recblock *b, const struct colo_note *note)
{
    struct text t = {.len = 0};

    clear(b);
    say(&t, "coloproxy");
    if (note->missing)
        say_number(&t, " lost=", note->missing);
    switch (note->kind) {
    case COLO_NOTE_MARK:
        put_mark(b, note, &t);
        break;
    case COLO_NOTE_EMITTED:
        put_sent(b, note);
        break;
    case COLO_NOTE_RELEASED:
        put_fed(b, note, &t);
        put_sent(b, note);
        break;
    default:
        put_fed(b, note, &t);
        break;
    }
}

/* -------------------------------------------------------------------- mode */

void colo_recmode_follow(struct colo_recmode *m, const struct colo_note *note)
{
    if (note->kind != COLO_NOTE_MARK)
        return;
    m->epoch = note->epoch;
    switch (note->reason) {
    case COLO_MARK_STOP:
        if (m->mode != COLO_MODE_STOPPED)
            m->before = m->mode;
        m->mode = COLO_MODE_STOPPED;
        break;
    case COLO_MARK_COMMIT:
        m->mode = COLO_MODE_PROTECTED;
        break;
    case COLO_MARK_ABORT:
        if (m->mode == COLO_MODE_STOPPED)
            m->mode = m->before;
        break;
    case COLO_MARK_ALONE:
        m->mode = COLO_MODE_ALONE;
        break;
    default:
        break;
    }
}
