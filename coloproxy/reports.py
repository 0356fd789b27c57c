# SPDX-License-Identifier: Apache-2.0
"""What the control plane has to tell: one frozen dataclass per kind of report.

`str(report)` is the line for people, its fields are what the journal writes. Durations are integer ns and end in
`_ns`; None means that the beginning of that duration was not seen.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar


def milliseconds(duration_ns: int | None) -> str:
    """A duration for people: `12.3 ms`, or `?`."""
    return "?" if duration_ns is None else f"{duration_ns / 1e6:.1f} ms"


def seconds(duration_ns: int) -> str:
    """A longer duration for people: `2.0 s`."""
    return f"{duration_ns / 1e9:.1f} s"


@dataclass(frozen=True, slots=True)
class Report:
    """Base of all reports. `name` is the journal's name of the kind, `level` that of the log line."""

    name: ClassVar[str] = "report"
    level: ClassVar[int] = logging.INFO


@dataclass(frozen=True, slots=True)
class QmpConnected(Report):
    """QMP answers; `in_colo` and `run_state` as QEMU told them."""

    in_colo: bool
    run_state: str
    name: ClassVar[str] = "qmp-connected"

    def __str__(self) -> str:
        return f"QMP connected: QEMU is {self.run_state}, {'in COLO' if self.in_colo else 'not in COLO'}"


@dataclass(frozen=True, slots=True)
class QmpLost(Report):
    """QMP is gone. From now on all output is held, for a checkpoint could commit unseen."""

    reason: str
    name: ClassVar[str] = "qmp-lost"
    level: ClassVar[int] = logging.WARNING

    def __str__(self) -> str:
        return f"QMP lost ({self.reason}): holding all output until it is back, a checkpoint could commit unseen"


@dataclass(frozen=True, slots=True)
class Held(Report):
    """QEMU is in COLO, but it isn't known which output belongs together: all is held until a checkpoint."""

    reason: str
    name: ClassVar[str] = "held"
    level: ClassVar[int] = logging.WARNING

    def __str__(self) -> str:
        return f"holding all output until the next checkpoint: {self.reason}"


@dataclass(frozen=True, slots=True)
class Entering(Report):
    """QEMU prepares COLO: the pair is equal once the primary resumes."""

    name: ClassVar[str] = "entering"

    def __str__(self) -> str:
        return "QEMU enters COLO"


@dataclass(frozen=True, slots=True)
class Protected(Report):
    """The primary resumed with an equal secondary: comparison begins."""

    stop_to_resume_ns: int | None
    name: ClassVar[str] = "protected"

    def __str__(self) -> str:
        text = "protected: comparing from now on"
        if self.stop_to_resume_ns is None:
            return text
        return f"{text} (the guest stood still for {milliseconds(self.stop_to_resume_ns)})"


@dataclass(frozen=True, slots=True)
class CheckpointAsked(Report):
    """A checkpoint was asked for over QMP. `attempt` counts from 1."""

    causes: tuple[str, ...]
    attempt: int
    name: ClassVar[str] = "checkpoint-asked"

    def __str__(self) -> str:
        again = f" (attempt {self.attempt})" if self.attempt > 1 else ""
        return f"checkpoint asked{again}: {'; '.join(self.causes)}"


@dataclass(frozen=True, slots=True)
class CheckpointCommitted(Report):
    """A checkpoint has committed. Without causes it was QEMU's own (its period) or somebody else's."""

    number: int
    causes: tuple[str, ...]
    asked_to_stop_ns: int | None
    stop_to_resume_ns: int | None
    total_ns: int | None
    released_frames: int | None = None
    released_bytes: int | None = None
    name: ClassVar[str] = "checkpoint-committed"

    def __str__(self) -> str:
        cause = "; ".join(self.causes) or "not asked for by us"
        flushed = ""
        if self.released_frames is not None:
            flushed = f", released {self.released_frames} frames, {self.released_bytes} bytes"
        return (
            f"checkpoint {self.number} committed ({cause}): asked to stop {milliseconds(self.asked_to_stop_ns)}, "
            f"stop to resume {milliseconds(self.stop_to_resume_ns)}{flushed}"
        )


@dataclass(frozen=True, slots=True)
class CheckpointFailed(Report):
    """A checkpoint began and did not commit."""

    reason: str
    causes: tuple[str, ...]
    stop_to_end_ns: int | None
    name: ClassVar[str] = "checkpoint-failed"
    level: ClassVar[int] = logging.WARNING

    def __str__(self) -> str:
        return f"checkpoint failed after {milliseconds(self.stop_to_end_ns)}: {self.reason}"


@dataclass(frozen=True, slots=True)
class ResumeFailed(Report):
    """The checkpoint command's `resume` failed: VMs may stand still. It is run again until it succeeds."""

    reason: str
    attempt: int
    name: ClassVar[str] = "resume-failed"
    level: ClassVar[int] = logging.ERROR

    def __str__(self) -> str:
        return f"the checkpoint command could not resume the VMs (attempt {self.attempt}): {self.reason}; trying again"


@dataclass(frozen=True, slots=True)
class OperatorStopped(Report):
    """The guest stands still, and not for a checkpoint."""

    run_state: str
    name: ClassVar[str] = "guest-stopped"

    def __str__(self) -> str:
        return f"the guest was stopped ({self.run_state}), not by a checkpoint; its output waits"


@dataclass(frozen=True, slots=True)
class OperatorResumed(Report):
    """The guest goes on after a stop that was no checkpoint."""

    stopped_ns: int | None
    name: ClassVar[str] = "guest-resumed"

    def __str__(self) -> str:
        return f"the guest goes on after {milliseconds(self.stopped_ns)}, without a checkpoint"


@dataclass(frozen=True, slots=True)
class Alone(Report):
    """There is no secondary any more: all that was held is released, and from now on everything at once."""

    reason: str
    name: ClassVar[str] = "alone"
    level: ClassVar[int] = logging.WARNING

    def __str__(self) -> str:
        return f"no secondary any more ({self.reason}): releasing everything, unprotected"


@dataclass(frozen=True, slots=True)
class Unanswered(Report):
    """QEMU does not do what was asked of it. Sent again each deadline while that lasts; we keep trying."""

    what: str
    since_ns: int
    attempts: int
    name: ClassVar[str] = "qemu-unanswering"
    level: ClassVar[int] = logging.ERROR

    def __str__(self) -> str:
        tried = f", asked {self.attempts} times" if self.attempts else ""
        return f"QEMU does not answer: {self.what} for {seconds(self.since_ns)}{tried}; still trying"


@dataclass(frozen=True, slots=True)
class QemuEvent(Report):
    """Something about the guest that COLO's operator wants to know (SHUTDOWN, RESET, a failed migration, ...)."""

    what: str
    detail: str
    name: ClassVar[str] = "qemu-event"

    def __str__(self) -> str:
        return f"QEMU: {self.what}{': ' + self.detail if self.detail else ''}"


@dataclass(frozen=True, slots=True)
class Trouble(Report):
    """Something that is not as it should be, and what it means."""

    text: str
    name: ClassVar[str] = "trouble"
    level: ClassVar[int] = logging.WARNING

    def __str__(self) -> str:
        return self.text
