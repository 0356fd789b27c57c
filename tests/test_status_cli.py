# SPDX-License-Identifier: Apache-2.0
"""`coloproxy status` and `coloproxy top`: what they show, of real control sockets, in a pipe and on a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pair_files import PAIR, changed
from rich.console import Console
from statuses import node_status, run_status, vm_status

from coloproxy.control import ControlServer
from coloproxy.node.view import quantile_ms, render, told_of

DEADLINE = 30.0
COMMAND = [sys.executable, "-P", "-m", "coloproxy"]


def shown(*arguments: Any, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render(*arguments))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def words(text: str) -> str:
    return " ".join(text.split())


# -------------------------------------------------------------------- the view


def test_both_nodes(tmp_path: Path) -> None:
    vm = vm_status(tmp_path, "primary")
    vm |= {"checkpoints": 12, "checkpoints_by_cause": {"payload": 3, "qemu": 9}, "checkpoints_failed": 1}
    vm["pauses"] = {"count": 10, "sum_ms": 90, "histogram": [[10.0, 9], [25.0, 1], [None, 0]]}
    vm["comparator"]["held_frames"], vm["comparator"]["held_bytes"] = [5, 0], [2048, 0]
    text = words(shown(node_status(vm=vm), node_status("b", "secondary", "standby", disks=[], history=[])))
    for expected in (
        "pair web",
        "role primary secondary",
        "state protected standby",
        "since 1 h 18 min 1 h 18 min",
        "generation 7 7",
        "hears the other yes last 31.5 ms round trip 412 us",
        "arbiter etcd: a owns generation 8",
        "QEMU running pid 31337",
        "VM web on a unprotected",
        "checkpoints 12 qemu 9, payload 3 1 failed",
        "pauses median <= 10 ms, p99 <= 25 ms",
        "held 5 frames, 2.0 KiB",
        "disk1 1.0 GiB resync ############............ 50% of 1,024.0 MiB 100.0 MiB/s 5.12 s left",
        "link sent 10,001 received 9,991 lost 11 refused 24 round trip 0.2/0.412/9.5 ms",
        "protecting -> protected resumed: COLO runs",
    ):
        assert expected in text, text


@pytest.mark.parametrize(
    ("alive", "expected"),
    [
        (True, ["a b", "role primary secondary", "state protected standby", "heard 31.5 ms ago"]),
        (False, ["state protected lost", "its heartbeat is not heard"]),
    ],
)
def test_the_other_node_by_hearsay(alive: bool, expected: list[str]) -> None:
    status = node_status()
    status["peer"]["alive"] = alive
    text = words(shown(status))
    for each in expected:
        assert each in text
    assert told_of({"pair": "web"}) is None


def test_rates_are_of_the_same_vm_since_then(tmp_path: Path) -> None:
    before, now = (run_status(tmp_path, "primary") for _ in range(2))
    now["vms"][0]["checkpoints"], now["vms"][1]["checkpoints"] = 30, 5
    before["vms"][1]["checkpoints"] = 500  # it was started anew since
    text = words(shown(now, None, [before], 2.0))
    assert "checkpoints 30 (15.0/s)" in text
    assert "checkpoints 5 held" in text
    assert "/s)" not in shown(now)


@pytest.mark.parametrize(
    ("histogram", "share", "bound"),
    [
        ([], 0.5, None),
        ([[1.0, 0], [None, 0]], 0.5, None),
        ([[1.0, 1], [2.0, 1], [None, 0]], 0.5, 1.0),
        ([[1.0, 1], [2.0, 1], [None, 0]], 0.51, 2.0),
        ([[1.0, 1], [None, 1]], 0.99, float("inf")),
    ],
)
def test_quantiles(histogram: list[list[float | None]], share: float, bound: float | None) -> None:
    assert quantile_ms(histogram, share) == bound


def test_nobody() -> None:
    assert shown(None, None) == "no node answers\n"


@pytest.mark.parametrize("role", ["primary", "secondary"])
def test_coloproxy_run_is_shown_too(role: Any, tmp_path: Path) -> None:
    text = words(shown(run_status(tmp_path, role)))
    assert "VM web on " + role in text and "VM mail on " + role in text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(node_status(), json_values)))
def test_any_status_is_shown(status: dict[str, Any]) -> None:
    """One of another version may have anything anywhere."""
    assert shown(status, None)


def test_nothing_does_anything_to_the_terminal() -> None:
    text = shown(node_status(reason="\x1b[2Jgone", pair="\x07"))
    assert "\x1b" not in text and "\x07" not in text


# ---------------------------------------------------------------- the commands


@contextlib.asynccontextmanager
async def serving(path: Path, status: Mapping[str, Any]) -> AsyncIterator[Path]:
    async def answer(_: Mapping[str, Any]) -> object:
        return status

    async with ControlServer(path, {"status": answer}):
        yield path


async def run(*arguments: str | Path) -> tuple[int, str, str]:
    def work() -> tuple[int, str, str]:
        argv = [*COMMAND, *map(str, arguments)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        return done.returncode, done.stdout, done.stderr

    return await asyncio.to_thread(work)


async def test_one_node_or_two(tmp_path: Path) -> None:
    a, b = node_status(), node_status("b", "secondary", "standby", generation=8)
    async with serving(tmp_path / "a.sock", a) as first, serving(tmp_path / "b.sock", b) as second:
        code, out, err = await run("status", "--socket", first)
        assert (code, err) == (0, "") and "heard 31.5 ms ago" in out
        code, out, _ = await run("status", "--socket", first, "--socket", second)
        assert code == 0 and "generation 7 8" in words(out)
        code, out, _ = await run("status", "--socket", first, "--socket", second, "--json")
        assert (code, json.loads(out)) == (0, {"nodes": [a, b], "heard": None})
        code, out, _ = await run("status", "--socket", first, "--json")
        assert json.loads(out)["heard"] == told_of(a)
        code, out, err = await run("status", "--socket", first, "--socket", tmp_path / "none.sock")
        assert code == 0 and "no coloproxy listens there" in err and "pair web" in out
        code, out, err = await run("top", "--socket", first)  # no terminal: once
        assert (code, err) == (0, "") and out.count("pair web") == 1


async def test_by_the_pairs_file(tmp_path: Path) -> None:
    text = PAIR + f'\n[control]\nsocket = {{ primary = "{tmp_path}/p.sock", secondary = "{tmp_path}/s.sock" }}\n'
    file = tmp_path / "pair.toml"
    file.write_text(text)
    assert (await run("status", "-c", file))[0] == 3
    async with serving(tmp_path / "s.sock", node_status("b", "secondary", "standby")):
        code, out, err = await run("status", "-c", file)
        assert (code, err) == (0, "") and "state standby standby" in words(out)
    file.write_text(changed('name = "web"\n\n[link]', "[link]", text))
    assert (await run("status", "-c", file))[0] == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["status", "--socket", "/nonexistent/a.sock"], 3),
        (["top", "--socket", "/nonexistent/a.sock"], 3),
        (["status", "--socket", "/a", "--socket", "/b", "--socket", "/c"], 2),
        (["status", "--socket", "/a", "-c", "/b"], 2),
        (["top", "--interval", "0", "--socket", "/a"], 2),
    ],
)
async def test_used_wrongly(arguments: list[str], code: int) -> None:
    assert (await run(*arguments))[0] == code


@pytest.mark.parametrize("by", ["key", "signal"])
async def test_top_on_a_terminal(by: str, tmp_path: Path) -> None:
    status = node_status()
    async with serving(tmp_path / "a.sock", status) as path:
        master, slave = pty.openpty()
        argv = [*COMMAND, "top", "--socket", str(path), "--interval", "0.1"]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "50"}
        process = subprocess.Popen(  # noqa: ASYNC220  # it has begun when the first line is read
            argv, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True, close_fds=True
        )
        os.close(slave)
        try:
            await asyncio.to_thread(read_until, master, b"protected")
            status["state"] = "alone"
            await asyncio.to_thread(read_until, master, b"alone")
            if by == "key":
                os.write(master, b"xq")
            else:
                process.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(drained, process, master) == 0
        finally:
            process.kill()
            process.wait()
            os.close(master)


def read_until(fd: int, wanted: bytes) -> None:
    seen = b""
    until = time.monotonic() + DEADLINE
    while wanted not in seen:
        assert select.select([fd], [], [], max(0, until - time.monotonic()))[0], seen
        seen += os.read(fd, 65536)


def drained(process: subprocess.Popen[bytes], fd: int) -> int:
    """The exit status; what is written meanwhile is read, or it would wait for that."""
    until = time.monotonic() + DEADLINE
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while time.monotonic() < until and os.read(fd, 65536):
            pass
    return process.wait(DEADLINE)


@pytest.mark.parametrize(
    ("at", "told"),
    [
        (1_925_089_445.678, "2031-01-02 03:04:05.678Z"),
        (0, "1970-01-01 00:00:00.000Z"),
        *((value, "?") for value in (None, True, "now", 1e300, float("nan"), float("inf"))),
    ],
)
def test_when_a_state_changed_is_told_as_people_say_it(at: Any, told: str) -> None:
    change = {"at": at, "from": "protecting", "to": "protected", "event": "resumed", "reason": "COLO runs"}
    assert f"{told} protecting" in words(shown(node_status(history=[change])))
