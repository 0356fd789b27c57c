# SPDX-License-Identifier: Apache-2.0
"""TCP: the same stream in other segments, and segments sent again."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from coloproxy.mutate.packet import ACK, FIN, PSH, RST, SYN, URG, FlowKey, Packet

__all__ = ["recut", "repeat"]

JOIN_WITHIN: Final = 10_000_000
"""ns between two segments that may still become one: joining delays the first."""

SUPER_FRAME: Final = 61_440
"""The largest payload of a segment that offload makes: header and payload fit an IP length."""

ETHERNET_MSS: Final = 1448
REMEMBERED: Final = 4


def _sequence_end(packet: Packet) -> int:
    length = len(packet.payload) + bool(packet.flags & FIN) + bool(packet.flags & SYN)
    return int(packet.tcp.seq + length) & 0xFFFF_FFFF


def _may_be_cut(packet: Packet) -> bool:
    """Has payload or a FIN, and no place of its own in the stream's order (SYN, RST, urgent data)."""
    return (
        packet.outbound
        and packet.may_change
        and not packet.flags & (SYN | RST | URG)
        and bool(packet.payload or packet.flags & FIN)
    )


def recut(packets: list[Packet], rng: random.Random, mss: int | None) -> list[Packet]:
    """Cuts the VM's TCP payload into other segments: splits them, joins neighbours.

    A new segment takes its time and all of its header (ACK number, window, time stamps) from the old one that holds its
    last byte: nothing is said earlier than it was. PSH goes with the byte it stood at, FIN with the end.
    With `mss` no segment is longer; without, some are as large as offload makes them.
    """
    out: list[Packet] = []
    runs: dict[FlowKey, list[Packet]] = {}
    for packet in packets:
        if packet.tcp is None or not packet.outbound:
            out.append(packet)
            continue
        run = runs.get(packet.key)
        if run and not (_may_be_cut(packet) and _continues(run, packet) and rng.random() < 0.8):
            out.extend(_cut(runs.pop(packet.key), rng, mss))
        if _may_be_cut(packet):
            runs.setdefault(packet.key, []).append(packet)
        else:
            out.append(packet)
    for run in runs.values():
        out.extend(_cut(run, rng, mss))
    return sorted(out, key=lambda packet: packet.order)


def _continues(run: list[Packet], packet: Packet) -> bool:
    last = run[-1]
    return packet.tcp.seq == _sequence_end(last) and packet.time - last.time <= JOIN_WITHIN and not last.flags & FIN


def _sizes(total: int, rng: random.Random, mss: int | None) -> list[int]:
    """How many bytes each new segment has."""
    longest = mss or ETHERNET_MSS
    manner = rng.choice(("full", "any", "any") if mss else ("full", "any", "super"))
    sizes = []
    while total:
        if manner == "full":
            size = longest
        elif manner == "any":
            size = rng.randint(1, longest)
        else:
            size = rng.randint(longest, SUPER_FRAME)
        sizes.append(min(size, total))
        total -= sizes[-1]
    return sizes


def _cut(run: list[Packet], rng: random.Random, mss: int | None) -> list[Packet]:
    stream = b"".join(packet.payload for packet in run)
    ends, end = [], 0
    for packet in run:
        end += len(packet.payload)
        ends.append(end)
    out: list[Packet] = []
    start = source = 0
    first = run[0].tcp.seq
    for sub, size in enumerate(_sizes(len(stream), rng, mss)):
        stop = start + size
        pushed = False
        while ends[source] < stop:  # segments that end within this one
            pushed = pushed or bool(run[source].flags & PSH)
            source += 1
        old = run[source]
        pushed = pushed or (ends[source] == stop and bool(old.flags & PSH))
        flags = old.flags & ~(FIN | PSH) | (PSH if pushed else 0)
        out.append(_segment(old, (old.order[0], sub), first + start, stream[start:stop], flags))
        start = stop
    last = run[-1]
    if last.flags & FIN:
        if out and rng.random() < 0.7 and not (mss and len(out[-1].payload) > mss):
            end_of_stream = _segment(last, (last.order[0], len(out)), out[-1].tcp.seq, out[-1].payload, out[-1].flags)
            end_of_stream.tcp.flags |= FIN
            out[-1] = end_of_stream
        else:
            out.append(_segment(last, (last.order[0], len(out)), first + len(stream), b"", last.flags))
    return out


