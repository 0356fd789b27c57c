/* Any schedule of frames, checkpoints and time keeps R1 to R4 and R6 as a simple checker sees them, twice the same. */
/* SPDX-License-Identifier: Apache-2.0 */
#include "schedule.h"

#include "hash.h"
#include "load.h"
#include "must.h"
#include "parse.h"

/* What the checker knows of a frame. */
struct seen {
    const struct step *step;
    uint8_t *data;      /* a copy of its own, gone as soon as the frame is given back: use after that is seen */
    bool fed, inside;
    bool while_stopped; /* fed in the stop that is not over */
    bool evidence;      /* secondary: said in this epoch */
    bool covered;       /* primary: a commit contains the state after sending it */
    bool matched;       /* primary: released as matched in this epoch */
    struct colo_flow_id id;
};

static struct schedule plan;
static struct seen seen[SCHEDULE_STEPS];
/* Wild, or a frame was refused and is lost here: connections may be taken for one another, so R1 is checked less. */
static bool loose;

struct run {
    colo_comparator *c;
    size_t count;       /* steps done, the present one included */
    int mode, before;
    int64_t stopped_at, cut;
    int during;         /* enum step_kind of the present step */
    bool raw;           /* bytes of no template came: what they say is not known here */
    bool wanted;        /* a checkpoint, in this epoch */
    uint64_t hash;      /* of all that came out */
};

static void note(struct run *r, const void *data, size_t len)
{
    r->hash = colo_hash(r->hash, data, len);
}

#define NOTE(r, value) note(r, &(value), sizeof(value))

/* -------------------------------------------------------------------- R1 */

static bool said(size_t i, int made, uint8_t flow)
{
    return seen[i].evidence && seen[i].step->made == made && seen[i].step->flow == flow;
}

/* A commit covers this position: it is not beyond all that the primary had sent by then. */
static bool position_is_covered(const struct step *p, int off)
{
    for (size_t i = 0; i < plan.count; i++) {
        const struct step *q = seen[i].step;

        if (!seen[i].covered || q->made != MADE_TCP || q->flow != p->flow)
            continue;
        if (loose) { /* connections may have been taken for one another: by number, not by name */
            uint32_t end = q->seq + (uint32_t)q->len + !!(q->flags & COLO_TCP_FIN);

            if ((int32_t)(p->seq + (uint32_t)(off - p->off) - end) < 0)
                return true;
        } else if (q->gen == p->gen && off < q->off + q->len + !!(q->flags & COLO_TCP_FIN)) {
            return true;
        }
    }
    return false;
}

/*
 * Wild: the primary has said something else at this position, which left as matched. What it says there now is not
 * compared again: a known gap.
 */
static bool was_said_before(const struct step *p, int off)
{
    for (size_t i = 0; i < plan.count && loose; i++) {
        const struct step *q = seen[i].step;
        uint32_t syn = !!(q->flags & COLO_TCP_SYN), len = syn + (uint32_t)q->len + !!(q->flags & COLO_TCP_FIN);

        if (q != p && seen[i].matched && q->made == MADE_TCP && q->flow == p->flow &&
            p->seq + (uint32_t)(off - p->off) - (q->seq - syn) < len)
            return true;
    }
    return false;
}

/* Wild: a secondary met in mid-stream with numbers of its own is taken to stand where the stream stands: any offset. */
static bool byte_was_said(const struct step *p, int off)
{
    for (size_t i = 0; i < plan.count; i++) {
        const struct step *q = seen[i].step;

        if (!said(i, MADE_TCP, p->flow))
            continue;
        for (int at = q->off; at < q->off + q->len; at++)
            if ((at == off || loose) && (plan.tolerant || schedule_byte(q, at) == schedule_byte(p, off)))
                return true;
    }
    return false;
}

static bool flag_was_said(const struct step *p, uint8_t flag)
{
    for (size_t i = 0; i < plan.count; i++) {
        const struct step *q = seen[i].step;

        if (said(i, MADE_TCP, p->flow) && q->flags & flag) {
            if (flag == COLO_TCP_FIN && !loose && q->off + q->len != p->off + p->len)
                continue;
            if (flag == COLO_TCP_SYN && ((q->options == 3) != (p->options == 3) ||
                                         (schedule_scale(&plan, q) == 255) != (schedule_scale(&plan, p) == 255)))
                continue;
            return true;
        }
        if (flag == COLO_TCP_RST && seen[i].covered && q->made == MADE_TCP && q->flow == p->flow && q->flags & flag)
            return true;
    }
    return false;
}

