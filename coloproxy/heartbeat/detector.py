# SPDX-License-Identifier: Apache-2.0
"""The heartbeat without I/O: datagrams and an integer clock in, datagrams and verdicts out.

    detector = Detector(settings, ("client", "link"), now)
    refusal = detector.receive(0, data, now)          for each datagram, as soon as it is read
    detector.tick(now)                                at detector.deadline, or later
    for path, data in detector.datagrams(): ...       after each of the two
    for event in detector.events(): ...

**When is the peer dead?** When each path was silent for `timeout`, and we were there to listen. A path that was never
up doesn't count. Each message that is newer than all before it on its path ends the silence of that path.

**Stalls of the peer or of the network.** With the default, 50 ms and 400 ms, the words of a peer that stalls for
200 ms are 250 ms apart at the most, and 150 ms remain for lost beats (two in a row) and jitter. In general a stall is
survived if stall + interval x (lost in a row + 1) + jitter < timeout. A host that vanishes was heard at most
`interval` (and the way) before, so it is dead between timeout - interval and timeout after it vanished: 350 to 400 ms.

**Our own stalls.** If we don't run (a stalled loop, SIGSTOP, a paused host), the peer's words wait in our sockets, or
are lost with them; neither is the peer's silence. Three rules keep it from being taken for that:

1. Whoever drives us reads the clock, then reads the sockets until they are empty, and only then calls `tick` with the
   time from before. So all that had come by `now` has been heard when it is judged. A stall between any two of these
   steps only means that more was read than had to be.
2. `deadline` says when we wanted to run. A `tick` that comes later than that by more than `interval` is a stall of
   ours. What lies between is left out of every path's silence, for our host may have been paused, and its queues be
   gone: then nothing lay in the sockets. So only silence that we have listened to counts. A smaller delay needs none
   of this: rule 1 covers it.
3. After a stall no verdict is given before a fresh grace has passed, however long the silence was before: as long as
   the stall and one interval, `timeout` at most. The peer's next beat comes within an interval, if only our host or
   its network needs no longer to come to itself than it was away.
4. Graces have an end: a host that stalls all the time judges late, after PATIENCE timeouts of listening, but does.

A peer that dies while we stall is thus found `timeout` after we run again, at the latest. A stall of ours in the time
between a death and its verdict delays that by twice the stall and an interval at most.

**Who is believed.** Each process has a random boot id, and numbers its messages on each path. A number is accepted
once (statistics.Window). A signature alone proves nothing about when: a recorded message of an older process has one
too. So a path begins unproven, and a message on it is accepted only if it echoes this path's nonce: random, ours,
used for one proof only and replaced by it. What was recorded before the nonce was sent can't hold it, and what is
older than the proof is not accepted after it. Others are refused (`unproven`) and answered by a challenge: a message of
ours with our nonce, and theirs echoed. A path falls back to unproven when it goes down, and when another process of the
peer's was believed. So

- a new process of the peer's is believed, on any path, with its first message that echoes our nonce; the one before
  is retired at that moment, and refused from then on (the last RETIRED of them by name, all by the nonce),
- what was delayed in the network cannot raise a dead peer.

A challenge costs us one message, at most CHALLENGES of them in an interval; nothing else changes.

What this does not do: somebody on the way who can hold back fresh messages of a living peer may hand them out later,
and delay the verdict by that long. He could cut the path as well.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from coloproxy.errors import MisuseError

from .message import BOOT, MAX_PATHS, NONCE, Codec, Host, Message, Reason, Refusal, decode_state, encode_state
from .silence import Silence
from .statistics import PathStats, RoundTripMeter, Stats, Window

MS: Final = 10**6
INTERVAL: Final = 50 * MS
TIMEOUT: Final = 400 * MS
START_TIMEOUT: Final = 1000 * MS

RETIRED: Final = 64
CHALLENGES: Final = 8
LEAST_INTERVAL: Final = MS
LEAST_BEATS: Final = 3  # intervals in a timeout
_NO_ECHO: Final = bytes(NONCE)


@dataclass(frozen=True, slots=True)
class Settings:
    """Who we are, and how patient. Times in ns.

    psk: as coloproxy.path.tls.read_psk gives it. timeout: at least three intervals; the peer's own interval is what
    must fit it. start_timeout: how long after our start a peer that was never heard is called dead.
    """

    pair: str
    host: Host
    psk: bytes = field(repr=False)
    interval: int = INTERVAL
    timeout: int = TIMEOUT
    start_timeout: int = START_TIMEOUT

    def check(self) -> None:
        """Raises MisuseError."""
        if self.interval < LEAST_INTERVAL:
            raise MisuseError(f"heartbeat interval {self.interval} ns: {LEAST_INTERVAL} are the least")
        if self.timeout < LEAST_BEATS * self.interval:
            raise MisuseError(
                f"heartbeat timeout {self.timeout} ns: less than {LEAST_BEATS} intervals of {self.interval} ns"
            )
        if self.start_timeout < self.timeout:
            raise MisuseError(f"heartbeat start_timeout {self.start_timeout} ns: less than the timeout")


@dataclass(frozen=True, slots=True)
class PathUp:
    """A path was proven, for the first time or again."""

    path: int


@dataclass(frozen=True, slots=True)
class PathDown:
    """A path that was up has been silent for the timeout. silent: ns since its last message, with our own stalls."""

    path: int
    silent: int


@dataclass(frozen=True, slots=True)
class Alive:
    """The peer lives: for the first time, after a Dead, or (restarted) as a new process that has replaced the last one.

    boot: hex, the process. interval: between its beats, ns.
    """

    boot: str
    restarted: bool
    interval: int


@dataclass(frozen=True, slots=True)
class Dead:
    """All paths are silent. Follows an Alive, or is the first verdict of all. reason: for people."""

    reason: str


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The peer's state, whenever it is another one, and after each new process."""

    state: dict[str, object]


