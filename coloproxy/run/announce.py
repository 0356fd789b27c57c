# SPDX-License-Identifier: Apache-2.0
"""What a VM says at its new place: gratuitous ARP, unsolicited neighbour advertisements, RARP. Pure.

Switches learn the way from the source address of any of them, on each VLAN; hosts that have the VM in their tables are
told again that it is where they think. RARP serves for what is known by its MAC alone, as QEMU's own announcement does.

Source: RFC 826 and RFC 5227 section 3 (ARP announcement), RFC 4861 section 7.2.6, RFC 903.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from coloproxy.path.path import Neighbour

ROUNDS: Final = 5
FIRST_S: Final = 0.05
STEP_S: Final = 0.05
"""Announced ROUNDS times, the pauses grow by STEP_S: one lost on the way must not leave a client waiting."""

_BROADCAST: Final = b"\xff" * 6
_ALL_NODES: Final = IPv6Address("ff02::1")


def pauses() -> list[float]:
    """Seconds before each round."""
    return [0.0] + [FIRST_S + STEP_S * i for i in range(ROUNDS - 1)]


def places_of(
    known: Iterable[Neighbour], nic: int, mac: str | None, extra: Sequence[str], vlans: Sequence[int]
) -> list[Neighbour]:
    """All to announce on one NIC: what was learnt, and the operator's addresses on each of his VLANs.

    The operator's go with the NIC's own MAC, or with the one that was learnt last if he has not said it: an address
    that is announced with two of them would point at one that nobody has any more.
    """
    own = [place for place in known if place.nic == nic]
    address_of = bytes.fromhex(mac.replace(":", "")) if mac is not None else own[-1].mac if own else None
    tags = list(dict.fromkeys([*(place.vlans for place in own), *((vlan,) for vlan in vlans)])) or [()]
    if address_of is None:  # it has never said a word
        return []
    wanted = [Neighbour(nic, address_of, ip_address(text), tag) for text in extra for tag in tags]
    said = {(place.address, place.vlans) for place in wanted}
    learnt = [place for place in own if place.address is not None and (place.address, place.vlans) not in said]
    macs = dict.fromkeys([address_of, *(place.mac for place in own)])
    return [*learnt, *wanted, *(Neighbour(nic, each, None, tag) for each in macs for tag in tags)]


def frame_of(place: Neighbour) -> bytes:
    """The Ethernet frame, padded to its least length."""
    match place.address:
        case IPv4Address():
            # RFC 5227: a request for the own address; sender and target are the same.
            body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + place.mac + place.address.packed
            frame = _ethernet(_BROADCAST, place, 0x0806, body + bytes(6) + place.address.packed)
        case IPv6Address():
            frame = _ethernet(
                b"\x33\x33" + _ALL_NODES.packed[-4:], place, 0x86DD, _advertisement(place.mac, place.address)
            )
        case None:
            body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 3) + (place.mac + bytes(4)) * 2
            frame = _ethernet(_BROADCAST, place, 0x8035, body)
    return frame.ljust(60, b"\0")


def _ethernet(destination: bytes, place: Neighbour, ethertype: int, body: bytes) -> bytes:
    tags = b"".join(
        struct.pack("!HH", 0x88A8 if i + 1 < len(place.vlans) else 0x8100, vlan) for i, vlan in enumerate(place.vlans)
    )
    return destination + place.mac + tags + struct.pack("!H", ethertype) + body


def _advertisement(mac: bytes, address: IPv6Address) -> bytes:
    """Override flag set, unsolicited; with the target's link-layer address."""
    body = struct.pack("!BBHI", 136, 0, 0, 0x20000000) + address.packed + b"\x02\x01" + mac
    pseudo = address.packed + _ALL_NODES.packed + struct.pack("!II", len(body), 58)
    total = sum(struct.unpack(f"!{(len(pseudo) + len(body)) // 2}H", pseudo + body))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    body = body[:2] + struct.pack("!H", ~total & 0xFFFF) + body[4:]
    return struct.pack("!IHBB", 0x60000000, len(body), 58, 255) + address.packed + _ALL_NODES.packed + body


__all__ = ["frame_of", "pauses", "places_of"]
