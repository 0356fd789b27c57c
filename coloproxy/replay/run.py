# SPDX-License-Identifier: Apache-2.0
"""Replay of files: opens the captures, brings their clocks together, feeds the core."""

from __future__ import annotations

import contextlib
import heapq
import stat
from collections.abc import Callable
from pathlib import Path

from coloproxy.errors import CaptureError
from coloproxy.replay.core import Replay
from coloproxy.replay.lane import Lane
from coloproxy.replay.result import Result, Role
from coloproxy.replay.settings import Align, ReplayOptions
from coloproxy.vm_filter import VmFilter

__all__ = ["ProgressCallback", "replay_files"]

ProgressCallback = Callable[[int, int], None]
"""Told now and then: bytes of all files read, and their size in all (0: not known)."""

_EVERY = 2048  # frames


def replay_files(options: ReplayOptions, progress: ProgressCallback | None = None) -> Result:
    """Replays captures against each other.

    Raises:
        CaptureError: a capture can't be used; names file and packet.
        MisuseError: an option makes no sense.
    """
    core = Replay(options)
    with contextlib.ExitStack() as stack:
        lanes = _open(options, stack)
        bases = _bases(lanes, options.alignment)
        streams = [
            ((given.time, i, given) for given in lane.inputs(base))
            for i, (lane, base) in enumerate(zip(lanes, bases, strict=True))
        ]
        for n, (_, _, given) in enumerate(heapq.merge(*streams, key=lambda row: row[:2])):
            core.frame(given)
            if progress is not None and n % _EVERY == 0:
                _tell(lanes, progress)
        for lane in lanes:
            lane.check()
        if progress is not None:
            _tell(lanes, progress)
        return core.finish([lane.source for lane in lanes], _notes(lanes, options))


def _open(options: ReplayOptions, stack: contextlib.ExitStack) -> list[Lane]:
    def lane(path: str, side: Role, interface: str | None, *, filtered: bool = True) -> Lane:
        vm = VmFilter(options.vm) if filtered and options.vm else None
        return stack.enter_context(contextlib.closing(Lane(path, side, interface, vm)))

    first, second = options.primary_interface, options.secondary_interface
    secondary = options.secondary
    if secondary is None:
        _must_be_a_file(options.primary)
        secondary = options.primary
        first, second = first or "0", second or "1"
    lanes = [lane(options.primary, Role.PRIMARY, first), lane(secondary, Role.SECONDARY, second)]
    if options.secondary is None and lanes[1].first is None and options.secondary_interface is None:
        raise CaptureError(
            options.primary,
            None,
            "has packets of one interface only: give the secondary's capture as the second file, or one file with the "
            "frames of both on two interfaces",
        )
    if options.inbound is not None:
        lanes.append(lane(options.inbound, Role.INBOUND, None, filtered=False))
    return lanes


def _must_be_a_file(path: str) -> None:
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        raise CaptureError(path, None, f"can't be opened ({error.strerror})") from error
    if not stat.S_ISREG(mode):
        raise CaptureError(path, None, "a capture with both VMs' frames must be a regular file: it is read twice")


def _bases(lanes: list[Lane], align: Align) -> list[int]:
    """Where the virtual clock's 0 lies on the clock of each lane, ns since the Unix epoch."""
    firsts = [lane.first for lane in lanes[:2]]
    known = [first for first in firsts if first is not None]
    if align is Align.ABSOLUTE:
        return [min(known, default=0)] * len(lanes)
    own = [0 if first is None else first for first in firsts]
    return [*own, *(own[0] for _ in lanes[2:])]  # the client's frames were captured where the primary's were


def _notes(lanes: list[Lane], options: ReplayOptions) -> list[str]:
    notes = []
    sources = [lane.source for lane in lanes]
    for lane, source in zip(lanes, sources, strict=True):
        if source.disordered:
            notes.append(
                f"{lane.path}: {source.disordered} packets are older than the one before; the file's order counts"
            )
        if source.first is None:
            notes.append(f"{lane.path}: has no packets of the {lane.side}")
        if lane.others and lane.side is Role.PRIMARY and options.secondary is not None:
            notes.append(f"{lane.path}: packets of {', '.join(lane.others)} were left out")
    first, second = sources[:2]
    if options.alignment is Align.ABSOLUTE and first.last is not None and second.last is not None:
        assert first.first is not None and second.first is not None
        if first.last < second.first or second.last < first.first:
            notes.append("the two captures do not overlap in time: --align start begins each at its own first packet")
    return notes


def _tell(lanes: list[Lane], progress: ProgressCallback) -> None:
    states = [lane.progress for lane in lanes]
    progress(sum(position for position, _ in states), sum(size for _, size in states))
