/* SPDX-License-Identifier: Apache-2.0 */
/* The names of the public enums, as logs and JSON show them. */
#include "coloproxy.h"

const char *colo_error_name(int error)
{
    switch (error) {
    case COLO_OK: return "ok";
    case COLO_ERR_NOMEM: return "out of memory";
    case COLO_ERR_MISUSE: return "misuse";
    case COLO_ERR_LIMIT: return "limit reached";
    case COLO_ERR_SYSTEM: return "system call failed";
    default: return "unknown error";
    }
}

const char *colo_class_name(int cls)
{
    static const char *const names[COLO_CLASS_COUNT] = {
        [COLO_CLASS_TCP] = "tcp",           [COLO_CLASS_UDP] = "udp",
        [COLO_CLASS_ICMP] = "icmp",         [COLO_CLASS_ICMP6] = "icmp6",
        [COLO_CLASS_IP_OTHER] = "ip-other", [COLO_CLASS_FRAGMENT] = "fragment",
        [COLO_CLASS_ARP] = "arp",           [COLO_CLASS_ND] = "nd",
        [COLO_CLASS_DHCP] = "dhcp",         [COLO_CLASS_MULTICAST] = "multicast",
        [COLO_CLASS_LINK] = "link",         [COLO_CLASS_OTHER] = "other",
        [COLO_CLASS_MALFORMED] = "malformed",
    };
    return cls >= 0 && cls < COLO_CLASS_COUNT ? names[cls] : "unknown";
}

const char *colo_reason_name(int reason)
{
    static const char *const names[COLO_REASON_COUNT] = {
        [COLO_REASON_MATCHED] = "matched", [COLO_REASON_COMMITTED] = "committed", [COLO_REASON_ALONE] = "alone",
        [COLO_REASON_PASSED] = "passed",   [COLO_REASON_STALE] = "stale",         [COLO_REASON_DIVERGED] = "diverged",
        [COLO_REASON_IGNORED] = "ignored",
    };
    return reason >= 0 && reason < COLO_REASON_COUNT ? names[reason] : "unknown";
}

const char *colo_cause_name(int cause)
{
    static const char *const names[COLO_CAUSE_COUNT] = {
        [COLO_CAUSE_NONE] = "none",
        [COLO_CAUSE_PAYLOAD] = "payload",
        [COLO_CAUSE_FIN] = "fin",
        [COLO_CAUSE_SYN_OPTIONS] = "syn-options",
        [COLO_CAUSE_DATAGRAM] = "datagram",
        [COLO_CAUSE_PRIMARY_TIMEOUT] = "primary-timeout",
        [COLO_CAUSE_SECONDARY_TIMEOUT] = "secondary-timeout",
        [COLO_CAUSE_ACK_TIMEOUT] = "ack-timeout",
        [COLO_CAUSE_GAP] = "gap",
        [COLO_CAUSE_LIMIT_FRAMES] = "limit-frames",
        [COLO_CAUSE_LIMIT_BYTES] = "limit-bytes",
        [COLO_CAUSE_LIMIT_FLOWS] = "limit-flows",
        [COLO_CAUSE_LIMIT_FLOW_FRAMES] = "limit-flow-frames",
        [COLO_CAUSE_LIMIT_FLOW_BYTES] = "limit-flow-bytes",
        [COLO_CAUSE_LIMIT_FRAGMENTS] = "limit-fragments",
        [COLO_CAUSE_RST] = "rst",
        [COLO_CAUSE_CONFLICT] = "conflict",
        [COLO_CAUSE_MID_STREAM] = "mid-stream",
        [COLO_CAUSE_POLICY] = "policy",
    };
    return cause >= 0 && cause < COLO_CAUSE_COUNT ? names[cause] : "unknown";
}
