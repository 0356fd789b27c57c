# SPDX-License-Identifier: Apache-2.0
"""Builds real frames from numbers, quickly. Everything a test sends to a comparator is made here.

Only struct: hypothesis builds some hundred thousand frames in a run. test_wire.py checks it once against scapy.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from itertools import pairwise

FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
TCP, UDP, ICMP, ICMP6, IGMP, GRE, SCTP = 6, 17, 1, 58, 2, 47, 132

VM_MAC = bytes.fromhex("525400123456")
CLIENT_MAC = bytes.fromhex("5254000000c1")


class VnetFrame(bytes):
    """A frame behind a virtio-net header of `vnet_len` bytes, of one of the VM's NICs. Plain bytes are frames without
    a header, of NIC 0."""

    vnet_len: int = 0
    nic: int = 0


def vnet_len(frame: bytes) -> int:
    return frame.vnet_len if isinstance(frame, VnetFrame) else 0


def nic_of(frame: bytes) -> int:
    return frame.nic if isinstance(frame, VnetFrame) else 0


def of_nic(frame: bytes, nic: int, length: int | None = None) -> bytes:
    """The same frame by another NIC; `length`: of its virtio-net header, if it is not known by `frame`."""
    length = vnet_len(frame) if length is None else length
    if not (nic or length):
        return bytes(frame)
    out = VnetFrame(frame)
    out.vnet_len, out.nic = length, nic
    return out


NEEDS_CSUM = 1
GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 1, 3, 4, 5, 0x80


def with_vnet(
    frame: bytes, length: int, flags: int = 0, gso: int = 0, gso_size: int = 0, hdr_len: int = 0
) -> VnetFrame:
    """Puts a virtio-net header of `length` (10 or 12) bytes in front (virtio 1.2, section 5.1.6)."""
    header = struct.pack("<BBHHHH", flags, gso, hdr_len, gso_size, 34, 16)
    out = VnetFrame(header + bytes(length - 10) + frame)
    out.vnet_len = length
    return out


def ones_sum(data: bytes) -> int:
    """RFC 1071: the ones' complement sum of the 16-bit words, not complemented."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(data: bytes) -> int:
    return ~ones_sum(data) & 0xFFFF


@dataclass(frozen=True)
class Path:
    """Where a VM's frames of one flow go: everything below and beside the transport payload."""

    family: int = 4
    vm: bytes = bytes([10, 0, 0, 1])
    client: bytes = bytes([10, 0, 0, 2])
    sport: int = 80
    dport: int = 40000
    vlans: tuple[int, ...] = ()
    extensions: tuple[int, ...] = ()  # IPv6: hop-by-hop 0, routing 43, destination 60; 8 bytes each
    pad: bool = False  # Ethernet padding up to 60 bytes, not zeros

    @staticmethod
    def v6(last: int = 2, **more: object) -> Path:
        return Path(
            family=6,
            vm=bytes.fromhex("fd00" + "00" * 13 + "01"),
            client=bytes.fromhex("fd00" + "00" * 13) + bytes([last]),
            **more,  # type: ignore[arg-type]
        )


PLAIN = Path()


@dataclass(frozen=True)
class Noise:
    """Header fields that two equal VMs differ in, and that prove nothing."""

    ip_id: int = 1
    ttl: int = 64
    tos: int = 0
    window: int = 502
    tsval: int = 1000
    tsecr: int = 2000


QUIET = Noise()


def ethernet(ethertype: int, body: bytes, path: Path = Path(), dst: bytes = CLIENT_MAC, src: bytes = VM_MAC) -> bytes:
    tags = b"".join(struct.pack("!HH", 0x8100, tag) for tag in path.vlans)
    if len(path.vlans) == 2:
        tags = struct.pack("!H", 0x88A8) + tags[2:]
    frame = dst + src + tags + struct.pack("!H", ethertype) + body
    if path.pad and len(frame) < 60:
        frame += b"\xa5" * (60 - len(frame))
    return frame


