# SPDX-License-Identifier: Apache-2.0
"""A small language for tables: steps in, words out.

What comes out of a step is written as words: ``P0`` the primary's frame number 0 (numbers count the primary's frames
of a row), ``P0<1000`` the same with its ACK number lowered to 1000, ``ack=1000`` an ACK of the comparator's own,
``!cause@offset`` a divergence, ``limit cause``, ``want`` the wish for a checkpoint. Secondary frames that are done with
are not shown.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from coloproxy import CheckpointWanted, Comparator, Discarded, Divergence, Emitted, LimitHit, Released, Side


@dataclass(frozen=True)
class Say:
    """One frame of one side."""

    side: Side
    frame: bytes


@dataclass(frozen=True)
class Commit:
    """STOP, then RESUME: all that was said before is covered."""


@dataclass(frozen=True)
class Later:
    """Time passes: beyond the compare time-out, if not said otherwise."""

    ns: int = 2_000_000


@dataclass(frozen=True)
class Stop:
    """STOP of the primary."""


@dataclass(frozen=True)
class Resume:
    """RESUME with a commit, `ago` ns before it is known."""

    ago: int = 0


@dataclass(frozen=True)
class Abort:
    """RESUME without a commit."""


@dataclass(frozen=True)
class Alone:
    """The secondary is gone for good."""


def ack_of(frame: bytes) -> int:
    """Of an Ethernet frame with IPv4, no options, no VLAN."""
    return int(struct.unpack_from(">I", frame, 14 + 20 + 8)[0])


def words(comparator: Comparator, numbers: dict[int, int]) -> str:
    out = []
    for action in comparator.actions():
        match action:
            case Released(frame=frame, data=data, lowered=lowered):
                out.append(f"P{numbers[frame]}" + (f"<{ack_of(data)}" if lowered else ""))
            case Emitted(data=data):
                out.append(f"ack={ack_of(data)}")
            case Discarded():
                pass
    for event in comparator.events():
        match event:
            case Divergence():
                out.append(f"!{event.cause}@{event.offset}")
            case LimitHit():
                out.append(f"limit {event.cause}")
            case CheckpointWanted():
                out.append("want")
    return " ".join(out)


def play(*steps: object, **options: Any) -> list[str]:
    """The words of each step. Steps are 10 ns apart; protection begins at 0."""
    comparator = Comparator(compare_timeout=1_000_000, reorder_window=1_000, **options)
    comparator.commit(resumed=0, now=0)
    now, fed, numbers, out = 0, 0, {}, []
    for step in steps:
        now += 10
        match step:
            case Say(side=side, frame=frame):
                if side is Side.PRIMARY:
                    numbers[fed] = len(numbers)
                fed += comparator.feed(side, [frame], now)
            case Commit():
                comparator.stop(now)
                comparator.commit(now + 1, now + 2)
            case Later(ns=ns):
                now += ns
                comparator.tick(now)
            case Stop():
                comparator.stop(now)
            case Resume(ago=ago):
                comparator.commit(now - ago, now)
            case Abort():
                comparator.abort(now)
            case Alone():
                comparator.alone(now)
        out.append(words(comparator, numbers))
    return out
