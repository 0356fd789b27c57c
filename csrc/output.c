/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Records on their way out wait in the list of actions. Frames of our own are copied into buffers: such a buffer is
 * `ready` until its action is fetched, then `retired` until the caller's next call, then free.
 */
#include <stdlib.h>
#include <string.h>

#include "core.h"

struct colo_emit {
    struct colo_emit *next;
    uint8_t data[]; /* COLO_DEBT_BYTES at most */
};

void colo_output_retire_group(colo_comparator *c, struct colo_group *group)
{
    group->next_retired = c->groups_retired; /* records of it may still be looked at in this call */
    c->groups_retired = group;
}

/* A datagram has left: with the last of its group's the frames leave. */
static void leave_group(colo_comparator *c, struct colo_group *group, uint8_t reason,
                        void (*leave)(colo_comparator *, struct colo_rec *, uint8_t))
{
    struct colo_rec *frame;

    if (++group->left < group->datagrams_count)
        return;
    while ((frame = group->frames.head)) {
        colo_flow_list_remove(&group->frames, frame);
        leave(c, frame, reason);
    }
    colo_output_retire_group(c, group);
}

void colo_output_prepare(struct colo_rec *rec, uint8_t side, const struct colo_frame *frame)
{
    rec->group = NULL;
    rec->data = frame->data;
    rec->len = frame->len;
    rec->vnet_len = (uint8_t)frame->vnet_len;
    rec->nic = frame->nic;
    rec->cookie = frame->cookie;
    rec->side = side;
    rec->ack = 0;
    rec->ack_at = rec->csum = 0;
}

/* How long a frame was held. Those that leave in the call that they came in are left out: colo_output_count_young. */
static void count_age(colo_comparator *c, uint64_t age, uint8_t reason)
{
    if (reason > COLO_REASON_COMMITTED)
        return;
    c->n.release_ages[reason][63 - __builtin_clzll(age | 1)]++;
    c->n.release_age_sum[reason] += age;
}

void colo_output_count_young(struct colo_counters *n)
{
    for (int reason = 0; reason <= COLO_REASON_COMMITTED; reason++) {
        n->release_ages[reason][0] = n->released[reason];
        for (int i = 1; i < 64; i++)
            n->release_ages[reason][0] -= n->release_ages[reason][i];
    }
}

void colo_output_release(colo_comparator *c, struct colo_rec *rec, uint8_t reason)
{
    if (rec->group) {
        leave_group(c, rec->group, reason, colo_output_release);
        return;
    }
    rec->kind = COLO_RELEASE;
    rec->reason = reason;
    c->n.released[reason]++;
    c->n.released_bytes += rec->len;
    if (c->now != rec->time) /* most frames leave in the call that they came in */
        count_age(c, (uint64_t)(c->now - rec->time), reason);
    colo_list_push(&c->out, rec);
}

void colo_output_discard(colo_comparator *c, struct colo_rec *rec, uint8_t reason)
{
    if (rec->group) {
        leave_group(c, rec->group, reason, colo_output_discard);
        return;
    }
    rec->kind = COLO_DISCARD;
    rec->reason = reason;
    c->n.discarded[reason]++;
    colo_list_push(&c->out, rec);
}

bool colo_output_emit(colo_comparator *c, const uint8_t *data, uint32_t len, uint8_t vnet_len, uint8_t nic,
                      uint8_t reason)
{
    struct colo_emit *emit = malloc(sizeof *emit + len);
    struct colo_rec *rec = emit ? colo_pool_get(c->pool) : NULL;

    if (!rec) {
        free(emit);
        return false;
    }
    memcpy(emit->data, data, len);
    emit->next = c->emit_ready;
    c->emit_ready = emit;
    rec->kind = COLO_EMIT;
    rec->reason = reason;
    rec->data = emit->data;
    rec->len = len;
    rec->vnet_len = vnet_len;
    rec->nic = nic;
    colo_list_push(&c->out, rec);
    return true;
}

size_t colo_output_fetch(colo_comparator *c, struct colo_action *out, size_t cap)
{
    size_t n;

    for (n = 0; n < cap && c->out.head; n++) {
        struct colo_rec *rec = colo_list_pop(&c->out);

        out[n] = (struct colo_action){
            .kind = rec->kind,
            .reason = rec->reason,
            .side = rec->side,
            .vnet_len = rec->vnet_len,
            .ack_at = rec->ack_at,
            .csum_at = rec->ack_at ? (uint16_t)(rec->ack_at + 8) : 0, /* TCP: checksum at 16, ACK number at 8 */
            .ack = rec->ack,
            .csum = rec->csum,
            .nic = rec->nic,
            .cookie = rec->cookie,
            .data = rec->data,
            .len = rec->len,
        };
        colo_pool_put(c->pool, rec);
    }
    if (!c->out.head && c->emit_ready) { /* all that were ready have been fetched */
        struct colo_emit *last = c->emit_ready;

        while (last->next)
            last = last->next;
        last->next = c->emit_retired;
        c->emit_retired = c->emit_ready;
        c->emit_ready = NULL;
    }
    return n;
}

static void free_all(struct colo_emit **list)
{
    while (*list) {
        struct colo_emit *emit = *list;

        *list = emit->next;
        free(emit);
    }
}

void colo_output_retire(colo_comparator *c)
{
    free_all(&c->emit_retired);
    while (c->groups_retired) {
        struct colo_group *group = c->groups_retired;

        c->groups_retired = group->next_retired;
        colo_group_destroy(group);
    }
}

void colo_output_destroy(colo_comparator *c)
{
    colo_output_retire(c);
    free_all(&c->emit_ready);
}
