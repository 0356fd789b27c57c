# SPDX-License-Identifier: Apache-2.0
"""Failover after failover: whatever the VMs' own numbers are, the client sees one TCP connection.

A chain is a world of VMs with numbers and clocks of their own, and of rewriters around them: the primary's for what it
has inherited, the secondary's for that and for what is new. Connections are opened, used, closed and their ports used
again at random; checkpoints make the secondary a copy; the primary dies at random, the survivor goes on alone, and then
with a new secondary. Every frame that comes out of a rewriter is compared byte for byte with what it must be.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import wire
from conversation import Dice, text
from hypothesis import given
from model.rewriter import MS, Flow, Key, Model, Segment, diff, open_frame
from strategies import dice, profile, seeded, seeds
from test_rewriter import Core, Target, any_number, turned
from wire import ACK, FIN, RST, SYN, Noise, Options, Path

M32 = 2**32
APART = 1 << 26
"""Initial numbers on the same ports are that far apart: else an old copy of the table can't be told from a true one."""


@dataclass
class Own:
    """What one VM has of a connection. tsval: of the moment 0 of its clock."""

    isn: int
    ts: int
    scale: int


@dataclass
class Vm:
    """lag: ns that its clock has stood still. said: the last TSval of each connection that its rewriter has seen."""

    own: dict[int, Own] = field(default_factory=dict)
    lag: int = 0
    said: dict[int, int] = field(default_factory=dict)

    def tsval(self, number: int, now: int) -> int:
        return (self.own[number].ts + (now - self.lag) // MS) % M32

    def becomes(self, other: Vm) -> None:
        """Its rewriter keeps what it knows."""
        mine, self.own, self.lag = self.own, copy.deepcopy(other.own), other.lag
        self.said = {number: said for number, said in self.said.items() if mine[number] == self.own.get(number)}


@dataclass
class Side:
    """A VM and what stands before it. doubtful: connections, by number, that an old copy of the table may hide
    another one behind, and who has spoken on them since."""

    vm: Vm
    rewriter: Target | None = None
    doubtful: dict[int, set[str]] = field(default_factory=dict)

    def output(self, frame: bytes, now: int) -> bytes:
        return frame if self.rewriter is None else self.rewriter.output(frame, now)[1]

    def input(self, frame: bytes, now: int) -> bytes:
        return frame if self.rewriter is None else self.rewriter.input(frame, now)[1]


@dataclass
class Conn:
    """As the client knows it. Offsets count from the SYN. p: the VM's initial number, as the client has it."""

    number: int
    path: Path
    p: int
    c: int
    scale: int
    timestamps: bool
    sent: int = 1
    received: int = 1
    tsval: int | None = None  # the last that the client got ...
    tsval_at: int = 0


def segment(frame: bytes) -> Segment:
    at = open_frame(frame, 0)
    assert at is not None
    return Segment(at.l4, at.end, at.src, at.dst, at.vlans, frame, at.end)


class World:
    """`run` is one chain. AssertionError: a frame came out wrong."""

    def __init__(self, dice: Dice, make: Callable[[], Target]) -> None:
        self.dice = dice
        self.make = make
        self.now = dice.pick(0, 1000) * MS
        self.primary = Side(Vm())
        self.secondary: Side | None = None
        self.in_step = False  # the secondary is a copy, and heard
        self.conns: dict[int, Conn] = {}  # by port
        self.count = 0
        self.used: dict[int, list[int]] = {}  # initial numbers of the VMs, by port
        self.saved: tuple[object, int] | None = None  # the table at the takeover, and when
        self.counts = [0, 0]  # connections there had been at the last takeover, and when the pair began
        self.path = Path.v6() if dice.chance(2) else Path(vlans=dice.choose(((), (7,))))

    # -------------------------------------------------------------- frames

    def from_vm(self, side: Side, conn: Conn, flags: int, at: int, payload: bytes = b"", window: int = 500) -> bytes:
        own = side.vm.own[conn.number]
        tsval = side.vm.tsval(conn.number, self.now)
        side.vm.said[conn.number] = tsval
        wscale = own.scale if flags & SYN else None
        options = Options(wscale=wscale, timestamps=conn.timestamps and not flags & RST)
        return wire.tcp(conn.path, own.isn + at, conn.c + conn.received if flags & ACK else 0, flags, payload, options,
                        Noise(window=window, tsval=tsval, tsecr=5 if flags & ACK else 0))  # fmt: skip

    def as_client(self, side: Side, conn: Conn, frame: bytes) -> bytes:
        """What must become of it; its TSval is any."""
        out = self.translated(side, conn, frame)
        seg, got = segment(frame), segment(out)
        own = side.vm.own[conn.number]
        window = seg.window if seg.flags & SYN else min(seg.window << own.scale >> conn.scale, 65535)
        options = Options(wscale=seg.wscale, timestamps=seg.tsval is not None)
        noise = Noise(window=window, tsval=got.tsval or 0, tsecr=seg.tsecr if options.timestamps else 0)
        want = wire.tcp(
            conn.path,
            seg.seq - own.isn + conn.p,
            seg.ack,
            seg.flags,
            frame[seg.at + seg.header : seg.end],
            options,
            noise,
        )
        if self.forgiven(side, conn, "reset" if seg.flags & RST else "VM") and out != want:
            return b""
        assert out == want, f"port {conn.path.dport}: out\n{frame.hex()}\n{out.hex()}, and not\n{want.hex()}"
        return out

    def translated(self, side: Side, conn: Conn, frame: bytes) -> bytes:
        return side.output(frame, self.now)

    def forgiven(self, side: Side, conn: Conn, who: str) -> bool:
        """Of a doubtful connection what one side says may be lost, until the other one has spoken too.

        A reset tells nothing of the VM's numbers. One that is lost comes again when the client sends again.
        """
        spoken = side.doubtful.get(conn.number, {"VM", "client"})
        if who == "reset":
            return len(spoken) < 2
        spoken.add(who)
        return len(spoken) == 1

    def to_client(self, conn: Conn, frame: bytes) -> None:
        """PAWS: no TSval runs backwards."""
        tsval = segment(frame).tsval
        if tsval is None:
            return
        assert conn.tsval is None or diff(tsval, conn.tsval) >= 0, f"port {conn.path.dport}: TSval runs backwards"
        conn.tsval, conn.tsval_at = tsval, self.now

    def to_vm(
        self, side: Side, conn: Conn, flags: int, payload: bytes = b"", sack: tuple[int, int] | None = None
    ) -> bool:
        """A segment of the client's for one VM; False: it went wrong, and might."""
        own = side.vm.own[conn.number]

        def make(base: int, tsecr: int) -> bytes:
            blocks = ((base + sack[0], base + sack[1]),) if sack else ()
            return wire.tcp(turned(conn.path), conn.c + conn.received, base + conn.sent, flags, payload,
                            Options(timestamps=conn.timestamps, sack=blocks),
                            Noise(tsval=77, tsecr=tsecr))  # fmt: skip

        got = side.input(make(conn.p, conn.tsval or 0), self.now)
        tsecr = segment(got).tsecr if conn.timestamps else 0
        want = make(own.isn, tsecr)
        if self.forgiven(side, conn, "client") and got != want:
            return False
        assert got == want, f"port {conn.path.dport}: in\n{got.hex()}, and not\n{want.hex()}"
        if conn.timestamps and conn.number in side.vm.said:
            age = diff(side.vm.said[conn.number], tsecr)
            since = (self.now - conn.tsval_at) // MS
            assert age >= 0, "TSecr is of the future"
            assert age <= since + 60_000, f"TSecr is {age} ms old, {since} ms after it was heard"
        return True

    def sides(self) -> list[Side]:
        """Those that speak and are heard. The primary's is released when the secondary has said the same."""
        return [self.secondary, self.primary] if self.secondary is not None and self.in_step else [self.primary]

    # -------------------------------------------------------------- acts

    def say(self, conn: Conn, payload: bytes | None = None, flags: int = ACK) -> bool:
        payload = text(conn.sent, self.dice.choose((0, 1, 40))) if payload is None else payload
        window = self.dice.choose((0, 1, 500, 65535))
        done = True
        for side in self.sides():
            out = self.as_client(side, conn, self.from_vm(side, conn, flags, conn.sent, payload, window))
            if side is self.primary and out:
                self.to_client(conn, out)
            done &= bool(out)
        if done:
            conn.sent += len(payload) + bool(flags & FIN)
        return done

    def hear(self, conn: Conn, payload: bytes | None = None, flags: int = ACK) -> bool:
        payload = text(conn.received, self.dice.choose((0, 1, 40))) if payload is None else payload
        sack = (conn.sent + 10, conn.sent + 20) if self.dice.chance(4) and not flags & FIN else None
        done = True
        for side in self.sides():
            done &= self.to_vm(side, conn, flags, payload, sack)
        if done:
            conn.received += len(payload) + bool(flags & FIN)
        return done

    def isn(self, port: int) -> int:
        while True:
            number = any_number(self.dice)
            others = self.used.setdefault(port, [])
            if all(abs(diff(number, other)) > APART for other in others):
                others.append(number)
                return number

    def open(self) -> None:
        port = 40000 + self.dice.pick(0, 3)
        if port in self.conns:
            return
        self.count += 1
        active, timestamps = self.dice.chance(3), self.dice.chance(2)
        scales = self.dice.choose(((7, 7), (2, 9), (14, 0)))
        conn = Conn(
            self.count, replace(self.path, dport=port), self.isn(port), any_number(self.dice), scales[0], timestamps
        )
        self.primary.vm.own[conn.number] = Own(conn.p, any_number(self.dice), scales[0])
        if self.secondary is not None and self.in_step:
            self.secondary.vm.own[conn.number] = Own(self.isn(port), any_number(self.dice), scales[1])
        self.conns[port] = conn
        conn.received = 0 if active else 1
        flags = SYN if active else SYN | ACK
        if not active:
            self.syn_of_client(conn)
        copied = self.open_by_both(conn, flags)
        out = self.primary.output(self.from_vm(self.primary, conn, flags, 0), self.now)
        assert segment(out).seq == conn.p, "a new connection's SYN has the primary's own number"
        if self.secondary is not None and self.secondary.rewriter is not None and (self.in_step or copied):
            self.secondary.rewriter.learn(out, self.now)
        self.to_client(conn, out)
        if active:
            self.syn_ack_of_client(conn)
        self.hear(conn)

    def open_by_both(self, conn: Conn, flags: int) -> bool:
        """The secondary's SYN, which is there before the primary's is released; or a checkpoint that stands for it."""
        if self.secondary is None or not self.in_step:
            return False
        if self.dice.chance(4):
            self.primary.output(self.from_vm(self.primary, conn, flags, 0), self.now)  # held
            self.checkpoint()
            return True
        self.secondary.output(self.from_vm(self.secondary, conn, flags, 0), self.now)
        return False

    def syn_of_client(self, conn: Conn) -> None:
        frame = wire.tcp(turned(conn.path), conn.c, 0, SYN, b"", Options(wscale=3, timestamps=conn.timestamps))
        for side in self.sides():
            assert side.input(frame, self.now) == frame

    def syn_ack_of_client(self, conn: Conn) -> None:
        for side in self.sides():
            own = side.vm.own[conn.number]

            def make(base: int, tsecr: int, conn: Conn = conn) -> bytes:
                return wire.tcp(turned(conn.path), conn.c, base + 1, SYN | ACK, b"",
                                Options(wscale=3, timestamps=conn.timestamps),
                                Noise(tsval=77, tsecr=tsecr))  # fmt: skip

            got = side.input(make(conn.p, conn.tsval or 0), self.now)
            assert got == make(own.isn, segment(got).tsecr if conn.timestamps else 0), "the SYN-ACK for the VM"
        conn.received = 1

    def close(self, conn: Conn) -> None:
        way = self.dice.pick(0, 2)
        if way == 0:
            self.say(conn, b"", RST | ACK)
        elif way == 1:
            if not (self.say(conn, b"", FIN | ACK) and self.hear(conn, b"", FIN | ACK) and self.say(conn, b"")):
                return
        elif not (self.hear(conn, b"", FIN | ACK) and self.say(conn, b"", FIN | ACK) and self.hear(conn, b"")):
            return
        del self.conns[conn.path.dport]

    def checkpoint(self) -> None:
        if self.secondary is None:
            return
        stood = self.dice.choose((0, 3, 40)) * MS
        self.now += stood
        self.primary.vm.lag += stood
        self.secondary.vm.becomes(self.primary.vm)
        assert self.secondary.rewriter is not None
        self.secondary.rewriter.mark()
        self.in_step = True

    # -------------------------------------------------------------- failovers

    def pair_up(self) -> None:
        """A new secondary, which hears of what is inherited before all else."""
        table = self.table()
        if table is not None:
            heir = self.make()
            heir.takeover(self.now)
            heir.inherit(table, self.now)
            self.primary.rewriter = heir
            self.primary.vm.said.clear()
        rewriter = self.make()
        if table is not None:
            rewriter.inherit(table, self.now)
        self.secondary = Side(Vm(), rewriter, {number: set() for number in self.primary.doubtful})
        self.in_step = False
        self.counts[1] = self.count

    def table(self) -> object:
        return None if self.primary.rewriter is None else self.primary.rewriter.export(self.now)

    def fail_over(self) -> None:
        assert self.secondary is not None and self.secondary.rewriter is not None
        self.secondary.rewriter.takeover(self.now)
        self.primary, self.secondary, self.in_step = self.secondary, None, False
        self.saved = self.table(), self.now
        self.counts[0] = self.count

    def restart(self) -> None:
        """coloproxy is killed, and goes on with the copy that was written at the takeover."""
        assert self.saved is not None
        table, at = self.saved
        self.primary.rewriter = self.make()
        self.primary.vm.said.clear()
        self.primary.rewriter.takeover(self.now)
        self.primary.rewriter.inherit(table, at)
        self.primary.doubtful = {conn.number: set() for conn in self.conns.values() if conn.number > self.counts[0]}

    def run(self) -> None:
        for _ in range(self.dice.pick(1, 4)):
            self.pair_up()
            self.acts(self.dice.pick(0, 6))
            # What the primary said of new connections before there was a copy, the secondary did not hear.
            self.secondary_doubts()
            self.checkpoint()
            self.acts(self.dice.pick(0, 25))
            self.fail_over()
            self.acts(self.dice.pick(0, 12))
            if self.dice.chance(3):
                self.restart()
                self.acts(self.dice.pick(0, 12))
        for conn in list(self.conns.values()):
            for _ in range(4):
                self.say(conn)
                self.hear(conn)
            assert self.say(conn), "it has not come right"
            assert self.hear(conn), "it has not come right"

    def secondary_doubts(self) -> None:
        assert self.secondary is not None
        for conn in self.conns.values():
            if conn.number > self.counts[1]:
                self.secondary.doubtful[conn.number] = set()

    def acts(self, count: int) -> None:
        for _ in range(count):
            self.now += self.dice.choose((0, 1, 40, 1500, 70_000)) * MS
            act = self.dice.pick(0, 9)
            conn = self.dice.choose(list(self.conns.values())) if self.conns else None
            if conn is None or act == 0:
                self.open()
            elif act == 1 and self.secondary is not None and self.in_step:
                self.checkpoint()
            elif act == 2:
                self.close(conn)
            elif act < 6:
                self.say(conn)
            else:
                self.hear(conn)


def live(dice: Dice, make: Callable[[], Target]) -> None:
    World(dice, make).run()


@pytest.mark.parametrize("make", [Core, Model])
def test_chains(make: Callable[[], Target]) -> None:
    for seed in seeds(400):
        try:
            live(seeded(seed), make)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@profile(100)
@given(dice())
def test_chains_of_hypothesis(dice: Dice) -> None:
    live(dice, Core)


# ------------------------------------------------------------------ the chains can tell


class MarksForgetAll(Model):
    """A checkpoint resets all numbers to the secondary's own."""

    def mark(self) -> None:
        super().mark()
        self.inherited.clear()


class HandsOnTheNew(Model):
    """What was inherited is not handed on once more."""

    def is_wanted(self, flow: Flow) -> bool:
        return super().is_wanted(flow) and not flow.inherited


class HandsOnTheOld(Model):
    """What was learnt since the last pairing is not handed on."""

    def is_wanted(self, flow: Flow) -> bool:
        return super().is_wanted(flow) and (flow.inherited or not self.inherited)


class HandsOnTheClosed(Model):
    """Closed connections are handed on as open ones: their ports may be taken again."""

    def is_wanted(self, flow: Flow) -> bool:
        return flow.shift is not None


class BelievesOldCopies(Model):
    """What the table says of a connection is right for ever."""

    def is_belied(self, flow: Flow, seg: Segment, by_vm: bool) -> bool:
        return False


class KeepsTheVoid(Model):
    """A new connection of the primary's leaves the inherited one on its ports."""

    def voids(self, flow: Flow, seg: Segment) -> bool:
        return False


class BornToday(Model):
    """Ages are not handed on: the TSval that the client has is taken for a new one."""

    def handed_on(self, flow: Flow, then: int, now: int) -> Flow:
        return replace(super().handed_on(flow, then, now), p_ts_at=then)


class ForgetsTheFloor(Model):
    """Of timestamps only the shift is handed on."""

    def handed_on(self, flow: Flow, then: int, now: int) -> Flow:
        return replace(super().handed_on(flow, then, now), p_ts=0)


class ForgetsScales(Model):
    """Of windows nothing is handed on."""

    def handed_on(self, flow: Flow, then: int, now: int) -> Flow:
        return replace(super().handed_on(flow, then, now), p_scale=flow.s_scale)


class EchoesNothing(Model):
    """TSecr is bounded by what the VM has not said yet."""

    def bounded(self, flow: Flow) -> bool:
        return True


class NewOnesOverTheOld(Model):
    """The secondary's own new connection ends the inherited one before the primary has opened it too."""

    def secondary_opens(self, key: Key, flow: Flow | None, seg: Segment, now: int) -> Flow | None:
        if flow is not None and flow.inherited and self.opens_anew(flow.s, seg):
            self.inherited.pop(key)
            flow = None
        return super().secondary_opens(key, flow, seg, now)


MUTANTS = [
    MarksForgetAll, HandsOnTheNew, HandsOnTheOld, HandsOnTheClosed, BelievesOldCopies, KeepsTheVoid, BornToday,
    ForgetsTheFloor, ForgetsScales, EchoesNothing, NewOnesOverTheOld,
]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_every_mutant_is_caught(mutant: Callable[[], Target]) -> None:
    for seed in range(1500):
        try:
            live(seeded(seed), mutant)
        except AssertionError:
            return
    pytest.fail(f"1,500 chains say nothing against it: {mutant.__doc__}")
