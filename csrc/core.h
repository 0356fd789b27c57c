/* SPDX-License-Identifier: Apache-2.0 */
/*
 * core.h - the comparator's own state, and what its modules offer each other. Private to csrc/.
 *
 *   feed.c        frames come in, of one side or of both in step; limits
 *   comparator.c  a frame's way by mode, policy and class; time
 *   epoch.c       stop, commit, abort, alone: what a checkpoint covers leaves
 *   policy.c      the operator's rules: which flows are compared at all
 *   tolerance.c   ... and which of their bytes may differ
 *   tcp.c         one TCP frame arrives: generation of the connection, stream offsets, queues
 *   stream.c      compares the two streams of a flow
 *   quick.c       all of that for the next plain frame of a calm connection, which nearly every frame is
 *   ahead.c       frames are parsed, and their flows fetched into the cache, some frames ahead
 *   ack.c         the ACK rule: which held TCP frame may leave, with which ACK number
 *   gap.c         what the secondary has left out of its stream
 *   datagram.c    everything that is not TCP: a bag per flow
 *   overtaken.c   flows whose time runs because the secondary has gone on, by age
 *   fragment.c    fragments, until their datagram is whole
 *   segment.c     UDP super-frames, as the datagrams that they are
 *   group.c       a datagram of several frames, a frame of several datagrams
 *   output.c      records on their way out: actions
 *   evidence.c    events: what differed, and the one wish for a checkpoint of an epoch
 *
 * Theory of operation. Every frame gets a record. A primary record is held, in the order of arrival, in its flow's
 * list `p` until it is covered, by a match or by a commit; a secondary one in `s` until it is used up. Both are in
 * the comparator's list of their side too, oldest first: its head is all that the time-out needs to look at. A record
 * that leaves moves to the list of actions and goes back to the pool when the caller has fetched it.
 *
 * A commit does not walk the flows. It raises the epoch; a flow that is met again finds its own epoch stale and
 * catches up then (colo_flow_refresh): the secondary is a copy of the primary, so all that the primary has sent
 * counts as matched, all that it has acknowledged as acknowledged by both.
 */
#ifndef COLO_CORE_H
#define COLO_CORE_H

#include "flow.h"
#include "fragment.h"
#include "group.h"
#include "overtaken.h"
#include "policy.h"
#include "segment.h"
#include "tolerance.h"

enum { COLO_EVENT_RING = 128 };

struct colo_emit; /* an emitted frame's bytes: output.c */

struct colo_comparator {
    struct colo_config config;
    struct colo_table *table;
    const uint64_t *evictions;    /* of the table */
    struct colo_policies *policies; /* NULL: no rules */
    struct colo_tolerances *tolerances; /* NULL: no rules */
    int64_t tolerated_at[COLO_MAX_TOLERANCES]; /* by rule: when a sample may be told again */
    struct colo_pool *pool;
    struct colo_fragments *fragments;
    struct colo_group *groups_retired; /* whose frames have left in this call */
    struct colo_list held[2];     /* by side, oldest first */
    struct colo_list deferred;    /* STOPPED: both sides, in order of arrival, unjudged */
    struct colo_list out;         /* actions */
    struct colo_emit *emit_ready; /* see output.c */
    struct colo_emit *emit_retired;
    struct colo_debt *debts;      /* oldest first */
    struct colo_debt *debts_tail;
    struct colo_debt *debts_free;
    uint32_t debts_count;
    struct colo_overtaken overtaken; /* datagram flows whose first frame was overtaken */
    struct colo_overtaken gaps;   /* TCP flows in which the secondary has left bytes out: gap.c */
    struct colo_flow *judged;     /* of the last frame of this call, if it was judged in one */
    uint64_t epoch;
    int64_t now;                  /* of the call in progress */
    uint8_t mode;                 /* enum colo_mode */
    uint8_t mode_before;          /* STOPPED: what abort goes back to */
    uint8_t wanted;               /* a checkpoint, in this epoch */
    uint8_t untracked;            /* primary frames are held without a flow, in this epoch */
    uint8_t want_pending;         /* `want` is still to be fetched */
    int64_t stopped_at;
    struct colo_event want;
    struct colo_event ring[COLO_EVENT_RING];
    uint32_t ring_first;
    uint32_t ring_count;
    uint32_t limits_told;         /* bit 1 << enum colo_cause, in this epoch */
    struct colo_counters n;
};

