# SPDX-License-Identifier: Apache-2.0
"""What systemd hears, on a real datagram socket; and its unit, as systemd itself judges it."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coloproxy.run.service import Service

DEADLINE = 20.0
TOP = Path(__file__).resolve().parent.parent
UNIT = TOP / "packaging" / "systemd" / "coloproxy@.service"


@pytest.fixture(params=["a path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """systemd's socket, and what it would write into NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE)
        name = str(tmp_path / "notify") if request.param == "a path" else f"@coloproxy-test-{os.getpid()}"
        sock.bind(name.replace("@", "\0", 1))
        yield sock, name


def heard(sock: socket.socket) -> list[str]:
    return sock.recv(4096).decode().split("\n")


def test_the_life_of_a_service(manager: tuple[socket.socket, str]) -> None:
    sock, name = manager
    service = Service({"NOTIFY_SOCKET": name})
    assert service.is_managed
    service.ready("protected")
    assert heard(sock) == ["READY=1", "STATUS=protected"]
    service.status("two\nlines \t here")
    assert heard(sock) == ["STATUS=two lines here"]
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    service.reloading()
    first, second = heard(sock)
    assert first == "RELOADING=1"
    key, _, value = second.partition("=")
    assert key == "MONOTONIC_USEC"
    assert before <= int(value) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    service.ready()
    assert heard(sock) == ["READY=1"]
    service.alive()
    assert heard(sock) == ["WATCHDOG=1"]
    service.stopping("bye")
    assert heard(sock) == ["STOPPING=1", "STATUS=bye"]
    service.close()
    service.close()
    service.ready()
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(1)


def test_the_variables_are_taken_out_of_the_environment(manager: tuple[socket.socket, str]) -> None:
    environment = {"NOTIFY_SOCKET": manager[1], "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/bin"}
    Service(environment).close()
    assert environment == {"PATH": "/bin"}


@pytest.mark.parametrize("name", ["", "vsock:2:1", "relative"])
def test_nobody_to_tell(name: str) -> None:
    service = Service({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000"})
    assert not service.is_managed
    assert service.watchdog_interval is None
    service.ready("x")
    service.close()


def test_a_manager_that_is_gone_or_deaf_does_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = Service({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    for _ in range(3):
        service.ready("x")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]  # once, the rest is for debugging
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "gone"))
        for _ in range(10_000):  # far more than a socket's queue takes: it would block
            service.status("x" * 100)
    service.close()


@pytest.mark.parametrize(
    ("microseconds", "pid", "interval"),
    [
        ("3000000", str(os.getpid()), 1.5),
        ("3000000", "", 1.5),
        ("3000000", "1", None),
        ("", "", None),
        ("0", "", None),
        ("x", "", None),
        ("-1", "", None),
    ],
)
def test_the_watchdogs_interval(
    manager: tuple[socket.socket, str], microseconds: str, pid: str, interval: float | None
) -> None:
    given = {"NOTIFY_SOCKET": manager[1], "WATCHDOG_USEC": microseconds, "WATCHDOG_PID": pid}
    service = Service(given)
    assert service.watchdog_interval == interval
    service.close()


async def test_signs_of_life_while_healthy(manager: tuple[socket.socket, str]) -> None:
    sock, name = manager
    service = Service({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "2000"})
    asked = asyncio.Event()
    answers = [True, False, True, False, False]

    def healthy() -> bool:
        if len(answers) == 1:
            asked.set()
        return answers.pop(0) if answers else False

    watching = asyncio.create_task(service.watch(healthy))
    async with asyncio.timeout(DEADLINE):
        await asked.wait()
    watching.cancel()
    service.stopping()
    assert [heard(sock) for _ in range(3)] == [["WATCHDOG=1"], ["WATCHDOG=1"], ["STOPPING=1"]]
    service.close()


async def test_no_watchdog_no_signs(manager: tuple[socket.socket, str]) -> None:
    service = Service({"NOTIFY_SOCKET": manager[1]})
    async with asyncio.timeout(DEADLINE):
        await service.watch()
    service.close()


# ---------------------------------------------------------------- the unit

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def analyze(tmp_path: Path, *arguments: str) -> str:
    """systemd-analyze of the unit, as if it and what it starts were installed; systemd itself doesn't run."""
    root = tmp_path / "root"
    unit = root / "etc/systemd/system" / UNIT.name
    unit.parent.mkdir(parents=True)
    unit.write_text(UNIT.read_text())
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/env").touch(mode=0o755)
    instance = unit.with_name("coloproxy@web.service")
    instance.write_text(UNIT.read_text())
    done = subprocess.run(
        ["systemd-analyze", *arguments, str(instance)], capture_output=True, text=True, timeout=120, check=False
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return output


@needs_analyze
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    assert str(UNIT.name.replace("@", "@web")) not in analyze(tmp_path, "verify", "--recursive-errors=no", "--man=no")


@needs_analyze
def test_systemd_finds_the_unit_well_locked_up(tmp_path: Path) -> None:
    output = analyze(tmp_path, "security", "--offline=true", "--threshold=35", "--no-pager")
    assert "Overall exposure level" in output


def test_our_python_runs_without_memory_that_is_written_and_executed() -> None:
    """MemoryDenyWriteExecute=yes: the kernel's own form of it (PR_SET_MDWE) is inherited by what is executed."""
    code = (
        "import ctypes, os, sys\n"
        "if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0: sys.exit(77)\n"
        "os.execv(sys.executable, [sys.executable, '-P', '-c', 'import coloproxy, coloproxy.cli, pyroute2;"
        "from coloproxy.engine import Engine; from coloproxy.run import privileges; Engine().close(); print(1)'])\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE (Linux 6.3)")
    assert done.stdout == "1\n", done.stderr
