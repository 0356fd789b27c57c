# SPDX-License-Identifier: Apache-2.0
"""The rewriter against what it is for, against a model, and against garbage.

A story is a client that talks with two VMs whose streams are equal and whose numbers and clocks are not. What the
secondary VM sends must come out byte for byte as the primary would have sent it, and what the client sends must come
out as if it had talked with the secondary alone. The frames are built with whole checksums, so these are checked too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import pytest
import wire
from conversation import Dice, text
from hypothesis import given
from hypothesis import strategies as st
from model.rewriter import DONE, DROP, MS, NONE, Flow, Model, Segment, Syn, diff
from strategies import dice, profile, seeded, seeds
from wire import ACK, FIN, PSH, RST, SYN, Noise, Options, Path

from coloproxy import errors
from coloproxy.path.rewriter import Rewrite, Rewriter

M32 = 2**32
EDGES = (0, 1, 2**31 - 1, 2**31, 2**31 + 1, M32 - 1, M32 - 2)


class Target(Protocol):
    """What the core and the model have in common."""

    def learn(self, data: bytes, now: int, vnet_len: int = 0, nic: int = 0) -> None: ...
    def output(self, data: bytes, now: int, vnet_len: int = 0, nic: int = 0) -> tuple[int, bytes]: ...
    def input(self, data: bytes, now: int, vnet_len: int = 0, nic: int = 0) -> tuple[int, bytes]: ...
    def mark(self) -> None: ...
    def takeover(self, now: int) -> None: ...
    def export(self, now: int) -> Any: ...
    def inherit(self, table: Any, then: int) -> None: ...


class Core:
    """The rewriter itself, with the model's methods."""

    def __init__(self) -> None:
        self.native = Rewriter(hash_seed=1)

    def learn(self, data: bytes, now: int, vnet_len: int = 0, nic: int = 0) -> None:
        self.native.learn(data, now=now, nic=nic, vnet_len=vnet_len)

    def output(self, data: bytes, now: int, vnet_len: int = 0, nic: int = 0) -> tuple[int, bytes]:
        out = self.native.output(data, now=now, nic=nic, vnet_len=vnet_len)
        return out.verdict.value, out.data

    def input(self, data: bytes, now: int, vnet_len: int = 0, nic: int = 0) -> tuple[int, bytes]:
        out = self.native.input(data, now=now, nic=nic, vnet_len=vnet_len)
        return out.verdict.value, out.data

    def mark(self) -> None:
        self.native.mark()

    def takeover(self, now: int) -> None:
        self.native.takeover(now=now)

    def export(self, now: int) -> bytes:
        return self.native.export(now=now)

    def inherit(self, table: bytes, then: int) -> None:
        self.native.inherit(table, then=then)


# ------------------------------------------------------------------ stories


def any_number(dice: Dice) -> int:
    if dice.chance(2):
        return (dice.choose(EDGES) + dice.pick(-40, 40)) % M32
    return dice.pick(0, M32 - 1)


def any_path(dice: Dice) -> Path:
    vlans = dice.choose(((), (7,), (100, 200)))
    if dice.chance(2):
        return Path.v6(vlans=vlans, extensions=dice.choose(((), (0,), (60, 43))))
    return Path(vlans=vlans)


def turned(path: Path) -> Path:
    return replace(path, vm=path.client, client=path.vm, sport=path.dport, dport=path.sport)


