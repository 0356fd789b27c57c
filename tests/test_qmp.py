# SPDX-License-Identifier: Apache-2.0
"""The QMP adapter against a real QEMU, and against sockets that are none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from qemu_process import Qemu, needs_qemu

from coloproxy.address import parse_address
from coloproxy.clock import monotonic_of
from coloproxy.errors import QmpError
from coloproxy.qmp import Outcome, QmpLink

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}


class Recorder:
    """A handler that writes everything down, in order, with the gate's count at that moment."""

    def __init__(self, gate: RelayGate | None = None) -> None:
        self.queue: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
        self.gate = gate
        self.fail_on = ""

    def qmp_connected(self, now: int) -> None:
        self.queue.put_nowait(("connected",))

    def qmp_event(self, name: str, data: Mapping[str, object], at: int | None, now: int) -> None:
        done = self.gate.done if self.gate is not None else 0
        self.queue.put_nowait(("event", name, data, at, now, done))
        if name == self.fail_on:
            raise RuntimeError("a bug in the handler")

    def qmp_lost(self, reason: str) -> None:
        attached = self.gate is not None and self.gate.attached
        self.queue.put_nowait(("lost", reason, attached))

    def qmp_unreachable(self, reason: str) -> None:
        self.queue.put_nowait(("unreachable", reason))

    async def next(self, kind: str) -> tuple[Any, ...]:
        """The next entry of that kind; the ones before are dropped."""
        async with asyncio.timeout(20):
            while True:
                entry = await self.queue.get()
                if entry[0] == kind:
                    return entry


class RelayGate:
    """The engine's gate in miniature: moves bytes between QEMU and a socket pair and counts the lines."""

    def __init__(self) -> None:
        self.seen = self.done = 0
        self.attached = False
        self._tasks: list[asyncio.Task[None]] = []

    def gate_attach(self, sock: socket.socket) -> socket.socket:
        near, far = socket.socketpair()
        for end in (near, far, sock):
            end.setblocking(False)
        self.seen = self.done = 0
        self.attached = True
        self._tasks = [
            asyncio.create_task(self._relay(sock, far, count=True)),
            asyncio.create_task(self._relay(far, sock, count=False)),
        ]
        return near

    def gate_done(self, messages: int) -> None:
        self.done += messages

    def gate_detach(self) -> None:
        self.attached = False
        for task in self._tasks:
            task.cancel()

    async def _relay(self, source: socket.socket, sink: socket.socket, *, count: bool) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(source, 65536):
                if count:
                    self.seen += data.count(b"\n")
                await loop.sock_sendall(sink, data)
        except OSError:
            pass
        finally:
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_RDWR)
            source.close()


@contextlib.asynccontextmanager
async def running(link: QmpLink) -> AsyncIterator[QmpLink]:
    task = asyncio.create_task(link.run())
    try:
        yield link
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def link_to(path: Path, handler: Recorder, gate: RelayGate | None = None, deadline_s: float = 10.0) -> QmpLink:
    address = parse_address(f"unix:{path}", "--qmp", may_listen=False)
    return QmpLink(address, handler, gate=gate, deadline_s=deadline_s)


@needs_qemu
async def test_commands_and_events_of_a_real_qemu(tmp_path: Path) -> None:
    gate = RelayGate()
    handler = Recorder(gate)
    with Qemu(tmp_path) as qemu:
        async with running(link_to(qemu.qmp, handler, gate)) as link:
            await handler.next("connected")
            status = await link.execute("query-status")
            assert isinstance(status, dict)
            assert status["running"] is True
            before = time.monotonic_ns()
            assert await link.execute("stop") == {}
            assert await link.execute("cont") == {}
            _, name, _, stopped, stop_seen, stop_done = await handler.next("event")
            assert name == "STOP"
            _, name, _, resumed, resume_seen, resume_done = await handler.next("event")
            assert name == "RESUME"
            # QEMU truncates to microseconds; the order of QEMU's clock is also ours
            assert before - 1000 <= stopped <= resumed
            assert stopped <= stop_seen
            assert resumed <= resume_seen
            assert stop_done < resume_done  # a message is acknowledged after it was handled, before the next
            with pytest.raises(QmpError, match="no-such-command"):
                await link.execute("no-such-command")
            assert gate.seen == gate.done  # greeting, capabilities, replies and events: all acknowledged
            assert gate.done >= 8
        assert await handler.next("lost") == ("lost", "shutting down", True)
        assert not gate.attached


