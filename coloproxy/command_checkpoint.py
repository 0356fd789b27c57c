# SPDX-License-Identifier: Apache-2.0
"""The `command` checkpoint back end's controller: sans-I/O, for VMMs that no QMP speaks for.

It takes wishes for a checkpoint, the ends of a program's runs and the time (integer ns, CLOCK_MONOTONIC), and returns
a list of actions in the order in which they must be carried out. What the program must do: docs/checkpoint-command.md.

    IDLE --due--> TAKING --ok--> PREPARING --ok--> COMMITTING --> MARKING --> RESUMING --ok--> IDLE
                     | failed        | failed                                    ^  | failed
                     +---------------+-------------------------------------------+  +--> STUCK --due--> RESUMING

Both VMs may stand still in every phase but IDLE. A checkpoint that fails changes nothing: what was held stays held, the
causes stay, and it is tried again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from . import reports
from .checkpoint_actions import EngineAlone, EngineCommit, EngineStop
from .reports import Report

FIRST_BACKOFF: Final = 1_000_000_000  # ns; doubled by each failure that follows
MAX_BACKOFF: Final = 30_000_000_000
MAX_CAUSES: Final = 16  # that one checkpoint is told to be for
NOW: Final = 2**63 - 1  # as the primary's resume: whatever has been read when the engine commits is of the old epoch

WHY_BEGIN: Final = "protection begins"
WHY_AGAIN: Final = "the secondary has connected again"
WHY_UNMARKED: Final = "the last checkpoint's end could not be marked"


class Phase(Enum):
    """What is going on; see the module's text."""

    IDLE = "idle"
    TAKING = "taking"  # the program's `take` runs
    PREPARING = "preparing"  # both stand: before_commit
    COMMITTING = "committing"  # the engine was told, and has not answered yet
    MARKING = "marking"  # after_commit
    RESUMING = "resuming"  # the program's `resume` runs
    STUCK = "stuck"  # it failed, and waits to be run again


class Step(Enum):
    """What the adapter waits for."""

    TAKE = "take"
    RESUME = "resume"
    BEFORE_COMMIT = "before_commit"
    AFTER_COMMIT = "after_commit"


@dataclass(frozen=True, slots=True)
class Do:
    """Carry out a step; its end comes back as `on_end`.

    Attributes:
        step: TAKE and RESUME run the program, the others are hooks.
        reason: why, for people.
        epoch: that the checkpoint ends, counted from 0.
        committed: RESUME: whether the checkpoint was one.
    """

    step: Step
    reason: str
    epoch: int
    committed: bool


Action = Do | EngineStop | EngineCommit | EngineAlone | Report


