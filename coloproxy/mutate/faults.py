# SPDX-License-Identifier: Apache-2.0
"""Faults: what a comparator must find. Each says where it is, in the comparator's own terms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import dpkt

from coloproxy.errors import MisuseError
from coloproxy.events import FrameClass
from coloproxy.mutate.packet import (
    FIN,
    ICMP,
    ICMP6,
    ICMP_HEADER,
    IPV4,
    RST,
    SYN,
    UDP,
    UDP_HEADER,
    FlowKey,
    Packet,
    text_of,
)

__all__ = ["Fault", "drop", "flip", "payload_bytes", "truncate"]

_DHCP: Final = {67, 68, 546, 547}
_NOT_COMPARED_ICMP6: Final = {*range(130, 138), 143}
"""Neighbour discovery and MLD pass by default."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What was done to the VM's output.

    Attributes:
        kind: flip, drop or truncate.
        packet: number of the packet in the file, from 1 as Wireshark counts. A byte of a TCP stream is changed in
            every segment that carries it, retransmissions too: this is the first.
        flow: as the comparator's events name it.
        frame_class: as there.
        offset: of the first byte concerned. TCP: stream offset, 0 is the first payload byte of the connection (or the
            first one met); else the offset in the datagram: UDP payload, ICMP message, IP payload.
        at: index of that byte in the packet, None where it is not one byte.
        was, now: its old and new value.
        segments: how many packets were changed.
    """

    kind: str
    packet: int
    flow: str
    frame_class: str
    offset: int
    at: int | None = None
    was: int | None = None
    now: int | None = None
    segments: int = 1

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        text = f"packet {self.packet}: {self.flow}, offset {self.offset}: "
        if self.kind == "flip":
            text += f"0x{self.was:02x} is 0x{self.now:02x} now"
            return text + (f", also in {self.segments - 1} retransmissions" if self.segments > 1 else "")
        return text + ("left out" if self.kind == "drop" else "one byte shorter")


@dataclass(frozen=True, slots=True)
class _Payload:
    """The compared bytes of a packet that a fault may change."""

    packet: Packet
    start: int
    """Where they begin in the IP payload, or in TCP's."""
    length: int
    offset: int
    """What the comparator calls the first of them."""
    frame_class: FrameClass
    ports: tuple[int, int]


class _Streams:
    """Stream offsets of the VM's TCP segments, as the comparator counts them."""

    def __init__(self) -> None:
        self._first: dict[FlowKey, int] = {}
        self._isn: dict[FlowKey, int] = {}
        self._generation: dict[FlowKey, int] = {}

    def place(self, packet: Packet) -> tuple[FlowKey, int, int]:
        """Flow, number of the connection on it, offset of the first payload byte."""
        key, seq = packet.key, int(packet.tcp.seq)
        if packet.flags & SYN and self._isn.get(key) != seq:
            self._isn[key] = seq
            self._first[key] = seq + 1
            self._generation[key] = self._generation.get(key, 0) + 1
        first = self._first.setdefault(key, seq)
        start = seq + 1 if packet.flags & SYN else seq
        offset = (start - first + (1 << 31)) % (1 << 32) - (1 << 31)  # near 0: captures are shorter than 2 GiB
        return key, self._generation.get(key, 0), offset


def _payloads(packets: list[Packet]) -> Iterator[_Payload]:
    streams = _Streams()
    begun = _first_fragments(packets)
    for packet in packets:
        if not packet.outbound or packet.ip is None:
            continue
        if packet.fragment is not None:
            if (payload := _fragment(packet, begun)) is not None and payload.length > 0:
                yield payload
        elif packet.tcp is not None:
            _, _, offset = streams.place(packet)
            if packet.payload and not packet.flags & RST and not packet.is_signed and offset >= 0:
                ports = (packet.tcp.sport, packet.tcp.dport)
                yield _Payload(packet, 0, len(packet.payload), offset, FrameClass.TCP, ports)
        elif (payload := _datagram(packet)) is not None and payload.length > 0:
            yield payload


def _datagram(packet: Packet) -> _Payload | None:
    data, protocol = packet.ip.data, packet.protocol
    if protocol == UDP and len(data) >= UDP_HEADER:
        ports = (int.from_bytes(data[:2], "big"), int.from_bytes(data[2:4], "big"))
        if set(ports) <= _DHCP:
            return None
        length = min(int.from_bytes(data[4:6], "big"), len(data)) - UDP_HEADER
        return _Payload(packet, UDP_HEADER, length, 0, FrameClass.UDP, ports)
    if (protocol, packet.version) in ((ICMP, 4), (ICMP6, 6)) and len(data) >= ICMP_HEADER:
        if packet.version == 6 and data[0] in _NOT_COMPARED_ICMP6:
            return None
        kind = FrameClass.ICMP if packet.version == IPV4 else FrameClass.ICMP6
        return _Payload(packet, ICMP_HEADER, len(data) - ICMP_HEADER, ICMP_HEADER, kind, (0, 0))
    return None


_Datagram = tuple[bytes, bytes, int, int]


def _datagram_of(packet: Packet, identification: int) -> _Datagram:
    return (packet.ip.src, packet.ip.dst, packet.protocol, identification)


def _first_fragments(packets: list[Packet]) -> dict[_Datagram, _Payload]:
    """The payload of each first fragment; it tells the class and the ports of the datagram."""
    begun = {}
    for packet in packets:
        fragment = packet.fragment if packet.outbound and packet.ip is not None else None
        if fragment is not None and fragment[1] == 0:
            data = bytearray(packet.ip.data)
            if packet.protocol == UDP and len(data) >= UDP_HEADER:
                ports = (int.from_bytes(data[:2], "big"), int.from_bytes(data[2:4], "big"))
                payload = _Payload(packet, UDP_HEADER, len(data) - UDP_HEADER, 0, FrameClass.UDP, ports)
            elif (found := _datagram(packet)) is not None:
                payload = found
            else:
                continue
            begun[_datagram_of(packet, fragment[0])] = payload
    return begun


