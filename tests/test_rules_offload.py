# SPDX-License-Identifier: Apache-2.0
"""Virtio-net headers, super-frames, partial checksums, tunnels and jumbograms; model/table.py has the language."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
import wire
from conversation import text
from model.core import Core
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

CONFIG = Config(compare_timeout=TIMEOUT_MS * MILLISECOND, reorder_window=WINDOW_MS * MILLISECOND, max_fragments=8)
V4, V6 = Path(), Path.v6()
BODY = text(3, 250)
LATE = "!primary-timeout want:primary-timeout"
DIFFERS = "!datagram@0 want:datagram"


def uso(body: bytes = BODY, size: int = 100, path: Path = V4, vnet: int = 12, frame: bytes | None = None) -> bytes:
    """A UDP super-frame that the device cuts into datagrams of `size` bytes."""
    return wire.with_vnet(frame or wire.udp(path, body), vnet, wire.NEEDS_CSUM, wire.GSO_UDP_L4, size, 42)


def pu(body: bytes, path: Path = V4) -> Send:
    return p_raw(wire.udp(path, body))


def su(body: bytes, path: Path = V4) -> Send:
    return s_raw(wire.udp(path, body))


def super_frames(path: Path) -> dict[str, list[Row]]:
    a, b, c = BODY[:100], BODY[100:200], BODY[200:]
    whole = wire.udp(path, BODY)
    short = bytearray(whole)  # its UDP length is that of one segment
    at = len(whole) - len(BODY) - 4
    struct.pack_into("!H", short, at, 108)
    changed = wire.udp(path, BODY[:-1] + b"?")
    return {
        "a super-frame is its datagrams": [
            (p_raw(uso(path=path)), ""),
            (su(a, path), ""),
            (su(b, path), ""),
            (su(c, path), "p1"),
        ],
        "the other way round": [
            (s_raw(uso(path=path)), ""),
            (pu(a, path), "p1"),
            (pu(b, path), "p2"),
            (pu(c, path), "p3"),
        ],
        "... in any order": [(p_raw(uso(path=path)), ""), ([su(c, path), su(a, path), su(b, path)], "p1")],
        "both, the same cut": [(s_raw(uso(path=path)), ""), (p_raw(uso(path=path, vnet=10)), "p1")],
        "both, but more in one": [
            (s_raw(uso(BODY[:200], path=path)), ""),
            (p_raw(uso(path=path)), ""),
            (su(c, path), "p1"),
        ],
        "cut elsewhere: a difference": [
            (p_raw(uso(path=path)), ""),
            (s_raw(uso(path=path, size=125)), ""),
            (wait(WINDOW_MS), DIFFERS.replace("@0", "@100")),
            (commit(), "p1"),
        ],
        "not cut at all: a difference": [
            (p_raw(uso(path=path)), ""),
            (s_raw(whole), ""),
            (wait(WINDOW_MS), DIFFERS.replace("@0", "@100")),
            (commit(), "p1"),
        ],
        "its last byte": [
            (p_raw(uso(path=path)), ""),
            (s_raw(uso(path=path, frame=changed)), ""),
            (wait(WINDOW_MS), DIFFERS.replace("@0", "@49")),
            (commit(), "p1"),
        ],
        "its UDP length says nothing of what is cut": [
            (p_raw(uso(path=path, frame=bytes(short))), ""),
            (su(a, path), ""),
            (wait(TIMEOUT_MS), LATE),
            (su(b, path), ""),
            (su(c, path), "p1"),
        ],
        "frames behind it wait for all of it": [
            (p_raw(uso(path=path)), ""),
            (pu(b"x", path), ""),
            ([su(a, path), su(b"x", path), su(b, path)], ""),
            (su(c, path), "p1 p2"),
        ],
        "half matched when the commit comes": [
            (p_raw(uso(path=path)), ""),
            (su(a, path), ""),
            (stop(), ""),
            (commit(), "p1"),
            (pu(b, path), ""),
            (su(b, path), "p2"),
        ],
        "half matched, and of the new epoch: what matched is not enough": [
            (stop(), ""),
            (resume(), ""),
            (p_raw(uso(path=path)), ""),
            (commit(), ""),
            ([su(b, path), su(c, path)], ""),
            (su(a, path), "p1"),
        ],
        "judged too early: matched anew": [
            (resume(), ""),
            (p_raw(uso(path=path)), ""),
            (su(a, path), ""),
            (commit(), ""),
            ([su(b, path), su(c, path)], ""),
            (su(a, path), "p1"),
        ],
        "the secondary's, half used, proves nothing in the new epoch": [
            (s_raw(uso(path=path)), ""),
            (pu(a, path), "p1"),
            (stop(), ""),
            (commit(), ""),
            (pu(b, path), ""),
            (wait(TIMEOUT_MS), LATE),
            (commit(), "p2"),
        ],
        "a segment size of 0, or beyond the frame": [
            (p_raw(uso(path=path, size=0)), ""),
            (s_raw(whole), "p1"),
            (p_raw(uso(path=path, size=60000)), ""),
            (s_raw(whole), "p2"),
            (p_raw(uso(path=path, size=250)), ""),
            (s_raw(whole), "p3"),
        ],
        "more segments than anybody sends: equal to its like only": [
            (p_raw(uso(path=path, size=1)), ""),
            (s_raw(uso(path=path, size=1)), "p1"),
            (p_raw(uso(path=path, size=1)), ""),
            (s_raw(whole), ""),
            (wait(WINDOW_MS), DIFFERS.replace("@0", "@250")),
            (commit(), "p2"),
        ],
        "UFO: one datagram": [
            (p_raw(wire.with_vnet(whole, 12, 1, wire.GSO_UDP, 96, 42)), ""),
            ([s_raw(f) for f in wire.fragments(whole, (96, 192))], "p1"),
            ([p_raw(f) for f in wire.fragments(whole, (96, 192))], ""),
            (s_raw(wire.with_vnet(whole, 10, 1, wire.GSO_UDP, 128, 42)), "p2 p3 p4"),
        ],
        "UFO against USO: a difference": [
            (p_raw(wire.with_vnet(whole, 12, 1, wire.GSO_UDP, 100, 42)), ""),
            (s_raw(uso(path=path)), ""),
            (wait(WINDOW_MS), DIFFERS.replace("@0", "@100")),
            (commit(), "p1"),
        ],
    }


def tso(side: int, off: int, data: bytes, ack: int = 0, gso: int = 1, size: int = 4, **more: int) -> Send:
    n = NUMBERS[0]
    flags = wire.ACK | more.pop("flags", 0)
    frame = wire.tcp(V4, n.primary + 1 + off, n.client + 1 + ack, flags, data, partial=True)
    raw = wire.with_vnet(frame, more.get("vnet", 12), wire.NEEDS_CSUM, gso, size, more.get("hdr_len", 54))
    return Send(side, raw=raw)


CWR = 0x80

TCP: dict[str, list[Row]] = {
    "a super-frame against MTU-size ones": [
        *OPEN,
        (tso(0, 0, b"abcdefghijkl"), ""),
        (s(0, "abcd"), ""),
        (s(4, "efgh"), ""),
        (s(8, "ijkl"), "p2"),
    ],
    "the other way round, header of 10 bytes": [
        *OPEN,
        (tso(1, 0, b"abcdefghijkl", vnet=10), ""),
        (p(0, "abcd"), "p2"),
        (p(4, "efghijkl"), "p3"),
    ],
    "cut elsewhere: no difference, for a stream has no bounds": [
        *OPEN,
        (tso(0, 0, b"abcdefghijkl", size=5), ""),
        (tso(1, 0, b"abcdefghijkl", size=3), "p2"),
    ],
    "with the ECN bit, and CWR in the frame": [
        *OPEN,
        (tso(0, 0, b"abcdefgh", gso=wire.GSO_TCPV4 | wire.GSO_ECN, flags=CWR), ""),
        (s(0, "abcd"), ""),
        (s(4, "efgh"), "p2"),
    ],
    "a partial checksum and a lowered ACK number": [
        *OPEN,
        (tso(0, 0, b"abcdefgh", ack=9), ""),
        (s(0, "abcdefgh", ack=4), "p2^4"),
        (s(8, ack=9), "ack9"),
    ],
    "an own ACK asks for no offload": [
        *OPEN,
        (tso(0, 0, b"abcdefgh", ack=9, vnet=10), ""),
        (tso(1, 0, b"abcdefgh", ack=4), "p2^4"),
        (tso(1, 8, b"", ack=9), "ack9"),
    ],
    "a difference inside": [
        *OPEN,
        (tso(0, 0, b"abcdefgh"), ""),
        (s(0, "abcdeFgh"), "!payload@5 want:payload"),
        (commit(), "p2"),
    ],
    "hostile headers: no size, lengths beyond the frame, unknown types": [
        *OPEN,
        (tso(0, 0, b"ab", size=0), ""),
        (tso(0, 2, b"cd", hdr_len=65535, size=65535), ""),
        (tso(0, 4, b"ef", gso=0x7F), ""),
        (tso(0, 6, b"gh", gso=wire.GSO_UDP_L4, size=1), ""),
        (s(0, "abcdefgh"), "p2 p3 p4 p5"),
    ],
}  # fmt: skip


def vxlan(inner: bytes) -> bytes:
    return wire.udp(Path(sport=50000, dport=4789), bytes.fromhex("0800000000002a00") + inner)


def geneve(inner: bytes) -> bytes:
    return wire.udp(Path(sport=50000, dport=6081), bytes.fromhex("0000655800002a00") + inner)


def gre(inner: bytes) -> bytes:
    return wire.ip(V4, wire.GRE, bytes.fromhex("00006558") + inner)


def gre6(inner: bytes) -> bytes:
    return wire.ip(V6, wire.GRE, bytes.fromhex("00006558") + inner)


def tunnels() -> dict[str, list[Row]]:
    out: dict[str, list[Row]] = {}
    inner = wire.tcp(V4, 5, 6, wire.ACK, b"inside")
    other = inner[:-1] + b"E"
    for name, wrap in (("VXLAN", vxlan), ("GENEVE", geneve), ("GRE", gre), ("GRE over IPv6", gre6)):
        last = len(parse(wrap(inner)).body) - 1
        out[f"{name}: equal inside"] = [(p_raw(wrap(inner)), ""), (s_raw(wrap(inner)), "p1")]
        out[f"{name}: a byte differs inside"] = [
            (p_raw(wrap(inner)), ""),
            (s_raw(wrap(other)), ""),
            (wait(WINDOW_MS), f"!datagram@{last} want:datagram"),
            (commit(), "p1"),
        ]
    return out


def jumbo(payload: bytes, length: int = 0) -> bytes:
    """RFC 2675: payload length 0, the true one in a hop-by-hop option."""
    segment = struct.pack("!HHHH", 80, 40000, 0, 0) + payload
    option = struct.pack("!BBBBI", 17, 0, 0xC2, 4, 8 + len(segment))
    head = struct.pack("!IHBB", 6 << 28, length, 0, 64)
    return wire.ethernet(0x86DD, head + V6.vm + V6.client + option + segment)


def big_ipv4(payload: bytes) -> bytes:
    """Total length 0, as a super-frame above 64 KiB has it in Linux."""
    frame = bytearray(wire.udp(V4, payload))
    frame[16:18] = b"\0\0"
    return bytes(frame)


OTHERS: dict[str, list[Row]] = {
    "a jumbogram is compared as a whole frame": [
        (p_raw(jumbo(b"a" * 100)), ""),
        (s_raw(jumbo(b"a" * 99 + b"b")), ""),
        (s_raw(jumbo(b"a" * 100)), "p1"),
    ],
    "one above 64 KiB": [
        (p_raw(jumbo(bytes(70_000))), ""),
        (s_raw(jumbo(bytes(70_000))), "p1"),
    ],
    "IPv4 with a total length of 0": [
        (p_raw(big_ipv4(b"abc")), ""),
        (s_raw(big_ipv4(b"abd")), ""),
        (s_raw(big_ipv4(b"abc")), "p1"),
    ],
    "extension headers in any order": [
        (pu(b"a", Path.v6(extensions=(0, 60, 43, 60))), ""),
        (su(b"a", Path.v6(extensions=(43, 60, 0))), "p1"),
    ],
    "eight are too many": [
        (pu(b"a", Path.v6(extensions=(60,) * 8)), ""),
        (su(b"a", V6), ""),
        (su(b"a", Path.v6(extensions=(60,) * 8)), "p1"),
    ],
    "no next header: what is behind it is compared": [
        (p_raw(wire.ip(V6, 59, b"rest")), ""),
        (s_raw(wire.ip(V6, 59, b"resT")), ""),
        (s_raw(wire.ip(V6, 59, b"rest")), "p1"),
    ],
    "QinQ, and which tag is the outer one": [
        (pu(b"a", Path(vlans=(5, 6))), ""),
        (su(b"a", Path(vlans=(6, 5))), ""),
        (su(b"a", Path(vlans=(5,))), ""),
        (su(b"a", Path(vlans=(5, 6))), "p1"),
    ],
    "a virtio-net header is none of the frame": [
        (p_raw(wire.with_vnet(wire.udp(V4, b"a"), 12)), ""),
        (s_raw(wire.with_vnet(wire.udp(V4, b"a"), 10)), "p1"),
        (p_raw(wire.with_vnet(wire.udp(V4, b"a"), 12, wire.NEEDS_CSUM)), ""),
        (su(b"a"), "p2"),
    ],
    "... of a fragment's neither": [
        ([p_raw(wire.with_vnet(f, 12)) for f in wire.fragments(wire.udp(V4, BODY), (8,))], ""),
        ([s_raw(wire.with_vnet(f, 10)) for f in wire.fragments(wire.udp(V4, BODY), (80,))], "p1 p2"),
        ([p_raw(wire.with_vnet(f, 12)) for f in wire.fragments(wire.udp(V6, BODY), (8,))], ""),
        ([s_raw(wire.with_vnet(f, 10)) for f in wire.fragments(wire.udp(V6, BODY), (80,))], "p3 p4"),
    ],
}

GROUPS: tuple[tuple[str, dict[str, list[Row]]], ...] = (
    ("IPv4, ", super_frames(V4)),
    ("IPv6, ", super_frames(V6)),
    ("VLAN, ", super_frames(replace(V4, vlans=(7, 8)))),
    ("TCP, ", TCP),
    ("", tunnels()),
    ("", OTHERS),
)


@pytest.mark.parametrize(
    "rows", [pytest.param(rows, id=prefix + name) for prefix, group in GROUPS for name, rows in group.items()]
)
def test_core(rows: list[Row]) -> None:
    Table(Core, NUMBERS[0], CONFIG).play(rows)


def test_jumbograms_are_malformed() -> None:
    assert parse(jumbo(b"a")).cls == Cls.MALFORMED
    assert parse(big_ipv4(b"a")).cls == Cls.MALFORMED
