# SPDX-License-Identifier: Apache-2.0
"""Who tells the engine when an epoch ends: QMP (QmpGuide), or without it Xen's messages, if anybody (PlainGuide)."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from . import reports
from .address import Address
from .checkpoint import Controller
from .checkpoint_actions import (
    Action,
    EngineAbort,
    EngineAlone,
    EngineCommit,
    EngineStop,
    SendCommand,
    Timing,
)
from .checkpoint_states import State
from .engine_events import Committed, EngineEvent, PeerAttached, PeerLost, Port
from .errors import LimitError, NativeError
from .events import CheckpointWanted
from .qmp import Outcome, QmpLink
from .reports import Report

log = logging.getLogger(__name__)

Tell = Callable[[Report], None]

BEGUN_BY_SECONDARY: Final = "the secondary has connected, and without --qmp nothing else would tell"


def cause_of(event: CheckpointWanted) -> str:
    """Why, for people."""
    return str(event.cause) if event.flow is None else f"{event.cause} in {event.flow}"


class Epochs(Protocol):
    """What a guide guides: an engine, or one with the data path of the TAP attach around it."""

    def checkpoint_stop(self) -> None: ...

    def checkpoint_commit(self, resumed_ns: int) -> None: ...

    def checkpoint_abort(self) -> None: ...

    def alone(self) -> None: ...

    def gate_attach(self, sock: socket.socket) -> socket.socket: ...

    def gate_done(self, messages: int) -> None: ...

    def gate_detach(self) -> None: ...


class Guide(Protocol):
    """All guides. All methods are called in the event loop's thread."""

    def begin(self, engine: Epochs) -> None:
        """A new engine, not started yet: the first, or the one after the primary's death."""

    def on_engine(self, event: EngineEvent) -> None:
        """After the engine's event was told."""

    def want(self, cause: str) -> None:
        """Somebody else than the comparator wants a checkpoint."""

    def secondary_is_there(self) -> None:
        """What the secondary says can be compared from now on, again or for the first time: see to protection."""

    async def run(self) -> None:
        """Until cancelled."""

    def primary_is_gone(self) -> bool:
        """Now that the primary's socket is closed: whether its QEMU has died, as far as can be known."""

    def protected(self) -> bool:
        """Whether frames are compared, or held for it."""


class QmpGuide:
    """Carries out what the checkpoint controller says. The handler of its QmpLink; the engine's gate for it, too.

    on_up: called whenever QMP is there (again).
    """

    def __init__(self, address: Address, timing: Timing, tell: Tell, on_up: Callable[[], None]) -> None:
        self._tell = tell
        self._on_up = on_up
        self._timing = timing
        self._controller = Controller(timing)
        self._engine: Epochs | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._committing: deque[list[Report]] = deque()  # reports that wait for their Committed, oldest commit first
        self._ending = False
        self.stopped_at = 0  # the last STOP, by QEMU's own clock as far as it told it; CLOCK_MONOTONIC ns
        self.link = QmpLink(address, self, gate=self, deadline_s=timing.deadline * timing.patience / 1e9)

    # ---------------------------------------------------------------- Guide

    def begin(self, engine: Epochs) -> None:
        self._engine = engine
        self._committing.clear()
        self._controller = Controller(self._timing)
        self._perform(self._controller.start())

    def on_engine(self, event: EngineEvent) -> None:
        if isinstance(event, CheckpointWanted):
            self._perform(self._controller.want(cause_of(event), time.monotonic_ns(), event.epoch))
        elif isinstance(event, Committed) and self._committing:
            for report in self._committing.popleft():
                self._tell(_with_released(report, event))

    def want(self, cause: str) -> None:
        self._perform(self._controller.want(cause, time.monotonic_ns()))

    def secondary_is_there(self) -> None:
        self.want("the secondary is connected anew")

    async def run(self) -> None:
        try:
            await self.link.run()
        finally:
            self._ending = True
            if self._timer is not None:
                self._timer.cancel()

    def primary_is_gone(self) -> bool:
        return self._controller.state is State.BLIND

    def protected(self) -> bool:
        return self._controller.state not in {State.IDLE, State.IDLE_STOPPED}

    # -------------------------------------------------------------- Handler

    def qmp_connected(self, now: int) -> None:
        self._perform(self._controller.on_connected(now))
        self._on_up()

    def qmp_event(self, name: str, data: Mapping[str, object], at: int | None, now: int) -> None:
        if name == "STOP":
            self.stopped_at = now if at is None else min(at, now)
        self._perform(self._controller.on_event(name, data, at, now))

    def qmp_lost(self, reason: str) -> None:
        self._ending = self._ending or reason == "shutting down"
        self._perform(self._controller.on_lost(reason))

    def qmp_unreachable(self, reason: str) -> None:
        self._tell(reports.Trouble(f"{reason}; holding all output, trying again"))

    # ----------------------------------------------------------------- Gate

    def gate_attach(self, sock: socket.socket) -> socket.socket:
        return self._current().gate_attach(sock)

    def gate_done(self, messages: int) -> None:
        self._current().gate_done(messages)

    def gate_detach(self) -> None:
        self._current().gate_detach()

    # -------------------------------------------------------------- actions

    def _current(self) -> Epochs:
        assert self._engine is not None
        return self._engine

    def _perform(self, actions: list[Action]) -> None:
        """In the order given, synchronously; then the timer is set for the controller's next deadline."""
        engine = self._current()
        waiting: list[Report] | None = None
        for action in actions:
            match action:
                case EngineStop():
                    engine.checkpoint_stop()
                case EngineCommit(resumed_ns):
                    engine.checkpoint_commit(resumed_ns)
                    waiting = []
                    self._committing.append(waiting)
                case EngineAbort():
                    engine.checkpoint_abort()
                case EngineAlone():
                    engine.alone()
                case SendCommand(token, name, arguments):
                    self._submit(token, name, arguments)
                case reports.CheckpointCommitted() | reports.Protected() if waiting is not None:
                    waiting.append(action)
                case _:
                    if not self._ending:
                        self._tell(action)
        self._arm()

    def _submit(self, token: int, name: str, arguments: Mapping[str, object] | None) -> None:
        controller = self._controller

        def done(outcome: Outcome) -> None:
            if controller is not self._controller:
                return  # of a QEMU that is no more
            if outcome.error is None:
                self._perform(controller.on_reply(token, outcome.value, outcome.now))
            else:
                self._perform(controller.on_failure(token, outcome.error, outcome.now))

        self.link.submit(name, arguments, done)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._controller.deadline()
        if due is not None and not self._ending:
            # asyncio's clock is time.monotonic(), so CLOCK_MONOTONIC in seconds
            self._timer = asyncio.get_running_loop().call_at(due / 1e9, self._tick)

    def _tick(self) -> None:
        try:
            self._perform(self._controller.tick(time.monotonic_ns()))
        except (LimitError, NativeError) as error:  # the engine's own event tells of its end
            log.warning("%s", error)


