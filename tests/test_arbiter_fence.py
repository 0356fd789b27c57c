# SPDX-License-Identifier: Apache-2.0
"""Fencing: an agent of the test's own that speaks the agents' interface, and the real package's dummy."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from arbiter_world import VirtualLoop

from coloproxy.arbiter import Arbiter, Claim, FenceArbiter, FenceOptions, Ruling, Verdict
from coloproxy.arbiter.claim import Role
from coloproxy.errors import MisuseError
from coloproxy.program import MAX_LINE, Ended, run_program

WON, UNKNOWN = Verdict.WON, Verdict.UNKNOWN

# Its options on standard input, as the agents have them. What each run does is a word of `plan`, by action and number.
AGENT = r"""
import json, os, pathlib, signal, subprocess, sys, time
assert len(sys.argv) == 1, sys.argv
text = sys.stdin.read()
assert text.endswith("\n")
options = dict(line.split("=", 1) for line in text.splitlines())
log = pathlib.Path(options["log"])
before = log.read_text().splitlines() if log.exists() else []
action = options["action"]
with log.open("a") as file:
    print(json.dumps(options), file=file)
number = sum(json.loads(line)["action"] == action for line in before)
plan = json.loads(options["plan"])[action]
word = plan[min(number, len(plan) - 1)]
if word == "hang":
    subprocess.Popen(["sleep", "1000"], stdout=open(options["alive"], "w"))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)
if word == "fail":
    print("Failed: no login with " + options["password"], file=sys.stderr)
    sys.exit(1)
sys.exit(word)
"""


class Bench:
    """The agent, and what it was told."""

    def __init__(self, directory: Path) -> None:
        self.agent = directory / "fence_test"
        self.agent.write_text(f"#!{sys.executable}\n{AGENT}")
        self.agent.chmod(0o755)
        self.log = directory / "log"
        self.fifo = directory / "alive"
        os.mkfifo(self.fifo)

    def options(self, plan: str, **change: Any) -> FenceOptions:
        own = {"plug": "host-b", "password": "geheim 1=2 ", "log": str(self.log), "plan": plan, "alive": str(self.fifo)}
        return FenceOptions(str(self.agent), own, **({"retry_s": 0.0, "deadline_s": 60.0} | change))

    def actions(self) -> list[str]:
        return [json.loads(line)["action"] for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def claim(options: FenceOptions, role: Role = "primary") -> Ruling:
    arbiter: Arbiter = FenceArbiter(options)
    try:
        return await arbiter.claim(Claim("web", "a", role, 2))
    finally:
        await arbiter.close()


@pytest.mark.parametrize(
    ("plan", "change", "verdict", "actions", "words"),
    [
        ('{"off": [0], "status": [2]}', {}, WON, "off status", "is off"),
        ('{"off": [0]}', {"verify": False}, WON, "off", "is off"),
        ('{"reboot": [0]}', {"action": "reboot", "verify": False}, WON, "reboot", "was rebooted"),
        ('{"off": ["fail", "fail", 0], "status": [2]}', {}, WON, "off off off status", "is off"),
        ('{"off": ["fail"]}', {}, UNKNOWN, "off off off", "exit code 1: Failed: no login"),
        ('{"off": ["fail"]}', {"attempts": 1}, UNKNOWN, "off", "attempt 1 of 1"),
        ('{"off": [2]}', {"attempts": 1}, UNKNOWN, "off", "exit code 2"),
        ('{"off": [0], "status": [0]}', {"attempts": 2}, UNKNOWN, "off status off status", "says that the host is on"),
        ('{"off": [0], "status": [0, 2]}', {}, WON, "off status off status", "is off"),
        ('{"off": [0], "status": ["fail"]}', {"attempts": 1}, UNKNOWN, "off status", "but status has not: exit code 1"),
        ('{"reboot": ["fail"]}', {"action": "reboot", "verify": False}, UNKNOWN, "reboot reboot reboot", "exit code 1"),
    ],
)
async def test_fence(
    bench: Bench, plan: str, change: dict[str, Any], verdict: Verdict, actions: str, words: str
) -> None:
    ruling = await claim(bench.options(plan, **change))
    assert ruling.verdict is verdict
    assert bench.actions() == actions.split()
    assert words in ruling.reason
    assert (ruling.owner, ruling.generation) == (("a", 2) if verdict is WON else (None, None))


async def test_nothing_is_remembered(bench: Bench) -> None:
    arbiter: Arbiter = FenceArbiter(bench.options('{"off": [0], "status": [2]}'))
    for _ in range(2):
        assert (await arbiter.claim(Claim("web", "a", "primary", 2))).verdict is WON
    assert bench.actions() == ["off", "status"] * 2
    assert await arbiter.record("web", "a", 2)
    assert (await arbiter.owner("web")).owner is None


async def test_what_the_agent_is_told(bench: Bench) -> None:
    options = bench.options('{"off": [0], "status": [2]}')
    await claim(options)
    told = [json.loads(line) for line in bench.log.read_text().splitlines()]
    assert told == [{**options.options, "action": "off"}, {**options.options, "action": "status"}]


async def test_no_password_in_reasons_and_logs(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    ruling = await claim(bench.options('{"off": ["fail"]}', attempts=1))
    assert "no login with ***" in ruling.reason
    assert "no login with ***" in caplog.text
    assert "geheim" not in ruling.reason + caplog.text


@pytest.mark.parametrize(
    ("option", "text", "shown"),
    [
        ("passwd", "no login with geheim!", "no login with ***!"),
        ("snmp_community", "geheim", "***"),
        ("SECRET_KEY", "geheim geheim", "*** ***"),
        ("ip", "geheim", "geheim"),
        ("passwd", "x" * (MAX_LINE - 4) + "gehe", "x" * (MAX_LINE - 4) + "***"),  # the line was cut within
        ("passwd", "x" * MAX_LINE, "x" * MAX_LINE),
        ("passwd", "gehe", "gehe"),
    ],
)
def test_a_secret_is_masked_wherever_it_ends(option: str, text: str, shown: str) -> None:
    options = FenceOptions("fence_x", {option: "geheim"})
    assert "geheim" not in repr(options)
    assert FenceArbiter(options)._masked(text) == shown


@pytest.mark.parametrize("plan", ['{"off": ["hang"]}', '{"off": [0], "status": ["hang"]}'])
async def test_an_agent_that_hangs_is_killed_with_all_it_has_started(bench: Bench, plan: str) -> None:
    held = os.open(bench.fifo, os.O_RDONLY | os.O_NONBLOCK)
    ruling = await claim(bench.options(plan, deadline_s=3.0, grace_s=0.1))
    assert ruling.verdict is UNKNOWN
    assert "took too long" in ruling.reason
    os.set_blocking(held, True)
    assert await asyncio.to_thread(os.read, held, 1) == b""  # nobody has it open any more
    os.close(held)


async def test_an_agent_that_isnt_there(tmp_path: Path) -> None:
    ruling = await claim(FenceOptions("fence_nonsense", {}, retry_s=0.0))
    assert ruling.verdict is UNKNOWN
    assert "fence_nonsense" in ruling.reason
    assert "No such file" in ruling.reason


@pytest.mark.parametrize(("role", "at"), [("primary", [0.0, 2.0, 4.0]), ("secondary", [15.0, 17.0, 19.0])])
def test_when_it_shoots(role: Role, at: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The secondary waits; both wait between attempts. In virtual time: here the agent is a stand-in that fails."""
    times: list[float] = []

    async def fails(*_: object, **__: object) -> Ended:
        times.append(asyncio.get_running_loop().time())
        return Ended(1, timed_out=False, errors=())

    monkeypatch.setattr("coloproxy.arbiter.fence.run_program", fails)
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        ruling = runner.run(claim(FenceOptions("x", {}, secondary_delay_s=15.0, retry_s=2.0, deadline_s=10.0), role))
    assert times == at
    assert ruling.verdict is UNKNOWN


