# SPDX-License-Identifier: Apache-2.0
"""`coloproxy compare` as a process: real sockets, a QMP that the test speaks itself, signals, exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from qemu_process import Qemu, needs_qemu

DEADLINE = 30.0
COMPARE = [sys.executable, "-m", "coloproxy", "compare"]


def frame(text: str, client: int = 1) -> bytes:
    """An Ethernet frame of an experimental type: compared as a whole."""
    return b"\x02\0\0\0\0" + bytes([client]) + b"\x02\0\0\0\0\xff" + b"\x88\xb5" + text.encode().ljust(50)


class Wire:
    """One of QEMU's chardev sockets."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, path: Path) -> Wire:
        return cls(*await asyncio.open_unix_connection(path))

    def send(self, *frames: bytes) -> None:
        for data in frames:
            self.writer.write(len(data).to_bytes(4, "big") + data)

    async def receive(self) -> bytes:
        async with asyncio.timeout(DEADLINE):
            return await self.reader.readexactly(int.from_bytes(await self.reader.readexactly(4), "big"))

    async def end(self) -> bytes:
        """All that still comes until the other end closes."""
        async with asyncio.timeout(DEADLINE):
            with contextlib.suppress(ConnectionError):
                return await self.reader.read()
        return b""

    def close(self) -> None:
        self.writer.transport.abort()


class FakeQemu:
    """The QMP of a primary: answers what its attributes say."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.status = "running"
        self.migration = "none"
        self.requests: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.connected = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._writer is not None:
            self._writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._say(
            {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}
        )
        decoder, text = json.JSONDecoder(), ""
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                text += data.decode()
                while text := text.lstrip():
                    try:
                        command, end = decoder.raw_decode(text)
                    except ValueError:
                        break
                    text = text[end:]
                    self._answer(command)

    def _say(self, message: dict[str, Any]) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps(message).encode() + b"\r\n")

    def _answer(self, command: dict[str, Any]) -> None:
        value: Any = {}
        match command["execute"]:
            case "query-status":
                value = {"status": self.status, "running": self.status == "running"}
            case "query-migrate":
                value = {"status": self.migration}
            case "query-colo-status":
                value = {"mode": "primary" if self.migration == "colo" else "none"}
            case "query-migrate-capabilities":
                value = [{"capability": "events", "state": True}]
            case "query-chardev" | "qom-list":
                value = []
            case "migrate-set-parameters":
                self.requests.put_nowait(command["arguments"])
        self._say({"return": value, "id": command.get("id")})
        if command["execute"] == "query-status":
            self.connected.set()

    def event(self, name: str, **data: Any) -> None:
        seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
        stamp = {"seconds": seconds, "microseconds": nanos // 1000}
        self._say({"event": name, "data": data, "timestamp": stamp})

    def enter_colo(self) -> None:
        self.event("STOP")
        self.event("MIGRATION", status="colo")
        self.migration = "colo"
        self.event("RESUME")

    def checkpoint(self) -> None:
        self.event("STOP")
        self.event("MIGRATION_PASS", **{"pass": 5})
        self.event("RESUME")

    async def request(self) -> dict[str, Any]:
        async with asyncio.timeout(DEADLINE):
            return await self.requests.get()


class Proxy:
    """A running `coloproxy compare` with its journal on standard output."""

    def __init__(self, directory: Path, process: asyncio.subprocess.Process) -> None:
        self.directory = directory
        self.process = process
        self.records: list[dict[str, Any]] = []

    async def event(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The next record of that kind and with those fields; the ones before are kept in `records` only."""
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            while line := await self.process.stdout.readline():
                record: dict[str, Any] = json.loads(line)
                self.records.append(record)
                if record["event"] == kind and all(record[name] == value for name, value in fields.items()):
                    return record
        raise AssertionError(f"ended without {kind}: {self.records} {await self.errors()}")

    async def connect(self, port: str) -> Wire:
        wire = await Wire.to(self.directory / port)
        await self.event("connected", port={"p": "primary_in", "s": "secondary_in", "o": "outdev"}[port])
        return wire

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        async with asyncio.timeout(DEADLINE):
            assert self.process.stdout is not None
            while line := await self.process.stdout.readline():
                self.records.append(json.loads(line))
            return await self.process.wait()

    async def errors(self) -> str:
        """Standard error; once the process has ended."""
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode()


