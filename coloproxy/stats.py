# SPDX-License-Identifier: Apache-2.0
"""--stats-interval: lines like iperf's, from two snapshots of the counters."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

from .engine import EngineCounters
from .events import Reason

HEADER_EVERY: Final = 20  # lines
HEADER: Final = (
    "     interval (s)      released     frames/s       held frames      bytes  checkpoints  divergences  ACKs lowered"
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the lines, and the journal's `stats` records, are made of. All but the `held` ones only grow."""

    primary_frames: int = 0
    secondary_frames: int = 0
    released_bytes: int = 0
    released_frames: int = 0
    released_matched: int = 0
    released_committed: int = 0
    checkpoints: int = 0
    divergences: int = 0
    tolerated: int = 0
    acks_lowered: int = 0
    acks_emitted: int = 0
    parts_emitted: int = 0
    held_frames: int = 0
    held_bytes: int = 0

    @classmethod
    def of(cls, counters: EngineCounters) -> Snapshot:
        """From the engine's counters. Held: the primary's frames."""
        n = counters.comparator
        return cls(
            primary_frames=n.frames_in[0],
            secondary_frames=n.frames_in[1],
            released_bytes=n.released_bytes,
            released_frames=sum(n.released.values()),
            released_matched=n.released[Reason.MATCHED],
            released_committed=n.released[Reason.COMMITTED],
            checkpoints=n.commits,
            divergences=sum(n.divergences.values()),
            tolerated=n.tolerated,
            acks_lowered=n.acks_lowered,
            acks_emitted=n.acks_emitted,
            parts_emitted=n.parts_emitted,
            held_frames=n.held_frames[0],
            held_bytes=n.held_bytes[0],
        )

    def __add__(self, other: Snapshot) -> Snapshot:
        """Of two engines after one another: sums; held is the later one's."""
        mine, its = asdict(self), asdict(other)
        return Snapshot(**{name: value if name in _LEVELS else mine[name] + value for name, value in its.items()})


_LEVELS = {"held_frames", "held_bytes"}


def rate(amount: float, unit: str) -> str:
    """`95.3 Mbit/s`, with the prefix that fits."""
    for prefix in ("", "k", "M"):
        if amount < 1000:
            return f"{amount:.3g} {prefix}{unit}" if amount < 100 else f"{amount:.0f} {prefix}{unit}"
        amount /= 1000
    return f"{amount:.3g} G{unit}" if amount < 100 else f"{amount:.0f} G{unit}"


def line(begin: float, end: float, before: Snapshot, after: Snapshot, *, total: bool = False) -> str:
    """One interval, in seconds since the start; `total`: the held columns show what is left."""
    span = end - begin
    bits = 8 * (after.released_bytes - before.released_bytes)
    frames = after.released_frames - before.released_frames
    tail = "  total" if total else ""
    return (
        f"{begin:8.1f}-{end:<8.1f} {rate(bits / span if span > 0 else 0, 'bit/s'):>12}"
        f" {frames / span if span > 0 else 0:13.0f} {after.held_frames:17d} {after.held_bytes:10d}"
        f" {after.checkpoints - before.checkpoints:12d} {after.divergences - before.divergences:12d}"
        f" {after.acks_lowered - before.acks_lowered:13d}{tail}"
    )


class Stats:
    """Remembers the last snapshot. Times in ns."""

    def __init__(self, start: int, first: Snapshot) -> None:
        self._start = self._last = start
        self._first = self._before = first
        self._lines = 0

    def interval(self, now: int, after: Snapshot) -> list[str]:
        """The line since the last one, with the header before it now and then."""
        lines = [HEADER] if self._lines % HEADER_EVERY == 0 else []
        self._lines += 1
        lines.append(line(self._seconds(self._last), self._seconds(now), self._before, after))
        self._last, self._before = now, after
        return lines

    def total(self, now: int, after: Snapshot) -> list[str]:
        """The line over everything, for the end."""
        lines = [HEADER] if self._lines == 0 else []
        lines.append(line(0.0, self._seconds(now), self._first, after, total=True))
        return lines

    def _seconds(self, at: int) -> float:
        return (at - self._start) / 1e9