/* The secondary has sent this ACK number of the client's connection, or it is covered by a commit. */
static bool ack_was_said(uint8_t flow, uint8_t gen, int ack)
{
    for (size_t i = 0; i < plan.count; i++) {
        const struct step *q = seen[i].step;

        if ((said(i, MADE_TCP, flow) || (seen[i].covered && q->made == MADE_TCP && q->flow == flow)) &&
            q->gen == gen && !(q->flags & COLO_TCP_RST) && q->ack >= ack)
            return true;
    }
    return false;
}

static void check_tcp(const struct seen *f, const struct colo_action *a)
{
    const struct step *p = f->step;
    int ack = p->ack;

    for (int off = p->off; off < p->off + p->len; off++)
        MUST(position_is_covered(p, off) || byte_was_said(p, off) || was_said_before(p, off),
             "R1: byte %d of cookie %llu", off, (unsigned long long)a->cookie);
    if (p->flags & COLO_TCP_FIN)
        MUST(position_is_covered(p, p->off + p->len) || flag_was_said(p, COLO_TCP_FIN) ||
                 was_said_before(p, p->off + p->len),
             "R1: FIN");
    if (a->ack_at) {
        uint32_t from = colo_load32(f->data + a->ack_at);

        MUST(a->ack_at + 4u <= p->frame_len && a->csum_at + 2u <= p->frame_len, "patch outside the frame");
        MUST((int32_t)(from - a->ack) > 0, "R1: the ACK number was raised");
        ack -= (int)(from - a->ack);
    }
    if (loose)
        return;
    if (p->flags & COLO_TCP_SYN)
        MUST(position_is_covered(p, -1) || flag_was_said(p, COLO_TCP_SYN), "R1: SYN");
    if (p->flags & COLO_TCP_RST)
        MUST(flag_was_said(p, COLO_TCP_RST), "R1: RST");
    else
        MUST(ack_was_said(p->flow, p->gen, ack), "R1: ACK %d of cookie %llu", ack, (unsigned long long)a->cookie);
}

/* Each datagram of the secondary's serves once. */
static void check_datagram(const struct seen *f)
{
    int ours = 0, theirs = 0;

    for (size_t i = 0; i < plan.count; i++) {
        const struct step *q = seen[i].step;

        if (q->kind != STEP_FEED || q->made != MADE_DATAGRAM || q->flow != f->step->flow || q->key != f->step->key)
            continue;
        ours += seen[i].matched;
        theirs += seen[i].evidence;
    }
    MUST(ours <= theirs, "R1: %d datagrams left, the secondary has said %d", ours, theirs);
}

/* Every byte of its datagram has come from the secondary, but for the one that tells copies apart. */
static void check_fragment(const struct seen *f)
{
    for (int at = 0; at < 48; at++) {
        bool found = at == 20;

        for (size_t i = 0; i < plan.count && !found; i++) {
            const struct step *q = seen[i].step;

            found = said(i, MADE_FRAGMENT, f->step->flow) && q->key == f->step->key && at >= q->off &&
                    at < q->off + q->len;
        }
        MUST(found, "R1: byte %d of datagram %u on flow %u", at, f->step->key, f->step->flow);
    }
}

static bool may_pass(const struct run *r, const struct seen *f)
{
    if (plan.config.pass_classes & 1u << f->id.cls || r->raw)
        return true;
    return plan.rules & 1 && f->step->flow == 1 && (f->id.cls == COLO_CLASS_UDP || f->id.cls == COLO_CLASS_FRAGMENT);
}

static bool needs_commit(const struct seen *f)
{
    return plan.rules & 2 && f->id.cls == COLO_CLASS_TCP && f->step->made == MADE_TCP && f->step->flow == 3;
}

