# SPDX-License-Identifier: Apache-2.0
"""The control socket: its protocol without a socket, a real server with real clients, and `coloproxy ctl`."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import io
import json
import logging
import os
import select
import socket
import stat
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pair_files import PAIR
from rich.console import Console
from typer.testing import CliRunner

from coloproxy.cli import app
from coloproxy.cli import ctl as ctl_module
from coloproxy.control import ControlClient, ControlServer, Limits, ask, protocol
from coloproxy.control.protocol import Lines, Request, encode_error, encode_return, parse_answer, parse_request
from coloproxy.control.view import render
from coloproxy.errors import (
    AddressError,
    ControlError,
    ControlRefused,
    ControlUnreachable,
    LimitError,
    MisuseError,
)

DEADLINE = 20.0

# ---------------------------------------------------------------- protocol

KNOWN = ("status", "alone")


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        (b'{"command":"status"}', Request("status")),
        (b' {"arguments": {"a": [1]}, "command": "alone"}\r', Request("alone", {"a": [1]})),
    ],
)
def test_requests(line: bytes, request_: Request) -> None:
    assert parse_request(line, KNOWN) == request_
    assert parse_request(request_.encode()[:-1], KNOWN) == request_


@pytest.mark.parametrize(
    ("line", "kind", "text"),
    [
        (b"", "protocol", "the line is no JSON"),
        (b"status", "protocol", "the line is no JSON"),
        (b"\xff", "protocol", "the line is no JSON"),
        (b"[" * 60_000, "protocol", "the line is no JSON"),
        (b"[1]", "protocol", "the line is no JSON object"),
        (b"{}", "protocol", 'a request needs "command"'),
        (b'{"command":3}', "protocol", 'a request needs "command"'),
        (b'{"command":"status","arguments":[]}', "protocol", '"arguments" must be an object'),
        (b'{"command":"status","argument":{}}', "protocol", "not 'argument'"),
        (b'{"command":"reboot"}', "unknown-command", "there is no command 'reboot'; there are alone, status"),
    ],
)
def test_what_is_no_request(line: bytes, kind: str, text: str) -> None:
    with pytest.raises(ControlRefused) as caught:
        parse_request(line, KNOWN)
    assert caught.value.kind == kind
    assert text in str(caught.value)


def test_answers() -> None:
    values: list[Any] = [None, 0, [], {"a": {"b": "\n"}}]
    for value in values:
        assert parse_answer(encode_return(value)) == value
    with pytest.raises(ControlRefused, match="not now") as caught:
        parse_answer(encode_error("refused", "not now"))
    assert caught.value.kind == "refused"


@pytest.mark.parametrize("line", [b"", b"[]", b"{}", b'{"return":1,"error":{}}', b'{"error":1}', b"\xff"])
def test_what_is_no_answer(line: bytes) -> None:
    with pytest.raises(ControlError) as caught:
        parse_answer(line)
    assert not isinstance(caught.value, ControlRefused)


@pytest.mark.parametrize("value", [object(), float("nan"), {1: object()}, "x" * protocol.MAX_ANSWER])
def test_what_cannot_be_answered(value: object) -> None:
    with pytest.raises(ControlError):
        encode_return(value)


@given(st.lists(st.binary(max_size=8).map(lambda line: line.replace(b"\n", b"")), max_size=6), st.integers(1, 9))
def test_lines_however_they_come(lines: list[bytes], size: int) -> None:
    cutter = Lines(8)
    data = b"".join(line + b"\n" for line in lines) + b"rest"
    out = [line for at in range(0, len(data), size) for line in cutter.feed(data[at : at + size])]
    assert out == lines
    assert cutter.feed(b"\n") == [b"rest"]


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("data", [b"123456789", b"1\n123456789\n", b"12345678\n" * 3 + b"123456789"])
def test_a_line_that_is_too_long(data: bytes, size: int) -> None:
    cutter = Lines(8)
    with pytest.raises(ControlError, match="longer than 8 bytes"):
        for at in range(0, len(data), size):
            cutter.feed(data[at : at + size])


# ---------------------------------------------------------------- server


class Daemon:
    """What stands behind the server in these tests."""

    def __init__(self) -> None:
        self.asked: list[Mapping[str, Any]] = []
        self.go = asyncio.Event()
        self.entered = asyncio.Event()
        self.finished = asyncio.Event()

    async def status(self, arguments: Mapping[str, Any]) -> object:
        self.asked.append(arguments)
        return STATUS

    async def big(self, arguments: Mapping[str, Any]) -> object:
        return "x" * 4_000_000

    async def slow(self, arguments: Mapping[str, Any]) -> object:
        self.entered.set()
        await self.go.wait()
        self.finished.set()
        return "slow"

    async def refuse(self, arguments: Mapping[str, Any]) -> object:
        raise {
            "misuse": MisuseError("not now"),
            "limit": LimitError("full"),
            "arguments": ControlRefused("arguments", "no such argument"),
            "bug": ZeroDivisionError("by zero"),
        }[arguments["how"]]

    async def silly(self, arguments: Mapping[str, Any]) -> object:
        return object()

    async def checkpoint(self, arguments: Mapping[str, Any]) -> object:
        self.asked.append(arguments)
        return {"epoch": 8, "took_ms": 12.5}

    async def alone(self, arguments: Mapping[str, Any]) -> object:
        raise MisuseError("the secondary is no primary")

    async def reload(self, arguments: Mapping[str, Any]) -> object:
        return None

    def handlers(self) -> dict[str, Any]:
        names = ("status", "big", "slow", "refuse", "silly", "checkpoint", "alone", "reload")
        return {name: getattr(self, name) for name in names}


STATUS: dict[str, Any] = {
    "pair": "web", "role": "primary", "state": "protected", "pid": 4711, "uptime_s": 93784.5,
    "vms": [{
        "name": "web", "state": "protected", "epoch": 12, "checkpoints": 11,
        "last_checkpoint": {"cause": "payload", "took_ms": 15.25, "age_s": 3.0},
        "link": {"state": "connected", "peer": "evil\x1b[2J\nname", "cipher": "TLSv1.3 TLS_AES_128_GCM_SHA256",
                 "rtt_ms": 0.21, "session": "8f2a", "queued_bytes": 1536, "resumed": 1, "gaps": 0},
        "nics": [{"name": "nic0", "tap": "web0", "bridge": "br0", "open": True,
                  "counters": {"mirrored": 1234567, "mirrored_bytes": 123456789, "dropped": 0}}],
        "rewriter": {"flows": 3, "by": {"syn": 2}},
        "comparator": {"released": 99, "held": 0},
        "something_new": [1, 2],
    }],
    "version": "1.0",
}  # fmt: skip


class Wire:
    """A client of these tests, that may be as rude as it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def hear(self) -> Any:
        async with asyncio.timeout(DEADLINE):
            return json.loads(await self.reader.readline())

    async def end(self) -> bytes:
        async with asyncio.timeout(DEADLINE):
            with contextlib.suppress(ConnectionError):
                return await self.reader.read()
        return b""


