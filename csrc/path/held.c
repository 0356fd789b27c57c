/* SPDX-License-Identifier: Apache-2.0 */
#include "held.h"

#include <string.h>

int colo_held_put(struct colo_fifo *where, const struct colo_held *head, const struct colo_wire_frame *frame)
{
    struct colo_held own = *head;
    uint8_t *room;

    own.len = frame->len;
    own.nic = frame->nic;
    own.vnet_len = frame->vnet_len;
    if (!colo_fifo_has_room(where, sizeof own + frame->len))
        return COLO_ERR_LIMIT;
    room = colo_fifo_room(where, sizeof own + frame->len);
    if (!room)
        return COLO_ERR_NOMEM;
    memcpy(room, &own, sizeof own);
    memcpy(room + sizeof own, frame->data, frame->len);
    colo_fifo_put(where, sizeof own + frame->len);
    return 0;
}

bool colo_held_first(const struct colo_fifo *where, struct colo_held *head, struct colo_wire_frame *frame)
{
    if (!colo_fifo_len(where))
        return false;
    memcpy(head, colo_fifo_front(where), sizeof *head);
    *frame = (struct colo_wire_frame){.data = where->data + where->from + sizeof *head,
                                      .len = head->len,
                                      .vnet_len = head->vnet_len,
                                      .nic = head->nic};
    return true;
}

void colo_held_let_go(struct colo_fifo *where, const struct colo_held *head)
{
    colo_fifo_take(where, sizeof *head + head->len);
}
