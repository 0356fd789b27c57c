/* SPDX-License-Identifier: Apache-2.0 */
#include "wish.h"

#include <string.h>

#include "coloproxy.h"
#include "framing.h"
#include "load.h"

static const char wish[] = "DO_CHECKPOINT", answer[] = "COLO_CHECKPOINT";

int colo_wishes_take(struct colo_wishes *w, size_t len)
{
    size_t at = 0;
    int count = 0;

    w->held += len;
    while (w->held - at >= 4) {
        const uint32_t size = colo_load32(w->buffer + at);

        if (size > COLO_WISH_MAX)
            return COLO_ERR_MISUSE;
        if (w->held - at - 4 < size)
            break;
        count += size == sizeof wish - 1 && memcmp(w->buffer + at + 4, wish, size) == 0;
        at += 4 + size;
    }
    w->held -= at;
    memmove(w->buffer, w->buffer + at, w->held);
    return count;
}

size_t colo_wish_answer(bool vnet_hdr, uint8_t *out)
{
    const uint32_t head = colo_framing_write_head(vnet_hdr, out, sizeof answer - 1, 0);

    memcpy(out + head, answer, sizeof answer - 1);
    return head + sizeof answer - 1;
}
