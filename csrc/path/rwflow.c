/* SPDX-License-Identifier: Apache-2.0 */
#include "rwflow.h"

#include "parse.h"
#include "seq.h"

enum {
    MAX_SCALE = 14,          /* RFC 7323, section 2.3 */
    SYN_WINDOW = 65535,      /* of a SYN or SYN-ACK: never scaled */
    NEAR = 1 << 24,          /* at this distance a number fits, at more if the window is larger */
    CLIENT_WINDOW = 1 << 20, /* how far ahead of the VM's ACK a reset of the client's is believed */
    NEWEST_ACK = 65535,      /* beyond what the VM was seen to send: of a fragmented segment that is less */
    TS_MARGIN = 200,         /* ms */
    NS_PER_MS = 1000000,
};

/* a is behind b in the sequence, or b itself: 0 or more. */
static int64_t ahead(uint32_t a, uint32_t b)
{
    return colo_seq_extend(b, 0, a);
}

static uint8_t scale_of(uint8_t wscale)
{
    if (wscale == 255)
        return 0;
    return wscale > MAX_SCALE ? MAX_SCALE : wscale;
}

static bool is_again(const struct colo_rwsyn *syn, const struct colo_tcpseg *seg)
{
    return syn->seen && syn->isn == seg->seq && (!syn->acked || !(seg->flags & COLO_TCP_ACK) || syn->ack == seg->ack);
}

/**
 * note() - remembers a SYN or SYN-ACK.
 *
 * A SYN and a SYN-ACK of the same number are one: a simultaneous open. Sent again it keeps its first TSval.
 * Return: false if it was known.
 */
static bool note(struct colo_rwsyn *syn, const struct colo_tcpseg *seg, int64_t now)
{
    bool again = is_again(syn, seg);

    if (!again)
        *syn = (struct colo_rwsyn){.seen = true, .isn = seg->seq, .has_ts = seg->has_ts, .tsval = seg->tsval,
                                   .wscale = seg->wscale, .at = now};
    if (seg->flags & COLO_TCP_ACK) {
        syn->acked = true;
        syn->ack = seg->ack;
    } else {
        syn->active = true;
    }
    return !again;
}

static void settle(struct colo_rwflow *f, const struct colo_rwsyn *p)
{
    f->known = true;
    f->seq_shift = p->isn - f->s.isn;
    /* The same number twice is one VM's state twice, copied by a checkpoint: its clock is the same too. */
    f->ts_known = p->has_ts && f->s.has_ts && f->seq_shift;
    f->ts_shift = f->ts_known ? p->tsval - f->s.tsval : 0;
    f->ts_floored = false;
    f->p_ts = p->tsval;
    f->p_ts_at = p->at;
    f->p_wscale = p->wscale;
    f->p_scale = scale_of(p->wscale);
    f->s_scale = scale_of(f->s.wscale);
}

/* Do both SYNs belong to one connection? The client's number tells, which is in the ACK; else the newest does. */
static bool belong_together(const struct colo_rwsyn *p, const struct colo_rwsyn *s)
{
    if (!p->seen || !s->seen || p->active != s->active)
        return false;
    if (p->acked && s->acked && p->ack != s->ack)
        return false;
    return !p->active || !p->used || p->used_by == s->isn;
}

static void join(struct colo_rwflow *f)
{
    bool anew = f->known; /* with an older SYN of the primary's */

    if (f->answered || !belong_together(&f->p, &f->s)) /* answered: the client has settled it */
        return;
    if (anew && f->seq_shift == f->p.isn - f->s.isn)
        return;
    settle(f, &f->p);
    /* The newest will do for want of a better one; whether it is this SYN's the next SYN of the secondary's tells. */
    f->p.used = !anew;
    f->p.used_by = f->s.isn;
}

