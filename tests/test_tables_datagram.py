# SPDX-License-Identifier: Apache-2.0
"""Datagrams, pass classes and frames that nobody can parse, as tables (see table.py)."""

from __future__ import annotations

import pytest
import wire
from table import Commit, Later, Say, play

from coloproxy import Side

PATH = wire.Path(sport=53, dport=5353)
OTHER = wire.Path(sport=53, dport=5354)
WINDOW = Later(ns=1_000)
V6 = wire.Path(family=6, vm=bytes(15) + b"\x01", client=bytes(15) + b"\x02")


def p(frame: bytes) -> Say:
    return Say(Side.PRIMARY, frame)


def s(frame: bytes) -> Say:
    return Say(Side.SECONDARY, frame)


def udp(text: bytes, path: wire.Path = PATH, **noise: int) -> bytes:
    return wire.udp(path, text, wire.Noise(**noise))


A, B, C = udp(b"one"), udp(b"two"), udp(b"three")
BROKEN = b"\x02" * 14 + b"no such protocol"
SHORT = b"\x01\x02\x03"
SCTP = wire.ethernet(0x0800, wire.ip(wire.Path(), 132, b"chunks"))
SCTP_OTHER = wire.ethernet(0x0800, wire.ip(wire.Path(), 132, b"others"))
FIRST = wire.ethernet(0x0800, wire.ip(wire.Path(), 17, b"first part", fragment=0x2000))
LAST = wire.ethernet(0x0800, wire.ip(wire.Path(), 17, b"first part", fragment=0x0002))

ROWS: dict[str, tuple[tuple[object, ...], list[str]]] = {
    "waits for its equal": ((p(A), s(A)), ["", "P0"]),
    "the secondary first": ((s(A), p(A)), ["", "P0"]),
    "IP ID, TTL and TOS don't count": ((p(A), s(udp(b"one", ip_id=77, ttl=3, tos=4))), ["", "P0"]),
    "each serves once": ((p(A), p(A), s(A)), ["", "", "P0"]),
    "in order, though matched out of order": ((p(A), p(B), s(B), s(A)), ["", "", "", "P0 P1"]),
    "re-ordering within the window is none": (
        (p(A), p(B), p(C), s(C), s(B), s(A), WINDOW),
        ["", "", "", "", "", "P0 P1 P2", ""],
    ),
    "overtaken for longer than the window": (
        (p(A), p(B), s(B), WINDOW, Commit()),
        ["", "", "", "!datagram@0 want", "P0 P1"],
    ),
    "the secondary says another thing": ((p(A), s(udp(b"onx")), WINDOW), ["", "", "!datagram@2 want"]),
    "another length": ((p(A), s(udp(b"one more")), WINDOW), ["", "", "!datagram@3 want"]),
    "the secondary says nothing": ((p(A), WINDOW, Later()), ["", "", "!primary-timeout@0 want"]),
    "the primary says nothing": ((s(A), WINDOW, Later()), ["", "", "!secondary-timeout@0 want"]),
    "other flows are apart": ((p(A), p(udp(b"one", OTHER)), s(udp(b"one", OTHER))), ["", "", "P1"]),
    "old output proves nothing": ((s(A), Commit(), p(A), s(A)), ["", "", "", "P0"]),
    "echo replies by identifier and number": (
        (
            p(wire.echo_reply(PATH, 1, 1)),
            s(wire.echo_reply(PATH, 1, 2)),
            s(wire.echo_reply(PATH, 2, 1)),
            s(wire.echo_reply(PATH, 1, 1)),
        ),
        ["", "", "", "P0"],
    ),
    "ICMPv6 echo": ((p(wire.echo_reply(V6, 1, 1)), s(wire.echo_reply(V6, 1, 1))), ["", "P0"]),
    "other protocols over IP": ((p(SCTP), s(SCTP_OTHER), s(SCTP)), ["", "", "P0"]),
    "fragments by their offset": ((p(FIRST), s(LAST), s(FIRST)), ["", "", "P0"]),
    "an unknown ethertype": ((p(BROKEN), s(BROKEN)), ["", "P0"]),
    "a frame too short for Ethernet": ((p(SHORT), s(SHORT)), ["", "P0"]),
    "ARP passes": ((p(wire.arp()), s(wire.arp())), ["P0", ""]),
    "neighbour discovery passes": ((p(wire.neighbour_solicitation()),), ["P0"]),
    "DHCP passes": ((p(wire.dhcp_discover()),), ["P0"]),
    "IGMP passes": ((p(wire.igmp_report()),), ["P0"]),
    "MLD passes": ((p(wire.mld_report()),), ["P0"]),
    "LLDP passes": ((p(wire.lldp()),), ["P0"]),
    "STP passes": ((p(wire.stp()),), ["P0"]),
    "the secondary's copy is swallowed, never missed": ((s(wire.arp()), Later()), ["", ""]),
}


@pytest.mark.parametrize("name", ROWS)
def test_row(name: str) -> None:
    steps, expected = ROWS[name]
    assert play(*steps) == expected


def test_what_passes_is_configuration() -> None:
    assert play(p(wire.arp()), s(wire.arp()), pass_classes=()) == ["", "P0"]


def test_a_match_is_looked_for_so_far() -> None:
    others = [udp(bytes([65 + i])) for i in range(4)]
    steps = [*map(p, others), p(A), s(A), *map(s, others)]
    assert play(*steps, reorder_frames=5)[-1] == "P3 P4"
    assert play(*steps, reorder_frames=4)[-1] == "P3"