def _fragment(packet: Packet, begun: dict[_Datagram, _Payload]) -> _Payload | None:
    """Its bytes as those of the datagram that it is a part of."""
    identification, at = packet.fragment or (0, 0)
    first = begun.get(_datagram_of(packet, identification))
    if first is None or first.packet is packet:
        return first
    offset = at - first.start + first.offset
    return _Payload(packet, 0, len(packet.ip.data), offset, first.frame_class, first.ports)


def payload_bytes(packets: list[Packet]) -> int:
    """How many payload bytes of the VM `flip` has to choose from."""
    return sum(payload.length for payload in _payloads(packets))


def flip(packets: list[Packet], position: int, mask: int) -> Fault:
    """Changes the payload byte at `position`, counted over all that the VM sends, by exclusive or with `mask`.

    Raises:
        MisuseError: there is no such byte.
    """
    left = position
    for payload in _payloads(packets):
        if left < payload.length:
            break
        left -= payload.length
    else:
        raise MisuseError(f"there is no payload byte {position}: the VM sent {position - left}")
    packet, index = payload.packet, payload.start + left
    was = packet.payload[index] if packet.tcp is not None else packet.ip.data[index]
    flow = text_of(packet, payload.frame_class, payload.ports)
    changed = 1
    at = len(packet.frame.data) - len(packet.tcp.data if packet.tcp is not None else packet.ip.data) + index
    if packet.tcp is not None:
        changed = _flip_stream(packets, packet, payload.offset + left, mask)
    else:
        data = bytearray(packet.ip.data)
        data[index] ^= mask
        packet.ip.data = _checksummed(packet, data)
        packet.changed = True
    return Fault(
        kind="flip",
        packet=packet.frame.number,
        flow=flow,
        frame_class=str(payload.frame_class),
        offset=payload.offset + left,
        at=at,
        was=was,
        now=was ^ mask,
        segments=changed,
    )


def _flip_stream(packets: list[Packet], chosen: Packet, offset: int, mask: int) -> int:
    """Changes a byte of a TCP stream wherever it is sent; returns in how many segments."""
    streams, places = _Streams(), []
    wanted: tuple[FlowKey, int] | None = None
    for packet in packets:
        if packet.outbound and packet.tcp is not None:
            key, generation, start = streams.place(packet)
            places.append((packet, (key, generation), start))
            if packet is chosen:
                wanted = (key, generation)
    changed = 0
    for packet, connection, start in places:
        index = offset - start
        if connection == wanted and 0 <= index < len(packet.payload) and not packet.flags & RST:
            data = bytearray(packet.payload)
            data[index] ^= mask
            packet.tcp.data = bytes(data)
            packet.changed = True
            changed += 1
    return changed


def _checksummed(packet: Packet, data: bytearray) -> bytes:
    """The IP payload with its checksum computed anew; a fragment's is left, for it covers what is elsewhere."""
    if packet.fragment is not None:
        return bytes(data)
    at = {UDP: 6, ICMP: 2, ICMP6: 2}[packet.protocol]
    if packet.protocol == UDP and data[at : at + 2] == bytes(2):
        return bytes(data)  # has none
    data[at : at + 2] = bytes(2)
    total = 0
    if packet.protocol != ICMP:
        pseudo = packet.ip.src + packet.ip.dst + packet.protocol.to_bytes(4, "big") + len(data).to_bytes(4, "big")
        total = dpkt.dpkt.in_cksum_add(0, pseudo)
    value = dpkt.dpkt.in_cksum_done(dpkt.dpkt.in_cksum_add(total, bytes(data)))
    data[at : at + 2] = (value or 0xFFFF).to_bytes(2, "big")
    return bytes(data)


def _of_packet(packets: list[Packet], number: int) -> _Payload:
    for payload in _payloads(packets):
        if payload.packet.frame.number == number:
            return payload
    raise MisuseError(f"packet {number} is none of the VM's that carry compared payload")


def drop(packets: list[Packet], number: int) -> Fault:
    """Leaves a packet out: as if the VM had never sent it (a later retransmission stays).

    Raises:
        MisuseError: the packet is not the VM's, or carries no payload that is compared.
    """
    payload = _of_packet(packets, number)
    packets.remove(payload.packet)
    return _fault("drop", payload, payload.offset)


def truncate(packets: list[Packet], number: int) -> Fault:
    """Cuts the last payload byte off a packet; lengths and checksums say so. Raises MisuseError as `drop` does."""
    payload = _of_packet(packets, number)
    packet = payload.packet
    if packet.fragment is not None:
        raise MisuseError(f"packet {number} is a fragment: a shorter one would only be one that is lost")
    if packet.tcp is not None:
        packet.tcp.data = packet.payload[:-1]
        packet.tcp.flags &= ~FIN
    else:
        data = bytearray(packet.ip.data[: payload.start + payload.length - 1])
        if packet.protocol == UDP:
            data[4:6] = len(data).to_bytes(2, "big")
        packet.ip.data = _checksummed(packet, data)
    packet.changed = True
    return _fault("truncate", payload, payload.offset + payload.length - 1)


def _fault(kind: str, payload: _Payload, offset: int) -> Fault:
    flow = text_of(payload.packet, payload.frame_class, payload.ports)
    return Fault(kind, payload.packet.frame.number, flow, str(payload.frame_class), offset)
