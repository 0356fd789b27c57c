/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames come in: of one side, or of both in step. Limits are checked here, before anything has changed.
 *
 * In step. Where both sides' next frames are the same piece of the same calm stream, which is what two VMs in COLO say
 * nearly all of the time, they are compared and both leave at once: nothing is held, no list is touched. Where they are
 * not, one of the two goes the ordinary way: the secondary's if the primary's frames of its flow wait for it, so that
 * a secondary that lags behind catches up, else the primary's.
 */
#include "ahead.h"
#include "core.h"
#include "quick.h"
#include "seq.h"

struct lane {
    uint8_t side;
    int64_t now;
    const struct colo_frame *frames;
    size_t count;
    size_t at;                /* the next one */
    size_t seen;              /* parsed up to here */
    struct colo_flow *flow;   /* of the frame before `at`, if it was judged in one ... */
    uint64_t evicted;         /* ... and no flow has been evicted since: colo_table_evictions */
    struct colo_arrival arrivals[COLO_AHEAD];
};

/* Each side may fill half, so that neither can keep the other's frames out. */
static uint8_t limit_reached(const colo_comparator *c, int side, uint32_t len)
{
    if (c->n.held_frames[side] >= c->config.max_frames / 2)
        return COLO_CAUSE_LIMIT_FRAMES;
    if (c->n.held_bytes[side] + len > c->config.max_bytes / 2 && c->n.held_frames[side] > 0)
        return COLO_CAUSE_LIMIT_BYTES;
    return COLO_CAUSE_NONE;
}

/*
 * At half of its limit a side asks for the checkpoint that makes room, for at the limit itself it may be too late: when
 * we stop reading, QEMU's redirector blocks its main loop on the full socket, and with it the checkpoint.
 */
static void watch_level(colo_comparator *c, int side)
{
    if (c->wanted)
        return;
    if (c->n.held_frames[side] >= c->config.max_frames / 4)
        colo_limit_near(c, COLO_CAUSE_LIMIT_FRAMES);
    else if (c->n.held_bytes[side] >= c->config.max_bytes / 4)
        colo_limit_near(c, COLO_CAUSE_LIMIT_BYTES);
}

static struct colo_rec *new_record(colo_comparator *c, int side, const struct colo_frame *frame)
{
    struct colo_rec *rec = colo_pool_get(c->pool);

    if (!rec)
        return NULL;
    rec->data = frame->data;
    rec->len = frame->len;
    rec->vnet_len = (uint8_t)frame->vnet_len;
    rec->nic = frame->nic;
    rec->cookie = frame->cookie;
    rec->side = (uint8_t)side;
    rec->time = c->now;
    return rec;
}

static bool are_sane(const struct colo_frame *frames, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (frames[i].vnet_len > 12 || frames[i].vnet_len > frames[i].len)
            return false;
    return true;
}

static void begin_lane(struct lane *l, int side, const struct colo_frame *frames, size_t count, int64_t now)
{
    l->side = (uint8_t)side;
    l->now = now;
    l->frames = frames;
    l->count = count;
    l->at = l->seen = 0;
    l->flow = NULL;
    l->evicted = 0;
}

static bool is_over(const struct lane *l)
{
    return l->at == l->count;
}

/* The next frame, parsed. */
static const struct colo_arrival *look(colo_comparator *c, struct lane *l)
{
    if (l->at == l->seen)
        l->seen += colo_ahead_look(c->table, l->frames + l->at, l->count - l->at, l->arrivals);
    return &l->arrivals[l->at % COLO_AHEAD];
}

/* The flow of the next frame, if that is known without a search. */
static struct colo_flow *known_flow(const colo_comparator *c, const struct lane *l, const struct colo_arrival *next)
{
    return next->same && l->evicted == *c->evictions ? l->flow : NULL;
}

static void remember_flow(const colo_comparator *c, struct lane *l, struct colo_flow *flow)
{
    l->flow = flow;
    l->evicted = *c->evictions;
}

static void count_frame(colo_comparator *c, struct lane *l)
{
    c->n.frames_in[l->side]++;
    c->n.bytes_in[l->side] += l->frames[l->at].len;
    l->at++;
}

/* The next frame goes the ordinary way; false: a limit is reached. */
static bool feed_one(colo_comparator *c, struct lane *l)
{
    const struct colo_frame *frame = &l->frames[l->at];
    uint8_t limit = limit_reached(c, l->side, frame->len);
    struct colo_rec *rec;

    c->now = l->now;
    rec = limit ? NULL : new_record(c, l->side, frame);
    if (!rec) {
        colo_limit_hit(c, limit ? limit : COLO_CAUSE_LIMIT_FRAMES, NULL);
        return false;
    }
    if (c->mode == COLO_MODE_ALONE) {
        colo_enter_alone(c, rec);
    } else {
        const struct colo_arrival *next = look(c, l);

        c->judged = NULL;
        colo_enter_parsed(c, rec, &next->packet, next->hash, known_flow(c, l, next));
        remember_flow(c, l, c->judged);
        watch_level(c, l->side);
    }
    count_frame(c, l);
    return true;
}

