# SPDX-License-Identifier: Apache-2.0
"""The language of the tables: segments in, actions out, an integer clock.

A case is a list of rows; a row is a step and what it makes the comparator do:

    p(0, "abc", ack=10)   the primary sends bytes 0..3 of its stream, and acknowledges 10 bytes of the client's
    s(0, "abc", ack=10)   the secondary does
    p_syn(), s_syn()      ... a SYN-ACK
    p_raw(frame)          ... any other frame
    stop(), resume(), commit(), abort(), alone(), wait(ms)

    "p2"        the primary's second frame leaves as it came
    "p2^7"      ... with its ACK number lowered to 7
    "ack7"      an ACK of the comparator's own tells 7
    "part3-9"   a segment of the comparator's own has the primary's bytes 3..9
    "!payload@3"  a divergence at stream offset 3; "!timeout:ack" when something has waited too long
    "tolerated@7"  a sample of what a rule tolerates
    "want:fin"  a checkpoint is wanted; "limit:frames" a limit is told of
    "s1 no"     the secondary's first frame was refused

Time goes on by one microsecond a row. Numbers are rendered for several initial sequence numbers, so that each case
runs across 2^31 and 2^32. The oracle watches too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import wire
from wire import Noise, Options, Path

from model.flow import PRIMARY, SECONDARY, near
from model.oracle import Oracle
from model.packet import Packet, parse
from model.run import Abort, Alone, Commit, Feed, Run, Step, Stop, Tick
from model.verdict import TIMEOUTS, Action, Config, Diverged, Emit, Event, Limit, Release, Subject, Tolerated, Want

MICROSECOND, MILLISECOND = 1_000, 1_000_000
TIMEOUT_MS = 3000
WINDOW_MS = 20
GAP_MS = 50


@dataclass(frozen=True)
class Numbers:
    """Initial sequence numbers; `own`: the secondary keeps its own numbers behind its SYN."""

    primary: int
    secondary: int
    client: int
    own: bool = False

    def __str__(self) -> str:
        return f"{self.primary:x}-{self.secondary:x}-{self.client:x}{'-own' if self.own else ''}"


NUMBERS = (
    Numbers(1000, 500_001_000, 2000),
    Numbers(2**32 - 4, 2**30, 2**31 - 3, own=True),
    Numbers(2**31 - 4, 2**31 - 4, 2**32 - 3),
    Numbers(2**32 - 1, 2**31 - 5, 2**32 - 9),
)

SYN_OPTIONS = Options(mss=1460, wscale=7, sack_ok=True, timestamps=False)


@dataclass(frozen=True)
class Send:
    """A TCP segment in offsets, or a raw frame."""

    side: int
    off: int = 0
    data: bytes = b""
    ack: int | None = 0
    flags: int = wire.ACK
    options: Options = wire.NO_OPTIONS
    path: Path = wire.PLAIN
    noise: Noise = wire.QUIET
    raw: bytes | None = None
    vnet: int = 0
    partial: bool = False
    spoil: bool = False
    urgent: int = 0
    translated: bool = False  # by a rewriter: the secondary's SYN has the primary's number
    shift: int = 0  # another connection on the same ports: added to all three initial numbers

    def render(self, n: Numbers, epoch: int) -> bytes:
        if self.raw is not None:
            return self.raw
        own = self.side == SECONDARY and epoch == 1 and (n.own or self.flags & wire.SYN) and not self.translated
        isn = (n.secondary if own else n.primary) + self.shift
        seq = isn if self.flags & wire.SYN else isn + 1 + self.off
        ack = n.client + self.shift + 1 + (self.ack or 0)
        flags = self.flags if self.ack is not None else self.flags & ~wire.ACK
        frame = wire.tcp(self.path, seq, ack if flags & wire.ACK else 0, flags, self.data, self.options, self.noise,
                         spoil_checksum=self.spoil, partial=self.partial, urgent=self.urgent)  # fmt: skip
        return wire.with_vnet(frame, self.vnet, int(self.partial)) if self.vnet else frame


@dataclass(frozen=True)
class Do:
    what: str
    amount: int = 0


Row = tuple[Send | Do | list[Send], str]


def _send(side: int, off: int, data: str | bytes, ack: int | None, more: dict[str, object]) -> Send:
    flags = wire.ACK
    for name, bit in (("fin", wire.FIN), ("rst", wire.RST), ("psh", wire.PSH), ("urg", wire.URG)):
        if more.pop(name, False):
            flags |= bit
    payload = data.encode() if isinstance(data, str) else data
    return Send(side, off, payload, ack, flags, **more)  # type: ignore[arg-type]


def p(off: int = 0, data: str | bytes = b"", ack: int | None = 0, **more: object) -> Send:
    return _send(PRIMARY, off, data, ack, more)


def s(off: int = 0, data: str | bytes = b"", ack: int | None = 0, **more: object) -> Send:
    return _send(SECONDARY, off, data, ack, more)


def p_syn(options: Options = SYN_OPTIONS, ack: int | None = 0, **more: object) -> Send:
    return Send(PRIMARY, ack=ack, flags=wire.SYN | wire.ACK, options=options, **more)  # type: ignore[arg-type]


def s_syn(options: Options = SYN_OPTIONS, ack: int | None = 0, **more: object) -> Send:
    return replace(p_syn(options, ack, **more), side=SECONDARY)


def p_raw(frame: bytes) -> Send:
    return Send(PRIMARY, raw=frame)


def s_raw(frame: bytes) -> Send:
    return Send(SECONDARY, raw=frame)


def stop() -> Do:
    return Do("stop")


def resume() -> Do:
    """What is read from now on is of the new epoch, once the commit is known."""
    return Do("resume")


def commit() -> Do:
    return Do("commit")


def abort() -> Do:
    return Do("abort")


def alone() -> Do:
    return Do("alone")


def wait(ms: int) -> Do:
    return Do("wait", ms)


OPEN: list[Row] = [(p_syn(), ""), (s_syn(), "p1")]
"""The two rows that open the connection; the primary's next frame is p2."""


