/* SPDX-License-Identifier: Apache-2.0 */
#include "group.h"

#include <stdlib.h>

struct colo_group *colo_group_create(uint32_t datagrams)
{
    struct colo_group *group = calloc(1, sizeof *group + datagrams * sizeof group->datagrams[0]);

    if (!group)
        return NULL;
    group->datagrams_count = datagrams;
    for (uint32_t i = 0; i < datagrams; i++)
        group->datagrams[i].group = group;
    return group;
}

void colo_group_destroy(struct colo_group *group)
{
    if (!group)
        return;
    free(group->bytes);
    free(group);
}

void colo_group_add_frame(struct colo_group *group, struct colo_rec *frame)
{
    colo_flow_list_push(&group->frames, frame);
    group->frames_count++;
    group->frames_bytes += frame->len;
}
