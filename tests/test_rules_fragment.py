# SPDX-License-Identifier: Apache-2.0
"""IPv4 and IPv6 fragments, row by row; model/table.py has the language. The oracle puts them together by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import wire
from conversation import text
from model.core import Core
from model.flow import PRIMARY, SECONDARY
from model.packet import Cls, parse
from model.table import (
    MILLISECOND,
    NUMBERS,
    OPEN,
    TIMEOUT_MS,
    WINDOW_MS,
    Row,
    Send,
    Table,
    abort,
    alone,
    commit,
    p,
    p_raw,
    resume,
    s,
    s_raw,
    stop,
    wait,
)
from model.verdict import Config
from wire import Path

from coloproxy.rules import Rules, ToleranceRule, parse_rules

CONFIG = Config(compare_timeout=TIMEOUT_MS * MILLISECOND, reorder_window=WINDOW_MS * MILLISECOND, max_fragments=8)

V4, V6 = Path(), Path.v6()
BODY = text(1, 60)


def cut(path: Path = V4, cuts: tuple[int, ...] = (16, 40), ident: int = 77, body: bytes = BODY) -> list[bytes]:
    """A UDP datagram of 68 bytes in three fragments."""
    return wire.fragments(wire.udp(path, body), cuts, ident)


def send(side: int, frames: Sequence[bytes], *which: int) -> list[Send]:
    return [Send(side, raw=frames[index]) for index in which or range(len(frames))]


def pf(frames: Sequence[bytes], *which: int) -> list[Send]:
    """The primary sends fragments, by their index; none named: all."""
    return send(PRIMARY, frames, *which)


def sf(frames: Sequence[bytes], *which: int) -> list[Send]:
    return send(SECONDARY, frames, *which)


def piece(low: int, high: int, more: bool, path: Path = V4, ident: int = 77, flip: int = 0) -> bytes:
    """Bytes [low, high) of the datagram's IP payload; `flip` is put over the last of them."""
    frame = bytearray(wire.fragment(wire.udp(path, BODY), low, high, more, ident))
    frame[-1] ^= flip
    return bytes(frame)


LATE = "!primary-timeout want:primary-timeout"