@needs_qemu
async def test_replies_are_handled_in_the_read_loop(tmp_path: Path) -> None:
    """`done` of a reply runs before the message after it is handled: no task switch in between."""
    order: list[str] = []

    class Handler(Recorder):
        def qmp_event(self, name: str, data: Mapping[str, object], at: int | None, now: int) -> None:
            order.append(name)
            super().qmp_event(name, data, at, now)

    handler = Handler()
    with Qemu(tmp_path) as qemu:
        async with running(link_to(qemu.qmp, handler)) as link:
            await handler.next("connected")

            def note(name: str) -> Callable[[Outcome], None]:
                return lambda outcome: order.append(f"{name}:{outcome.error}")

            link.submit("stop", None, note("stop"))
            link.submit("query-status", None, note("query-status"))
            link.submit("cont", None, note("cont"))
            await link.execute("query-name")
    assert order == ["STOP", "stop:None", "query-status:None", "RESUME", "cont:None"]


@needs_qemu
async def test_an_exception_in_the_handler_leaks_no_message(tmp_path: Path) -> None:
    gate = RelayGate()
    handler = Recorder(gate)
    handler.fail_on = "STOP"
    with Qemu(tmp_path) as qemu:
        async with running(link_to(qemu.qmp, handler, gate)) as link:
            await handler.next("connected")
            with pytest.raises(QmpError, match="QMP lost"):
                await link.execute("stop")
                await link.execute("query-status")
            _, reason, attached = await handler.next("lost")
            assert "a bug in the handler" in reason
            assert attached  # told first; then the gate is detached, which forgets what nobody has read
            await handler.next("connected")  # and it goes on
            assert await link.execute("query-name") == {}
            assert gate.seen == gate.done


@needs_qemu
async def test_qemu_gone_and_back(tmp_path: Path) -> None:
    handler = Recorder(RelayGate())
    qemu = Qemu(tmp_path)
    with qemu:
        async with running(link_to(qemu.qmp, handler, handler.gate)) as link:
            await handler.next("connected")
            qemu.kill()
            _, reason, attached = await handler.next("lost")
            assert reason == "closed by QEMU"
            assert attached  # the engine learns of the loss before its gate opens
            with pytest.raises(QmpError, match="not connected"):
                await link.execute("query-status")
            assert "can't connect" in (await handler.next("unreachable"))[1]
            qemu.start()
            await handler.next("connected")
            assert await link.execute("query-name") == {}


@needs_qemu
async def test_a_monitor_that_is_taken(tmp_path: Path) -> None:
    with Qemu(tmp_path) as qemu, socket.socket(socket.AF_UNIX) as other:
        other.connect(str(qemu.qmp))
        assert b"QMP" in other.recv(4096)
        handler = Recorder()
        async with running(link_to(qemu.qmp, handler, deadline_s=0.3)):
            _, reason = await handler.next("unreachable")
            assert "no QMP greeting" in reason
            assert str(qemu.qmp) in reason
            other.close()
            await handler.next("connected")


# ------------------------------------------------- sockets that are no QMP

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def server(path: Path, talk: Serve) -> AsyncIterator[None]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await talk(reader, writer)
        writer.close()

    listening = await asyncio.start_unix_server(serve, path)
    try:
        yield
    finally:
        listening.close()


