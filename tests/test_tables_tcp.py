# SPDX-License-Identifier: Apache-2.0
"""The rules of TCP as tables: what each side says, in order, and what comes out after each step (see table.py)."""

from __future__ import annotations

import pytest
import wire
from table import Commit, Later, Say, play

from coloproxy import Comparator, Released, Side

ISN, OTHER_ISN, CLIENT = 1000, 777_000, 500
PATH = wire.Path()
V6 = wire.Path(family=6, vm=bytes(15) + b"\x01", client=bytes(15) + b"\x02")
BINDING = wire.Options(mss=1460, wscale=7, sack_ok=True, timestamps=True)
PLAIN_TS = wire.Options(timestamps=True)


def p(seq: int, payload: bytes = b"", ack: int = CLIENT + 1, flags: int = wire.ACK, **more: object) -> Say:
    return Say(Side.PRIMARY, wire.tcp(PATH, seq % 2**32, ack % 2**32, flags, payload, **more))  # type: ignore[arg-type]


def s(seq: int, payload: bytes = b"", ack: int = CLIENT + 1, flags: int = wire.ACK, **more: object) -> Say:
    return Say(Side.SECONDARY, wire.tcp(PATH, seq % 2**32, ack % 2**32, flags, payload, **more))  # type: ignore[arg-type]


def syn(make: object, isn: int, options: wire.Options = BINDING, ack: int = CLIENT + 1) -> Say:
    return make(isn, b"", ack, wire.SYN | wire.ACK, options=options)  # type: ignore[operator,no-any-return]


OPEN = (syn(p, ISN), syn(s, OTHER_ISN))
OPENED = ["", "P0"]
A, B, C = b"a" * 100, b"b" * 50, b"c" * 10
FIN = wire.ACK | wire.FIN
RST = wire.RST
RST_ACK = wire.RST | wire.ACK