@contextlib.asynccontextmanager
async def wire(path: Path) -> AsyncIterator[Wire]:
    made = Wire(*await asyncio.open_unix_connection(path, limit=8 << 20))
    try:
        yield made
    finally:
        made.writer.transport.abort()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


async def test_many_clients_many_requests_in_order(path: Path) -> None:
    daemon = Daemon()
    async with ControlServer(path, daemon.handlers()), contextlib.AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(wire(path)) for _ in range(10)]
        for each in wires:
            await each.say(b'{"command":"status"}\n{"command":"nope"}\nrubbish\n{"command":"sta')
        for each in wires:
            await each.say(b'tus","arguments":{"a":1}}\n')
        for each in wires:
            assert await each.hear() == {"return": STATUS}
            told = (await each.hear())["error"]
            assert told["class"] == "unknown-command"
            assert told["text"].endswith("there are alone, big, checkpoint, refuse, reload, silly, slow, status")
            assert (await each.hear())["error"]["class"] == "protocol"
            assert await each.hear() == {"return": STATUS}
    assert daemon.asked.count({"a": 1}) == 10
    assert not exists(path)


@pytest.mark.parametrize(
    ("how", "kind", "text"),
    [
        ("misuse", "refused", "not now"),
        ("limit", "failed", "full"),
        ("arguments", "arguments", "no such argument"),
        ("bug", "internal", "ZeroDivisionError: by zero"),
        ("unknown", "internal", "KeyError: 'unknown'"),
    ],
)
async def test_a_handlers_errors(path: Path, how: str, kind: str, text: str) -> None:
    async with ControlServer(path, Daemon().handlers()), wire(path) as client:
        await client.say(Request("refuse", {"how": how}).encode())
        assert await client.hear() == {"error": {"class": kind, "text": text}}
        await client.say(Request("silly").encode())
        assert (await client.hear())["error"]["class"] == "failed"
        await client.say(Request("status").encode())
        assert await client.hear() == {"return": STATUS}  # and nothing is broken by it