@dataclass
class Table:
    """Plays the rows of one case."""

    make: type[Subject]
    numbers: Numbers
    config: Config
    protect: bool = True
    now: int = 0
    epoch: int = 0
    resumed: int | None = None
    names: dict[int, str] = field(default_factory=dict)
    counts: list[int] = field(default_factory=lambda: [0, 0])

    def play(self, rows: Sequence[Row], live: bool = True) -> Run:
        run = Run(self.make(self.config), Oracle(self.config, live=live))  # type: ignore[call-arg]
        sends = [send for step, _ in rows for send in (step if isinstance(step, list) else [step])]
        if not any(isinstance(send, Send) and send.flags & wire.SYN for send in sends):
            self.numbers = replace(self.numbers, own=False)  # without a SYN nobody could know them
        if self.protect:
            self._perform(run, Do("commit"))
        for index, (step, expected) in enumerate(rows):
            got = self._perform(run, step)
            assert got == expected.split(), f"row {index}, {step}:\n    got  {' '.join(got)!r}\n    not  {expected!r}"
        return run

    def _perform(self, run: Run, step: Send | Do | list[Send]) -> list[str]:
        self.now += MICROSECOND
        if isinstance(step, Send):
            return self._feed(run, [step])
        if isinstance(step, list):
            return self._feed(run, step)
        made: Step
        if step.what == "resume":
            self.resumed = self.now
            return []
        if step.what == "wait":
            self.now += step.amount * MILLISECOND
            made = Tick(self.now)
        elif step.what == "commit":
            made = Commit(self.now if self.resumed is None else self.resumed, self.now)
            self.resumed = None
            self.epoch += 1
        else:
            kinds: dict[str, type[Stop | Abort | Alone]] = {"stop": Stop, "abort": Abort, "alone": Alone}
            made = kinds[step.what](self.now)
        return self._tell(run, run.step(made))

    def _feed(self, run: Run, sends: list[Send]) -> list[str]:
        for number, send in enumerate(sends, run.names + 1):
            self.counts[send.side] += 1
            self.names[number] = f"{'ps'[send.side]}{self.counts[send.side]}"
        frames = tuple(send.render(self.numbers, self._epoch_of_numbers()) for send in sends)
        return self._tell(run, run.step(Feed(sends[0].side, frames, self.now)))

    def _epoch_of_numbers(self) -> int:
        return self.epoch + (self.resumed is not None)

    def _tell(self, run: Run, done: tuple[list[Action], list[Event]]) -> list[str]:
        out = []
        for action in done[0]:
            if isinstance(action, Release):
                fed = next(r for r in run.oracle.history if r.name == action.name)
                text = self.names[action.name]
                if bytes(fed.data) != bytes(action.data):
                    text += f"^{self._ack(action.data, wire.vnet_len(fed.data))}"
                out.append(text)
            elif isinstance(action, Emit):
                packet = _parsed(action.data, action.vnet_len)
                if packet.body:
                    start = near(0, packet.seq - self.numbers.primary - 1)
                    out.append(f"part{start}-{start + len(packet.body)}")
                else:
                    out.append(f"ack{self._ack(action.data, action.vnet_len)}")
        for event in done[1]:
            out.append(_event(event))
        return out

    def _ack(self, data: bytes, vnet_len: int) -> int:
        return near(0, _parsed(data, vnet_len).ack - self.numbers.client - 1)


def _parsed(data: bytes, vnet_len: int) -> Packet:
    if vnet_len:
        framed = wire.VnetFrame(data)
        framed.vnet_len = vnet_len
        data = framed
    return parse(data)


def _event(event: Event) -> str:
    if isinstance(event, Tolerated):
        return f"tolerated@{event.offset}"
    name = event.cause.name.lower().replace("_", "-")
    if isinstance(event, Want):
        return f"want:{name}"
    if isinstance(event, Limit):
        return f"limit:{name.removeprefix('limit-')}"
    assert isinstance(event, Diverged)
    if event.cause in TIMEOUTS:
        return f"!{name}"
    return f"!{name}@{event.offset}"