static void check_reason(struct run *r, struct seen *f, const struct colo_action *a)
{
    switch (a->reason) {
    case COLO_REASON_ALONE:
        MUST(r->mode == COLO_MODE_ALONE, "R1: alone, in mode %d", r->mode);
        return;
    case COLO_REASON_COMMITTED:
        MUST(r->during == STEP_COMMIT && f->step->now < r->cut, "R1: no commit covers it");
        return;
    case COLO_REASON_PASSED:
        MUST(may_pass(r, f), "R1: class %d does not pass", f->id.cls);
        return;
    default:
        MUST(a->reason == COLO_REASON_MATCHED && r->mode == COLO_MODE_PROTECTED, "R1: reason %d in mode %d", a->reason,
             r->mode);
    }
    MUST(!needs_commit(f), "R1: by the rules only a commit covers it");
    f->matched = true;
    if (r->raw)
        return;
    if (f->step->made == MADE_TCP)
        check_tcp(f, a);
    else if (f->step->made == MADE_DATAGRAM)
        check_datagram(f);
    else
        check_fragment(f);
}

/* ------------------------------------------------------------ what comes out */

static void check_order(size_t which)
{
    const struct seen *f = &seen[which];

    if (f->id.cls == COLO_CLASS_FRAGMENT) /* their datagram's place is that of the last one to come */
        return;
    for (size_t i = 0; i < which; i++)
        MUST(!seen[i].inside || seen[i].step->side != COLO_PRIMARY || memcmp(&seen[i].id, &f->id, sizeof f->id) != 0,
             "R4: step %zu overtook step %zu of its flow", which, i);
}

static void give_back(struct seen *f)
{
    free(f->data);
    f->data = NULL;
    f->inside = false;
}

static void on_frame(struct run *r, const struct colo_action *a)
{
    struct seen *f;

    MUST(a->cookie < r->count && seen[a->cookie].fed, "a frame that was never fed");
    f = &seen[a->cookie];
    MUST(f->inside, "R2, R4: step %llu came back twice", (unsigned long long)a->cookie);
    MUST(a->side == f->step->side && (a->kind == COLO_RELEASE) == (a->side == COLO_PRIMARY),
         "R1, R2: action %d on a frame of side %d", a->kind, f->step->side);
    MUST(a->data == f->data && a->len == f->step->frame_len, "another frame's bytes");
    for (uint32_t i = 0; i < a->len; i++)
        MUST(f->data[i] == f->step->frame[i], "byte %u was changed", i);
    if (a->kind == COLO_RELEASE) {
        if (a->reason != COLO_REASON_PASSED)
            check_order(a->cookie);
        check_reason(r, f, a);
    }
    give_back(f);
}

/* Some frame of that side's, on the same flow, said the `len` bytes from `seq` on in which `at` lies. */
static bool was_said(const struct run *r, uint8_t side, const struct colo_packet *part, const uint8_t *bytes)
{
    for (size_t i = 0; i < r->count; i++) {
        struct colo_packet p;
        uint32_t at;

        if (!seen[i].fed || seen[i].step->side != side || memcmp(&seen[i].id, &part->id, sizeof part->id) != 0)
            continue;
        colo_parse(seen[i].step->frame, seen[i].step->frame_len, seen[i].step->vnet_len, &p);
        at = part->seq - p.seq;
        if (at < p.body_len && part->body_len <= p.body_len - at &&
            !memcmp(seen[i].step->frame + p.body + at, bytes, part->body_len))
            return true;
    }
    return false;
}

static void on_emit(const struct run *r, const struct colo_action *a)
{
    uint8_t *copy = copy_of(a->data, a->len);
    struct colo_packet packet;
    bool known = false;

    MUST(a->len <= COLO_EMIT_MAX, "%u bytes", a->len);
    colo_parse(copy, a->len, a->vnet_len, &packet);
    MUST(packet.id.cls == COLO_CLASS_TCP && packet.tcp_flags == COLO_TCP_ACK, "more than an ACK");
    MUST(r->mode != COLO_MODE_STOPPED, "a segment of our own while the VMs stand still");
    MUST(!packet.body_len || r->mode == COLO_MODE_PROTECTED, "part of a frame without a secondary");
    for (size_t i = 0; i < r->count; i++)
        known |= seen[i].fed && seen[i].step->side == COLO_PRIMARY &&
                 memcmp(&seen[i].id, &packet.id, sizeof packet.id) == 0;
    MUST(known || r->raw, "an ACK on no flow of the primary's");
    MUST(!packet.body_len || r->raw || was_said(r, COLO_PRIMARY, &packet, copy + packet.body), "bytes of nobody's");
    free(copy);
}

