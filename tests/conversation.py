# SPDX-License-Identifier: Apache-2.0
"""Makes schedules in which two VMs say the same, each in its own way.

A conversation has flows and epochs. In each epoch both sides send the same streams, cut independently: other
segments, retransmissions, duplicates, keep-alives, delayed ACKs, neighbours swapped. A checkpoint between two epochs
catches frames in flight on both sides of its cut. The secondary may be behind or ahead of the primary when the
checkpoint comes: then it goes on from where the primary stood.

All choices are made by a Dice, so that hypothesis can shrink them and a plain random generator can make many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

import wire
from model.flow import PRIMARY, SECONDARY
from model.run import Abort, Alone, Commit, Feed, Step, Stop, describe
from wire import Noise, Options, Path

T = TypeVar("T")

EDGES = (0, 2**31 - 40, 2**31, 2**32 - 40, 2**32 - 1, 12345)


@dataclass
class Dice:
    """`pick(low, high)` is an integer of that range, both ends included."""

    pick: Callable[[int, int], int]

    def chance(self, one_in: int) -> bool:
        return self.pick(1, one_in) == one_in

    def choose(self, options: Sequence[T]) -> T:
        return options[self.pick(0, len(options) - 1)]

    def swap_neighbours(self, items: list[T], one_in: int) -> list[T]:
        items = list(items)
        for i in range(len(items) - 1):
            if self.chance(one_in):
                items[i], items[i + 1] = items[i + 1], items[i]
        return items


def text(seed: int, length: int) -> bytes:
    """Bytes in which neither neighbours nor shifts are equal by chance."""
    return bytes((seed * 89 + i * 7 + (i >> 4) * 13 + (i * i >> 7)) & 0xFF for i in range(length))


@dataclass(frozen=True)
class Connection:
    """One TCP connection. Stream offsets and ACK offsets count from 0, the first byte behind the SYN."""

    path: Path
    isn: tuple[int, int]  # primary's, secondary's
    client_isn: int
    stream: bytes
    opened: bool = True  # False: met in mid-stream
    active: bool = False  # the VM called: its SYN has no ACK
    ending: str = ""  # "", "FIN" or "RST"
    timestamps: bool = False
    rewritten: bool = True  # what follows the secondary's SYN is in the primary's numbers

    def options(self) -> Options:
        return Options(mss=1460, wscale=7, sack_ok=True, timestamps=self.timestamps)


@dataclass(frozen=True)
class Tcp:
    """A TCP frame before it is rendered."""

    connection: Connection
    side: int
    epoch: int
    start: int
    payload: bytes
    ack: int
    flags: int = wire.ACK
    noise: Noise = wire.QUIET
    own_numbers: bool = False
    phase: int = 0
    sack: tuple[tuple[int, int], ...] = ()

    @property
    def end(self) -> int:
        return self.start + len(self.payload)

    def with_payload(self, payload: bytes) -> Tcp:
        return replace(self, payload=payload)

    def cut_with_fin(self, offset: int) -> Tcp:
        """As if the stream ended at `offset`."""
        if self.flags & wire.SYN:
            return self
        start = min(self.start, offset)
        return replace(self, start=start, payload=self.payload[: offset - start], flags=self.flags | wire.FIN)

    def render(self) -> bytes:
        c = self.connection
        isn = c.isn[self.side] if self.own_numbers or self.flags & wire.SYN else c.isn[PRIMARY]
        seq = isn if self.flags & wire.SYN else isn + 1 + self.start
        options = c.options() if self.flags & wire.SYN else Options(timestamps=c.timestamps, sack=self.sack)
        ack = c.client_isn + 1 + self.ack if self.flags & wire.ACK else 0
        return wire.tcp(c.path, seq, ack, self.flags, self.payload, options, self.noise)


@dataclass(frozen=True)
class Raw:
    """Any other frame."""

    path: Path | None
    side: int
    epoch: int
    frame: bytes
    phase: int = 0

    def render(self) -> bytes:
        return self.frame


Sent = Tcp | Raw


@dataclass(repr=False)
class Conversation:
    """A schedule before its frames are rendered, so that a test can alter some."""

    steps: list[Step | tuple[int, list[Sent], int]]  # (side, frames, now) is a Feed
    connections: list[Connection]
    keep_gap: bool
    now: int
    last_epoch: int

    def __repr__(self) -> str:
        return f"Conversation(keep_gap={self.keep_gap})\n{describe(self.schedule())}\n"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """How hypothesis shows it."""
        printer.text(repr(self))

    def frames(self) -> list[Sent]:
        return [frame for step in self.steps if isinstance(step, tuple) for frame in step[1]]

    def alter(self, change: Callable[[Sent], Sent | None]) -> Conversation:
        """Replaces each frame by change(frame), None: leaves it out."""
        steps: list[Step | tuple[int, list[Sent], int]] = []
        for step in self.steps:
            if isinstance(step, tuple):
                changed = [new for frame in step[1] if (new := change(frame)) is not None]
                steps.append((step[0], changed, step[2]))
            else:
                steps.append(step)
        return replace(self, steps=steps)

    def schedule(self) -> list[Step]:
        return [
            Feed(step[0], tuple(frame.render() for frame in step[1]), step[2]) if isinstance(step, tuple) else step
            for step in self.steps
        ]


# ------------------------------------------------------------------ one side of one connection in one epoch


def make_noise(dice: Dice, side: int, clock: int) -> Noise:
    return Noise(
        ip_id=dice.pick(0, 0xFFFF),
        ttl=64 - side,
        tos=dice.choose((0, 2, 0x10)),
        window=dice.pick(0, 0xFFFF),
        tsval=(0xFFFFFFF0 if side else 1000) + clock,
        tsecr=clock,
    )


def cut(dice: Dice, low: int, high: int, largest: int) -> list[tuple[int, int]]:
    """Cuts [low, high) into segments."""
    points = [low]
    while points[-1] < high:
        points.append(min(high, points[-1] + dice.pick(1, largest)))
    return list(pairwise(points))


def speak(
    dice: Dice,
    c: Connection,
    side: int,
    epoch: int,
    span: tuple[int, int],
    acks: tuple[int, int],
    last: bool,
    phase: int,
) -> list[Sent]:
    """One side sends the stream's span and lets its ACK grow from acks[0] to acks[1]."""
    own = side == SECONDARY and not c.rewritten
    out: list[Sent] = []
    ack, sent = acks[0], span[0]

    def add(start: int, end: int, flags: int = wire.ACK) -> None:
        sack = ((c.client_isn + 1 + ack + 10, c.client_isn + 1 + ack + 20),) if dice.chance(12) else ()
        noise = make_noise(dice, side, len(out))
        out.append(Tcp(c, side, epoch, start, c.stream[start:end], ack, flags, noise, own, phase, sack))

    for start, end in cut(dice, *span, dice.choose((8, 40, 100, 1448))):
        if not dice.chance(3):
            ack = dice.pick(ack, acks[1])
        add(start, end, wire.ACK | (wire.PSH if dice.chance(2) else 0))
        sent = end
        extra = dice.pick(0, 15)
        if extra == 1:
            low = dice.pick(max(0, sent - 60), sent - 1)
            add(low, dice.pick(low + 1, sent))  # a retransmission, cut anew
        elif extra == 2:
            out.append(out[-1])  # the same frame again
        elif extra == 3:
            add(sent, sent)  # a pure ACK
        elif extra == 4:
            add(sent - 1, sent - 1)  # a keep-alive, or Linux' zero-window probe
    if ack != acks[1] or not out:
        ack = acks[1]
        add(sent, sent)
    if last and c.ending == "FIN":
        tail = dice.pick(0, min(5, sent - span[0]))
        add(sent - tail, sent, wire.ACK | wire.FIN)
    first = 0 if c.opened else 1  # in mid-stream the first frame tells where the stream begins
    out = out[:first] + dice.swap_neighbours(out[first:], 8)
    if last and c.ending == "RST":
        add(sent, sent, wire.ACK | wire.RST)
    return out


