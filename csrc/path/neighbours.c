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

struct mac {
    uint8_t bytes[MAC];
    int64_t seen;
};

struct colo_neighbours {
    struct colo_neighbour entries[COLO_NEIGHBOURS_MAX];
    int64_t seen[COLO_NEIGHBOURS_MAX];
    size_t count;
    struct mac macs[COLO_PATH_NICS][COLO_MACS_MAX];
    uint8_t mac_count[COLO_PATH_NICS];
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

/* Where it is, or COLO_MACS_MAX. */
static uint8_t find_mac(const struct colo_neighbours *n, uint8_t nic, const uint8_t *mac)
{
    if (n->mac_count[nic] && !memcmp(n->macs[nic][n->last[nic]].bytes, mac, MAC))
        return n->last[nic];
    for (uint8_t at = 0; at < n->mac_count[nic]; at++)
        if (!memcmp(n->macs[nic][at].bytes, mac, MAC))
            return at;
    return COLO_MACS_MAX;
}

bool colo_neighbours_is_own(const struct colo_neighbours *n, uint8_t nic, const uint8_t *mac, int64_t now)
{
    const uint8_t at = find_mac(n, nic, mac);

    return at < COLO_MACS_MAX && now - n->macs[nic][at].seen < COLO_MAC_OWN;
}

static void learn_mac(struct colo_neighbours *n, uint8_t nic, const uint8_t *mac, int64_t now)
{
    uint8_t at = find_mac(n, nic, mac);

    if (at == COLO_MACS_MAX && n->mac_count[nic] < COLO_MACS_MAX) {
        at = n->mac_count[nic]++;
    } else if (at == COLO_MACS_MAX) {
        at = 0;
        for (uint8_t i = 1; i < COLO_MACS_MAX; i++)
            if (n->macs[nic][i].seen < n->macs[nic][at].seen)
                at = i;
    }
    memcpy(n->macs[nic][at].bytes, mac, MAC);
    n->macs[nic][at].seen = now;
    n->last[nic] = at;
}

/* An address that a host can have: not of a group, nor none (a probe claims nothing yet), nor of itself only. */
static bool is_sane(const struct colo_neighbour *entry)
{
    static const uint8_t none[15];

    if (entry->family == 4)
        return entry->address[0] != 0 && entry->address[0] != 127 && entry->address[0] < 224;
    return entry->address[0] != 0xff && (memcmp(entry->address, none, sizeof none) != 0 || entry->address[15] > 1);
}

static void learn(struct colo_neighbours *n, struct colo_neighbour *entry, const uint8_t *address, size_t len,
                  int64_t now)
{
    size_t at = 0;

    memcpy(entry->address, address, len);
    if (!is_sane(entry))
        return;
    while (at < n->count && memcmp(&n->entries[at], entry, sizeof *entry) != 0)
        at++;
    if (at == n->count && n->count < COLO_NEIGHBOURS_MAX) {
        n->count++;
    } else if (at == n->count) {
        at = 0;
        for (size_t i = 1; i < n->count; i++)
            if (n->seen[i] < n->seen[at])
                at = i;
    }
    n->entries[at] = *entry;
    n->seen[at] = now;
}

void colo_neighbours_learn(struct colo_neighbours *n, uint8_t nic, const uint8_t *frame, size_t len, int64_t now)
{
    const uint8_t *p = frame + 2 * MAC, *end = frame + len;
    struct colo_neighbour entry;
    uint16_t type = colo_load16(p);

    if (frame[MAC] & 1) /* of a group: nobody's address */
        return;
    learn_mac(n, nic, frame + MAC, now);
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
        learn(n, &entry, p + 14, 4, now);
        return;
    }
    /* RFC 4861: of a solicitation the source is the sender's, of an advertisement the target. */
    if ((size_t)(end - p) < 40 + 24 || p[6] != ICMPV6 || p[7] != 255)
        return;
    entry.family = 6;
    if (p[40] == NEIGHBOUR_SOLICITATION)
        learn(n, &entry, p + 8, 16, now);
    else if (p[40] == NEIGHBOUR_ADVERTISEMENT)
        learn(n, &entry, p + 48, 16, now);
}

size_t colo_neighbours_list(const struct colo_neighbours *n, struct colo_neighbour *out, size_t cap)
{
    size_t count = 0;

    for (; count < n->count && count < cap; count++)
        out[count] = n->entries[count];
    for (int nic = 0; nic < COLO_PATH_NICS; nic++)
        for (int i = 0; i < n->mac_count[nic] && count < cap; i++) {
            out[count] = (struct colo_neighbour){.nic = (uint8_t)nic};
            memcpy(out[count++].mac, n->macs[nic][i].bytes, MAC);
        }
    return count;
}