def both_families() -> dict[str, list[Row]]:
    out: dict[str, list[Row]] = {}
    for name, path in (("IPv4", V4), ("IPv6", V6)):
        f, other, longer = cut(path), cut(path, body=text(2, 60)), cut(path, ident=78)
        rows: dict[str, list[Row]] = {
            "in order": [(pf(f), ""), (sf(f), "p1 p2 p3")],
            "the secondary first": [(sf(f), ""), (pf(f), "p1 p2 p3")],
            "any order; frames leave in order of arrival": [
                (pf(f, 2, 0, 1), ""),
                (sf(f, 1, 2), ""),
                (sf(f, 0), "p1 p2 p3"),
            ],
            "IP IDs need not agree": [(pf(f), ""), (sf(longer), "p1 p2 p3")],
            "cut elsewhere": [(pf(f), ""), (sf(cut(path, (8, 16, 24))), "p1 p2 p3")],
            "the secondary does not cut": [(pf(f), ""), (s_raw(wire.udp(path, BODY)), "p1 p2 p3")],
            "the primary does not cut": [(p_raw(wire.udp(path, BODY)), ""), (sf(f, 0, 1), ""), (sf(f, 2), "p1")],
            "not before all has come, on either side": [
                (pf(f, 0, 1), ""),
                (sf(f, 0, 1), ""),
                (sf(f, 2), ""),
                (pf(f, 2), "p1 p2 p3"),
            ],
            "another byte is a difference, at its place": [
                (pf(f), ""),
                (sf(other), ""),
                (wait(WINDOW_MS), "!datagram@0 want:datagram"),
                (commit(), "p1 p2 p3"),
            ],
            "two datagrams, interleaved": [
                (pf([*f, *other], 0), ""),
                (pf(cut(path, ident=78, body=text(2, 60)), 0), ""),
                (pf(f, 1, 2), ""),
                (pf(cut(path, ident=78, body=text(2, 60)), 1, 2), ""),
                (sf(cut(path, ident=9, body=text(2, 60))), ""),
                (sf(cut(path, ident=8)), "p1 p3 p4 p2 p5 p6"),
            ],
            "its place in the flow is where it is whole": [
                (pf(f, 0, 1), ""),
                (p_raw(wire.udp(path, b"quick")), ""),
                (pf(f, 2), ""),
                (s_raw(wire.udp(path, b"quick")), "p3"),
                (sf(f), "p1 p2 p4"),
            ],
            "a repeated fragment joins": [(pf(f, 0, 0, 1, 1, 2), ""), (sf(f), "p1 p2 p3 p4 p5")],
            "of the secondary's too": [(sf(f, 0, 0, 1, 1, 2), ""), (pf(f), "p1 p2 p3")],
            "a repeated fragment with other bytes spoils": [
                (pf([piece(0, 16, True, path), piece(0, 16, True, path, flip=1), piece(16, 68, False, path)]), ""),
                (sf(f), ""),
                (wait(TIMEOUT_MS), LATE),
                (commit(), "p1 p2 p3"),
            ],
            "two ends": [
                (pf([piece(0, 16, True, path), piece(16, 40, False, path), piece(16, 68, False, path)]), ""),
                (sf(f), ""),
                (wait(TIMEOUT_MS), LATE),
                (commit(), "p1 p2 p3"),
            ],
            "bytes beyond the end": [
                (pf([piece(40, 64, True, path), piece(0, 16, True, path), piece(16, 40, False, path)]), ""),
                (sf(cut(path, (16,), body=BODY[:32])), ""),
                (wait(TIMEOUT_MS), LATE),
                (commit(), "p1 p2 p3"),
            ],
            "bytes beyond the end, as many as are missing": [
                (pf([piece(16, 32, False, path), piece(32, 48, True, path)]), ""),
                (pf([piece(48, 64, True, path, ident=78), piece(16, 32, False, path, ident=78)]), ""),
                (wait(TIMEOUT_MS), LATE),
                (commit(), "p1 p2 p3 p4"),
            ],
            "an empty fragment": [
                (pf([piece(0, 16, True, path), piece(16, 16, True, path), piece(16, 68, False, path)]), ""),
                (sf(f), ""),
                (wait(TIMEOUT_MS), LATE),
                (commit(), "p1 p2 p3"),
            ],
            "a length that is no multiple of 8": [
                (pf([piece(0, 20, True, path), piece(16, 68, False, path)]), ""),
                (sf(f), ""),
                (wait(TIMEOUT_MS), LATE),
                (commit(), "p1 p2"),
            ],
            "an incomplete one waits for the checkpoint": [
                (pf(f, 0, 2), ""),
                (wait(TIMEOUT_MS), LATE),
                (commit(), "p1 p2"),
                (pf(f, 1), ""),
                (sf(f), ""),
                (wait(TIMEOUT_MS), LATE),
                (commit(), "p3"),
            ],
            "an incomplete one of the secondary's is dropped for its age": [
                (sf(f, 0, 1), ""),
                (wait(TIMEOUT_MS), ""),
                (sf(f, 2), ""),
                (pf(f), ""),
                (wait(TIMEOUT_MS), LATE),
                (commit(), "p1 p2 p3"),
            ],
            "VLANs make the datagram": [
                (pf(cut(replace(path, vlans=(5,))), 0), ""),
                (pf(f, 1, 2), ""),
                (sf(f), ""),
                (wait(TIMEOUT_MS), LATE),
                (commit(), "p1 p2 p3"),
            ],
            "behind VLAN tags": [
                (pf(cut(replace(path, vlans=(5, 6)))), ""),
                (s_raw(wire.udp(replace(path, vlans=(5, 6)), BODY)), "p1 p2 p3"),
            ],
            "Ethernet padding is no payload": [
                (pf(cut(replace(path, pad=True), (8, 16))), ""),
                (s_raw(wire.udp(path, BODY)), "p1 p2 p3"),
            ],
            "an echo": [
                (pf(wire.fragments(wire.echo_reply(path, 5, 6, BODY), (24,))), ""),
                (s_raw(wire.echo_reply(path, 5, 6, BODY)), "p1 p2"),
            ],
            "a protocol that nobody knows": [
                (pf(wire.fragments(wire.ip(path, 253, BODY), (24,))), ""),
                (s_raw(wire.ip(path, 253, BODY)), "p1 p2"),
            ],
            "a reassembled datagram that can't be parsed": [
                (pf(wire.fragments(wire.ip(path, wire.UDP, b"\0\x35\0\x35\xff\xff\0\0" + BODY), (24,))), ""),
                (sf(wire.fragments(wire.ip(path, wire.UDP, b"\0\x35\0\x35\xff\xff\0\0" + BODY), (8,), 5)), "p1 p2"),
            ],
            "tiny fragments, the ports in the second": [
                (pf(wire.fragments(wire.ip(path, wire.TCP, bytes(13) + b"\x10" + bytes(30)), (8,))), ""),
                (wait(TIMEOUT_MS), LATE),
                (commit(), "p1 p2"),
            ],
            "old ones of the secondary's prove nothing": [
                (sf(f, 0, 1), ""),
                (stop(), ""),
                (commit(), ""),
                (pf(f), ""),
                (sf(f, 2), ""),
                (wait(TIMEOUT_MS), LATE),
                (commit(), "p1 p2 p3"),
            ],
            "whole, but old": [
                (sf(f), ""),
                (stop(), ""),
                (commit(), ""),
                (pf(f), ""),
                (sf(f), "p1 p2 p3"),
            ],
            "both sides of a cut: the old part leaves, the new one waits": [
                (pf(f, 0, 1), ""),
                (stop(), ""),
                (resume(), ""),
                (pf(f, 2), ""),
                (commit(), "p1 p2"),
                (sf(f), ""),
                (wait(TIMEOUT_MS), LATE),
                (commit(), "p3"),
            ],
            "both sides of a cut, and nobody told in time": [
                (pf(f, 0, 1), ""),
                (resume(), ""),
                (pf(f, 2), ""),
                (commit(), "p1 p2"),
                (sf(f), ""),
                (wait(TIMEOUT_MS), LATE),
                (commit(), "p3"),
            ],
            "read while the VMs stood still, before the cut": [
                (stop(), ""),
                (pf(f), ""),
                (sf(f), ""),
                (commit(), "p1 p2 p3"),
                (pf(f), ""),
                (sf(f), "p4 p5 p6"),
            ],
            "... and behind it": [
                (stop(), ""),
                (resume(), ""),
                (pf(f), ""),
                (sf(f), ""),
                (commit(), "p1 p2 p3"),
            ],
            "an abort takes them in": [
                (pf(f, 0), ""),
                (sf(f, 2), ""),
                (stop(), ""),
                (pf(f, 1, 2), ""),
                (sf(f, 0, 1), ""),
                (abort(), "p1 p2 p3"),
            ],
            "alone, all leave": [
                (pf(f), ""),
                (pf(longer, 0), ""),
                (alone(), "p1 p2 p3 p4"),
                (pf(longer, 1, 2), "p5 p6"),
            ],
            "a flow that has diverged": [
                (p_raw(wire.udp(path, b"a")), ""),
                (s_raw(wire.udp(path, b"b")), ""),
                (wait(WINDOW_MS), "!datagram@0 want:datagram"),
                (pf(f), ""),
                (sf(f), ""),
                (commit(), "p1 p2 p3 p4"),
            ],
            "DHCP in fragments passes when it is whole": [
                (pf(wire.fragments(wire.udp(_dhcp(path), BODY), (8,)), 0), ""),
                (pf(wire.fragments(wire.udp(_dhcp(path), BODY), (8,)), 1), "p1 p2"),
                (sf(wire.fragments(wire.udp(_dhcp(path), BODY), (8,))), ""),
                (wait(TIMEOUT_MS), ""),
            ],
            "limit: more of the primary's wait for a checkpoint": [
                (pf([piece(8 * n, 8 * n + 8, True, path, ident=n) for n in range(1, 9)]), ""),
                (pf(f, 0), "limit:fragments want:limit-fragments"),
                (sf(f), ""),
                (pf(f, 1, 2), ""),
                (commit(), "p1 p2 p3 p4 p5 p6 p7 p8 p9 p10 p11"),
                (pf(f), ""),
                (sf(f), "p12 p13 p14"),
            ],
            "limit: more of the secondary's push out the oldest": [
                (sf([piece(8 * n, 8 * n + 8, True, path, ident=n) for n in range(1, 9)]), ""),
                (sf(f), "limit:fragments want:limit-fragments"),
                (pf(f), "p1 p2 p3"),
            ],
        }
        out |= {f"{name}: {what}": case for what, case in rows.items()}
    return out


