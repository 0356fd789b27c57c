/* SPDX-License-Identifier: Apache-2.0 */
/* marks.h - epochs on the link: marks in its stream, and how the primary counts them. With the path's lock held. */
#ifndef COLO_PATH_MARKS_H
#define COLO_PATH_MARKS_H

#include "state.h"

enum colo_mark {
    COLO_MARK_SYNC = 0,  /* the answer to a token */
    COLO_MARK_EPOCH = 1, /* what follows is of the secondary's next epoch */
    COLO_MARK_PRIMARY_STOP = 2, /* from the primary: its VM stands still; what it was sent before comes with its state */
};

/* Puts one into the stream. */
void colo_marks_put(struct colo_path *p, enum colo_mark kind, uint64_t value);

/* One has come. false: it makes no sense, *why says how. */
bool colo_marks_take(struct colo_path *p, const struct colo_link_record *record, const char **why);
/* PRIMARY: */
/* A frame of the secondary's has come: to the comparator, or to wait, or away. */
void colo_marks_output(struct colo_path *p, const struct colo_wire_frame *frame);
/* Hands on what waited and may go now. */
void colo_marks_held(struct colo_path *p);
/* The primary's VM stands still since `stopped`: does that explain the mark that came before this was known? */
void colo_marks_explained(struct colo_path *p, int64_t stopped);
/* Both counts are void, and what is held by them. (SECONDARY: has none.) */
void colo_marks_forget(struct colo_path *p);

#endif
