# SPDX-License-Identifier: Apache-2.0
"""Datagrams out of fragments, slow and obvious: each time one comes, all are looked at again.

Nothing here is clever about what contradicts itself: such a datagram is never whole.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import wire

from model.packet import Key, Packet

MAX_FRAGMENTS = 256  # of one datagram
MAX_LENGTH = 65535


class Piece(Protocol):
    @property
    def packet(self) -> Packet: ...
    @property
    def time(self) -> int: ...


P = TypeVar("P", bound=Piece)
Name = tuple[Key, int]


def name_of(packet: Packet) -> Name:
    """Which datagram a fragment belongs to. In IPv6 only the first one's next header counts (RFC 8200, 4.5)."""
    key = packet.key
    protocol = key.protocol if key.family == 4 else 0
    return Key(key.cls, key.family, protocol, key.ethertype, key.vlans, key.src, key.dst, nic=key.nic), packet.ident


def agree(pieces: list[Packet]) -> bool:
    """No two of them contradict each other, and none contradicts the RFCs."""
    ends = [(p.start + len(p.body), p.more) for p in pieces]
    for packet, (end, more) in zip(pieces, ends, strict=True):
        if not packet.body or end > MAX_LENGTH or (more and len(packet.body) % 8):
            return False
    totals = {end for end, more in ends if not more}
    if len(totals) > 1 or any(more and end >= total for end, more in ends for total in totals):
        return False
    said: dict[int, int] = {}
    spans = set()
    for packet in pieces:
        span = range(packet.start, packet.start + len(packet.body))
        if any(said.get(at, byte) != byte for at, byte in zip(span, packet.body, strict=True)):
            return False
        if packet.key.family == 6 and (span.start, span.stop) not in spans and any(at in said for at in span):
            return False  # RFC 5722
        spans.add((span.start, span.stop))
        said.update(zip(span, packet.body, strict=True))
    return True


def put_together(pieces: list[Packet]) -> bytes | None:
    """The frame that would have been, had it not been cut. None: something is missing, or it can't be one."""
    lasts = [p for p in pieces if not p.more]
    firsts = [p for p in pieces if p.start == 0]
    if not lasts or not firsts:
        return None
    payload = {at: byte for p in pieces for at, byte in enumerate(p.body, p.start)}
    total = lasts[0].start + len(lasts[0].body)
    if set(payload) != set(range(total)):
        return None
    body = bytes(payload[at] for at in range(total))
    head, family = bytearray(firsts[0].head), firsts[0].key.family
    l3 = len(head) - _ip_header(bytes(head))
    length = len(head) - l3 + total - (40 if family == 6 else 0)
    if length > MAX_LENGTH:
        return None
    struct.pack_into("!H", head, l3 + (4 if family == 6 else 2), length)
    return wire.of_nic(bytes(head) + body, firsts[0].key.nic)


def _ip_header(head: bytes) -> int:
    at = 14
    while head[at - 2 : at] in (b"\x81\x00", b"\x88\xa8", b"\x91\x00"):
        at += 4
    return len(head) - at


@dataclass
class _Parts(Generic[P]):
    since: int  # when the first came
    pieces: list[P] = field(default_factory=list)
    spoiled: bool = False


class Reassembly(Generic[P]):
    """One side's fragments that wait. `limit` closes it for new datagrams, as the primary's."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.waiting: dict[Name, _Parts[P]] = {}
        self.closed = False

    def clear(self) -> None:
        self.waiting = {}
        self.closed = False

    def add(self, piece: P) -> tuple[bytes, list[P]] | None:
        """A datagram that is whole now, as one frame, and the pieces that it came in, in order of arrival."""
        name = name_of(piece.packet)
        parts = self.waiting.get(name)
        if self.limit is not None and sum(len(parts.pieces) for parts in self.waiting.values()) >= self.limit:
            self.closed = True
            if parts is not None:
                parts.spoiled = True
            return None
        if parts is None:
            if self.closed:
                return None
            parts = self.waiting[name] = _Parts(piece.time)
        parts.pieces.append(piece)
        packets = [p.packet for p in parts.pieces]
        parts.spoiled = parts.spoiled or len(packets) > MAX_FRAGMENTS or not agree(packets)
        whole = None if parts.spoiled else put_together(packets)
        if whole is None:
            return None
        del self.waiting[name]
        return whole, parts.pieces

    def since(self, piece: P) -> int | None:
        """When the first piece of its datagram came, None: it does not wait here."""
        parts = self.waiting.get(name_of(piece.packet))
        return parts.since if parts is not None and any(p is piece for p in parts.pieces) else None

    def remove(self, piece: P) -> None:
        """It was given up; the rest may be too, or be completed by another copy."""
        parts = self.waiting[name_of(piece.packet)]
        parts.pieces = [p for p in parts.pieces if p is not piece]
        if not parts.pieces:
            del self.waiting[name_of(piece.packet)]