def ip(path: Path, protocol: int, body: bytes, noise: Noise = QUIET, fragment: int = 0) -> bytes:
    """An IPv4 or IPv6 frame. `fragment`: IPv4's 16 bits of flags and offset."""
    if path.family == 4:
        head = struct.pack("!BBHHHBBH", 0x45, noise.tos, 20 + len(body), noise.ip_id, fragment, noise.ttl, protocol, 0)
        head += path.vm + path.client
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
        return ethernet(0x0800, head + body, path)
    chain = b""
    following = [*path.extensions[1:], protocol]
    for following_one in following if path.extensions else ():
        chain += bytes([following_one, 0, 1, 4, 0, 0, 0, 0])  # PadN of four
    first = path.extensions[0] if path.extensions else protocol
    head = struct.pack("!IHBB", 6 << 28 | noise.tos << 20, len(chain) + len(body), first, noise.ttl)
    return ethernet(0x86DD, head + path.vm + path.client + chain + body, path)


def fragments(
    frame: bytes, cuts: tuple[int, ...], ident: int = 77, *, also: bytes = b"", reserved: int = 0
) -> list[bytes]:
    """Cuts an IP frame's payload at `cuts` (multiples of 8) into fragments, in order. No cuts: one atomic fragment
    (IPv6). `also`: IPv6 extension headers of the frame that stay before the fragment header, as their protocol numbers.
    """
    at = 14
    while frame[at - 2 : at] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    if frame[at] >> 4 == 4:
        start = at + (frame[at] & 15) * 4
        end = at + int.from_bytes(frame[at + 2 : at + 4], "big")
    else:
        start, end = at + 40, at + 40 + int.from_bytes(frame[at + 4 : at + 6], "big")
    next_at = at + 6
    for _ in also:
        next_at, start = start, start + (frame[start + 1] + 1) * 8
    body = frame[start:end]
    points = [0, *cuts, len(body)]
    return [
        _fragment(frame[:start], at, next_at, body[low:high], low, high < len(body), ident, reserved)
        for low, high in pairwise(points)
    ]


