# SPDX-License-Identifier: Apache-2.0
"""The data path of one VM on one host: a thread of the C core that moves frames between TAP, VM, comparator and link.

csrc/path/path.h has its picture, and what its limits do. It runs without the GIL; Python gives it sockets, tells it of
checkpoints, and reads events and counters.
"""

from __future__ import annotations

import enum
import os
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType
from typing import Any, Final

from coloproxy import errors

from ._native import check, check_table, ffi, lib
from .tls import Transport

__all__ = [
    "NICS_MAX",
    "QUEUES_MAX",
    "EventKind",
    "Neighbour",
    "Path",
    "PathEvent",
    "Place",
    "Role",
    "WireKind",
]

NICS_MAX: Final = int(lib.COLO_PATH_NICS)
"""Of one VM."""
QUEUES_MAX: Final = int(lib.COLO_PATH_QUEUES)
"""Of one TAP."""

_BATCH: Final = 64
_CONTROL_MAX: Final = 64 * 1024
_NEIGHBOURS: Final = 1024
_FOR_EVER: Final = (1 << 63) - 1

# enum colo_engine_fault of csrc/coloproxy.h
_FAULTS: Final = {
    -1: "a length prefix above the largest frame",
    -2: "a length prefix of 0",
    -3: "a virtio-net header length that makes no sense",
    -4: "closed in the middle of a frame",
}


class Role(enum.IntEnum):
    PRIMARY = 0
    SECONDARY = 1


class WireKind(enum.IntEnum):
    """How frames stand on a descriptor: ``enum colo_wire_kind``."""

    STREAM = 0
    FRAMES = 1
    PACKET = 2
    TAGGED = 3


class Place(enum.IntEnum):
    """``enum colo_path_place``."""

    CLIENT = 0
    VM = 1
    PRIMARY_IN = 2
    SECONDARY_IN = 3
    OUTDEV = 4
    LINK = 5
    NONE = 6

    def __str__(self) -> str:
        return ("TAP", "VM", "primary-in", "secondary-in", "outdev", "link", "path")[self]


class EventKind(enum.IntEnum):
    """``enum colo_path_event_kind``, which says what each asks for."""

    LOST = 0
    CONTROL = 1
    OVERRUN = 2
    SYNCED = 3
    FLOWS = 4
    GATE_LOST = 5
    FATAL = 6
    EPOCH = 7
    MISCOUNTED = 8


@dataclass(frozen=True, slots=True)
class PathEvent:
    """Attributes: time: CLOCK_MONOTONIC ns. reason: for people, of LOST, GATE_LOST and FATAL."""

    kind: EventKind
    place: Place
    nic: int
    time: int
    reason: str


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An address of the VM's. address None: the MAC alone. vlans: outermost first."""

    nic: int
    mac: bytes
    address: IPv4Address | IPv6Address | None
    vlans: tuple[int, ...]


