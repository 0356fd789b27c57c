/* SPDX-License-Identifier: Apache-2.0 */
/* A frame's way by mode, policy and class; time. core.h has the theory of operation. */
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "quick.h"

enum { EMIT_SLACK = 4096 }; /* records for frames of our own, beyond max_frames */

static const int64_t NEVER = INT64_MAX;

void colo_config_default(struct colo_config *config)
{
    *config = (struct colo_config){
        .max_flows = 131072,
        .max_frames = 131072,
        .max_bytes = (uint64_t)256 << 20,
        .max_flow_frames = 16384,
        .max_flow_bytes = (uint64_t)32 << 20,
        .max_fragments = 8192,
        .reorder_frames = 64,
        .compare_timeout = (int64_t)3000 * 1000000,
        .reorder_window = (int64_t)20 * 1000000,
        .gap_window = (int64_t)50 * 1000000,
        .pass_classes = 1u << COLO_CLASS_ARP | 1u << COLO_CLASS_ND | 1u << COLO_CLASS_DHCP |
                        1u << COLO_CLASS_MULTICAST | 1u << COLO_CLASS_LINK,
    };
}

static bool makes_sense(const struct colo_config *config)
{
    return config->max_flows > 0 && config->max_flows <= 1u << 24 && config->max_frames >= 2 &&
           config->max_frames <= 1u << 28 && config->max_bytes >= 2 && config->max_flow_frames > 0 &&
           config->max_flow_bytes > 0 && config->max_fragments > 0 && config->reorder_frames > 0 &&
           config->compare_timeout > 0 && config->reorder_window > 0 && config->gap_window > 0 &&
           colo_policies_are_sane(config->rules, config->rules_count) &&
           colo_tolerances_are_sane(config->tolerances, config->tolerances_count);
}

colo_comparator *colo_comparator_create(const struct colo_config *config)
{
    colo_comparator *c;

    if (!config || !makes_sense(config))
        return NULL;
    c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->config = *config;
    c->mode = c->mode_before = COLO_MODE_ALONE;
    c->table = colo_table_create(config->max_flows, config->hash_seed);
    c->evictions = c->table ? colo_table_evictions(c->table) : NULL;
    c->pool = colo_pool_create(config->max_frames + EMIT_SLACK);
    c->fragments = colo_fragments_create(config->max_fragments, config->hash_seed);
    if (config->rules_count)
        c->policies = colo_policies_create(config->rules, config->rules_count, config->hash_seed);
    if (config->tolerances_count)
        c->tolerances = colo_tolerances_create(config->tolerances, config->tolerances_count, config->max_flows);
    c->config.rules = NULL; /* the caller's, as the next */
    c->config.tolerances = NULL;
    for (int i = 0; i < COLO_MAX_TOLERANCES; i++)
        c->tolerated_at[i] = INT64_MIN;
    if (!c->table || !c->pool || !c->fragments || (config->rules_count && !c->policies) ||
        (config->tolerances_count && !c->tolerances)) {
        colo_comparator_destroy(c);
        return NULL;
    }
    return c;
}

/* Datagrams that are held have memory of their own. */
static void retire_held_groups(colo_comparator *c)
{
    for (int side = 0; side < 2; side++)
        for (struct colo_rec *rec = c->held[side].head; rec; rec = rec->link.next)
            if (rec->group && !rec->group->dissolved) {
                rec->group->dissolved = 1;
                colo_output_retire_group(c, rec->group);
            }
}

void colo_comparator_destroy(colo_comparator *c)
{
    if (!c)
        return;
    while (c->debts)
        colo_ack_drop_debt(c, c->debts->flow);
    while (c->debts_free) {
        struct colo_debt *debt = c->debts_free;

        c->debts_free = debt->next;
        free(debt);
    }
    retire_held_groups(c);
    colo_output_destroy(c);
    colo_fragments_destroy(c->fragments);
    colo_pool_destroy(c->pool);
    colo_table_destroy(c->table);
    colo_policies_destroy(c->policies);
    colo_tolerances_destroy(c->tolerances);
    free(c);
}

/* ------------------------------------------------------------ held frames */