def _dhcp(path: Path) -> Path:
    ports = (68, 67) if path.family == 4 else (546, 547)
    return replace(path, sport=ports[0], dport=ports[1])


FAMILIES: dict[str, list[Row]] = {
    "IPv4: an overlap with the same bytes joins": [
        (pf([piece(0, 40, True), piece(16, 68, False)]), ""),
        (sf(cut()), "p1 p2"),
    ],
    "IPv4: two ends, the same bytes": [
        (pf([piece(16, 40, False), piece(16, 68, False), piece(0, 16, True)]), ""),
        (sf(cut()), ""),
        (wait(TIMEOUT_MS), LATE),
        (commit(), "p1 p2 p3"),
    ],
    "IPv4: one inside the other": [
        (pf([piece(0, 40, True), piece(8, 16, True), piece(40, 68, False)]), ""),
        (sf(cut()), "p1 p2 p3"),
    ],
    "IPv4: a bridge over two that overlap both": [
        (pf([piece(0, 16, True), piece(32, 68, False), piece(8, 40, True)]), ""),
        (sf(cut()), "p1 p2 p3"),
    ],
    "IPv4: an overlap with other bytes spoils": [
        (pf([piece(0, 40, True, flip=1), piece(32, 68, False), piece(0, 40, True)]), ""),
        (sf(cut()), ""),
        (wait(TIMEOUT_MS), LATE),
        (commit(), "p1 p2 p3"),
    ],
    "IPv4: of the secondary's it proves nothing": [
        (pf(cut()), ""),
        (sf([piece(0, 40, True, flip=1), piece(32, 68, False), piece(0, 40, True)]), ""),
        (wait(TIMEOUT_MS), LATE),
        (commit(), "p1 p2 p3"),
    ],
    "IPv4: RFC 3128, TCP flags rewritten": [
        (pf([piece(0, 16, True), piece(8, 68, False, flip=1), piece(8, 68, False)]), ""),
        (wait(TIMEOUT_MS), LATE),
        (commit(), "p1 p2 p3"),
    ],
    "IPv4: the protocol makes the datagram": [
        (pf([piece(0, 16, True), wire.fragment(wire.ip(V4, 253, bytes(68)), 16, 68, False)]), ""),
        (wait(TIMEOUT_MS), LATE),
        (commit(), "p1 p2"),
    ],
    "IPv4: more than 65535 bytes": [
        (pf([piece(0, 16, True), wire.ip(V4, wire.UDP, bytes(16), wire.Noise(ip_id=77), fragment=0x1FFF)]), ""),
        (wait(TIMEOUT_MS), LATE),
        (commit(), "p1 p2"),
    ],
    "IPv6: an overlap spoils, whatever its bytes (RFC 5722)": [
        (pf([piece(0, 40, True, V6), piece(16, 68, False, V6)]), ""),
        (sf(cut(V6)), ""),
        (wait(TIMEOUT_MS), LATE),
        (commit(), "p1 p2"),
    ],
    "IPv6: and what comes after it": [
        (pf([piece(0, 40, True, V6), piece(16, 40, True, V6), *cut(V6)]), ""),
        (sf(cut(V6)), ""),
        (wait(TIMEOUT_MS), LATE),
        (commit(), "p1 p2 p3 p4 p5"),
    ],
    "IPv6: an atomic fragment is the datagram (RFC 6946)": [
        (pf(wire.fragments(wire.udp(V6, BODY), ())), ""),
        (s_raw(wire.udp(V6, BODY)), "p1"),
    ],
    "IPv6: it does not meet others of its ID": [
        (pf(cut(V6), 0), ""),
        (pf(wire.fragments(wire.udp(V6, b"atom"), ())), ""),
        (s_raw(wire.udp(V6, b"atom")), "p2"),
        (pf(cut(V6), 1, 2), ""),
        (sf(cut(V6)), "p1 p3 p4"),
    ],
    "IPv6: reserved bits mean nothing": [
        (pf(wire.fragments(wire.udp(V6, BODY), (), reserved=3)), ""),
        (s_raw(wire.udp(V6, BODY)), "p1"),
        (pf(wire.fragments(wire.udp(V6, BODY), (8,), reserved=3)), ""),
        (s_raw(wire.udp(V6, BODY)), "p2 p3"),
    ],
    "IPv6: an atomic one with reserved bits does not meet others of its ID either": [
        (pf(cut(V6), 0), ""),
        (pf(wire.fragments(wire.udp(V6, b"atom"), (), reserved=3)), ""),
        (s_raw(wire.udp(V6, b"atom")), "p2"),
    ],
    "IPv6: the first fragment's next header counts": [
        (pf([cut(V6)[0], *(f[:54] + b"\x99" + f[55:] for f in cut(V6)[1:])]), ""),
        (sf(cut(V6)), "p1 p2 p3"),
    ],
    "IPv6: behind hop-by-hop, destination options and routing": [
        (pf(wire.fragments(wire.udp(Path.v6(extensions=(0, 60, 43)), BODY), (8, 32), also=bytes((0, 60, 43)))), ""),
        (s_raw(wire.udp(V6, BODY)), "p1 p2 p3"),
    ],
    "IPv6: before destination options": [
        (pf(wire.fragments(wire.udp(Path.v6(extensions=(0, 60)), BODY), (8, 32), also=bytes((0,)))), ""),
        (s_raw(wire.udp(V6, BODY)), "p1 p2 p3"),
    ],
    "IPv6: the header chain cut in two": [
        (pf(wire.fragments(wire.udp(Path.v6(extensions=(60, 60, 60)), BODY), (8,))), ""),
        (s_raw(wire.udp(V6, BODY)), "p1 p2"),
    ],
    "IPv6: a fragment inside a fragment": [
        (pf(wire.fragments(piece(16, 40, True, V6), (8,), 5)), ""),
        (sf(wire.fragments(piece(16, 40, True, V6), (16,), 6)), "p1 p2"),
    ],
    "neither family completes the other's": [
        (pf([piece(0, 16, True), piece(16, 68, False, V6)]), ""),
        (wait(TIMEOUT_MS), LATE),
        (commit(), "p1 p2"),
    ],
}


