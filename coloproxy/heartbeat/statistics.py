# SPDX-License-Identifier: Apache-2.0
"""What is counted of the numbers and the round trips of one path. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .message import Reason

WINDOW: Final = 128
"""Messages behind the newest that are still told apart from repeated ones. Older ones are refused unseen."""

_ALL: Final = (1 << WINDOW) - 1

BUCKETS_NS: Final = tuple(
    int(us * 1000)
    for us in (50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000)
)
"""Upper bounds (inclusive, as Prometheus' `le`) of the round trips' histogram; what is above goes to +Inf."""

RTT_MAX_NS: Final = 60 * 10**9  # longer ones are nonsense, and not counted
EWMA_SHIFT: Final = 3  # weight 1/8 of the newest, as TCP's SRTT (RFC 6298)


class Window:
    """Which numbers of one peer's process were there. Numbers are 64 bits wide, and never wrap."""

    __slots__ = ("_bits", "newest")

    def __init__(self) -> None:
        self.newest = 0  # 0: nothing was there
        self._bits = _ALL  # bit i: newest - i was there; what is older than the first one passes for it

    def seen(self, seq: int) -> bool:
        """Was it there, or is it too old to know?"""
        if seq > self.newest:
            return False
        behind = self.newest - seq
        return seq == 0 or behind >= WINDOW or bool(self._bits >> behind & 1)

    def add(self, seq: int) -> int:
        """Notes one that was not seen. How many were left out before it; -1: it comes late, after newer ones."""
        if seq < self.newest:
            self._bits |= 1 << (self.newest - seq)
            return -1
        gap = seq - self.newest - 1
        if self.newest:
            self._bits = (self._bits << min(gap + 1, WINDOW) | 1) & _ALL
        self.newest, gap = seq, gap if self.newest else 0
        return gap

    def seal(self) -> None:
        """What has not come yet of those before the newest never will."""
        self._bits = _ALL


@dataclass(frozen=True, slots=True)
class RoundTrips:
    """ns. `histogram`: how many up to each of BUCKETS_NS, and all in the last place, as Prometheus wants it."""

    least: int | None = None
    ewma: int | None = None
    most: int | None = None
    count: int = 0
    total: int = 0
    histogram: tuple[int, ...] = (0,) * (len(BUCKETS_NS) + 1)


class RoundTripMeter:
    """Takes round trips one by one."""

    __slots__ = ("_buckets", "_ewma", "_least", "_most", "_total")

    def __init__(self) -> None:
        self._buckets = [0] * (len(BUCKETS_NS) + 1)
        self._least: int | None = None
        self._most: int | None = None
        self._ewma: int | None = None
        self._total = 0

    def add(self, ns: int) -> None:
        """One more; what can't be is left out."""
        if not 0 <= ns <= RTT_MAX_NS:
            return
        self._buckets[bisect_left(BUCKETS_NS, ns)] += 1
        self._total += ns
        self._least = ns if self._least is None else min(self._least, ns)
        self._most = ns if self._most is None else max(self._most, ns)
        self._ewma = ns if self._ewma is None else self._ewma + ((ns - self._ewma) >> EWMA_SHIFT)

    def snapshot(self) -> RoundTrips:
        """All of it as it is now."""
        cumulative, so_far = [], 0
        for count in self._buckets:
            so_far += count
            cumulative.append(so_far)
        return RoundTrips(self._least, self._ewma, self._most, so_far, self._total, tuple(cumulative))


@dataclass(frozen=True, slots=True)
class PathStats:
    """One path, since our start.

    up: heard in time, and proven. received: accepted ones. refused: the others, by reason (all reasons are there).
    lost: numbers that were left out and have not come since; reordered: came after newer ones.
    silent_ns: since the last one that was accepted; None: there was none. downs: how often it went silent.
    """

    name: str
    up: bool
    sent: int
    send_errors: int
    received: int
    refused: Mapping[Reason, int]
    lost: int
    reordered: int
    rtt: RoundTrips
    silent_ns: int | None
    downs: int


@dataclass(frozen=True, slots=True)
class Stats:
    """alive: None is "not known yet". boot, peer_boot: hex; peer_boot None: no process was believed yet.

    deaths: verdicts; boots: processes of the peer's that were believed. stalls: of ourselves, longest_stall_ns the
    longest. state_age_ns: since the peer's latest state was confirmed by a message; None: there is none.
    """

    alive: bool | None
    boot: str
    peer_boot: str | None
    deaths: int
    boots: int
    stalls: int
    longest_stall_ns: int
    state_number: int | None
    state_age_ns: int | None
    paths: tuple[PathStats, ...]
