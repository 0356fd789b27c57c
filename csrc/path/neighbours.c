/* SPDX-License-Identifier: Apache-2.0 */
#include "neighbours.h"

#include <stdlib.h>
#include <string.h>

#include "load.h"

enum {
    MAC = 6,
    IPV4 = 0x0800,
    ARP = 0x0806,
    IPV6 = 0x86dd,
    VLAN = 0x8100,
    QINQ = 0x88a8,
    ICMPV6 = 58,
    NEIGHBOUR_SOLICITATION = 135,
    NEIGHBOUR_ADVERTISEMENT = 136,
};

struct colo_neighbours {
    struct colo_neighbour entries[COLO_NEIGHBOURS_MAX];
    size_t count, next; /* once full, the oldest is at `next` */
    uint8_t macs[COLO_PATH_NICS][COLO_MACS_MAX][MAC];
    uint8_t mac_count[COLO_PATH_NICS], mac_next[COLO_PATH_NICS];
    uint8_t last[COLO_PATH_NICS]; /* the MAC that was seen last: nearly always the one that is looked for */
};

struct colo_neighbours *colo_neighbours_create(void)
{
    return calloc(1, sizeof(struct colo_neighbours));
}

void colo_neighbours_destroy(struct colo_neighbours *n)
{
    free(n);
}

bool colo_neighbours_is_own(const struct colo_neighbours *n, uint8_t nic, const uint8_t *mac)
{
    if (n->mac_count[nic] && !memcmp(n->macs[nic][n->last[nic]], mac, MAC))
        return true;
    for (int i = 0; i < n->mac_count[nic]; i++)
        if (!memcmp(n->macs[nic][i], mac, MAC))
            return true;
    return false;
}

static void learn_mac(struct colo_neighbours *n, uint8_t nic, const uint8_t *mac)
{
    uint8_t at;

    if (mac[0] & 1 || (n->mac_count[nic] && !memcmp(n->macs[nic][n->last[nic]], mac, MAC)))
        return;
    for (at = 0; at < n->mac_count[nic]; at++)
        if (!memcmp(n->macs[nic][at], mac, MAC)) {
            n->last[nic] = at;
            return;
        }
    if (n->mac_count[nic] < COLO_MACS_MAX)
        at = n->mac_count[nic]++;
    else
        at = n->mac_next[nic], n->mac_next[nic] = (uint8_t)((at + 1) % COLO_MACS_MAX);
    memcpy(n->macs[nic][at], mac, MAC);
    n->last[nic] = at;
}

static void learn(struct colo_neighbours *n, struct colo_neighbour *entry, const uint8_t *address, size_t len)
{
    static const uint8_t none[16];

    if (!memcmp(address, none, len)) /* a probe: not claimed yet */
        return;
    memcpy(entry->address, address, len);
    for (size_t i = 0; i < n->count; i++)
        if (!memcmp(&n->entries[i], entry, sizeof *entry))
            return;
    if (n->count < COLO_NEIGHBOURS_MAX) {
        n->entries[n->count++] = *entry;
    } else {
        n->entries[n->next] = *entry;
        n->next = (n->next + 1) % COLO_NEIGHBOURS_MAX;
    }
}

void colo_neighbours_learn(struct colo_neighbours *n, uint8_t nic, const uint8_t *frame, size_t len)
{
    const uint8_t *p = frame + 2 * MAC, *end = frame + len;
    struct colo_neighbour entry;
    uint16_t type = colo_load16(p);

    learn_mac(n, nic, frame + MAC);
    memset(&entry, 0, sizeof entry); /* compared as a whole */
    while ((type == VLAN || type == QINQ) && entry.vlan_count < 2 && (size_t)(end - p) >= 6) {
        entry.vlan[entry.vlan_count++] = colo_load16(p + 2) & 0xfff;
        p += 4;
        type = colo_load16(p);
    }
    if (type != ARP && type != IPV6)
        return;
    p += 2;
    entry.nic = nic;
    memcpy(entry.mac, frame + MAC, MAC);
    if (type == ARP) {
        /* RFC 826: Ethernet and IPv4; the sender's addresses at 8 and 14. */
        if ((size_t)(end - p) < 28 || colo_load16(p) != 1 || colo_load16(p + 2) != IPV4 || p[4] != MAC || p[5] != 4)
            return;
        entry.family = 4;
        learn(n, &entry, p + 14, 4);
        return;
    }
    /* RFC 4861: of a solicitation the source is the sender's, of an advertisement the target. */
    if ((size_t)(end - p) < 40 + 24 || p[6] != ICMPV6 || p[7] != 255)
        return;
    entry.family = 6;
    if (p[40] == NEIGHBOUR_SOLICITATION)
        learn(n, &entry, p + 8, 16);
    else if (p[40] == NEIGHBOUR_ADVERTISEMENT)
        learn(n, &entry, p + 48, 16);
}

size_t colo_neighbours_list(const struct colo_neighbours *n, struct colo_neighbour *out, size_t cap)
{
    size_t count = 0;

    for (; count < n->count && count < cap; count++)
        out[count] = n->entries[count];
    for (int nic = 0; nic < COLO_PATH_NICS; nic++)
        for (int i = 0; i < n->mac_count[nic] && count < cap; i++) {
            out[count] = (struct colo_neighbour){.nic = (uint8_t)nic};
            memcpy(out[count++].mac, n->macs[nic][i], MAC);
        }
    return count;
}
