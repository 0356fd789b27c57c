# SPDX-License-Identifier: Apache-2.0
"""Numbers that a stack is free to choose: sequence numbers, time stamps, IP identification, flow label, hop limit."""

from __future__ import annotations

import random
from dataclasses import dataclass

from coloproxy.mutate.packet import (
    ACK,
    ICMP6,
    IPV4,
    SACK,
    SYN,
    TIMESTAMPS,
    FlowKey,
    Packet,
    add_to_option,
    tcp_options,
)

__all__ = ["new_hop_limits", "new_identifications", "new_sequence_numbers", "new_timestamps"]


@dataclass(slots=True)
class _Connection:
    shift: int
    isn: int


def new_sequence_numbers(packets: list[Packet], rng: random.Random) -> None:
    """Another initial sequence number for each connection whose SYN of the VM is in the capture.

    The VM's sequence numbers move by it, and with them what the client says of them: its ACK numbers and SACK blocks.
    The client's own sequence numbers stay: they are the client's choice. A connection whose SYN is not there stays as
    it is, and so does one signed by TCP-MD5 or TCP-AO.
    """
    connections: dict[FlowKey, _Connection] = {}
    for packet in packets:
        if not packet.may_change:
            continue
        if packet.outbound:
            known = connections.get(packet.key)
            if packet.flags & SYN and (known is None or known.isn != packet.tcp.seq):
                known = connections[packet.key] = _Connection(rng.getrandbits(32), packet.tcp.seq)
            if known is not None:
                packet.tcp.seq = (packet.tcp.seq + known.shift) & 0xFFFF_FFFF
                packet.changed = True
            continue
        known = connections.get(packet.reverse_key)
        if known is not None and packet.flags & ACK:
            packet.tcp.ack = (packet.tcp.ack + known.shift) & 0xFFFF_FFFF
            for kind, at, size in tcp_options(packet.tcp.opts):
                if kind == SACK:
                    for edge in range(at, at + size - 3, 4):
                        packet.tcp.opts = add_to_option(packet.tcp.opts, edge, known.shift)
            packet.changed = True


def new_timestamps(packets: list[Packet], rng: random.Random) -> None:
    """Another clock behind the VM's TCP time stamps (RFC 7323), one for each flow; the client echoes it."""
    shifts: dict[FlowKey, int] = {}
    for packet in packets:
        if not packet.may_change:
            continue
        key = packet.key if packet.outbound else packet.reverse_key
        for kind, at, size in tcp_options(packet.tcp.opts):
            if kind != TIMESTAMPS or size != 8:
                continue
            if packet.outbound:
                shift = shifts.setdefault(key, rng.getrandbits(32))
                packet.tcp.opts = add_to_option(packet.tcp.opts, at, shift)
                packet.changed = True
            elif key in shifts and packet.flags & ACK:
                packet.tcp.opts = add_to_option(packet.tcp.opts, at + 4, shifts[key])
                packet.changed = True


def new_identifications(packets: list[Packet], rng: random.Random) -> None:
    """Another IPv4 identification for each of the VM's packets, one for the fragments of a datagram; in IPv6 another
    flow label for each flow, and another identification of fragments."""
    fragments: dict[tuple[bytes, bytes, int, int], int] = {}
    labels: dict[object, int] = {}
    for packet in packets:
        if not packet.outbound or packet.ip is None:
            continue
        fragment = packet.fragment
        bits = 16 if packet.version == IPV4 else 32
        identification = rng.getrandbits(bits)
        if fragment:
            datagram = (packet.ip.src, packet.ip.dst, packet.protocol, fragment[0])
            identification = fragments.setdefault(datagram, identification)
        if packet.version == IPV4:
            packet.ip.id = identification
        else:
            flow = packet.key if packet.tcp is not None else (packet.ip.src, packet.ip.dst, packet.protocol)
            packet.ip.flow = labels.setdefault(flow, rng.getrandbits(20))
            if fragment:
                packet.ip.extension_hdrs[44].id = identification
        packet.changed = True


def new_hop_limits(packets: list[Packet], rng: random.Random) -> None:
    """Another TTL or hop limit, one for each destination of the VM. 255 and 1 stay: protocols of the link rely on them
    (neighbour discovery, RFC 4861; IGMP and MLD)."""
    limits: dict[bytes, int] = {}
    for packet in packets:
        if not packet.outbound or packet.ip is None:
            continue
        name = "ttl" if packet.version == IPV4 else "hlim"
        if getattr(packet.ip, name) in (1, 255) and (packet.version == IPV4 or packet.protocol == ICMP6):
            continue
        setattr(packet.ip, name, limits.setdefault(packet.ip.dst, rng.randint(32, 254)))
        packet.changed = True