def _fragment(
    head: bytes, at: int, next_at: int, piece: bytes, low: int, more: bool, ident: int, reserved: int = 0
) -> bytes:
    out = bytearray(head)
    if head[at] >> 4 == 4:
        struct.pack_into("!HHH", out, at + 2, len(head) - at + len(piece), ident & 0xFFFF, more << 13 | low // 8)
        out[at + 10 : at + 12] = b"\0\0"
        out[at + 10 : at + 12] = struct.pack("!H", checksum(bytes(out[at:])))
        return bytes(out) + piece
    out[next_at] = 44
    struct.pack_into("!H", out, at + 4, len(head) - at - 40 + 8 + len(piece))
    return bytes(out) + struct.pack("!BBHI", head[next_at], 0, low | reserved << 1 | more, ident) + piece


def fragment(frame: bytes, low: int, high: int, more: bool, ident: int = 77) -> bytes:
    """One fragment with bytes [low, high) of an IP frame's payload, whatever its length says."""
    at = 14
    start = at + ((frame[at] & 15) * 4 if frame[at] >> 4 == 4 else 40)
    return _fragment(frame[:start], at, at + 6, frame[start + low : start + high], low, more, ident)


def pseudo_header(path: Path, protocol: int, length: int) -> bytes:
    if path.family == 4:
        return path.vm + path.client + struct.pack("!BBH", 0, protocol, length)
    return path.vm + path.client + struct.pack("!IHBB", length, 0, 0, protocol)


@dataclass(frozen=True)
class Options:
    """TCP options, in the order Linux writes them."""

    mss: int | None = None
    wscale: int | None = None
    sack_ok: bool = False
    timestamps: bool = False
    sack: tuple[tuple[int, int], ...] = ()
    md5: bool = False
    extra: bytes = field(default=b"")

    def encode(self, noise: Noise) -> bytes:
        out = b""
        if self.mss is not None:
            out += struct.pack("!BBH", 2, 4, self.mss)
        if self.sack_ok:
            out += b"\x04\x02"
        if self.timestamps:
            out += b"\x01\x01" + struct.pack("!BBII", 8, 10, noise.tsval & 0xFFFFFFFF, noise.tsecr & 0xFFFFFFFF)
        if self.wscale is not None:
            out += struct.pack("!BBB", 3, 3, self.wscale)
        if self.sack:
            out += struct.pack("!BB", 5, 2 + 8 * len(self.sack))
            for left, right in self.sack:
                out += struct.pack("!II", left & 0xFFFFFFFF, right & 0xFFFFFFFF)
        if self.md5:
            out += b"\x13\x12" + bytes(16)
        out += self.extra
        return out + b"\x01" * (-len(out) % 4)


NO_OPTIONS = Options()


def tcp(
    path: Path,
    seq: int,
    ack: int = 0,
    flags: int = ACK,
    payload: bytes = b"",
    options: Options = NO_OPTIONS,
    noise: Noise = QUIET,
    spoil_checksum: bool = False,
    partial: bool = False,
    urgent: int = 0,
) -> bytes:
    """`partial`: only the pseudo-header is summed, as a guest with checksum offload leaves it."""
    coded = options.encode(noise)
    offset = (20 + len(coded)) // 4 << 12
    head = struct.pack("!HHIIHHHH", path.sport, path.dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, offset | flags,
                       noise.window, 0, urgent)  # fmt: skip
    segment = head + coded + payload
    pseudo = pseudo_header(path, TCP, len(segment))
    csum = ones_sum(pseudo) if partial else checksum(pseudo + segment)
    if spoil_checksum:
        csum ^= 0x5555
    return ip(path, TCP, segment[:16] + struct.pack("!H", csum) + segment[18:], noise)


def udp(path: Path, payload: bytes, noise: Noise = QUIET) -> bytes:
    head = struct.pack("!HHHH", path.sport, path.dport, 8 + len(payload), 0)
    csum = checksum(pseudo_header(path, UDP, 8 + len(payload)) + head + payload) or 0xFFFF
    return ip(path, UDP, head[:6] + struct.pack("!H", csum) + payload, noise)


def icmp(path: Path, kind: int, code: int, rest: bytes, noise: Noise = QUIET) -> bytes:
    """ICMP or, on an IPv6 path, ICMPv6. `rest` follows the checksum; of an echo it begins with identifier, number."""
    head = bytes([kind, code])
    if path.family == 4:
        csum = checksum(head + b"\0\0" + rest)
        return ip(path, ICMP, head + struct.pack("!H", csum) + rest, noise)
    csum = checksum(pseudo_header(path, ICMP6, 4 + len(rest)) + head + b"\0\0" + rest)
    return ip(path, ICMP6, head + struct.pack("!H", csum) + rest, noise)


def echo_reply(path: Path, identifier: int, number: int, data: bytes = b"ping", noise: Noise = QUIET) -> bytes:
    return icmp(path, 0 if path.family == 4 else 129, 0, struct.pack("!HH", identifier, number) + data, noise)


def arp(target: bytes = bytes([10, 0, 0, 2])) -> bytes:
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + VM_MAC + bytes([10, 0, 0, 1]) + bytes(6) + target
    return ethernet(0x0806, body, dst=b"\xff" * 6)


def neighbour_solicitation() -> bytes:
    return icmp(Path.v6(), 135, 0, bytes(4) + Path.v6().client)


def dhcp_discover() -> bytes:
    path = Path(vm=bytes(4), client=b"\xff" * 4, sport=68, dport=67)
    return udp(path, b"\x01\x01\x06\x00" + bytes(236))


def igmp_report() -> bytes:
    return ip(Path(client=bytes([224, 0, 0, 1])), IGMP, bytes.fromhex("1600") + bytes(6))


def mld_report() -> bytes:
    return icmp(Path.v6(), 143, 0, bytes(4))


def lldp() -> bytes:
    return ethernet(0x88CC, bytes(20), dst=bytes.fromhex("0180c200000e"))


def stp() -> bytes:
    return ethernet(38, bytes.fromhex("424203") + bytes(35), dst=bytes.fromhex("0180c2000000"))


PASS_FRAMES = {
    "ARP": arp,
    "ND": neighbour_solicitation,
    "DHCP": dhcp_discover,
    "IGMP": igmp_report,
    "MLD": mld_report,
    "LLDP": lldp,
    "STP": stp,
}
