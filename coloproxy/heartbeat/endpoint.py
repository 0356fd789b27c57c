# SPDX-License-Identifier: Apache-2.0
"""The heartbeat on asyncio: real sockets and the real clock around detector.py.

    heartbeat = Heartbeat(Settings("web", "a", psk), [UdpPath("link", ("10.0.0.1", 7100), ("10.0.0.2", 7100))],
                          on_alive=..., on_dead=..., on_state=...)
    heartbeat.start()
    heartbeat.set_state({"role": "primary"})
    ...
    heartbeat.close()

All of it runs on the loop that `start` was called on. The loop must not be kept busy for long: `timeout` without a
beat is death to the peer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from coloproxy.errors import MisuseError
from coloproxy.path.refusals import Refusals

from .detector import (
    LEAST_BEATS,
    MS,
    Alive,
    Dead,
    Detector,
    Event,
    PathDown,
    PathUp,
    PeerState,
    Settings,
    Stalled,
    StateChanged,
)
from .message import Reason, Refusal, encode_state
from .statistics import Stats
from .udp import UdpPath, UdpSocket

log = logging.getLogger(__name__)

READ_AT_ONCE: Final = 64  # datagrams of one path before others get their turn
READ_BEFORE_TICK: Final = 2048  # more than a socket's queue can hold: all that was there is read
_QUIET: Final = frozenset({Reason.REPLAY, Reason.UNPROVEN})  # they happen in a healthy network


class Heartbeat:
    """One host's side of a pair: beats on all paths, and says whether the peer lives.

    Callbacks run on the loop, in order, after what they tell of has happened; an exception of theirs is logged.
    on_alive(boot): the peer lives: first, again, or as a new process (boot is another one then).
    on_dead(reason): all paths are silent. on_state(state): the peer's state is another one.
    on_path(name, up): for whoever wants to tell of the loss of one path; the peer may be alive.
    """

    def __init__(
        self,
        settings: Settings,
        paths: Sequence[UdpPath],
        *,
        on_alive: Callable[[str], None],
        on_dead: Callable[[str], None],
        on_state: Callable[[dict[str, object]], None],
        on_path: Callable[[str, bool], None] | None = None,
        state: Mapping[str, object] | None = None,
    ) -> None:
        """Raises MisuseError: settings or paths that can't be used; LimitError: the state is too long."""
        self._settings = settings
        self._paths = tuple(paths)
        self._on_alive = on_alive
        self._on_dead = on_dead
        self._on_state = on_state
        self._on_path = on_path
        self._state = dict(state or {})
        Detector(settings, [path.name for path in paths], 0, state=state)  # for its checks
        self._sockets = [UdpSocket(path) for path in self._paths]
        self._registered: dict[int, int] = {}  # path: fd with a reader
        self._refusals = {path.name: Refusals(log, f"heartbeat {settings.pair}") for path in self._paths}
        self._told: dict[int, str | None] = {}  # path: the error that was logged
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._detector: Detector | None = None

    def start(self) -> None:
        """On the running loop. Raises AddressError: an address that can't be used (a missing one may come later)."""
        if self._detector is not None:
            raise MisuseError("a heartbeat is started once")
        self._loop = asyncio.get_running_loop()
        now = time.monotonic_ns()
        try:
            for number in range(len(self._sockets)):
                self._open(number, now)
        except BaseException:
            self.close()
            raise
        names = [path.name for path in self._paths]
        self._detector = Detector(self._settings, names, time.monotonic_ns(), state=self._state)
        self._wake()

    def close(self) -> None:
        """No more beats, no more callbacks. Idempotent. The peer is not told: put that into the state before."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for number, sock in enumerate(self._sockets):
            self._forget(number)
            sock.close()
        self._loop = None

    @property
    def alive(self) -> bool | None:
        """The last verdict; None: there was none yet."""
        return None if self._detector is None else self._detector.alive

    @property
    def confirmed(self) -> int | None:
        """As Detector.confirmed: CLOCK_MONOTONIC ns."""
        return None if self._detector is None else self._detector.confirmed

    @property
    def boot(self) -> str | None:
        """Our own process, hex; None before start."""
        return None if self._detector is None else self._detector.boot

    @property
    def peer_state(self) -> PeerState | None:
        """The peer's latest; its times are of time.monotonic_ns. It stays when the peer has died."""
        return None if self._detector is None else self._detector.peer_state

    def set_state(self, state: Mapping[str, object]) -> None:
        """Ours, sent at once if it is another one. Raises MisuseError: no JSON; LimitError: more than 1 KiB of it."""
        encode_state(state)
        self._state = dict(state)
        if self._detector is not None and self._loop is not None:
            self._detector.set_state(state, time.monotonic_ns())
            self._send()

    def stats(self) -> Stats:
        """All counters. Raises MisuseError: not started yet."""
        return self._running().stats(time.monotonic_ns())

    def _running(self) -> Detector:
        if self._detector is None:
            raise MisuseError("the heartbeat was not started")
        return self._detector

    def _wake(self) -> None:
        """The timer. Clock, sockets, verdict: detector.py's argument about our own stalls rests on this order."""
        detector = self._running()
        now = time.monotonic_ns()
        try:
            for number in range(len(self._sockets)):
                self._read(number, READ_BEFORE_TICK)
            detector.tick(now)
            self._send()
            self._reopen(now)
            self._tell()
        finally:
            if self._loop is not None:  # a callback may have closed us
                delay = max(0, detector.deadline - time.monotonic_ns())
                self._timer = self._loop.call_later(delay / 1e9, self._wake)

    def _readable(self, number: int) -> None:
        self._read(number, READ_AT_ONCE)
        self._send()
        self._tell()

    def _read(self, number: int, most: int) -> None:
        detector, sock = self._running(), self._sockets[number]
        for _ in range(most):
            data = sock.receive()
            if data is None:
                return
            refusal = detector.receive(number, data, time.monotonic_ns())
            if refusal is not None:
                self._refused(number, refusal)

    def _send(self) -> None:
        detector = self._running()
        for number, data in detector.datagrams():
            if not self._sockets[number].send(data):
                detector.not_sent(number)

    def _tell(self) -> None:
        for event in self._running().events():
            if self._loop is None:
                return
            try:
                self._tell_one(event)
            except Exception:
                log.exception("heartbeat %s: telling of %s failed", self._settings.pair, type(event).__name__)

    def _tell_one(self, event: Event) -> None:
        pair = self._settings.pair
        match event:
            case Alive(boot, restarted, interval):
                log.info("heartbeat %s: the peer is alive%s (%s)", pair, ", restarted" if restarted else "", boot)
                if interval * LEAST_BEATS > self._settings.timeout:
                    text = "heartbeat %s: the peer beats each %d ms, too seldom for a timeout of %d ms"
                    log.warning(text, pair, interval // MS, self._settings.timeout // MS)
                self._on_alive(boot)
            case Dead(reason):
                log.warning("heartbeat %s: the peer is dead: %s", pair, reason)
                self._on_dead(reason)
            case StateChanged(state):
                self._on_state(state)
            case PathUp(number):
                self._told_path(number, up=True, text="is up")
            case PathDown(number, silent):
                self._told_path(number, up=False, text=f"is down, silent for {silent // MS} ms")
            case Stalled(late):
                # Short ones are counted; half a timeout is near to what the peer may take for our death.
                level = logging.WARNING if late >= self._settings.timeout // 2 else logging.DEBUG
                log.log(level, "heartbeat %s: this process did not run for %d ms when it should have", pair, late // MS)

    def _told_path(self, number: int, *, up: bool, text: str) -> None:
        name = self._paths[number].name
        log.log(logging.INFO if up else logging.WARNING, "heartbeat %s: path %s %s", self._settings.pair, name, text)
        if self._on_path is not None:
            self._on_path(name, up)

    def _refused(self, number: int, refusal: Refusal) -> None:
        if refusal.reason not in _QUIET:
            path = self._paths[number]
            where = f"path {path.name} from {path.peer[0]}"
            self._refusals[path.name].note(refusal.reason, where, refusal.text, time.monotonic())

    def _reopen(self, now: int) -> None:
        for number, sock in enumerate(self._sockets):
            if sock.due(now):
                self._forget(number)
                try:
                    self._open(number, now)
                except MisuseError as error:  # the port was taken meanwhile: tried again, as all else
                    sock.error = str(error)
            self._note(number)

    def _note(self, number: int) -> None:
        """Logs when a path's system error begins and ends, once each."""
        error, name = self._sockets[number].error, self._paths[number].name
        if error == self._told.get(number):
            return
        self._told[number] = error
        if error is None:
            log.info("heartbeat %s: path %s can send again", self._settings.pair, name)
        else:
            log.warning("heartbeat %s: path %s can't send: %s; tried again", self._settings.pair, name, error)

    def _open(self, number: int, now: int) -> None:
        sock = self._sockets[number]
        sock.open(now)
        fd = sock.fileno()
        if fd is not None and self._loop is not None:
            self._loop.add_reader(fd, self._readable, number)
            self._registered[number] = fd
        self._note(number)

    def _forget(self, number: int) -> None:
        """Before its socket is closed."""
        fd = self._registered.pop(number, None)
        if fd is not None and self._loop is not None:
            self._loop.remove_reader(fd)


__all__ = ["Heartbeat"]
