# SPDX-License-Identifier: Apache-2.0
"""The grammar of fuzz_schedule once more: any bytes are a schedule, here for the model. schedule.h tells the format."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import wire
from model.core import Core
from model.flow import PRIMARY, SECONDARY
from model.oracle import Oracle
from model.run import Abort, Alone, Commit, Feed, Run, Step, Stop, Tick
from model.verdict import Config

from coloproxy import FrameClass
from coloproxy.rules import Match, Policy, PolicyRule, Rules, ToleranceRule

MAX_STEPS, LENGTH = 192, 24
ISNS = (1000, 0xFFFFFFF7, 0x7FFFFFF9, 0xFFFFFFE8)
CLIENT_ISNS = (2000, 0x7FFFFFF6, 0xFFFFFFFB, 0xFFFFFFD8)
SPANS = (0, 1_000_000, 9_999_999, 10_000_000, 25_000_000, 1_000_000_000, 3_000_000_000, 4_000_000_000)
CUTS = ((0, 16), (16, 32), (32, 48), (8, 24), (0, 24), (24, 48), (0, 48), (24, 40))
PATHS = (wire.Path(dport=1000), wire.Path(dport=1001), wire.Path.v6(dport=1000), wire.Path(dport=1000, vlans=(5,)))
TIGHT = Config(max_frames=24, max_bytes=4000, max_flow_frames=8, max_flow_bytes=700, max_fragments=3)
ROOMY = Config(max_frames=4096, max_bytes=1 << 20, max_flow_frames=1024, max_flow_bytes=1 << 20,
               max_fragments=1024)  # fmt: skip


@dataclass
class Schedule:
    data: bytes
    at: int = 0
    steps: list[Step] = field(default_factory=lambda: [Stop(0), Commit(1, 2)])
    now: int = 2
    generation: list[list[int]] = field(default_factory=lambda: [[-1] * 4, [-1] * 4])
    cloned: list[int] = field(default_factory=lambda: [-1] * 4)
    at_stop: list[int] = field(default_factory=lambda: [-1] * 4)
    stopped: int | None = None
    stopped_at: int = 0
    flip_at: int = -1

    def take(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def decode(self) -> Schedule:
        self.a, self.b = self.take(), self.take()
        self.wild, self.tight, self.keep_gap = bool(self.a & 1), bool(self.a & 2), bool(self.a & 4)
        self.vnet = (0, 10, 12, 0)[self.a >> 5 & 3]
        self.partial, self.any_scale = bool(self.b & 8), bool(self.b & 16)
        while self.at < len(self.data) and len(self.steps) < MAX_STEPS:
            self._step()
        return self

    @property
    def config(self) -> Config:
        policies = []
        if self.b & 1:
            match = Match(classes=frozenset({FrameClass.UDP}), client_port=(1001, 1001))
            policies.append(PolicyRule("udp", Policy.PASS, match))
        if self.b & 2:
            policies.append(PolicyRule("vlan", Policy.DROP_SECONDARY,
                                       Match(classes=frozenset({FrameClass.TCP}), vlan=5)))  # fmt: skip
        tolerances = (ToleranceRule("text", b"ahov", 3),) if self.b & 4 else ()
        limits = TIGHT if self.tight else ROOMY
        return Config(
            3 if self.tight and self.wild else 1024, limits.max_frames, limits.max_bytes, limits.max_flow_frames,
            limits.max_flow_bytes, limits.max_fragments, keep_gap=self.keep_gap,
            any_scale=self.any_scale, rules=Rules(tuple(policies), tolerances),
        )  # fmt: skip

    def _step(self) -> None:
        b = self.take()
        what, flow, side = b & 15, b >> 4 & 3, b >> 6 & 1
        self.now += 1000
        if not self.wild and self.stopped is not None:
            side = PRIMARY
        frame: bytes | None = None
        if what <= 6:
            frame = self._tcp(what, flow, side, bool(b & 128))
        elif what == 7:
            c = self.take()
            body = bytes((c & 7) + i for i in range(4 + (c >> 3) % 8))
            frame = wire.udp(PATHS[flow], body, wire.Noise(ip_id=1 + side))
        elif what == 8:
            frame = self._other(flow, side)
        elif what == 9:
            frame = self._fragment(flow)
        elif what == 10 and self.wild:
            length = self.take() % 128
            frame = self.data[self.at : self.at + length]
            self.at += len(frame)
        elif what == 11 and self.wild:
            self._copy(flow, side)
        elif what == 12:
            self.now += SPANS[b >> 4 & 7]
            self.steps.append(Tick(self.now))
        elif what == 13:
            if self.stopped is None:
                self.stopped_at, self.at_stop = self.now, list(self.generation[PRIMARY])
            self.stopped = self.now
            self.steps.append(Stop(self.now))
        elif what == 14 and (self.wild or self.stopped is not None):
            self._commit(b >> 4 & 3)
        elif what == 15:
            self.steps.append(Alone(self.now) if b >> 4 & 7 == 7 else Abort(self.now))
            self.stopped = None
        if frame is not None:
            self._feed(side, frame)

    def _feed(self, side: int, frame: bytes) -> None:
        if self.vnet and wire.vnet_len(frame) == 0:
            frame = wire.with_vnet(frame, self.vnet)
        self.steps.append(Feed(side, (frame,), self.now))

    def _tcp(self, what: int, flow: int, side: int, more: bool) -> bytes:
        where, c = self.take(), self.take()
        opts = self.take() if more else 0
        flipped, flip_at = False, -1
        if self.wild:
            gen, start, length = where >> 6, where % 64 - 8, c >> 5
            flipped = bool(opts & 4)
            other_isn = side == SECONDARY
        else:
            mine = self.generation[side]
            if mine[flow] < 0 or (what == 5 and where & 1):
                mine[flow] += 1
                what = 5
            if side == SECONDARY and mine[flow] > self.generation[PRIMARY][flow]:
                what = 5
            if mine[flow] <= self.cloned[flow] and what == 5:
                what = 3
            gen = mine[flow]
            start = LENGTH if what in (4, 6) else where % (LENGTH + 1)
            length = 0 if what in (4, 5, 6) else min(c >> 5, LENGTH - start)
            flip_at = self.flip_at if side == SECONDARY else -1
            other_isn = side == SECONDARY and gen > self.cloned[flow]
            opts &= ~12
            if what == 5:
                opts = opts & ~3 | (3 if side == SECONDARY and gen & 3 == 3 else gen & 1)
        if what in (3, 6):
            length = 0
        flags = wire.ACK | {4: wire.FIN, 5: wire.SYN, 6: wire.RST}.get(what, 0)
        flags |= (0x20 if opts & 8 else 0) | (wire.PSH if opts & 16 else 0)
        gen &= 0xFF
        ack, off = (0, 0) if what == 5 else (c % 32, start)
        isn = ISNS[self.a >> 3 & 3] + 0x28000000 * (gen & 7)
        cack = CLIENT_ISNS[self.a >> 3 & 3] + 1000 * gen + 1 + ack
        seq = isn + (0x40000000 if other_isn else 0) if what == 5 else isn + 1 + off
        payload = bytes(
            (ord("a") + ((at + 64) * 7 + gen * 3 + flow) % 26) ^ (0x40 if flipped or at == flip_at else 0)
            for at in range(off, off + length)
        )
        options, syn = opts & 3, what == 5
        partial = self.partial and self.vnet > 0
        frame = wire.tcp(
            PATHS[flow], seq, cack, flags, payload,
            wire.Options(
                mss=(1400 if options == 3 else 1460) if syn else None,
                timestamps=options == 1,
                sack=((cack + 100, cack + 110),) if options == 3 and not syn else (),
                md5=options == 2,
                extra=self._scale(side, gen) if syn else b"",
            ),
            wire.Noise(ip_id=1 + side, tsval=1000 + side),
            spoil_checksum=bool(opts & 32), partial=partial,
        )  # fmt: skip
        if opts & 8 and opts >> 6:
            frame = _with_urgent_pointer(frame, PATHS[flow], opts >> 6, partial, bool(opts & 32))
        return wire.with_vnet(frame, self.vnet, int(partial)) if self.vnet else frame

    def _scale(self, side: int, generation: int) -> bytes:
        if not self.any_scale or (side == SECONDARY and generation % 3 == 2):
            return b""
        return bytes((3, 3, 9 if side == SECONDARY else 7))

    def _other(self, flow: int, side: int) -> bytes:
        c = self.take()
        kind, n = c & 7, c >> 3
        if flow == 1 or (kind > 3 and (kind != 5 or flow != 3)):
            flow = 0
        path, noise = PATHS[flow], wire.Noise(ip_id=1 + side)
        if kind == 0:
            return wire.echo_reply(path, 1, n, noise=noise)
        if kind <= 3:
            return wire.ip(path, (0, 47, 132, 200)[kind], bytes([n] * 6), noise)
        if kind == 4:
            return wire.arp()
        if kind == 5:
            return wire.ethernet(0x88B5, bytes([n] * 6), path)
        if kind == 6:
            return wire.udp(wire.Path(sport=68, dport=67), b"\x01\x01\x06" + bytes(237), noise)
        return b"\xcc" * n

    def _fragment(self, flow: int) -> bytes:
        c = self.take()
        key, (low, high) = c & 3, CUTS[c >> 2 & 7]
        path = PATHS[flow]
        datagram = wire.udp(path, bytes((key * 50 + i) & 0xFF for i in range(40)))
        out = bytearray(datagram)
        if self.wild and c & 32:
            out[len(out) - 48 + 20] ^= 0x40
        ident = 70 + key + 10 * flow
        at = 18 if path.vlans else 14
        head = bytes(out[: len(out) - 48])
        return wire._fragment(head, at, at + 6, bytes(out[len(head) + low : len(head) + high]), low, high < 48, ident)

    def _copy(self, edits: int, side: int) -> None:
        which = self.take()
        fed = [step.frames[0] for step in self.steps if isinstance(step, Feed)]
        if not fed:
            return
        frame = fed[which % len(fed)]
        out = bytearray(frame)
        for _ in range(edits):
            at, value = self.take(), self.take()
            if out:
                out[at % len(out)] = value
        copy: bytes = bytes(out)
        if wire.vnet_len(frame):
            copy = wire.VnetFrame(copy)
            copy.vnet_len = wire.vnet_len(frame)
        self.steps.append(Feed(side, (copy,), self.now))

    def _commit(self, how: int) -> None:
        flip = self.take()
        if self.wild:
            stopped = self.now if self.stopped is None else self.stopped_at + 1
            resumed = (self.now + 1, stopped, self.now - 3000, self.now)[how]
        else:
            resumed = self.stopped_at + 1 if how & 1 else self.now + 1
            self.cloned = list(self.at_stop if how & 1 else self.generation[PRIMARY])
            self.generation[SECONDARY] = list(self.cloned)
            self.flip_at = flip if flip < LENGTH else -1
        self.now = max(self.now, resumed)
        self.steps.append(Commit(resumed, self.now))
        self.stopped = None


def _with_urgent_pointer(frame: bytes, path: wire.Path, pointer: int, partial: bool, spoiled: bool) -> bytes:
    at = 14 + 4 * len(path.vlans) + (20 if path.family == 4 else 40)
    segment = bytearray(frame[at:])
    struct.pack_into("!HH", segment, 16, 0, pointer)
    pseudo = wire.pseudo_header(path, wire.TCP, len(segment))
    csum = wire.ones_sum(pseudo) if partial else wire.checksum(pseudo + bytes(segment))
    struct.pack_into("!H", segment, 16, csum ^ (0x5555 if spoiled else 0))
    return frame[:at] + bytes(segment)


def decode(data: bytes) -> Schedule:
    return Schedule(data).decode()


def describe(schedule: Schedule) -> str:
    """As `fuzz_schedule -print` tells it."""
    lines = [
        f"wild={schedule.wild:d} tight={schedule.tight:d} keep_gap={schedule.keep_gap:d} rules={schedule.b & 3} "
        f"tolerant={bool(schedule.b & 4):d} any_scale={schedule.any_scale:d} vnet={schedule.vnet}"
    ]
    for step in schedule.steps:
        text = f"{step.now} {type(step).__name__.lower()}"
        if isinstance(step, Commit):
            text += f" {step.resumed}"
        elif isinstance(step, Feed):
            text += f" {'PS'[step.side]} {step.frames[0].hex()}"
        lines.append(text)
    return "\n".join(lines)


def new_run(schedule: Schedule) -> Run:
    """The C core and the oracle; strict where numbers go as those of two VMs do."""
    config = schedule.config
    return Run(Core(config), Oracle(config, strict=not schedule.wild, live=False))


def play(data: bytes) -> Sequence[Step]:
    """Raises Violation where a rule is broken."""
    schedule = decode(data)
    new_run(schedule).play(schedule.steps)
    return schedule.steps
