/* SPDX-License-Identifier: Apache-2.0 */
/*
 * policy.h - what the operator's rules say of a flow: compare, pass, or drop the secondary's output of it.
 *
 * Rules are copied at creation and never change, and read a flow's identity only (match.h): the answer for a flow is
 * the same for as long as the comparator lives.
 */
#ifndef COLO_POLICY_H
#define COLO_POLICY_H

#include "coloproxy.h"

struct colo_policies;

/* Every rule makes sense and there are no more than COLO_MAX_RULES. */
bool colo_policies_are_sane(const struct colo_rule *rules, size_t count);
/* NULL: no memory. */
struct colo_policies *colo_policies_create(const struct colo_rule *rules, size_t count, uint64_t seed);
void colo_policies_destroy(struct colo_policies *p);
/* The action of the first rule that fits, `otherwise` where none does. */
uint8_t colo_policies_find(struct colo_policies *p, const struct colo_flow_id *id, uint8_t otherwise);

#endif
