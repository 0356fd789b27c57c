/* SPDX-License-Identifier: Apache-2.0 */
/*
 * schedule.h - the grammar of fuzz_schedule: any bytes are a schedule of frames, checkpoints and time.
 *
 * schedule.py decodes the same bytes to the same steps (tests/test_fuzz_corpus.py compares them line by line).
 *
 *   byte 0   bit 0 wild, 1 tight limits, 2 keep_gap, 3-4 initial numbers, 5-6 virtio-net header (none, 10, 12, none)
 *   byte 1   bits 0-1 rules (none, pass, drop-secondary, both), 2 a tolerance, 3 partial checksums,
 *            4 any_scale: SYNs have a scale factor, the sides another one, some of the secondary's none
 *   then steps, from a byte each: bits 0-3 what, 4-5 flow, 6 side, 7 one more byte of options follows
 *
 * Not wild: what two VMs could do, as far as numbers go. Connections begin with a SYN, the secondary comes to the
 * primary's connection only behind its own SYN or by a checkpoint, and what it says wrongly it says so for a whole
 * epoch. The model judges such a schedule strictly. Wild: anything, raw bytes too.
 */
#ifndef SCHEDULE_H
#define SCHEDULE_H

#include <stdbool.h>

#include "coloproxy.h"

enum { SCHEDULE_STEPS = 192, SCHEDULE_FRAME = 320, SCHEDULE_FLOWS = 4, SCHEDULE_LENGTH = 24 };

enum step_kind { STEP_FEED, STEP_TICK, STEP_STOP, STEP_COMMIT, STEP_ABORT, STEP_ALONE };

/* What a frame is made from, for the checker. */
enum made_of {
    MADE_TCP,
    MADE_DATAGRAM, /* `key` names its content */
    MADE_FRAGMENT, /* bytes [off, off + len) of datagram `key` */
    MADE_RAW,      /* bytes of the input, or another frame with bytes changed */
};

struct step {
    uint8_t kind; /* enum step_kind */
    int64_t now, resumed;
    uint8_t side, made, flow, gen, flags, options;
    bool flipped;  /* the payload (or byte 20 of a fragment's datagram) is not what the other side says */
    int off, len;  /* TCP: stream offset of the payload */
    int ack;       /* TCP: from the client's initial number + 1 */
    int flip_at;   /* TCP: offset of the byte that differs, -1: none; `flipped`: all */
    uint32_t seq;  /* TCP: of the first payload byte */
    uint32_t key;
    uint32_t frame_len, vnet_len;
    uint8_t frame[SCHEDULE_FRAME];
};

struct schedule {
    bool wild, tight, keep_gap, tolerant, partial, any_scale;
    uint8_t rules;
    uint32_t vnet_len;
    struct colo_config config;
    struct colo_rule rule[2];
    struct colo_tolerance_rule tolerance;
    size_t count;
    struct step steps[SCHEDULE_STEPS];
};

void schedule_decode(struct schedule *s, const uint8_t *data, size_t size);
void schedule_print(const struct schedule *s);
/* The window scale factor that a SYN announces; 255: the option is absent. */
uint8_t schedule_scale(const struct schedule *s, const struct step *step);
/* The payload byte that a side says at an offset of a connection. */
uint8_t schedule_byte(const struct step *step, int off);

#endif