ROWS: dict[str, tuple[tuple[object, ...], list[str]]] = {
    # ---- opening
    "a SYN-ACK waits for the secondary's; the ISNs may differ": (OPEN, OPENED),
    "the secondary may be first": ((syn(s, OTHER_ISN), syn(p, ISN)), ["", "P0"]),
    "an active open": ((p(ISN, flags=wire.SYN, ack=0), s(5, flags=wire.SYN, ack=0)), ["", "P0"]),
    "MSS binds": (
        (syn(p, ISN), syn(s, 1, wire.Options(mss=1400, wscale=7, sack_ok=True, timestamps=True))),
        ["", "!syn-options@-1 want"],
    ),
    "window scale binds": (
        (syn(p, ISN), syn(s, 1, wire.Options(mss=1460, wscale=6, sack_ok=True, timestamps=True))),
        ["", "!syn-options@-1 want"],
    ),
    "SACK-permitted binds": (
        (syn(p, ISN), syn(s, 1, wire.Options(mss=1460, wscale=7, timestamps=True))),
        ["", "!syn-options@-1 want"],
    ),
    "timestamps bind": (
        (syn(p, ISN), syn(s, 1, wire.Options(mss=1460, wscale=7, sack_ok=True))),
        ["", "!syn-options@-1 want"],
    ),
    "a SYN-ACK is never lowered": ((syn(p, ISN), syn(s, 1, ack=CLIENT)), ["", ""]),
    "a SYN-ACK again": ((*OPEN, syn(p, ISN)), [*OPENED, "P1"]),
    # ---- the stream
    "payload waits for equal payload": ((*OPEN, p(ISN + 1, A), s(ISN + 1, A)), [*OPENED, "", "P1"]),
    "the secondary ahead": ((*OPEN, s(ISN + 1, A), p(ISN + 1, A)), [*OPENED, "", "P1"]),
    "the secondary in its own numbers": ((*OPEN, p(ISN + 1, A), s(OTHER_ISN + 1, A)), [*OPENED, "", "P1"]),
    "cut elsewhere": (
        (*OPEN, p(ISN + 1, A), p(ISN + 101, B), s(ISN + 1, A[:30]), s(ISN + 31, A[30:] + B[:1]), s(ISN + 102, B[1:])),
        [*OPENED, "", "", "", "P1", "P2"],
    ),
    "coalesced": (
        (*OPEN, p(ISN + 1, A), p(ISN + 101, B), p(ISN + 151, C), s(ISN + 1, A + B + C)),
        [*OPENED, "", "", "", "P1 P2 P3"],
    ),
    "the secondary repeats itself, overlapping": (
        (*OPEN, s(ISN + 1, A), s(ISN + 51, A[50:] + B), s(ISN + 1, A), p(ISN + 1, A + B)),
        [*OPENED, "", "", "", "P1"],
    ),
    "the secondary out of order": (
        (*OPEN, s(ISN + 101, B), p(ISN + 1, A), p(ISN + 101, B), s(ISN + 1, A)),
        [*OPENED, "", "", "", "P1 P2"],
    ),
    "a gap in the primary's own output": (
        (*OPEN, p(ISN + 101, B), s(ISN + 1, A + B), p(ISN + 1, A)),
        [*OPENED, "", "P1", "P2"],
    ),
    "a retransmission of what was released": (
        (*OPEN, p(ISN + 1, A), s(ISN + 1, A), p(ISN + 1, A)),
        [*OPENED, "", "P1", "P2"],
    ),
    "order within a flow is kept": (
        (*OPEN, p(ISN + 1, A), p(ISN + 101, B), s(ISN + 101, B), s(ISN + 1, A)),
        [*OPENED, "", "", "", "P1 P2"],
    ),
    "one byte differs": (
        (*OPEN, p(ISN + 1, A), p(ISN + 101, B), s(ISN + 1, A), s(ISN + 101, B[:20] + b"x" + B[21:])),
        [*OPENED, "", "", "P1", "!payload@120 want"],
    ),
    "a divergence holds its flow until the commit, once": (
        (
            *OPEN,
            p(ISN + 1, A),
            s(ISN + 1, b"z" * 100),
            p(ISN + 101, B),
            s(ISN + 101, B),
            Commit(),
            p(ISN + 151, C),
            s(ISN + 151, C),
        ),
        [*OPENED, "", "!payload@0 want", "", "", "P1 P2", "", "P3"],
    ),
    # ---- noise
    "windows, timestamps, IP ID and TTL don't count": (
        (
            *OPEN,
            p(ISN + 1, A, options=PLAIN_TS),
            s(ISN + 1, A, options=PLAIN_TS, noise=wire.Noise(ip_id=9, ttl=3, tos=8, window=1, tsval=5, tsecr=6)),
        ),
        [*OPENED, "", "P1"],
    ),
    # ---- ACK numbers
    "a pure ACK waits for the secondary's": ((*OPEN, p(ISN + 1, ack=2000), s(ISN + 1, ack=2000)), [*OPENED, "", "P1"]),
    "a pure ACK at what was told passes": ((*OPEN, p(ISN + 1)), [*OPENED, "P1"]),
    "what both acknowledged is told meanwhile": (
        (*OPEN, p(ISN + 1, ack=3000), s(ISN + 1, ack=2000), s(ISN + 1, ack=3000)),
        [*OPENED, "", "ack=2000", "P1"],
    ),
    "payload leaves with its ACK lowered, the rest follows": (
        (*OPEN, p(ISN + 1, A, ack=2000), s(ISN + 1, A), s(ISN + 101, ack=2000)),
        [*OPENED, "", f"P1<{CLIENT + 1}", "ack=2000"],
    ),
    "payload behind a pure ACK takes it along": (
        (*OPEN, p(ISN + 1, ack=2000), p(ISN + 1, A, ack=2000), s(ISN + 1, A), s(ISN + 101, ack=2000)),
        [*OPENED, "", "", f"P1<{CLIENT + 1} P2<{CLIENT + 1}", "ack=2000"],
    ),
    "the commit tells what was owed": (
        (*OPEN, p(ISN + 1, A, ack=2000), s(ISN + 1, A), Commit()),
        [*OPENED, "", f"P1<{CLIENT + 1}", "ack=2000"],
    ),
    "an ACK owed for too long wants a checkpoint": (
        (*OPEN, p(ISN + 1, A, ack=2000), s(ISN + 1, A), Later(), Commit()),
        [*OPENED, "", f"P1<{CLIENT + 1}", "!ack-timeout@-1 want", "ack=2000"],
    ),
    "a signed segment is not lowered": (
        (
            *OPEN,
            p(ISN + 1, A, ack=2000, options=wire.Options(extra=bytes([19, 18]) + bytes(16))),
            s(ISN + 1, A),
            s(ISN + 101, ack=2000),
        ),
        [*OPENED, "", "", "P1"],
    ),
    "the secondary misses a segment: its SACK is repeated": (
        (
            *OPEN,
            p(ISN + 1, ack=3000),
            s(ISN + 1, ack=CLIENT + 1, options=wire.Options(sack=((2000, 3000),))),
            s(ISN + 1, ack=3000),
        ),
        [*OPENED, "", f"ack={CLIENT + 1}", "P1"],
    ),
    "a keep-alive passes": (
        (*OPEN, p(ISN + 1, A), s(ISN + 1, A), p(ISN + 100), p(ISN + 100, b"a")),
        [*OPENED, "", "P1", "P2", "P3"],
    ),
    # ---- ending
    "FIN is a position of the stream": (
        (*OPEN, p(ISN + 1, A, flags=FIN), s(ISN + 1, A), s(ISN + 101, flags=FIN)),
        [*OPENED, "", "", "P1"],
    ),
    "FIN against more data": ((*OPEN, p(ISN + 1, A, flags=FIN), s(ISN + 1, A + B)), [*OPENED, "", "!fin@100 want"]),
    "more data against FIN": ((*OPEN, p(ISN + 1, A + B), s(ISN + 1, A, flags=FIN)), [*OPENED, "", "!fin@100 want"]),
    "half close: ACKs go on": (
        (*OPEN, p(ISN + 1, flags=FIN), s(ISN + 1, flags=FIN), p(ISN + 2, ack=900), s(ISN + 2, ack=900)),
        [*OPENED, "", "P1", "", "P2"],
    ),
    "RST needs an RST": ((*OPEN, p(ISN + 1, flags=RST, ack=0), s(ISN + 1, flags=RST, ack=0)), [*OPENED, "", "P1"]),
    "RST's payload is ignored": (
        (*OPEN, p(ISN + 1, b"why", flags=RST, ack=0), s(ISN + 1, flags=RST, ack=0)),
        [*OPENED, "", "P1"],
    ),
    "RST alone times out": ((*OPEN, p(ISN + 1, flags=RST, ack=0), Later()), [*OPENED, "", "!rst@0 want"]),
    "the secondary resets, the primary speaks": (
        (*OPEN, s(ISN + 1, flags=RST, ack=0), p(ISN + 1, A)),
        [*OPENED, "", "!rst@0 want"],
    ),
    "the primary resets, the secondary speaks": (
        (*OPEN, p(ISN + 1, flags=RST, ack=0), s(ISN + 1, A)),
        [*OPENED, "", "!rst@0 want"],
    ),
    "a refused connection": ((p(0, flags=RST_ACK), s(0, flags=RST_ACK), p(0, flags=RST_ACK)), ["", "P0", "P1"]),
    # ---- connections after one another, and met in the middle
    "port re-use": (
        (
            *OPEN,
            p(ISN + 1, flags=FIN),
            s(ISN + 1, flags=FIN),
            syn(p, 9000, ack=42),
            syn(s, 8000, ack=42),
            p(9001, A, ack=42),
            s(9001, A, ack=42),
        ),
        [*OPENED, "", "P1", "", "P2", "", "P3"],
    ),
    "port re-use while old frames are held": (
        (*OPEN, p(ISN + 1, A), syn(p, 9000, ack=42), s(ISN + 1, A), syn(s, 8000, ack=42)),
        [*OPENED, "", "", "P1", "P2"],
    ),
    "the secondary re-uses the port first": (
        (*OPEN, syn(s, 8000, ack=42), s(8001, A, ack=42), syn(p, 9000, ack=42), p(9001, A, ack=42)),
        [*OPENED, "", "", "P1", "P2"],
    ),
    "met in mid-stream": ((p(ISN, A), s(ISN, A), p(ISN + 100, B), s(ISN + 100, B)), ["", "P0", "", "P1"]),
    "met in mid-stream, bytes before": (
        (p(ISN, A), s(ISN, A), p(ISN - 50, B), Commit()),
        ["", "P0", "!mid-stream@-50 want", "P1"],
    ),
    "met in mid-stream, the secondary in other numbers": ((p(ISN, A), s(2**31 + 5, A)), ["", "P0"]),
    # ---- wrapping
    "sequence numbers wrap at 2^32": (
        (
            syn(p, 2**32 - 50),
            syn(s, 2**32 - 1),
            p(2**32 - 49, A),
            s(2**32 - 49, A[:70]),
            s(21, A[70:]),
            p(51, B),
            s(51, B),
        ),
        ["", "P0", "", "", "P1", "", "P2"],
    ),
    "sequence numbers wrap at 2^31": (
        (syn(p, 2**31 - 50), syn(s, 3), p(2**31 - 49, A), s(2**31 - 49, A), p(2**31 + 51, B), s(2**31 + 51, B)),
        ["", "P0", "", "P1", "", "P2"],
    ),
    "ACK numbers wrap": (
        (
            syn(p, ISN, ack=2**32 - 10),
            syn(s, 5, ack=2**32 - 10),
            p(ISN + 1, ack=20),
            s(ISN + 1, ack=10),
            s(ISN + 1, ack=20),
        ),
        ["", "P0", "", "ack=10", "P1"],
    ),
    # ---- time
    "a primary frame waits too long": (
        (*OPEN, p(ISN + 1, A), Later(), Commit()),
        [*OPENED, "", "!primary-timeout@0 want", "P1"],
    ),
    "the secondary says what the primary never sends": (
        (*OPEN, s(ISN + 1, A), Later()),
        [*OPENED, "", "!secondary-timeout@0 want"],
    ),
    # ---- epochs
    "old secondary output proves nothing": (
        (*OPEN, s(ISN + 1, A), Commit(), p(ISN + 1, A), s(ISN + 1, A)),
        [*OPENED, "", "", "", "P1"],
    ),
    "after a commit the secondary counts as the primary": (
        (*OPEN, p(ISN + 1, A, ack=2000), Commit(), p(ISN + 101, B, ack=2000), s(ISN + 101, B, ack=2000)),
        [*OPENED, "", "P1", "", "P2"],
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_row(name: str) -> None:
    steps, expected = ROWS[name]
    assert play(*steps) == expected


def test_ipv6_vlan_and_padding() -> None:
    for path in (V6, wire.Path(vlans=(7,)), wire.Path(vlans=(7, 9)), wire.Path(pad=True)):
        comparator = Comparator()
        comparator.commit(0, 0)
        frame = wire.tcp(path, ISN, CLIENT, wire.ACK, b"hi")
        assert comparator.feed(Side.PRIMARY, [frame], 1) == 1
        assert comparator.actions() == []
        comparator.feed(Side.SECONDARY, [frame], 2)
        released = [action for action in comparator.actions() if isinstance(action, Released)]
        assert [action.data for action in released] == [frame]


def test_other_flows_go_on_beside_a_divergence() -> None:
    comparator = Comparator()
    comparator.commit(0, 0)
    other = wire.tcp(wire.Path(dport=50000), ISN, CLIENT, wire.ACK, A)
    comparator.feed(Side.PRIMARY, [wire.tcp(PATH, ISN, CLIENT, wire.ACK, A)], 1)
    comparator.feed(Side.SECONDARY, [wire.tcp(PATH, ISN, CLIENT, wire.ACK, B)], 2)
    comparator.feed(Side.PRIMARY, [other], 3)
    comparator.feed(Side.SECONDARY, [other], 4)
    assert [a.data for a in comparator.actions() if isinstance(a, Released)] == [other]
