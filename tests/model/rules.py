# SPDX-License-Identifier: Apache-2.0
"""What the operator's rules say, looked up the slow and obvious way. Written from docs/rules.md, not from csrc/."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from coloproxy.rules import Match, Policy, Rules, ToleranceRule
from model.packet import Cls, Key

WITH_PORTS = {Cls.TCP, Cls.UDP, Cls.DHCP}


def fits(match: Match, key: Key) -> bool:
    ports = key.cls in WITH_PORTS
    wants = (
        lambda: match.classes is None or int(key.cls) in {int(cls) for cls in match.classes},
        lambda: match.protocol is None or (key.family != 0 and key.protocol == match.protocol),
        lambda: match.vm_port is None or (ports and match.vm_port[0] <= key.sport <= match.vm_port[1]),
        lambda: match.client_port is None or (ports and match.client_port[0] <= key.dport <= match.client_port[1]),
        lambda: match.vm is None or (key.family != 0 and ipaddress.ip_address(key.src) in match.vm),
        lambda: match.client is None or (key.family != 0 and ipaddress.ip_address(key.dst) in match.client),
        lambda: match.vlan is None or match.vlan in key.vlans,
    )
    return all(want() for want in wants)


def policy_of(rules: Rules, passed: Iterable[Cls], key: Key) -> Policy:
    for rule in rules.policies:
        if fits(rule.match, key):
            return rule.action
    return Policy.PASS if key.cls in passed else Policy.COMPARE


def tolerances_of(rules: Rules, key: Key) -> tuple[ToleranceRule, ...]:
    return tuple(rule for rule in rules.tolerances if fits(rule.match, key))


def may_stand(rule: ToleranceRule, byte: int) -> bool:
    """In a window."""
    return 32 <= byte < 127 and byte != rule.until


def mask(rules: Iterable[ToleranceRule], body: bytes) -> bytes:
    """A datagram with a NUL for each byte that may be another; two that give the same are equal."""
    out, at, text = bytearray(body), 0, b""
    while at < len(body):
        text += body[at : at + 1]
        at += 1
        for rule in rules:
            if text.endswith(rule.after):
                end = min(at + rule.length, len(body))
                while at < end and may_stand(rule, body[at]):
                    out[at] = 0
                    at += 1
                text = b""
                break
    return bytes(out)