static void count_in(colo_comparator *c, const struct colo_rec *rec)
{
    uint64_t frames, bytes;

    c->n.held_frames[rec->side] += colo_rec_frames(rec);
    c->n.held_bytes[rec->side] += colo_rec_bytes(rec);
    frames = c->n.held_frames[0] + c->n.held_frames[1];
    bytes = c->n.held_bytes[0] + c->n.held_bytes[1];
    if (frames > c->n.held_frames_peak)
        c->n.held_frames_peak = frames;
    if (bytes > c->n.held_bytes_peak)
        c->n.held_bytes_peak = bytes;
}

void colo_held_uncount(colo_comparator *c, const struct colo_rec *rec)
{
    c->n.held_frames[rec->side] -= colo_rec_frames(rec);
    c->n.held_bytes[rec->side] -= colo_rec_bytes(rec);
}

void colo_held_add(colo_comparator *c, struct colo_rec *rec)
{
    colo_list_push(&c->held[rec->side], rec);
    if (rec->flow) {
        rec->flow->held[rec->side] += colo_rec_frames(rec);
        rec->flow->held_bytes[rec->side] += colo_rec_bytes(rec);
    }
    count_in(c, rec);
}

void colo_flow_uncount(const struct colo_rec *rec)
{
    if (rec->flow) {
        rec->flow->held[rec->side] -= colo_rec_frames(rec);
        rec->flow->held_bytes[rec->side] -= colo_rec_bytes(rec);
    }
}

void colo_held_remove(colo_comparator *c, struct colo_rec *rec)
{
    colo_list_remove(&c->held[rec->side], rec);
    colo_flow_uncount(rec);
    colo_held_uncount(c, rec);
}

bool colo_flow_is_full(colo_comparator *c, const struct colo_flow *flow, const struct colo_rec *rec)
{
    if (flow->held[rec->side] >= c->config.max_flow_frames)
        colo_limit_hit(c, COLO_CAUSE_LIMIT_FLOW_FRAMES, flow);
    else if (flow->held[rec->side] && flow->held_bytes[rec->side] + colo_rec_bytes(rec) > c->config.max_flow_bytes)
        colo_limit_hit(c, COLO_CAUSE_LIMIT_FLOW_BYTES, flow);
    else
        return false;
    return true;
}

void colo_flow_refresh(colo_comparator *c, struct colo_flow *flow)
{
    if (flow->epoch == c->epoch)
        return;
    flow->epoch = c->epoch;
    flow->diverged = 0;
    flow->p = flow->s = (struct colo_list){NULL, NULL};
    if (flow->id.cls == COLO_CLASS_TCP)
        colo_tcp_refresh(c, flow);
    else
        memset(&flow->u.dg, 0, sizeof flow->u.dg);
}

struct colo_tolerance *colo_flow_tolerance(const colo_comparator *c, const struct colo_flow *flow)
{
    return c->tolerances ? colo_tolerances_of(c->tolerances, flow->index) : NULL;
}

/* ---------------------------------------------------------------- judging */

void colo_rec_take_over(struct colo_rec *rec, const struct colo_packet *packet)
{
    rec->body = packet->body;
    rec->body_len = packet->body_len;
    rec->hole = packet->hole;
    rec->tag = packet->tag;
    rec->seq = packet->seq;
    rec->ack = packet->ack;
    rec->l3 = (uint16_t)packet->l3;
    rec->l4 = (uint16_t)packet->l4;
    rec->csum = packet->csum;
    rec->csum_partial = packet->csum_partial;
    rec->syn = packet->syn;
    rec->tcp_flags = packet->tcp_flags;
    rec->tcp_auth = packet->tcp_auth;
    rec->matched = rec->later = rec->own_numbers = 0; /* a verdict of an epoch that has ended is none: R3 */
}

/* The flow in the present epoch; NULL: there is none, and none can be made or `make` is false. */
struct colo_flow *colo_flow_of(colo_comparator *c, const struct colo_flow_id *id, uint64_t hash, bool make)
{
    struct colo_flow *flow = colo_table_find_hashed(c->table, id, hash);

