# SPDX-License-Identifier: Apache-2.0
"""One capture as a stream of frames on the virtual clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from coloproxy.capture import CapturedFrame, CaptureReader
from coloproxy.describe import FrameDescription, describe
from coloproxy.errors import CaptureError
from coloproxy.replay.flows import add
from coloproxy.replay.result import Role, Source, Tally
from coloproxy.vm_filter import VmFilter

__all__ = ["Input", "Lane"]

_MAX_SPAN: Final = 1 << 61  # ns: 73 years; so far that sums of times never leave 64 bits


@dataclass(frozen=True, slots=True)
class Input:
    """A frame to replay.

    Attributes:
        time: on the virtual clock, ns; that of a client's frame may lie before 0.
        role: what it is taken for.
        side: whose capture it is from.
        path: of that.
        frame: itself.
        what: what the comparator sees in it.
    """

    time: int
    role: Role
    side: Role
    path: str
    frame: CapturedFrame
    what: FrameDescription


class Lane:
    """Frames of one capture (or of one interface of it).

    Args:
        path: the capture.
        side: whose it is.
        interface: name or number of the interface to take; None: all.
        vm: tells output from inbound frames; None: all frames are of ``side``.

    Raises:
        CaptureError: the file can't be read; on opening or iterating.
    """

    def __init__(self, path: str, side: Role, interface: str | None = None, vm: VmFilter | None = None) -> None:
        self.path = path
        self.side = side
        self._interface = interface
        self._vm = vm
        self._read = self._inbound = Tally()
        self._disordered = 0
        self._last: int | None = None
        self._others: dict[str, None] = {}  # interfaces left out, in order
        self._reader = CaptureReader(path)
        self._frames = self._chosen()
        self._peeked = self._next()
        self.first: int | None = self._peeked.time if self._peeked else None

    def close(self) -> None:
        """Closes the file."""
        self._reader.close()

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes of the file read, and its size."""
        return self._reader.position, self._reader.size

    @property
    def source(self) -> Source:
        """What was read so far."""
        return Source(
            path=self.path,
            role=self.side,
            interface=self._interface,
            read=self._read,
            inbound=self._inbound,
            first=self.first,
            last=self._last,
            disordered=self._disordered,
        )

    @property
    def others(self) -> tuple[str, ...]:
        """Interfaces of which frames were left out."""
        return tuple(self._others)

    def inputs(self, base: int) -> Iterator[Input]:
        """All frames; the virtual clock is 0 at ``base`` (ns since the Unix epoch). To be called once."""
        previous: int | None = None
        frame = self._peeked
        while frame is not None:
            time = frame.time - base
            if abs(time) > _MAX_SPAN:
                raise CaptureError(self.path, frame.number, "its time stamp lies more than 70 years from the start")
            if previous is not None and time < previous:
                self._disordered += 1
                time = previous
            previous = time
            self._last = frame.time
            yield self._input(frame, time)
            frame = self._next()

    def check(self) -> None:
        """To be called when all was read. Raises CaptureError if nothing that was asked for was there."""
        if self._interface is not None and self.first is None:
            what = f"has no packets of interface {self._interface}"
            if self._others:
                what += f", but of {', '.join(self._others)}"
            raise CaptureError(self.path, None, what)
        if self._vm is not None and not self._read.frames and self._inbound.frames:
            raise CaptureError(self.path, None, "has no packets from the VM that --vm names")

    def _next(self) -> CapturedFrame | None:
        return next(self._frames, None)

    def _chosen(self) -> Iterator[CapturedFrame]:
        for frame in self._reader:
            if self._interface is None or self._interface in (frame.interface_name, str(frame.interface)):
                yield frame
            elif len(self._others) < 8:
                self._others[frame.interface_name or str(frame.interface)] = None

    def _input(self, frame: CapturedFrame, time: int) -> Input:
        what = describe(frame.data)
        role = self.side
        if self._vm is not None and not self._vm.sent(frame.data, what):
            role = Role.INBOUND
        if role is not self.side:
            self._inbound = add(self._inbound, len(frame.data))
            return Input(time, role, self.side, self.path, frame, what)
        if frame.cut and role is not Role.INBOUND:
            raise CaptureError(
                self.path,
                frame.number,
                f"is cut by the snap length ({len(frame.data)} of {frame.wire_len} bytes), so it can't be compared: "
                "capture whole packets (tcpdump -s 0)",
            )
        self._read = add(self._read, len(frame.data))
        return Input(time, role, Role.PRIMARY if role is Role.INBOUND else role, self.path, frame, what)