static void fetch(struct run *r)
{
    struct colo_action actions[3];
    struct colo_event events[2];
    size_t n, total = 0;

    while ((n = colo_comparator_actions(r->c, actions, 3))) {
        total += n;
        MUST(total <= 4u * SCHEDULE_STEPS, "R6: %zu actions", total);
        for (size_t i = 0; i < n; i++) {
            const struct colo_action *a = &actions[i];

            NOTE(r, a->kind);
            NOTE(r, a->reason);
            NOTE(r, a->cookie);
            NOTE(r, a->ack_at);
            if (a->ack_at) {
                NOTE(r, a->ack);
                NOTE(r, a->csum);
            }
            if (a->kind == COLO_EMIT) {
                note(r, a->data, a->len);
                on_emit(r, a);
            } else {
                on_frame(r, a);
            }
        }
    }
    while ((n = colo_comparator_events(r->c, events, 2)))
        for (size_t i = 0; i < n; i++) {
            const struct colo_event *e = &events[i];

            NOTE(r, e->kind);
            NOTE(r, e->cause);
            NOTE(r, e->offset);
            MUST(e->primary_len <= sizeof e->primary && e->secondary_len <= sizeof e->secondary, "evidence too long");
            MUST(e->context <= sizeof e->primary, "the difference lies outside the evidence");
            note(r, e->primary, e->primary_len);
            note(r, e->secondary, e->secondary_len);
            if (e->kind == COLO_EVENT_WANT_CHECKPOINT) {
                MUST(!r->wanted, "a second checkpoint is wanted in one epoch");
                r->wanted = true;
            }
        }
}

/* ------------------------------------------------------------------- steps */

static void check_held(const struct run *r)
{
    uint64_t frames[2] = {0, 0}, bytes[2] = {0, 0};
    struct colo_counters n;

    colo_comparator_counters(r->c, &n);
    MUST(n.mode == r->mode, "mode %d, not %d", n.mode, r->mode);
    for (size_t i = 0; i < r->count; i++)
        if (seen[i].inside) {
            int side = seen[i].step->side;

            frames[side]++;
            bytes[side] += seen[i].step->frame_len;
            MUST(r->mode != COLO_MODE_ALONE, "R2: step %zu is kept without a secondary", i);
            MUST(!seen[i].covered, "R2: step %zu is kept, and a commit covers it", i);
        }
    for (int side = 0; side < 2; side++) {
        MUST(n.held_frames[side] == frames[side] && n.held_bytes[side] == bytes[side],
             "%llu frames of side %d are counted, %llu are inside", (unsigned long long)n.held_frames[side], side,
             (unsigned long long)frames[side]);
        MUST(frames[side] <= plan.config.max_frames / 2, "R6: %llu frames", (unsigned long long)frames[side]);
        MUST(frames[side] <= 1 || bytes[side] <= plan.config.max_bytes / 2, "R6: %llu bytes",
             (unsigned long long)bytes[side]);
    }
    MUST(n.flows <= plan.config.max_flows, "R6: %llu flows", (unsigned long long)n.flows);
    MUST(n.fragments_waiting[0] <= plan.config.max_fragments && n.fragments_waiting[1] <= plan.config.max_fragments,
         "R6: fragments");
}

static void feed(struct run *r, struct seen *f, size_t number)
{
    const struct step *st = f->step;
    struct colo_frame frame = {.len = st->frame_len, .vnet_len = st->vnet_len, .cookie = number};
    struct colo_packet packet;
    long taken;

    f->data = copy_of(st->frame, st->frame_len);
    frame.data = f->data;
    colo_parse(f->data, st->frame_len, st->vnet_len, &packet);
    f->id = packet.id;
    f->fed = f->inside = true;
    f->evidence = st->side == COLO_SECONDARY && r->mode != COLO_MODE_ALONE;
    f->while_stopped = r->mode == COLO_MODE_STOPPED;
    r->raw |= st->made == MADE_RAW;
    taken = colo_comparator_feed(r->c, st->side, &frame, 1, st->now);
    MUST(taken == 0 || taken == 1, "feed: %ld", taken);
    fetch(r);
    if (taken)
        return;
    MUST(r->mode != COLO_MODE_ALONE && r->wanted, "refused, and no checkpoint is wanted");
    MUST(f->inside, "refused, and given back");
    give_back(f);
    f->fed = f->evidence = false;
    loose = true;
}

