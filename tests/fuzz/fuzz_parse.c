/* Any bytes are one frame: all that is decoded lies inside it, always the same; Ethernet padding is no part of it. */
/* SPDX-License-Identifier: Apache-2.0 */
#include "must.h"
#include "parse.h"

/* Input: one byte chooses the virtio-net header's length, one the padding, the rest is the frame. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint32_t vnet_lens[4] = {0, 10, 12, 0};
    struct colo_packet a, b;
    uint32_t vnet, len, pad;
    uint8_t *frame;

    if (size < 2)
        return 0;
    vnet = vnet_lens[data[0] & 3];
    pad = data[1] & 63;
    len = (uint32_t)size - 2;
    if (vnet > len)
        vnet = 0; /* colo_comparator_feed refuses such frames */
    frame = copy_of(data + 2, len);
    memset(&a, 0xaa, sizeof a); /* whatever was there before makes no difference */
    memset(&b, 0x55, sizeof b);
    colo_parse(frame, len, vnet, &a);
    colo_parse(frame, len, vnet, &b);
    MUST(memcmp(&a, &b, sizeof a) == 0, "parsed twice, differently");

    MUST(a.id.cls < COLO_CLASS_COUNT && colo_class_name(a.id.cls), "class %d", a.id.cls);
    MUST(a.body >= vnet && a.body <= len && a.body_len <= len - a.body, "body %u+%u of %u", a.body, a.body_len, len);
    MUST(a.hole == UINT32_MAX || a.hole < 65536, "hole %u", a.hole);
    MUST(a.hole >= a.body_len || a.hole + 2 <= a.body_len, "hole %u of %u", a.hole, a.body_len);
    MUST(a.id.vlan_count <= 2 && a.id.vlan[0] < 4096 && a.id.vlan[1] < 4096, "%d tags", a.id.vlan_count);
    MUST(a.id.family == 0 || a.id.family == 4 || a.id.family == 6, "family %d", a.id.family);
    if (a.id.family) {
        MUST(a.l3 >= vnet + 14 && a.l3 < a.body, "l3 %u, body %u", a.l3, a.body);
        MUST(a.l4 == 0 || (a.l4 > a.l3 && a.l4 <= a.body), "l4 %u", a.l4);
    } else {
        MUST(a.body == vnet && a.body_len == len - vnet, "without IP the whole frame is compared");
    }
    if (a.id.cls == COLO_CLASS_TCP)
        MUST(a.l4 && a.body - a.l4 >= 20, "a TCP header of %u bytes", a.body - a.l4);
    free(frame);

    /* What is IP ends where IP says: padding behind it changes nothing. */
    if (a.id.family && pad) {
        frame = malloc(len + pad);
        MUST(frame, "no memory");
        memcpy(frame, data + 2, len);
        memset(frame + len, 0xa5, pad);
        colo_parse(frame, len + pad, vnet, &b);
        MUST(memcmp(&a, &b, sizeof a) == 0, "%u bytes of padding matter", pad);
        free(frame);
    }
    return 0;
}
