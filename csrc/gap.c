/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Gaps in the secondary's stream: it has gone on beyond a byte that the primary has said and that it has not said itself.
 *
 * The way from the secondary to us neither loses nor re-orders. What its guest re-orders comes within the window. What
 * does not was lost, most often at a checkpoint's cut, and the secondary won't say it again soon: its client has not
 * acknowledged what it has not got, and what would hurry its TCP is held here. So a checkpoint is asked for, long before
 * compare_timeout would.
 *
 * The missing byte is always the one at `match`. As long as that stays, so does the gap: the primary's frame that has
 * the byte is held, and if the secondary says it `match` grows, or the flow diverges. Another byte gets a window of its
 * own. Only in the slow path can a gap begin or end: quick.c leaves to it each frame that meets one.
 */
#include "core.h"

void colo_gap_forget(colo_comparator *c, struct colo_flow *flow)
{
    colo_overtaken_remove(&c->gaps, flow);
}

static bool is_gap(const struct colo_flow *flow)
{
    const struct colo_tcp *tcp = &flow->u.tcp;

    return !flow->diverged && tcp->s_high > tcp->match && !(flow->s.head && flow->s.head->off <= tcp->match) &&
           colo_stream_covering(flow);
}

void colo_gap_watch(colo_comparator *c, struct colo_flow *flow)
{
    struct colo_tcp *tcp = &flow->u.tcp;

    if (flow->overtaken_since && tcp->gap_at == tcp->match)
        return;
    if (!c->wanted && is_gap(flow)) {
        tcp->gap_at = tcp->match;
        colo_overtaken_add(&c->gaps, flow, c->now);
    } else {
        colo_gap_forget(c, flow);
    }
}

void colo_gap_expire(colo_comparator *c)
{
    struct colo_flow *flow = c->gaps.oldest;

    if (!c->wanted && flow && c->now - flow->overtaken_since >= c->config.gap_window)
        colo_flow_timed_out(c, flow, COLO_CAUSE_GAP, colo_stream_covering(flow), flow->overtaken_since);
}
