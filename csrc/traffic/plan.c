/* SPDX-License-Identifier: Apache-2.0 */
#include "plan.h"

#include <stdlib.h>

#include "coloproxy.h"
#include "pattern.h"

int colo_plan_init(struct colo_plan *plan, uint32_t flows, uint32_t burst_bytes, bool opens, bool responses)
{
    *plan = (struct colo_plan){.flows = flows, .burst_bytes = burst_bytes, .opens = opens};
    if (!responses)
        return 0;
    /* Twice: the secondary may stand on a burst whose flow has its next one already. */
    for (plan->asked_cap = 1; plan->asked_cap < 2 * (size_t)flows;)
        plan->asked_cap *= 2;
    plan->asked = calloc(plan->asked_cap, sizeof *plan->asked);
    return plan->asked ? 0 : COLO_ERR_NOMEM;
}

void colo_plan_clear(struct colo_plan *plan)
{
    free(plan->asked);
    plan->asked = NULL;
}

void colo_plan_ask(struct colo_plan *plan, uint32_t flow, uint32_t round)
{
    plan->asked[plan->bursts++ & (plan->asked_cap - 1)] = (struct colo_plan_burst){flow, round};
}

void colo_plan_seek(const struct colo_plan *plan, struct colo_cursor *c, uint64_t x)
{
    const uint64_t burst = x / plan->burst_bytes;
    uint64_t round;

    c->x = x;
    c->burst = burst;
    c->in_burst = (uint32_t)(x % plan->burst_bytes);
    if (!plan->asked) {
        c->flow = (uint32_t)(burst % plan->flows);
        round = burst / plan->flows;
    } else if (burst < plan->bursts) {
        c->flow = plan->asked[burst & (plan->asked_cap - 1)].flow;
        round = plan->asked[burst & (plan->asked_cap - 1)].round;
    } else { /* not asked for yet: looked up again before it is used */
        c->in_burst = plan->burst_bytes;
        return;
    }
    c->offset = round * plan->burst_bytes + c->in_burst;
    c->phase = (uint32_t)(c->offset % COLO_PATTERN_PERIOD);
    c->opening = plan->opens && c->offset == 0;
}

void colo_plan_advance(const struct colo_plan *plan, struct colo_cursor *c, uint32_t len)
{
    c->x += len;
    c->in_burst += len;
    if (c->in_burst < plan->burst_bytes) {
        c->offset += len;
        c->phase = (c->phase + len) % COLO_PATTERN_PERIOD;
        return;
    }
    if (plan->asked || c->flow + 1 == plan->flows) {
        colo_plan_seek(plan, c, c->x);
        return;
    }
    /* The next flow's burst of the same round. */
    c->burst++;
    c->flow++;
    c->offset -= c->in_burst - len;
    c->in_burst = 0;
    c->phase = (uint32_t)(c->offset % COLO_PATTERN_PERIOD);
    c->opening = plan->opens && c->offset == 0;
}

uint64_t colo_plan_known(const struct colo_plan *plan)
{
    return plan->asked ? plan->bursts * plan->burst_bytes : UINT64_MAX;
}