/* comparator.c: adds to, takes from the held list of the record's side and its flow's count. */
void colo_held_add(colo_comparator *c, struct colo_rec *rec);
void colo_held_remove(colo_comparator *c, struct colo_rec *rec);
/* The flow already holds all it may of that side (`rec` is not counted yet): says which limit. */
bool colo_flow_is_full(colo_comparator *c, const struct colo_flow *flow, const struct colo_rec *rec);
/* PROTECTED: a datagram that fragment.c has put together, in no list. */
void colo_enter_datagram(colo_comparator *c, struct colo_rec *rec);
/* What may differ in the flow's bytes; NULL: nothing. */
struct colo_tolerance *colo_flow_tolerance(const colo_comparator *c, const struct colo_flow *flow);
/* Brings a flow's state into the present epoch. */
void colo_flow_refresh(colo_comparator *c, struct colo_flow *flow);

/* comparator.c, for epoch.c. Every call that may change something begins with this. */
void colo_begin_call(colo_comparator *c, int64_t now);
/* A record in no list, by the mode. */
void colo_enter(colo_comparator *c, struct colo_rec *rec);
void colo_enter_alone(colo_comparator *c, struct colo_rec *rec);
/* PROTECTED or STOPPED. `hash` is its flow's; `flow`: its flow, which is in the present epoch; NULL: to be found. */
void colo_enter_parsed(colo_comparator *c, struct colo_rec *rec, const struct colo_packet *packet, uint64_t hash,
                       struct colo_flow *flow);
/* What the record needs of its parsed frame. */
void colo_rec_take_over(struct colo_rec *rec, const struct colo_packet *packet);
/*
 * The flow in the present epoch; NULL: there is none, and none can be made or `make` is false. `hash` is the id's, by
 * colo_table_hash.
 */
struct colo_flow *colo_flow_of(colo_comparator *c, const struct colo_flow_id *id, uint64_t hash, bool make);
/* What the operator's rules, or else the class, say of that flow: enum colo_policy. */
uint8_t colo_policy_of(colo_comparator *c, const struct colo_flow_id *id);
/* A record that was taken from its lists leaves the counts of its side, and of its flow. */
void colo_held_uncount(colo_comparator *c, const struct colo_rec *rec);
void colo_flow_uncount(const struct colo_rec *rec);

/* tcp.c: `rec` is new; the functions hold it, release it or discard it. */
void colo_tcp_primary(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec);
void colo_tcp_secondary(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec);
void colo_tcp_refresh(colo_comparator *c, struct colo_flow *flow);
/* A primary frame that was never placed leaves by a flush: the flow still has to know what the primary has sent. */
void colo_tcp_absorb(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec);
/* The flow has diverged or ended: what the secondary said of it is no longer needed. */
void colo_tcp_drop_secondary(colo_comparator *c, struct colo_flow *flow, uint8_t reason);

/* stream.c */
/* A primary frame that leaves by a commit: what it says was said, for the tolerances of what follows. */
void colo_stream_note_committed(colo_comparator *c, struct colo_flow *flow, const struct colo_rec *rec);
/* The end of a frame's range of the stream: SYN and FIN count one position each. */
int64_t colo_stream_end(const struct colo_rec *rec);
bool colo_stream_has_range(const struct colo_rec *rec);
/* `rec`, the flow's first_data, is about to leave. */
void colo_stream_next_data(struct colo_flow *flow, const struct colo_rec *rec);
bool colo_stream_is_matched(const struct colo_tcp *tcp, int64_t start, int64_t end);
/* Puts a placed secondary frame among the unmatched ones, or discards it where it says nothing new. */
void colo_stream_add_secondary(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec);
/* The held primary frame that covers `match`; NULL: there is none. */
struct colo_rec *colo_stream_covering(const struct colo_flow *flow);
/* Compares as far as both streams reach. */
void colo_stream_advance(colo_comparator *c, struct colo_flow *flow);
/*
 * `rec` is placed and in no list of its flow. Where it overlaps a held frame of its own side it must say the same there;
 * false: it doesn't, and the flow has diverged (which drops the secondary's held frames, not `rec`).
 */
bool colo_stream_agrees(colo_comparator *c, struct colo_flow *flow, const struct colo_rec *rec);
/* Tries to match a primary frame beyond a gap in the primary's stream; true if it is matched now. */
bool colo_stream_match_beyond(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec);

/* Notes the urgent mark of a placed frame, if it has one. */
void colo_stream_note_urgent(struct colo_tcp *tcp, const struct colo_rec *rec);
/*
 * A receiver's program reads the byte before the mark apart (RFC 6093), so the primary's mark must be one of the
 * secondary's, and new bytes that the secondary marked must be marked by the primary too.
 */
bool colo_stream_urgent_agrees(const struct colo_tcp *tcp, const struct colo_rec *rec);

