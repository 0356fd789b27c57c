# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint will cost, learned from those that were: a base, and a growth with the time since the last one.

QEMU 7.2 does not tell how many pages are dirty while it is in COLO (docs/checkpoints.md says what was tried). But what
it stands still for is a straight line over the pages that were dirtied, and these come with time.
"""

from __future__ import annotations

from collections import deque
from typing import Final

MS: Final = 1_000_000

REMEMBERED: Final = 32  # checkpoints, for the base
COUNTED: Final = 16  # for the growth
LEARNED: Final = 4  # so many first ones are taken by FIRST_AGE
FIRST_AGE: Final = 250 * MS  # doubled with each of them
OLDEST: Final = 10_000 * MS  # by then one is worth it, to see whether the guest writes more than it did
SHORT_EVERY: Final = 16  # checkpoints
SHORT: Final = 8


class PauseModel:
    """pause = base + growth * age, all in ns; age: from a commit to the next checkpoint's stop.

    base    the shortest of the last pauses. That there are some of a small age among them is seen to: now and then a
            checkpoint is worth it after an eighth of the time.
    growth  what the last ones were above the base, by the time that they cover: a pause that only a busy host made
            long, soon after the one before, counts little.

    Both err so that an age is too large rather than too small: what is above the base for no reason makes the next age
    larger, and counts less then.
    """

    def __init__(self) -> None:
        self._last: deque[tuple[int, int]] = deque(maxlen=REMEMBERED)  # pause, age
        self._quiet = 0

    @property
    def base(self) -> int:
        """ns; 0: nothing is known yet."""
        return min(self._last, default=(0, 0))[0]

    @property
    def growth(self) -> float:
        """ns a ns."""
        counted, base = list(self._last)[-COUNTED:], self.base
        ages = sum(age for _, age in counted)
        return sum(pause - base for pause, _ in counted) / ages if ages else 0.0

    def learn(self, age: int, pause: int, *, short: bool) -> None:
        """One more checkpoint; `short`: it counts for those after which one is worth it earlier."""
        self._last.append((pause, age))
        self._quiet += short

    def expected(self, age: int) -> int:
        """The pause of a checkpoint at that age, ns. Not above all that were: a guest writes to some pages again."""
        return min(self.base + round(self.growth * age), max(self._last, default=(0, 0))[0])

    def worth_after(self) -> int:
        """The age, ns, from which the next checkpoint would take twice as long as it must: then one is worth it."""
        if len(self._last) < LEARNED:
            return FIRST_AGE << len(self._last)
        growth = self.growth
        age = OLDEST if growth * OLDEST <= self.base else round(self.base / growth)
        return age // SHORT if self._quiet % SHORT_EVERY == SHORT_EVERY - 1 else age
