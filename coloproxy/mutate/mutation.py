# SPDX-License-Identifier: Apache-2.0
"""The transformations in their order: what is said (faults) first, then how it is said, then when."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from coloproxy.capture import CapturedFrame
from coloproxy.describe import describe
from coloproxy.errors import MisuseError
from coloproxy.mutate import faults, numbers, segments, timing
from coloproxy.mutate.faults import Fault
from coloproxy.mutate.packet import Packet, decode
from coloproxy.vm_filter import VmFilter

__all__ = ["Mutated", "MutatedFrame", "Mutation", "mutate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """What to do. Whatever is left out is not done.

    Attributes:
        seed: of all chance.
        vm: MAC or IP address of the VM: its frames are transformed. None: all frames are the VM's.
        recut: cut the TCP streams into other segments.
        mss: ... of so many payload bytes at most, from 1 on; None: up to the size of offloaded ones.
        repeat: the share of TCP segments sent again, 0 to 1.
        identifications: new IPv4 identification, IPv6 flow label and fragment identification.
        hop_limits: new TTL, hop limit.
        timestamps: new TCP time stamps.
        sequence_numbers: new initial sequence numbers.
        reorder_frames: how many later frames may overtake one.
        reorder_time: ns it may be delayed for that.
        jitter: ns a frame may be delayed, in order.
        shift: ns that all frames come later.
        flip: position of a payload byte to change; flip_random: a byte by chance.
        drop, truncate: number of a packet.
    """

    seed: int = 0
    vm: str | None = None
    recut: bool = False
    mss: int | None = None
    repeat: float = 0.0
    identifications: bool = False
    hop_limits: bool = False
    timestamps: bool = False
    sequence_numbers: bool = False
    reorder_frames: int = 0
    reorder_time: int = 10_000_000
    jitter: int = 0
    shift: int = 0
    flip: int | None = None
    flip_random: bool = False
    drop: int | None = None
    truncate: int | None = None


@dataclass(frozen=True, slots=True)
class MutatedFrame:
    """A frame of the result: its time in ns, its bytes, the captured frame that it stems from."""

    time: int
    data: bytes
    source: CapturedFrame
    outbound: bool


@dataclass(frozen=True, slots=True)
class Mutated:
    """The result.

    Attributes:
        frames: by time.
        faults: what must be found.
        outbound: frames of the VM that were read.
        untouched: how many of those can't be transformed (no IP, cut by the snap length, not understood).
    """

    frames: list[MutatedFrame]
    faults: list[Fault]
    outbound: int
    untouched: int


def mutate(frames: Iterable[CapturedFrame], mutation: Mutation) -> Mutated:
    """Transforms a capture, which is held in memory as a whole.

    The same frames and the same mutation give the same result. Frames of the VM that can't be transformed pass as
    they are, and so do the client's, but for what they say of numbers that the VM chose (ACK numbers, echoed time
    stamps).

    Raises:
        MisuseError: an address that is none, or a fault for which there is no place.
    """
    vm = None if mutation.vm is None else VmFilter((mutation.vm,))
    packets = [
        decode(frame, index, vm is None or vm.sent(frame.data, describe(frame.data)))
        for index, frame in enumerate(frames)
    ]
    sent = [packet for packet in packets if packet.outbound]
    untouched = sum(packet.ip is None for packet in sent)
    found = _faults(packets, mutation)
    packets = _other_packets(packets, mutation)
    packets = _other_times(packets, mutation)
    out = [MutatedFrame(packet.time, packet.data(), packet.frame, packet.outbound) for packet in packets]
    return Mutated(out, found, len(sent), untouched)


def _rng(mutation: Mutation, name: str) -> random.Random:
    """Chance of its own for each transformation: adding one leaves what the others do alone."""
    return random.Random(f"{mutation.seed} {name}")


def _faults(packets: list[Packet], mutation: Mutation) -> list[Fault]:
    found = []
    if mutation.flip is not None:
        found.append(faults.flip(packets, mutation.flip, 0xFF))
    if mutation.flip_random:
        rng, total = _rng(mutation, "flip"), faults.payload_bytes(packets)
        if not total:
            raise MisuseError("the VM sent no payload byte that could be changed")
        found.append(faults.flip(packets, rng.randrange(total), rng.randint(1, 255)))
    if mutation.truncate is not None:
        found.append(faults.truncate(packets, mutation.truncate))
    if mutation.drop is not None:
        found.append(faults.drop(packets, mutation.drop))
    return found


def _other_packets(packets: list[Packet], mutation: Mutation) -> list[Packet]:
    if mutation.sequence_numbers:
        numbers.new_sequence_numbers(packets, _rng(mutation, "isn"))
    if mutation.timestamps:
        numbers.new_timestamps(packets, _rng(mutation, "timestamps"))
    if mutation.recut or mutation.mss:
        packets = segments.recut(packets, _rng(mutation, "recut"), mutation.mss)
    if mutation.repeat:
        packets = segments.repeat(packets, _rng(mutation, "repeat"), mutation.repeat)
    if mutation.identifications:
        numbers.new_identifications(packets, _rng(mutation, "identifications"))
    if mutation.hop_limits:
        numbers.new_hop_limits(packets, _rng(mutation, "hop limits"))
    return packets


def _other_times(packets: list[Packet], mutation: Mutation) -> list[Packet]:
    if mutation.reorder_frames:
        packets = timing.reorder(packets, _rng(mutation, "reorder"), mutation.reorder_frames, mutation.reorder_time)
    if mutation.jitter:
        timing.jitter(packets, _rng(mutation, "jitter"), mutation.jitter)
    if mutation.shift:
        timing.shift(packets, mutation.shift)
    return sorted(packets, key=lambda packet: packet.time)