@dataclass(frozen=True, slots=True)
class Stalled:
    """We ourselves did not run when we should have; `late` ns."""

    late: int


Event = PathUp | PathDown | Alive | Dead | StateChanged | Stalled


@dataclass(frozen=True, slots=True)
class PeerState:
    """number: grows with each change. since, confirmed: when it came first, and when a message said it last (ns)."""

    state: dict[str, object]
    number: int
    since: int
    confirmed: int


class _Path:
    """One path's own part."""

    def __init__(self, number: int, name: str, nonce: bytes, settings: Settings, now: int) -> None:
        self.number = number
        self.name = name
        self.nonce = nonce  # what the next proof must echo
        self.nonce_before = nonce  # the one before: what the peer may still echo
        self.peer_nonce = _NO_ECHO
        self.proven = False
        self.up = False
        self.silence = Silence(settings.timeout, settings.interval, now)
        self.window = Window()  # of the believed process
        self.seq = 0
        self.echo = (0, 0)  # `sent` of the newest message, and when it was read
        self.sampled = 0  # the newest echo_sent that a round trip was taken of
        self.heard: int | None = None
        self.challenges = CHALLENGES
        self.sent = self.send_errors = self.received = self.lost = self.reordered = self.downs = 0
        self.refused = dict.fromkeys(Reason, 0)
        self.rtt = RoundTripMeter()