    if (flow) {
        colo_flow_refresh(c, flow);
        return flow;
    }
    if (!make)
        return NULL;
    /* Once a frame is held without a flow, no new flow may begin: its frames could overtake that one (R4). */
    flow = c->untracked ? NULL : colo_table_add(c->table, id);
    if (!flow) {
        colo_limit_hit(c, COLO_CAUSE_LIMIT_FLOWS, NULL);
        return NULL;
    }
    flow->epoch = c->epoch;
    if (c->tolerances)
        colo_tolerances_begin(c->tolerances, flow->index, id);
    c->n.flows_made++;
    return flow;
}

/* Fragments have no ports to go by: rules are asked about their datagram, once it is whole. */
uint8_t colo_policy_of(colo_comparator *c, const struct colo_flow_id *id)
{
    uint8_t by_class = c->config.pass_classes & 1u << id->cls ? COLO_POLICY_PASS : COLO_POLICY_COMPARE;

    if (!c->policies || id->cls == COLO_CLASS_FRAGMENT)
        return by_class;
    return colo_policies_find(c->policies, id, by_class);
}

/*
 * PROTECTED: a primary frame that no output of the secondary's can cover. It needs no flow: all frames of its flow wait
 * like it, and leave together.
 */
static void hold_for_commit(colo_comparator *c, struct colo_rec *rec, const struct colo_flow_id *id)
{
    rec->judged = 1;
    colo_held_add(c, rec);
    colo_policy_wants_checkpoint(c, id);
}

/* PROTECTED: decides what becomes of a frame. `flow`: its flow, which is in the present epoch; NULL: to be found. */
static void judge(colo_comparator *c, struct colo_rec *rec, const struct colo_packet *packet, uint64_t hash,
                  struct colo_flow *flow)
{
    if (!flow)
        flow = colo_flow_of(c, &packet->id, hash, true);
    c->judged = flow;
    if (flow && packet->id.cls == COLO_CLASS_TCP &&
        (rec->side == COLO_PRIMARY ? colo_quick_primary : colo_quick_secondary)(c, flow, rec, packet))
        return;
    colo_rec_take_over(rec, packet);
    rec->judged = 1;
    rec->flow = flow;
    if (!flow) {
        if (rec->side == COLO_SECONDARY) {
            colo_output_discard(c, rec, COLO_REASON_DIVERGED);
        } else { /* waits for the checkpoint that has been asked for */
            c->untracked = 1;
            colo_held_add(c, rec);
        }
    } else if (packet->id.cls == COLO_CLASS_TCP) {
        (rec->side == COLO_PRIMARY ? colo_tcp_primary : colo_tcp_secondary)(c, flow, rec);
    } else if (packet->segment_size) {
        colo_segment_enter(c, flow, rec, packet->segment_size);
    } else {
        (rec->side == COLO_PRIMARY ? colo_datagram_primary : colo_datagram_secondary)(c, flow, rec);
    }
}

void colo_enter_parsed(colo_comparator *c, struct colo_rec *rec, const struct colo_packet *packet, uint64_t hash,
                       struct colo_flow *flow)
{
    uint8_t policy = colo_policy_of(c, &packet->id);

    if (policy == COLO_POLICY_PASS) {
        if (rec->side == COLO_PRIMARY) {
            c->n.class_in[packet->id.cls]++;
            colo_output_release(c, rec, COLO_REASON_PASSED);
        } else {
            colo_output_discard(c, rec, COLO_REASON_PASSED);
        }
    } else if (policy == COLO_POLICY_DROP_SECONDARY && rec->side == COLO_SECONDARY) {
        colo_output_discard(c, rec, COLO_REASON_IGNORED);
    } else if (c->mode == COLO_MODE_STOPPED) {
        colo_list_push(&c->deferred, rec);
        count_in(c, rec);
    } else {
        if (rec->side == COLO_PRIMARY)
            c->n.class_in[packet->id.cls]++;
        if (packet->id.cls == COLO_CLASS_FRAGMENT && !rec->group)
            colo_fragment_enter(c, rec, packet);
        else if (policy == COLO_POLICY_DROP_SECONDARY)
            hold_for_commit(c, rec, &packet->id);
        else
            judge(c, rec, packet, hash, flow);
    }
}