def _segment(old: Packet, order: tuple[int, int], seq: int, payload: bytes, flags: int) -> Packet:
    new = old.clone(order, old.time)
    new.tcp.seq = seq & 0xFFFF_FFFF
    new.tcp.data = payload
    new.tcp.flags = flags
    return new


@dataclass(slots=True)
class _Sender:
    """What one end of a connection has sent lately."""

    segments: deque[Packet] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    due: list[int] = field(default_factory=list)
    """How many more frames of the capture until each retransmission."""


def repeat(packets: list[Packet], rng: random.Random, share: float) -> list[Packet]:
    """Sends TCP segments of the VM again, some frames later: whole ones, parts, and parts of two neighbours.

    `share` of those that take room in the stream. A retransmission carries the ACK number and time stamps of the
    latest segment, as a stack's does. Only TCP: a repeated datagram is a second datagram, and so a difference.
    Nothing is sent again once the connection was reset or begun anew.
    """
    out: list[Packet] = []
    senders: dict[FlowKey, _Sender] = {}
    for packet in packets:
        out.append(packet)
        mine = None
        if packet.outbound and packet.may_change and not packet.flags & URG:
            mine = packet.key
            if packet.flags & (SYN | RST):
                senders[mine] = _Sender()
            sender = senders.setdefault(mine, _Sender())
            if (packet.payload or packet.flags & (SYN | FIN)) and not packet.flags & RST:
                sender.segments.append(packet)
                if rng.random() < share:
                    sender.due.append(rng.randint(0, 6))
        for key, sender in senders.items():
            ready = [left for left in sender.due if left <= 0]
            sender.due = [left - 1 for left in sender.due if left > 0]
            for _ in ready if sender.segments else ():
                out.append(_again(sender, rng, packet, packet if key == mine else None))
    return [_placed(packet, index) for index, packet in enumerate(out)]


def _placed(packet: Packet, index: int) -> Packet:
    packet.order = (index, 0)
    return packet


def _again(sender: _Sender, rng: random.Random, behind: Packet, latest: Packet | None) -> Packet:
    """A retransmission, sent right behind a frame."""
    segments = list(sender.segments)
    chosen = rng.randrange(len(segments))
    old = segments[chosen]
    new = old.clone(behind.order, behind.time)
    after = segments[chosen + 1] if chosen + 1 < len(segments) else None
    if not old.flags & SYN:
        newest = latest or segments[-1]
        if newest.flags & ACK and not newest.flags & SYN:
            new.tcp.ack, new.tcp.win, new.tcp.opts = newest.tcp.ack, newest.tcp.win, newest.tcp.opts
        payload, flags, skip = old.payload, old.flags, 0
        manner = rng.choice(("whole", "part", "both"))
        if manner == "both" and after is not None and after.tcp.seq == _sequence_end(old) and not flags & FIN:
            payload, flags = payload + after.payload, flags | after.flags
        if manner != "whole" and len(payload) > 1:
            skip = rng.randrange(len(payload))
            stop = rng.randint(skip + 1, min(len(payload), skip + SUPER_FRAME))
            flags = flags if stop == len(payload) else flags & ~FIN
            payload = payload[skip:stop]
        if len(payload) > SUPER_FRAME:
            payload, flags = payload[:SUPER_FRAME], flags & ~FIN
        new.tcp.seq = (old.tcp.seq + skip) & 0xFFFF_FFFF
        new.tcp.data, new.tcp.flags = payload, flags
    return new
