/* SPDX-License-Identifier: Apache-2.0 */
/* tolerance.h has the theory of operation. */
#include <stdlib.h>
#include <string.h>

#include "match.h"
#include "tolerance.h"

enum { ROOT = 0, LEAST_PRINTABLE = 4 };

struct node {
    uint16_t next[256];
    uint16_t fail;   /* while it is built: the longest proper suffix that is a node too */
    uint32_t ends;   /* bit 1 << rule: its text ends here */
};

struct colo_tolerances {
    struct colo_tolerance_rule rules[COLO_MAX_TOLERANCES];
    uint32_t count;
    uint32_t nodes;
    uint32_t max_flows;
    int first;              /* the byte that all texts begin with, -1: they don't begin alike */
    struct node *node;
    struct colo_tolerance **states; /* by a flow's index; made when a rule fits one, then kept for the next at that index */
};

static bool is_printable(uint8_t byte)
{
    return byte >= 0x20 && byte <= 0x7e;
}

static bool is_text(uint8_t byte)
{
    return is_printable(byte) || byte == '\r' || byte == '\n';
}

static bool rule_is_sane(const struct colo_tolerance_rule *rule)
{
    uint32_t printable = 0;

    if (rule->length == 0 || rule->length > COLO_MAX_TOLERATED || rule->after_len > sizeof rule->after)
        return false;
    if (rule->has_until && !is_text(rule->until))
        return false;
    for (uint8_t i = 0; i < rule->after_len; i++) {
        if (!is_text(rule->after[i]))
            return false;
        printable += is_printable(rule->after[i]);
    }
    return printable >= LEAST_PRINTABLE && colo_match_is_sane(&rule->match);
}

bool colo_tolerances_are_sane(const struct colo_tolerance_rule *rules, size_t count)
{
    if (count > COLO_MAX_TOLERANCES || (count && !rules))
        return false;
    for (size_t i = 0; i < count; i++)
        if (!rule_is_sane(&rules[i]))
            return false;
    return true;
}

/* -------------------------------------------------------------- automaton */

static void add_text(struct colo_tolerances *t, uint32_t rule)
{
    uint16_t at = ROOT;

    for (uint8_t i = 0; i < t->rules[rule].after_len; i++) {
        uint16_t *next = &t->node[at].next[t->rules[rule].after[i]];

        if (*next == ROOT)
            *next = (uint16_t)t->nodes++;
        at = *next;
    }
    t->node[at].ends |= 1u << rule;
}

/* Breadth first: a node's suffix is shorter than the node, so it is complete when the node's turn comes. */
static void link_nodes(struct colo_tolerances *t, uint16_t *queue)
{
    uint32_t first = 0, last = 0;

    for (int byte = 0; byte < 256; byte++)
        if (t->node[ROOT].next[byte] != ROOT)
            queue[last++] = t->node[ROOT].next[byte];
    while (first < last) {
        struct node *node = &t->node[queue[first++]];
        const struct node *fail = &t->node[node->fail];

        node->ends |= fail->ends;
        for (int byte = 0; byte < 256; byte++) {
            if (node->next[byte] == ROOT) {
                node->next[byte] = fail->next[byte];
            } else {
                t->node[node->next[byte]].fail = fail->next[byte];
                queue[last++] = node->next[byte];
            }
        }
    }
}

static bool build(struct colo_tolerances *t)
{
    uint32_t most = 1;
    uint16_t *queue;

    for (uint32_t i = 0; i < t->count; i++)
        most += t->rules[i].after_len;
    t->node = calloc(most, sizeof *t->node);
    queue = calloc(most, sizeof *queue);
    if (t->node && queue) {
        t->nodes = 1;
        t->first = t->rules[0].after[0];
        for (uint32_t i = 0; i < t->count; i++) {
            add_text(t, i);
            if (t->rules[i].after[0] != t->first)
                t->first = -1;
        }
        link_nodes(t, queue);
    }
    free(queue);
    return t->nodes > 0;
}

struct colo_tolerances *colo_tolerances_create(const struct colo_tolerance_rule *rules, size_t count, uint32_t max_flows)
{
    struct colo_tolerances *t = calloc(1, sizeof *t);