async def test_a_line_that_never_ends_ends_the_connection(path: Path) -> None:
    async with ControlServer(path, Daemon().handlers()), wire(path) as client, wire(path) as other:
        with contextlib.suppress(ConnectionError):
            await client.say(b"x" * (protocol.MAX_REQUEST + 1))
        told = await client.end()
        assert json.loads(told)["error"] == {"class": "protocol", "text": "a line is longer than 65536 bytes"}
        await other.say(Request("status").encode())
        assert await other.hear() == {"return": STATUS}


async def test_one_client_too_many(path: Path) -> None:
    server = ControlServer(path, Daemon().handlers(), limits=Limits(clients=2))
    async with server, wire(path) as one, wire(path) as two:
        for each in (one, two):
            await each.say(Request("status").encode())
            assert await each.hear() == {"return": STATUS}
        with pytest.raises(ControlRefused, match="2 connections already") as caught:
            await asyncio.to_thread(ask, path, "status")
        assert caught.value.kind == "busy"
        one.writer.close()
        await two.say(Request("status").encode())
        assert await two.hear() == {"return": STATUS}


async def test_a_client_that_does_not_read_is_dropped(path: Path) -> None:
    async with ControlServer(path, Daemon().handlers(), limits=Limits(write=0.05)):
        with socket.socket(socket.AF_UNIX) as rude:
            rude.connect(str(path))
            rude.settimeout(DEADLINE)
            rude.sendall(Request("big").encode() * 3)
            async with wire(path) as client:  # nobody else waits for it
                await client.say(Request("status").encode())
                assert await client.hear() == {"return": STATUS}

            def drain() -> int:
                total = 0
                with contextlib.suppress(ConnectionError):
                    while data := rude.recv(1 << 20):
                        total += len(data)
                return total

            hung_up = select.poll()
            hung_up.register(rude, select.POLLRDHUP)
            assert await asyncio.to_thread(hung_up.poll, DEADLINE * 1000)
            assert await asyncio.to_thread(drain) < 4_000_000


async def test_a_client_that_says_nothing_is_dropped(path: Path) -> None:
    async with ControlServer(path, Daemon().handlers(), limits=Limits(idle=0.02)), wire(path) as client:
        assert await client.end() == b""


async def test_a_command_that_has_begun_is_not_stopped_by_its_clients_end(path: Path) -> None:
    daemon = Daemon()
    async with ControlServer(path, daemon.handlers()):
        async with wire(path) as client:
            await client.say(Request("slow").encode())
            await daemon.entered.wait()
        daemon.go.set()
        async with asyncio.timeout(DEADLINE):
            await daemon.finished.wait()


async def test_stop_lets_commands_end_and_closes_idle_clients(path: Path) -> None:
    daemon = Daemon()
    server = ControlServer(path, daemon.handlers())
    await server.start()
    async with wire(path) as busy, wire(path) as idle:
        await idle.say(Request("status").encode())
        await idle.hear()
        await busy.say(Request("slow").encode())
        await daemon.entered.wait()
        stopping = asyncio.create_task(server.stop(grace=DEADLINE))
        assert await idle.end() == b""
        assert not stopping.done()
        daemon.go.set()
        assert await busy.hear() == {"return": "slow"}
        await stopping
        assert await busy.end() == b""
    await server.stop()


async def test_stop_does_not_wait_for_ever(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    daemon = Daemon()
    server = ControlServer(path, daemon.handlers())
    await server.start()
    async with wire(path) as client:
        await client.say(Request("slow").encode())
        await daemon.entered.wait()
        await server.stop(grace=0.01)
        assert await client.end() == b""
    assert not daemon.finished.is_set()
    assert "stopped while a command of pid" in caplog.text


async def test_who_asked_is_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "coloproxy.control")
    async with ControlServer(path, Daemon().handlers()), wire(path) as client:
        for name in ("status", "checkpoint"):
            await client.say(Request(name).encode())
            await client.hear()
    assert f"control: checkpoint, asked by pid {os.getpid()}, uid {os.getuid()}, gid {os.getgid()}" in caplog.text
    assert "control: status" not in caplog.text  # monitoring would fill the log


