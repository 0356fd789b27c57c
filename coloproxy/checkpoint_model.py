# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint will cost, learned from those that were: a base, and a growth with the time since the last one.

QEMU 7.2 does not tell how many pages are dirty while it is in COLO (docs/checkpoints.md says what was tried). But what
it stands still for is a straight line over the pages that were dirtied, and these come with time.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Final

MS: Final = 1_000_000

REMEMBERED: Final = 32  # checkpoints
YOUNGEST: Final = 8  # one in so many of them tells the base
COUNTED: Final = 5  # for the growth
STEADY: Final = 500 * MS  # from that age on one counts as much as any other
LEARNED: Final = 4  # so many first ones are taken by FIRST_AGE
FIRST_AGE: Final = 250 * MS  # doubled with each of them
OLDEST: Final = 10_000 * MS  # by then one is worth it, to see whether the guest writes more than it did
SHORT_EVERY: Final = 8  # checkpoints
SHORT: Final = 8


class PauseModel:
    """pause = base + growth * age, all in ns; age: from a commit to the next checkpoint's stop.

    base    what the youngest of the remembered ones took. That there are young ones is seen to: now and then a
            checkpoint is worth it after an eighth of the time.
    growth  what the last few took above the base, by their age.

    Both are medians: a busy host makes some checkpoints many times as long as they are by themselves, whatever their
    age, and that must not be taken for pages.
    """

    def __init__(self) -> None:
        self.base = 0
        self.growth = 0.0
        self._last: deque[tuple[int, int]] = deque(maxlen=REMEMBERED)  # age, pause
        self._quiet = 0

    def learn(self, age: int, pause: int, *, short: bool) -> None:
        """One more checkpoint; `short`: it counts for those after which one is worth it earlier."""
        self._last.append((age, pause))
        self._quiet += short
        youngest = sorted(self._last)[: max(1, len(self._last) // YOUNGEST)]
        self.base = round(median(pause for _, pause in youngest))
        counted = [(age, pause) for age, pause in list(self._last)[-COUNTED:] if age]
        ratios = [((pause - self.base) / age, min(age, STEADY)) for age, pause in counted]
        self.growth = max(_weighted_median(ratios), 0.0)

    def expected(self, age: int) -> int:
        """The pause of a checkpoint at that age, ns. Not above all that were: a guest writes to some pages again."""
        return min(self.base + round(self.growth * age), max((pause for _, pause in self._last), default=0))

    def worth_after(self) -> int:
        """The age, ns, from which the next checkpoint would take twice as long as it must: then one is worth it."""
        if len(self._last) < LEARNED:
            return FIRST_AGE << len(self._last)
        age = OLDEST if self.growth * OLDEST <= self.base else round(self.base / self.growth)
        return age // SHORT if self._quiet % SHORT_EVERY == SHORT_EVERY - 1 else age


def _weighted_median(values: list[tuple[float, int]]) -> float:
    """Of (value, weight); half of the weight is on either side. 0 of none."""
    left = sum(weight for _, weight in values)
    passed = 0
    for value, weight in sorted(values):
        passed += weight
        if 2 * passed >= left:
            return value
    return 0.0
