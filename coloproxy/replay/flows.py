# SPDX-License-Identifier: Apache-2.0
"""What is kept of each flow while a replay runs: a little history and the progress of both streams, bounded."""

from __future__ import annotations

from array import array
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final

from coloproxy.describe import FrameDescription, TcpFlags, flags_text
from coloproxy.events import FlowId, FrameClass
from coloproxy.replay.result import HistoryEntry, Progress, Role, Tally

__all__ = ["AFTER", "BEFORE", "Entry", "FlowState", "FlowTable", "Snapshot", "add"]

BEFORE: Final = 120
AFTER: Final = 40
_POINTS: Final = 256
_MAX_FLOWS: Final = 20_000
_MAX_ENTRIES: Final = 400_000
_HALF: Final = 1 << 31


def add(tally: Tally, size: int) -> Tally:
    """One frame more."""
    return Tally(tally.frames + 1, tally.bytes + size)


@dataclass(slots=True)
class Entry:
    """A frame in a history, whose verdict may come later."""

    path: str
    role: Role
    number: int
    time: int
    flags: int
    seq: int | None
    ack: int | None
    length: int
    verdict: str
    lowered: bool = False

    def frozen(self) -> HistoryEntry:
        return HistoryEntry(
            self.path,
            self.role,
            self.number,
            self.time,
            flags_text(self.flags),
            self.seq,
            self.ack,
            self.length,
            self.verdict,
            self.lowered,
        )


@dataclass(slots=True)
class Snapshot:
    """The history around one difference."""

    entries: list[Entry]
    cut_before: bool
    room: int = AFTER
    cut_after: bool = False


class _Points:
    """(time, offset), thinned out evenly as they become many."""

    __slots__ = ("_high", "_offsets", "_skip", "_stride", "_times")

    def __init__(self) -> None:
        self._times = array("q")
        self._offsets = array("q")
        self._high = -1
        self._stride = 1
        self._skip = 0

    def add(self, time: int, offset: int) -> None:
        if offset <= self._high:
            return
        self._high = offset
        self._skip += 1
        if self._skip < self._stride:
            return
        self._skip = 0
        self._times.append(time)
        self._offsets.append(offset)
        if len(self._times) >= _POINTS:
            del self._times[1::2], self._offsets[1::2]
            self._stride *= 2

    def frozen(self, last_time: int) -> Progress:
        points = list(zip(self._times, self._offsets, strict=True))
        if self._high >= 0 and (not points or points[-1][1] < self._high):
            points.append((last_time, self._high))
        return tuple(points)


@dataclass(slots=True)
class _Stream:
    """One sender's TCP numbers as offsets: 64 bits, 0 is the first payload byte met."""

    base: int | None = None  # 32-bit number of offset 0
    high: int = 0

    def place(self, number: int) -> int | None:
        """The offset nearest to the stream's present end (RFC 9293 3.4: numbers are modulo 2^32)."""
        if self.base is None:
            return None
        return self.high + ((number - self.base - self.high + _HALF) % (1 << 32)) - _HALF


@dataclass(slots=True)
class FlowState:
    """One flow; see FlowResult."""

    flow: FlowId
    tallies: dict[Role, Tally] = field(default_factory=lambda: dict.fromkeys(Role, Tally()))
    released: Tally = field(default_factory=Tally)
    history: deque[Entry] = field(default_factory=lambda: deque(maxlen=BEFORE))
    entries: int = 0
    snapshots: list[Snapshot] = field(default_factory=list)
    streams: dict[tuple[Role, bool], _Stream] = field(default_factory=dict)  # (whose file, the VM's direction)
    points: dict[Role, _Points] = field(default_factory=dict)
    last_time: dict[Role, int] = field(default_factory=dict)
    sent: dict[Role, int] = field(default_factory=dict)

    def note(self, entry: Entry) -> None:
        self.entries += 1
        self.history.append(entry)
        for snapshot in self.snapshots:
            if snapshot.room:
                snapshot.room -= 1
                snapshot.entries.append(entry)
            else:
                snapshot.cut_after = True

    def snapshot(self) -> Snapshot:
        """From now on the history around this point is kept."""
        taken = Snapshot(list(self.history), self.entries > len(self.history))
        self.snapshots.append(taken)
        return taken

    def progress(self, role: Role) -> Progress:
        points = self.points.get(role)
        return points.frozen(self.last_time[role]) if points else ()

    def place(self, what: FrameDescription, role: Role, time: int, twin: Role) -> tuple[int | None, int | None]:
        """Offsets of the frame's seq and ack; moves the stream on. `twin`: the side whose file it is from."""
        outbound = role is not Role.INBOUND
        if self.flow.frame_class is not FrameClass.TCP:
            if outbound:
                self.sent[role] = end = self.sent.get(role, 0) + what.payload_len
                self._advance(role, time, end)
            return None, None
        own = self.streams.setdefault((twin, outbound), _Stream())
        peer = self.streams.setdefault((twin, not outbound), _Stream())
        if what.flags & TcpFlags.SYN:
            first = (what.seq + 1) % (1 << 32)
            if own.base != first:  # a new connection, or the first of all
                own.base, own.high = first, 0
                if outbound:
                    self.points.pop(role, None)
        elif own.base is None and not what.flags & TcpFlags.RST:
            own.base, own.high = self._guess(what.seq, twin, outbound), 0
        seq = own.place(what.seq)
        if seq is not None:
            end = seq + what.stream_len
            own.high = max(own.high, end)
            if outbound:
                self._advance(role, time, end)
        if not what.flags & TcpFlags.ACK:
            return seq, None
        if peer.base is None:
            peer.base = what.ack
        return seq, peer.place(what.ack)

    def _guess(self, number: int, twin: Role, outbound: bool) -> int:
        """A flow met in mid-stream: the secondary may speak the primary's numbers (a rewriter, a checkpoint before)."""
        other = self.streams.get((Role.PRIMARY, outbound))
        if twin is Role.SECONDARY and other is not None and other.base is not None:
            distance = (number - other.base + _HALF) % (1 << 32) - _HALF
            if abs(distance) < 1 << 24:
                return other.base
        return number

    def _advance(self, role: Role, time: int, end: int) -> None:
        self.last_time[role] = time
        self.points.setdefault(role, _Points()).add(time, end)


class FlowTable:
    """The flows, least recently used first; flows without a difference make room when there are too many."""

    def __init__(self) -> None:
        self._flows: OrderedDict[FlowId, FlowState] = OrderedDict()
        self._kept: dict[FlowId, FlowState] = {}
        self._entries = 0

    def get(self, flow: FlowId) -> FlowState:
        """The state of a flow, made where there is none."""
        state = self._kept.get(flow) or self._flows.get(flow)
        if state is None:
            state = self._flows[flow] = FlowState(flow)
            while len(self._flows) > _MAX_FLOWS or self._entries > _MAX_ENTRIES:
                _, old = self._flows.popitem(last=False)
                self._entries -= len(old.history)
        elif flow in self._flows:
            self._flows.move_to_end(flow)
        return state

    def note(self, state: FlowState, entry: Entry) -> None:
        """Adds a frame to a flow's history."""
        if len(state.history) < BEFORE and state.flow in self._flows:
            self._entries += 1
        state.note(entry)

    def keep(self, flow: FlowId) -> FlowState:
        """As get; the flow never makes room from now on."""
        state = self.get(flow)
        if flow not in self._kept:
            self._kept[flow] = state
            del self._flows[flow]
            self._entries -= len(state.history)
        return state
