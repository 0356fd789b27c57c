# SPDX-License-Identifier: Apache-2.0
"""What the comparator tells: enums named as in the C core, flows, and its events.

The enums' values are the C core's numbers and are checked against its names at import, so they can't drift.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from coloproxy import errors
from coloproxy._native import enum_name, ffi, lib

__all__ = [
    "Cause",
    "CheckpointWanted",
    "ComparatorEvent",
    "Divergence",
    "FlowId",
    "FrameClass",
    "LimitHit",
    "Mode",
    "Reason",
    "Side",
    "Tolerated",
    "event_from_native",
    "flow_from_native",
]


class Side(IntEnum):
    """Which VM sent a frame."""

    PRIMARY = 0
    SECONDARY = 1


class Mode(IntEnum):
    """What the comparator does with frames; see ``enum colo_mode`` in csrc/coloproxy.h."""

    ALONE = 0
    PROTECTED = 1
    STOPPED = 2


class _Named(IntEnum):
    """An enum whose members are called as the C core calls them, with ``-`` for ``_``."""

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")


class FrameClass(_Named):
    """What a frame is, decided once when it is parsed."""

    TCP = 0
    UDP = 1
    ICMP = 2
    ICMP6 = 3
    IP_OTHER = 4
    FRAGMENT = 5
    ARP = 6
    ND = 7
    DHCP = 8
    MULTICAST = 9
    LINK = 10
    OTHER = 11
    MALFORMED = 12


class Reason(_Named):
    """Why a frame was released or discarded."""

    MATCHED = 0
    COMMITTED = 1
    ALONE = 2
    PASSED = 3
    STALE = 4
    DIVERGED = 5
    IGNORED = 6


class Cause(_Named):
    """Why a checkpoint is wanted."""

    NONE = 0
    PAYLOAD = 1
    FIN = 2
    SYN_OPTIONS = 3
    DATAGRAM = 4
    PRIMARY_TIMEOUT = 5
    SECONDARY_TIMEOUT = 6
    ACK_TIMEOUT = 7
    LIMIT_FRAMES = 8
    LIMIT_BYTES = 9
    LIMIT_FLOWS = 10
    LIMIT_FLOW_FRAMES = 11
    RST = 12
    MID_STREAM = 13
    LIMIT_FLOW_BYTES = 14
    POLICY = 15
    LIMIT_FRAGMENTS = 16
    CONFLICT = 17
    GAP = 18


def _check_enums() -> None:
    for enum, count, function in (
        (FrameClass, lib.COLO_CLASS_COUNT, lib.colo_class_name),
        (Reason, lib.COLO_REASON_COUNT, lib.colo_reason_name),
        (Cause, lib.COLO_CAUSE_COUNT, lib.colo_cause_name),
    ):
        names = [str(member) for member in enum]
        native = [enum_name(function, value) for value in range(count)]
        if names != native:
            raise errors.NativeError(f"{enum.__name__} is {names} here, {native} in the C core")


_check_enums()


@dataclass(frozen=True, slots=True)
class FlowId:
    """One direction of a conversation, VM to client.

    Attributes:
        frame_class: what its frames are.
        family: 4, 6, or 0 for frames without IP.
        protocol: IP protocol number, 0 without IP.
        source, destination: addresses as text (IPv4, IPv6, or MAC without IP).
        source_port, destination_port: ports, or the ICMP identifier as source port; 0 where there is none.
        vlans: VLAN ids, outermost first.
        ethertype: of the frames, behind the VLAN tags.
        nic: of the VM's NICs, the one that it leaves by, from 0 on.
    """

    frame_class: FrameClass
    family: int
    protocol: int
    source: str
    source_port: int
    destination: str
    destination_port: int
    vlans: tuple[int, ...] = ()
    ethertype: int = 0
    nic: int = 0

    def __str__(self) -> str:
        if self.family == 0:
            text = f"{self.frame_class} {self.source} > {self.destination} type 0x{self.ethertype:04x}"
        else:
            text = f"{self._protocol()} {self._end(self.source, self.source_port)} > " + self._end(
                self.destination, self.destination_port
            )
        nic = f"nic{self.nic} " if self.nic else ""
        return nic + text + "".join(f" vlan {vlan}" for vlan in self.vlans)

    def _protocol(self) -> str:
        return f"ip-{self.protocol}" if self.frame_class is FrameClass.IP_OTHER else str(self.frame_class)

    def _end(self, address: str, port: int) -> str:
        if self.frame_class not in (FrameClass.TCP, FrameClass.UDP):
            return address
        return f"[{address}]:{port}" if self.family == 6 else f"{address}:{port}"


@dataclass(frozen=True, slots=True)
class _Event:
    cause: Cause
    epoch: int
    time: int
    held_frames: int
    held_bytes: int


@dataclass(frozen=True, slots=True)
class Divergence(_Event):
    """The two VMs differ (or one kept silent), with evidence. Once a flow and epoch at most.

    Attributes:
        cause: what kind of difference.
        epoch: number of commits before it.
        time: ns, on the clock of the caller.
        held_frames, held_bytes: primary frames held in all when it was found.
        flow: where; None when no flow could be made for the frame.
        offset: TCP: stream offset (0 is the first payload byte met), else offset in the datagram.
        primary, secondary: bytes around the difference, up to 96 of each side; empty where a side has none.
        context: index in both of the first byte that differs.
        primary_age, secondary_age: ns that side's frame had waited, None where there is none.
        primary_frame, secondary_frame: that frame's number, as in ``Released.frame``; None where there is none, and
            in events of the engine, which does not number frames.
    """

    flow: FlowId | None
    offset: int
    primary: bytes
    secondary: bytes
    context: int
    primary_age: int | None
    secondary_age: int | None
    primary_frame: int | None = None
    secondary_frame: int | None = None


@dataclass(frozen=True, slots=True)
class LimitHit(_Event):
    """A limit is reached, or half reached. Once a limit and epoch at most; the counters have every refusal."""

    flow: FlowId | None


@dataclass(frozen=True, slots=True)
class CheckpointWanted(_Event):
    """A checkpoint is needed before what is held can go. Once an epoch at most."""

    flow: FlowId | None


@dataclass(frozen=True, slots=True)
class Tolerated(_Event):
    """The two VMs differ where a rule tolerates it. A sample: once a rule and second at most; the counters have all.

    Attributes:
        rule: index of the rule among the tolerances (:class:`coloproxy.rules.Rules`).
        flow, offset, primary, secondary, context: as in Divergence; the cause is NONE.
    """

    rule: int
    flow: FlowId
    offset: int
    primary: bytes
    secondary: bytes
    context: int


ComparatorEvent = Divergence | LimitHit | CheckpointWanted | Tolerated


def _address(family: int, raw: bytes) -> str:
    if family == 4:
        return str(ipaddress.IPv4Address(raw[:4]))
    if family == 6:
        return str(ipaddress.IPv6Address(raw))
    return raw[:6].hex(":")


_NO_COOKIE = 2**64 - 1


def _frame_number(cookie: int) -> int | None:
    return None if cookie == _NO_COOKIE else cookie


def flow_from_native(flow: Any) -> FlowId:
    """Copies a ``struct colo_flow_id``."""
    return FlowId(
        frame_class=FrameClass(flow.cls),
        family=flow.family,
        protocol=flow.protocol,
        source=_address(flow.family, bytes(ffi.buffer(flow.src))),
        source_port=flow.sport,
        destination=_address(flow.family, bytes(ffi.buffer(flow.dst))),
        destination_port=flow.dport,
        vlans=tuple(flow.vlan[0 : flow.vlan_count]),
        ethertype=flow.ethertype,
        nic=flow.nic,
    )


def event_from_native(event: Any, *, numbered: bool = False) -> ComparatorEvent:
    """Copies a ``struct colo_event``; ``numbered``: the cookies are the caller's numbers of the frames."""
    flow = flow_from_native(event.flow) if event.has_flow else None
    cause = Cause(event.cause)
    if event.kind == lib.COLO_EVENT_DIVERGENCE:
        return Divergence(
            cause=cause,
            epoch=event.epoch,
            time=event.time,
            held_frames=event.held_frames,
            held_bytes=event.held_bytes,
            flow=flow,
            offset=event.offset,
            primary=bytes(ffi.buffer(event.primary))[: event.primary_len],
            secondary=bytes(ffi.buffer(event.secondary))[: event.secondary_len],
            context=event.context,
            primary_age=None if event.primary_age < 0 else event.primary_age,
            secondary_age=None if event.secondary_age < 0 else event.secondary_age,
            primary_frame=_frame_number(event.primary_cookie) if numbered else None,
            secondary_frame=_frame_number(event.secondary_cookie) if numbered else None,
        )
    if event.kind == lib.COLO_EVENT_TOLERATED:
        assert flow is not None
        return Tolerated(
            cause=cause,
            epoch=event.epoch,
            time=event.time,
            held_frames=event.held_frames,
            held_bytes=event.held_bytes,
            rule=event.rule,
            flow=flow,
            offset=event.offset,
            primary=bytes(ffi.buffer(event.primary))[: event.primary_len],
            secondary=bytes(ffi.buffer(event.secondary))[: event.secondary_len],
            context=event.context,
        )
    kind = LimitHit if event.kind == lib.COLO_EVENT_LIMIT else CheckpointWanted
    return kind(
        cause=cause,
        epoch=event.epoch,
        time=event.time,
        held_frames=event.held_frames,
        held_bytes=event.held_bytes,
        flow=flow,
    )
