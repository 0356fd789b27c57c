/* SPDX-License-Identifier: Apache-2.0 */
/* What a rewriter hands on to the next one, and takes over from the one before. */
#include "rwflow.h"
#include "rwinherit.h"
#include "rwstate.h"

size_t colo_rewriter_export_size(const colo_rewriter *r)
{
    return COLO_RWINHERIT_HEAD +
           (size_t)COLO_RWINHERIT_FLOW * (colo_rwtable_count(r->table) + colo_rwstate_inherited(r));
}

/* Both tables as one list of places; of two flows on the same ports the inherited one is hidden. */
static const struct colo_rwflow *flow_at(const colo_rewriter *r, uint32_t place)
{
    const uint32_t own = colo_rwtable_places(r->table);
    const struct colo_rwflow *flow;

    if (place < own)
        return colo_rwtable_at(r->table, place);
    flow = colo_rwtable_at(r->inherited, place - own);
    return flow && colo_rwtable_find(r->table, &flow->key) ? NULL : flow;
}

long colo_rewriter_export(const colo_rewriter *r, uint32_t *place, uint8_t *out, size_t cap, int64_t now)
{
    const uint32_t places = colo_rwtable_places(r->table) + (r->inherited ? colo_rwtable_places(r->inherited) : 0);
    const uint32_t from = *place;
    size_t at = COLO_RWINHERIT_HEAD;
    uint32_t count = 0;

    if (cap < at)
        return COLO_ERR_LIMIT;
    for (; *place < places; ++*place) {
        const struct colo_rwflow *flow = flow_at(r, *place);

        if (!flow || !colo_rwinherit_wanted(flow))
            continue;
        if (COLO_RWINHERIT_FLOW > cap - at)
            break;
        colo_rwinherit_put(out + at, flow, now);
        at += COLO_RWINHERIT_FLOW;
        count++;
    }
    if (!count && *place < places)
        return COLO_ERR_LIMIT;
    if (!count && from)
        return 0;
    colo_rwinherit_put_head(out, count);
    return (long)at;
}

/* Takes one in; all else of it has been checked. */
static int inherit(colo_rewriter *r, const struct colo_rwflow *from, const char **why)
{
    struct colo_rwflow *flow;

    *why = "a connection that is there twice";
    if (colo_rwtable_find(r->inherited, &from->key))
        return COLO_ERR_MISUSE;
    *why = "no memory";
    flow = colo_rwtable_add(r->inherited, &from->key);
    if (!flow)
        return COLO_ERR_NOMEM;
    colo_rwtable_fill(flow, from);
    colo_rwtable_stand(r->inherited, flow, colo_rwflow_standing(flow));
    *why = NULL;
    return 0;
}

int colo_rewriter_import(colo_rewriter *r, const uint8_t *data, size_t len, int64_t then, const char **why)
{
    const uint8_t *const flows = data + COLO_RWINHERIT_HEAD;
    const long count = colo_rwinherit_head(data, len, why);
    struct colo_rwflow flow;
    int error = 0;
    long done = 0;

    if (count < 0)
        return COLO_ERR_MISUSE;
    for (long i = 0; i < count && !*why; i++)
        *why = colo_rwinherit_flow(flows + i * COLO_RWINHERIT_FLOW, &flow, then);
    if (*why)
        return COLO_ERR_MISUSE;
    *why = "more connections than there is room for";
    if ((uint64_t)count + colo_rwstate_inherited(r) + colo_rwtable_count(r->table) > r->config.max_flows)
        return COLO_ERR_LIMIT;
    *why = "no memory";
    if (!r->inherited && !(r->inherited = colo_rwtable_create(r->config.max_flows, r->config.hash_seed)))
        return COLO_ERR_NOMEM;
    for (*why = NULL; done < count && !error; done += !error) {
        (void)colo_rwinherit_flow(flows + done * COLO_RWINHERIT_FLOW, &flow, then);
        error = inherit(r, &flow, why);
    }
    while (error && done-- > 0) {
        (void)colo_rwinherit_flow(flows + done * COLO_RWINHERIT_FLOW, &flow, then);
        colo_rwtable_remove(r->inherited, colo_rwtable_find(r->inherited, &flow.key));
    }
    return error;
}

void colo_rewriter_disinherit(colo_rewriter *r)
{
    if (r->inherited)
        colo_rwtable_clear(r->inherited);
}
