# SPDX-License-Identifier: Apache-2.0
"""One frame, decoded. Written from the RFCs and csrc/coloproxy.h's classes, not from csrc/parse.c."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import IntEnum

import wire

ETHERTYPE_IPV4, ETHERTYPE_IPV6 = 0x0800, 0x86DD
VLAN_TYPES = {0x8100, 0x88A8, 0x9100}


class Cls(IntEnum):
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


PASSED_BY_DEFAULT = frozenset({Cls.ARP, Cls.ND, Cls.DHCP, Cls.MULTICAST, Cls.LINK})


@dataclass(frozen=True, slots=True)
class Key:
    """Which flow a frame belongs to. Ports are of the VM and the client; an ICMP echo has its identifier as sport."""

    cls: Cls
    family: int
    protocol: int
    ethertype: int
    vlans: tuple[int, ...]
    src: bytes
    dst: bytes
    sport: int = 0
    dport: int = 0
    nic: int = 0


@dataclass(frozen=True, slots=True)
class SynOptions:
    mss: int | None = None
    wscale: int | None = None
    sack_ok: bool = False
    timestamps: bool = False
    signature: int = 0


@dataclass(frozen=True, slots=True)
class Packet:
    key: Key
    body: bytes  # TCP and UDP: the payload; ICMP: all but its checksum; other IP: the IP payload; else the frame
    l3: int = 0
    l4: int = 0
    tag: int = 0  # FRAGMENT: where in its datagram it belongs, and whether it is the last
    ident: int = 0  # FRAGMENT: of which datagram
    start: int = 0  # FRAGMENT: of its bytes in the datagram's payload
    more: bool = False  # FRAGMENT: not the last
    head: bytes = b""  # FRAGMENT: all before the payload, as it would be were it no fragment; lengths are not right
    seq: int = 0
    ack: int = 0
    flags: int = 0
    window: int = 0
    urgent: int = 0
    options: SynOptions = SynOptions()
    timestamps: tuple[int, int] | None = None
    sack: bytes = b""  # the blocks
    auth: bool = False
    partial: bool = False  # the checksum is completed later
    checksums_ok: bool = True
    segments: tuple[bytes, ...] = ()  # of a UDP super-frame: the payloads that it is cut into

    @property
    def cls(self) -> Cls:
        return self.key.cls

    @property
    def datagrams(self) -> list[tuple[int, bytes]]:
        """What it says, where it is no TCP: one datagram, or those of a super-frame."""
        return [(self.tag, body) for body in self.segments or (self.body,)]

    @property
    def fin(self) -> bool:
        return bool(self.flags & wire.FIN)

    @property
    def syn(self) -> bool:
        return bool(self.flags & wire.SYN)

    @property
    def rst(self) -> bool:
        return bool(self.flags & wire.RST)

    @property
    def acks(self) -> bool:
        return bool(self.flags & wire.ACK)

    @property
    def pure_ack(self) -> bool:
        return self.acks and not (self.syn or self.fin or self.rst or self.body)


class _BadFrameError(Exception):
    pass


def _need(data: bytes, count: int) -> None:
    if len(data) < count:
        raise _BadFrameError


def parse(frame: bytes) -> Packet:
    packet, nic = _parse(frame), wire.nic_of(frame)
    return replace(packet, key=replace(packet.key, nic=nic)) if nic else packet


def _parse(frame: bytes) -> Packet:
    vnet = wire.vnet_len(frame)
    data = bytes(frame[vnet:])
    ethertype, at = 0, 0
    vlans: tuple[int, ...] = ()
    if len(data) >= 14:
        ethertype, vlans, at = _ethertype(data)
    partial = vnet > 0 and bool(frame[0] & 1)
    uso = int.from_bytes(frame[4:6], "little") if vnet and frame[1] & 0x7F == wire.GSO_UDP_L4 else 0
    try:
        _need(data, 14 if ethertype else len(data) + 1)
        if ethertype == ETHERTYPE_IPV4:
            return _ipv4(data, at, vlans, vnet, partial, uso)
        if ethertype == ETHERTYPE_IPV6:
            return _ipv6(data, at, vlans, vnet, partial, uso)
    except _BadFrameError:
        macs = (data[6:12], data[0:6]) if len(data) >= 14 else (b"", b"")
        return Packet(Key(Cls.MALFORMED, 0, 0, ethertype, (), *macs), data)
    cls = Cls.OTHER
    if ethertype in (0x0806, 0x8035):
        cls = Cls.ARP
    elif ethertype in (0x88CC, 0x8809) or (data[:5] == bytes.fromhex("0180c20000") and data[5] < 0x10):
        cls = Cls.LINK
    return Packet(Key(cls, 0, 0, ethertype, vlans, data[6:12], data[0:6]), data)


def _ethertype(data: bytes) -> tuple[int, tuple[int, ...], int]:
    (kind,) = struct.unpack_from("!H", data, 12)
    at = 14
    vlans: tuple[int, ...] = ()
    while kind in VLAN_TYPES:
        if len(data) - at < 4:
            return 0, vlans, at
        if len(vlans) == 2:
            break
        tag, kind = struct.unpack_from("!HH", data, at)
        vlans += (tag & 0xFFF,)
        at += 4
    return kind, vlans, at


def _ipv4(data: bytes, at: int, vlans: tuple[int, ...], vnet: int, partial: bool, uso: int) -> Packet:
    packet = data[at:]
    _need(packet, 20)
    header = (packet[0] & 15) * 4
    (total,) = struct.unpack_from("!H", packet, 2)
    if packet[0] >> 4 != 4 or header < 20 or total < header or total > len(packet):
        raise _BadFrameError
    src, dst, protocol = packet[12:16], packet[16:20], packet[9]
    body = packet[header:total]
    checksum_ok = wire.ones_sum(packet[:header]) == 0xFFFF
    fragment = struct.unpack_from("!H", packet, 6)[0] & 0x3FFF
    where = (at + vnet, at + vnet + header)
    if fragment:
        key = Key(Cls.FRAGMENT, 4, protocol, ETHERTYPE_IPV4, vlans, src, dst)
        (ident,) = struct.unpack_from("!H", packet, 4)
        head = packet[:4] + bytes(4) + packet[8:10] + b"\0\0" + packet[12:header]
        return Packet(
            key, body, *where, fragment, ident, (fragment & 0x1FFF) * 8, fragment >> 13 == 1, data[:at] + head
        )
    pseudo = src + dst + struct.pack("!BBH", 0, protocol, len(body))
    return _transport(4, protocol, vlans, src, dst, body, pseudo, where, checksum_ok, partial, uso)


def _ipv6(data: bytes, at: int, vlans: tuple[int, ...], vnet: int, partial: bool, uso: int) -> Packet:
    packet = data[at:]
    _need(packet, 40)
    (length,) = struct.unpack_from("!H", packet, 4)
    if packet[0] >> 4 != 6 or length > len(packet) - 40:
        raise _BadFrameError
    src, dst, protocol = packet[8:24], packet[24:40], packet[6]
    body = packet[40 : 40 + length]
    extensions, next_at = 0, 6
    while protocol in (0, 43, 60, 51, 44):
        if extensions == 8:
            raise _BadFrameError
        extensions += 1
        _need(body, 12 if protocol == 51 else 8)
        here = 40 + length - len(body)
        if protocol == 44:
            word, ident = struct.unpack_from("!HI", body, 2)
            if word & 0xFFF9:
                key = Key(Cls.FRAGMENT, 6, body[0], ETHERTYPE_IPV6, vlans, src, dst)
                head = bytearray(packet[:here])
                head[next_at] = body[0]
                return Packet(key, body[8:], at + vnet, at + vnet + here, word | 0x10000, ident, word & 0xFFF8,
                              bool(word & 1), data[:at] + bytes(head))  # fmt: skip
            size = 8  # RFC 6946: the whole datagram
        else:
            size = (body[1] + 2) * 4 if protocol == 51 else (body[1] + 1) * 8
        _need(body, size)
        protocol, body, next_at = body[0], body[size:], here
    if extensions == 8:
        raise _BadFrameError
    pseudo = src + dst + struct.pack("!IHBB", len(body), 0, 0, protocol)
    where = (at + vnet, at + vnet + 40 + length - len(body))
    return _transport(6, protocol, vlans, src, dst, body, pseudo, where, True, partial, uso)


def _transport(
    family: int,
    protocol: int,
    vlans: tuple[int, ...],
    src: bytes,
    dst: bytes,
    body: bytes,
    pseudo: bytes,
    where: tuple[int, int],
    checksum_ok: bool,
    partial: bool,
    uso: int,
) -> Packet:
    ethertype = ETHERTYPE_IPV4 if family == 4 else ETHERTYPE_IPV6

    def key(cls: Cls, sport: int = 0, dport: int = 0) -> Key:
        return Key(cls, family, protocol, ethertype, vlans, src, dst, sport, dport)

    if protocol == wire.TCP:
        _need(body, 20)
        sport, dport, seq, ack, word, window, csum, urgent = struct.unpack_from("!HHIIHHHH", body)
        header = (word >> 12) * 4
        if header < 20 or header > len(body):
            raise _BadFrameError
        options, stamps, sack, auth = _tcp_options(body[20:header])
        if partial:
            checksum_ok = checksum_ok and csum == wire.ones_sum(pseudo)
        else:
            checksum_ok = checksum_ok and wire.ones_sum(pseudo + body) == 0xFFFF
        return Packet(
            key(Cls.TCP, sport, dport), body[header:], *where, seq=seq, ack=ack, flags=word & 0xFF, window=window,
            urgent=urgent, options=options, timestamps=stamps, sack=sack, auth=auth,
            partial=partial, checksums_ok=checksum_ok,
        )  # fmt: skip
    if protocol == wire.UDP:
        _need(body, 8)
        sport, dport, length, _ = struct.unpack_from("!HHHH", body)
        if uso:
            length = len(body)  # all is cut up, and each piece gets a length of its own
        if length < 8 or length > len(body):
            raise _BadFrameError
        servers = {67, 68} if family == 4 else {546, 547}
        cls = Cls.DHCP if sport in servers and dport in servers else Cls.UDP
        payload = body[8:length]
        if 0 < uso < len(payload) <= 128 * uso:
            segments = tuple(payload[at : at + uso] for at in range(0, len(payload), uso))
            return Packet(key(cls, sport, dport), payload, *where, segments=segments)
        return Packet(key(cls, sport, dport), payload, *where, tag=0x20000 | uso if 0 < uso < len(payload) else 0)
    if protocol == wire.ICMP and family == 4:
        _need(body, 8)
        identifier = struct.unpack_from("!H", body, 4)[0] if body[0] in (0, 8) else 0
        return Packet(key(Cls.ICMP, identifier), body[:2] + body[4:], *where)
    if protocol == wire.ICMP6 and family == 6:
        _need(body, 4)
        cls = Cls.ICMP6
        identifier = 0
        if 133 <= body[0] <= 137:
            cls = Cls.ND
        elif body[0] in (130, 131, 132, 143):
            cls = Cls.MULTICAST
        elif body[0] in (128, 129) and len(body) >= 8:
            identifier = struct.unpack_from("!H", body, 4)[0]
        return Packet(key(cls, identifier), body[:2] + body[4:], *where)
    if protocol == wire.IGMP and family == 4:
        return Packet(key(Cls.MULTICAST), body, *where)
    return Packet(key(Cls.IP_OTHER), body, *where)


def _tcp_options(data: bytes) -> tuple[SynOptions, tuple[int, int] | None, bytes, bool]:
    mss, wscale, sack_ok, stamps, sack, signature = None, None, False, None, b"", 0
    while data and data[0] != 0:
        if data[0] == 1:
            data = data[1:]
            continue
        if len(data) < 2 or data[1] < 2 or data[1] > len(data):
            break
        kind, value = data[0], data[2 : data[1]]
        if kind == 2 and len(value) == 2:
            mss = int.from_bytes(value, "big")
        elif kind == 3 and len(value) == 1:
            wscale = value[0]
        elif kind == 4 and not value:
            sack_ok = True
        elif kind == 8 and len(value) == 8:
            stamps = struct.unpack("!II", value)
        elif kind == 5:
            sack = value
        elif kind in (19, 29):
            signature = kind
        data = data[data[1] :]
    return SynOptions(mss, wscale, sack_ok, stamps is not None, signature), stamps, sack, signature != 0
