/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rules are looked through one by one, and the answer is remembered: flows that pass have no entry in the flow table
 * (a flood of them must not push out those that are compared), so it is kept here, in a direct-mapped cache of whole
 * identities. A guest that makes every frame miss it costs a look at each rule.
 */
#include <stdlib.h>
#include <string.h>

#include "hash.h"
#include "match.h"
#include "policy.h"

enum { CACHE = 1024, NO_RULE = 255 };

struct answer {
    struct colo_flow_id id;
    uint8_t known;
    uint8_t action; /* enum colo_policy or NO_RULE */
};

struct colo_policies {
    uint64_t seed;
    size_t count;
    struct answer cache[CACHE];
    struct colo_rule rules[];
};

bool colo_policies_are_sane(const struct colo_rule *rules, size_t count)
{
    if (count > COLO_MAX_RULES || (count && !rules))
        return false;
    for (size_t i = 0; i < count; i++)
        if (rules[i].action >= COLO_POLICY_COUNT || !colo_match_is_sane(&rules[i].match))
            return false;
    return true;
}

struct colo_policies *colo_policies_create(const struct colo_rule *rules, size_t count, uint64_t seed)
{
    struct colo_policies *p = calloc(1, sizeof *p + count * sizeof *rules);

    if (!p)
        return NULL;
    p->seed = seed;
    p->count = count;
    memcpy(p->rules, rules, count * sizeof *rules);
    return p;
}

void colo_policies_destroy(struct colo_policies *p)
{
    free(p);
}

static uint8_t first_fit(const struct colo_policies *p, const struct colo_flow_id *id)
{
    for (size_t i = 0; i < p->count; i++)
        if (colo_match_fits(&p->rules[i].match, id))
            return p->rules[i].action;
    return NO_RULE;
}

uint8_t colo_policies_find(struct colo_policies *p, const struct colo_flow_id *id, uint8_t otherwise)
{
    struct answer *a = &p->cache[colo_hash(p->seed, (const uint8_t *)id, sizeof *id) % CACHE];

    if (!a->known || memcmp(&a->id, id, sizeof *id) != 0) {
        a->id = *id;
        a->action = first_fit(p, id);
        a->known = 1;
    }
    return a->action == NO_RULE ? otherwise : a->action;
}
