# SPDX-License-Identifier: Apache-2.0
"""Schedules that random search found, as it found them: each once released what it must not (R1)."""

from __future__ import annotations

import wire

from coloproxy import Comparator, Emitted, Released, Side
from coloproxy.events import Divergence

PATH = wire.Path()


def tcp(seq: int, ack: int, flags: int = wire.ACK, payload: bytes = b"") -> bytes:
    return wire.tcp(PATH, seq % 2**32, ack % 2**32, flags, payload)


def released(comparator: Comparator) -> list[int]:
    return [action.frame for action in comparator.actions() if isinstance(action, Released)]


def test_acks_of_the_secondarys_waiting_connection_tell_nothing_of_a_diverged_one() -> None:
    comparator = Comparator()
    comparator.commit(0, 0)
    comparator.feed(Side.PRIMARY, [tcp(9, 2147483643)], 1)
    comparator.feed(Side.SECONDARY, [tcp(3221225465, 2147484639, wire.SYN | wire.ACK)], 2)
    comparator.feed(Side.PRIMARY, [tcp(4294967294, 2147483645, payload=b"x")], 3)  # diverges: before the meeting
    comparator.feed(Side.SECONDARY, [tcp(2147483656, 2147484655)], 4)
    assert released(comparator) == []


def test_a_flow_met_by_a_reset_is_not_known_after_the_commit() -> None:
    comparator = Comparator()
    comparator.commit(0, 0)
    comparator.stop(1)
    comparator.feed(Side.PRIMARY, [tcp(16, 0, wire.RST)], 2)
    comparator.commit(3, 4)
    assert released(comparator) == [0]
    comparator.feed(Side.SECONDARY, [tcp(4294967290, 1, payload=b"abcdef")], 5)
    comparator.feed(Side.PRIMARY, [tcp(13, 1, payload=b"xyz")], 6)
    assert released(comparator) == []


def test_what_lies_before_the_syn_is_no_retransmission() -> None:
    comparator = Comparator()
    comparator.commit(0, 0)
    comparator.feed(Side.PRIMARY, [tcp(12320, 18, wire.SYN)], 1)
    comparator.feed(Side.SECONDARY, [tcp(536883232, 18, wire.SYN)], 2)
    assert released(comparator) == [0]
    comparator.feed(Side.SECONDARY, [tcp(536883233, 179)], 3)
    comparator.feed(Side.PRIMARY, [tcp(0, 179, wire.FIN | wire.ACK)], 4)
    assert released(comparator) == []


def test_what_the_secondary_said_before_its_syn_is_of_another_connection() -> None:
    comparator = Comparator()
    comparator.commit(0, 0)
    comparator.feed(
        Side.PRIMARY, [tcp(-22, 9, wire.SYN | wire.ACK), tcp(9, 9, wire.RST), tcp(-21, 9, payload=b"ab")], 1
    )
    before = [tcp(-21, 9, payload=b"ab" + bytes(28)), tcp(9, 9, wire.RST)]
    comparator.feed(Side.SECONDARY, [*before, tcp(-268435462, 9, wire.SYN | wire.ACK)], 2)
    assert released(comparator) == [0]


def emitted(comparator: Comparator) -> list[int]:
    """Their sequence numbers."""
    return [int.from_bytes(a.data[38:42], "big") for a in comparator.actions() if isinstance(a, Emitted)]


def test_a_flow_met_by_a_reset_and_then_by_more_is_known_after_the_commit() -> None:
    comparator = Comparator()
    comparator.commit(0, 0)
    comparator.stop(1)
    comparator.feed(Side.PRIMARY, [tcp(16, 6, wire.RST), tcp(16, 4, wire.FIN | wire.ACK)], 2)
    comparator.commit(3, 4)
    assert released(comparator) == [0, 1]
    comparator.feed(Side.SECONDARY, [tcp(17, 6)], 5)
    comparator.feed(Side.PRIMARY, [tcp(16, 1), tcp(17, 12)], 6)
    assert emitted(comparator) == [17]