static void commit(struct run *r, const struct step *st)
{
    int64_t cut_s = st->resumed;

    if (plan.config.keep_gap && r->mode == COLO_MODE_STOPPED && r->stopped_at < st->resumed)
        cut_s = r->stopped_at;
    for (size_t i = 0; i < r->count; i++) {
        struct seen *f = &seen[i];

        if (!f->fed)
            continue;
        if (f->step->side == COLO_PRIMARY)
            f->covered |= f->step->now < st->resumed;
        else if (f->step->now < cut_s || (r->mode == COLO_MODE_STOPPED && !f->while_stopped))
            f->evidence = false; /* R3 */
        f->while_stopped = f->matched = false;
    }
    r->cut = st->resumed;
    r->mode = COLO_MODE_PROTECTED;
    r->wanted = false;
    colo_comparator_commit(r->c, st->resumed, st->now);
}

static void perform(struct run *r, size_t number)
{
    const struct step *st = &plan.steps[number];
    struct seen *f = &seen[number];

    r->count = number + 1;
    r->during = st->kind;
    switch (st->kind) {
    case STEP_FEED:
        feed(r, f, number);
        break;
    case STEP_STOP:
        if (r->mode != COLO_MODE_STOPPED) {
            r->before = r->mode;
            r->mode = COLO_MODE_STOPPED;
            r->stopped_at = st->now;
        }
        colo_comparator_stop(r->c, st->now);
        break;
    case STEP_COMMIT:
        commit(r, st);
        break;
    case STEP_ABORT:
        if (r->mode == COLO_MODE_STOPPED)
            r->mode = r->before;
        for (size_t i = 0; i < r->count; i++) {
            seen[i].while_stopped = false;
            seen[i].evidence &= r->mode != COLO_MODE_ALONE;
        }
        colo_comparator_abort(r->c, st->now);
        break;
    case STEP_ALONE:
        for (size_t i = 0; i < r->count; i++)
            seen[i].evidence = seen[i].while_stopped = false;
        r->mode = COLO_MODE_ALONE;
        r->wanted = false;
        colo_comparator_alone(r->c, st->now);
        break;
    default:
        break;
    }
    fetch(r);
    r->during = STEP_TICK;
    if (colo_comparator_deadline(r->c) <= st->now) {
        colo_comparator_tick(r->c, st->now);
        fetch(r);
        MUST(colo_comparator_deadline(r->c) > st->now, "the deadline stays after a tick");
    }
    check_held(r);
}

static uint64_t play(uint64_t hash_seed)
{
    struct run r = {.mode = COLO_MODE_ALONE};
    int64_t end = 0;

    loose = plan.wild;
    plan.config.hash_seed = hash_seed;
    r.c = colo_comparator_create(&plan.config);
    MUST(r.c, "not created");
    memset(seen, 0, plan.count * sizeof seen[0]);
    for (size_t i = 0; i < plan.count; i++)
        seen[i].step = &plan.steps[i];
    for (size_t i = 0; i < plan.count; i++) {
        perform(&r, i);
        end = plan.steps[i].now;
    }
    /* R2: in the end every frame comes back. Half of the schedules end with frames inside, which destroy must stand. */
    if (plan.count % 2) {
        r.mode = COLO_MODE_ALONE;
        r.during = STEP_ALONE;
        r.wanted = false;
        colo_comparator_alone(r.c, end + 1);
        fetch(&r);
        check_held(&r);
    }
    colo_comparator_destroy(r.c);
    for (size_t i = 0; i < plan.count; i++)
        if (seen[i].inside)
            give_back(&seen[i]);
    return r.hash;
}

int LLVMFuzzerInitialize(int *argc, char ***argv);

/* `fuzz_schedule -print FILE...` tells the steps of each file, for the comparison with schedule.py. */
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    if (*argc < 2 || strcmp((*argv)[1], "-print") != 0)
        return 0;
    for (int i = 2; i < *argc; i++) {
        static uint8_t data[65536];
        FILE *file = fopen((*argv)[i], "rb");

        MUST(file, "%s can't be read", (*argv)[i]);
        schedule_decode(&plan, data, fread(data, 1, sizeof data, file));
        fclose(file);
        schedule_print(&plan);
    }
    fflush(stdout);
    exit(0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t first;

    schedule_decode(&plan, data, size);
    first = play(1);
    /* Which flow makes room for another may depend on the table; nothing else does. */
    MUST(play(plan.tight ? 1 : 0x123456789abcdefu) == first, "played twice, differently");
    return 0;
}
