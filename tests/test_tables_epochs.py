# SPDX-License-Identifier: Apache-2.0
"""Epochs, modes and limits, as tables (see table.py)."""

from __future__ import annotations

import pytest
import wire
from table import Abort, Alone, Commit, Later, Resume, Say, Stop, play

from coloproxy import CheckpointWanted, Comparator, LimitHit, Released, Side


def frame(text: bytes, port: int = 1000) -> bytes:
    return wire.udp(wire.Path(dport=port), text)


def p(text: bytes, port: int = 1000) -> Say:
    return Say(Side.PRIMARY, frame(text, port))


def s(text: bytes, port: int = 1000) -> Say:
    return Say(Side.SECONDARY, frame(text, port))


TCP = wire.Path()


def tcp(side: Side, seq: int, payload: bytes = b"", ack: int = 1) -> Say:
    return Say(side, wire.tcp(TCP, seq, ack, wire.ACK, payload))


# Steps are 10 ns apart: Resume(ago=15) dates the RESUME between the two steps before it.
ROWS: dict[str, tuple[tuple[object, ...], list[str]]] = {
    "a commit covers what was read before the RESUME": (
        (p(b"a"), Stop(), p(b"b"), p(b"c"), Resume(ago=15), s(b"c")),
        ["", "", "", "", "P0 P1", "P2"],
    ),
    "nothing is judged between STOP and RESUME": ((p(b"a"), Stop(), s(b"a"), Abort()), ["", "", "", "P0"]),
    "secondary output of before the RESUME is dropped": (
        (Stop(), s(b"a"), Resume(), p(b"a"), s(b"a")),
        ["", "", "", "", "P0"],
    ),
    "what was read after the RESUME is the new epoch's, on both sides": (
        (Stop(), s(b"a"), p(b"a"), Resume(ago=25)),
        ["", "", "", "P0"],
    ),
    "an operator's stop and cont end no epoch": (
        (s(b"a"), Stop(), Abort(), p(b"a")),
        ["", "", "", "P0"],
    ),
    "one wish an epoch": (
        (p(b"a"), p(b"b", 2000), Later(), Later(), Commit(), p(b"c"), Later()),
        ["", "", "!primary-timeout@0 want", "", "P0 P1", "", "!primary-timeout@0 want"],
    ),
    "alone: everything goes at once": ((p(b"a"), s(b"z"), Alone(), p(b"b"), s(b"b")), ["", "", "P0", "P1", ""]),
    "alone, then protected again": (
        (Alone(), p(b"a"), Stop(), p(b"b"), Resume(), p(b"c"), s(b"c")),
        ["", "P0", "", "", "P1", "", "P2"],
    ),
    "frames that were never judged still count as sent": (
        (
            tcp(Side.PRIMARY, 100, b"a" * 10),
            tcp(Side.SECONDARY, 100, b"a" * 10),
            Stop(),
            tcp(Side.PRIMARY, 110, b"b" * 10, ack=50),
            Resume(),
            tcp(Side.SECONDARY, 120, b"c" * 10, ack=50),
            tcp(Side.PRIMARY, 120, b"c" * 10, ack=50),
        ),
        ["", "P0", "", "", "P1", "", "P2"],
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_row(name: str) -> None:
    steps, expected = ROWS[name]
    assert play(*steps) == expected


def test_the_gap_can_be_kept() -> None:
    """On a link that is known to be quick, what the secondary says between STOP and RESUME is the new epoch's."""
    steps = (s(b"old"), Stop(), s(b"a"), Resume(), p(b"old"), p(b"a", 1000))
    assert play(*steps, keep_gap=True) == ["", "", "", "", "", ""]
    assert play(Stop(), s(b"a"), Resume(), p(b"a"), keep_gap=True) == ["", "", "", "P0"]


def feed_many(comparator: Comparator, side: Side, count: int, port: int = 1) -> int:
    return comparator.feed(side, [frame(b"%d" % number, port) for number in range(count)], 1)


@pytest.mark.parametrize("side", list(Side))
def test_frames(side: Side) -> None:
    comparator = Comparator(max_frames=20)
    comparator.commit(0, 0)
    assert feed_many(comparator, side, 4) == 4
    assert comparator.events() == []
    assert feed_many(comparator, side, 3, 2) == 3  # half of this side's ten: asked for, nothing refused yet
    assert [type(event) for event in comparator.events()] == [LimitHit, CheckpointWanted]
    assert feed_many(comparator, side, 100, 3) == 3
    assert comparator.actions() == []
    comparator.commit(2, 2)
    released = [action for action in comparator.actions() if isinstance(action, Released)]
    assert len(released) == (10 if side is Side.PRIMARY else 0)
    assert feed_many(comparator, side, 100, 3) == 10


def test_bytes() -> None:
    comparator = Comparator(max_bytes=2000)
    comparator.commit(0, 0)
    big = wire.udp(wire.Path(), bytes(600))
    assert comparator.feed(Side.PRIMARY, [big, big], 1) == 1
    comparator.commit(2, 2)
    assert comparator.feed(Side.PRIMARY, [wire.udp(wire.Path(), bytes(5000))], 3) == 1  # one is always taken


def test_frames_of_one_flow() -> None:
    comparator = Comparator(max_flow_frames=5)
    comparator.commit(0, 0)
    assert feed_many(comparator, Side.PRIMARY, 8) == 8  # the primary's are kept
    assert len(comparator.events()) == 2
    assert comparator.counters().held_frames == (8, 0)
    comparator.commit(2, 2)
    assert feed_many(comparator, Side.SECONDARY, 8) == 8  # the secondary's are not
    assert comparator.counters().held_frames == (0, 5)


def test_flows() -> None:
    comparator = Comparator(max_flows=3)
    comparator.commit(0, 0)
    for port in range(1, 6):
        assert comparator.feed(Side.PRIMARY, [frame(b"x", port)], port) == 1
    assert len(comparator.events()) == 2
    comparator.feed(Side.SECONDARY, [frame(b"x", port) for port in range(1, 6)], 9)
    assert [a.frame for a in comparator.actions() if isinstance(a, Released)] == [0, 1, 2]
    comparator.commit(10, 10)  # those without a flow waited for it
    assert [a.frame for a in comparator.actions() if isinstance(a, Released)] == [3, 4]


def test_an_idle_flow_makes_room() -> None:
    comparator = Comparator(max_flows=3)
    comparator.commit(0, 0)
    for port in range(1, 100):
        comparator.feed(Side.PRIMARY, [frame(b"x", port)], port)
        comparator.feed(Side.SECONDARY, [frame(b"x", port)], port)
    assert comparator.events() == []
    assert comparator.counters().flows_evicted == 96