def greet(dice: Dice, c: Connection, side: int, epoch: int, phase: int) -> list[Sent]:
    flags = wire.SYN if c.active else wire.SYN | wire.ACK
    syn = Tcp(c, side, epoch, 0, b"", 0, flags, make_noise(dice, side, 0), phase=phase)
    return [syn, syn] if dice.chance(8) else [syn]


# ------------------------------------------------------------------ the whole


def make_path(dice: Dice, index: int) -> Path:
    family = dice.choose((4, 4, 6))
    vlans = dice.choose(((), (), (7,), (7, 9)))
    pad = dice.chance(3)
    if family == 6:
        extensions = dice.choose(((), (), (0,), (0, 60)))
        return Path.v6(2 + index % 3, sport=80, dport=40000 + index, vlans=vlans, extensions=extensions, pad=pad)
    return Path(client=bytes([10, 0, 0, 2 + index % 3]), sport=80, dport=40000 + index, vlans=vlans, pad=pad)


def make_connection(dice: Dice, path: Path, index: int, opened: bool) -> Connection:
    isn = (dice.choose(EDGES) + dice.pick(-30, 30)) % 2**32
    apart = dice.choose((0, 2**29, 2**31 - 2**28, 2**31 + 2**28))
    return Connection(
        path=path,
        isn=(isn, (isn + apart) % 2**32),
        client_isn=(dice.choose(EDGES) + dice.pick(-30, 30)) % 2**32,
        stream=text(index, dice.choose((0, 1, 30, 200, 600))),
        opened=opened,
        active=dice.chance(5),
        ending=dice.choose(("", "FIN", "FIN", "RST")),
        timestamps=dice.chance(2),
        rewritten=dice.chance(2) or not opened,
    )


