# SPDX-License-Identifier: Apache-2.0
"""hypothesis strategies of whole schedules, and how many examples to try.

conversation.py, world.py and chaos.py make the schedules of real frames, from choices that a Dice makes. Here
hypothesis throws the dice; `seeds` gives many cheap throws besides. What fails is told as a minimal schedule.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass

from conversation import Conversation, Dice, Sent, Tcp, make_conversation
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from model.flow import PRIMARY, SECONDARY

THOROUGH = os.environ.get("COLOPROXY_TEST_PROFILE") == "thorough"
"""Very many new examples each time, in place of the same few hundred."""

FIRST_SEED = int(os.environ.get("COLOPROXY_TEST_SEED", random.SystemRandom().randrange(2**32) if THOROUGH else 0))


def profile(examples: int) -> settings:
    return settings(
        max_examples=examples * (50 if THOROUGH else 1),
        derandomize=not THOROUGH,
        deadline=None,
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much),
        phases=(Phase.explicit, Phase.generate),  # model/minimise.py shrinks schedules, and far faster
        print_blob=True,
        database=None,
    )


def seeds(count: int) -> range:
    """Seeds of random.Random, to be named by what fails."""
    return range(FIRST_SEED, FIRST_SEED + count * (100 if THOROUGH else 1))


def seeded(seed: int) -> Dice:
    return Dice(random.Random(seed).randint)


@st.composite
def dice(draw: st.DrawFn) -> Dice:
    return Dice(lambda low, high: draw(st.integers(low, high)))


@st.composite
def conversations(draw: st.DrawFn, flows: int = 2, epochs: int = 3) -> Conversation:
    """Equal streams on both sides."""
    return make_conversation(draw(dice()), flows, epochs)


@dataclass(frozen=True)
class Spoiled:
    """A conversation in which one connection is not equal any more in the last epoch, from `offset` on."""

    conversation: Conversation
    port: int
    offset: int
    opened: bool


def _same(a: Tcp, b: Tcp) -> bool:
    return a.connection.path == b.connection.path and a.connection.client_isn == b.connection.client_isn


def find_places(conversation: Conversation) -> list[tuple[Tcp, int]]:
    """(frame, offset) of the bytes that both sides say in the last epoch, and that no checkpoint covers."""
    sent = [frame for frame in conversation.frames() if isinstance(frame, Tcp)]
    last = conversation.last_epoch
    out = []
    for frame in sent:
        if frame.side != PRIMARY or frame.epoch != last or not frame.payload:
            continue
        same = [other for other in sent if _same(other, frame)]
        covered = max((other.end for other in same if other.side == PRIMARY and other.epoch < last), default=0)
        if not frame.connection.opened:  # met in mid-stream: where the primary's first frame stands, it begins
            covered = max(covered, next(other.start for other in same if other.side == PRIMARY))
        theirs = {
            offset
            for other in same
            if other.side == SECONDARY and other.epoch == last
            for offset in range(other.start, other.end)
        }
        out += [(frame, offset) for offset in range(max(frame.start, covered), frame.end) if offset in theirs]
    return out


def spoil_one_byte(throw: Dice, conversation: Conversation) -> Spoiled | None:
    """One byte of one side's stream is another in the last epoch, whenever it is sent. None: there is no byte."""
    places = find_places(conversation)
    if not places:
        return None
    frame, offset = throw.choose(places)
    side, mask = throw.pick(0, 1), throw.pick(1, 255)

    def flip(other: Tcp) -> Tcp:
        if not other.start <= offset < other.end:
            return other
        payload = bytearray(other.payload)
        payload[offset - other.start] ^= mask
        return other.with_payload(bytes(payload))

    return Spoiled(
        _alter(conversation, frame, side, flip), frame.connection.path.dport, offset, frame.connection.opened
    )


def spoil_one_fin(throw: Dice, conversation: Conversation) -> Spoiled | None:
    """One side ends the stream before the other does."""
    places = [place for place in find_places(conversation) if place[0].connection.ending != "RST"]
    if not places:
        return None
    frame, offset = throw.choose(places)

    def end_early(other: Tcp) -> Tcp:
        return other if other.end < offset else other.cut_with_fin(offset)

    altered = _alter(conversation, frame, throw.pick(0, 1), end_early)
    return Spoiled(altered, frame.connection.path.dport, offset, frame.connection.opened)


def _alter(conversation: Conversation, like: Tcp, side: int, change: Callable[[Tcp], Tcp]) -> Conversation:
    """Changes what `side` sends on the connection and in the epoch of `like`."""

    def change_if_it_is(other: Sent) -> Sent:
        if isinstance(other, Tcp) and _same(other, like) and other.epoch == like.epoch and other.side == side:
            return change(other)
        return other

    return conversation.alter(change_if_it_is)


@st.composite
def one_byte_differs(draw: st.DrawFn) -> Spoiled | None:
    throw = draw(dice())
    return spoil_one_byte(throw, make_conversation(throw, 2, 2))


@st.composite
def one_fin_is_early(draw: st.DrawFn) -> Spoiled | None:
    throw = draw(dice())
    return spoil_one_fin(throw, make_conversation(throw, 2, 2))
