# SPDX-License-Identifier: Apache-2.0
"""The `command` checkpoint back end: the program's runs, the controller's decisions, and both around a real engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from coloproxy import command_checkpoint, reports
from coloproxy.address import parse_address
from coloproxy.checkpoint_actions import Timing
from coloproxy.command_checkpoint import Action, CommandController, Do, Phase, Step
from coloproxy.command_guide import CommandGuide, CommandOptions
from coloproxy.engine import Engine
from coloproxy.engine_events import Port
from coloproxy.errors import MisuseError
from coloproxy.options import CompareOptions
from coloproxy.program import MAX_LINE, MAX_LINES, Ended, run_program
from coloproxy.reports import Report

DEADLINE = 30.0
FOREVER = 3600 * 10**9

# -------------------------------------------------------------- the program


async def sh(script: str, *, timeout_s: float = DEADLINE, grace_s: float = DEADLINE) -> tuple[Ended, list[str]]:
    lines: list[str] = []
    ended = await run_program(
        ["sh", "-c", script],
        {"GREETING": "hello"},
        timeout_s=timeout_s,
        grace_s=grace_s,
        on_line=lambda stream, line: lines.append(f"{stream} {line}"),
    )
    return ended, lines


def is_alive(pid: int) -> bool:
    """It runs: it is not a zombie that its new parent has not reaped yet."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    return False