bool colo_rwflow_heard_primary(struct colo_rwflow *f, const struct colo_tcpseg *seg, int64_t now)
{
    const struct colo_rwsyn before = f->p;
    bool fresh = note(&f->p, seg, now);

    if (fresh)
        f->p_before = before;
    join(f);
    if (!fresh && f->known && seg->has_ts && seg->seq - f->s.isn == f->seq_shift && ahead(seg->tsval, f->p_ts) > 0) {
        f->p_ts = seg->tsval;
        f->p_ts_at = now;
    }
    return fresh;
}

/* The VM speaks of another connection than before: the old one's state goes, but not what the other SYNs have said. */
static void begin(struct colo_rwflow *f)
{
    struct colo_rwflow fresh = {.p = f->p, .p_before = f->p_before, .s = f->s, .c_scaled = f->c_scaled,
                                .c_scale = f->c_scale, .inherited = f->inherited};

    colo_rwtable_fill(f, &fresh);
    f->s_next = f->s.isn;
    f->s_ts = f->s.tsval;
}

bool colo_rwflow_heard_secondary(struct colo_rwflow *f, const struct colo_tcpseg *seg, int64_t now)
{
    bool fresh = note(&f->s, seg, now);

    if (fresh)
        begin(f);
    join(f);
    return fresh;
}

bool colo_rwflow_infer(struct colo_rwflow *f, const struct colo_tcpseg *seg, bool taken_over, int64_t now)
{
    struct colo_rwsyn p = {.isn = seg->ack - 1, .has_ts = seg->has_ts, .tsval = seg->tsecr, .wscale = f->s.wscale,
                           .at = now};

    if (f->known || !f->s.seen || f->s_beyond || !(seg->flags & COLO_TCP_ACK) || seg->flags & COLO_TCP_RST)
        return false;
    if (f->s.acked) { /* in SYN-RECEIVED: what follows the client's SYN, within the window that was offered */
        int64_t from_start = ahead(seg->seq, f->s.ack);

        if (seg->flags & COLO_TCP_SYN || from_start < 0 || from_start > SYN_WINDOW)
            return false;
    } else if (!(seg->flags & COLO_TCP_SYN)) { /* in SYN-SENT */
        return false;
    }
    if (!taken_over && p.isn != f->s.isn)
        return false;
    settle(f, &p);
    return true;
}

bool colo_rwflow_recall(struct colo_rwflow *f, const struct colo_tcpseg *seg)
{
    const struct colo_rwsyn *old = &f->p_before;

    if (!f->known || f->answered || f->s.active || !(seg->flags & COLO_TCP_ACK) || !belong_together(old, &f->s) ||
        seg->ack != old->isn + 1 || old->isn - f->s.isn == f->seq_shift)
        return false;
    settle(f, old);
    return true;
}

static bool is_near(uint32_t a, uint32_t b, int64_t radius)
{
    int64_t distance = ahead(a, b);

    return distance >= -radius && distance <= radius;
}

bool colo_rwflow_fits_base(const struct colo_rwflow *f, const struct colo_tcpseg *seg, uint32_t base)
{
    int64_t radius = f->c_scaled && f->c_window > NEAR ? f->c_window : NEAR;

    if (!f->c_acks || f->seq_shift == base || seg->flags & (COLO_TCP_SYN | COLO_TCP_RST))
        return false;
    if (is_near(seg->seq + f->seq_shift, f->c_ack, radius) || is_near(seg->seq, f->s_next, NEAR))
        return false; /* it fits shifted, or goes on from what the VM said last */
    return is_near(seg->seq + base, f->c_ack, radius);
}

/*
 * What was exported may be older than the connection: closed since, and its ports taken by one that has the VM's own
 * numbers. Each side's segment tells where the other side's numbers are. The client's sequence number has to fit too,
 * so that nobody who only guesses can end a connection's translation.
 */
