/* SPDX-License-Identifier: Apache-2.0 */
#include "speaker.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "coloproxy.h"
#include "framing.h"

enum { MILLION = 1000000, CLOCK_HZ = 1000 /* of TCP timestamps */ };

int colo_speaker_init(struct colo_speaker *side, const struct colo_traffic_config *config, int which, int fd,
                   const struct colo_wire *wire, const struct colo_plan *plan, struct colo_samples *samples,
                      const struct colo_speaker *echoes)
{
    const bool secondary = which == COLO_SECONDARY;

    side->fd = fd;
    side->side = which;
    side->cut = secondary && config->recut ? config->recut : config->length;
    side->turn = config->turn;
    side->loss_ppm = secondary ? config->loss_ppm : 0;
    side->loss_delay = config->loss_delay;
    side->divergence_ppm = secondary ? config->divergence_ppm : 0;
    side->random = config->seed ? config->seed : 1;
    side->wire = wire;
    side->plan = plan;
    side->samples = samples;
    side->sample_every = secondary ? 0 : (uint64_t)config->sample_every * config->length;
    side->echoes = echoes;
    colo_plan_seek(plan, &side->cursor, 0);
    if (echoes) {
        side->batch = echoes->batch;
        return 0;
    }
    /* A turn ends with the frame that fills it; a SYN-ACK may stand before that. */
    side->batch = malloc(side->turn + side->cut + 4 * COLO_WIRE_HEAD_MAX);
    if (side->loss_ppm)
        side->late = calloc(COLO_SPEAKER_LATE, sizeof *side->late);
    if (!side->batch || (side->loss_ppm && !side->late))
        return COLO_ERR_NOMEM;
    return 0;
}

void colo_speaker_clear(struct colo_speaker *side)
{
    if (!side->echoes)
        free(side->batch);
    free(side->late);
    side->batch = NULL;
    side->late = NULL;
}

/* xorshift32; true in `ppm` of a million cases. */
static bool chance(struct colo_speaker *side, uint32_t ppm)
{
    if (!ppm)
        return false;
    side->random ^= side->random << 13;
    side->random ^= side->random >> 17;
    side->random ^= side->random << 5;
    return (uint64_t)side->random * MILLION >> 32 < ppm;
}

static bool put_off(struct colo_speaker *side, uint32_t len, int64_t now)
{
    if (side->late_count == COLO_SPEAKER_LATE || !chance(side, side->loss_ppm))
        return false;
    side->late[(side->late_first + side->late_count++) % COLO_SPEAKER_LATE] = (struct colo_speaker_late){
        .due = now + side->loss_delay, .offset = side->cursor.offset, .flow = side->cursor.flow, .len = len};
    side->lost_late++;
    return true;
}

static void put_late(struct colo_speaker *side, uint32_t clock)
{
    const struct colo_speaker_late *late = &side->late[side->late_first];
    const struct colo_segment_spec spec = {
        .flow = late->flow,
        .offset = late->offset,
        .phase = (uint32_t)(late->offset % COLO_PATTERN_PERIOD),
        .len = late->len,
        .clock = clock,
    };

    side->built += colo_traffic_wire_write(side->wire, side->batch + side->built, &spec);
    side->of_batch.frames++;
    side->of_batch.segments++;
    side->of_batch.payload += late->len;
    side->late_first = (side->late_first + 1) % COLO_SPEAKER_LATE;
    side->late_count--;
}

static uint16_t primary_tag(struct colo_speaker *side, uint64_t end)
{
    uint16_t tag;

    if (!side->sample_every || side->cursor.x < side->next_sample || side->notes == COLO_SPEAKER_NOTES)
        return 0;
    side->next_sample = side->cursor.x + side->sample_every;
    tag = colo_sample_take(side->samples, end);
    side->note[side->notes++].sample = colo_sample_at(side->samples, side->samples->taken - 1);
    return tag;
}

/* The secondary has come to `end`: the samples that it has completed with it. */
static void note_secondary(struct colo_speaker *side, uint64_t end, bool late)
{
    struct colo_samples *samples = side->samples;

    if (samples->taken - side->next_sample > COLO_SAMPLE_SLOTS && samples->taken > COLO_SAMPLE_SLOTS)
        side->next_sample = samples->taken - COLO_SAMPLE_SLOTS; /* their slots have others now */
    while (side->next_sample < samples->taken) {
        struct colo_sample *sample = colo_sample_at(samples, side->next_sample);

        if (sample->end > end)
            return;
        side->next_sample++;
        if (!late && sample->end && side->notes < COLO_SPEAKER_NOTES)
            side->note[side->notes++] = (struct colo_speaker_note){side->built, sample};
    }
}

