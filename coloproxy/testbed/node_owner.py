# SPDX-License-Identifier: Apache-2.0
"""Who owned the guest's MAC, as the clients' switch saw it: the evidence for "never two primaries".  Sans-I/O.

Each frame that enters the switch from a host with the guest's MAC as its source says that this host is the owner at
that moment (the kernel's time stamp at the switch's port).  Frames of one host, without one of the other between them,
are a run; the run is the host's ownership interval.  So a takeover is one change of runs, and the moment of it is the
new owner's first frame.  A frame of the old owner after that moment ends the new one's run: unless it comes within
*grace*, it makes a run of its own, and two runs that nobody asked for.  Grace is 0 unless a relay in a host's cable
delays frames: those were sent before, and are counted as late.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from .node_net import HOSTS, Host

_MOST_RUNS: Final = 10_000


@dataclass(slots=True)
class Run:
    """One ownership interval."""

    host: Host
    first: float
    """Seconds since 1970, of the first frame."""
    last: float
    frames: int = 1


@dataclass(slots=True)
class Ownership:
    """What was seen since the start."""

    grace: float = 0.0
    """Seconds."""
    runs: list[Run] = field(default_factory=list)
    """In the order of time.  At most 10,000; what comes then is only counted in *untold*."""
    late: int = 0
    """Frames of the old owner within the grace."""
    untold: int = 0

    def frame(self, host: Host, at: float) -> None:
        """A frame of that host with the guest's MAC; *at* never goes back."""
        now = self.runs[-1] if self.runs else None
        if now is not None and now.host == host:
            now.last = at
            now.frames += 1
        elif now is not None and len(self.runs) > 1 and at - now.first <= self.grace:
            self.late += 1
        elif len(self.runs) >= _MOST_RUNS:
            self.untold += 1
        else:
            self.runs.append(Run(host, at, at))


@dataclass(frozen=True, slots=True)
class Seen:
    """What the watch tells."""

    runs: Sequence[Run]
    late: int
    blind: int
    """Frames that the watch missed, because it was too slow or kept no more runs."""
    answers: dict[Host, int]
    """Echo replies by the port they came from."""
    asked: int
    """Echo requests to each host."""
    longest_silence: float
    """The longest time between two frames of the guest, from whichever host; with the last, until now.  Seconds."""

    @property
    def owners(self) -> list[Host]:
        """Who owned the guest, one after the other."""
        return [run.host for run in self.runs]

    def without_thawed(self, host: Host, limit: float) -> Seen:
        """As if one run of *host* between two of the other's, no longer than *limit* seconds, had not been.

        What its QEMU had read, or could read from its sockets, when it was stopped leaves when it goes on, in the
        filter attach: docs/node.md.
        """
        for before, thawed, after in zip(self.runs, self.runs[1:], self.runs[2:], strict=False):
            if thawed.host == host and before.host == after.host and thawed.last - thawed.first <= limit:
                merged = Run(before.host, before.first, after.last, before.frames + after.frames)
                at = self.runs.index(before)
                return replace(self, runs=[*self.runs[:at], merged, *self.runs[at + 3 :]])
        return self

    def faults(self, owners: Sequence[Host]) -> list[str]:
        """Why it wasn't so that exactly these owned it, one after the other; nothing: it was."""
        said: list[str] = []
        if self.owners != list(owners):
            origin = self.runs[0].first if self.runs else 0.0
            story = [f"{r.host} {r.first - origin:.3f}-{r.last - origin:.3f} ({r.frames})" for r in self.runs[:20]]
            more = f" and {len(self.runs) - 20} more" if len(self.runs) > 20 else ""
            said.append(f"owners should be {', '.join(owners) or 'none'}, and were {'; '.join(story) or 'none'}{more}")
        if self.blind:
            said.append(f"{self.blind} frames were not seen: nothing is proven")
        if any(not self.answers[host] for host in HOSTS if host in owners):
            said.append(f"no owner answered, or one never did: {self.answers}")
        return said