bool colo_rwflow_belied(struct colo_rwflow *f, const struct colo_tcpseg *seg, bool by_vm)
{
    uint32_t vm = by_vm ? seg->seq : f->s_next, client = by_vm ? f->c_ack : seg->ack;
    bool can_tell = by_vm ? f->c_acks : !f->unplaced;

    if (!f->unproven || !f->seq_shift || !can_tell || !(seg->flags & COLO_TCP_ACK) ||
        seg->flags & (COLO_TCP_SYN | COLO_TCP_RST))
        return false;
    if (is_near(vm + f->seq_shift, client, NEAR)) {
        f->unproven = false;
        return false;
    }
    return is_near(vm, client, NEAR) &&
           (by_vm ? is_near(seg->ack, f->c_next, NEAR) : f->s_acks && is_near(seg->seq, f->s_ack, NEAR));
}

bool colo_rwflow_is_other(const struct colo_rwflow *f, const struct colo_tcpseg *seg, bool own_numbers)
{
    struct colo_tcpseg own = *seg;

    if (!own_numbers)
        own.seq -= f->seq_shift;
    return !is_again(&f->s, &own);
}

void colo_rwflow_sent(struct colo_rwflow *f, const struct colo_tcpseg *seg)
{
    uint32_t end = seg->seq + seg->length;

    f->is_signed |= seg->is_signed;
    /* It has this connection by a copy of the primary's state: the notice is not meant for the next SYN of its own. */
    if (!f->s.seen && f->p.seen && !(seg->flags & (COLO_TCP_SYN | COLO_TCP_RST)) && is_near(seg->seq, f->p.isn, NEAR)) {
        f->p.used = true;
        f->p.used_by = f->p.isn;
    }
    if (seg->flags & COLO_TCP_RST) {
        f->reset = true;
        return;
    }
    f->reset = false;
    if (f->unplaced && f->unproven)
        f->c_acks = false; /* what was believed of the client without a proof */
    if (f->unplaced || ahead(end, f->s_next) > 0)
        f->s_next = end;
    if (seg->length > (seg->flags & COLO_TCP_SYN ? 1 : 0))
        f->s_beyond = true;
    if (seg->flags & COLO_TCP_FIN && !seg->fragment) {
        f->s_fin = true;
        f->s_fin_end = end;
    }
    if (seg->has_ts && (f->unplaced || ahead(seg->tsval, f->s_ts) > 0))
        f->s_ts = seg->tsval;
    f->unplaced = false;
    if (seg->flags & COLO_TCP_ACK && (!f->s_acks || ahead(seg->ack, f->s_ack) > 0)) {
        if (!f->s_acks || ahead(seg->ack, f->c_next) > 0)
            f->c_next = seg->ack;
        f->s_acks = true;
        f->s_ack = seg->ack;
        f->c_fin_acked = f->c_fin && seg->ack == f->c_fin_end;
    }
}

/* Of an ACK of the client's, in the VM's numbers: RFC 5961, section 5.2, as far as we know the numbers. */
static bool is_credible(const struct colo_rwflow *f, uint32_t ack)
{
    int64_t beyond = ahead(ack, f->s_next), oldest = f->c_window > NEAR ? f->c_window : NEAR;

    if (!f->answered)
        return ack != f->s.isn && ack - f->s.isn <= f->s_next - f->s.isn;
    return beyond <= NEWEST_ACK && beyond >= -oldest;
}

static void client_acks(struct colo_rwflow *f, const struct colo_tcpseg *seg)
{
    uint8_t scale = f->c_scaled ? f->c_scale : MAX_SCALE;

    if (!f->answered) {
        f->answered = true;
        f->reset = false;
    }
    if (f->c_acks && ahead(seg->ack, f->c_ack) < 0)
        return;
    f->c_acks = true;
    f->c_ack = seg->ack;
    f->c_window = (uint32_t)seg->window << (seg->flags & COLO_TCP_SYN ? 0 : scale);
    f->s_fin_acked = f->s_fin && ahead(seg->ack - f->seq_shift, f->s_fin_end) >= 0;
}

