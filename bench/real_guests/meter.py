# SPDX-License-Identifier: Apache-2.0
"""Checkpoints and processor time during a piece of work, counted alike for every set-up."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from coloproxy.testbed.monitor import Event, Watch

from .setups import Subject
from .work import Figures

SETTLE_SECONDS = 0.5  # after the work: what it still sets off is its own
_LAST_CHECKPOINT_SECONDS = 3.0


@dataclass(slots=True)
class Reading:
    """What happened between begin and end of a Meter."""

    pauses: list[float] = field(default_factory=list)
    """Of each checkpoint, in seconds: STOP to RESUME of the primary, by QEMU's clock."""
    causes: dict[str, int] = field(default_factory=dict)
    """coloproxy only: why, by its journal.  A checkpoint can have more than one cause."""
    cpu: dict[str, float] = field(default_factory=dict)
    """Seconds of processor time of each process."""
    seconds: float = 0.0

    def figures(self) -> Figures:
        """As they go into the results."""
        pauses = [pause * 1000 for pause in self.pauses]
        comparator = self.cpu.get("comparator", 0.0)
        return {
            "checkpoints": len(pauses),
            "pause_median_ms": median(pauses) if pauses else None,
            "pause_max_ms": max(pauses) if pauses else None,
            "pause_sum_ms": sum(pauses),
            "cpu_primary_s": self.cpu["primary"],
            "cpu_secondary_s": self.cpu.get("secondary"),
            "cpu_comparator_s": self.cpu.get("comparator"),
            "cpu_primary_and_comparator_s": self.cpu["primary"] + comparator,
        }


class Meter:
    """Made by metering(); read() it again and again."""

    def __init__(self, subject: Subject, watch: Watch) -> None:
        self.checkpoints = 0
        """Since the beginning."""
        self._subject = subject
        self._watch = watch
        self._events: list[Event] = []
        self._since = time.monotonic()
        self._cpu = self._cpu_now()
        self._records = self._records_now()

    async def read(self) -> Reading:
        """What happened since the last reading.  Waits for SETTLE_SECONDS, and for the end of a checkpoint."""
        await asyncio.sleep(SETTLE_SECONDS)
        self._events += self._watch.take()
        until = time.monotonic() + _LAST_CHECKPOINT_SECONDS
        while self._events and self._events[-1].name == "STOP" and time.monotonic() < until:
            await asyncio.sleep(0.01)
            self._events += self._watch.take()
        now, cpu, records = time.monotonic(), self._cpu_now(), self._records_now()
        pauses, self._events = pair_events(self._events)
        self.checkpoints += len(pauses)
        reading = Reading(
            pauses=pauses,
            causes=self._causes(self._records, records),
            cpu={name: cpu[name] - self._cpu[name] for name in cpu},
            seconds=now - self._since,
        )
        self._since, self._cpu, self._records = now, cpu, records
        return reading

    def _cpu_now(self) -> dict[str, float]:
        return {name: process.cpu_seconds() for name, process in self._subject.processes.items()}

    def _records_now(self) -> int:
        if self._subject.journal is None:
            return 0
        self._subject.journal.poll()
        return len(self._subject.journal.records)

    def _causes(self, begin: int, end: int) -> dict[str, int]:
        if self._subject.journal is None:
            return {}
        commits = [r for r in self._subject.journal.records[begin:end] if r["event"] == "checkpoint-committed"]
        # "payload in tcp 10.99.0.2:80 > ...": which flow it was is in the journal; here, how often which cause.
        kinds = ({str(cause).partition(" in ")[0] for cause in record["causes"]} for record in commits)
        return dict(collections.Counter(kind for found in kinds for kind in found or {"none"}))


@contextlib.contextmanager
def metering(subject: Subject) -> Iterator[Meter]:
    """A meter that counts from now on."""
    with subject.bed.primary.control.watch("STOP", "RESUME") as watch:
        yield Meter(subject, watch)


def pair_events(events: Sequence[Event]) -> tuple[list[float], list[Event]]:
    """Durations from each STOP to its RESUME, and the STOP that has none yet."""
    pauses: list[float] = []
    stop: Event | None = None
    for event in events:
        if event.name == "STOP":
            stop = event
        elif stop is not None:
            pauses.append(event.seconds - stop.seconds)
            stop = None
    return pauses, [stop] if stop is not None else []