static void put_segment(struct colo_speaker *side, uint32_t len, uint32_t clock, int64_t now)
{
    struct colo_cursor *c = &side->cursor;
    const uint64_t end = c->x + len;
    uint32_t size;

    if (side->side == COLO_PRIMARY) {
        const uint32_t notes = side->notes;
        const struct colo_segment_spec spec = {c->flow, c->offset, c->phase, len, primary_tag(side, end), clock};

        side->built += colo_traffic_wire_write(side->wire, side->batch + side->built, &spec);
        if (side->notes > notes)
            side->note[notes].end = side->built;
    } else {
        const struct colo_segment_spec spec = {c->flow, c->offset, c->phase, len, 0, clock};

        if (put_off(side, len, now)) {
            note_secondary(side, end, true);
            colo_plan_advance(side->plan, c, len);
            return;
        }
        size = colo_traffic_wire_write(side->wire, side->batch + side->built, &spec);
        if (chance(side, side->divergence_ppm)) {
            colo_traffic_wire_spoil(side->wire, side->batch + side->built, size);
            side->diverged++;
        }
        side->built += size;
        note_secondary(side, end, false);
    }
    side->of_batch.frames++;
    side->of_batch.segments++;
    side->of_batch.payload += len;
    colo_plan_advance(side->plan, c, len);
}

/* The primary's batch, if it is a new one. */
static void echo(struct colo_speaker *side)
{
    const struct colo_speaker *primary = side->echoes;

    if (side->batches == primary->batches)
        return;
    side->batches = primary->batches;
    side->built = primary->built;
    side->sent = side->noted = 0;
    side->of_batch = primary->of_batch;
    side->cursor = primary->cursor;
    side->notes = primary->notes;
    memcpy(side->note, primary->note, primary->notes * sizeof *side->note);
}

void colo_speaker_build(struct colo_speaker *side, uint64_t limit, bool last, int64_t now)
{
    const struct colo_plan *plan = side->plan;
    const uint32_t clock = (uint32_t)(now / (1000000000 / CLOCK_HZ));
    const uint64_t known = colo_plan_known(plan);
    struct colo_cursor *c = &side->cursor;

    if (!colo_speaker_idle(side))
        return;
    if (side->echoes) {
        echo(side);
        return;
    }
    side->built = side->sent = side->notes = side->noted = 0;
    side->of_batch = (struct colo_traffic_sent){0};
    while (side->late_count && side->late[side->late_first].due <= now && side->built < side->turn)
        put_late(side, clock);
    side->begun = *c;
    if (limit > known)
        limit = known;
    while (side->built < side->turn && c->x < limit) {
        uint32_t len = side->cut;

        if (c->in_burst == plan->burst_bytes)
            colo_plan_seek(plan, c, c->x);
        if (len > plan->burst_bytes - c->in_burst)
            len = plan->burst_bytes - c->in_burst;
        if (len > limit - c->x) {
            if (!last)
                break;
            len = (uint32_t)(limit - c->x);
        }
        if (c->opening) {
            side->built += colo_traffic_wire_write_syn(side->wire, side->batch + side->built, c->flow, clock);
            side->of_batch.frames++;
            c->opening = false;
        }
        put_segment(side, len, clock, now);
    }
    side->of_batch.bytes = side->built;
    side->batches += side->built > 0;
}

int colo_speaker_send(struct colo_speaker *side)
{
    ssize_t n;

    if (colo_speaker_idle(side))
        return 0;
    n = send(side->fd, side->batch + side->sent, side->built - side->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : COLO_ERR_SYSTEM;
    side->sent += (uint32_t)n;
    if (colo_speaker_idle(side)) {
        side->total.frames += side->of_batch.frames;
        side->total.segments += side->of_batch.segments;
        side->total.payload += side->of_batch.payload;
        side->total.bytes += side->of_batch.bytes;
    }
    return (int)n;
}

void colo_speaker_stamp(struct colo_speaker *side, int64_t now)
{
    for (; side->noted < side->notes && side->note[side->noted].end <= side->sent; side->noted++)
        side->note[side->noted].sample->at[side->side] = now;
}

struct colo_cursor colo_speaker_handed(const struct colo_speaker *side)
{
    const struct colo_template *data = &side->wire->data;
    struct colo_cursor c = side->begun;

    for (uint32_t at = 0; at < side->built;) {
        const uint32_t size = colo_framing_length_at(side->wire->config.vnet_hdr, side->batch + at);

        if (c.in_burst == side->plan->burst_bytes)
            colo_plan_seek(side->plan, &c, c.x);
        if (size > side->sent - at)
            break;
        at += size;
        if (c.opening)
            c.opening = false;
        else
            colo_plan_advance(side->plan, &c, size - data->len);
    }
    return c;
}

/* Takes the frames from byte `at` on out of the batch again. */
static void cut_off(struct colo_speaker *side, uint32_t at)
{
    for (uint32_t next = at; next < side->built;) {
        const uint32_t size = colo_framing_length_at(side->wire->config.vnet_hdr, side->batch + next);

        side->of_batch.frames--;
        side->of_batch.bytes -= size;
        if (size > side->wire->syn.len || side->wire->config.udp) {
            side->of_batch.segments--;
            side->of_batch.payload -= size - side->wire->data.len;
        }
        next += size;
    }
    while (side->notes > side->noted && side->note[side->notes - 1].end > at)
        side->notes--;
    side->built = at;
}

void colo_speaker_become(struct colo_speaker *side, const struct colo_cursor *to)
{
    struct colo_samples *samples = side->samples;
    uint32_t at = 0;

    while (at < side->sent)
        at += colo_framing_length_at(side->wire->config.vnet_hdr, side->batch + at);
    if (at < side->built)
        cut_off(side, at);
    side->late_count = 0;
    side->cursor = *to;
    while (side->next_sample < samples->taken && colo_sample_at(samples, side->next_sample)->end <= to->x)
        side->next_sample++;
}
