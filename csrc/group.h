/* SPDX-License-Identifier: Apache-2.0 */
/*
 * group.h - where frames and datagrams are not one and the same: a datagram that came in several frames (fragment.c),
 * a frame that is several datagrams (segment.c).
 *
 * Flows hold and compare datagrams; the caller gets back frames. So a group has records of its own for its datagrams,
 * which go through the flow's lists like any other, and keeps the frames' records apart. When the last of its datagrams
 * leaves (colo_output_release, colo_output_discard), all of its frames do, in order of arrival, each once.
 */
#ifndef COLO_GROUP_H
#define COLO_GROUP_H

#include "rec.h"

struct colo_group {
    struct colo_group *next_retired;
    uint8_t *bytes;           /* of a datagram that we put together, or NULL */
    struct colo_list frames;  /* by flow_link, in order of arrival; in no other list */
    uint64_t frames_bytes;
    uint32_t frames_count;
    uint32_t datagrams_count;
    uint32_t left;            /* datagrams that have left */
    uint8_t dissolved;        /* the frames have gone their own ways */
    struct colo_rec datagrams[];
};

/* A group of `datagrams` zeroed records that point to it; NULL: no memory. */
struct colo_group *colo_group_create(uint32_t datagrams);
void colo_group_destroy(struct colo_group *group);
void colo_group_add_frame(struct colo_group *group, struct colo_rec *frame);

/* What a held record counts for. */
static inline uint32_t colo_rec_frames(const struct colo_rec *rec)
{
    return rec->group && rec->group->datagrams_count == 1 ? rec->group->frames_count : 1;
}

static inline uint64_t colo_rec_bytes(const struct colo_rec *rec)
{
    return rec->group && rec->group->datagrams_count == 1 ? rec->group->frames_bytes : rec->len;
}

#endif