def tcp_cut(off: int, data: bytes, ack: int = 0, path: Path = V4) -> list[bytes]:
    n = NUMBERS[0]
    frame = wire.tcp(path, n.primary + 1 + off, n.client + 1 + ack, wire.ACK, data)
    return wire.fragments(frame, (8,))


TCP: dict[str, list[Row]] = {
    "compared as a stream": [
        *OPEN,
        (pf(tcp_cut(0, b"abcdef")), ""),
        (s(0, "abc"), ""),
        (s(3, "def"), "p2 p3"),
    ],
    "of the secondary's": [
        *OPEN,
        (sf(tcp_cut(0, b"abcdef")), ""),
        (p(0, "abc"), "p2"),
        (p(3, "def"), "p3"),
    ],
    "its ACK number can't be lowered: it waits": [
        *OPEN,
        (pf(tcp_cut(0, b"abc", ack=10)), ""),
        (s(0, "abc"), ""),
        (s(3, ack=10), "p2 p3"),
    ],
    "a difference": [
        *OPEN,
        (pf(tcp_cut(0, b"abcdef")), ""),
        (s(0, "abcDef"), "!payload@3 want:payload"),
        (commit(), "p2 p3"),
        (p(6, "g"), ""),
        (s(6, "g"), "p4"),
    ],
    "unjudged when the commit comes: what follows is matched beyond the gap": [
        *OPEN,
        (stop(), ""),
        (pf(tcp_cut(0, b"abcdef")), ""),
        (commit(), "p2 p3"),
        (p(6, "g"), ""),
        (s(6, "g"), "p4"),
        (p(7, "hi"), ""),
        (s(6, "ghi"), "p5"),
        (p(0, "abc"), ""),
        (s(0, "abcdefghi"), "p6"),
    ],
}  # fmt: skip