@dataclass
class _Talk:
    """A connection, and how far the primary is when each of its epochs ends."""

    connection: Connection
    first: int
    ends: list[int]
    acks: list[int]

    def pieces(self, dice: Dice, side: int, epoch: int, phase: int) -> list[Sent]:
        index = epoch - self.first
        if not 0 <= index < len(self.ends):
            return []
        c, last = self.connection, index == len(self.ends) - 1
        start, ack = (self.ends[index - 1], self.acks[index - 1]) if index else (0, 0)
        end, high = self.ends[index], self.acks[index]
        if side == SECONDARY and not last:  # behind or ahead
            end = dice.pick(start, len(c.stream))
            high = dice.pick(ack, self.acks[-1])
        if index:  # a checkpoint made the secondary a copy of the primary, numbers included
            c = replace(c, isn=(c.isn[PRIMARY], c.isn[PRIMARY]))
        out = greet(dice, c, side, epoch, phase) if c.opened and index == 0 else []
        return out + speak(dice, c, side, epoch, (start, end), (ack, high), last, phase + 1)


def _make_talk(dice: Dice, path: Path, index: int, epoch: int, epochs: int, opened: bool) -> _Talk:
    c = make_connection(dice, path, index, opened)
    count = dice.pick(1, epochs - epoch)
    ends = sorted(dice.pick(0, len(c.stream)) for _ in range(count - 1))
    acks = sorted(dice.pick(0, 300) for _ in range(count))
    return _Talk(c, epoch, [*ends, len(c.stream)], acks)


def cut_frame(dice: Dice, frame: bytes, ident: int) -> list[bytes]:
    """An IP frame as fragments. Now and then neighbours overlap, with the same bytes (IPv4)."""
    is_ipv4 = frame[12:14] == b"\x08\x00"
    length = len(frame) - (34 if is_ipv4 else 54)
    points = [0, *(p for p in dice.choose(((8,), (16,), (8, 16))) if p < length), length]
    overlap = 8 if is_ipv4 and len(points) == 3 and dice.chance(3) else 0  # none may become superfluous
    return [
        wire.fragment(frame, low, high + (overlap if high + overlap < length else 0), high < length, ident)
        for low, high in pairwise(points)
    ]