@dataclass
class Story:
    """One incarnation of a connection, and where it has come. Offsets count from the SYN, which is 0."""

    dice: Dice
    target: Target
    path: Path
    now: int
    last: bool  # nothing comes after it on these ports: the primary may die
    p: int = 0
    s: int = 0
    c: int = 0
    timestamps: bool = False
    active: bool = False
    p_scale: int = 7
    s_scale: int = 7
    sent: int = 1  # the VM's next offset
    received: int = 1
    p_syn_ts: int = 0
    s_syn_ts: int = 0
    s_syn_at: int = 0
    raised: int = 0
    checked: bool = False
    taken_over: bool = False
    echo: tuple[int, int] = (0, 0)  # the last TSval that left, in the primary's clock and the secondary's
    known: list[tuple[int, int]] = field(
        default_factory=list
    )  # the primary's TSvals that the client has, and since when

    # -------------------------------------------------------------- frames

    def vm(self, primary: bool, flags: int, at: int, ack: int = 0, payload: bytes = b"", tsval: int = 0,
           options: Options | None = None, window: int = 500) -> bytes:  # fmt: skip
        if primary and not flags & SYN:
            window = min(window << self.s_scale >> self.p_scale, 65535)
        return wire.tcp(self.path, (self.p if primary else self.s) + at, (self.c + ack) if flags & ACK else 0, flags,
                        payload, options or Options(timestamps=self.timestamps),
                        Noise(window=window, tsval=tsval, tsecr=5 if flags & ACK else 0))  # fmt: skip

    def client(self, primary: bool, flags: int, at: int, ack: int = 0, payload: bytes = b"", tsecr: int = 0,
               sack: tuple[tuple[int, int], ...] = ()) -> bytes:  # fmt: skip
        base = self.p if primary else self.s
        blocks = tuple((base + left, base + right) for left, right in sack)
        return wire.tcp(turned(self.path), self.c + at, base + ack if flags & ACK else 0, flags, payload,
                        Options(timestamps=self.timestamps, sack=blocks),
                        Noise(tsval=77, tsecr=tsecr if flags & ACK else 0))  # fmt: skip

    def syn(self, primary: bool, again: int = 0, notice: bool = False) -> bytes:
        """The scale is the primary's in its own frame, and after the takeover in the secondary's too."""
        wscale = self.p_scale if notice or (primary and self.taken_over) else self.s_scale
        options = Options(mss=1460, sack_ok=True, wscale=wscale, timestamps=self.timestamps)
        flags = SYN if self.active else SYN | ACK | self.dice.choose((0, 0x40))
        return self.vm(primary, flags, 0, 1, tsval=(self.p_syn_ts if primary else self.s_syn_ts) + again,
                       options=options)  # fmt: skip

    # -------------------------------------------------------------- what is checked

    def out(self, frame: bytes, wanted: bytes, verdict: int = DONE, partial: tuple[bytes, bytes] | None = None) -> None:
        if partial and self.dice.chance(4):
            self.out_partial(*partial)
        got = self.target.output(frame, self.now)
        assert got == (verdict, wanted), f"out: {got[0]}\n{frame.hex()}\n{got[1].hex()}, and not\n{wanted.hex()}"

    def out_partial(self, frame: bytes, wanted: bytes) -> None:
        """The device completes the checksum: the field holds the sum of the pseudo-header, before and after."""
        at = 14 + 4 * len(self.path.vlans) + (40 + 8 * len(self.path.extensions) if self.path.family == 6 else 20)
        vnet = self.dice.choose((10, 12))

        def offloaded(data: bytes) -> bytes:
            pseudo = wire.ones_sum(wire.pseudo_header(self.path, wire.TCP, len(data) - at))
            data = data[: at + 16] + pseudo.to_bytes(2) + data[at + 18 :]
            header = bytearray(wire.with_vnet(data, vnet, flags=wire.NEEDS_CSUM))
            header[6:10] = at.to_bytes(2, "little") + (16).to_bytes(2, "little")
            return bytes(header)

        got = self.target.output(offloaded(frame), self.now, vnet)
        assert got == (DONE, offloaded(wanted)), "out with a checksum that is not complete"

    def take(self, frame: bytes, wanted: bytes, verdict: int = DONE) -> None:
        got = self.target.input(frame, self.now)
        assert got == (verdict, wanted), f"in: {got[0]}\n{frame.hex()}\n{got[1].hex()}, and not\n{wanted.hex()}"

    # -------------------------------------------------------------- clocks

    def clocks(self) -> tuple[int, int]:
        """TSval of a segment sent now: as the primary would have it, and the secondary's."""
        since = (self.now - self.s_syn_at) // MS
        p, s = self.p_syn_ts + since + self.raised, self.s_syn_ts + since
        if self.timestamps and self.taken_over and not self.checked:
            value, at = self.known[-1]
            self.raised = max(0, value + (self.now - at) // MS + 200 - p)
            p += self.raised
            self.checked = True
        return p, s

    # -------------------------------------------------------------- acts

    def open(self, dies: bool) -> None:
        dice = self.dice
        if not self.active:
            frame = self.client(True, SYN, 0)
            self.take(frame, frame, NONE)
        p_at = self.now
        self.s_syn_at = p_at + dice.pick(0, 30) * MS
        acts = ["notice", "syn"] if dice.chance(2) else ["syn", "notice"]
        acts += dice.choose(([], ["syn"], ["notice"], ["notice", "syn"]))
        told = False
        for act in ["syn"] if dies else acts:
            self.now = self.s_syn_at if act == "syn" else max(self.now, p_at)
            if act == "notice":
                self.target.learn(self.syn(True, notice=True), self.now)
                if not told:
                    self.known.append((self.p_syn_ts, self.now))
                told = True
            else:
                frame, wanted = self.pair(self.syn)
                self.out(frame, wanted if told else frame, DONE if told else NONE)
        self.echo = (self.p_syn_ts, self.s_syn_ts)
        if dies:
            self.take_over()

    def pair(self, make: Callable[[bool], bytes]) -> tuple[bytes, bytes]:
        """The secondary's frame and the primary's, made with the same throws of the dice."""
        throws: list[int] = []
        real = self.dice

        def record(low: int, high: int) -> int:
            throws.append(real.pick(low, high))
            return throws[-1]

        self.dice = Dice(record)
        first = make(False)
        again = iter(throws)
        self.dice = Dice(lambda low, high: next(again))
        second = make(True)
        self.dice = real
        return first, second

    def answer(self) -> None:
        """The client's first segment: an ACK or data; of an active open the SYN-ACK."""
        dice = self.dice
        if self.active:
            flags, at, payload = SYN | ACK, 0, b""
        else:
            flags, at, payload = ACK, 1, text(1, dice.choose((0, 0, 9)))
        options = Options(wscale=3, timestamps=self.timestamps) if self.active else Options(timestamps=self.timestamps)
        frames = [
            wire.tcp(turned(self.path), self.c + at, base + 1, flags, payload, options, Noise(tsval=77, tsecr=ts))
            for base, ts in ((self.p, self.echo[0]), (self.s, self.echo[1]))
        ]
        self.take(*frames)
        if self.taken_over:
            self.known.append((self.echo[0], self.now))
        self.received += len(payload)

    def take_over(self) -> None:
        self.target.takeover(self.now)
        self.taken_over = True

    def vm_speaks(self) -> None:
        dice = self.dice
        payload = text(self.sent, dice.choose((0, 1, 30, 200)))
        flags = ACK | dice.choose((0, PSH, 0x40, 0x80))
        at = self.sent
        if dice.chance(5):
            at, payload = self.sent - 1, b""  # a keepalive
        p_ts, s_ts = self.clocks()
        window = dice.choose((0, 1, 500, 65535))
        frame = self.vm(False, flags, at, self.received, payload, s_ts, window=window)
        wanted = self.vm(True, flags, at, self.received, payload, p_ts, window=window)
        self.sent = max(self.sent, at + len(payload))
        self.echo = (p_ts, s_ts)
        if len(payload) == 200 and not self.path.extensions and dice.chance(2):
            self.fragments(frame, wanted)
        else:
            self.out(frame, wanted, partial=(frame, wanted))

    def fragments(self, frame: bytes, wanted: bytes) -> None:
        if self.dice.chance(2):  # the header is cut
            first = wire.fragments(frame, (self.dice.choose((8, 16)), 64))[0]
            self.out(first, first, DROP)
        first, *rest = wire.fragments(frame, (64, 128))
        self.out(first, wire.fragments(wanted, (64, 128))[0])
        for piece in rest:
            self.out(piece, piece, NONE)

    def client_speaks(self) -> None:
        dice = self.dice
        payload = text(self.received, dice.choose((0, 0, 1, 50)))
        sack = tuple((self.sent + n - 20, self.sent + n) for n in range(dice.choose((0, 0, 1, 3))))
        p_ts, s_ts = self.echo
        if self.timestamps and not self.taken_over and dice.chance(4):
            p_ts += dice.pick(1, 50)  # of a segment that the secondary has not sent yet
        frame = self.client(True, ACK | dice.choose((0, PSH)), self.received, self.sent, payload, p_ts, sack)
        wanted = self.client(False, frame_flags(frame, self.path), self.received, self.sent, payload, s_ts, sack)
        self.take(frame, wanted)
        if self.timestamps and not self.taken_over and diff(p_ts, self.known[-1][0]) > 0:
            self.known.append((p_ts, self.now))
        self.received += len(payload)

    def error(self) -> None:
        """A router complains of a segment of the VM's, or the VM of one of the client's."""
        by_client = self.dice.chance(2)
        cut = self.dice.choose((8, 12, 200))
        if by_client:
            frames = [self.client(p, ACK, self.received, self.sent, b"x", self.echo[0 if p else 1], ((3, 9),))
                      for p in (False, True)]  # fmt: skip
            outer = self.path
        else:
            frames = [self.vm(p, ACK, self.sent, self.received, b"x", self.echo[0 if p else 1], window=0)
                      for p in (True, False)]  # fmt: skip
            outer = replace(turned(self.path), vm=turned(self.path).vm[:-1] + b"\x77")
        kind = 3 if self.path.family == 4 else 1
        given, wanted = (self.quoting(outer, kind, frame, cut) for frame in frames)
        verdict = NONE if given == wanted else DONE
        if by_client:
            self.out(given, wanted, verdict)
        else:
            self.take(given, wanted, verdict)

    def quoting(self, outer: Path, kind: int, frame: bytes, cut: int) -> bytes:
        l3 = 14 + 4 * len(self.path.vlans)
        l4 = l3 + (40 + 8 * len(self.path.extensions) if self.path.family == 6 else 20)
        return wire.icmp(replace(outer, extensions=()), kind, 1, bytes(4) + frame[l3 : l4 + cut])

    def syn_again(self) -> None:
        if not self.active and self.sent == 1:
            p_ts, s_ts = self.clocks()
            again = s_ts - self.s_syn_ts
            assert p_ts - self.p_syn_ts == again + self.raised
            frame, wanted = self.pair(lambda p: self.syn(p, again + (self.raised if p else 0)))
            self.out(frame, wanted)
            self.echo = (p_ts, s_ts)

    def close(self) -> None:
        if self.dice.chance(2):
            frame, wanted = (self.vm(p, RST, self.sent, options=Options()) for p in (False, True))
            self.out(frame, wanted)
            return
        p_ts, s_ts = self.clocks()
        frame, wanted = (self.vm(p, FIN | ACK, self.sent, self.received, tsval=p_ts if p else s_ts)
                         for p in (False, True))  # fmt: skip
        self.out(frame, wanted)
        given, taken = (self.client(p, FIN | ACK, self.received, self.sent + 1, tsecr=p_ts if p else s_ts)
                        for p in (True, False))  # fmt: skip
        self.take(given, taken)
        frame, wanted = (self.vm(p, ACK, self.sent + 1, self.received + 1, tsval=p_ts if p else s_ts)
                         for p in (False, True))  # fmt: skip
        self.out(frame, wanted)
        self.echo = (p_ts, s_ts)
        if self.timestamps and not self.taken_over and diff(p_ts, self.known[-1][0]) > 0:
            self.known.append((p_ts, self.now))
        self.now += 59_999 * MS
        self.take(given, taken)  # for TIME-WAIT
        if self.taken_over:
            self.now += 60_000 * MS
            self.take(given, given, NONE)

    def after_mark(self, missed: bool) -> None:
        """The secondary is the primary's copy: what has the primary's numbers passes. A lost mark shows too."""
        if missed:
            if min(abs(diff(self.p, self.s)), abs(diff(self.s, self.p))) <= 2 << 24 or self.active:
                return
            self.client_speaks()
        else:
            self.target.mark()
        for frame in (self.vm(True, ACK, self.sent, self.received), self.vm(False, ACK, self.sent, self.received)):
            self.out(frame, frame, NONE)
        frame = self.client(True, ACK, self.received, self.sent)
        self.take(frame, frame, NONE)


def frame_flags(frame: bytes, path: Path) -> int:
    l4 = 14 + 4 * len(path.vlans) + (40 + 8 * len(path.extensions) if path.family == 6 else 20)
    return frame[l4 + 13]


def live(dice: Dice, make: Callable[[], Target]) -> None:
    """A few connections on the same ports, one after the other. AssertionError: some frame came out wrong."""
    target, path, now = make(), any_path(dice), dice.pick(0, 1000) * MS
    count, used = dice.pick(1, 3), set[int]()
    for number in range(count):
        story = Story(dice, target, path, now, number == count - 1)
        story.p, story.s, story.c = any_number(dice), any_number(dice), any_number(dice)
        if abs(diff(story.p, story.s)) < 2 or dice.chance(20):
            story.s = (story.p + 2**31) % M32
        if used & {story.p, story.s, story.c}:  # the same number twice in a row is a SYN sent again
            continue
        used |= {story.p, story.s, story.c}
        story.p_syn_ts, story.s_syn_ts = any_number(dice), any_number(dice)
        story.timestamps, story.active = dice.chance(2), dice.chance(3)
        dies = story.last and dice.chance(3)
        if not dies:
            story.p_scale, story.s_scale = dice.choose(((7, 7), (7, 7), (2, 9), (14, 0)))
        story.open(dies)
        if not dies and dice.chance(6):  # the client never answers
            now = story.now
            continue
        story.answer()
        for _ in range(dice.pick(0, 10)):
            story.now += dice.choose((0, 1, 40, 1500)) * MS
            acts = [story.vm_speaks, story.vm_speaks, story.client_speaks, story.client_speaks, story.error]
            if story.last and not story.taken_over:
                acts.append(story.take_over)
            if not story.taken_over or story.checked:
                acts.append(story.syn_again)
            dice.choose(acts)()
        ending = dice.pick(0, 4)
        if ending == 0:
            story.close()
        elif ending == 1:
            story.after_mark(missed=False)
        elif ending == 2 and not story.taken_over:
            story.after_mark(missed=True)
        now = story.now


@pytest.mark.parametrize("make", [Core, Model])
def test_stories(make: Callable[[], Target]) -> None:
    for seed in seeds(600):
        try:
            live(seeded(seed), make)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@profile(200)
@given(dice())
def test_stories_of_hypothesis(dice: Dice) -> None:
    live(dice, Core)


# ------------------------------------------------------------------ the stories can tell


class AnyAckBelongs(Model):
    """SYN-ACKs are joined without a look at their ACK numbers."""

    def together(self, p: Syn, s: Syn) -> bool:
        return super().together(replace(p, ack=None), s)


class NoticesServeTwice(Model):
    """An active open takes the notice of the one before."""

    def together(self, p: Syn, s: Syn) -> bool:
        return super().together(replace(p, used_by=None), s)


class NeverInfers(Model):
    """No fallback."""

    def may_infer(self, flow: Flow, seg: Segment) -> bool:
        return False


class NoFloor(Model):
    """After the takeover timestamps may run backwards."""

    def least_tsval(self, flow: Flow, now: int) -> int:
        return flow.p_ts


class ForgetsTheTime(Model):
    """The primary's clock stands still while nothing is heard of it."""

    def least_tsval(self, flow: Flow, now: int) -> int:
        return flow.p_ts + 200


class EchoesTheFuture(Model):
    """TSecr may be later than what was sent."""

    def echo(self, flow: Flow, value: int) -> int:
        return value


class LeavesWindows(Model):
    """Windows keep the secondary's scale."""

    def window(self, flow: Flow, seg: Segment) -> int:
        return seg.window


class WrapsWindows(Model):
    """A window too large for 16 bits is cut off."""

    def window(self, flow: Flow, seg: Segment) -> int:
        if seg.flags & SYN:
            return seg.window
        return (seg.window << flow.s_scale >> flow.p_scale) & 0xFFFF


class ScalesSyns(Model):
    """The window of a SYN is scaled too."""

    def window(self, flow: Flow, seg: Segment) -> int:
        return min(seg.window << flow.s_scale >> flow.p_scale, 65535)


class HalfOfSack(Model):
    """Only the first block of a SACK option."""

    def sack_edges(self, at: int, size: int) -> list[int]:
        return super().sack_edges(at, size)[:2]


class ComparesFlags(Model):
    """A SYN-ACK is one only if there is no other flag (as in stock filter-rewriter)."""

    def opens_anew(self, syn: Syn | None, seg: Segment) -> bool:
        return seg.flags in (SYN, SYN | ACK) and super().opens_anew(syn, seg)

    def secondary_opens(self, key: object, flow: Flow | None, seg: Segment, now: int) -> Flow | None:
        if seg.flags not in (SYN, SYN | ACK):
            return flow
        return super().secondary_opens(key, flow, seg, now)  # type: ignore[arg-type]


class CompletesChecksums(Model):
    """NEEDS_CSUM is not looked at (as in stock filter-rewriter)."""

    def is_partial(self, data: bytes, vnet_len: int, at: int) -> bool:
        return False


class TrustsMarks(Model):
    """A number that fits only unshifted is shifted all the same."""

    def missed_a_mark(self, flow: Flow, seg: Segment, base: int) -> bool:
        return False


class KeepsClosed(Model):
    """Closed connections are never forgotten."""

    def expire(self, now: int) -> None:
        pass


class CutsPass(Model):
    """First fragments without the whole header go on as they are."""

    def drop_cut(self, flow: Flow | None) -> int:
        return NONE


class ShiftsTheVmsSack(Model):
    """The VM's own SACK blocks and TSecr are taken for the client's: of a segment both kinds of fields are shifted."""

    def edits(self, flow: Flow, seg: Segment, by_vm: bool, outward: bool) -> dict[int, int]:
        return super().edits(flow, seg, by_vm, outward) | super().edits(flow, seg, not by_vm, outward)


class NoQuotes(Model):
    """ICMP errors pass untouched."""

    def quote(self, data: bytes, vnet_len: int, nic: int, outward: bool) -> tuple[int, bytes]:
        return NONE, data


class BelievesDamaged(Model):
    """Learns from a segment whose checksum says that the VM will drop it."""

    def is_damaged(self, seg: Segment, vnet_len: int) -> bool:
        return False


MUTANTS = [
    AnyAckBelongs, NoticesServeTwice, NeverInfers, NoFloor, ForgetsTheTime, EchoesTheFuture, LeavesWindows,
    WrapsWindows, ScalesSyns, HalfOfSack, ComparesFlags, CompletesChecksums, TrustsMarks, KeepsClosed, CutsPass,
    ShiftsTheVmsSack, NoQuotes,
]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_every_mutant_is_caught(mutant: Callable[[], Target]) -> None:
    for seed in range(3000):
        try:
            live(seeded(seed), mutant)
        except AssertionError:
            return
    pytest.fail(f"3,000 stories say nothing against it: {mutant.__doc__}")


# ------------------------------------------------------------------ the core against the model


POOL = (0, 1000, 2**31 - 3, 2**31, M32 - 5)


def any_segment(dice: Dice, path: Path, from_vm: bool) -> bytes:
    """Of two flows and few numbers, so that some fit; in no order that makes sense."""
    path = replace(path, dport=40000 + dice.pick(0, 1))  # two: as many as one call makes forget
    flags = dice.choose((SYN, SYN | ACK, ACK, ACK, ACK | PSH, FIN | ACK, RST, RST | ACK, 0, SYN | FIN, SYN | RST | ACK))

    def number() -> int:
        return (dice.choose(POOL) + dice.choose((0, 0, 1, 1, 2, 11, 65537, 2**24, -1))) % M32

    options = Options(
        timestamps=dice.chance(2),
        wscale=dice.choose((None, None, 0, 7, 15)),
        sack=tuple((number(), number()) for _ in range(dice.choose((0, 0, 1, 2)))),
        md5=dice.chance(60),
        extra=dice.choose((b"", b"", b"", b"\x05\x07abcde", b"\x08\x03a", b"\x00\x08\x0a", b"\x09\x00")),
    )
    if len(options.encode(Noise())) > 40:
        options = Options()
    return wire.tcp(path if from_vm else turned(path), number(), number(), flags, text(3, dice.choose((0, 0, 1, 10))),
                    options, Noise(window=dice.choose((0, 500, 65535)), tsval=number(), tsecr=number()),
                    spoil_checksum=dice.chance(20))  # fmt: skip


def wander(dice: Dice, against: type[Model] = Model) -> None:
    core, model, now, path = Core(), against(), 0, Path() if dice.chance(2) else Path.v6()
    for step in range(dice.pick(5, 60)):
        now += dice.choose((0, 0, 1, 100, 100, 61_000)) * MS
        act = dice.pick(0, 40)
        if act == 0:
            core.mark()
            model.mark()
        elif act == 1 and dice.chance(2):
            core.takeover(now)
            model.takeover(now)
        elif act == 1:
            tables = core.export(now), model.export(now)
            later = now + dice.choose((0, 0, 70_000)) * MS
            core, model = Core(), against()
            core.inherit(tables[0], now)
            model.inherit(tables[1], now)
            now = later
            if dice.chance(2):
                core.takeover(now)
                model.takeover(now)
        elif act < 12:
            frame = any_segment(dice, path, True)
            core.learn(frame, now)
            model.learn(frame, now)
        else:
            frame = any_segment(dice, path, act < 26)
            got = core.output(frame, now) if act < 26 else core.input(frame, now)
            want = model.output(frame, now) if act < 26 else model.input(frame, now)
            assert got == want, f"step {step}, act {act}: {frame.hex()}\n{got}\n{want}"
        flows = len(model.flows) + len(model.inherited)
        assert core.native.counters.flows == flows, f"step {step}: other flows"


def test_a_model_that_believes_what_is_damaged_does_not() -> None:
    with pytest.raises(AssertionError):
        for seed in range(3000):
            wander(seeded(seed), BelievesDamaged)


def test_core_and_model_do_the_same() -> None:
    for seed in seeds(3000):
        try:
            wander(seeded(seed))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@profile(100)
@given(dice())
def test_core_and_model_do_the_same_in_hypothesis(dice: Dice) -> None:
    wander(dice)


# ------------------------------------------------------------------ garbage, and the class itself


@profile(300)
@given(st.lists(st.tuples(st.sampled_from(("learn", "output", "input")), st.binary(max_size=120), st.integers(0, 14))))
def test_garbage_keeps_its_length(acts: list[tuple[str, bytes, int]]) -> None:
    rewriter = Rewriter(max_flows=2)
    for act, data, vnet_len in acts:
        if vnet_len > len(data):
            with pytest.raises(errors.MisuseError):
                getattr(rewriter, act)(data, now=0, vnet_len=vnet_len)
        elif act == "learn":
            rewriter.learn(data, now=0, vnet_len=vnet_len)
        else:
            out = getattr(rewriter, act)(data, now=0, vnet_len=vnet_len)
            assert len(out.data) == len(data)
            assert out.verdict is Rewrite.DONE or out.data == data


def test_limits_are_errors() -> None:
    for wrong in (0, -1, (1 << 24) + 1):
        with pytest.raises(errors.MisuseError, match="max_flows"):
            Rewriter(max_flows=wrong)
    rewriter = Rewriter(max_flows=1)
    syn_ack = wire.tcp(wire.PLAIN, 1000, 1, SYN | ACK)
    rewriter.learn(syn_ack, now=0)
    assert rewriter.output(wire.tcp(wire.PLAIN, 5000, 1, SYN | ACK), now=0).data == syn_ack
    rewriter.input(wire.tcp(turned(wire.PLAIN), 1, 1001), now=0)
    with pytest.raises(errors.LimitError):
        rewriter.learn(wire.tcp(replace(wire.PLAIN, dport=1), 1000, 1, SYN | ACK), now=0)
    counters = rewriter.counters
    assert (counters.learned, counters.refused, counters.flows) == (1, 1, 1)
    assert (counters.out_rewritten, counters.in_rewritten) == (1, 1)
