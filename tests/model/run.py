# SPDX-License-Identifier: Apache-2.0
"""Drives one implementation and the oracle through a schedule, and tells a failing schedule as text."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import wire

from model.facts import STOPPED
from model.flow import PRIMARY
from model.oracle import Oracle
from model.packet import Cls, parse
from model.verdict import Action, Event, Subject, Violation


@dataclass(frozen=True)
class Feed:
    side: int
    frames: tuple[bytes, ...]
    now: int


@dataclass(frozen=True)
class Both:
    """Frames of both sides in one call; the subject must have feed_both."""

    primary: tuple[bytes, ...]
    secondary: tuple[bytes, ...]
    now: int


@dataclass(frozen=True)
class Tick:
    """Time passes up to `now`; tick is called only if the implementation's own deadline says so."""

    now: int


@dataclass(frozen=True)
class Stop:
    now: int


@dataclass(frozen=True)
class Commit:
    resumed: int
    now: int


@dataclass(frozen=True)
class Abort:
    now: int


@dataclass(frozen=True)
class Alone:
    now: int


Step = Feed | Both | Tick | Stop | Commit | Abort | Alone


class Run:
    def __init__(self, subject: Subject, oracle: Oracle) -> None:
        self.subject = subject
        self.oracle = oracle
        self.names = 0
        self.pending: tuple[deque[tuple[int, bytes]], deque[tuple[int, bytes]]] = (deque(), deque())
        self.now = 0

    def play(self, schedule: Sequence[Step]) -> Run:
        for index, step in enumerate(schedule):
            try:
                self.step(step)
            except Violation as violation:
                violation.add_note(f"after step {index} of\n{describe(schedule[: index + 1])}")
                raise
        return self

    def step(self, step: Step) -> tuple[list[Action], list[Event]]:
        """Performs one step; then ticks if the deadline has come, then offers again what was refused."""
        done: tuple[list[Action], list[Event]] = ([], [])
        self.now = step.now
        if isinstance(step, Feed):
            for frame in step.frames:
                self.names += 1
                self.pending[step.side].append((self.names, frame))
            self._offer(step.side, done)
        elif isinstance(step, Both):
            for side, frames in enumerate((step.primary, step.secondary)):
                for frame in frames:
                    self.names += 1
                    self.pending[side].append((self.names, frame))
            self._offer_both(done)
        elif isinstance(step, Stop):
            self.subject.stop(step.now)
            self.oracle.stopped(step.now)
        elif isinstance(step, Commit):
            self.subject.commit(step.resumed, step.now)
            self.oracle.committed(step.resumed, step.now)
        elif isinstance(step, Abort):
            self.subject.abort(step.now)
            self.oracle.aborted(step.now)
        elif isinstance(step, Alone):
            self.subject.alone(step.now)
            self.oracle.left_alone(step.now)
        else:
            self.oracle.ticked(step.now)
        self._collect(done)
        if self.subject.deadline() <= step.now:
            self.subject.tick(step.now)
            self.oracle.ticked(step.now)
            self._collect(done)
            if self.subject.deadline() <= step.now and self.oracle.mode != STOPPED:
                raise Violation("events", f"the deadline stays at {self.subject.deadline()} after a tick at {step.now}")
        self.oracle.judge_timeouts_found()
        for side in (0, 1):
            if self.pending[side] and not (isinstance(step, Feed) and side == step.side):
                self._offer(side, done)
        return done

    def _offer(self, side: int, done: tuple[list[Action], list[Event]]) -> None:
        """Feeds until all is taken or nothing more is."""
        waiting = self.pending[side]
        while waiting:
            taken = self.subject.feed(side, list(waiting), self.now)
            if not 0 <= taken <= len(waiting):
                raise Violation("limits", f"{taken} frames of {len(waiting)} were taken")
            for _ in range(taken):
                name, frame = waiting.popleft()
                self.oracle.fed(side, name, frame, self.now)
            if waiting:
                self.oracle.refused(side, self.now)
            if not self._collect(done) and not taken:
                break

    def _offer_both(self, done: tuple[list[Action], list[Event]]) -> None:
        """The same for both sides in one call."""
        while self.pending[0] or self.pending[1]:
            batches = [list(waiting) for waiting in self.pending]
            taken = self.subject.feed_both(batches[0], batches[1], self.now)  # type: ignore[attr-defined]
            for side in (0, 1):
                for _ in range(taken[side]):
                    name, frame = self.pending[side].popleft()
                    self.oracle.fed(side, name, frame, self.now)
                if self.pending[side]:
                    self.oracle.refused(side, self.now)
            if not self._collect(done) and not any(taken):
                break

    def _collect(self, done: tuple[list[Action], list[Event]]) -> bool:
        actions, events = self.subject.take()
        self.oracle.observe(actions, events)
        done[0].extend(actions)
        done[1].extend(events)
        return bool(actions)

    @property
    def held(self) -> list[int]:
        """Names of the primary's frames inside, and of those that were refused."""
        inside = [held.name for held in self.oracle.inside.values() if held.side == PRIMARY]
        return inside + [name for name, _ in self.pending[PRIMARY]]


def describe(schedule: Sequence[Step]) -> str:
    lines, name = [], 0
    for index, step in enumerate(schedule):
        if isinstance(step, Feed):
            fed = [(step.side, frame) for frame in step.frames]
        elif isinstance(step, Both):
            fed = [(0, frame) for frame in step.primary] + [(1, frame) for frame in step.secondary]
        else:
            lines.append(f"{index:4} {step}")
            continue
        for side, frame in fed:
            name += 1
            lines.append(f"{index:4} t={step.now} {'PS'[side]} #{name} {describe_frame(frame)}")
    return "\n".join(lines)


def describe_frame(frame: bytes) -> str:
    packet = parse(frame)
    where = f"{packet.key.sport}>{packet.key.dport} {packet.key.cls.name}"
    if packet.key.family == 6:
        where += "/6"
    if packet.key.vlans:
        where += f" vlan {packet.key.vlans}"
    if packet.cls != Cls.TCP:
        return f"{where} {len(packet.body)} bytes {packet.body[:16].hex()}"
    flags = "".join(letter for bit, letter in ((wire.SYN, "S"), (wire.FIN, "F"), (wire.RST, "R")) if packet.flags & bit)
    ack = f" ack={packet.ack}" if packet.acks else ""
    return f"{where} {flags} seq={packet.seq} len={len(packet.body)}{ack} {packet.body[:8].hex()}"