CASES = [
    pytest.param(rows, id=name)
    for group, prefix in ((both_families(), ""), (FAMILIES, ""), (TCP, "TCP: "))
    for name, rows in {prefix + name: rows for name, rows in group.items()}.items()
]


@pytest.mark.parametrize("rows", CASES)
def test_core(rows: list[Row]) -> None:
    Table(Core, NUMBERS[0], CONFIG).play(rows)


RULES = parse_rules(
    """
[[policy]]
action = "pass"
protocol = "udp"
client_port = 40000

[[policy]]
action = "drop-secondary"
protocol = "udp"
"""
)


def test_rules_are_asked_about_the_datagram() -> None:
    """Its ports are in one fragment only; a datagram that passes does so when it is whole."""
    for path in (V4, V6):
        passes, waits = cut(path), cut(replace(path, dport=40001), ident=78)
        rows: list[Row] = [
            (pf(passes, 1, 2), ""),
            (pf(passes, 0), "p1 p2 p3"),
            (sf(passes), ""),
            (pf(waits, 1, 2), ""),
            (sf(waits), ""),
            (pf(waits, 0), "want:policy"),
            (commit(), "p4 p5 p6"),
        ]
        Table(Core, NUMBERS[0], replace(CONFIG, rules=RULES)).play(rows)


def test_tolerated_bytes_may_be_cut_in_two() -> None:
    rules = Rules(tolerances=(ToleranceRule("id", b" id=", 6),))
    ours, theirs = b"0123456789 id=123456 rest", b"0123456789 id=654321 rest"
    rows: list[Row] = [
        (pf(wire.fragments(wire.udp(V4, ours), (24,))), ""),
        (s_raw(wire.udp(V4, theirs)), "p1 p2 tolerated@14"),
    ]
    Table(Core, NUMBERS[0], replace(CONFIG, rules=rules)).play(rows)


def test_wire_cuts_as_the_model_reads() -> None:
    """Offsets, flags and bodies of the fragments that these tables send."""
    for path, kind in ((V4, 4), (V6, 6)):
        packets = [parse(frame) for frame in cut(path)]
        assert [(p.cls, p.key.family, p.start, len(p.body), p.more) for p in packets] == [
            (Cls.FRAGMENT, kind, 0, 16, True),
            (Cls.FRAGMENT, kind, 16, 24, True),
            (Cls.FRAGMENT, kind, 40, 28, False),
        ]
