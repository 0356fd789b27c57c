/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Everything that is not TCP: the datagrams of a flow are a bag. Each primary datagram must find its equal among the
 * secondary's, each of which serves once. They leave in order: a matched one waits for an unmatched one before it.
 *
 * The first held datagram is "overtaken" when it is unmatched although the secondary has sent something else that
 * is unmatched, or something that matched a later one. Within the re-order window that is no difference yet; beyond
 * it, it is one. A datagram to which the secondary says nothing at all is a matter of compare_timeout.
 */
#include <string.h>

#include "core.h"
#include "hash.h"

static bool same_body(const struct colo_rec *a, const struct colo_rec *b)
{
    const uint8_t *pa = a->data + a->body, *pb = b->data + b->body;
    size_t hole = a->hole, n = a->body_len;

    if (a->digest != b->digest || a->body_len != b->body_len || a->tag != b->tag)
        return false;
    if (hole >= n)
        return memcmp(pa, pb, n) == 0;
    return memcmp(pa, pb, hole) == 0 && memcmp(pa + hole + 2, pb + hole + 2, n - hole - 2) == 0;
}

static void digest(const colo_comparator *c, struct colo_rec *rec)
{
    const uint8_t *p = rec->data + rec->body;
    uint32_t from = rec->hole < rec->body_len ? rec->hole + 2 : 0;

    rec->digest = colo_hash(c->config.hash_seed, p + from, rec->body_len - from);
}

/* How many bytes of both, from the first on, are equal or may differ; neither window nor text reaches over a hole. */
static uint32_t compare_tolerantly(colo_comparator *c, const struct colo_flow *flow, const struct colo_rec *p,
                                   const struct colo_rec *s, bool tell)
{
    const struct colo_tolerance *rules = colo_flow_tolerance(c, flow);
    uint32_t n = p->body_len < s->body_len ? p->body_len : s->body_len, done = 0;

    while (done < n) {
        uint32_t until = done <= p->hole && p->hole < n ? p->hole : n, same;
        struct colo_tolerance state = {.rules = rules->rules};
        struct colo_teller teller = {c, flow, p, s, done};

        same = colo_tolerance_compare(c->tolerances, &state, p->data + p->body + done, s->data + s->body + done,
                                      until - done, tell ? colo_tell_tolerated : NULL, &teller);
        done += same;
        if (done < until || until == n)
            return done;
        done += 2;
    }
    return n;
}

static bool is_tolerable(colo_comparator *c, const struct colo_flow *flow, const struct colo_rec *a,
                         const struct colo_rec *b)
{
    return a->body_len == b->body_len && a->tag == b->tag && a->hole == b->hole &&
           compare_tolerantly(c, flow, a, b, false) == a->body_len;
}

static struct colo_rec *find_equal(const colo_comparator *c, const struct colo_list *list, const struct colo_rec *rec)
{
    uint32_t looks = 0;

    for (struct colo_rec *other = list->head; other && looks < c->config.reorder_frames; other = other->flow_link.next) {
        if (other->matched)
            continue;
        if (same_body(other, rec))
            return other;
        looks++;
    }
    return NULL;
}

/* The same where no equal one is, among those that differ by what a rule tolerates. */
static struct colo_rec *find_tolerable(colo_comparator *c, const struct colo_flow *flow, const struct colo_list *list,
                                       const struct colo_rec *rec)
{
    uint32_t looks = 0;

    if (!colo_flow_tolerance(c, flow))
        return NULL;
    for (struct colo_rec *other = list->head; other && looks < c->config.reorder_frames; other = other->flow_link.next) {
        if (other->matched)
            continue;
        if (is_tolerable(c, flow, other, rec)) {
            bool is_primary = rec->side == COLO_PRIMARY;

            compare_tolerantly(c, flow, is_primary ? rec : other, is_primary ? other : rec, true);
            return other;
        }
        looks++;
    }
    return NULL;
}

/* ---------------------------------------------- flows that are overtaken */