class CommandController:
    """One per engine. Every method returns the actions to carry out, before anything else is done.

    min_interval: ns from a commit to the next `take`.
    """

    def __init__(self, min_interval: int) -> None:
        self.phase = Phase.IDLE
        self.protected = False
        self.epoch = 0  # of the comparator: commits
        self._min_interval = min_interval
        self._causes: list[str] = []  # of the checkpoint to come
        self._taking: tuple[str, ...] = ()  # of the one in progress
        self._wanted_at: int | None = None
        self._taken_at = 0
        self._not_before = 0  # of the next `take`
        self._resume_at = 0  # STUCK: again then
        self._failures = 0  # of checkpoints, since the last that committed
        self._stuck = 0  # failures of `resume`, one after the other
        self._committed = False  # the one in progress
        self._bare = False  # it is a commit without a program: assume_equal
        self._lost = False  # the secondary, since it was first there
        self._alone = False  # by order: no checkpoint is wanted
        self._void = False  # that order came while one was in progress

    # --------------------------------------------------------------- inputs

    def assume_equal(self, now: int) -> list[Action]:
        """Both VMs are equal now, the operator says: protection begins without a checkpoint."""
        self._taking, self._taken_at, self._bare = (WHY_BEGIN,), now, True
        return self._commit()

    def on_secondary(self, now: int) -> list[Action]:
        """The secondary is there: what it is like is not known before a checkpoint."""
        self._alone = False
        if not self.protected and (self.phase is Phase.IDLE or self._void):
            return self.want(WHY_BEGIN, now)
        if self._lost:
            self._lost = False
            return self.want(WHY_AGAIN, now)
        return []

    def on_secondary_lost(self) -> list[Action]:
        if not self.protected:
            return []
        self._lost = True
        text = "the secondary is not connected: all output that it has not confirmed is held until it is back"
        return [reports.Trouble(text)]

    def want(self, cause: str, now: int, epoch: int | None = None) -> list[Action]:
        """A checkpoint is wanted; `epoch`: by the comparator, in that one. The one that ends it answers all its wishes.

        Anybody else's wish is answered by one that is begun after it.
        """
        if self._alone or (epoch is not None and (epoch < self.epoch or self._answers())):
            return []
        if cause not in self._causes and len(self._causes) < MAX_CAUSES:
            self._causes.append(cause)
        if self._wanted_at is None:
            self._wanted_at = now
        return self.tick(now)

    def alone(self, reason: str) -> list[Action]:
        """There is no secondary any more, somebody has decided: all leaves, until `on_secondary`."""
        self._causes, self._wanted_at = [], None
        self._alone, self._void, self._lost = True, self.phase is not Phase.IDLE, False
        self.protected = False
        self.epoch += 1
        return [EngineAlone(), reports.Alone(reason)]

    def on_end(self, step: Step, failure: str | None, now: int) -> list[Action]:
        """A step has ended; failure: why it failed, None: it did not."""
        match step:
            case Step.TAKE | Step.BEFORE_COMMIT if self._void:
                return self._resume()
            case Step.TAKE if failure is None:
                self.phase = Phase.PREPARING
                return [self._do(Step.BEFORE_COMMIT)]
            case Step.BEFORE_COMMIT if failure is None:
                return self._commit()
            case Step.TAKE | Step.BEFORE_COMMIT:
                return self._fail(f"{step.value}: {failure}", now)
            case Step.AFTER_COMMIT:
                return self._on_marked(failure, now)
            case Step.RESUME:
                return self._on_resumed(failure, now)

    def on_committed(self, frames: int, size: int, now: int) -> list[Action]:
        """The engine has committed, and released that much. Only now may the VMs go on: what they say next is new."""
        if self.phase is not Phase.COMMITTING:
            return []
        self.phase = Phase.MARKING
        self._committed = True
        self._failures = 0
        self._not_before = now + self._min_interval
        self.epoch += 1
        if self._void:  # it was followed by the order to go alone
            return [self._do(Step.AFTER_COMMIT)]
        report: Report = reports.Protected(None)
        if self.protected:
            total = now - self._taken_at
            report = reports.CheckpointCommitted(self.epoch - 1, self._taking, None, None, total, frames, size)
        self.protected = True
        return [report, self._do(Step.AFTER_COMMIT)]

    def deadline(self) -> int | None:
        """When `tick` must be called, if nothing else is before; ns."""
        if self.phase is Phase.STUCK:
            return self._resume_at
        return self._not_before if self.phase is Phase.IDLE and self._causes else None

    def tick(self, now: int) -> list[Action]:
        due = self.deadline()
        if due is None or now < due:
            return []
        if self.phase is Phase.STUCK:
            return self._resume()
        self.phase = Phase.TAKING
        self._taking, self._causes = tuple(self._causes), []
        self._taken_at = now if self._wanted_at is None else self._wanted_at
        self._wanted_at = None
        self._committed = self._bare = self._void = False
        return [reports.CheckpointAsked(self._taking, self._failures + 1), self._do(Step.TAKE)]

    # -------------------------------------------------------- to clean up by

    def unfinished(self) -> Do | None:
        """What is left to do when this ends here and now, so that no VM stands still for ever."""
        return None if self.phase is Phase.IDLE or self._bare else self._do(Step.RESUME)

    # ------------------------------------------------------------- internals

    def _answers(self) -> bool:
        """The checkpoint in progress ends this epoch."""
        return self.phase in {Phase.TAKING, Phase.PREPARING, Phase.COMMITTING}

    def _do(self, step: Step) -> Do:
        epoch = self.epoch - 1 if self._committed else self.epoch
        return Do(step, "; ".join(self._taking), epoch, self._committed)

    def _commit(self) -> list[Action]:
        self.phase = Phase.COMMITTING
        return [EngineStop(), EngineCommit(NOW)]

    def _fail(self, reason: str, now: int) -> list[Action]:
        wait = min(FIRST_BACKOFF << min(self._failures, 10), MAX_BACKOFF)
        self._failures += 1
        self._not_before = now + wait
        more = (cause for cause in self._causes if cause not in self._taking)
        self._causes = [*self._taking, *more][:MAX_CAUSES]
        self._wanted_at = self._taken_at
        text = f"{reason}; again in {wait // 1_000_000_000} s"
        return [reports.CheckpointFailed(text, self._taking, now - self._taken_at), *self._resume()]

    def _on_marked(self, failure: str | None, now: int) -> list[Action]:
        out: list[Action] = []
        if failure is not None and not self._void:
            out.append(reports.Trouble(f"after_commit: {failure}"))
            out += self.want(WHY_UNMARKED, now)
        if not self._bare:
            return [*out, *self._resume()]
        self.phase = Phase.IDLE
        return [*out, *self.tick(now)]

    def _resume(self) -> list[Action]:
        self.phase = Phase.RESUMING
        return [self._do(Step.RESUME)]

    def _on_resumed(self, failure: str | None, now: int) -> list[Action]:
        if failure is None:
            self._stuck = 0
            self.phase = Phase.IDLE
            return self.tick(now)
        self.phase = Phase.STUCK
        wait = min(FIRST_BACKOFF << min(self._stuck, 10), MAX_BACKOFF)
        self._stuck += 1
        self._resume_at = now + wait
        return [reports.ResumeFailed(failure, self._stuck)]
