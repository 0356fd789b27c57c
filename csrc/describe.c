/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the comparator sees in a frame, for tools that show frames to people: the parser's view, so that they can't
 * disagree with the verdicts.
 */
#include <string.h>

#include "parse.h"

int colo_frame_describe(const struct colo_frame *frame, struct colo_description *out)
{
    struct colo_packet packet;

    if (frame->vnet_len > frame->len)
        return COLO_ERR_MISUSE;
    memset(out, 0, sizeof *out);
    colo_parse(frame->data, frame->len, frame->vnet_len, &packet);
    out->flow = packet.id;
    out->flow.nic = frame->nic;
    out->tcp_flags = packet.tcp_flags;
    out->seq = packet.seq;
    out->ack = packet.ack;
    out->body = packet.body;
    out->body_len = packet.body_len;
    return 0;
}
