# SPDX-License-Identifier: Apache-2.0
"""The checkpoint policy at work: it hears the guide's reports, looks at the engine's counters, and wishes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from . import reports
from .checkpoint_policy import Activity, CheckpointPolicy, PolicyOptions
from .engine import EngineCounters
from .reports import Report


def activity_of(counters: EngineCounters) -> Activity:
    """What an engine has seen: what the VMs say. A request shows by the acknowledgement, or by its answer."""
    n = counters.comparator
    return Activity(frames=sum(n.frames_in), held=sum(n.held_frames))


class Pacer:
    """Of one VM, in the event loop's thread. Does nothing at all where the policy never wants anything.

    activity: what the network does now. want: asks the guide for a checkpoint.
    """

    def __init__(self, options: PolicyOptions, activity: Callable[[], Activity], want: Callable[[str], None]) -> None:
        self.policy = CheckpointPolicy(options)
        self._activity = activity
        self._want = want
        self._timer: asyncio.TimerHandle | None = None

    def on_report(self, report: Report) -> None:
        """Everything that the guide tells, when it tells it."""
        if self.policy.options.is_idle:
            return
        now = time.monotonic_ns()
        match report:
            case reports.CheckpointCommitted():
                self.policy.on_commit(now, report.stop_to_resume_ns or report.total_ns)
            case reports.Protected():
                self.policy.on_protected(now)
            case reports.CheckpointAsked():
                self.policy.on_asked()
            case reports.Alone() | reports.QmpLost() | reports.Entering():
                self.policy.on_unprotected()
            case _:
                return
        self._arm(now)

    def rest(self) -> None:
        """No more wishes, until the guide reports protection or a checkpoint."""
        self.policy.on_unprotected()
        self._arm(0)

    def status(self) -> dict[str, Any]:
        """For people and programs: what the policy is, wants and has learned."""
        policy, model = self.policy, self.policy.model
        adaptive = policy.options.mode == "adaptive"
        learned = {
            "pause_base_ms": round(model.base / 1e6, 3),
            "pause_growth_per_second_ms": round(model.growth * 1e3, 3),
            "worth_after_ms": round(model.worth_after() / 1e6, 1),
            "spent_ms": round(policy.spent / 1e6, 3),
        }
        return {"policy": policy.options.mode, "wanted": dict(policy.wanted), **(learned if adaptive else {})}

    def _arm(self, now: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.policy.next_look(now)
        if due is not None:
            # asyncio's clock is time.monotonic(), so CLOCK_MONOTONIC in seconds
            self._timer = asyncio.get_running_loop().call_at(due / 1e9, self._look)

    def _look(self) -> None:
        now = time.monotonic_ns()
        cause = self.policy.look(now, self._activity())
        self._arm(now)
        if cause is not None:
            self._want(cause)