class Detector:
    """One host's side of a pair. Not thread-safe. `random` gives so many random bytes (tests have their own)."""

    def __init__(
        self,
        settings: Settings,
        paths: Sequence[str],
        now: int,
        *,
        state: Mapping[str, object] | None = None,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """paths: their names, for people; in the same order on both hosts. Raises MisuseError, LimitError (state)."""
        settings.check()
        if not 1 <= len(paths) <= MAX_PATHS or len(set(paths)) != len(paths):
            raise MisuseError(f"{len(paths)} heartbeat paths; 1 to {MAX_PATHS} of different names are wanted")
        self._settings = settings
        self._codec = Codec(settings.psk, settings.pair, settings.host)
        self._random = random
        self._boot = random(BOOT)
        self._paths = [_Path(i, name, random(NONCE), settings, now) for i, name in enumerate(paths)]
        self._state = encode_state(state or {})
        self._number = 0
        self._alive: bool | None = None
        self._peer_boot: bytes | None = None
        self._retired: deque[bytes] = deque(maxlen=RETIRED)
        self._peer_state: PeerState | None = None
        self._start = Silence(settings.start_timeout, settings.interval, now)
        self._next_beat = now
        self._deadline = now
        self._deaths = self._boots = self._stalls = self._longest_stall = 0
        self._events: list[Event] = []
        self._datagrams: list[tuple[int, bytes]] = []

    @property
    def confirmed(self) -> int | None:
        """When that message of ours was sent which the peer is known to have heard last; None: it has heard none.

        It does not call us dead before `timeout` has passed since then.
        """
        return max((path.sampled for path in self._paths), default=0) or None

    @property
    def alive(self) -> bool | None:
        """The last verdict; None: there was none yet."""
        return self._alive

    @property
    def boot(self) -> str:
        """Our process, hex."""
        return self._boot.hex()

    @property
    def peer_state(self) -> PeerState | None:
        """The latest of the peer's process that was believed last. It outlives the peer."""
        return self._peer_state

    @property
    def deadline(self) -> int:
        """When to call `tick`; ns. Changed by `tick` only."""
        return self._deadline

    def events(self) -> list[Event]:
        """What has happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def datagrams(self) -> list[tuple[int, bytes]]:
        """What is to be sent since the last call: (path, datagram)."""
        datagrams, self._datagrams = self._datagrams, []
        return datagrams

    def not_sent(self, path: int) -> None:
        """The system refused one of `datagrams`."""
        self._paths[path].send_errors += 1

    def set_state(self, state: Mapping[str, object], now: int) -> None:
        """Sent at once on all paths if it is another one, and with each beat. Raises MisuseError, LimitError."""
        text = encode_state(state)
        if text == self._state:
            return
        self._state = text
        self._number += 1
        for path in self._paths:
            self._send(path, now)

    def tick(self, now: int) -> None:
        """Beats, and judges. All that had come by `now` must have been given to `receive` before."""
        if now < self._deadline:
            return
        late = now - self._deadline
        if late > self._settings.interval:
            self._stall(late, now)
        self._judge(now)
        if now >= self._next_beat:
            for path in self._paths:
                path.challenges = CHALLENGES
                self._send(path, now)
            self._next_beat += self._settings.interval
            if self._next_beat <= now:
                self._next_beat = now + self._settings.interval
        self._deadline = min([self._next_beat, *(path.silence.deadline() for path in self._paths if path.up)])

    def receive(self, number: int, data: bytes, now: int) -> Refusal | None:
        """A datagram that came on a path; None: it was accepted. A refused one changes nothing but its counter."""
        path = self._paths[number]
        message = self._codec.open(data, number)
        if isinstance(message, Refusal):
            return self._refuse(path, message)
        known = message.boot == self._peer_boot
        if message.boot in self._retired:
            text = "a process of the peer's that was replaced since; do two run there?"
            return self._refuse(path, Refusal(Reason.OLD_BOOT, text))
        if known and path.window.seen(message.seq):
            return self._refuse(path, Refusal(Reason.REPLAY, f"number {message.seq} was there before, or is too old"))
        if not (known and path.proven) and message.echo != path.nonce:
            self._challenge(path, message, now)
            return self._refuse(path, Refusal(Reason.UNPROVEN, "it has not echoed our nonce"))
        state = None
        if not known or self._peer_state is None or message.number > self._peer_state.number:
            state = decode_state(message.state)
            if state is None:
                return self._refuse(path, Refusal(Reason.STATE, "a state that is no JSON object"))
        self._accept(path, message, state, now)
        return None

    def stats(self, now: int) -> Stats:
        """All counters."""
        peer, state = self._peer_boot, self._peer_state
        return Stats(
            self._alive,
            self.boot,
            None if peer is None else peer.hex(),
            self._deaths,
            self._boots,
            self._stalls,
            self._longest_stall,
            None if state is None else state.number,
            None if state is None else max(0, now - state.confirmed),
            tuple(_path_stats(path, now) for path in self._paths),
        )

    def _accept(self, path: _Path, message: Message, state: dict[str, object] | None, now: int) -> None:
        known = message.boot == self._peer_boot
        if not known:
            self._believe(message.boot, path)
        self._count(path, message, now)
        if not path.proven:
            path.proven = True
            path.window.seal()
            self._renew_nonce(path)
            self._send(path, now)  # the peer may be waiting for its own nonce
        if not path.up:
            path.up = True
            path.silence.heard(now)
            self._events.append(PathUp(path.number))
        if not known or not self._alive:
            self._alive = True
            restarted = not known and self._boots > 1
            self._events.append(Alive(message.boot.hex(), restarted, message.interval))
        if state is not None:
            self._peer_state = PeerState(state, message.number, now, now)
            self._events.append(StateChanged(state))
        elif self._peer_state is not None and message.number == self._peer_state.number:
            old = self._peer_state
            self._peer_state = PeerState(old.state, old.number, old.since, max(old.confirmed, now))

    def _count(self, path: _Path, message: Message, now: int) -> None:
        """Numbers and round trips; a message that is not the newest says nothing about now."""
        path.received += 1
        gap = path.window.add(message.seq)
        if gap < 0:
            path.reordered += 1
            path.lost -= 1  # as which it was counted when a newer one came
            return
        path.lost += gap
        path.peer_nonce = message.nonce
        path.echo = (message.sent, now)
        path.heard = now
        path.silence.heard(now)
        # echo_sent is of our own clock only if the peer has heard this process of ours, as the nonce shows.
        if message.echo_sent > path.sampled and message.echo in (path.nonce, path.nonce_before):
            path.sampled = message.echo_sent
            path.rtt.add(now - message.echo_sent - message.echo_held)

    def _believe(self, boot: bytes, proved: _Path) -> None:
        """Another process of the peer's; the last one, and all that was proven for it, is over."""
        if self._peer_boot is not None:
            self._retired.append(self._peer_boot)
        self._peer_boot = boot
        self._boots += 1
        for path in self._paths:
            path.window = Window()
            path.proven = False
            if path is not proved:  # the nonce of that one is renewed as the others' are, when it has been counted
                self._renew_nonce(path)

    def _renew_nonce(self, path: _Path) -> None:
        path.nonce_before, path.nonce = path.nonce, self._random(NONCE)

    def _challenge(self, path: _Path, message: Message, now: int) -> None:
        if path.challenges:
            path.challenges -= 1
            self._send(path, now, message)

    def _refuse(self, path: _Path, refusal: Refusal) -> Refusal:
        path.refused[refusal.reason] += 1
        return refusal

    def _stall(self, late: int, now: int) -> None:
        self._stalls += 1
        self._longest_stall = max(self._longest_stall, late)
        self._start.stalled(self._deadline, now)
        for path in self._paths:
            path.silence.stalled(self._deadline, now)
        self._events.append(Stalled(late))

    def _judge(self, now: int) -> None:
        for path in self._paths:
            if path.up and path.silence.over(now):
                path.up = False
                path.downs += 1
                path.proven = False
                self._renew_nonce(path)
                self._events.append(PathDown(path.number, _silent(path, now) or 0))
        if any(path.up for path in self._paths):
            return
        if self._alive:
            ways = ", ".join(f"{path.name} for {_ms(_silent(path, now))}" for path in self._paths)
            self._die(f"silent on all paths: {ways}")
        elif self._alive is None and self._start.over(now):
            self._die("never heard since our start")

    def _die(self, reason: str) -> None:
        unproven = sum(path.refused[Reason.UNPROVEN] for path in self._paths)
        if self._alive is None and unproven:
            reason += f", but for {unproven} messages that echo nothing of ours: it does not hear us"
        self._alive = False
        self._deaths += 1
        self._events.append(Dead(reason))

    def _send(self, path: _Path, now: int, to: Message | None = None) -> None:
        """A beat; or the answer to a message that is not believed."""
        echo, echo_sent, at = (path.peer_nonce, *path.echo) if to is None else (to.nonce, to.sent, now)
        path.seq += 1
        message = Message(
            path.number,
            self._boot,
            path.seq,
            path.nonce,
            echo,
            now,
            echo_sent,
            max(0, now - at),
            self._settings.interval,
            self._number,
            self._state,
        )
        path.sent += 1
        self._datagrams.append((path.number, self._codec.seal(message)))


def _silent(path: _Path, now: int) -> int | None:
    return None if path.heard is None else max(0, now - path.heard)


def _ms(ns: int | None) -> str:
    return "ever" if ns is None else f"{ns // MS} ms"


def _path_stats(path: _Path, now: int) -> PathStats:
    return PathStats(
        path.name,
        path.up,
        path.sent,
        path.send_errors,
        path.received,
        dict(path.refused),
        path.lost,
        path.reordered,
        path.rtt.snapshot(),
        _silent(path, now),
        path.downs,
    )