async def command(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The next command; clients need not end it with a newline."""
    text = ""
    while True:
        text += (await reader.readexactly(1)).decode()
        with contextlib.suppress(ValueError):
            return dict(json.loads(text))


def saying(data: bytes, *, stay: bool = False) -> Serve:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if stay:
            await reader.read()

    return talk


WRONG = [
    ("closes at once", saying(b""), "closed the connection"),
    ("silent", saying(b"", stay=True), "no QMP greeting within 0.3 s"),
    ("half a greeting, then silence", saying(b'{"QMP": ', stay=True), "no QMP greeting"),
    ("half a greeting, then the end", saying(b'{"QMP": '), "not a QMP monitor"),
    ("another protocol", saying(b"SSH-2.0-OpenSSH_9.2\r\n", stay=True), "not a QMP monitor"),
    ("frames", saying(bytes(range(256)) * 100, stay=True), "not a QMP monitor"),
    ("other JSON", saying(b'{"hello": "world"}\n', stay=True), "not a QMP monitor"),
    ("a JSON list", saying(b"[1, 2]\n", stay=True), "not a QMP monitor"),
    ("endless line", saying(b"x" * (9 << 20), stay=True), "longer than"),
    ("a greeting, then the end", saying(json.dumps(GREETING).encode() + b"\n"), "closed the connection"),
]


@pytest.mark.parametrize(("talk", "reason"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
async def test_a_wrong_socket_is_named(tmp_path: Path, talk: Serve, reason: str) -> None:
    path = tmp_path / "wrong"
    handler = Recorder(RelayGate())
    async with server(path, talk), running(link_to(path, handler, handler.gate, deadline_s=0.3)):
        _, told = await handler.next("unreachable")
    assert reason in told
    assert f"--qmp: unix:{path}" in told


async def test_a_qemu_that_does_not_answer(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json.dumps(GREETING).encode() + b"\n")
        await command(reader)
        writer.write(b'{"return": {}, "id": null}\n')
        late = await command(reader)
        second = await command(reader)  # sent after the first was given up
        writer.write(json.dumps({"return": "late", "id": late["id"]}).encode() + b"\n")
        writer.write(json.dumps({"return": "right", "id": second["id"]}).encode() + b"\n")
        await reader.read()

    handler = Recorder(RelayGate())
    path = tmp_path / "slow"
    async with server(path, talk), running(link_to(path, handler, handler.gate, deadline_s=0.3)) as link:
        await handler.next("connected")
        with pytest.raises(QmpError, match=r"query-status: no answer within 0\.3 s"):
            await link.execute("query-status")
        assert await link.execute("query-name") == "right"
        assert handler.gate is not None
        assert handler.gate.seen == handler.gate.done


GARBAGE = [b"garbage\n", b"[]\n", b'{"return": 1, "id": 7}\n', b"{}\n", b"\n", b'{"event": 3}\n']


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_garbage_in_mid_session_is_acknowledged(tmp_path: Path, garbage: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json.dumps(GREETING).encode() + b"\n")
        await command(reader)
        writer.write(b'{"return": {}}\n' + garbage + b'{"event": "STOP", "data": 5, "timestamp": 7}\n')
        await reader.read()

    gate = RelayGate()
    handler = Recorder(gate)
    path = tmp_path / "odd"
    async with server(path, talk), running(link_to(path, handler, gate)):
        while (entry := await handler.queue.get())[0] == "connected":
            pass
        if entry[0] == "event":
            assert entry[1:4] == ("STOP", {}, None)
        else:
            assert entry[0] in {"lost", "unreachable"}
            assert "not a QMP monitor" in entry[1]


# -------------------------------------------------------------------- clock

CLOCK = [
    ({"seconds": 1000, "microseconds": 5}, 70, 1_000_000_005_000, 70),
    ({"seconds": 1000, "microseconds": 5}, 70, 1_000_000_005_999, 70 - 999),  # truncated by QEMU: early, not late
    ({"seconds": 999, "microseconds": 999_999}, 70_000, 1_000_000_000_000, 69_000),
    ({"seconds": -1, "microseconds": -1}, 70, 0, None),  # QEMU's clock failed
    ({"seconds": "1", "microseconds": 0}, 70, 0, None),
    ({}, 70, 0, None),
    (None, 70, 0, None),
]


@pytest.mark.parametrize(("timestamp", "mono", "real", "expected"), CLOCK)
def test_monotonic_of(timestamp: object, mono: int, real: int, expected: int | None) -> None:
    assert monotonic_of(timestamp, mono, real) == expected