def test_new_connection_behind_held_frames_of_the_old_is_known_after_the_commit() -> None:
    """The primary repeats its SYN after the commit; the secondary's other SYN is of yet another connection."""
    comparator = Comparator()
    comparator.commit(0, 0)
    comparator.feed(Side.PRIMARY, [tcp(5, 1, payload=b"held"), tcp(2147483641, 990, wire.SYN | wire.ACK)], 1)
    comparator.commit(2, 3)
    assert released(comparator) == [0, 1]
    comparator.feed(Side.PRIMARY, [tcp(2147483641, 990, wire.SYN | wire.ACK)], 4)
    comparator.feed(Side.SECONDARY, [tcp(2147483648, 2990, wire.SYN | wire.ACK)], 5)
    comparator.feed(Side.PRIMARY, [tcp(2147483642, 991)], 6)
    assert released(comparator) == [2], "covered by the commit; the other acknowledges more than the secondary has"


def test_a_match_of_the_old_epoch_releases_nothing_in_the_new_one() -> None:
    """R3, found by fuzz_schedule.c. No stop came before the commit, so the third frame was judged too early."""
    comparator = Comparator()
    comparator.commit(0, 0)
    comparator.feed(Side.PRIMARY, [wire.udp(PATH, b"first")], 1)
    comparator.feed(Side.SECONDARY, [wire.udp(PATH, b"second")], 2)
    comparator.feed(Side.PRIMARY, [wire.udp(PATH, b"second")], 3)  # matched, and held behind the first
    comparator.commit(3, 4)
    assert released(comparator) == [0]
    comparator.feed(Side.SECONDARY, [wire.udp(PATH, b"second")], 5)
    assert released(comparator) == [2]


def test_the_garbage_byte_of_a_keepalive_is_no_difference() -> None:
    """RFC 9293, 3.8.4: at SND.NXT - 1, which the client has had. The oracle would take it for other bytes."""
    comparator = Comparator()
    comparator.commit(0, 0)
    for side in Side:
        comparator.feed(side, [tcp(100, 9, payload=b"abc")], 1)
    comparator.feed(Side.PRIMARY, [tcp(102, 9, payload=b"\0")], 2)
    comparator.feed(Side.SECONDARY, [tcp(102, 9, payload=b"\xff")], 3)
    assert comparator.events() == []
    assert released(comparator) == [0, 2]


def divergences(comparator: Comparator) -> list[str]:
    return [str(event.cause) for event in comparator.events() if isinstance(event, Divergence)]


def test_a_secondary_that_contradicts_itself_twice_before_the_primary_speaks_diverges_once() -> None:
    comparator = Comparator()
    comparator.commit(0, 0)
    says = [tcp(100, 5, wire.FIN | wire.ACK, b"ho"), tcp(100, 2, wire.FIN | wire.ACK)]
    comparator.feed(Side.SECONDARY, says * 2, 1)
    comparator.feed(Side.PRIMARY, [tcp(100, 1)], 2)
    assert divergences(comparator) == ["conflict"]


def test_a_flow_that_has_diverged_is_known_until_the_commit() -> None:
    comparator = Comparator(max_flows=1)
    comparator.commit(0, 0)
    comparator.feed(Side.PRIMARY, [tcp(100, 1)], 1)
    comparator.feed(Side.SECONDARY, [tcp(100, 1, payload=b"ab"), tcp(101, 1, payload=b"X")], 2)
    assert released(comparator) == [0]
    assert divergences(comparator) == ["conflict"]
    for side in Side:
        comparator.feed(side, [wire.udp(wire.Path(dport=2000), b"other")], 3)
    comparator.feed(Side.PRIMARY, [tcp(100, 1)], 4)
    comparator.feed(Side.SECONDARY, [tcp(100, 1, payload=b"ab"), tcp(101, 1, payload=b"X")], 5)
    assert divergences(comparator) == []