@contextlib.asynccontextmanager
async def proxy(directory: Path, *more: str) -> AsyncIterator[Proxy]:
    command = [*COMPARE, "--json-events", "-"]
    for option, name in (("--primary-in", "p"), ("--secondary-in", "s"), ("--outdev", "o")):
        command += [option, f"unix:{directory}/{name}"]
    process = await asyncio.create_subprocess_exec(
        *command, *more, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    made = Proxy(directory, process)
    try:
        await made.event("started")
        yield made
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def fake_qemu(directory: Path) -> AsyncIterator[FakeQemu]:
    made = FakeQemu(directory / "q")
    await made.start()
    try:
        yield made
    finally:
        made.stop()


def qmp(directory: Path) -> list[str]:
    return ["--qmp", f"unix:{directory}/q"]


# ------------------------------------------------------------------ with QMP


async def test_from_alone_to_protected_and_back(tmp_path: Path) -> None:
    async with fake_qemu(tmp_path) as qemu, proxy(tmp_path, *qmp(tmp_path), "--compare-timeout", "100") as made:
        await made.event("qmp-connected")
        p, s, o = [await made.connect(port) for port in "pso"]
        assert await qemu.request() == {"x-checkpoint-delay": 2147483647}

        p.send(frame("before COLO"))
        assert await o.receive() == frame("before COLO")

        qemu.enter_colo()
        await made.event("protected")
        p.send(frame("equal"))
        s.send(frame("equal"))
        assert await o.receive() == frame("equal")

        p.send(frame("a"))
        s.send(frame("b"))
        divergence = await made.event("divergence")
        assert divergence["primary"]["text"].rstrip().endswith("a")
        assert divergence["secondary"]["text"].rstrip().endswith("b")
        asked = await made.event("checkpoint-asked")
        assert asked["causes"] == [f"{divergence['cause']} in {divergence['flow']['text']}"]
        assert await qemu.request() == {"x-checkpoint-delay": 2147483647}
        qemu.checkpoint()
        committed = await made.event("checkpoint-committed")
        assert committed["released_frames"] == 1
        assert committed["asked_to_stop_ns"] >= 0
        assert committed["stop_to_resume_ns"] >= 0
        assert committed["causes"] == asked["causes"]
        p.send(frame("after"))
        s.send(frame("after"))
        assert [await o.receive(), await o.receive()] == [frame("a"), frame("after")]  # once each, in order

        qemu.event("COLO_EXIT", mode="primary", reason="request")
        await made.event("alone")
        p.send(frame("alone"))
        assert await o.receive() == frame("alone")
        assert await made.end() == 0
        assert await o.end() == b""


@pytest.mark.parametrize("keep", [False, True])
async def test_what_the_secondary_says_during_a_checkpoint(keep: bool, tmp_path: Path) -> None:
    more = ["--keep-gap"] if keep else []
    async with fake_qemu(tmp_path) as qemu, proxy(tmp_path, *qmp(tmp_path), *more) as made:
        await made.event("qmp-connected")
        p, s, o = [await made.connect(port) for port in "pso"]
        qemu.enter_colo()
        await made.event("protected")
        p.send(frame("equal"))
        s.send(frame("equal"))
        assert await o.receive() == frame("equal")

        qemu.event("STOP")
        qemu.event("MIGRATION_PASS", **{"pass": 5})
        await asyncio.sleep(0.3)  # so long a secondary needs to load the state
        s.send(frame("early"))
        await asyncio.sleep(0.1)
        qemu.event("RESUME")
        await made.event("checkpoint-committed")
        p.send(frame("early"))
        if not keep:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await o.receive()
            s.send(frame("early"))
        assert await o.receive() == frame("early")


async def test_an_operators_stop_releases_nothing(tmp_path: Path) -> None:
    async with fake_qemu(tmp_path) as qemu, proxy(tmp_path, *qmp(tmp_path)) as made:
        await made.event("qmp-connected")
        p, s, o = [await made.connect(port) for port in "pso"]
        qemu.enter_colo()
        await made.event("protected")
        p.send(frame("held"))
        qemu.status = "paused"
        qemu.event("STOP")
        await made.event("guest-stopped", run_state="paused")
        qemu.status = "running"
        qemu.event("RESUME")
        await made.event("guest-resumed")
        p.send(frame("second", 2))
        s.send(frame("second", 2))  # another flow
        assert await o.receive() == frame("second", 2)
        s.send(frame("held"))
        assert await o.receive() == frame("held")  # evidence of the same epoch: there was no commit


async def test_qmp_gone_and_back(tmp_path: Path) -> None:
    async with fake_qemu(tmp_path) as qemu, proxy(tmp_path, *qmp(tmp_path)) as made:
        await made.event("qmp-connected")
        p, s, o = [await made.connect(port) for port in "pso"]
        qemu.enter_colo()
        await made.event("protected")
        qemu.stop()
        await made.event("qmp-lost")
        p.send(frame("equal"))
        s.send(frame("equal"))  # of which epoch, nobody knows
        await qemu.start()
        await made.event("held")
        await made.event("checkpoint-asked")
        qemu.checkpoint()
        committed = await made.event("checkpoint-committed")
        assert committed["causes"] == ["QMP was away, a checkpoint may have committed unseen"]
        assert committed["released_frames"] == 1
        await made.event("protected")
        assert await o.receive() == frame("equal")


async def test_started_while_qemu_is_in_colo(tmp_path: Path) -> None:
    async with fake_qemu(tmp_path) as qemu:
        qemu.migration = "colo"
        async with proxy(tmp_path, *qmp(tmp_path)) as made:
            await made.event("held")
            p, _, o = [await made.connect(port) for port in "pso"]
            p.send(frame("held"))
            assert await qemu.request()
            qemu.checkpoint()
            await made.event("protected")
            s = await Wire.to(tmp_path / "s")  # waits: the place is taken
            s.send(frame("stranger"))
            p.send(frame("next"))
            qemu.checkpoint()
            await made.event("checkpoint-committed")
            assert await o.receive() == frame("held")


async def test_until_qmp_has_told_everything_is_held(tmp_path: Path) -> None:
    async with proxy(tmp_path, *qmp(tmp_path)) as made:
        await made.event("trouble")  # there is no QMP yet
        p, _, o = [await made.connect(port) for port in "pso"]
        p.send(frame("early"))
        qemu = FakeQemu(tmp_path / "q")
        await qemu.start()
        await made.event("qmp-connected")
        assert await o.receive() == frame("early")  # QEMU is not in COLO
        held = made.records
        assert not any(record["event"] == "protected" for record in held)
        qemu.stop()


async def test_what_a_dead_primary_said_never_comes_out(tmp_path: Path) -> None:
    async with fake_qemu(tmp_path) as qemu, proxy(tmp_path, *qmp(tmp_path)) as made:
        await made.event("qmp-connected")
        p, _, o = [await made.connect(port) for port in "pso"]
        qemu.enter_colo()
        await made.event("protected")
        p.send(frame("unconfirmed"))
        p.send(b"\x01" * 60)  # malformed, compared as a whole: held too
        for wire in (p, o):
            wire.close()
        qemu.stop()
        gone = await made.event("primary-gone")
        assert gone["held_frames"] in {0, 1, 2}  # what was read before the end
        qemu.migration = "none"
        await qemu.start()  # the primary's next life
        await made.event("qmp-connected")
        p, o = await made.connect("p"), await made.connect("o")
        p.send(frame("new life"))
        assert await o.receive() == frame("new life")


async def test_a_failed_checkpoint_and_what_qemu_tells(tmp_path: Path) -> None:
    async with fake_qemu(tmp_path) as qemu, proxy(tmp_path, *qmp(tmp_path)) as made:
        await made.event("qmp-connected")
        p, _, o = [await made.connect(port) for port in "pso"]
        qemu.enter_colo()
        await made.event("protected")
        qemu.event("RESET", guest=True, reason="guest-reset")
        assert (await made.event("qemu-event", what="RESET"))["detail"] == "guest=True, reason=guest-reset"
        p.send(frame("held"))
        qemu.event("STOP")
        qemu.event("MIGRATION_PASS", **{"pass": 5})
        qemu.event("COLO_EXIT", mode="primary", reason="error")
        await made.event("checkpoint-failed", reason="COLO_EXIT, reason error")
        await made.event("alone")
        assert await o.receive() == frame("held")


async def test_a_qemu_that_does_not_answer_is_reported(tmp_path: Path) -> None:
    more = ["--qmp-deadline", "0.1", "--qmp-patience", "2", "--compare-timeout", "50"]
    async with fake_qemu(tmp_path) as qemu, proxy(tmp_path, *qmp(tmp_path), *more) as made:
        await made.event("qmp-connected")
        p, _, _ = [await made.connect(port) for port in "pso"]
        qemu.enter_colo()
        await made.event("protected")
        p.send(frame("alone in this"))
        report = await made.event("qemu-unanswering")
        assert report["what"] == "no STOP for a checkpoint"
        assert report["since_ns"] >= 200_000_000
        await made.event("checkpoint-asked", attempt=2)
        qemu.event("STOP")
        qemu.event("MIGRATION_PASS", **{"pass": 1})
        qemu.event("RESUME")
        await made.event("checkpoint-committed", released_frames=1)


@needs_qemu
async def test_a_real_qemus_deaf_redirector_is_revived(tmp_path: Path) -> None:
    arguments = [
        *("-m", "16", "-accel", "tcg", "-netdev", "hubport,id=hn0,hubid=0", "-device", "e1000,netdev=hn0,romfile="),
        *("-chardev", f"socket,id=compare_out,path={tmp_path}/o,reconnect=1"),
        *("-chardev", f"socket,id=compare0,path={tmp_path}/p,reconnect=1"),
        *("-object", "filter-redirector,id=redire0,netdev=hn0,queue=rx,indev=compare_out"),
        *("-object", "filter-redirector,id=redire1,netdev=hn0,queue=rx,outdev=compare0"),
    ]
    with Qemu(tmp_path, *arguments, monitor="q", machine="pc"):
        async with proxy(tmp_path, *qmp(tmp_path)) as made:
            await made.event("qmp-connected")
            await made.event("connected", port="outdev")
            assert await made.end(signal.SIGKILL) == -signal.SIGKILL
            assert not any(record["event"] == "redirector-revived" for record in made.records)
        async with proxy(tmp_path, *qmp(tmp_path)) as made:
            assert (await made.event("redirector-revived"))["id"] == "redire0"


# --------------------------------------------------------------- without QMP


async def test_without_qmp_the_secondary_begins_protection(tmp_path: Path) -> None:
    async with proxy(tmp_path, "--compare-timeout", "50") as made:
        p, o = await made.connect("p"), await made.connect("o")
        p.send(frame("no secondary yet"))
        assert await o.receive() == frame("no secondary yet")
        s = await made.connect("s")
        await made.event("protected")
        p.send(frame("equal"))
        s.send(frame("equal"))
        assert await o.receive() == frame("equal")
        p.send(frame("a"))
        wish = await made.event("trouble")
        assert "no --qmp to ask for it" in wish["text"]
        s.send(frame("a"))
        s.close()
        await made.event("lost", port="secondary_in")
        assert await made.end(signal.SIGINT) == 0


RULES = """
[[policy]]
name = "chatter"
action = "pass"
class = "arp"

[[policy]]
name = "never alike"
action = "drop-secondary"
vlan = 7

[[tolerance]]
name = "clock"
after = "time="
length = 2
"""


async def test_rules_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(RULES)
    async with proxy(tmp_path, "--rules", str(tmp_path / "rules.toml"), "--stats-interval", "0.05") as made:
        p, o = await made.connect("p"), await made.connect("o")
        s = await made.connect("s")
        await made.event("protected")
        p.send(frame("time=10"))
        s.send(frame("time=11"))
        assert await o.receive() == frame("time=10")
        event = await made.event("tolerated")
        assert (event["rule"], event["offset"]) == ("clock", 14 + 6)
        assert [event[side]["text"][event["context"]] for side in ("primary", "secondary")] == ["0", "1"]
        await made.event("stats", tolerated=1)
        p.send(bytes(12) + b"\x81\x00\x00\x07\x88\xb5" + bytes(40))
        wish = await made.event("checkpoint-wanted")
        assert (wish["cause"], wish["flow"]["vlans"]) == ("policy", [7])
        assert await made.end(signal.SIGINT) == 0


async def test_a_divergence_is_dumped_and_a_recording_is_whole(tmp_path: Path) -> None:
    directory, recording = tmp_path / "dumps", tmp_path / "seen.pcapng"
    directory.mkdir()
    for number in (signal.SIGINT, signal.SIGTERM):
        ring = ["--record-ring", "60", "--record-dir", str(directory), "--record-ring-bytes", "1000000"]
        async with proxy(tmp_path, "--record", str(recording), *ring) as made:
            p, o, s = await made.connect("p"), await made.connect("o"), await made.connect("s")
            await made.event("protected")
            p.send(frame("equal"))
            s.send(frame("equal"))
            assert await o.receive() == frame("equal")
            p.send(frame("one thing"))
            s.send(frame("another"))
            await made.event("divergence")
            assert await made.end(number) == 0
        events = {record["event"]: record for record in made.records}
        path = Path(events["divergence-recorded"]["path"])
        assert path.parent == directory
        assert str(path) in await made.errors()
        for file in (path, recording):
            code, errors = await run(sys.executable, "-m", "coloproxy", "replay", str(file))
            assert (code, errors) == (0, ""), file
        assert events["recorded"]["lost"] == 0
    assert len(list(directory.iterdir())) == 2


async def test_xens_messages(tmp_path: Path) -> None:
    more = ["--notify-dev", f"unix:{tmp_path}/n", "--compare-timeout", "50", "--expired-scan-cycle", "50"]
    async with proxy(tmp_path, *more) as made:
        n = await Wire.to(tmp_path / "n")
        n.send(b"COLO_USERSPACE_PROXY_INIT")
        assert await n.receive() == b"COLO_COMPARE_GET_XEN_INIT"
        p, o, s = [await made.connect(port) for port in "pos"]
        await made.event("protected")
        p.send(frame("a"))
        s.send(frame("b"))
        for _ in range(3):  # repeated while it is not answered
            assert await n.receive() == b"DO_CHECKPOINT"
        n.send(b"COLO_CHECKPOINT")
        committed = await made.event("checkpoint-committed")
        assert committed["released_frames"] == 1
        assert committed["total_ns"] > 0
        assert await o.receive() == frame("a")


# ------------------------------------------------- ends, bad input, bad usage


async def test_what_was_released_is_delivered_at_the_end(tmp_path: Path) -> None:
    async with fake_qemu(tmp_path), proxy(tmp_path, *qmp(tmp_path), "--stats-interval", "60") as made:
        await made.event("qmp-connected")
        p, _, o = [await made.connect(port) for port in "pso"]
        data = [frame(f"{number:5d}" + "x" * 1400) for number in range(500)]
        p.send(*data)
        assert await o.receive() == data[0]
        got = asyncio.create_task(o.end())
        assert await made.end() == 0
        rest = await got
        size = len(data[0]) + 4
        assert len(rest) % size == 0  # whole frames only
        assert rest == b"".join(len(d).to_bytes(4, "big") + d for d in data[1:])[: len(rest)]
        stopped = made.records[-1]
        assert stopped["event"] == "stopped"
        assert stopped["totals"]["released_frames"] == 1 + len(rest) // size
        assert made.process.stderr is not None
        assert "total" in await made.errors()
    for name in "pso":
        assert not (tmp_path / name).exists()


GARBAGE = [
    (b"GET / HTTP/1.1\r\n\r\n", "oversize"),
    (b"\xff\xff\xff\xff", "oversize"),
    (b"\0\0\0\0", "empty"),
    (b"\0\0\0\x20short", "truncated"),
]


@pytest.mark.parametrize(("data", "fault"), GARBAGE, ids=[f"{row[1]} {row[0][:4]!r}" for row in GARBAGE])
@pytest.mark.parametrize("port", ["p", "s"])
async def test_garbage_on_a_socket_harms_nobody_else(tmp_path: Path, port: str, data: bytes, fault: str) -> None:
    async with fake_qemu(tmp_path), proxy(tmp_path, *qmp(tmp_path)) as made:
        await made.event("qmp-connected")
        o = await made.connect("o")
        bad = await made.connect(port)
        bad.writer.write(data)
        if fault == "truncated":
            bad.writer.write_eof()
        lost = await made.event("lost")
        assert lost["fault"] == fault
        p = await made.connect("p")
        p.send(frame("good"))
        assert await o.receive() == frame("good")
        assert await made.end() == 0


USAGE = [
    (["--primary-in", "127.0.0.1:x"], "--primary-in: '127.0.0.1:x': 'x' is not a port number"),
    (["--outdev", "nonsense"], "--outdev: 'nonsense': the port is missing"),
    (["--secondary-in", "unix:p"], "--primary-in and --secondary-in: both are unix:p"),
    (["--qmp", "unix:q", "--notify-dev", "unix:n"], "--qmp and --notify-dev: use one of them"),
    (["--record-ring", "5"], "--record-ring needs --record-dir"),
    (["--record-dir", "."], "--record-dir and --record-ring-bytes need --record-ring"),
    (["--record-ring", "5", "--record-dir", "/nonexistent"], "/nonexistent is no directory that can be written to"),
    (["--json-events", "/nonexistent/file"], "--json-events: can't open /nonexistent/file"),
]


async def run(*arguments: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *arguments, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(DEADLINE):
            _, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode, errors.decode()


@pytest.mark.parametrize(("more", "what"), USAGE, ids=[row[0][0] + row[0][1][:3] for row in USAGE])
async def test_wrong_usage_is_one_clear_line(
    tmp_path: Path, more: list[str], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {"--primary-in": "unix:p", "--secondary-in": "unix:s", "--outdev": "unix:o"}
    options = good | dict(zip(more[::2], more[1::2], strict=True))
    code, errors = await run(*COMPARE, *(text for pair in options.items() for text in pair))
    assert code == 2
    (line,) = errors.splitlines()
    assert what in line
    assert "coloproxy: error: " in line


async def test_an_option_that_is_missing() -> None:
    code, errors = await run(*COMPARE, "--primary-in", "unix:p")
    assert code == 2
    assert "--secondary-in" in errors


async def test_an_address_in_use_is_a_failure_of_the_machine(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(tmp_path / "o"))
        taken.listen()
        options = [
            f"--primary-in=unix:{tmp_path}/p",
            f"--secondary-in=unix:{tmp_path}/s",
            f"--outdev=unix:{tmp_path}/o",
        ]
        code, errors = await run(*COMPARE, *options)
    assert code == 1
    (line,) = errors.splitlines()[-1:]
    assert f"--outdev: {tmp_path}/o is in use" in line
    assert "Traceback" not in errors
    assert not (tmp_path / "p").exists()


async def test_a_wrong_qmp_socket_is_named(tmp_path: Path) -> None:
    async def ssh(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")

    server = await asyncio.start_unix_server(ssh, tmp_path / "q")
    async with proxy(tmp_path, *qmp(tmp_path)) as made:
        trouble = await made.event("trouble")
        assert f"--qmp: unix:{tmp_path}/q: this is not a QMP monitor" in trouble["text"]
        assert await made.end() == 0
    server.close()


async def test_help_teaches() -> None:
    process = await asyncio.create_subprocess_exec(*COMPARE, "--help", stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    for text in ("--primary-in", "--max-queue-size", "filter-redirector,id=redire0", "Exit status"):
        assert text in out.decode()
