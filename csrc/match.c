/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A match reads a flow's identity and nothing else, so whatever is decided by it holds for all frames of a flow: no
 * frame can overtake another one of its flow because a rule treats them differently (R4).
 */
#include <string.h>

#include "match.h"

enum { FIELDS = COLO_MATCH_CLASS | COLO_MATCH_PROTOCOL | COLO_MATCH_VM_PORT | COLO_MATCH_CLIENT_PORT | COLO_MATCH_VM |
                COLO_MATCH_CLIENT | COLO_MATCH_VLAN };

static bool prefix_is_sane(const struct colo_prefix *prefix)
{
    return (prefix->family == 4 && prefix->bits <= 32) || (prefix->family == 6 && prefix->bits <= 128);
}

bool colo_match_is_sane(const struct colo_match *m)
{
    if (m->has & ~FIELDS)
        return false;
    if (m->has & COLO_MATCH_CLASS && (m->classes == 0 || m->classes >> COLO_CLASS_COUNT))
        return false;
    if (m->has & COLO_MATCH_VM_PORT && m->vm_port.first > m->vm_port.last)
        return false;
    if (m->has & COLO_MATCH_CLIENT_PORT && m->client_port.first > m->client_port.last)
        return false;
    if (m->has & COLO_MATCH_VM && !prefix_is_sane(&m->vm))
        return false;
    if (m->has & COLO_MATCH_CLIENT && !prefix_is_sane(&m->client))
        return false;
    return !(m->has & COLO_MATCH_VLAN) || m->vlan < 4096;
}

static bool is_within(const struct colo_prefix *prefix, uint8_t family, const uint8_t *address)
{
    uint8_t whole = prefix->bits / 8, rest = prefix->bits % 8;

    if (prefix->family != family || memcmp(prefix->address, address, whole) != 0)
        return false;
    return rest == 0 || (uint8_t)(prefix->address[whole] ^ address[whole]) >> (8 - rest) == 0;
}

/* An ICMP identifier is no port. */
static bool has_ports(const struct colo_flow_id *id)
{
    return id->cls == COLO_CLASS_TCP || id->cls == COLO_CLASS_UDP || id->cls == COLO_CLASS_DHCP;
}

static bool has_vlan(const struct colo_flow_id *id, uint16_t vlan)
{
    return (id->vlan_count > 0 && id->vlan[0] == vlan) || (id->vlan_count > 1 && id->vlan[1] == vlan);
}

bool colo_match_fits(const struct colo_match *m, const struct colo_flow_id *id)
{
    if (m->has & COLO_MATCH_CLASS && !(m->classes & 1u << id->cls))
        return false;
    if (m->has & COLO_MATCH_PROTOCOL && (id->family == 0 || id->protocol != m->protocol))
        return false;
    if (m->has & (COLO_MATCH_VM_PORT | COLO_MATCH_CLIENT_PORT) && !has_ports(id))
        return false;
    if (m->has & COLO_MATCH_VM_PORT && (id->sport < m->vm_port.first || id->sport > m->vm_port.last))
        return false;
    if (m->has & COLO_MATCH_CLIENT_PORT && (id->dport < m->client_port.first || id->dport > m->client_port.last))
        return false;
    if (m->has & COLO_MATCH_VM && !is_within(&m->vm, id->family, id->src))
        return false;
    if (m->has & COLO_MATCH_CLIENT && !is_within(&m->client, id->family, id->dst))
        return false;
    return !(m->has & COLO_MATCH_VLAN) || has_vlan(id, m->vlan);
}