def datagrams(dice: Dice, index: int, side: int, epoch: int, count: int) -> list[Sent]:
    path = replace(make_path(Dice(lambda low, _: low), index), family=4, vm=bytes([10, 0, 0, 1]), dport=50000 + index)
    kind = index % 4
    out: list[Sent] = []
    for number in range(count):
        noise = make_noise(dice, side, number)
        body = text(index + epoch + number // 2, 20)  # each body twice
        if kind == 0:
            frame = wire.udp(path, body, noise)
        elif kind == 1:
            frame = wire.echo_reply(path, 77, number // 2, noise=noise)
        elif kind == 2:
            frame = wire.echo_reply(Path.v6(9), 78, number // 2, noise=noise)
        else:
            frame = wire.ip(path, wire.GRE, body, noise)
        pieces = [frame]
        if dice.chance(4):
            pieces = cut_frame(dice, frame, 1000 * epoch + 100 * index + 2 * number + side)
        out += [Raw(path, side, epoch, piece) for piece in pieces]
    return dice.swap_neighbours(out, 3)


def _merge(dice: Dice, lists: list[tuple[list[Sent], list[Sent]]]) -> list[Sent]:
    """Interleaves both sides of all flows. A flow's next phase begins when both sides have ended the one before."""
    out: list[Sent] = []
    waiting = [(list(ours), list(theirs)) for ours, theirs in lists]
    while True:
        ready = []
        for pair in waiting:
            phase = min((frames[0].phase for frames in pair if frames), default=-1)
            ready += [frames for frames in pair if frames and frames[0].phase == phase]
        if not ready:
            return out
        frames = dice.choose(ready)
        phase = frames[0].phase
        for _ in range(dice.pick(1, 4)):
            if frames and frames[0].phase == phase:
                out.append(frames.pop(0))


def make_conversation(dice: Dice, flows: int = 3, epochs: int = 3) -> Conversation:
    keep_gap = dice.chance(3)
    epochs = dice.pick(1, epochs)
    talks: list[list[_Talk]] = []
    for index in range(dice.pick(1, flows)):
        path = make_path(dice, index)
        first = dice.pick(0, epochs - 1)
        talk = _make_talk(dice, path, index, first, epochs, opened=not dice.chance(4))
        talks.append([talk])
        after = first + len(talk.ends) - 1
        if talk.connection.ending and dice.chance(3):  # the ports are used again
            again = _make_talk(dice, path, index + 50, after, epochs, opened=True)
            if again.connection.isn[PRIMARY] != talk.connection.isn[PRIMARY]:
                talks[-1].append(again)
    conversation = Conversation([Stop(0), Commit(1, 2)], [t.connection for ts in talks for t in ts], keep_gap, 10,
                                epochs - 1)  # fmt: skip
    bags = [dice.pick(0, 6) for _ in range(dice.pick(0, 4))]
    merged = []
    for epoch in range(epochs):
        lists = []
        for flow in talks:
            pair: tuple[list[Sent], list[Sent]] = ([], [])
            for number, talk in enumerate(flow):
                for side in (PRIMARY, SECONDARY):
                    pair[side].extend(talk.pieces(dice, side, epoch, 2 * number))
            lists.append(pair)
        for index, count in enumerate(bags):
            ours, theirs = (datagrams(dice, index, side, epoch, count) for side in (PRIMARY, SECONDARY))
            lists.append((ours, theirs))
        for side in (PRIMARY, SECONDARY):
            passed: list[Sent] = [
                Raw(None, side, epoch, dice.choose(tuple(wire.PASS_FRAMES.values()))()) for _ in range(dice.pick(0, 2))
            ]
            lists.append((passed, []) if side == PRIMARY else ([], passed))
        merged.append(_merge(dice, lists))
    for epoch in range(epochs):
        if epoch + 1 < epochs:
            tail = dice.pick(0, min(6, len(merged[epoch])))
            _feed(dice, conversation, merged[epoch][: len(merged[epoch]) - tail])
            _checkpoint(dice, conversation, merged[epoch][len(merged[epoch]) - tail :], merged[epoch + 1])
        else:
            _feed(dice, conversation, merged[epoch])
    return conversation


def _checkpoint(dice: Dice, out: Conversation, tail: list[Sent], following: list[Sent]) -> None:
    """STOP, what was in flight, RESUME, the first frames of the new epoch (taken from `following`), commit.

    Old frames of the secondary are lost or come late; with keep_gap, where that may not be, it resumes early.
    """
    if dice.chance(4):  # the first attempt fails
        _feed(dice, out, tail[:2])
        del tail[:2]
        out.steps.append(Stop(out.now + 1))
        _feed(dice, out, tail[:2])
        del tail[:2]
        out.steps.append(Abort(out.now + 1))
    out.now += 2
    out.steps.append(Stop(out.now))
    if out.keep_gap:
        _feed(dice, out, [frame for frame in tail if frame.side == PRIMARY])
        early = 0
        while early < min(4, len(following)) and following[early].side == SECONDARY:
            early += 1
        _feed(dice, out, following[:early])
        del following[:early]
    else:
        late = [frame for frame in tail if frame.side == PRIMARY or dice.chance(2)]
        lost = [frame for frame in following[:4] if frame.side == SECONDARY and dice.chance(4)]  # and sent again
        _feed(dice, out, [*late, *lost])
    out.now += 1
    resumed = out.now
    count = dice.pick(0, min(4, len(following)))
    _feed(dice, out, following[:count])
    del following[:count]
    out.now += 1
    out.steps.append(Commit(resumed, out.now))


def _feed(dice: Dice, out: Conversation, frames: list[Sent]) -> None:
    """Feeds frames in batches of one side."""
    batch: list[Sent] = []
    for frame in [*frames, None]:
        if batch and (frame is None or frame.side != batch[0].side or dice.chance(4)):
            out.now += dice.pick(1, 1000)
            out.steps.append((batch[0].side, batch, out.now))
            batch = []
        if frame is not None:
            batch = [*batch, frame]


def _feed_gap(dice: Dice, out: Conversation, tail: list[Sent]) -> None:
    """STOP, what was in flight, RESUME, commit. Old frames of the secondary are lost or, unless keep_gap, come late."""
    out.now += 1
    out.steps.append(Stop(out.now))
    _feed(dice, out, [f for f in tail if f.side == PRIMARY or (not out.keep_gap and dice.chance(2))])
    out.now += 1
    resumed = out.now
    out.now += dice.pick(0, 5)
    out.steps.append(Commit(resumed, out.now))


def end_alone(conversation: Conversation) -> Conversation:
    return replace(conversation, steps=[*conversation.steps, Alone(conversation.now + 1)])
