# SPDX-License-Identifier: Apache-2.0
"""What a run measured, and what follows from it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from hdrh.histogram import HdrHistogram

from coloproxy.bench.cpu import CpuTime
from coloproxy.bench.options import Role
from coloproxy.bench.traffic import Counters, End, Sink

LONGEST_NS = 1 << 37  # the generator's last bucket
PERCENTILES = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment of a run: ns since traffic began, and all that is counted from then on."""

    at: int = 0
    counters: Counters = field(default_factory=Counters)
    comparator: CpuTime | None = None
    own: CpuTime = field(default_factory=CpuTime)


@dataclass(frozen=True, slots=True)
class Latency:
    """Of the samples, in microseconds; `histogram` is HdrHistogram's encoding of it, in ns."""

    samples: int
    mean: float
    percentiles: dict[str, float]
    maximum: float
    histogram: str

    @classmethod
    def of(cls, counts: dict[int, int]) -> Latency | None:
        """From counts by ns; None: there are no samples."""
        if not counts:
            return None
        histogram = HdrHistogram(1, LONGEST_NS, 3)
        for value, count in counts.items():
            histogram.record_value(max(1, min(value, LONGEST_NS)), count)
        return cls(
            samples=int(histogram.get_total_count()),
            mean=histogram.get_mean_value() / 1000,
            percentiles={f"p{p:g}": histogram.get_value_at_percentile(p) / 1000 for p in PERCENTILES},
            maximum=histogram.get_max_value() / 1000,
            histogram=histogram.encode().decode(),
        )


@dataclass(frozen=True, slots=True)
class Interval:
    """From one snapshot to the next."""

    begin: Snapshot
    end: Snapshot
    omitted: bool = False

    @property
    def seconds(self) -> float:
        return (self.end.at - self.begin.at) / 1e9

    def rate(self, name: str) -> float:
        """Of a counter, a second."""
        seconds = self.seconds
        change = getattr(self.end.counters, name) - getattr(self.begin.counters, name)
        return change / seconds if seconds > 0 else 0.0

    @property
    def sent_frames(self) -> int:
        return self.end.counters.primary.frames - self.begin.counters.primary.frames

    @property
    def sent_bytes(self) -> int:
        """Of the primary, as the counters that iperf3 would have: payload."""
        return self.end.counters.primary.payload - self.begin.counters.primary.payload

    @property
    def lag(self) -> int:
        """Frames that the primary has sent and that have not come out, at the end."""
        return max(0, self.end.counters.primary.frames - self.end.counters.released_frames)


@dataclass(frozen=True, slots=True)
class Result:
    """A whole run. `total` is what was measured: without what was omitted, without the drain at the end."""

    intervals: tuple[Interval, ...]
    total: Interval
    last: Snapshot  # after the drain
    latency: Latency | None
    end: End
    fault: str
    interrupted: bool
    sink: Sink
    role: Role
    may_lose: bool

    @property
    def sends(self) -> bool:
        return self.role is not Role.SERVER

    @property
    def receives(self) -> bool:
        return self.role is not Role.CLIENT

    @property
    def lost_frames(self) -> int | None:
        """Frames of the primary's that never came out; None: one of both ends is elsewhere, or nobody counts."""
        n = self.last.counters
        if not (self.sends and self.receives) or self.sink is Sink.DISCARD:
            return None
        return max(0, n.primary.frames - (n.released_frames - n.repeated - n.foreign))

    @property
    def lost_percent(self) -> float | None:
        lost, sent = self.lost_frames, self.last.counters.primary.frames
        return None if lost is None else 100.0 * lost / sent if sent else 0.0

    @property
    def misorders(self) -> list[str]:
        """What is lost, or not in order, in words."""
        n = self.last.counters
        found = []
        if self.lost_frames:
            found.append(f"lost {self.lost_frames:,} frames ({self.lost_percent:.3g} %)")
        for count, what in (
            (n.late, "segments late: others that follow them came first"),
            (n.repeated, "segments repeated"),
            (n.given_up, "responses that never came"),
        ):
            if count:
                found.append(f"{count:,} {what}")
        return found

    @property
    def faults(self) -> list[str]:
        """What must not happen, in words."""
        n = self.last.counters
        found = []
        if self.end is End.BROKEN or (self.end is End.CLOSED and self.sends):  # a server's run ends so
            found.append(self.fault)
        for count, what in (
            (n.corrupt, "segments with other bytes than the primary's"),
            (n.foreign, "frames that the primary never sent"),
        ):
            if count:
                found.append(f"{count:,} {what}")
        return found + ([] if self.may_lose else self.misorders)

    @property
    def cpu(self) -> CpuTime | None:
        """Of the comparator while it was measured."""
        before, after = self.total.begin.comparator, self.total.end.comparator
        return after - before if before is not None and after is not None else None

    @property
    def own_cpu(self) -> CpuTime:
        return self.total.end.own - self.total.begin.own

    @property
    def cpu_seconds_per_gb(self) -> float | None:
        """CPU seconds of the comparator for 10^9 bytes released, as they are on the socket."""
        released = self.total.end.counters.released_bytes - self.total.begin.counters.released_bytes
        return None if self.cpu is None or not released else self.cpu.total / (released / 1e9)
