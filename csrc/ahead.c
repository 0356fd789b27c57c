/* SPDX-License-Identifier: Apache-2.0 */
#include "ahead.h"

size_t colo_ahead_look(const struct colo_table *table, const struct colo_frame *frames, size_t count,
                       struct colo_arrival out[COLO_AHEAD])
{
    if (count > COLO_AHEAD)
        count = COLO_AHEAD;
    for (size_t i = 0; i < count; i++) {
        colo_parse(frames[i].data, frames[i].len, frames[i].vnet_len, &out[i].packet);
        out[i].packet.id.nic = frames[i].nic;
    }
    /* Not in one loop: an id that was written a moment ago, in small pieces, can't be read yet in large ones. */
    for (size_t i = 0; i < count; i++) {
        struct colo_arrival *a = &out[i];

        a->same = i && colo_flow_id_equal(&a->packet.id, &out[i - 1].packet.id);
        if (a->same) {
            a->hash = out[i - 1].hash;
        } else {
            a->hash = colo_table_hash(table, &a->packet.id);
            colo_table_fetch_slot(table, a->hash);
        }
    }
    for (size_t i = 0; i < count; i++)
        if (!out[i].same)
            colo_table_fetch_flow(table, out[i].hash);
    return count;
}