static bool feed_all(colo_comparator *c, struct lane *l)
{
    while (!is_over(l))
        if (!feed_one(c, l))
            return false;
    return true;
}

long colo_comparator_feed(colo_comparator *c, int side, const struct colo_frame *frames, size_t count, int64_t now)
{
    struct lane lane;

    if ((side != COLO_PRIMARY && side != COLO_SECONDARY) || !are_sane(frames, count))
        return COLO_ERR_MISUSE;
    colo_begin_call(c, now);
    begin_lane(&lane, side, frames, count, now);
    feed_all(c, &lane);
    return (long)lane.at;
}

/* ----------------------------------------------------------------- in step */

static struct colo_flow *flow_of_next(colo_comparator *c, struct lane *l, const struct colo_arrival *next)
{
    struct colo_flow *flow = known_flow(c, l, next);

    return flow ? flow : colo_table_find_hashed(c->table, &next->packet.id, next->hash);
}

/* What colo_policy_of says, without a call where there are no rules. */
static bool is_compared(colo_comparator *c, const struct colo_flow_id *id)
{
    if (!c->policies)
        return !(c->config.pass_classes & 1u << id->cls);
    return colo_policy_of(c, id) == COLO_POLICY_COMPARE;
}

/* Both sides' next frames say the same, and leave. */
static bool feed_pair(colo_comparator *c, struct lane *p, struct lane *s)
{
    const struct colo_frame *pf = &p->frames[p->at], *sf = &s->frames[s->at];
    const struct colo_arrival *pa = look(c, p), *sa = look(c, s);
    struct colo_rec *released, *discarded;
    struct colo_flow *flow;

    if (pa->packet.seq != sa->packet.seq || pa->packet.id.cls != COLO_CLASS_TCP ||
        !colo_flow_id_equal(&pa->packet.id, &sa->packet.id) || !is_compared(c, &pa->packet.id) ||
        limit_reached(c, COLO_PRIMARY, pf->len) || limit_reached(c, COLO_SECONDARY, sf->len) ||
        !(flow = flow_of_next(c, p, pa)))
        return false;
    if (!(released = colo_pool_get_raw(c->pool)))
        return false;
    if (!(discarded = colo_pool_get_raw(c->pool))) {
        colo_pool_put(c->pool, released);
        return false;
    }
    colo_output_prepare(released, COLO_PRIMARY, pf);
    released->time = c->now;
    colo_output_prepare(discarded, COLO_SECONDARY, sf);
    if (!colo_quick_pair(c, flow, released, &pa->packet, discarded, &sa->packet)) {
        colo_pool_put(c->pool, released);
        colo_pool_put(c->pool, discarded);
        return false;
    }
    c->n.class_in[COLO_CLASS_TCP]++;
    remember_flow(c, p, flow);
    remember_flow(c, s, flow);
    count_frame(c, p);
    count_frame(c, s);
    return true;
}

/*
 * Which of the two goes first where they are no pair. The secondary's, if what the primary has put out already covers
 * it: then it need not be held. Taken for granted here is that both number alike; else it costs time, nothing more.
 */
static struct lane *first_of(colo_comparator *c, struct lane *p, struct lane *s)
{
    const struct colo_packet *packet = &look(c, s)->packet;
    const struct colo_flow *flow = flow_of_next(c, s, look(c, s));
    const struct colo_tcp *tcp;

    if (!flow || flow->epoch != c->epoch || !flow->p.head)
        return p;
    if (packet->id.cls != COLO_CLASS_TCP)
        return s;
    tcp = &flow->u.tcp;
    return colo_seq_extend(tcp->p_base, tcp->p_high, packet->seq + packet->body_len) <= tcp->p_high ? s : p;
}

int colo_comparator_feed_both(colo_comparator *c, const struct colo_batch batches[2], size_t taken[2])
{
    struct lane p, s;

    if (!are_sane(batches[COLO_PRIMARY].frames, batches[COLO_PRIMARY].count) ||
        !are_sane(batches[COLO_SECONDARY].frames, batches[COLO_SECONDARY].count))
        return COLO_ERR_MISUSE;
    colo_begin_call(c, batches[COLO_PRIMARY].now);
    begin_lane(&p, COLO_PRIMARY, batches[COLO_PRIMARY].frames, batches[COLO_PRIMARY].count, batches[COLO_PRIMARY].now);
    begin_lane(&s, COLO_SECONDARY, batches[COLO_SECONDARY].frames, batches[COLO_SECONDARY].count,
               batches[COLO_SECONDARY].now);
    if (c->mode == COLO_MODE_PROTECTED)
        while (!is_over(&p) && !is_over(&s))
            if (!feed_pair(c, &p, &s) && !feed_one(c, first_of(c, &p, &s)))
                break;
    /* What is left of one side has no counterpart now; if that waits it is better left alone than held. */
    if (!is_over(&s) || !batches[COLO_SECONDARY].more)
        feed_all(c, &p);
    if (!is_over(&p) || !batches[COLO_PRIMARY].more)
        feed_all(c, &s);
    taken[COLO_PRIMARY] = p.at;
    taken[COLO_SECONDARY] = s.at;
    return 0;
}
