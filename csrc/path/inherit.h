/* SPDX-License-Identifier: Apache-2.0 */
/*
 * inherit.h - connections that a primary has inherited with its VM, and tells the secondary of. With the path's lock held.
 *
 * They go first of all in a session's stream, so no frame of theirs comes before them. Such a record is one byte, 1 if it
 * is the first, then a piece as rwinherit.h has it.
 */
#ifndef COLO_INHERIT_H
#define COLO_INHERIT_H

#include "state.h"

/* PRIMARY: of a session that begins. 0, LIMIT: the link can't hold them, or NOMEM. */
int colo_inherit_send(struct colo_path *p);
/* SECONDARY: a session has begun. What came in the one before goes for as long as nothing better is known. */
void colo_inherit_begin(struct colo_path *p);
/* SECONDARY: a record of them. false: it makes no sense, *why says how. */
bool colo_inherit_take(struct colo_path *p, const struct colo_link_record *record, const char **why);
/* SECONDARY: the VM has become the copy of the primary of this session. */
void colo_inherit_settle(struct colo_path *p);

#endif