# ---------------------------------------------------------------- its socket


# Functions of their own, for these tests are coroutines and mustn't block.


def exists(path: Path) -> bool:
    return path.exists()


def status_of(path: Path) -> os.stat_result:
    return path.stat()


def put(path: Path, text: str) -> None:
    path.write_text(text)


def get(path: Path) -> str:
    return path.read_text()


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("mode", [0o660, 0o600, 0o666])
async def test_its_mode_whatever_the_umask(path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        async with ControlServer(path, {}, mode=mode, group=str(os.getgid())):
            status = status_of(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(status.st_mode) == mode
    assert status.st_gid == os.getgid()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another group")
async def test_its_group(path: Path) -> None:
    async with ControlServer(path, {}, group="nogroup"):
        assert status_of(path).st_gid == grp.getgrnam("nogroup").gr_gid


async def test_a_group_that_is_not_there(path: Path) -> None:
    with pytest.raises(MisuseError, match="there is no group 'no-such-group'"):
        await ControlServer(path, {}, group="no-such-group").start()
    assert not exists(path)


async def test_the_socket_of_a_dead_process_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    async with ControlServer(path, Daemon().handlers()):
        assert await asyncio.to_thread(ask, path, "status") == STATUS


async def test_a_live_one_is_refused(path: Path) -> None:
    async with ControlServer(path, Daemon().handlers()):
        with pytest.raises(AddressError, match=f"control socket: {path} is in use: another process listens there"):
            await ControlServer(path, {}).start()
        assert await asyncio.to_thread(ask, path, "status") == STATUS  # and goes on


async def test_another_file_is_refused_and_kept(path: Path) -> None:
    put(path, "precious")
    with pytest.raises(AddressError, match="is no socket"):
        await ControlServer(path, {}).start()
    assert get(path) == "precious"


async def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=r"can't listen on .*/no/x.sock: No such file or directory"):
        await ControlServer(tmp_path / "no" / "x.sock", {}).start()


async def test_stop_leaves_anothers_socket_alone(path: Path) -> None:
    server = ControlServer(path, {})
    await server.start()
    remove(path)
    async with ControlServer(path, Daemon().handlers()):
        await server.stop()
        assert await asyncio.to_thread(ask, path, "status") == STATUS


# ---------------------------------------------------------------- client


def test_nobody_there(path: Path) -> None:
    with pytest.raises(ControlUnreachable, match="no coloproxy listens there"):
        ask(path, "status")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(ControlUnreachable, match="no coloproxy listens there"):
        ask(path, "status")
    with pytest.raises(ControlUnreachable, match="too long"):
        ask("/" + "x" * 200, "status")


@contextlib.contextmanager
def strange_server(path: Path, answer: bytes, *, close: bool = True) -> Iterator[None]:
    """Answers the first request by these bytes."""
    done = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                with contextlib.suppress(OSError):
                    connection.sendall(answer)
                if not close:
                    done.wait(DEADLINE)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(DEADLINE)


def test_it_goes_without_an_answer(path: Path) -> None:
    with (
        strange_server(path, b'{"return"'),
        pytest.raises(ControlUnreachable, match="the connection was closed without an answer"),
    ):
        ask(path, "status")


def test_it_never_answers(path: Path) -> None:
    with strange_server(path, b"", close=False), pytest.raises(ControlUnreachable, match=r"no answer in 0.05 s"):
        ask(path, "status", timeout=0.05)


def test_it_talks_nonsense(path: Path) -> None:
    with strange_server(path, b"HTTP/1.1 400 Bad Request\n"), pytest.raises(ControlError, match="is no JSON"):
        ask(path, "status")


def test_it_never_stops_talking(path: Path) -> None:
    with strange_server(path, b"x" * (protocol.MAX_ANSWER + 1)), pytest.raises(ControlError, match="is longer than"):
        ask(path, "status")


async def test_a_client_waits_for_it_to_be_there(path: Path) -> None:
    waiting = asyncio.create_task(asyncio.to_thread(ControlClient, path, DEADLINE, DEADLINE))
    async with ControlServer(path, Daemon().handlers()):
        client = await waiting
        with client:
            assert await asyncio.to_thread(client.request, "status") == STATUS
            assert await asyncio.to_thread(client.request, "reload") is None


# ---------------------------------------------------------------- coloproxy ctl


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["ctl", *map(str, arguments)], env={"COLUMNS": "150", "NO_COLOR": "1"})
    return result.exit_code, result.stdout, result.stderr