class Path:
    """Every method may be called from any thread, but for ``close``, which must be the last. A context manager.

    Args:
        role: of this host.
        nics: of the VM.
        stall_timeout: ns a link without room may hold clients' frames up before they are left out of the mirror.
        link: fields of ``struct colo_link_config`` that are not to have their defaults; times in ns.
        max_flows: of the rewriter.

    Raises:
        MisuseError: a number that makes no sense.
    """

    def __init__(
        self,
        role: Role,
        *,
        nics: int = 1,
        stall_timeout: int | None = None,
        link: Mapping[str, int] | None = None,
        max_flows: int | None = None,
    ) -> None:
        config = ffi.new("struct colo_path_config *")
        lib.colo_path_config_default(config)
        try:
            config.role, config.nics = role, nics
            if stall_timeout is not None:
                config.stall_timeout = stall_timeout
            for name, value in (link or {}).items():
                setattr(config.link, name, value)
            if max_flows is not None:
                config.rewriter.max_flows = max_flows
        except (OverflowError, TypeError) as error:
            raise errors.MisuseError(f"Path: {error}") from error
        config.rewriter.hash_seed = secrets.randbits(64)
        handle = lib.colo_path_create(config)
        if handle == ffi.NULL:
            raise errors.MisuseError("Path: unusable configuration (or no memory)")
        self._p: Any = ffi.gc(handle, lib.colo_path_destroy)
        self.role = role
        self.nics = nics

    # ------------------------------------------------------------------ life

    def __enter__(self) -> Path:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Starts the thread. Raises MisuseError: it was started before."""
        check(lib.colo_path_start(self._handle), "Path.start")

    def stop(self, linger: float = 1.0) -> None:
        """Ends the thread, after up to ``linger`` s for what still waits to be written. Idempotent."""
        check(lib.colo_path_stop(self._handle, int(linger * 1000)), "Path.stop")

    def close(self) -> None:
        """Stops and frees everything, and closes all descriptors. Idempotent."""
        if self._p is not None:
            handle, self._p = self._p, None
            ffi.release(handle)

    @property
    def _handle(self) -> Any:
        if self._p is None:
            raise errors.MisuseError("this Path is closed")
        return self._p

    # ----------------------------------------------------------------- wires

    def attach(self, place: Place, fd: int, kind: WireKind, *, nic: int = 0, vnet_len: int = 0) -> None:
        """Gives a descriptor to the path, which owns it from now on.

        Raises:
            MisuseError: the place has one already, or can't have that kind.
            NativeError: not a descriptor that can be waited for.
            LimitError: too many events lie unread.
        """
        check(lib.colo_path_attach(self._handle, place, nic, fd, kind, vnet_len), f"Path.attach({place!s}, nic {nic})")

    def attach_comparator(self, place: Place, sock: socket.socket) -> None:
        """The same for one of the comparator's three sockets."""
        self.attach(place, sock.fileno(), WireKind.TAGGED)
        sock.detach()

    def detach(self, place: Place, nic: int = 0) -> None:
        """Closes what the place has; no event tells."""
        check(lib.colo_path_detach(self._handle, place, nic), f"Path.detach({place!s})")

    def inject(self, nic: int, frame: bytes) -> None:
        """A frame of our own to the client side. Raises MisuseError: too long, no room, or nothing is attached."""
        check(lib.colo_path_inject(self._handle, nic, frame, len(frame)), "Path.inject")

    def neighbours(self) -> list[Neighbour]:
        """What the VM has said that it is: its MACs, and the addresses of its ARP and neighbour discovery."""
        native = ffi.new("struct colo_neighbour[]", _NEIGHBOURS)
        count = lib.colo_path_neighbours(self._handle, native, _NEIGHBOURS)
        return [_neighbour(native[i]) for i in range(count)]

    # ------------------------------------------------------------------ link

    def link_attach(self, transport: Transport, *, restart: bool, peer_received: int = 0) -> None:
        """Gives it a connection whose handshake and hello are over; released, or closed on failure.

        Args:
            restart: a new session; else go on behind what the peer has received.

        Raises:
            LimitError: what the peer lacks is not kept any more, or too many events lie unread.
        """
        pointer = transport.release()
        result = lib.colo_path_link_attach(self._handle, pointer, restart, peer_received)
        if result:
            lib.colo_transport_destroy(pointer)
        check(result, "Path.link_attach")

    def link_detach(self, *, end: bool = False) -> None:
        """Closes the connection; ``end``: the session is over, nothing is mirrored any more."""
        check(lib.colo_path_link_detach(self._handle, end), "Path.link_detach")

    def link_received(self) -> int:
        """Bytes of the peer's stream that were received."""
        return int(lib.colo_path_link_received(self._handle))

    def link_can_resume(self, peer_received: int) -> bool:
        """Whether a peer that has received so much of ours can go on without loss."""
        return bool(lib.colo_path_link_can_resume(self._handle, peer_received))

    def control(self, message: bytes) -> None:
        """A message to the peer's control plane. Raises MisuseError: no session; LimitError: no room."""
        check(lib.colo_path_control(self._handle, message, len(message)), "Path.control")

    def take_control(self) -> list[bytes]:
        """The peer's messages, in order. Raises LimitError: one is longer than any of ours can be."""
        out: list[bytes] = []
        room = ffi.new("uint8_t[]", _CONTROL_MAX)
        while length := check(lib.colo_path_take_control(self._handle, room, _CONTROL_MAX), "Path.take_control"):
            out.append(bytes(ffi.buffer(room, length)))
        return out

    # ---------------------------------------------------------------- epochs

    def drain(self, stopped_ns: int) -> None:
        check(lib.colo_path_drain(self._handle, stopped_ns), "Path.drain")

    def lease(self, until_ns: int | None) -> None:
        """PRIMARY: nothing goes to the clients from then on; None: no such limit. CLOCK_MONOTONIC."""
        check(lib.colo_path_lease(self._handle, _FOR_EVER if until_ns is None else until_ns), "Path.lease")

    def commit(self) -> None:
        check(lib.colo_path_commit(self._handle), "Path.commit")

    def sync(self, token: int) -> None:
        check(lib.colo_path_sync(self._handle, token), "Path.sync")

    def accept(self) -> None:
        check(lib.colo_path_accept(self._handle), "Path.accept")

    def wait(self) -> None:
        check(lib.colo_path_wait(self._handle), "Path.wait")

    def stand(self) -> None:
        check(lib.colo_path_stand(self._handle), "Path.stand")

    def epoch(self, resumed_ns: int) -> None:
        check(lib.colo_path_epoch(self._handle, resumed_ns), "Path.epoch")

    def stand_over(self) -> None:
        check(lib.colo_path_stand_over(self._handle), "Path.stand_over")

    def answer(self, token: int) -> None:
        check(lib.colo_path_answer(self._handle, token), "Path.answer")

    def takeover(self) -> None:
        check(lib.colo_path_takeover(self._handle), "Path.takeover")

    # ----------------------------------------------------------- inheritance

    def export_table(self) -> bytes:
        """The connections whose numbers have to be translated for as long as they live, for whoever goes on with them.

        Of a secondary that has taken over, or of a primary. docs/rewriter.md has the format.
        Raises MisuseError: a secondary whose VM is nobody's yet.
        """
        size = lib.colo_path_export_size(self._handle)
        room = ffi.new("uint8_t[]", size)
        length = check(lib.colo_path_export(self._handle, room, size), "Path.export_table")
        return bytes(ffi.buffer(room, length))

    def import_table(self, table: bytes, *, age: int = 0) -> None:
        """Primary, before there is a session: goes on with the connections of a table exported ``age`` ns ago.

        All or nothing. One that is out of date does no harm, but its age must not be less than it is.
        Raises TableError: it makes no sense, there is no room for it, or it is not the time for it.
        """
        why = ffi.new("const char **")
        result = lib.colo_path_import(self._handle, table, len(table), age, why)
        check_table(result, why, "Path.import_table")

    # ------------------------------------------------------------------ gate

    def gate_attach(self, sock: socket.socket) -> socket.socket:
        """As :meth:`coloproxy.engine.Engine.gate_attach`, for the secondary's QMP."""
        near = check(lib.colo_path_gate_attach(self._handle, sock.fileno()), "Path.gate_attach")
        sock.detach()
        return socket.socket(fileno=near)

    def gate_done(self, messages: int) -> None:
        check(lib.colo_path_gate_done(self._handle, messages), "Path.gate_done")

    def gate_detach(self) -> None:
        check(lib.colo_path_gate_detach(self._handle), "Path.gate_detach")

    # ---------------------------------------------------------------- events

    @property
    def event_fd(self) -> int:
        """Readable while events wait. The path owns it: poll it, don't read it."""
        return int(lib.colo_path_event_fd(self._handle))

    def events(self) -> list[PathEvent]:
        """All events that wait, oldest first. Never blocks."""
        out: list[PathEvent] = []
        native = ffi.new("struct colo_path_event[]", _BATCH)
        while count := lib.colo_path_events(self._handle, native, _BATCH):
            out.extend(_event(native[i]) for i in range(count))
        return out

    def counters(self) -> dict[str, Any]:
        """``struct colo_path_counters`` by its names; NICs' in lists."""
        n = ffi.new("struct colo_path_counters *")
        lib.colo_path_counters_of(self._handle, n)
        plain: dict[str, Any] = _plain(n[0])
        plain["client"] = plain["client"][: self.nics]
        plain["vm"] = plain["vm"][: self.nics]
        return plain


def _event(native: Any) -> PathEvent:
    reason = ffi.string(native.text).decode(errors="replace")
    if not reason:
        reason = "closed by the other end" if native.error == 0 else _FAULTS.get(native.error, "")
    if not reason:
        reason = os.strerror(native.error)
    return PathEvent(EventKind(native.kind), Place(native.place), native.nic, native.time, reason)


def _neighbour(native: Any) -> Neighbour:
    raw = bytes(native.address)
    makers: dict[int, Callable[[], IPv4Address | IPv6Address]] = {
        4: lambda: IPv4Address(raw[:4]),
        6: lambda: IPv6Address(raw),
    }
    maker = makers.get(native.family)
    vlans = tuple(native.vlan[i] for i in range(native.vlan_count))
    return Neighbour(native.nic, bytes(native.mac), maker() if maker is not None else None, vlans)


def _plain(native: Any) -> Any:
    """A native struct as dicts, lists and numbers."""
    if isinstance(native, int):
        return native
    kind = ffi.typeof(native)
    if kind.kind == "struct":
        return {name: _plain(getattr(native, name)) for name, _ in kind.fields}
    return [_plain(item) for item in native]
