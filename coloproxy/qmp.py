# SPDX-License-Identifier: Apache-2.0
"""QMP adapter on the qemu.qmp package: one monitor, reconnected for ever, every command with a deadline.

Each message is handed to the handler inside the read loop, synchronously and in order, and acknowledged to the epoch
gate right after, whatever happens: the engine judges no frame while a message is unacknowledged. So neither a task
switch nor an exception can come between STOP or RESUME and what must follow from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from qemu.qmp import ConnectError, Message, QMPClient, Runstate
from qemu.qmp.error import ProtocolError

from . import clock
from .address import Address, connect_once
from .errors import AddressError, ColoproxyError, MisuseError, NativeError, QmpError

log = logging.getLogger(__name__)

RECONNECT_S: Final = 0.2
DISCONNECT_S: Final = 1.0
MAX_MESSAGE: Final = 4 << 20  # bytes; a longer line is not QMP's
ID_PREFIX: Final = "coloproxy-"


class Gate(Protocol):
    """The engine's epoch gate (csrc/gate.h)."""

    def gate_attach(self, sock: socket.socket) -> socket.socket: ...

    def gate_done(self, messages: int) -> None: ...

    def gate_detach(self) -> None: ...


class Handler(Protocol):
    """Who is told. All are called synchronously in the order of what QEMU said; times are CLOCK_MONOTONIC ns."""

    def qmp_connected(self, now: int) -> None: ...

    def qmp_event(self, name: str, data: Mapping[str, object], at: int | None, now: int) -> None: ...

    def qmp_lost(self, reason: str) -> None: ...

    def qmp_unreachable(self, reason: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a command: `value`, or `error` (text) when it was refused, not answered in time, or QMP was lost."""

    value: object
    error: str | None
    now: int


Done = Callable[[Outcome], None]


class _Client(QMPClient):
    """QMPClient with a synchronous hook in its read loop."""

    def __init__(self, hook: Callable[[Message], bool], acknowledge: Callable[[], None]) -> None:
        super().__init__(readbuflen=MAX_MESSAGE)
        self._hook = hook
        self._acknowledge = acknowledge
        self._dealt_with = False  # the message that _do_recv returned last

    async def _do_recv(self) -> Message:
        line = await self._readline()
        try:
            message = Message(line, eager=True)
            self._dealt_with = self._hook(message)
            return message
        finally:
            if line.endswith(b"\n"):
                self._acknowledge()

    async def _on_message(self, msg: Message) -> None:
        # Not for events either: QMPClient's own listener keeps them without bound.
        if not self._dealt_with:
            await super()._on_message(msg)

    def put(self, message: Message) -> None:
        """Sends without waiting; the connection must be up."""
        self._outgoing.put_nowait(message)


class QmpLink:
    """The monitor at `address`. `run()` is its life; `submit` and `execute` work while it is connected.

    gate: None: no epoch gate (tests, secondaries).
    deadline_s: for the greeting and for each command.
    """

    def __init__(
        self,
        address: Address,
        handler: Handler,
        *,
        gate: Gate | None = None,
        deadline_s: float = 3.0,
        option: str = "--qmp",
    ) -> None:
        self.address = address
        self.option = option
        self._handler = handler
        self._gate = gate
        self._deadline_s = deadline_s
        self._client: _Client | None = None
        self._ids = 0
        self._waiting: dict[str, tuple[Done, asyncio.TimerHandle]] = {}

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.runstate is Runstate.RUNNING

    # ------------------------------------------------------------- commands

    def submit(
        self, name: str, arguments: Mapping[str, object] | None, done: Done, *, out_of_band: bool = False
    ) -> None:
        """Sends a command; `done` is called once: in the read loop, at the deadline, or when QMP is lost.

        out_of_band: QEMU answers even while its main loop hangs; few commands can be sent so.
        """
        client = self._client
        if client is None or client.runstate is not Runstate.RUNNING:
            done(Outcome(None, "QMP is not connected", time.monotonic_ns()))
            return
        self._ids += 1
        ident = f"{ID_PREFIX}{self._ids}"
        message = QMPClient.make_execute_msg(name, arguments, oob=out_of_band)
        message["id"] = ident
        timer = asyncio.get_running_loop().call_later(self._deadline_s, self._expire, ident)
        self._waiting[ident] = (done, timer)
        client.put(message)

    async def execute(
        self, name: str, arguments: Mapping[str, object] | None = None, *, out_of_band: bool = False
    ) -> object:
        """The return value of a command. Raises QmpError."""
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()

        def done(outcome: Outcome) -> None:
            if future.done():
                return  # cancelled
            if outcome.error is None:
                future.set_result(outcome.value)
            else:
                future.set_exception(QmpError(f"{name}: {outcome.error}"))

        self.submit(name, arguments, done, out_of_band=out_of_band)
        return await future

    def _finish(self, ident: str, value: object, error: str | None) -> None:
        entry = self._waiting.pop(ident, None)
        if entry is not None:  # else it came after its deadline
            done, timer = entry
            timer.cancel()
            done(Outcome(value, error, time.monotonic_ns()))

    def _expire(self, ident: str) -> None:
        self._finish(ident, None, f"no answer within {self._deadline_s:g} s")

    # ----------------------------------------------------------- connection

    async def run(self) -> None:
        """Connects, and again 0.2 s after each loss, until cancelled."""
        told = ""
        while True:
            try:
                await self._connect()
            except ColoproxyError as error:
                if str(error) != told:
                    told = str(error)
                    self._handler.qmp_unreachable(told)
            else:
                told = ""
                await self._serve()
            await asyncio.sleep(RECONNECT_S)

    async def _connect(self) -> None:
        """One attempt, up to the negotiated session. Raises QmpError or AddressError."""
        sock = await connect_once(self.address, self.option)
        where = f"{self.option}: {str(self.address).removeprefix('connect:')}"
        try:
            near = self._attach_gate(sock)
        except (MisuseError, NativeError) as error:
            sock.close()
            raise QmpError(f"{where}: {error}") from error
        client = _Client(self._on_message, self._acknowledge)
        try:
            async with asyncio.timeout(self._deadline_s):
                await client.connect(near)
        except TimeoutError as error:
            self._detach_gate()
            reason = f"no QMP greeting within {self._deadline_s:g} s (is another client connected to this monitor?)"
            raise QmpError(f"{where}: {reason}") from error
        except ConnectError as error:
            self._detach_gate()
            raise QmpError(f"{where}: {_connect_reason(error.exc)}") from error
        except AssertionError as error:  # qemu.qmp's way to say that the read loop ended before connect() did
            self._detach_gate()
            raise QmpError(f"{where}: {await _close(client) or 'closed by the other end'}") from error
        except BaseException:
            self._detach_gate()
            near.close()
            raise
        self._client = client

    async def _serve(self) -> None:
        """From the negotiated session to its end."""
        client = self._client
        assert client is not None
        reason = "closed by QEMU"
        try:
            self._handler.qmp_connected(time.monotonic_ns())
            while client.runstate is Runstate.RUNNING:
                await client.runstate_changed()
        except asyncio.CancelledError:
            reason = "shutting down"
            raise
        finally:
            reason = await _close(client) or reason
            self._client = None
            for ident in list(self._waiting):
                self._finish(ident, None, "QMP lost")
            self._handler.qmp_lost(reason)  # first the engine is told to hold, ...
            self._detach_gate()  # ... then frames may move again

    def _on_message(self, message: Message) -> bool:
        """In the read loop. True: it was an event, or a reply to `submit`, and is dealt with."""
        event = message.get("event")
        if isinstance(event, str):
            at, now = clock.receive(message.get("timestamp"))
            data = message.get("data")
            self._handler.qmp_event(event, data if isinstance(data, Mapping) else {}, at, now)
            return True
        ident = message.get("id")
        if not isinstance(ident, str) or not ident.startswith(ID_PREFIX):
            return False
        error = message.get("error")
        if isinstance(error, Mapping):
            self._finish(ident, None, str(error.get("desc", error)))
        elif "return" in message:
            self._finish(ident, message["return"], None)
        else:
            self._finish(ident, None, "a reply with neither return nor error")
        return True

    # ------------------------------------------------------------------ gate

    def _attach_gate(self, sock: socket.socket) -> socket.socket:
        return sock if self._gate is None else self._gate.gate_attach(sock)

    def _detach_gate(self) -> None:
        if self._gate is not None:
            self._gate.gate_detach()

    def _acknowledge(self) -> None:
        if self._gate is not None:
            with contextlib.suppress(NativeError):  # the engine's thread is gone: its own event says so
                self._gate.gate_done(1)


async def _close(client: QMPClient) -> str | None:
    """Ends a session. Returns what was wrong with it, None if it was nothing or its end."""
    try:
        async with asyncio.timeout(DISCONNECT_S):  # a QEMU that does not read must not keep us
            await client.disconnect()
    except (EOFError, TimeoutError):
        return None
    except Exception as error:  # whatever ended the read loop: it must not end us
        log.debug("QMP read loop", exc_info=True)
        return _connect_reason(error)
    return None


def _connect_reason(error: BaseException) -> str:
    """Why a session could not be made, or ended, for people."""
    cause = error.__cause__ if error.__cause__ is not None else error
    gone = EOFError | BrokenPipeError | ConnectionResetError
    if isinstance(error, gone) or isinstance(cause, gone):
        return "the other end closed the connection without a QMP greeting"
    if isinstance(error, ProtocolError | UnicodeError) or isinstance(cause, ProtocolError | KeyError | TypeError):
        return "this is not a QMP monitor: what it sends is not QMP"
    if isinstance(error, ValueError):
        return f"a line longer than {MAX_MESSAGE} bytes: this is not QMP"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"{type(error).__name__}: {error}"


__all__ = ["AddressError", "Done", "Gate", "Handler", "Outcome", "QmpLink"]