/* ack.c */
void colo_ack_note(struct colo_flow *flow, int side, uint32_t ack);
/* Notes the client's timestamp that a secondary frame, whose TCP header is given, echoes. */
void colo_ack_note_echo(struct colo_flow *flow, const uint8_t *header);
/* A secondary frame without payload, in no list, whose ACK has been noted: tells the client what is missing there. */
void colo_ack_repeat(colo_comparator *c, struct colo_flow *flow, const struct colo_rec *rec);
/* Releases what may leave, in order, and pays ACKs that the client is still owed. */
void colo_ack_release(colo_comparator *c, struct colo_flow *flow);
/* A commit or the end of protection: the client is told all that the primary has acknowledged. */
void colo_ack_pay_all(colo_comparator *c, uint8_t reason);
/* A primary frame leaves unaltered by a commit or without a secondary: note what the client learns from it. */
void colo_ack_note_released(colo_comparator *c, struct colo_flow *flow, const struct colo_rec *rec);
void colo_ack_drop_debt(colo_comparator *c, struct colo_flow *flow);

/* part.c */
/*
 * The primary says again what lies behind its stream's end; `rec` is in no list, and agrees with what is held, which is
 * something: what both have said of it may go ahead of the held frame.
 */
void colo_part_repeat(colo_comparator *c, struct colo_flow *flow, const struct colo_rec *rec);

/* gap.c */
/* The flow is compared as far as it goes: a gap may have begun, or closed. */
void colo_gap_watch(colo_comparator *c, struct colo_flow *flow);
void colo_gap_forget(colo_comparator *c, struct colo_flow *flow);
/* A gap that has stood for the window asks for a checkpoint. */
void colo_gap_expire(colo_comparator *c);

/* datagram.c */
void colo_datagram_primary(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec);
void colo_datagram_secondary(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec);
/* Flows whose first frame has been overtaken for longer than the window. */
void colo_datagram_expire(colo_comparator *c);
void colo_datagram_drop_secondary(colo_comparator *c, struct colo_flow *flow);

/* output.c: sets all that releasing and discarding an unaltered frame looks at, in a record with anything in it. */
void colo_output_prepare(struct colo_rec *rec, uint8_t side, const struct colo_frame *frame);
/* A record that is in no list leaves; one with a group is gone with the caller's next call. */
void colo_output_release(colo_comparator *c, struct colo_rec *rec, uint8_t reason);
void colo_output_discard(colo_comparator *c, struct colo_rec *rec, uint8_t reason);
/* Queues a copy of a frame of our own; false: no memory. */
bool colo_output_emit(colo_comparator *c, const uint8_t *data, uint32_t len, uint8_t vnet_len, uint8_t nic,
                      uint8_t reason);
size_t colo_output_fetch(colo_comparator *c, struct colo_action *out, size_t cap);
/* The group's frames have gone, or go, by another way than their datagrams. */
void colo_output_retire_group(colo_comparator *c, struct colo_group *group);
/* The bytes of emitted frames that have been fetched may go. */
void colo_output_retire(colo_comparator *c);
void colo_output_destroy(colo_comparator *c);
/* In a snapshot: bucket 0 of release_ages, which is not counted frame by frame. */
void colo_output_count_young(struct colo_counters *n);

/* evidence.c */
void colo_want_checkpoint(colo_comparator *c, uint8_t cause, const struct colo_event *because);
/* A primary frame of that flow may leave by a commit only. */
void colo_policy_wants_checkpoint(colo_comparator *c, const struct colo_flow_id *id);
/* A limit refuses something: counts, says so once an epoch, wants a checkpoint. */
void colo_limit_hit(colo_comparator *c, uint8_t cause, const struct colo_flow *flow);
/* The same before anything is refused, so without the count. */
void colo_limit_near(colo_comparator *c, uint8_t cause);
/* The flow differs: says so once an epoch, wants a checkpoint; the flow then waits for it. */
void colo_flow_diverged(colo_comparator *c, struct colo_flow *flow, uint8_t cause, const struct colo_rec *p,
                        const struct colo_rec *s, int64_t offset);
/* The bytes at `offset` differ, and `rule` tolerates it: counts, and tells a sample. */
void colo_flow_tolerated(colo_comparator *c, const struct colo_flow *flow, uint8_t rule, const struct colo_rec *p,
                         const struct colo_rec *s, int64_t offset);
/* The same as colo_tolerance_compare's callback; the context is the frames that say it, and where comparing began. */
struct colo_teller {
    colo_comparator *c;
    const struct colo_flow *flow;
    const struct colo_rec *p;
    const struct colo_rec *s;
    int64_t at;
};

void colo_tell_tolerated(void *context, uint8_t rule, uint32_t index);
/* A frame or ACK waited too long. Says so without giving the flow up. */
void colo_flow_timed_out(colo_comparator *c, struct colo_flow *flow, uint8_t cause, const struct colo_rec *rec,
                         int64_t since);
size_t colo_events_fetch(colo_comparator *c, struct colo_event *out, size_t cap);

#endif
