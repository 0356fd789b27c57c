# SPDX-License-Identifier: Apache-2.0
"""When a checkpoint is taken although the VMs agree and nobody waits for one. Sans-I/O; docs/checkpoints.md.

The pause of a checkpoint grows with the pages that were dirtied since the last one. So one that is taken while the
network is quiet, where no client notices, makes the next one short that a client waits for. What such a checkpoint
may cost is bounded: a share of the time.

All times are ns of one clock that does not go back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from .checkpoint_actions import Timing
from .checkpoint_model import PauseModel

QUIET: Final = "quiet"
PERIOD: Final = "period"

MS: Final = 1_000_000
SAVING: Final = 10_000_000_000
"""Time unused for so long is saved up in the budget, and no more."""


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """What is wanted.

    Attributes:
        mode: "fixed": no checkpoint but by `period`. "adaptive": also when the network is quiet and it is worth it.
        period: ns; a checkpoint at least so often, 0: no. For back ends that know no period of their own; QEMU does.
        min_interval: ns from a commit to the next wish.
        quiet: ns without a frame, and with none held, that make the network quiet.
        budget: percent of the time that the VMs may stand still for checkpoints of "adaptive".
    """

    mode: Literal["fixed", "adaptive"] = "fixed"
    period: int = 0
    min_interval: int = Timing().min_interval
    quiet: int = 20 * MS
    budget: int = 5

    @property
    def is_idle(self) -> bool:
        """It never wants anything."""
        return self.mode == "fixed" and not self.period


@dataclass(frozen=True, slots=True)
class Activity:
    """What the network does: frames of either VM since some beginning (any change is traffic), and held now."""

    frames: int
    held: int


class CheckpointPolicy:
    """Of one VM. Tell it what happens; `look` at or after `next_look()`, and take the checkpoint it names.

    It wants one checkpoint at a time, and none while somebody else's is on its way.
    """

    def __init__(self, options: PolicyOptions) -> None:
        self.options = options
        self.model = PauseModel()
        self.wanted = {QUIET: 0, PERIOD: 0}  # so far, by cause
        self.spent = 0  # ns of standing still for `quiet`
        self._since: int | None = None  # the last commit, None: unprotected
        self._asked: str | None = None  # the cause of the checkpoint that is on its way; "" somebody else's
        self._frames = -1  # at the last look
        self._traffic = 0  # the last time at which the network was not quiet
        self._credit = 0.0  # ns of standing still; below 0 after one that took longer than expected
        self._credit_at = 0
        self._saves = SAVING * options.budget // 100

    # --------------------------------------------------------------- inputs

    def on_protected(self, now: int) -> None:
        """Both VMs are equal, without a checkpoint that could be learned from."""
        if self._since is None:
            self._credit_at = now
        self._begin(now)

    def on_unprotected(self) -> None:
        """There is nobody to be made equal, or it isn't known."""
        self._since = self._asked = None

    def on_asked(self) -> None:
        """A checkpoint is on its way, whoever wants it."""
        self._asked = self._asked or ""

    def on_commit(self, now: int, pause: int | None) -> None:
        """A checkpoint has committed; `pause`: ns that the primary stood still, None: not known."""
        if self._since is None:
            self.on_protected(now)
            return
        if pause is not None:
            self.model.learn(max(now - pause - self._since, 0), pause, short=self._asked == QUIET)
            if self._asked == QUIET:
                self._earn(now)
                self._credit -= pause
                self.spent += pause
        self._begin(now)

    def look(self, now: int, activity: Activity) -> str | None:
        """The cause if a checkpoint is wanted now, else None."""
        if activity.frames != self._frames or activity.held:
            self._frames, self._traffic = activity.frames, now
        if self._since is None or self._asked is not None or now < self._since + self.options.min_interval:
            return None
        cause = None
        if self.options.period and now >= self._since + self.options.period:
            cause = PERIOD
        elif self.options.mode == "adaptive" and now >= max(self._ready(now), self._traffic + self.options.quiet):
            cause = QUIET
        if cause is not None:
            self._asked = cause
            self.wanted[cause] += 1
        return cause

    def next_look(self, now: int) -> int | None:
        """When it wants to be asked next, None: not before another input.

        Two looks, `quiet` apart, tell whether there was traffic between; so the first is that much before its time.
        """
        if self._since is None or self._asked is not None or self.options.is_idle:
            return None
        due = []
        if self.options.period:
            due.append(self._since + max(self.options.period, self.options.min_interval))
        if self.options.mode == "adaptive":
            ready, silent = self._ready(now), self._traffic + self.options.quiet
            before = max(ready - self.options.quiet, silent)
            due.append(before if before > now else max(ready, silent))
        return min(due)

    # ------------------------------------------------------------- internals

    def _begin(self, now: int) -> None:
        self._since, self._asked = now, None
        self._frames, self._traffic = -1, now

    def _ready(self, now: int) -> int:
        """When a checkpoint is worth it, and paid for."""
        assert self._since is not None
        age = max(self.model.worth_after(), self.options.min_interval)
        ready = self._since + age
        # A VM whose checkpoints cost more than all that can be saved up gets one when that much has been.
        missing = min(self.model.expected(max(now - self._since, age)), self._saves) - self._saved(now)
        if missing > 0:
            ready = max(ready, now + -(-int(missing * 100) // self.options.budget) + 1)
        return ready

    def _saved(self, now: int) -> float:
        earned = max(now - self._credit_at, 0) * self.options.budget / 100
        return min(self._credit + earned, float(self._saves))

    def _earn(self, now: int) -> None:
        self._credit, self._credit_at = self._saved(now), now