def _with_released(report: Report, event: Committed) -> Report:
    if isinstance(report, reports.CheckpointCommitted):
        return dataclasses.replace(report, released_frames=event.released_frames, released_bytes=event.released_bytes)
    return report


class PlainGuide:
    """Without QMP. Protection begins when the secondary connects; only `commit` (Xen) ends an epoch.

    ask: sends DO_CHECKPOINT, if there is a notify_dev.
    repeat_s: how often, while it is not answered.
    """

    def __init__(self, tell: Tell, ask: Callable[[], bool] | None, repeat_s: float) -> None:
        self._tell = tell
        self._ask = ask
        self._repeat_s = repeat_s
        self._engine: Epochs | None = None
        self._protected = False
        self._causes: list[str] = []
        self._asked_at: int | None = None
        self._attempts = 0
        self._commits = 0
        self._committing: deque[Report] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, engine: Epochs) -> None:
        self._engine = engine
        self._protected = False
        self._committing.clear()
        self._forget()

    def on_engine(self, event: EngineEvent) -> None:
        match event:
            case PeerAttached(port=Port.SECONDARY_IN):
                self.secondary_is_there()
            case PeerLost(port=Port.SECONDARY_IN) if self._protected:
                text = "the secondary is not connected: all output that it has not confirmed is held until it is back"
                self._tell(reports.Trouble(text))
            case CheckpointWanted():
                self.want(cause_of(event))
            case Committed() if self._committing:
                self._tell(_with_released(self._committing.popleft(), event))
            case _:
                pass

    async def run(self) -> None:
        await asyncio.Event().wait()

    def primary_is_gone(self) -> bool:
        return True

    def protected(self) -> bool:
        return self._protected

    def secondary_is_there(self) -> None:
        if not self._protected:
            self._protected = True
            self._commit(reports.Protected(None))

    def commit(self) -> None:
        """Xen says that a checkpoint has committed."""
        self._protected = True
        self._commits += 1
        now = time.monotonic_ns()
        total = now - self._asked_at if self._asked_at is not None else None
        report = reports.CheckpointCommitted(self._commits, tuple(self._causes), None, None, total)
        self._forget()
        self._commit(report)

    def _commit(self, report: Report) -> None:
        assert self._engine is not None
        self._committing.append(report)
        self._engine.checkpoint_stop()
        self._engine.checkpoint_commit(time.monotonic_ns())

    def _forget(self) -> None:
        self._causes = []
        self._asked_at = None
        self._attempts = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def want(self, cause: str) -> None:
        if self._ask is None:
            self._tell(reports.Trouble(f"a checkpoint is wanted, and there is no --qmp to ask for it: {cause}"))
            return
        self._causes.append(cause)
        if self._timer is None:
            self._asked_at = time.monotonic_ns()
            self._send()

    def _send(self) -> None:
        """Now, and again until it is answered: as QEMU's comparator does at each scan."""
        assert self._ask is not None
        if self._ask():
            self._attempts += 1
            if self._attempts == 1:
                self._tell(reports.CheckpointAsked(tuple(self._causes), 1))
        self._timer = asyncio.get_running_loop().call_later(self._repeat_s, self._send)
