# SPDX-License-Identifier: Apache-2.0
"""What a replay found: plain frozen data, for the summary, JSON and the report.

Times are ns of the replay's virtual clock (0 is its start) but where they are called ``captured``: ns since the Unix
epoch. Packet numbers count from 1 in their file, as Wireshark's do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from coloproxy.comparator import Counters
from coloproxy.events import CheckpointWanted, Divergence, FlowId, FrameClass, LimitHit, Tolerated

__all__ = [
    "ClassCounts",
    "DivergenceRecord",
    "FlowResult",
    "HistoryEntry",
    "Packet",
    "Progress",
    "Result",
    "Role",
    "Source",
    "Tally",
]


class Role(Enum):
    """What a frame is taken for."""

    PRIMARY = "primary"
    SECONDARY = "secondary"
    INBOUND = "inbound"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Tally:
    """Frames, and their bytes (whole Ethernet frames)."""

    frames: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """One stream of frames that was read.

    Attributes:
        path: the file.
        role: of its frames; what ``--vm`` leaves over counts as inbound.
        interface: which one was taken, where the file was read for one interface only.
        read: frames of that role.
        inbound: frames that ``--vm`` took for inbound.
        first, last: captured times of its first and last frame, None where it is empty.
        disordered: frames whose time lies before that of the frame before them; they are taken in the file's order.
    """

    path: str
    role: Role
    interface: str | None
    read: Tally
    inbound: Tally
    first: int | None
    last: int | None
    disordered: int


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """What became of the frames of one class.

    Attributes:
        primary, secondary: read.
        released: of the primary, all reasons together (passed and committed ones too).
        passed: of those, released because their class or a rule says so.
        committed: of those, released by a checkpoint (``--checkpoint-after``).
        withheld: of the primary, not released to the end.
        unmatched: of the secondary, to which the primary said nothing equal: still waiting at the end, or dropped with
            a flow that had diverged.
    """

    primary: Tally = Tally()
    secondary: Tally = Tally()
    released: Tally = Tally()
    passed: Tally = Tally()
    committed: Tally = Tally()
    withheld: Tally = Tally()
    unmatched: Tally = Tally()


@dataclass(frozen=True, slots=True)
class Packet:
    """One frame of a capture.

    Attributes:
        path: its file.
        role: what it was taken for.
        number: of the packet in the file.
        time: on the virtual clock.
        captured: when it was captured.
        data: the Ethernet frame.
        payload_offset: where in ``data`` begins what is compared.
    """

    path: str
    role: Role
    number: int
    time: int
    captured: int
    data: bytes
    payload_offset: int


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One line of a flow's history.

    Attributes:
        path, role, number, time: as in Packet.
        flags: TCP flags as letters (``"SA"``), empty for other classes.
        seq, ack: offsets in the streams, where 0 is the first payload byte that was met; each side counts from its own
            beginning. -1 is a SYN; None: no TCP, or not known (no ACK flag).
        length: bytes that are compared.
        verdict: ``matched``, ``passed``, ``committed``, ``alone``, ``stale``, ``diverged``, ``ignored`` as the
            comparator's reasons; ``withheld``: a primary frame that was not released; ``unmatched``: a secondary frame
            that nothing was found equal to; ``inbound``.
        lowered: it was released with a lowered ACK number.
    """

    path: str
    role: Role
    number: int
    time: int
    flags: str
    seq: int | None
    ack: int | None
    length: int
    verdict: str
    lowered: bool


@dataclass(frozen=True, slots=True)
class DivergenceRecord:
    """A difference, and what is known around it.

    Attributes:
        event: the comparator's, with both sides' bytes.
        primary, secondary: the two frames; None where that side said nothing.
        history: of its flow, in order of time: up to 120 frames before the difference and 40 after it.
        cut_before, cut_after: there were more frames than that.
    """

    event: Divergence
    primary: Packet | None
    secondary: Packet | None
    history: tuple[HistoryEntry, ...]
    cut_before: bool
    cut_after: bool


Progress = tuple[tuple[int, int], ...]
"""(time, offset of the stream's end) in order of time: of TCP the stream offset, else payload bytes so far."""


@dataclass(frozen=True, slots=True)
class FlowResult:
    """A flow that differed, or of which frames were withheld.

    Attributes:
        flow: which.
        primary, secondary, inbound: frames read.
        released, withheld: of the primary.
        primary_progress, secondary_progress: how far each side's stream was, for a plot; thinned out where there are
            many frames.
        divergences: of this flow, as indexes into ``Result.divergences``.
    """

    flow: FlowId
    primary: Tally
    secondary: Tally
    inbound: Tally
    released: Tally
    withheld: Tally
    primary_progress: Progress
    secondary_progress: Progress
    divergences: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """A whole replay.

    Attributes:
        sources: what was read; the primary's first.
        settings: what it was replayed with, by the names of the command's options.
        classes: counts by class, those that occurred.
        divergences: in the order found; those beyond ``MAX_RECORDS`` have no frames and no history.
        flows: those that differed or of which frames were withheld, in the order met; ``MAX_FLOWS`` at most.
        flows_cut: there were more.
        limits: limits that were met.
        wanted: wishes for a checkpoint, one an epoch at most.
        tolerated: samples of what rules tolerated; ``counters.tolerated`` counts all.
        commits: simulated checkpoints (``--checkpoint-after``).
        refused: frames that no room was left for (a limit); they count as withheld or unmatched.
        inbound: frames of the client.
        notes: sentences for people about what was read or settled.
        end: the virtual clock at the end.
        counters: the comparator's own.
    """

    sources: tuple[Source, ...]
    settings: Mapping[str, object]
    classes: Mapping[FrameClass, ClassCounts]
    divergences: tuple[DivergenceRecord, ...]
    flows: tuple[FlowResult, ...]
    flows_cut: bool
    limits: tuple[LimitHit, ...]
    wanted: tuple[CheckpointWanted, ...]
    tolerated: tuple[Tolerated, ...]
    commits: int
    refused: Tally
    inbound: Tally
    notes: tuple[str, ...]
    end: int
    counters: Counters = field(repr=False)

    @property
    def total(self) -> ClassCounts:
        """All classes together."""
        names = ("primary", "secondary", "released", "passed", "committed", "withheld", "unmatched")
        return ClassCounts(**{name: _sum(getattr(row, name) for row in self.classes.values()) for name in names})

    @property
    def equal(self) -> bool:
        """All that the primary sent was released, and nothing differed."""
        return not self.divergences and not self.total.withheld.frames


def _sum(tallies: object) -> Tally:
    rows: list[Tally] = list(tallies)  # type: ignore[call-overload]
    return Tally(sum(row.frames for row in rows), sum(row.bytes for row in rows))
