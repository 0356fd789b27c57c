# SPDX-License-Identifier: Apache-2.0
"""Other times and another order, as a network or a busy host makes them: frames come later, never earlier."""

from __future__ import annotations

import random

from coloproxy.mutate.packet import RST, SYN, FlowKey, Packet

__all__ = ["jitter", "reorder", "shift"]


def shift(packets: list[Packet], by: int) -> None:
    """All of the capture, `by` ns later."""
    for packet in packets:
        packet.time += by


def jitter(packets: list[Packet], rng: random.Random, most: int) -> None:
    """Delays each of the VM's frames by up to `most` ns; they keep their order."""
    latest = 0
    for packet in packets:
        if packet.outbound:
            latest = packet.time = max(latest, packet.time + rng.randint(0, most))


def reorder(packets: list[Packet], rng: random.Random, frames: int, time: int) -> list[Packet]:
    """Delays each of the VM's frames by up to `time` ns, so that later ones overtake it: `frames` of them at most.

    A SYN or RST keeps its place among the frames of its flow: what comes behind it belongs to another connection, or
    to none, and a network that mixes these up does change what the client sees.
    """
    sent = [packet for packet in packets if packet.outbound]
    barriers = _barriers(sent)
    places = []
    for index, packet in enumerate(sent):
        place = min(index + rng.randint(0, frames), barriers[index], len(sent) - 1)
        while sent[place].time > packet.time + time:
            place -= 1
        places.append((place, place != index, rng.random()))
    times = [sent[place].time for place, _, _ in places]
    for packet, new in zip(sent, times, strict=True):
        packet.time = new
    overtaken = iter([sent[index] for index in sorted(range(len(sent)), key=places.__getitem__)])
    return sorted(
        (next(overtaken) if packet.outbound else packet for packet in packets), key=lambda packet: packet.time
    )


def _barriers(sent: list[Packet]) -> list[int]:
    """How far each frame may go: not beyond its flow's next SYN or RST, which do not go at all."""
    barriers = [len(sent)] * len(sent)
    ahead: dict[FlowKey, int] = {}
    for index in range(len(sent) - 1, -1, -1):
        packet = sent[index]
        if packet.tcp is None:
            continue
        barriers[index] = ahead.get(packet.key, len(sent)) - 1
        if packet.flags & (SYN | RST):
            barriers[index] = ahead[packet.key] = index
    return barriers