static void client_sends(struct colo_rwflow *f, const struct colo_tcpseg *seg)
{
    uint32_t end = seg->seq + seg->length;
    int64_t beyond = ahead(end, f->s_ack);

    if (!f->s_acks || beyond <= 0)
        return;
    if (beyond <= CLIENT_WINDOW && ahead(end, f->c_next) > 0)
        f->c_next = end;
    if (beyond <= NEAR && seg->flags & COLO_TCP_FIN && !seg->fragment) {
        f->c_fin = true;
        f->c_fin_end = end;
    }
}

void colo_rwflow_receives(struct colo_rwflow *f, const struct colo_tcpseg *seg, bool taken_over, int64_t now)
{
    if (seg->flags & COLO_TCP_SYN) {
        f->c_scaled = true;
        f->c_scale = scale_of(seg->wscale);
        if (seg->flags & COLO_TCP_ACK && f->s.active)
            f->unscaled = seg->wscale == 255;
    }
    if (!f->known)
        return;
    if (seg->flags & COLO_TCP_RST) { /* RFC 5961: only the exact number is sure to close it */
        if (f->s_acks ? seg->seq == f->s_ack || seg->seq == f->c_next
                      : seg->flags & COLO_TCP_ACK && seg->ack - f->seq_shift == f->s.isn + 1)
            f->reset = true;
        return;
    }
    if (!(seg->flags & COLO_TCP_ACK))
        return;
    if (f->unplaced) { /* all that is known: enough to tell what the VM's first segment must look like */
        f->c_acks = true;
        f->c_ack = seg->ack;
        f->c_next = seg->seq + seg->length;
        if (seg->flags & COLO_TCP_FIN && !seg->fragment) { /* it counts when the VM has acknowledged just that */
            f->c_fin = true;
            f->c_fin_end = f->c_next;
        }
        return;
    }
    if (!is_credible(f, seg->ack - f->seq_shift))
        return;
    if (!taken_over && seg->has_ts && f->ts_known && ahead(seg->tsecr, f->p_ts) > 0) {
        f->p_ts = seg->tsecr;
        f->p_ts_at = now;
    }
    client_acks(f, seg);
    client_sends(f, seg);
}

uint8_t colo_rwflow_standing(const struct colo_rwflow *f)
{
    if (f->reset || (f->s_fin_acked && f->c_fin_acked))
        return COLO_RW_CLOSED;
    return f->answered ? COLO_RW_LIVE : COLO_RW_HALF;
}

void colo_rwflow_floor(struct colo_rwflow *f, const struct colo_tcpseg *seg, int64_t now)
{
    uint32_t least = f->p_ts + (uint32_t)((now - f->p_ts_at) / NS_PER_MS) + TS_MARGIN;
    uint32_t mapped = seg->tsval + f->ts_shift;

    if (!f->known || !f->ts_known || f->ts_floored || !seg->has_ts)
        return;
    if (ahead(mapped, least) < 0)
        f->ts_shift += least - mapped;
    f->ts_floored = true;
}

/*
 * Where both options are there the primary's factor is written into the segment. Where only one is, that can't be done;
 * but then the primary's was a divergence that the comparator held, and is lost: the client goes by this one.
 */
void colo_rwflow_announces(struct colo_rwflow *f, const struct colo_tcpseg *seg)
{
    if (!f->known || f->answered || !(seg->flags & COLO_TCP_SYN) || (seg->wscale == 255) == (f->p_wscale == 255))
        return;
    f->p_wscale = seg->wscale;
    f->p_scale = f->s_scale;
}

uint16_t colo_rwflow_window(const struct colo_rwflow *f, const struct colo_tcpseg *seg)
{
    uint32_t bytes;

    if (f->p_scale == f->s_scale || f->unscaled || seg->flags & COLO_TCP_SYN)
        return seg->window;
    bytes = (uint32_t)seg->window << f->s_scale >> f->p_scale;
    return bytes > UINT16_MAX ? UINT16_MAX : (uint16_t)bytes;
}