async def ctl(*arguments: str | Path) -> tuple[int, str, str]:
    return await asyncio.to_thread(run, *arguments)


SHOWN = """\
web  primary  protected  pid 4711  up 1 d 2 h
  version 1.0

VM web  protected  epoch 12  checkpoints 11
  last checkpoint  cause payload  took 15.2 ms  age 3 s
  link             connected  peer evil\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}name  \
cipher TLSv1.3 TLS_AES_128_GCM_SHA256  rtt 0.21 ms  session 8f2a  queued bytes 1.5 KiB  resumed 1  gaps 0
  NIC nic0         tap web0  bridge br0  open
                   mirrored 1,234,567   mirrored bytes 117.7 MiB
  rewriter         flows 3   by.syn 2
  comparator       released 99
  something new    1, 2
"""


def shown(status: Mapping[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=200, no_color=True)
    console.print(render(status))
    assert isinstance(console.file, io.StringIO)
    return "".join(line.rstrip() + "\n" for line in console.file.getvalue().splitlines())


def test_a_status_for_people() -> None:
    assert shown(STATUS) == SHOWN


@pytest.mark.parametrize(
    "status", [{}, {"vms": None}, {"vms": [{}]}, {"vms": [{"nics": [{}], "link": "x"}], "pair": 3}]
)
def test_any_status_is_shown(status: dict[str, Any]) -> None:
    assert shown(status)


async def test_ctl(path: Path, tmp_path: Path) -> None:
    daemon = Daemon()
    pair = tmp_path / "pair.toml"
    pair.write_text(PAIR + f'[control]\nsocket = {{ primary = "{path}", secondary = "{path}.2" }}\n')
    async with ControlServer(path, daemon.handlers()):
        code, out, err = await ctl("status", "-c", pair, "--role", "primary")
        assert (code, out.splitlines()[0], err) == (0, "web  primary  protected  pid 4711  up 1 d 2 h", "")
        code, out, _ = await ctl("status", "--socket", path, "--json", "--wait", "1")
        assert (code, json.loads(out)) == (0, STATUS)
        assert await ctl("checkpoint", "--socket", path, "--wait", "2.5") == (0, "epoch 8  took 12.5 ms\n", "")
        assert await ctl("reload", "--socket", path) == (0, "reload: done\n", "")
        assert await ctl("alone", "--socket", path) == (1, "", "coloproxy ctl: the secondary is no primary\n")
        code, _, err = await ctl("failover", "--socket", path)
        assert (code, "there is no command 'failover'" in err) == (1, True)
        code, _, err = await ctl("status", "-c", pair, "--role", "secondary")
        assert (code, err) == (3, f"coloproxy ctl: {path}.2: no coloproxy listens there\n")
    assert daemon.asked == [{}, {}, {"wait_s": 2.5}]
    assert await ctl("status", "--socket", path) == (3, "", f"coloproxy ctl: {path}: no coloproxy listens there\n")


async def test_ctl_finds_the_only_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctl_module, "RUNTIME_DIRECTORY", tmp_path)
    assert (await ctl("status"))[0] == 2
    (tmp_path / "web-nic0.sock").touch()  # some other socket
    async with ControlServer(tmp_path / "web-primary.sock", Daemon().handlers()):
        assert (await ctl("status"))[0] == 0
        (tmp_path / "mail-primary.sock").touch()
        assert (await ctl("status"))[0] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("dance",),
        ("status", "--role", "primary"),
        ("status", "-c", "/pair.toml"),
        ("status", "--socket", "/x", "--role", "primary"),
        ("status", "--socket", "/x", "--wait", "-1"),
        ("status", "-c", "/no/such/pair.toml", "--role", "primary"),
    ],
)
def test_ctl_used_wrongly(arguments: tuple[str, ...]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err
