/* SPDX-License-Identifier: Apache-2.0 */
#include "overtaken.h"

#include <stddef.h>

void colo_overtaken_remove(struct colo_overtaken *list, struct colo_flow *flow)
{
    if (!flow->overtaken_since)
        return;
    *(flow->overtaken_prev ? &flow->overtaken_prev->overtaken_next : &list->oldest) = flow->overtaken_next;
    *(flow->overtaken_next ? &flow->overtaken_next->overtaken_prev : &list->newest) = flow->overtaken_prev;
    flow->overtaken_next = flow->overtaken_prev = NULL;
    flow->overtaken_since = 0;
}

void colo_overtaken_add(struct colo_overtaken *list, struct colo_flow *flow, int64_t now)
{
    colo_overtaken_remove(list, flow);
    flow->overtaken_since = now ? now : 1; /* 0 is "in no list" */
    flow->overtaken_prev = list->newest;
    *(flow->overtaken_prev ? &flow->overtaken_prev->overtaken_next : &list->oldest) = flow;
    list->newest = flow;
}

void colo_overtaken_clear(struct colo_overtaken *list)
{
    while (list->oldest)
        colo_overtaken_remove(list, list->oldest);
}
