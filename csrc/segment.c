/* SPDX-License-Identifier: Apache-2.0 */
#include "segment.h"

#include "core.h"

/* Linux' UDP_MAX_SEGMENTS. Each segment costs a record, so a header that asks for more is not followed. */
enum { MAX_SEGMENTS = 128, TAG_UNCUT = 0x20000 };

static void make_segment(struct colo_rec *segment, const struct colo_rec *frame, uint32_t at, uint32_t len)
{
    struct colo_group *group = segment->group;

    *segment = *frame;
    segment->link = segment->flow_link = (struct colo_link){NULL, NULL};
    segment->group = group;
    segment->body = frame->body + at;
    segment->body_len = len;
    segment->len = at ? len : frame->body + len; /* the headers count once */
}

void colo_segment_enter(colo_comparator *c, struct colo_flow *flow, struct colo_rec *rec, uint32_t size)
{
    void (*enter)(colo_comparator *, struct colo_flow *, struct colo_rec *) =
        rec->side == COLO_PRIMARY ? colo_datagram_primary : colo_datagram_secondary;
    uint32_t count = (rec->body_len - 1) / size + 1;
    struct colo_group *group = count <= MAX_SEGMENTS ? colo_group_create(count) : NULL;

    if (!group) { /* equal to nothing but a frame that would be cut at the same places */
        rec->tag = TAG_UNCUT | size;
        enter(c, flow, rec);
        return;
    }
    for (uint32_t i = 0, at = 0; i < count; i++, at += size)
        make_segment(&group->datagrams[i], rec, at, rec->body_len - at < size ? rec->body_len - at : size);
    rec->flow = NULL; /* its datagrams are the flow's */
    colo_group_add_frame(group, rec);
    for (uint32_t i = 0; i < count; i++)
        enter(c, flow, &group->datagrams[i]);
}
