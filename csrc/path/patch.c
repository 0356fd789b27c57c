/* SPDX-License-Identifier: Apache-2.0 */
#include "patch.h"

#include "csum.h"
#include "load.h"

static void write_bytes(struct colo_patch *p, uint32_t at, const uint8_t *bytes, uint32_t len)
{
    uint32_t from = at - ((at - p->base) & 1), to = at + len + ((at + len - p->base) & 1);
    uint64_t before, after, sum;
    uint8_t field[2];

    if (memcmp(p->data + at, bytes, len) == 0)
        return;
    if (to > p->end) /* half of the last word is cut off: it did not change, so zero will do */
        to = p->end;
    before = colo_csum_add(0, p->data + from, to - from);
    if (p->outer)
        write_bytes(p->outer, at, bytes, len);
    else
        memcpy(p->data + at, bytes, len);
    p->changed = true;
    if (!p->csum_at)
        return;
    after = colo_csum_add(0, p->data + from, to - from);
    /* Equation 3 for several words: the sum of their complements is 0xffff for each, less their sum. */
    sum = (uint16_t)~colo_load16(p->data + p->csum_at);
    sum += (uint64_t)((to - from + 1) / 2) * 0xffff - before + after;
    colo_store16(field, colo_csum_fold(sum));
    if (p->outer)
        write_bytes(p->outer, p->csum_at, field, sizeof field);
    else
        memcpy(p->data + p->csum_at, field, sizeof field);
}

void colo_patch8(struct colo_patch *p, uint32_t at, uint8_t value)
{
    write_bytes(p, at, &value, 1);
}

void colo_patch16(struct colo_patch *p, uint32_t at, uint16_t value)
{
    uint8_t bytes[2];

    colo_store16(bytes, value);
    write_bytes(p, at, bytes, sizeof bytes);
}

void colo_patch32(struct colo_patch *p, uint32_t at, uint32_t value)
{
    uint8_t bytes[4];

    colo_store32(bytes, value);
    write_bytes(p, at, bytes, sizeof bytes);
}