void colo_enter_datagram(colo_comparator *c, struct colo_rec *rec)
{
    struct colo_packet packet;

    colo_rec_parse(rec, &packet);
    packet.tcp_auth = 1; /* its ACK number lies in one of several frames: never lowered */
    colo_enter_parsed(c, rec, &packet, colo_table_hash(c->table, &packet.id), NULL);
}

void colo_enter_alone(colo_comparator *c, struct colo_rec *rec)
{
    if (rec->side == COLO_PRIMARY)
        colo_output_release(c, rec, COLO_REASON_ALONE);
    else
        colo_output_discard(c, rec, COLO_REASON_ALONE);
}

void colo_enter(colo_comparator *c, struct colo_rec *rec)
{
    struct colo_packet packet;

    if (c->mode == COLO_MODE_ALONE) {
        colo_enter_alone(c, rec);
        return;
    }
    colo_rec_parse(rec, &packet);
    colo_enter_parsed(c, rec, &packet, colo_table_hash(c->table, &packet.id), NULL);
}

/* Every call that may change something begins with this. */
void colo_begin_call(colo_comparator *c, int64_t now)
{
    c->now = now;
    colo_output_retire(c);
}

size_t colo_comparator_actions(colo_comparator *c, struct colo_action *out, size_t cap)
{
    return colo_output_fetch(c, out, cap);
}

size_t colo_comparator_events(colo_comparator *c, struct colo_event *out, size_t cap)
{
    return colo_events_fetch(c, out, cap);
}

/* ------------------------------------------------------------------- time */

static int64_t earlier(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t plus(int64_t time, int64_t span)
{
    return time > NEVER - span ? NEVER : time + span;
}

int64_t colo_comparator_deadline(const colo_comparator *c)
{
    int64_t next = NEVER;

    if (c->mode != COLO_MODE_PROTECTED)
        return NEVER;
    if (c->overtaken.oldest)
        next = plus(c->overtaken.oldest->overtaken_since, c->config.reorder_window);
    if (c->wanted) /* the checkpoint that is asked for answers all time-outs */
        return next;
    if (c->gaps.oldest)
        next = earlier(next, plus(c->gaps.oldest->overtaken_since, c->config.gap_window));
    for (int side = 0; side < 2; side++)
        if (c->held[side].head)
            next = earlier(next, plus(c->held[side].head->time, c->config.compare_timeout));
    if (c->debts)
        next = earlier(next, plus(c->debts->since, c->config.compare_timeout));
    return next;
}

void colo_comparator_tick(colo_comparator *c, int64_t now)
{
    static const uint8_t causes[2] = {COLO_CAUSE_PRIMARY_TIMEOUT, COLO_CAUSE_SECONDARY_TIMEOUT};

    colo_begin_call(c, now);
    if (c->mode != COLO_MODE_PROTECTED)
        return;
    colo_datagram_expire(c);
    colo_fragment_expire(c);
    colo_gap_expire(c);
    for (int side = 0; side < 2; side++) {
        const struct colo_rec *rec = c->held[side].head;

        if (!c->wanted && rec && now - rec->time >= c->config.compare_timeout)
            colo_flow_timed_out(c, rec->flow, causes[side], rec, rec->time);
    }
    if (!c->wanted && c->debts && now - c->debts->since >= c->config.compare_timeout)
        colo_flow_timed_out(c, c->debts->flow, COLO_CAUSE_ACK_TIMEOUT, NULL, c->debts->since);
}

void colo_comparator_counters(const colo_comparator *c, struct colo_counters *out)
{
    *out = c->n;
    out->flows = colo_table_count(c->table);
    for (int side = 0; side < 2; side++)
        out->fragments_waiting[side] = colo_fragments_waiting(c->fragments, side);
    out->flows_evicted = *c->evictions;
    out->epoch = c->epoch;
    out->mode = c->mode;
    colo_output_count_young(out);
}

uint64_t colo_comparator_held_bytes(const colo_comparator *c, int side)
{
    return c->n.held_bytes[side];
}
