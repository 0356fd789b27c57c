# SPDX-License-Identifier: Apache-2.0
"""Replay without I/O: frames with their times in, a Result out. The comparator runs on a virtual clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from coloproxy.comparator import Comparator, Discarded, Released
from coloproxy.describe import reverse
from coloproxy.events import CheckpointWanted, Divergence, FlowId, FrameClass, LimitHit, Reason, Side, Tolerated
from coloproxy.replay.flows import Entry, FlowState, FlowTable, Snapshot, add
from coloproxy.replay.lane import Input
from coloproxy.replay.result import (
    ClassCounts,
    DivergenceRecord,
    FlowResult,
    Packet,
    Result,
    Role,
    Source,
    Tally,
)
from coloproxy.replay.settings import ReplayOptions

__all__ = ["MAX_DIVERGENCES", "MAX_FLOWS", "MAX_RECORDS", "Replay"]

MAX_RECORDS: Final = 200
MAX_DIVERGENCES: Final = 10_000
MAX_FLOWS: Final = 1_000
_MAX_PENDING_FRAMES: Final = 100_000
_MAX_PENDING_BYTES: Final = 64 << 20

_SIDES: Final = {Role.PRIMARY: Side.PRIMARY, Role.SECONDARY: Side.SECONDARY}
_UNEQUAL: Final = (Reason.DIVERGED, Reason.STALE)


@dataclass(slots=True)
class _Held:
    """A frame inside the comparator, or on its way there."""

    input: Input
    state: FlowState
    entry: Entry


@dataclass(slots=True)
class _Found:
    """A difference that becomes a DivergenceRecord."""

    event: Divergence
    primary: Packet | None = None
    secondary: Packet | None = None
    snapshot: Snapshot | None = None


@dataclass(slots=True)
class _Queue:
    """Frames of one side that a limit keeps out. Once too many have come, all later ones are left out for good."""

    frames: deque[_Held]
    bytes: int = 0
    stalled: bool = False


class Replay:
    """Feeds one comparator.

    Protection begins at time 0. No checkpoint happens, unless the options simulate one: so after the first difference
    of a flow, what it sends is withheld, and of all that wait only the first is told (one wish for a checkpoint).
    """

    def __init__(self, options: ReplayOptions) -> None:
        self._options = options
        self._comparator = Comparator(**options.comparator)
        self._comparator.commit(0, 0)
        self._now = 0
        self._commit_at: int | None = None
        self._commits = 0
        self._flows = FlowTable()
        self._held: dict[int, _Held] = {}
        self._fed = 0
        self._queues = {side: _Queue(deque()) for side in Side}
        self._counts: dict[str, dict[FrameClass, Tally]] = {name: {} for name in ClassCounts.__dataclass_fields__}
        self._inbound = self._refused = Tally()
        self._found: list[_Found] = []
        self._lost_divergences = 0
        self._of_flow: dict[FlowId, list[int]] = {}
        self._limits: list[LimitHit] = []
        self._wanted: list[CheckpointWanted] = []
        self._tolerated: list[Tolerated] = []

    def frame(self, given: Input) -> None:
        """The next frame; times that lie before the last frame's are taken as that."""
        if given.role is Role.INBOUND:
            self._take_inbound(given)
            return
        self._run_to(given.time)
        self._now = max(self._now, given.time)
        state = self._flows.get(given.what.flow)
        held = _Held(given, state, self._enter(given, state, "withheld" if given.role is Role.PRIMARY else "unmatched"))
        self._count(str(given.role), held)
        queue = self._queues[_SIDES[given.role]]
        if queue.frames or queue.stalled or not self._feed(held):
            self._put_off(queue, held)
        self._settle()

    def finish(self, sources: Sequence[Source], notes: Sequence[str]) -> Result:
        """The captures are at their ends: the clock runs on until nothing is waited for."""
        self._run_to(None)
        left = [*self._held.values(), *(held for queue in self._queues.values() for held in queue.frames)]
        for held in left:
            self._count("withheld" if held.input.role is Role.PRIMARY else "unmatched", held)
        for queue in self._queues.values():
            for held in queue.frames:
                self._refused = add(self._refused, len(held.input.frame.data))
        withheld = {held.state.flow: held.state for held in left if held.input.role is Role.PRIMARY}
        differing = {flow: self._flows.keep(flow) for flow in self._of_flow}
        flows = list((differing | withheld).values())
        records = tuple(self._record(found) for found in self._found)
        return Result(
            sources=tuple(sources),
            settings=self._options.shown,
            classes={
                member: ClassCounts(**{name: rows.get(member, Tally()) for name, rows in self._counts.items()})
                for member in FrameClass
                if any(member in rows for rows in self._counts.values())
            },
            divergences=records,
            flows=tuple(self._flow(state) for state in flows[:MAX_FLOWS]),
            flows_cut=len(flows) > MAX_FLOWS,
            limits=tuple(self._limits),
            wanted=tuple(self._wanted),
            tolerated=tuple(self._tolerated),
            commits=self._commits,
            refused=self._refused,
            inbound=self._inbound,
            notes=(*notes, *self._own_notes()),
            end=self._now,
            counters=self._comparator.counters(),
        )

    # ---------------------------------------------------------------- the clock

    def _run_to(self, time: int | None) -> None:
        """Carries out what is due before ``time``; None: all that is ever due."""
        while (due := self._next_due()) is not None and (time is None or due < time):
            late = due <= self._now
            self._now = max(self._now, due)
            if self._commit_at is not None and self._commit_at <= self._now:
                self._commit()
            else:
                self._comparator.tick(self._now)
            if not self._settle() and late and self._next_due() == due:
                return  # nothing moves any more

    def _next_due(self) -> int | None:
        deadline = self._comparator.deadline
        if self._commit_at is None or deadline is None:
            return self._commit_at if deadline is None else deadline
        return min(deadline, self._commit_at)

    def _commit(self) -> None:
        self._commit_at = None
        self._commits += 1
        self._comparator.stop(self._now)
        self._comparator.commit(self._now, self._now)

    # ---------------------------------------------------------------- in

    def _take_inbound(self, given: Input) -> None:
        self._inbound = add(self._inbound, len(given.frame.data))
        state = self._flows.get(reverse(given.what.flow))
        self._enter(given, state, "inbound")

    def _enter(self, given: Input, state: FlowState, verdict: str) -> Entry:
        what = given.what
        seq, ack = state.place(what, given.role, given.time, given.side)
        entry = Entry(
            given.path, given.role, given.frame.number, given.time, what.flags, seq, ack, what.payload_len, verdict
        )
        state.tallies[given.role] = add(state.tallies[given.role], len(given.frame.data))
        self._flows.note(state, entry)
        return entry

    def _feed(self, held: _Held) -> bool:
        given = held.input
        if not self._comparator.feed(_SIDES[given.role], [given.frame.data], self._now):
            return False
        self._held[self._fed] = held
        self._fed += 1
        return True

    def _put_off(self, queue: _Queue, held: _Held) -> None:
        size = len(held.input.frame.data)
        full = len(queue.frames) >= _MAX_PENDING_FRAMES or queue.bytes + size > _MAX_PENDING_BYTES
        if queue.stalled or full:
            queue.stalled = True
            self._refused = add(self._refused, size)
            self._count("withheld" if held.input.role is Role.PRIMARY else "unmatched", held)
            return
        queue.frames.append(held)
        queue.bytes += size

    def _retry(self) -> bool:
        """Feeds what a limit kept out. Whether any of it went in."""
        any_fed = False
        for queue in self._queues.values():
            while queue.frames and self._feed(queue.frames[0]):
                queue.bytes -= len(queue.frames.popleft().input.frame.data)
                any_fed = True
        return any_fed

    # ---------------------------------------------------------------- out

    def _settle(self) -> bool:
        """Takes events and actions until there are none. Whether there were any."""
        moved = False
        while True:
            events = self._comparator.events()  # first: they name frames that an action may take away
            for event in events:
                match event:
                    case Divergence():
                        self._diverged(event)
                    case LimitHit():
                        self._limits.append(event)
                    case CheckpointWanted():
                        self._want(event)
                    case Tolerated():
                        if len(self._tolerated) < MAX_DIVERGENCES:
                            self._tolerated.append(event)
            actions = self._comparator.actions()
            for action in actions:
                match action:
                    case Released():
                        self._released(self._held.pop(action.frame), action)
                    case Discarded():
                        self._discarded(self._held.pop(action.frame), action.reason)
            waiting = any(queue.frames for queue in self._queues.values())
            again = bool(actions) and waiting and self._retry()
            moved = moved or bool(events) or bool(actions)
            if not again:
                return moved

    def _want(self, event: CheckpointWanted) -> None:
        if len(self._wanted) < MAX_DIVERGENCES:
            self._wanted.append(event)
        if self._options.checkpoint_after is not None:
            self._commit_at = self._now + self._options.checkpoint_after

    def _released(self, held: _Held, action: Released) -> None:
        held.entry.verdict = str(action.reason)
        held.entry.lowered = action.lowered
        held.state.released = add(held.state.released, len(held.input.frame.data))
        self._count("released", held)
        if action.reason is Reason.PASSED:
            self._count("passed", held)
        elif action.reason is Reason.COMMITTED:
            self._count("committed", held)

    def _discarded(self, held: _Held, reason: Reason) -> None:
        held.entry.verdict = str(reason)
        if reason in _UNEQUAL:
            self._count("unmatched", held)

    def _diverged(self, event: Divergence) -> None:
        if len(self._found) >= MAX_DIVERGENCES:
            self._lost_divergences += 1
            return
        found = _Found(event)
        if len(self._found) < MAX_RECORDS:
            found.primary = self._packet(event.primary_frame)
            found.secondary = self._packet(event.secondary_frame)
            if event.flow is not None:
                found.snapshot = self._flows.keep(event.flow).snapshot()
        if event.flow is not None and (event.flow in self._of_flow or len(self._of_flow) < MAX_FLOWS):
            self._of_flow.setdefault(event.flow, []).append(len(self._found))
        self._found.append(found)

    def _packet(self, number: int | None) -> Packet | None:
        held = None if number is None else self._held.get(number)
        if held is None:
            return None
        given = held.input
        return Packet(
            path=given.path,
            role=given.role,
            number=given.frame.number,
            time=given.time,
            captured=given.frame.time,
            data=given.frame.data,
            payload_offset=given.what.payload_offset,
        )

    def _count(self, name: str, held: _Held) -> None:
        rows = self._counts[name]
        kind = held.input.what.flow.frame_class
        rows[kind] = add(rows.get(kind, Tally()), len(held.input.frame.data))

    # ---------------------------------------------------------------- the result

    def _record(self, found: _Found) -> DivergenceRecord:
        snapshot = found.snapshot
        return DivergenceRecord(
            event=found.event,
            primary=found.primary,
            secondary=found.secondary,
            history=tuple(entry.frozen() for entry in snapshot.entries) if snapshot else (),
            cut_before=snapshot.cut_before if snapshot else False,
            cut_after=snapshot.cut_after if snapshot else False,
        )

    def _flow(self, state: FlowState) -> FlowResult:
        primary = state.tallies[Role.PRIMARY]
        return FlowResult(
            flow=state.flow,
            primary=primary,
            secondary=state.tallies[Role.SECONDARY],
            inbound=state.tallies[Role.INBOUND],
            released=state.released,
            withheld=Tally(primary.frames - state.released.frames, primary.bytes - state.released.bytes),
            primary_progress=state.progress(Role.PRIMARY),
            secondary_progress=state.progress(Role.SECONDARY),
            divergences=tuple(self._of_flow.get(state.flow, ())),
        )

    def _own_notes(self) -> list[str]:
        notes = []
        if self._lost_divergences:
            notes.append(f"{self._lost_divergences} more differences were found; only the first are listed")
        if self._refused.frames:
            notes.append(
                f"a limit left no room for {self._refused.frames} frames: they were not compared, and count as "
                "withheld or unmatched"
            )
        if self._wanted and self._options.checkpoint_after is None:
            notes.append(
                "no checkpoint happens in a replay: of what waits after the first wish for one only differing bytes "
                "are told; --checkpoint-after simulates checkpoints"
            )
        return notes
