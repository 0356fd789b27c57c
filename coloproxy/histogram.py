# SPDX-License-Identifier: Apache-2.0
"""Histograms as a status has them.

One is `{"count": 3, "sum_ms": 71.2, "histogram": [[10, 1], [25, 0], [50, 2], [null, 0]]}`: each pair is an upper bound
in ms and how many values lay at or below it and above the bound before; the last has no bound. Bounds never change
while a process lives, so two statuses can be subtracted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Final

PAUSE_BOUNDS_MS: Final = (1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0)
"""For how long a VM stands still."""

_FIRST: Final = 9
_STEP: Final = 2
_LAST: Final = 35


class Histogram:
    """Counts durations.

    Args:
        bounds_ms: upper ones, ascending; a last bucket without one is added.
    """

    def __init__(self, bounds_ms: Sequence[float] = PAUSE_BOUNDS_MS) -> None:
        self._bounds = tuple(bounds_ms)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum_ns = 0

    def add(self, duration_ns: int) -> None:
        self._counts[bisect_left(self._bounds, duration_ns / 1e6)] += 1
        self._sum_ns += duration_ns

    def status(self) -> dict[str, Any]:
        bounds: list[float | None] = [*self._bounds, None]
        return _status(list(zip(bounds, self._counts, strict=True)), self._sum_ns)


def release_ages(ages: Sequence[int], sum_ns: int) -> dict[str, Any]:
    """`Counters.release_ages` of one reason and its sum as a status: 14 bounds, from 1 us to 69 s."""
    pairs: list[tuple[float | None, int]] = []
    at = 0
    for last in range(_FIRST, _LAST + 1, _STEP):
        pairs.append(((2 << last) / 1e6, sum(ages[at : last + 1])))
        at = last + 1
    pairs.append((None, sum(ages[at:])))
    return _status(pairs, sum_ns)


def _status(pairs: list[tuple[float | None, int]], sum_ns: int) -> dict[str, Any]:
    return {
        "count": sum(count for _, count in pairs),
        "sum_ms": round(sum_ns / 1e6, 6),
        "histogram": [[bound, count] for bound, count in pairs],
    }