def descriptors() -> int:
    """Open ones of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 -- of other processes
            await asyncio.sleep(0.005)


async def pid_in(path: Path) -> int:
    """The whole number that a script writes there with a newline."""
    await until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())  # noqa: ASYNC240


@pytest.mark.parametrize(
    ("script", "code", "failure", "lines"),
    [
        ("echo $GREETING; echo two >&2", 0, None, {"stdout hello", "stderr two"}),
        ("printf 'no newline'", 0, None, {"stdout no newline"}),
        ("exit 3", 3, "exit code 3", set()),
        ("echo why >&2; echo still >&2; exit 1", 1, "exit code 1: why | still", {"stderr why", "stderr still"}),
        ("kill -KILL $$", -9, "it was ended by signal 9", set()),
        (r"printf '\033[1mred\377\n' >&2; exit 2", 2, "exit code 2: ?[1mred\ufffd", {"stderr ?[1mred\ufffd"}),
        ("cat; echo end", 0, None, {"stdout end"}),  # nothing to be read
    ],
)
async def test_how_a_program_ends(script: str, code: int, failure: str | None, lines: set[str]) -> None:
    ended, said = await sh(script)
    assert (ended.code, ended.timed_out, ended.failure) == (code, False, failure)
    assert set(said) == lines


async def test_no_such_program() -> None:
    ended = await run_program(["/no/such/program", "take"], {}, timeout_s=1, on_line=lambda *_: None)
    assert ended.failure is not None
    assert "/no/such/program" in ended.failure and "No such file" in ended.failure


async def test_a_flood_of_output_is_bounded() -> None:
    """More than pipes hold on both streams, and one line without an end."""
    ended, lines = await sh("yes out | head -c 3000000; yes err | head -c 3000000 >&2; head -c 3000000 /dev/zero")
    assert ended.failure is None
    assert lines.count("stdout out") == MAX_LINES
    assert lines.count("stderr err") == MAX_LINES
    assert f"stdout ... and {3_000_000 // 4 + 1 - MAX_LINES} lines more" in lines  # the one of zeros is not shown
    assert f"stderr ... and {3_000_000 // 4 - MAX_LINES} lines more" in lines
    ended, lines = await sh("head -c 3000000 /dev/zero >&2; exit 1")
    assert lines == ["stderr " + "?" * MAX_LINE]
    assert ended.errors == ("?" * MAX_LINE,)


async def test_a_program_that_takes_too_long_gets_sigterm() -> None:
    ended, lines = await sh("trap 'echo bye; exit 0' TERM; echo here; while :; do sleep 0.01; done", timeout_s=2.0)
    assert ended.timed_out
    assert ended.failure is not None and ended.failure.startswith("it took too long and was ended")
    assert [line for line in lines if line.startswith("stdout")] == ["stdout here", "stdout bye"]


async def test_one_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    script = f"trap '' TERM; sleep 1000 & echo $! > {tmp_path}/child; wait; while :; do sleep 1000; done"
    ended, _ = await sh(script, timeout_s=2.0, grace_s=0.05)
    assert (ended.code, ended.timed_out) == (-9, True)
    assert not is_alive(await pid_in(tmp_path / "child"))


async def test_what_a_failed_program_left_is_killed(tmp_path: Path) -> None:
    ended, _ = await sh(f"sleep 1000 & echo $! > {tmp_path}/child; exit 1")
    assert ended.failure == "exit code 1"
    child = await pid_in(tmp_path / "child")
    await until(lambda: not is_alive(child))


async def test_a_child_that_keeps_the_pipes_does_not_keep_us(tmp_path: Path) -> None:
    ended, lines = await sh(f"sleep 1000 & echo $! > {tmp_path}/child; echo done")
    child = await pid_in(tmp_path / "child")
    assert ended.failure is None
    assert lines == ["stdout done"]
    assert is_alive(child)  # its own business: the program has succeeded
    os.kill(child, 9)


@pytest.mark.parametrize("times", [1, 2])
async def test_cancelled_it_leaves_nothing(tmp_path: Path, times: int) -> None:
    """Cancelled twice, it does not even wait for the grace to be over."""
    ignore = "trap '' TERM; " if times == 2 else ""
    script = f"{ignore}sleep 1000 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/self; while :; do sleep 1000; done"
    before = descriptors()
    task = asyncio.create_task(sh(script, grace_s=DEADLINE if times == 1 else 10 * DEADLINE))
    pids = [await pid_in(tmp_path / "child"), await pid_in(tmp_path / "self")]
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(asyncio.CancelledError):
            await task
    await until(lambda: not any(is_alive(pid) for pid in pids))
    assert descriptors() == before


# ----------------------------------------------------------- the controller


def told(actions: list[Action]) -> list[str]:
    """Each action in a word or two."""
    out = []
    for action in actions:
        match action:
            case Do():
                result = f" {'committed' if action.committed else 'failed'}" if action.step is Step.RESUME else ""
                out.append(f"{action.step.value} {action.epoch}{result}")
            case Report():
                out.append(f"[{action.name}]")
            case _:
                out.append(type(action).__name__)
    return out


SECOND = 1_000_000_000
TAKEN = ["[checkpoint-asked]", "take 0"]

# Name of the call, its arguments but for the time; the time in seconds; what follows; the deadline then, in seconds.
Row = tuple[str, tuple[object, ...], float, list[str], float | None]
OK = None
BEGUN: list[Row] = [
    ("on_secondary", (), 1, TAKEN, None),
    ("on_end", (Step.TAKE, OK), 2, ["before_commit 0"], None),
    ("on_end", (Step.BEFORE_COMMIT, OK), 3, ["EngineStop", "EngineCommit"], None),
    ("on_committed", (0, 0), 4, ["[protected]", "after_commit 0"], None),
    ("on_end", (Step.AFTER_COMMIT, OK), 5, ["resume 0 committed"], None),
    ("on_end", (Step.RESUME, OK), 6, [], None),
]
TABLES: dict[str, list[Row]] = {
    "a checkpoint": [
        *BEGUN,
        ("want", ("payload",), 20, ["[checkpoint-asked]", "take 1"], None),
        ("on_end", (Step.TAKE, OK), 21, ["before_commit 1"], None),
        ("on_end", (Step.BEFORE_COMMIT, OK), 22, ["EngineStop", "EngineCommit"], None),
        ("on_committed", (3, 99), 23, ["[checkpoint-committed]", "after_commit 1"], None),
        ("on_end", (Step.AFTER_COMMIT, OK), 24, ["resume 1 committed"], None),
        ("on_end", (Step.RESUME, OK), 25, [], None),
    ],
    "the interval counts from the commit": [
        *BEGUN,
        ("want", ("early",), 7, [], 14),
        ("tick", (), 13.9, [], 14),
        ("tick", (), 14, ["[checkpoint-asked]", "take 1"], None),
    ],
    "take fails, again and again": [
        ("on_secondary", (), 1, TAKEN, None),
        ("on_end", (Step.TAKE, "no"), 2, ["[checkpoint-failed]", "resume 0 failed"], None),
        ("on_end", (Step.RESUME, OK), 2, [], 3),
        ("tick", (), 3, TAKEN, None),
        ("on_end", (Step.TAKE, "no"), 4, ["[checkpoint-failed]", "resume 0 failed"], None),
        ("on_end", (Step.RESUME, OK), 7, TAKEN, None),  # two seconds after the failure, long ago
        ("on_end", (Step.TAKE, "no"), 8, ["[checkpoint-failed]", "resume 0 failed"], None),
        ("on_end", (Step.RESUME, OK), 8, [], 12),
    ],
    "before_commit fails": [
        ("on_secondary", (), 1, TAKEN, None),
        ("on_end", (Step.TAKE, OK), 2, ["before_commit 0"], None),
        ("on_end", (Step.BEFORE_COMMIT, "link lost"), 3, ["[checkpoint-failed]", "resume 0 failed"], None),
        ("on_end", (Step.RESUME, OK), 3, [], 4),
    ],
    "after_commit fails: it has committed, and another one is wanted": [
        *BEGUN[:4],
        ("on_end", (Step.AFTER_COMMIT, "link lost"), 5, ["[trouble]", "resume 0 committed"], None),
        ("on_end", (Step.RESUME, OK), 6, [], 14),
    ],
    "resume fails: it is not left at that": [
        *BEGUN[:5],
        ("on_end", (Step.RESUME, "no"), 6, ["[resume-failed]"], 7),
        ("want", ("payload",), 6.5, [], 7),
        ("tick", (), 7, ["resume 0 committed"], None),
        ("on_end", (Step.RESUME, "no"), 8, ["[resume-failed]"], 10),
        ("tick", (), 10, ["resume 0 committed"], None),
        ("on_end", (Step.RESUME, OK), 11, [], 14),
    ],
    "resume after a failed take fails: it does not wait for the take's turn": [
        *[row for n in range(5) for row in (
            ("on_secondary" if n == 0 else "tick", (), 100 * n, TAKEN, None),
            ("on_end", (Step.TAKE, "no"), 100 * n, ["[checkpoint-failed]", "resume 0 failed"], None),
            ("on_end", (Step.RESUME, OK), 100 * n, [], 100 * n + 2**n))],
        ("tick", (), 500, TAKEN, None),
        ("on_end", (Step.TAKE, "no"), 500, ["[checkpoint-failed]", "resume 0 failed"], None),
        ("on_end", (Step.RESUME, "no"), 500, ["[resume-failed]"], 501),
        ("tick", (), 501, ["resume 0 failed"], None),
        ("on_end", (Step.RESUME, OK), 501, [], 530),  # the back-off has reached its end
    ],
    "the comparator's wish is answered by the commit of its epoch": [
        *BEGUN,
        ("want", ("one", 1), 20, ["[checkpoint-asked]", "take 1"], None),
        ("want", ("two", 1), 20, [], None),
        ("on_end", (Step.TAKE, OK), 21, ["before_commit 1"], None),
        ("on_end", (Step.BEFORE_COMMIT, OK), 22, ["EngineStop", "EngineCommit"], None),
        ("on_committed", (0, 0), 23, ["[checkpoint-committed]", "after_commit 1"], None),
        ("want", ("late", 1), 23, [], None),
        ("want", ("new", 2), 23, [], None),
        ("on_end", (Step.AFTER_COMMIT, OK), 24, ["resume 1 committed"], None),
        ("on_end", (Step.RESUME, OK), 25, [], 33),
    ],
    "an operator's wish is answered by one that begins after it": [
        *BEGUN,
        ("want", ("one",), 20, ["[checkpoint-asked]", "take 1"], None),
        ("want", ("two",), 20, [], None),
        ("on_end", (Step.TAKE, OK), 21, ["before_commit 1"], None),
        ("on_end", (Step.BEFORE_COMMIT, OK), 22, ["EngineStop", "EngineCommit"], None),
        ("on_committed", (0, 0), 23, ["[checkpoint-committed]", "after_commit 1"], None),
        ("on_end", (Step.AFTER_COMMIT, OK), 24, ["resume 1 committed"], None),
        ("on_end", (Step.RESUME, OK), 25, [], 33),
    ],
    "assume-equal": [
        ("assume_equal", (), 1, ["EngineStop", "EngineCommit"], None),
        ("on_secondary", (), 1, [], None),
        ("on_committed", (0, 0), 2, ["[protected]", "after_commit 0"], None),
        ("on_end", (Step.AFTER_COMMIT, OK), 3, [], None),
        ("want", ("payload",), 20, ["[checkpoint-asked]", "take 1"], None),
    ],
    "the secondary goes and comes": [
        ("on_secondary_lost", (), 0, [], None),
        *BEGUN,
        ("on_secondary", (), 20, [], None),
        ("on_secondary_lost", (), 21, ["[trouble]"], None),
        ("on_secondary", (), 22, ["[checkpoint-asked]", "take 1"], None),
    ],
    "alone, and begun again": [
        *BEGUN,
        ("alone", ("so ordered",), 20, ["EngineAlone", "[alone]"], None),
        ("want", ("payload",), 21, [], None),
        ("on_secondary", (), 22, ["[checkpoint-asked]", "take 2"], None),
    ],
    "alone while a checkpoint is taken": [
        *BEGUN,
        ("want", ("payload",), 20, ["[checkpoint-asked]", "take 1"], None),
        ("alone", ("so ordered",), 20, ["EngineAlone", "[alone]"], None),
        ("on_end", (Step.TAKE, OK), 21, ["resume 2 failed"], None),
        ("on_end", (Step.RESUME, OK), 22, [], None),
    ],
    "alone right behind the commit": [
        *BEGUN[:3],
        ("alone", ("so ordered",), 3, ["EngineAlone", "[alone]"], None),
        ("on_committed", (0, 0), 4, ["after_commit 1"], None),
        ("on_end", (Step.AFTER_COMMIT, "link lost"), 5, ["resume 1 committed"], None),
        ("on_end", (Step.RESUME, OK), 6, [], None),
    ],
}  # fmt: skip


@pytest.mark.parametrize("rows", TABLES.values(), ids=TABLES.keys())
def test_controller(rows: list[Row]) -> None:
    controller = CommandController(min_interval=10 * SECOND)
    for number, (call, arguments, at, then, deadline) in enumerate(rows, 1):
        now = round(at * SECOND)
        match call:
            case "want":
                actions = controller.want(str(arguments[0]), now, *arguments[1:])  # type: ignore[arg-type]
            case "on_secondary_lost" | "alone":
                actions = getattr(controller, call)(*arguments)
            case _:
                actions = getattr(controller, call)(*arguments, now)
        assert told(actions) == then, f"row {number}: {call}"
        assert controller.deadline() == (None if deadline is None else round(deadline * SECOND)), f"row {number}"
        bare = rows[0][0] == "assume_equal" and not any(row[3][-1:] == ["take 1"] for row in rows[:number])
        assert (controller.unfinished() is None) == (bare or controller.phase is Phase.IDLE)


def test_what_a_failed_checkpoint_was_for_is_not_forgotten() -> None:
    controller = CommandController(0)
    controller.want("first", 5)
    controller.want("second", 6)
    failed, _ = controller.on_end(Step.TAKE, "exit code 1: no room", 8)
    assert isinstance(failed, reports.CheckpointFailed)
    assert failed.reason == "take: exit code 1: no room; again in 1 s"
    assert failed.causes == ("first",)
    controller.on_end(Step.RESUME, None, 9)
    asked, do = controller.tick(8 + SECOND)
    assert asked == reports.CheckpointAsked(("first", "second"), 2)
    assert do == Do(Step.TAKE, "first; second", 0, committed=False)


def test_wishes_are_bounded() -> None:
    controller = CommandController(0)
    for number in range(100):
        controller.want(f"wish {number}", 1)
    controller.on_end(Step.TAKE, "no", 2)
    controller.on_end(Step.RESUME, None, 3)
    asked, _ = controller.tick(2 + SECOND)
    assert isinstance(asked, reports.CheckpointAsked)
    assert asked.causes == tuple(f"wish {number}" for number in range(16))


# ------------------------------------------------------------ with an engine


PROGRAM = """#!/bin/sh
cd "$(dirname "$0")" || exit 99
echo "$1 $COLOPROXY_VM $COLOPROXY_EPOCH ${COLOPROXY_RESULT--} $COLOPROXY_REASON" >> log
[ ! -e "$1.sh" ] || . "./$1.sh"
"""


def frame(text: str) -> bytes:
    """Of an experimental ethertype: compared as a whole."""
    return b"\x02\0\0\0\0\x01\x02\0\0\0\0\xff\x88\xb5" + text.encode().ljust(50)


class Rig:
    """A guide, its engine, the far ends of the engine's sockets, and the program's directory."""

    def __init__(self, directory: Path, options: CommandOptions, hooks: list[Callable[[], Awaitable[None]]]) -> None:
        self.directory = directory
        self.reports: list[Report] = []
        self.guide = CommandGuide(options, self.reports.append, *hooks)
        self.far: dict[Port, socket.socket] = {}
        self.engine = self.new_engine()
        self.task = asyncio.create_task(self.guide.run())

    def new_engine(self) -> Engine:
        engine = Engine(compare_timeout=FOREVER, reorder_window=FOREVER)
        asyncio.get_running_loop().add_reader(engine.event_fd, lambda: self._drain(engine))
        self.guide.begin(engine)
        engine.start()
        return engine

    def _drain(self, engine: Engine) -> None:
        for event in engine.events():
            self.guide.on_engine(event)

    def attach(self, *ports: Port) -> None:
        for port in ports:
            ours, self.far[port] = socket.socketpair()
            self.far[port].setblocking(False)
            self.engine.attach(port, ours)

    def send(self, port: Port, text: str) -> None:
        data = frame(text)
        self.far[port].send(len(data).to_bytes(4, "big") + data)

    async def receive(self) -> str:
        async with asyncio.timeout(DEADLINE):
            data = await asyncio.get_running_loop().sock_recv(self.far[Port.OUTDEV], 68)
        assert len(data) == 68
        return data[18:].decode().rstrip()

    def silent(self) -> bool:
        try:
            return not self.far[Port.OUTDEV].recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True

    def behave(self, **scripts: str) -> None:
        """What `take` and `resume` do from now on."""
        for step, script in scripts.items():
            (self.directory / f"{step}.new").write_text(script)
            (self.directory / f"{step}.new").rename(self.directory / f"{step}.sh")

    def log(self) -> list[str]:
        path = self.directory / "log"
        return path.read_text().splitlines() if path.exists() else []

    async def ran(self, *lines: str) -> None:
        """These are the program's runs so far."""
        await until(lambda: len(self.log()) >= len(lines))
        assert self.log() == list(lines)

    async def report(self, kind: type[Report], count: int = 1) -> Report:
        await until(lambda: sum(isinstance(report, kind) for report in self.reports) >= count)
        return [report for report in self.reports if isinstance(report, kind)][count - 1]

    async def fed(self, primary: int, secondary: int) -> None:
        await until(lambda: self.engine.counters().comparator.frames_in == (primary, secondary))

    async def end(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        asyncio.get_running_loop().remove_reader(self.engine.event_fd)
        self.engine.close()
        for sock in self.far.values():
            sock.close()


@contextlib.asynccontextmanager
async def rig(
    directory: Path, *hooks: Callable[[], Awaitable[None]], timeout_s: float = DEADLINE, **options: object
) -> AsyncIterator[Rig]:
    program = directory / "program"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    made = Rig(
        directory,
        CommandOptions((str(program),), vm="blue", timeout_s=timeout_s, min_interval_s=0, **options),  # type: ignore[arg-type]
        list(hooks),
    )
    try:
        yield made
    finally:
        await made.end()


BEGIN = ["take blue 0 - protection begins", "resume blue 0 committed protection begins"]


async def begun(r: Rig) -> None:
    r.attach(*Port)
    await r.ran(*BEGIN)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried again at once."""
    monkeypatch.setattr(command_checkpoint, "FIRST_BACKOFF", 1_000_000)


async def test_from_alone_to_protected_and_on(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        r.attach(Port.PRIMARY_IN, Port.OUTDEV)
        r.send(Port.PRIMARY_IN, "alone")
        assert await r.receive() == "alone"
        assert not r.guide.protected()
        r.attach(Port.SECONDARY_IN)
        await r.ran(*BEGIN)
        assert r.guide.protected()
        r.send(Port.PRIMARY_IN, "equal")
        r.send(Port.SECONDARY_IN, "equal")
        assert await r.receive() == "equal"
        r.send(Port.PRIMARY_IN, "held")
        await r.fed(3, 1)
        assert r.silent()
        r.guide.want("the operator's wish")
        assert await r.receive() == "held"
        committed = await r.report(reports.CheckpointCommitted)
        assert isinstance(committed, reports.CheckpointCommitted)
        assert (committed.number, committed.causes, committed.released_frames) == (1, ("the operator's wish",), 1)
        assert committed.total_ns is not None and committed.total_ns > 0
        await r.ran(*BEGIN, "take blue 1 - the operator's wish", "resume blue 1 committed the operator's wish")


async def test_hooks_stand_where_the_link_needs_them(tmp_path: Path) -> None:
    """before: `take` is over, the engine has not been told. after: it has committed, `resume` has not begun."""
    seen: list[tuple[str, int, list[str]]] = []

    async def before() -> None:
        await asyncio.sleep(0)
        seen.append(("before", r.engine.counters().comparator.commits, r.log()))
        r.send(Port.SECONDARY_IN, "old")  # it came by the link, before the mark
        r.send(Port.PRIMARY_IN, "last words")

    async def after() -> None:
        await asyncio.sleep(0)
        seen.append(("after", r.engine.counters().comparator.commits, r.log()))

    async with rig(tmp_path, before, after) as r:
        await begun(r)
        assert await r.receive() == "last words"
        assert seen == [("before", 0, BEGIN[:1]), ("after", 1, BEGIN[:1])]
        r.send(Port.PRIMARY_IN, "old")  # what the secondary said of the old epoch proves nothing
        await until(lambda: r.engine.counters().comparator.frames_in[0] == 2)
        assert r.silent()
        r.send(Port.SECONDARY_IN, "old")
        assert await r.receive() == "old"


async def test_output_stays_held_while_take_fails(tmp_path: Path, hasty: None) -> None:
    async with rig(tmp_path) as r:
        await begun(r)
        r.send(Port.PRIMARY_IN, "held")
        await r.fed(1, 0)
        r.behave(take="echo the disk is full >&2\nexit 4\n")
        r.guide.want("a test")
        failed = await r.report(reports.CheckpointFailed, 2)
        assert isinstance(failed, reports.CheckpointFailed)
        assert failed.reason.startswith("take: exit code 4: the disk is full; again in ")
        assert failed.causes == ("a test",)
        assert r.silent()
        r.behave(take="")
        assert await r.receive() == "held"
        await r.report(reports.CheckpointCommitted)
        runs = r.log()[2:]
        assert runs[:4] == ["take blue 1 - a test", "resume blue 1 failed a test"] * 2
        await until(lambda: r.log()[-1] == "resume blue 1 committed a test")


async def test_take_that_hangs_is_killed(tmp_path: Path, hasty: None) -> None:
    async with rig(tmp_path, timeout_s=1.0, grace_s=0.05) as r:
        await begun(r)
        r.send(Port.PRIMARY_IN, "held")
        await r.fed(1, 0)
        r.behave(take="trap '' TERM\necho $$ > pid\nwhile :; do sleep 1000; done\n")
        r.guide.want("a test")
        pid = await pid_in(tmp_path / "pid")
        r.behave(take="")
        failed = await r.report(reports.CheckpointFailed)
        assert "it took too long and was ended" in str(failed)
        assert not is_alive(pid)
        assert await r.receive() == "held"  # by the next one


async def test_resume_is_tried_until_it_succeeds(tmp_path: Path, hasty: None) -> None:
    async with rig(tmp_path) as r:
        r.behave(resume="echo stuck >&2\nexit 1\n")
        r.attach(*Port)
        failed = await r.report(reports.ResumeFailed, 2)
        assert str(failed) == (
            "the checkpoint command could not resume the VMs (attempt 2): exit code 1: stuck; trying again"
        )
        r.guide.want("meanwhile")
        assert "take blue 1 - meanwhile" not in r.log()
        r.behave(resume="")
        await until(lambda: "take blue 1 - meanwhile" in r.log())
        assert len([line for line in r.log() if line == BEGIN[1]]) >= 3


@pytest.mark.parametrize("fails", [False, True], ids=["works", "fails"])
async def test_hooks_fail_and_hang(tmp_path: Path, hasty: None, fails: bool) -> None:
    calls = 0

    async def before() -> None:
        nonlocal calls
        calls += 1
        if calls == 1 and fails:
            raise ConnectionError("the link is down")
        if calls == 1:
            await asyncio.Event().wait()

    async with rig(tmp_path, before, timeout_s=0.5) as r:
        r.attach(*Port)
        failed = await r.report(reports.CheckpointFailed)
        assert ("before_commit: the link is down" if fails else "before_commit: it took too long") in str(failed)
        await r.ran(BEGIN[0], "resume blue 0 failed protection begins", *BEGIN)
        assert r.guide.protected()


async def test_assume_equal(tmp_path: Path) -> None:
    """Compared from the moment on when the secondary is there, without a run of the program."""
    async with rig(tmp_path, initial="assume-equal") as r:
        r.attach(Port.PRIMARY_IN, Port.OUTDEV)
        r.send(Port.PRIMARY_IN, "alone")
        assert await r.receive() == "alone"
        r.attach(Port.SECONDARY_IN)
        await r.report(reports.Protected)
        r.send(Port.PRIMARY_IN, "first")
        await r.fed(2, 0)
        assert r.silent()
        r.send(Port.SECONDARY_IN, "first")
        assert await r.receive() == "first"
        assert r.log() == []


async def test_a_new_engine_begins_anew(tmp_path: Path) -> None:
    """Even where the first one was told that both are equal; and what it was doing is undone."""
    async with rig(tmp_path, initial="assume-equal") as r:
        r.attach(*Port)
        await r.report(reports.Protected)
        r.behave(take="echo $$ > pid\nwhile :; do sleep 0.01; done\n")
        r.guide.want("a test")
        pid = await pid_in(tmp_path / "pid")
        old = r.engine
        asyncio.get_running_loop().remove_reader(old.event_fd)
        old.close()
        r.behave(take="")
        r.engine = r.new_engine()
        assert not r.guide.protected()
        r.attach(*Port)
        await r.ran("take blue 1 - a test", "resume blue 1 failed a test", *BEGIN)
        assert not is_alive(pid)


@pytest.mark.parametrize("stage", ["take", "hook", "resume"])
async def test_cancelled_anywhere_no_process_and_no_standing_vm_is_left(tmp_path: Path, stage: str) -> None:
    hanging = asyncio.Event()

    async def hang() -> None:
        hanging.set()
        await asyncio.Event().wait()

    hooks = [hang] if stage == "hook" else []
    async with rig(tmp_path, *hooks) as r:
        if stage != "hook":
            r.behave(**{stage: "[ ! -e pid ] || exit 0\necho $$ > pid\nwhile :; do sleep 0.01; done\n"})
        r.attach(*Port)
        if stage == "hook":
            await hanging.wait()
        else:
            pid = await pid_in(tmp_path / "pid")
        r.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await r.task
        result = "committed" if stage == "resume" else "failed"
        assert r.log()[-1] == f"resume blue 0 {result} protection begins"
        assert stage == "hook" or not is_alive(pid)


async def test_a_checkpoint_at_a_time(tmp_path: Path) -> None:
    """However many want one, and while one is in progress too."""
    script = "[ ! -e busy ] || echo overlap >> log\ntouch busy\nsleep 0.02\nrm busy\n"
    async with rig(tmp_path) as r:
        r.behave(take=script, resume=script)
        await begun(r)
        for number in range(12):
            r.guide.want(f"wish {number}")
            await asyncio.sleep(0.003)
        await until(lambda: "wish 11" in r.log()[-1] and r.log()[-1].startswith("resume"))
        assert "overlap" not in r.log()
        takes = [line for line in r.log() if line.startswith("take")]
        assert sum(line.count("wish") for line in takes) == 12, "each is answered once"
        assert len(takes) < 12


# -------------------------------------------------------------- the service


def compare_options(directory: Path, **more: object) -> CompareOptions:
    addresses = [parse_address(f"unix:{directory}/{name}") for name in "pso"]
    return CompareOptions(*addresses, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "more",
    [
        {"qmp": parse_address("connect:unix:/q")},
        {"notify_dev": parse_address("unix:/n")},
        {"timing": Timing(checkpoint_delay_ms=100)},
        {"keep_gap": True},
        {"checkpoint_command": CommandOptions(())},
        {"checkpoint_command": CommandOptions(("a\0b",))},
        {"checkpoint_command": CommandOptions(("a",), timeout_s=0)},
    ],
    ids=lambda more: next(iter(more)),
)
def test_options_that_cannot_work(tmp_path: Path, more: dict[str, object]) -> None:
    with pytest.raises(MisuseError, match="checkpoint"):
        compare_options(tmp_path, **{"checkpoint_command": CommandOptions(("true",)), **more}).check()
    compare_options(tmp_path, checkpoint_command=CommandOptions(("true",))).check()


async def test_the_service(tmp_path: Path) -> None:
    """`coloproxy compare --checkpoint-command`: a divergence ends in a checkpoint, and the journal says so."""
    program = tmp_path / "program"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    command = [sys.executable, "-m", "coloproxy", "compare", "--json-events", "-", "--compare-timeout", "50"]
    for option, name in (("--primary-in", "p"), ("--secondary-in", "s"), ("--outdev", "o")):
        command += [option, f"unix:{tmp_path}/{name}"]
    command += ["--checkpoint-command", f"{program}", "--min-checkpoint-interval", "0"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    records: list[dict[str, object]] = []

    async def event(kind: str) -> dict[str, object]:
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            while line := await process.stdout.readline():
                records.append(json.loads(line))
                if records[-1]["event"] == kind:
                    return records[-1]
        raise AssertionError(f"no {kind} in {records}")

    try:
        await event("started")
        far: dict[str, asyncio.StreamWriter] = {}
        for name in "pos":
            reader, far[name] = await asyncio.open_unix_connection(tmp_path / name)
            if name == "o":
                released = reader
        await event("protected")
        for name, text in (("p", "one"), ("s", "two")):
            data = frame(text)
            far[name].write(len(data).to_bytes(4, "big") + data)
        divergence = await event("divergence")
        assert (await event("checkpoint-asked"))["causes"] == [f"{divergence['cause']} in {divergence['flow']['text']}"]  # type: ignore[index]
        assert (await event("checkpoint-committed"))["released_frames"] == 1
        async with asyncio.timeout(DEADLINE):
            assert (await released.readexactly(68))[4:] == frame("one")
        log = tmp_path / "log"
        await until(lambda: len(log.read_text().splitlines()) == 4)
        assert [line.split()[0] for line in log.read_text().splitlines()] == ["take", "resume"] * 2
        process.terminate()
        assert await process.wait() == 0
        for writer in far.values():
            writer.close()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
