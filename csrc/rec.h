/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rec.h - the comparator's record of one frame that it holds, and the pool that records come from.
 *
 * A record is in up to two lists at a time: one of its flow (`flow_link`) and one of the comparator (`link`: all
 * held frames of its side by age, or the deferred ones, or the actions on their way out). The frame's bytes are the
 * caller's (see colo_frame).
 */
#ifndef COLO_REC_H
#define COLO_REC_H

#include "coloproxy.h"
#include "parse.h"

struct colo_flow;
struct colo_group;
struct colo_rec;

struct colo_link {
    struct colo_rec *next;
    struct colo_rec *prev;
};

struct colo_list {
    struct colo_rec *head;
    struct colo_rec *tail;
};

struct colo_rec {
    struct colo_link link;
    struct colo_link flow_link;
    struct colo_flow *flow;   /* NULL: not (yet) in a flow */
    struct colo_group *group; /* a datagram that is not one frame: group.h. Else NULL */
    const uint8_t *data;
    uint64_t cookie;
    int64_t time;             /* when it was read */
    uint64_t digest;          /* datagrams: hash of the body */
    int64_t off;              /* TCP: stream offset of its first position */
    uint32_t len;
    uint32_t body;            /* see colo_packet */
    uint32_t body_len;
    uint32_t hole;
    uint32_t tag;
    uint32_t seq;
    uint32_t ack;             /* on its way out: the lowered number */
    uint16_t l3;
    uint16_t l4;
    uint16_t csum;            /* on its way out: the checksum that goes with it */
    uint16_t ack_at;          /* on its way out: see colo_action */
    struct colo_syn_options syn;
    uint8_t vnet_len;
    uint8_t nic;
    uint8_t side;
    uint8_t tcp_flags;
    uint8_t tcp_auth;
    uint8_t csum_partial;
    uint8_t judged;           /* by the rules of an epoch; deferred frames are not yet */
    uint8_t matched;          /* datagram: found on the other side */
    uint8_t later;            /* primary TCP: of a connection that follows the flow's present one; not yet placed */
    uint8_t own_numbers;      /* secondary TCP: placed by its own sequence numbers, not the primary's */
    uint8_t kind;             /* on its way out: enum colo_action_kind */
    uint8_t reason;           /* on its way out: enum colo_reason */
};

/* Its frame, parsed. */
static inline void colo_rec_parse(const struct colo_rec *rec, struct colo_packet *out)
{
    colo_parse(rec->data, rec->len, rec->vnet_len, out);
    out->id.nic = rec->nic;
}

/* The lists of the comparator: by `link`. */
static inline void colo_list_push(struct colo_list *list, struct colo_rec *rec)
{
    rec->link = (struct colo_link){.prev = list->tail};
    *(list->tail ? &list->tail->link.next : &list->head) = rec;
    list->tail = rec;
}

static inline void colo_list_remove(struct colo_list *list, struct colo_rec *rec)
{
    *(rec->link.prev ? &rec->link.prev->link.next : &list->head) = rec->link.next;
    *(rec->link.next ? &rec->link.next->link.prev : &list->tail) = rec->link.prev;
    rec->link = (struct colo_link){NULL, NULL};
}

static inline struct colo_rec *colo_list_pop(struct colo_list *list)
{
    struct colo_rec *rec = list->head;

    if (rec)
        colo_list_remove(list, rec);
    return rec;
}

/* The lists of a flow: by `flow_link`. Puts `rec` behind `after`, or first where `after` is NULL. */
static inline void colo_flow_list_insert(struct colo_list *list, struct colo_rec *after, struct colo_rec *rec)
{
    struct colo_rec *next = after ? after->flow_link.next : list->head;

    rec->flow_link = (struct colo_link){.next = next, .prev = after};
    *(after ? &after->flow_link.next : &list->head) = rec;
    *(next ? &next->flow_link.prev : &list->tail) = rec;
}

static inline void colo_flow_list_push(struct colo_list *list, struct colo_rec *rec)
{
    colo_flow_list_insert(list, list->tail, rec);
}

static inline void colo_flow_list_remove(struct colo_list *list, struct colo_rec *rec)
{
    *(rec->flow_link.prev ? &rec->flow_link.prev->flow_link.next : &list->head) = rec->flow_link.next;
    *(rec->flow_link.next ? &rec->flow_link.next->flow_link.prev : &list->tail) = rec->flow_link.prev;
    rec->flow_link = (struct colo_link){NULL, NULL};
}

struct colo_pool;

/* A pool of at most `limit` records, allocated in blocks as they are needed. */
struct colo_pool *colo_pool_create(uint32_t limit);
void colo_pool_destroy(struct colo_pool *pool);
/* A zeroed record, or NULL: the limit is reached or memory is out. */
struct colo_rec *colo_pool_get(struct colo_pool *pool);
/* The same with whatever it had in it before: for one that is only to be put out, see colo_output_prepare. */
struct colo_rec *colo_pool_get_raw(struct colo_pool *pool);
void colo_pool_put(struct colo_pool *pool, struct colo_rec *rec);

#endif
