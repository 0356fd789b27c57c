# SPDX-License-Identifier: Apache-2.0
"""A frame of a capture, decoded by dpkt as far as a transformation needs, and written again where it was changed.

What dpkt can't write again byte by byte (and what is no IP) can't be transformed: it passes as it is.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import dpkt

from coloproxy.capture import CapturedFrame
from coloproxy.events import FlowId, FrameClass

__all__ = ["FlowKey", "Packet", "decode", "text_of"]

FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
IPV4, IPV6 = 4, 6
TCP, UDP, ICMP, ICMP6, FRAGMENT = 6, 17, 1, 58, 44
SACK, TIMESTAMPS, MD5, AO = 5, 8, 19, 29
UDP_HEADER: Final = 8
ICMP_HEADER: Final = 8
LONGEST: Final = 14 + 0xFFFF
"""Bytes of a frame with a full IPv4 packet; one more may be IPv6, or have VLAN tags, but nothing sends such."""

FlowKey = tuple[tuple[int, ...], bytes, int, bytes, int]
"""VLAN ids, address and port of the sender, address and port of the receiver."""


@dataclass(slots=True, eq=False)
class Packet:
    """A frame on its way through the transformations.

    Attributes:
        frame: as it was captured.
        order: its place: that of the captured frame (from 0), then a number behind it.
        time: ns.
        outbound: the VM sent it.
        eth, ip: dpkt's view; None where the frame can't be transformed.
        tcp: its TCP header and payload, else None.
        changed: `eth` no longer says what `frame` does.
    """

    frame: CapturedFrame
    order: tuple[int, int]
    time: int
    outbound: bool
    eth: Any = None
    ip: Any = None
    tcp: Any = None
    changed: bool = False
    vlans: tuple[int, ...] = field(default=())

    @property
    def version(self) -> int:
        """4 or 6."""
        return IPV4 if isinstance(self.ip, dpkt.ip.IP) else IPV6

    @property
    def protocol(self) -> int:
        """Of the IP payload."""
        return int(self.ip.p)

    @property
    def key(self) -> FlowKey:
        """The TCP flow that it belongs to, from the sender's side."""
        return (self.vlans, self.ip.src, self.tcp.sport, self.ip.dst, self.tcp.dport)

    @property
    def reverse_key(self) -> FlowKey:
        """The flow of the other direction."""
        return (self.vlans, self.ip.dst, self.tcp.dport, self.ip.src, self.tcp.sport)

    @property
    def fragment(self) -> tuple[int, int] | None:
        """Identification and offset in bytes, where it is a fragment."""
        if self.version == IPV4:
            return (self.ip.id, self.ip.offset * 8) if self.ip.mf or self.ip.offset else None
        header = self.ip.extension_hdrs.get(FRAGMENT)
        return None if header is None else (header.id, header.frag_off * 8)

    @property
    def flags(self) -> int:
        """Of TCP."""
        return int(self.tcp.flags)

    @property
    def payload(self) -> bytes:
        """Of TCP."""
        return bytes(self.tcp.data)

    @property
    def is_signed(self) -> bool:
        """By TCP-MD5 (RFC 2385) or TCP-AO (RFC 5925): whatever is changed breaks the signature."""
        return any(kind in (MD5, AO) for kind, _, _ in tcp_options(self.tcp.opts))

    @property
    def may_change(self) -> bool:
        """A TCP segment that can be altered at all."""
        return self.tcp is not None and not self.is_signed

    def data(self) -> bytes:
        """The frame's bytes; lengths and checksums are right where it was changed."""
        if not self.changed:
            return self.frame.data
        if self.tcp is not None:
            self.tcp.off = (20 + len(self.tcp.opts)) // 4
            self.tcp.sum = 0
        if self.version == IPV4:
            self.ip.sum = 0
        else:
            self.ip.plen = len(self.ip) - 40
        return bytes(self.eth)

    def clone(self, order: tuple[int, int], time: int) -> Packet:
        """A copy whose headers and payload can be changed by themselves."""
        twin = copy.copy(self)
        twin.eth = copy.copy(self.eth)
        twin.ip = copy.copy(self.ip)
        if twin.version == IPV6:
            twin.ip.all_extension_headers = [copy.copy(header) for header in self.ip.all_extension_headers]
            twin.ip.extension_hdrs = {}
            for kind, header in self.ip.extension_hdrs.items():
                places = [i for i, old in enumerate(self.ip.all_extension_headers) if old is header]
                twin.ip.extension_hdrs[kind] = twin.ip.all_extension_headers[places[0]]
        if self.tcp is not None:
            twin.tcp = copy.copy(self.tcp)
            twin.ip.data = twin.tcp
        twin.eth.data = twin.ip
        twin.order, twin.time, twin.changed = order, time, True
        return twin


def decode(frame: CapturedFrame, index: int, outbound: bool) -> Packet:
    """Decodes a frame; what can't be transformed has no ``ip``."""
    packet = Packet(frame, (index, 0), frame.time, outbound)
    if frame.cut:
        return packet
    try:
        eth = dpkt.ethernet.Ethernet(frame.data)
        again = bytes(eth)
    except (dpkt.Error, ValueError, struct.error, IndexError, AttributeError, TypeError):
        return packet  # hostile or merely unknown
    ip = eth.data
    if len(frame.data) > LONGEST:
        return packet  # a jumbogram: its length does not fit the header
    padded = len(frame.data) <= 60 and frame.data.startswith(again)
    if not isinstance(ip, dpkt.ip.IP | dpkt.ip6.IP6) or not hasattr(ip, "p") or not (again == frame.data or padded):
        return packet
    packet.eth, packet.ip = eth, ip
    packet.vlans = tuple(int(tag.id) for tag in getattr(eth, "vlan_tags", []))
    if isinstance(ip.data, dpkt.tcp.TCP) and packet.fragment is None:
        packet.tcp = ip.data
    else:
        ip.data = bytes(ip.data)  # checksums within are our business, not dpkt's
    return packet


def tcp_options(options: bytes) -> Iterator[tuple[int, int, int]]:
    """Kind, place and length of each TCP option; place and length are those of its value. Ends at nonsense."""
    at = 0
    while at + 2 <= len(options) and options[at] != 0:
        if options[at] == 1:
            at += 1
            continue
        size = options[at + 1]
        if size < 2 or at + size > len(options):
            return
        yield options[at], at + 2, size - 2
        at += size


def add_to_option(options: bytes, at: int, delta: int) -> bytes:
    """Adds to a 32-bit number in the options, modulo 2^32."""
    value = (int.from_bytes(options[at : at + 4], "big") + delta) & 0xFFFF_FFFF
    return options[:at] + value.to_bytes(4, "big") + options[at + 4 :]


def text_of(packet: Packet, frame_class: FrameClass, ports: tuple[int, int]) -> str:
    """The flow's name, as the comparator's events have it."""
    ends = [_address(packet.ip.src), _address(packet.ip.dst)]
    flow = FlowId(
        frame_class, packet.version, packet.protocol, ends[0], ports[0], ends[1], ports[1], vlans=packet.vlans
    )
    return str(flow)


def _address(raw: bytes) -> str:
    return str(dpkt.utils.inet_to_str(raw))
