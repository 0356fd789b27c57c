# SPDX-License-Identifier: Apache-2.0
"""What is announced, and every byte of it as scapy reads it."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether

from coloproxy.path.path import Neighbour
from coloproxy.run import announce

MAC = b"\x52\x54\x00\x12\x34\x56"
OTHER = b"\x52\x54\x00\x12\x34\x57"
VLANS = [(), (0,), (1,), (4094,), (5, 6)]


def place(address: str | None, vlans: tuple[int, ...] = (), *, nic: int = 0, mac: bytes = MAC) -> Neighbour:
    return Neighbour(nic, mac, None if address is None else ip_address(address), vlans)


def dissected(where: Neighbour) -> tuple[Any, bytes]:
    """The frame as scapy reads it, and what stands behind the tags. Checks all that announcements have in common."""
    data = announce.frame_of(where)
    assert len(data) >= 60
    packet = Ether(data)
    assert packet.src == MAC.hex(":")
    tags = []
    layer = packet.payload
    while isinstance(layer, Dot1Q | Dot1AD):
        tags.append(layer.vlan)
        layer = layer.payload
    assert tuple(tags) == where.vlans
    assert [type(packet.getlayer(i + 1)) for i in range(len(tags))] == [Dot1AD] * (len(tags) - 1) + [Dot1Q] * bool(tags)
    return packet, data[12 + 4 * len(tags) :]


@pytest.mark.parametrize("vlans", VLANS, ids=str)
def test_gratuitous_arp(vlans: tuple[int, ...]) -> None:
    packet, _ = dissected(place("10.1.2.3", vlans))
    arp = packet[ARP]
    assert packet.dst == "ff:ff:ff:ff:ff:ff"
    assert (arp.hwtype, arp.ptype, arp.hwlen, arp.plen, arp.op) == (1, 0x0800, 6, 4, 1)
    assert (arp.hwsrc, arp.psrc, arp.hwdst, arp.pdst) == (MAC.hex(":"), "10.1.2.3", "00:00:00:00:00:00", "10.1.2.3")


@pytest.mark.parametrize("vlans", VLANS, ids=str)
@pytest.mark.parametrize("address", ["fd00::9", "fe80::5054:ff:fe12:3456", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"])
def test_unsolicited_advertisement(address: str, vlans: tuple[int, ...]) -> None:
    packet, body = dissected(place(address, vlans))
    advertisement = packet[ICMPv6ND_NA]
    assert packet.dst == "33:33:00:00:00:01"
    assert (packet[IPv6].src, packet[IPv6].dst, packet[IPv6].hlim) == (address, "ff02::1", 255)
    assert (advertisement.R, advertisement.S, advertisement.O, advertisement.tgt) == (0, 0, 1, address)
    assert packet[ICMPv6NDOptDstLLAddr].lladdr == MAC.hex(":")
    # The checksum is right if scapy, asked to make its own, comes to the same.
    again = IPv6(bytes(packet[IPv6]))
    del again[ICMPv6ND_NA].cksum
    assert bytes(again) == body[2 : 2 + len(bytes(again))]


@pytest.mark.parametrize("vlans", VLANS, ids=str)
def test_rarp_for_a_mac_alone(vlans: tuple[int, ...]) -> None:
    packet, body = dissected(place(None, vlans))
    assert packet.dst == "ff:ff:ff:ff:ff:ff"
    assert body.rstrip(b"\0") == (
        struct.pack("!HHHBBH", 0x8035, 1, 0x0800, 6, 4, 3) + MAC + bytes(4) + MAC + bytes(4)
    ).rstrip(b"\0")


KNOWN = [place("10.0.0.1"), place("fd00::1", (7,)), place(None), place("10.9.9.9", nic=1, mac=OTHER)]


@pytest.mark.parametrize(
    ("known", "nic", "extra", "vlans", "wanted"),
    [
        ([], 0, [], [], []),
        ([], 0, ["10.0.0.5"], [3], []),  # nothing is known to send from
        (KNOWN, 0, [], [], [*KNOWN[:3], place(None, (7,))]),
        (KNOWN, 1, [], [], [KNOWN[3], place(None, nic=1, mac=OTHER)]),
        (KNOWN, 2, ["10.0.0.5"], [], []),
        (
            [place(None)],
            0,
            ["10.0.0.5", "fd00::5"],
            [3],
            [place(None), *(place(a, v) for a in ("10.0.0.5", "fd00::5") for v in ((), (3,))), place(None, (3,))],
        ),
        ([place("10.0.0.1")], 0, ["10.0.0.1"], [], [place("10.0.0.1"), place(None)]),  # each once
        (
            [place(None), place(None, mac=OTHER)],
            0,
            ["10.0.0.5"],
            [],
            [place(None), place(None, mac=OTHER), place("10.0.0.5", mac=OTHER)],  # with the one that was learnt last
        ),
    ],
    ids=["nothing", "extra alone", "nic 0", "nic 1", "no such nic", "extra on vlans", "each once", "two macs"],
)
def test_places(known: list[Neighbour], nic: int, extra: list[str], vlans: list[int], wanted: list[Neighbour]) -> None:
    places = announce.places_of(known, nic, None, extra, vlans)
    assert len(places) == len(set(places))
    assert set(places) == set(wanted)


def test_an_address_is_announced_with_the_nics_own_mac_alone() -> None:
    known = [place("10.0.0.5", mac=OTHER), place("10.0.0.6", mac=OTHER), place(None, mac=OTHER)]
    places = announce.places_of(known, 0, MAC.hex(":"), ["10.0.0.5"], [])
    assert set(places) == {place("10.0.0.5"), place("10.0.0.6", mac=OTHER), place(None), place(None, mac=OTHER)}


def test_rounds_come_with_growing_pauses() -> None:
    pauses = announce.pauses()
    assert len(pauses) == announce.ROUNDS
    assert pauses[0] == 0
    assert pauses == sorted(set(pauses))
