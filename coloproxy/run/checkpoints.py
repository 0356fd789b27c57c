# SPDX-License-Identifier: Apache-2.0
"""A primary's checkpoints: how the next one is waited for, and what the status says; for either attach.

Also what the status says of its comparator and its engine.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from coloproxy.causes import kind_of
from coloproxy.comparator import Counters
from coloproxy.engine import EngineCounters
from coloproxy.engine_events import Port
from coloproxy.errors import PeerError
from coloproxy.histogram import Histogram, release_ages
from coloproxy.reports import CheckpointCommitted, CheckpointFailed, Protected, Report


class Checkpoints:
    """Counts a guide's reports. began: since when, CLOCK_MONOTONIC ns."""

    def __init__(self, began: int) -> None:
        self.count = 0
        self._next: asyncio.Future[None] | None = None
        self._began = self._epoch_began = began
        self._by_cause: Counter[str] = Counter()
        self._failed = 0
        self._last: dict[str, Any] | None = None
        self._pauses = Histogram()
        self._durations = Histogram()

    def hear(self, report: Report) -> None:
        """All reports; some of them count."""
        if isinstance(report, CheckpointFailed):
            self._failed += 1
        if isinstance(report, CheckpointCommitted | Protected):
            self._epoch_began = time.monotonic_ns()
            if self._next is not None and not self._next.done():
                self._next.set_result(None)
            if report.stop_to_resume_ns is not None:
                self._pauses.add(report.stop_to_resume_ns)
        if isinstance(report, CheckpointCommitted):
            self.count += 1
            self._by_cause[kind_of(report.causes)] += 1
            if report.total_ns is not None:
                self._durations.add(report.total_ns)
            self._last = {
                "causes": list(report.causes),
                "stop_to_resume_ms": ms(report.stop_to_resume_ns),
                "total_ms": ms(report.total_ns),
                "released_frames": report.released_frames,
                "at_s": round((time.monotonic_ns() - self._began) / 1e9, 3),
            }

    def next(self) -> asyncio.Future[None]:
        """Done when the next epoch begins with both VMs equal: by a checkpoint, or as COLO begins.

        What is wanted while the guest stands still for that is contained in it, so no checkpoint of its own follows.
        It has a PeerError if protection ends first. Whoever waits shares it with others: not to be cancelled.
        """
        if self._next is None or self._next.done():
            self._next = asyncio.get_running_loop().create_future()
        return self._next

    def over(self, reason: str) -> None:
        """Protection has ended, or there was none: whoever waits is told. Idempotent."""
        if self._next is not None and not self._next.done():
            self._next.set_exception(PeerError(f"no checkpoint has committed, for protection has ended: {reason}"))
            self._next.exception()  # whoever waited may have gone

    def status(self) -> dict[str, Any]:
        """JSON."""
        return {
            "epoch_age_s": round((time.monotonic_ns() - self._epoch_began) / 1e9, 3),
            "checkpoints": self.count,
            "checkpoints_by_cause": dict(self._by_cause),
            "checkpoints_failed": self._failed,
            "last_checkpoint": self._last,
            "pauses": self._pauses.status(),
            "durations": self._durations.status(),
        }


async def until_committed(epochs: Collection[asyncio.Future[None]], wait_s: float) -> None:
    """Until all of them have begun. Raises PeerError, at once: one never will; or after wait_s seconds: one has not."""
    done, pending = await asyncio.wait(epochs, timeout=wait_s, return_when=asyncio.FIRST_EXCEPTION)
    for epoch in done:
        epoch.result()
    if pending:
        raise PeerError(f"no checkpoint has committed in {wait_s:g} s")


def engine_status(engine: EngineCounters) -> dict[str, Any]:
    """JSON: of the comparator, and of the engine around it."""
    return {
        "epoch": engine.comparator.epoch,
        "comparator": _comparator(engine.comparator),
        "engine": {
            "bytes_read": {str(port): engine.bytes_read[port] for port in Port},
            "bytes_written": {str(port): engine.bytes_written[port] for port in Port},
            "out_bytes": engine.out_bytes,
            "pauses": {str(port): engine.pauses[port] for port in Port},
            "gate_closed": engine.gate_closed,
            "lease_waits": engine.lease_waits,
            "wakeups": engine.wakeups,
            "events_lost": engine.events_lost,
            "recorded": engine.recorded,
            "recorded_bytes": engine.recorded_bytes,
            "record_lost": engine.record_lost,
        },
    }


def ms(ns: int | None) -> float | None:
    """Milliseconds."""
    return None if ns is None else round(ns / 1e6, 3)


def _comparator(n: Counters) -> dict[str, Any]:
    """Pairs are (primary, secondary)."""
    return {
        "mode": n.mode.name.lower(),
        "frames_in": list(n.frames_in),
        "bytes_in": list(n.bytes_in),
        "class_in": _nonzero(n.class_in),
        "compared_bytes": n.compared_bytes,
        "released": {str(k): v for k, v in n.released.items()},
        "released_bytes": n.released_bytes,
        "discarded": {str(k): v for k, v in n.discarded.items()},
        "acks_lowered": n.acks_lowered,
        "acks_emitted": n.acks_emitted,
        "parts_emitted": n.parts_emitted,
        "divergences": _nonzero(n.divergences),
        "limits": _nonzero(n.limits),
        "tolerated": n.tolerated,
        "held_frames": list(n.held_frames),
        "held_bytes": list(n.held_bytes),
        "held_frames_peak": n.held_frames_peak,
        "held_bytes_peak": n.held_bytes_peak,
        "fragments_waiting": list(n.fragments_waiting),
        "fragments_dropped": n.fragments_dropped,
        "datagrams_reassembled": n.datagrams_reassembled,
        "flows": n.flows,
        "flows_made": n.flows_made,
        "flows_evicted": n.flows_evicted,
        "checkpoints_wanted": n.checkpoints_wanted,
        "commits": n.commits,
        "aborts": n.aborts,
        "events_lost": n.events_lost,
        "release_ages": {str(k): release_ages(v, n.release_age_sum[k]) for k, v in n.release_ages.items()},
    }


def _nonzero(counts: Mapping[Any, int]) -> dict[str, int]:
    return {str(key): count for key, count in counts.items() if count}
