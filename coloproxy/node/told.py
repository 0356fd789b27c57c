# SPDX-License-Identifier: Apache-2.0
"""What a node has to tell: each change of its state, with the row behind it; and its heartbeat's numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from coloproxy.heartbeat import BUCKETS_NS, Stats
from coloproxy.reports import Report


@dataclass(frozen=True, slots=True)
class NodeState(Report):
    """The node went to another state, or its record changed. `reason`: by the table, and by what was heard."""

    host: str
    before: str
    after: str
    on: str
    reason: str
    standing: str
    generation: int
    name: ClassVar[str] = "node"

    def __str__(self) -> str:
        what = self.after if self.after == self.before else f"{self.before} -> {self.after}"
        return f"node {self.host}: {what}, {self.standing} of generation {self.generation}: {self.reason}"


@dataclass(frozen=True, slots=True)
class ResyncBegins(Report):
    """The disks are copied to the secondary. `mode`: full or bitmap, and the reason for it."""

    mode: str
    reason: str
    name: ClassVar[str] = "resync"

    def __str__(self) -> str:
        how = "by what was written since" if self.mode == "bitmap" else "in full"
        return f"the disks are copied to the secondary {how}: {self.reason}"


@dataclass(frozen=True, slots=True)
class ResyncDone(Report):
    """The copy is whole. `copied`: bytes; `pause_s`: the VM stood still for so long."""

    mode: str
    copied: int
    seconds: float
    pause_s: float
    name: ClassVar[str] = "resynced"

    def __str__(self) -> str:
        stood = f", the VM stood still for {self.pause_s:g} s" if self.pause_s else ""
        return f"the disks are equal: {self.copied >> 10} KiB were copied in {self.seconds:g} s{stood}"


def peer(stats: Stats) -> dict[str, float | None]:
    """How long ago it was heard last, on whichever path, and the shortest round trip of those that work; ms."""
    silent = min((path.silent_ns for path in stats.paths if path.silent_ns is not None), default=None)
    trips = min((path.rtt.ewma for path in stats.paths if path.up and path.rtt.ewma is not None), default=None)
    return {"age_ms": _ms(silent), "rtt_ms": _ms(trips)}


def paths(stats: Stats) -> list[dict[str, Any]]:
    """The heartbeat's paths, as the status has them."""
    return [
        {
            "name": path.name,
            "up": path.up,
            "sent": path.sent,
            "received": path.received,
            "lost": path.lost,
            "refused": {reason.value: count for reason, count in path.refused.items() if count},
            "rtt_ms": {"min": _ms(path.rtt.least), "avg": _ms(path.rtt.ewma), "max": _ms(path.rtt.most)},
            "histogram": _histogram(path.rtt.histogram),
        }
        for path in stats.paths
    ]


def _histogram(cumulative: tuple[int, ...]) -> list[list[float | int | None]]:
    """[upper bound in ms, how many between it and the bound before]; the last one has none."""
    bounds: list[float | None] = [*(ns / 1e6 for ns in BUCKETS_NS), None]
    below = [0, *cumulative[:-1]]
    return [[bound, count - before] for bound, count, before in zip(bounds, cumulative, below, strict=True)]


def _ms(ns: int | None) -> float | None:
    return None if ns is None else round(ns / 1e6, 3)