@pytest.mark.parametrize(
    "options",
    [
        FenceOptions("", {}),
        FenceOptions("a\0b", {}),
        FenceOptions("x", {}, action="on"),  # type: ignore[arg-type]
        FenceOptions("x", {}, action="reboot"),
        FenceOptions("x", {}, deadline_s=0),
        FenceOptions("x", {}, attempts=0),
        FenceOptions("x", {}, retry_s=-1),
        FenceOptions("x", {}, secondary_delay_s=-1),
        FenceOptions("x", {"action": "on"}),
        FenceOptions("x", {"option": "on"}),
        FenceOptions("x", {"": "1"}),
        FenceOptions("x", {"a=b": "1"}),
        FenceOptions("x", {"#a": "1"}),
        FenceOptions("x", {" a": "1"}),
        FenceOptions("x", {"a\nb": "1"}),
        FenceOptions("x", {"a": "1\naction=on"}),
        FenceOptions("x", {"a": "1\0"}),
    ],
)
def test_options_that_cant_work(options: FenceOptions) -> None:
    with pytest.raises(MisuseError):
        FenceArbiter(options)


# ------------------------------------------------------------------ the real package's dummy


@pytest.fixture
def dummy(tmp_path: Path) -> FenceOptions:
    if shutil.which("fence_dummy", path="/usr/sbin:/usr/bin") is None:
        pytest.skip("NO fence-agents HERE: real agents were NOT tested (apt: fence-agents)")
    status = tmp_path / "status"
    status.write_text("on")
    return FenceOptions("fence_dummy", {"status_file": str(status), "type": "file"}, attempts=1)


def power(options: FenceOptions) -> str:
    return Path(options.options["status_file"]).read_text()


async def test_a_real_agent(dummy: FenceOptions) -> None:
    for _ in range(2):  # the second time the host is off already
        ruling = await claim(dummy)
        assert (ruling.verdict, ruling.reason) == (WON, "fence_dummy: the other host is off")
        assert power(dummy) == "off"


async def test_a_real_agent_that_reboots(dummy: FenceOptions) -> None:
    ruling = await claim(FenceOptions("fence_dummy", dummy.options, action="reboot", verify=False))
    assert ruling.verdict is WON
    assert power(dummy) == "on"  # again


async def test_a_real_agent_that_fails(dummy: FenceOptions) -> None:
    ruling = await claim(FenceOptions("fence_dummy", {"type": "fail", "power_timeout": "1"}, attempts=1))
    assert ruling.verdict is UNKNOWN
    assert "exit code 1" in ruling.reason
    assert power(dummy) == "on"


# ------------------------------------------------------------------ run_program's standard input


@pytest.mark.parametrize("size", [0, 1, 1_000_000])
async def test_standard_input(size: int) -> None:
    lines: list[str] = []
    data = b"x" * size
    ended = await run_program(
        ["wc", "-c"], {}, timeout_s=60.0, on_line=lambda _, line: lines.append(line.strip()), stdin=data
    )
    assert (ended.code, lines) == (0, [str(size)])
    unread = await run_program(["true"], {}, timeout_s=60.0, on_line=lambda *_: None, stdin=data)
    assert unread.failure is None
