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
LEARNED: Final = 4  # so many first ones are taken by FIRST_AGE
FIRST_AGE: Final = 250 * MS  # doubled with each of them
OLDEST: Final = 10_000 * MS  # by then one is worth it, to see whether the guest writes more than it did
SHORT_EVERY: Final = 16  # checkpoints
SHORT: Final = 4
STEADY: Final = 500 * MS
LEARNING: Final = 0.5


class PauseModel:
    """pause = base + growth * age, all in ns; age: from a commit to the next checkpoint's stop.

    base    the shortest of the last pauses. That there are some of a small age among them is seen to: now and then a
            checkpoint is worth it after a fourth of the time.
    growth  what is above the base, by age; a moving average. A small age says little of it.
    """

    def __init__(self) -> None:
        self.growth = 0.0
        self._pauses: deque[int] = deque(maxlen=REMEMBERED)
        self._quiet = 0

    @property
    def base(self) -> int:
        """ns; 0: nothing is known yet."""
        return min(self._pauses, default=0)

    def learn(self, age: int, pause: int, *, short: bool) -> None:
        """One more checkpoint; `short`: it counts for those after which one is worth it earlier."""
        self._pauses.append(pause)
        self._quiet += short
        if age > 0:
            weight = LEARNING * min(1.0, age / STEADY)
            self.growth += weight * ((pause - self.base) / age - self.growth)

    def expected(self, age: int) -> int:
        """The pause of a checkpoint at that age, ns. Not above all that were: a guest writes to some pages again."""
        return min(self.base + round(self.growth * age), max(self._pauses, default=0))

    def worth_after(self) -> int:
        """The age, ns, from which the next checkpoint would take twice as long as it must: then one is worth it."""
        if len(self._pauses) < LEARNED:
            return FIRST_AGE << len(self._pauses)
        age = OLDEST if self.growth * OLDEST <= self.base else round(self.base / self.growth)
        return age // SHORT if self._quiet % SHORT_EVERY == SHORT_EVERY - 1 else age
