# SPDX-License-Identifier: Apache-2.0
"""What the engine tells: its peers come and go, a commit was carried out, it failed; and the comparator's events.

All times are CLOCK_MONOTONIC, integer ns.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from coloproxy import errors
from coloproxy._native import ffi, lib
from coloproxy.events import ComparatorEvent, event_from_native

__all__ = [
    "Committed",
    "EngineEvent",
    "EngineFailed",
    "Fault",
    "GateLost",
    "PeerAttached",
    "PeerLost",
    "Port",
    "RecordingEnded",
    "RingDumped",
    "engine_event_from_native",
]


class Port(IntEnum):
    """The three data sockets of QEMU's ``-object colo-compare``, by its option names."""

    PRIMARY_IN = 0
    SECONDARY_IN = 1
    OUTDEV = 2

    def __str__(self) -> str:
        return self.name.lower()


class Fault(IntEnum):
    """How a peer broke the framing of QEMU's socket filters."""

    OVERSIZE = -1
    EMPTY = -2
    VNET = -3
    TRUNCATED = -4
    NIC = -5


def _check_enums() -> None:
    for enum, prefix in ((Port, "COLO_PORT_"), (Fault, "COLO_FAULT_")):
        for member in enum:
            native = getattr(lib, prefix + member.name)
            if native != member:
                raise errors.NativeError(f"{enum.__name__}.{member.name} is {member:d} here, {native} in the C core")


_check_enums()


@dataclass(frozen=True, slots=True)
class PeerAttached:
    """A port has its peer."""

    port: Port
    time: int


@dataclass(frozen=True, slots=True)
class PeerLost:
    """A port's peer is gone; the port is free for the next one. Frames that were read whole stay good.

    Attributes:
        port: whose peer.
        time: when it was noticed.
        reason: why, for people, with the port's name.
        fault: the broken framing, None: it wasn't that.
        errno: the failed system call's, None: none failed.
        bad_value: the length, or number of a NIC, that broke the framing (of a truncated frame: the length announced),
            None without fault.
        position: bytes of the connection before that place, None without fault.
    """

    port: Port
    time: int
    reason: str
    fault: Fault | None = None
    errno: int | None = None
    bad_value: int | None = None
    position: int | None = None


@dataclass(frozen=True, slots=True)
class GateLost:
    """The QMP connection behind the gate is gone. No frame is judged until ``gate_detach`` or a new ``gate_attach``."""

    time: int
    reason: str
    errno: int | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """A commit was carried out; it released so many held primary frames (bytes as sent, framing included)."""

    time: int
    released_frames: int
    released_bytes: int


@dataclass(frozen=True, slots=True)
class EngineFailed:
    """The engine's thread has ended by itself; its sockets are closed. It can only be closed."""

    time: int
    reason: str
    errno: int


@dataclass(frozen=True, slots=True)
class RecordingEnded:
    """The recording could not be written. Its file ends with the last whole block; the data path goes on."""

    time: int
    reason: str
    errno: int


@dataclass(frozen=True, slots=True)
class RingDumped:
    """The last seconds before a divergence were written to a file of their own, or could not be.

    Attributes:
        time: when it was told.
        diverged: when the VMs did.
        name: of the file, in the ring's directory.
        bytes: of the file.
        reason: why there is no such file, None: there is.
        errno: of that, None.
    """

    time: int
    diverged: int
    name: str
    bytes: int
    reason: str | None = None
    errno: int | None = None


EngineEvent = (
    PeerAttached | PeerLost | GateLost | Committed | EngineFailed | RecordingEnded | RingDumped | ComparatorEvent
)


def _errno_text(code: int) -> str:
    return f"{os.strerror(code)} ({errno.errorcode.get(code, code)})"


def _word(value: int) -> str:
    """A length as it was read, and as text if it looks like some: a peer of another protocol shows itself so."""
    raw = value.to_bytes(4, "big")
    return f"{value} (text {raw.decode()!r})" if all(32 <= byte < 127 for byte in raw) else str(value)


def _fault_text(fault: Fault, value: int, position: int, max_frame: int, vnet_hdr: bool, nics: int) -> str:
    same = f"with vnet_hdr_support={'on' if vnet_hdr else 'off'} as here"
    match fault:
        case Fault.OVERSIZE:
            return (
                f"length prefix {_word(value)} at byte {position} is above the limit of {max_frame} bytes; "
                f"is that peer QEMU's filter-redirector, {same}?"
            )
        case Fault.EMPTY:
            return f"length prefix 0 at byte {position}; is that peer QEMU's filter-redirector, {same}?"
        case Fault.VNET:
            return (
                f"vnet header length {_word(value)} at byte {position} is none of 0, 10 and 12, or longer than its "
                f"frame; is that peer QEMU's filter-redirector, {same}?"
            )
        case Fault.NIC:
            return (
                f"NIC {value} at byte {position}, but this VM has NICs 0 to {nics - 1} only; "
                f"does that peer write NICs into the vnet_hdr word, {same}?"
            )
        case Fault.TRUNCATED:
            announced = f" of {value} bytes" if value else ""
            return f"closed by its peer in the middle of a frame{announced} that began at byte {position}"


def _lost_from_native(event: Any, max_frame: int, vnet_hdr: bool, nics: int) -> PeerLost:
    port = Port(event.port)
    code = int(event.error)
    if code < 0:
        fault = Fault(code)
        text = _fault_text(fault, event.bad_value, event.position, max_frame, vnet_hdr, nics)
        return PeerLost(port, event.time, f"{port}: {text}", fault, None, event.bad_value, event.position)
    if code > 0:
        return PeerLost(port, event.time, f"{port}: connection lost: {_errno_text(code)}", errno=code)
    return PeerLost(port, event.time, f"{port}: closed by its peer")


def engine_event_from_native(event: Any, max_frame: int, vnet_hdr: bool, nics: int = 1) -> EngineEvent:
    """Copies a ``struct colo_engine_event``; ``max_frame``, ``vnet_hdr`` and ``nics`` are the engine's, for texts."""
    code = int(event.error)
    match event.kind:
        case lib.COLO_ENGINE_COMPARATOR:
            return event_from_native(event.event)
        case lib.COLO_ENGINE_ATTACHED:
            return PeerAttached(Port(event.port), event.time)
        case lib.COLO_ENGINE_LOST:
            return _lost_from_native(event, max_frame, vnet_hdr, nics)
        case lib.COLO_ENGINE_GATE_LOST:
            reason = f"QMP: connection lost: {_errno_text(code)}" if code else "QMP: closed"
            return GateLost(event.time, reason, code or None)
        case lib.COLO_ENGINE_COMMITTED:
            return Committed(event.time, event.released_frames, event.released_bytes)
        case lib.COLO_ENGINE_RECORD_ENDED:
            return RecordingEnded(event.time, f"the recording has ended: {_errno_text(code)}", code)
        case lib.COLO_ENGINE_DUMPED:
            name = ffi.string(event.dump.name).decode()
            why = _errno_text(code) if code else None
            return RingDumped(event.time, event.dump.time, name, event.dump.bytes, why, code or None)
        case lib.COLO_ENGINE_FATAL:
            return EngineFailed(event.time, f"engine: {_errno_text(code)}", code)
        case kind:
            raise errors.NativeError(f"the C core gave an engine event of kind {kind}, which this version doesn't know")
