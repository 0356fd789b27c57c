/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tolerance.h - bytes that may differ by the operator's word, such as the value of an HTTP Date: header.
 *
 * Theory of operation. A rule's text `after`, said by both sides at the same offset, opens a window behind it. The
 * window ends after `length` bytes, or earlier before the first byte that, on either side, is `until` or no printable
 * ASCII. Inside the window both sides may say different bytes; everywhere else, and of those that end it too, they must
 * say the same. So no window can hide a difference in length, and nothing binary (a TLS random) can be tolerated.
 *
 * All rules' texts make one automaton (Aho and Corasick, 1975): a byte costs one look into a table, however many rules
 * there are, and all that a flow must remember, wherever a frame is cut, is its node and what is left of a window. That
 * state holds for one offset of the stream. Bytes that both sides said move it on; so do the primary's own that a
 * commit released. When it does not stand where comparing goes on (a flow met in mid-stream, a range that was committed
 * unseen), it starts anew: a text must be seen whole.
 *
 * States are kept beside the flow table, by a flow's index in it, so that flows cost nothing where there are no rules.
 */
#ifndef COLO_TOLERANCE_H
#define COLO_TOLERANCE_H

#include "rec.h"

struct colo_tolerances;

/* Where one flow's stream stands. */
struct colo_tolerance {
    uint32_t rules;   /* bit 1 << index of those that the flow fits; 0: all bytes must be equal */
    uint32_t base;    /* sequence number of offset 0: tells connections apart */
    int64_t at;       /* the offset for which the rest holds */
    uint16_t node;
    uint16_t left;    /* of the window that is open, 0: none is */
    uint8_t rule;     /* that window's */
    uint8_t told;     /* a byte differed in it, which was counted */
};

/* A window in which a byte differed: told to the caller, once a window. */
typedef void colo_tolerance_tell(void *context, uint8_t rule, uint32_t index);

/* Every rule makes sense and there are no more than COLO_MAX_TOLERANCES. */
bool colo_tolerances_are_sane(const struct colo_tolerance_rule *rules, size_t count);
/* Room for the states of max_flows flows. NULL: no memory. */
struct colo_tolerances *colo_tolerances_create(const struct colo_tolerance_rule *rules, size_t count, uint32_t max_flows);
void colo_tolerances_destroy(struct colo_tolerances *t);
/* The flow at `index` of the table is a new one. Without memory nothing is tolerated in it. */
void colo_tolerances_begin(struct colo_tolerances *t, uint32_t index, const struct colo_flow_id *id);
/* The state of the flow at `index`, NULL where no rule fits it. */
struct colo_tolerance *colo_tolerances_of(const struct colo_tolerances *t, uint32_t index);

/* The state is to stand at offset `at` of the connection whose offset 0 is sequence number `base`; anew if it doesn't. */
void colo_tolerance_seek(struct colo_tolerance *state, uint32_t base, int64_t at);
/*
 * Compares n bytes of both sides from where the state stands, and moves it on. Returns how many are equal or tolerated;
 * less than n: the byte at that index is a difference. `tell` may be NULL.
 */
uint32_t colo_tolerance_compare(const struct colo_tolerances *t, struct colo_tolerance *state, const uint8_t *p,
                                const uint8_t *s, uint32_t n, colo_tolerance_tell *tell, void *context);

#endif