    if (!t)
        return NULL;
    memcpy(t->rules, rules, count * sizeof *rules);
    t->count = (uint32_t)count;
    t->max_flows = max_flows;
    t->states = calloc(max_flows, sizeof(struct colo_tolerance *)); /* its pages cost nothing until touched */
    if (!t->states || !build(t)) {
        colo_tolerances_destroy(t);
        return NULL;
    }
    return t;
}

void colo_tolerances_destroy(struct colo_tolerances *t)
{
    if (!t)
        return;
    if (t->states)
        for (uint32_t i = 0; i < t->max_flows; i++)
            free(t->states[i]);
    free(t->states);
    free(t->node);
    free(t);
}

/* ----------------------------------------------------------------- states */

void colo_tolerances_begin(struct colo_tolerances *t, uint32_t index, const struct colo_flow_id *id)
{
    struct colo_tolerance **state = &t->states[index];
    uint32_t rules = 0;

    for (uint32_t i = 0; i < t->count; i++)
        if (colo_match_fits(&t->rules[i].match, id))
            rules |= 1u << i;
    if (rules && !*state)
        *state = malloc(sizeof **state);
    if (*state)
        **state = (struct colo_tolerance){.rules = rules};
}

struct colo_tolerance *colo_tolerances_of(const struct colo_tolerances *t, uint32_t index)
{
    struct colo_tolerance *state = t->states[index];

    return state && state->rules ? state : NULL;
}

void colo_tolerance_seek(struct colo_tolerance *state, uint32_t base, int64_t at)
{
    if (state->at != at || state->base != base)
        *state = (struct colo_tolerance){.rules = state->rules, .base = base, .at = at};
}

/* ---------------------------------------------------------------- compare */

static bool ends_window(const struct colo_tolerance_rule *rule, uint8_t byte)
{
    return !is_printable(byte) || (rule->has_until && byte == rule->until);
}

/* A byte outside every window, that both sides said. */
static void step(const struct colo_tolerances *t, struct colo_tolerance *state, uint8_t byte)
{
    uint32_t ends;

    state->node = t->node[state->node].next[byte];
    ends = t->node[state->node].ends & state->rules;
    if (!ends)
        return;
    state->rule = 0;
    while (!(ends & 1u << state->rule)) /* the first in the file */
        state->rule++;
    state->left = t->rules[state->rule].length;
    state->told = 0;
    state->node = ROOT; /* a text does not reach into a window */
}

/* Takes in bytes from i up to `end`, which both sides said; stops behind one that opens a window. Returns where. */
static uint32_t scan(const struct colo_tolerances *t, struct colo_tolerance *state, const uint8_t *p, uint32_t i,
                     uint32_t end)
{
    while (i < end && !state->left) {
        if (state->node == ROOT && t->first >= 0) { /* most of a stream: no text begins */
            const uint8_t *next = memchr(p + i, t->first, end - i);

            if (!next)
                return end;
            i = (uint32_t)(next - p);
        }
        step(t, state, p[i++]);
    }
    return i;
}

static uint32_t count_equal(const uint8_t *p, const uint8_t *s, uint32_t n)
{
    uint32_t i = 0;

    if (memcmp(p, s, n) == 0)
        return n;
    while (p[i] == s[i])
        i++;
    return i;
}

uint32_t colo_tolerance_compare(const struct colo_tolerances *t, struct colo_tolerance *state, const uint8_t *p,
                                const uint8_t *s, uint32_t n, colo_tolerance_tell *tell, void *context)
{
    uint32_t i = 0, equal = 0; /* all from i up to `equal` is, if that is more */

    while (i < n) {
        const struct colo_tolerance_rule *rule = &t->rules[state->rule];

        if (state->left && (ends_window(rule, p[i]) || ends_window(rule, s[i])))
            state->left = 0;
        if (!state->left) {
            if (equal <= i)
                equal = i + count_equal(p + i, s + i, n - i);
            if (equal == i)
                break;
            i = scan(t, state, p, i, equal);
            continue;
        }
        if (p[i] != s[i] && !state->told) {
            state->told = 1;
            if (tell)
                tell(context, state->rule, i);
        }
        state->left--;
        i++;
    }
    state->at += i;
    return i;
}