static void watch(colo_comparator *c, struct colo_flow *flow)
{
    bool overtaken = !flow->diverged && flow->p.head && !flow->p.head->matched && (flow->s.head || flow->u.dg.matched);

    if (!overtaken)
        colo_overtaken_remove(&c->overtaken, flow);
    else if (!flow->overtaken_since)
        colo_overtaken_add(&c->overtaken, flow, c->now);
}

void colo_datagram_drop_secondary(colo_comparator *c, struct colo_flow *flow)
{
    struct colo_rec *rec;

    while ((rec = flow->s.head)) {
        colo_flow_list_remove(&flow->s, rec);
        colo_held_remove(c, rec);
        colo_output_discard(c, rec, COLO_REASON_DIVERGED);
    }
    colo_overtaken_remove(&c->overtaken, flow);
}

static int64_t first_difference(colo_comparator *c, const struct colo_flow *flow, const struct colo_rec *a,
                                const struct colo_rec *b)
{
    uint32_t n = a->body_len < b->body_len ? a->body_len : b->body_len;
    uint32_t hole = a->hole < n ? a->hole : n, i = 0;

    if (colo_flow_tolerance(c, flow))
        return compare_tolerantly(c, flow, a, b, false);
    while (i < n && (a->data[a->body + i] == b->data[b->body + i] || (i >= hole && i < hole + 2)))
        i++;
    return i;
}

void colo_datagram_expire(colo_comparator *c)
{
    struct colo_flow *flow;

    while ((flow = c->overtaken.oldest) && c->now - flow->overtaken_since >= c->config.reorder_window) {
        const struct colo_rec *p = flow->p.head, *s = flow->s.head;

        colo_overtaken_remove(&c->overtaken, flow);
        colo_flow_diverged(c, flow, COLO_CAUSE_DATAGRAM, p, s, s ? first_difference(c, flow, p, s) : 0);
    }
}

/* ----------------------------------------------------------------- arrival */

static void release_front(colo_comparator *c, struct colo_flow *flow)
{
    struct colo_rec *rec;
    bool moved = false;

    while ((rec = flow->p.head) && rec->matched) {
        colo_flow_list_remove(&flow->p, rec);
        colo_held_remove(c, rec);
        flow->u.dg.matched--;
        colo_output_release(c, rec, COLO_REASON_MATCHED);
        moved = true;
    }
    if (moved)
        colo_overtaken_remove(&c->overtaken, flow); /* a new first frame gets a window of its own */
    watch(c, flow);
}

static void set_matched(colo_comparator *c, struct colo_flow *flow, struct colo_rec *p)
{
    p->matched = 1;
    flow->u.dg.matched++;
    c->n.compared_bytes += p->body_len;
}

void colo_datagram_primary(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec)
{
    struct colo_rec *equal;

    digest(c, rec);
    (void)colo_flow_is_full(c, flow, rec); /* asks for a checkpoint; the frame is kept */
    colo_held_add(c, rec);
    colo_flow_list_push(&flow->p, rec);
    equal = find_equal(c, &flow->s, rec);
    if (!equal)
        equal = find_tolerable(c, flow, &flow->s, rec);
    if (equal) {
        set_matched(c, flow, rec);
        colo_flow_list_remove(&flow->s, equal);
        colo_held_remove(c, equal);
        colo_output_discard(c, equal, COLO_REASON_MATCHED);
    }
    release_front(c, flow);
}

void colo_datagram_secondary(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec)
{
    struct colo_rec *equal;

    if (flow->diverged) {
        colo_output_discard(c, rec, COLO_REASON_DIVERGED);
        return;
    }
    digest(c, rec);
    equal = find_equal(c, &flow->p, rec);
    if (!equal)
        equal = find_tolerable(c, flow, &flow->p, rec);
    if (equal) {
        set_matched(c, flow, equal);
        colo_output_discard(c, rec, COLO_REASON_MATCHED);
    } else if (colo_flow_is_full(c, flow, rec)) {
        colo_output_discard(c, rec, COLO_REASON_DIVERGED);
    } else {
        colo_flow_list_push(&flow->s, rec);
        colo_held_add(c, rec);
    }
    release_front(c, flow);
}
