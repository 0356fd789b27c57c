# SPDX-License-Identifier: Apache-2.0
"""The node's QEMU as a process: real ones, without a guest."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from qemu_process import needs_qemu

from coloproxy.address import Address
from coloproxy.errors import QmpError, VmmBusy, VmmError, VmmExited
from coloproxy.qmp import QmpLink
from coloproxy.vmm import (
    Acceleration,
    Cause,
    Connected,
    Event,
    Exit,
    Health,
    Lost,
    Machine,
    QemuProcess,
    StateDirectory,
)
from coloproxy.vmm import command_line as make_command_line
from coloproxy.vmm.bus import Bus
from coloproxy.vmm.detached import Account
from coloproxy.vmm.files import LOG_LIMIT, log_tail, open_log, trim_log
from coloproxy.vmm.holder import listener, pidfile_holder
from coloproxy.vmm.pidfd import Pidfd
from coloproxy.vmm.process import _give

LONG_S = 30.0  # never met, unless something is wrong
TCG = Acceleration("tcg")
NO_MACHINE = ("-M", "none", "-m", "1032k")


def argv(state: StateDirectory, *options: str, name: str = "web", binary: str | None = None) -> list[str]:
    machine = Machine(name, TCG, options=options or NO_MACHINE)
    line = make_command_line(machine, state.files, "primary")
    return line if binary is None else [binary, *line[1:]]


async def launch(state: StateDirectory, *options: str, name: str = "web") -> QemuProcess:
    return await QemuProcess.launch(state, name, argv(state, *options, name=name))


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[StateDirectory]:
    """A state directory of our own; whatever runs in it at the end of the test is ended."""
    with StateDirectory.open(tmp_path / "s") as opened:
        yield opened
        await end(opened)


async def end(state: StateDirectory) -> None:
    pid = pidfile_holder(state.files.pidfile)
    if pid is not None:
        process = Pidfd(pid)
        process.kill()
        await asyncio.shield(process.exited)
        process.close()


@contextlib.contextmanager
def child(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program of ours that has printed its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stdin.close()


def descriptors(pid: int) -> dict[int, Path]:
    return {int(fd.name): fd.readlink() for fd in Path(f"/proc/{pid}/fd").iterdir()}


def freeze(pid: int) -> None:
    """SIGSTOP to a child, and waits until its last thread stands still."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)


def about(pid: int) -> tuple[int, str]:
    """(user id, oom_score_adj)"""
    process = Path(f"/proc/{pid}")
    return process.stat().st_uid, (process / "oom_score_adj").read_text().strip()


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=LONG_S)


# ------------------------------------------------------------------ launch


@needs_qemu
async def test_launch_and_quit(state: StateDirectory) -> None:
    qemu = await launch(state)
    with qemu.watch() as events:
        assert pidfile_holder(state.files.pidfile) == qemu.pid
        assert await qemu.execute("query-name") == {"name": "web"}
        assert isinstance(await qemu.execute("query-yank", out_of_band=True), list)
        assert await qemu.status() == "running"
        ended = await qemu.quit()
    assert (ended.status, ended.text) == (0, "quit, by QMP")
    assert ended.shutdown is not None and ended.shutdown.data["reason"] == "host-qmp-quit"
    kinds = [item.name if isinstance(item, Event) else type(item).__name__ for item in events.take()]
    assert kinds == ["SHUTDOWN", "Lost", "Exit"]
    assert not state.files.pidfile.exists()
    with pytest.raises(QmpError, match="QEMU has ended: quit, by QMP"):
        await qemu.execute("query-status")
    assert (await qemu.probe()).health is Health.GONE
    assert await qemu.kill() == ended  # nothing more happens
    await qemu.close()


@needs_qemu
async def test_it_has_nothing_of_ours(state: StateDirectory) -> None:
    canary = os.open("/dev/zero", os.O_RDONLY)
    os.set_inheritable(canary, True)
    try:
        qemu = await launch(state)
    finally:
        os.close(canary)
    assert os.getsid(qemu.pid) == qemu.pid
    files = descriptors(qemu.pid)
    assert not {Path("/dev/zero"), state.files.lock} & set(files.values())
    assert (files[0], files[1], files[2]) == (Path("/dev/null"), state.files.log, state.files.log)
    assert stat.S_IMODE(state.files.log.stat().st_mode) == 0o600
    assert stat.S_IMODE(state.files.control.stat().st_mode) & 0o077 == 0
    await qemu.kill()
    await qemu.close()


@needs_qemu
async def test_options_that_qemu_refuses(state: StateDirectory) -> None:
    bad = argv(state, "-M", "none", "-m", "1032k", "-device", "no such, device")
    with pytest.raises(VmmExited) as caught:
        await QemuProcess.launch(state, "web", bad)
    assert caught.value.status == 1
    text = str(caught.value)
    assert "it gave up with exit status 1" in text
    assert "-device no such, device: " in text and text.endswith(str(state.files.log))
    assert "-pidfile /" not in text and "\n" not in text
    assert "-device 'no such, device'\n" in state.files.log.read_text()  # can be pasted into a shell


async def test_programs_that_are_not_there_or_no_qemu(state: StateDirectory) -> None:
    with pytest.raises(VmmError, match=r"can't start /no/such: .*No such file"):
        await QemuProcess.launch(state, "web", ["/no/such", "-x"])
    with pytest.raises(VmmExited, match="exit status 0"):
        await QemuProcess.launch(state, "web", ["true"])
    pidfile = state.files.directory / "its-pid"
    with pytest.raises(VmmError, match=r"does not answer within 0.5 s"):
        await QemuProcess.launch(state, "web", ["sh", "-c", f"echo $$ > {pidfile}; exec sleep 1000"], deadline_s=0.5)
    with pytest.raises(ProcessLookupError):  # it was killed and reaped
        os.kill(int(pidfile.read_text()), 0)


@needs_qemu
@pytest.mark.parametrize("how", ['"$@"; true', '"$@" & wait', '"$@" & sleep 1'])
async def test_a_wrapper_that_does_not_exec_is_refused_and_leaves_nothing(state: StateDirectory, how: str) -> None:
    line = ["sh", "-c", how, "wrapper", *argv(state)]
    with pytest.raises(VmmError, match="a wrapper that does not exec QEMU"):
        await QemuProcess.launch(state, "web", line)
    assert pidfile_holder(state.files.pidfile) is None


@needs_qemu
async def test_a_cancelled_launch_leaves_nothing(state: StateDirectory) -> None:
    seen = asyncio.Event()

    class Seen(list[str]):
        """Tells when the command line is used, which is when QEMU is being started."""

        def __iter__(self) -> Iterator[str]:
            seen.set()
            return super().__iter__()

    task = asyncio.create_task(QemuProcess.launch(state, "web", Seen(argv(state))))
    await seen.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pidfile_holder(state.files.pidfile) is None


@needs_qemu
async def test_a_second_launch_is_refused(state: StateDirectory) -> None:
    qemu = await launch(state)
    with pytest.raises(VmmBusy, match=f"runs here already, process {qemu.pid}: adopt it"):
        await launch(state)
    # Even one that does not know of us gives way before it touches the first one's sockets.
    inode = state.files.control.stat().st_ino
    second = await asyncio.to_thread(run, *argv(state))
    assert second.returncode == 1 and "Cannot lock pid file" in second.stderr
    assert state.files.control.stat().st_ino == inode
    assert await qemu.status() == "running"
    await qemu.close()


@needs_qemu
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may run things as somebody else")
async def test_it_can_run_as_another_user() -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)  # noqa: PTH101 - ruff takes Path.chmod for a slow one
        with StateDirectory.open(Path(directory) / "s") as state:
            root = await launch(state)
            await root.kill()  # leaves a pidfile of root's
            await root.close()
            qemu = await QemuProcess.launch(state, "web", argv(state), user="nobody", oom_score_adj=321)
            try:
                user, oom = about(qemu.pid)
                assert (user != 0, oom) == (True, "321")
                await qemu.close()
                again = await QemuProcess.adopt(state, "web")
                assert again is not None
                assert (await again.quit()).status == 0
                assert not state.files.pidfile.exists()
                await again.close()
            finally:
                await end(state)
            with pytest.raises(VmmError, match="no user 'no-such-user'"):
                await QemuProcess.launch(state, "web", argv(state), user="no-such-user")


# ------------------------------------------------------------------- adopt

LAUNCHER = """
import asyncio, os, signal, sys
from pathlib import Path
from coloproxy.vmm import QemuProcess, StateDirectory

async def main():
    with StateDirectory.open(Path(sys.argv[1])) as state:
        qemu = await QemuProcess.launch(state, "web", sys.argv[2:])
        print(qemu.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@needs_qemu
async def test_it_survives_us_and_is_found_again(tmp_path: Path) -> None:
    with StateDirectory.open(tmp_path / "s") as state:
        line = argv(state)
    killed = await asyncio.to_thread(run, sys.executable, "-c", LAUNCHER, str(tmp_path / "s"), *line)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with StateDirectory.open(tmp_path / "s") as state:  # the lock went with the launcher, not with QEMU
        qemu = await QemuProcess.adopt(state, "web")
        assert qemu is not None and qemu.adopted
        assert qemu.pid == int(killed.stdout)
        assert list(qemu.argv) == line
        with qemu.watch("STOP") as events:
            await qemu.execute("stop")
            await events.next("STOP", LONG_S)
        assert await qemu.status() == "paused"
        ended = await qemu.kill()
        assert ended.status is None  # not our child
        assert "without a word" in ended.text
        await qemu.close()
        assert state.files.pidfile.exists()  # stale
        assert await QemuProcess.adopt(state, "web") is None


HASTY = """
import os, signal, sys
from pathlib import Path
from coloproxy.vmm.detached import start_detached

output = os.open("/dev/null", os.O_WRONLY)
print(start_detached(sys.argv[2:], output, environment={}, directory=Path(sys.argv[1])), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@needs_qemu
async def test_one_that_was_started_just_before_our_end_gives_way_or_is_adopted(state: StateDirectory) -> None:
    """It may not have its pidfile yet when it is looked for. Whoever gets the pidfile stays."""
    line = argv(state)
    killed = await asyncio.to_thread(run, sys.executable, "-c", HASTY, str(state.files.directory), *line)
    with contextlib.suppress(ProcessLookupError):
        first = Pidfd(int(killed.stdout))
        qemu = await QemuProcess.adopt(state, "web")
        if qemu is None:
            try:
                qemu = await QemuProcess.launch(state, "web", line)
            except VmmBusy:
                qemu = await QemuProcess.adopt(state, "web")
        assert qemu is not None
        assert await qemu.status() == "running"
        if qemu.pid != first.pid:
            async with asyncio.timeout(LONG_S):
                await asyncio.shield(first.exited)
        first.close()
        await qemu.close()


@needs_qemu
async def test_an_adopted_one_tells_a_wish_from_a_crash(state: StateDirectory) -> None:
    first = await launch(state)
    await first.close()
    with pytest.raises(VmmError, match="was let go of: adopt it"):
        await first.kill()
    qemu = await QemuProcess.adopt(state, "web")
    assert qemu is not None
    os.kill(qemu.pid, signal.SIGTERM)
    async with asyncio.timeout(LONG_S):
        ended = await asyncio.shield(qemu.exited)
    assert ended.cause is Cause.OPERATOR
    await qemu.close()


@needs_qemu
async def test_a_stale_pidfile_is_taken_over(state: StateDirectory) -> None:
    first = await launch(state)
    await first.kill()
    await first.close()
    assert int(state.files.pidfile.read_text()) == first.pid
    assert await QemuProcess.adopt(state, "web") is None
    second = await launch(state)
    assert int(state.files.pidfile.read_text()) == second.pid
    await second.kill()
    await second.close()


async def test_a_number_that_is_somebody_elses_by_now(state: StateDirectory) -> None:
    with child("print('ready', flush=True); input()") as stranger:
        state.files.pidfile.write_text(f"{stranger.pid}\n")
        assert await QemuProcess.adopt(state, "web") is None
        assert stranger.poll() is None


async def test_no_pidfile_no_qemu(state: StateDirectory) -> None:
    assert await QemuProcess.adopt(state, "web") is None


async def test_a_holder_that_is_no_qemu_is_left_alone(state: StateDirectory) -> None:
    program = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); "
        "print('ready', flush=True); input()"
    )
    with child(program, str(state.files.pidfile)) as stranger:
        with pytest.raises(VmmError, match=f"process {stranger.pid} holds .*no QEMU of VM web"):
            await QemuProcess.adopt(state, "web")
        assert stranger.poll() is None


async def test_a_lock_that_names_no_process_needs_the_number(state: StateDirectory) -> None:
    """Locks of open file descriptions, which a later QEMU may take."""
    program = (
        "import fcntl, os, struct, sys; file = open(sys.argv[1], 'w'); file.write(str(os.getpid())); file.flush(); "
        "fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0)); "
        "print('ready', flush=True); input()"
    )
    with child(program, str(state.files.pidfile)) as holder:
        assert pidfile_holder(state.files.pidfile) == holder.pid
        state.files.pidfile.write_text(str(os.getpid()))
        with pytest.raises(VmmError, match="can't be seen which"):
            pidfile_holder(state.files.pidfile)


@needs_qemu
async def test_another_vms_qemu_is_refused_and_left_alone(state: StateDirectory) -> None:
    qemu = await launch(state, name="db,1")
    await qemu.close()
    for name in ("web", "db"):
        with pytest.raises(VmmError, match=f"no QEMU of VM {name}"):
            await QemuProcess.adopt(state, name)
    again = await QemuProcess.adopt(state, "db,1")
    assert again is not None
    assert await again.status() == "running"
    await again.close()


@needs_qemu
async def test_a_monitor_that_is_somebody_elses_is_refused(state: StateDirectory) -> None:
    qemu = await launch(state)
    await qemu.close()
    state.files.control.unlink()
    with socket.socket(socket.AF_UNIX) as thief:
        thief.bind(str(state.files.control))
        thief.listen()
        assert listener(state.files.control) == os.getpid()
        with pytest.raises(VmmError, match=f"is not process {qemu.pid}'s, .* but {os.getpid()}'s"):
            await QemuProcess.adopt(state, "web")


@needs_qemu
async def test_a_frozen_one_is_adopted_and_killed(state: StateDirectory) -> None:
    first = await launch(state)
    await first.close()
    freeze(first.pid)
    waiting = []
    try:
        for _ in range(20):  # as many as its backlog takes: earlier attempts of ours
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)
            waiting.append(sock)
            with contextlib.suppress(BlockingIOError):
                sock.connect(str(state.files.control))
        assert listener(state.files.control) is None  # full
        assert listener(state.files.oob) == first.pid
        qemu = await QemuProcess.adopt(state, "web", deadline_s=0.3)
        assert qemu is not None
        assert (await qemu.probe(0.3)).health is Health.SILENT
        assert (await qemu.kill()).status == -signal.SIGKILL  # it is our child, though adopted
        await qemu.close()
    finally:
        for sock in waiting:
            sock.close()


async def test_one_coloproxy_for_one_directory(tmp_path: Path) -> None:
    with StateDirectory.open(tmp_path):
        with pytest.raises(VmmError, match=f"another coloproxy \\(process {os.getpid()}\\) uses it"):
            StateDirectory.open(tmp_path)
        with StateDirectory.open(tmp_path / "other"):
            pass
    state = StateDirectory.open(tmp_path)
    state.close()
    with pytest.raises(VmmError, match="not locked any more"):
        await QemuProcess.adopt(state, "web")
    (tmp_path / "file").touch()
    with pytest.raises(VmmError, match="can't be used"):
        StateDirectory.open(tmp_path / "file")


@needs_qemu
async def test_two_vms_on_one_host(tmp_path: Path) -> None:
    with StateDirectory.open(tmp_path / "1") as one, StateDirectory.open(tmp_path / "2") as two:
        first, second = await asyncio.gather(launch(one), launch(two))
        try:
            with first.watch("STOP") as of_first, second.watch("STOP") as of_second:
                await second.execute("stop")
                await of_second.next("STOP", LONG_S)
                assert (await first.kill()).status == -signal.SIGKILL
                assert [type(item) for item in of_first.take()] == [Lost, Exit]
            assert await second.status() == "paused"
        finally:
            for qemu in (first, second):
                await qemu.kill()
                await qemu.close()


# ------------------------------------------------------------------ health


@needs_qemu
async def test_probe_of_one_that_is_stopped(state: StateDirectory) -> None:
    qemu = await launch(state)
    found = await qemu.probe(LONG_S)
    assert (found.health, found.status) == (Health.RESPONSIVE, "running")
    freeze(qemu.pid)
    found = await qemu.probe(0.2)
    assert (found.health, found.in_band_s, found.out_of_band_s) == (Health.SILENT, None, None)
    with pytest.raises(QmpError, match=r"query-status: no answer within 0.1 s"):
        await qemu.execute("query-status", deadline_s=0.1)
    os.kill(qemu.pid, signal.SIGCONT)
    assert (await qemu.probe(LONG_S)).health is Health.RESPONSIVE
    freeze(qemu.pid)
    assert (await qemu.quit(grace_s=0.1)).status == -signal.SIGKILL
    await qemu.close()


@needs_qemu
async def test_probe_of_one_whose_main_loop_hangs(state: StateDirectory, tmp_path: Path) -> None:
    """It opens a disk on a server that never says a word."""
    qemu = await launch(state)

    class Ignore:
        def __getattr__(self, _: str) -> object:
            return lambda *_: None

    proxy = QmpLink(Address(True, path=str(state.files.proxy)), Ignore())  # type: ignore[arg-type]
    life = asyncio.create_task(proxy.run())
    asked = asyncio.Event()
    server = await asyncio.start_unix_server(lambda *_: asked.set(), tmp_path / "nbd")
    try:
        async with asyncio.timeout(LONG_S):
            while not proxy.connected:  # noqa: ASYNC110 - its handler is not ours to wait with
                await asyncio.sleep(0.01)
            disk = {"driver": "nbd", "node-name": "n", "server": {"type": "unix", "path": str(tmp_path / "nbd")}}
            proxy.submit("blockdev-add", disk, lambda _: None)
            await asked.wait()
            while (found := await qemu.probe(0.3)).health is Health.RESPONSIVE:
                pass  # it has called the server, but does not wait for it yet
        assert found.health is Health.MAIN_LOOP_HUNG
        assert found.out_of_band_s is not None
        what = await qemu.execute("query-yank", out_of_band=True)
        assert isinstance(what, list) and {"type": "block-node", "node-name": "n"} in what
        assert (await qemu.kill()).status == -signal.SIGKILL
    finally:
        life.cancel()
        server.close()
        await qemu.close()


# ------------------------------------------------------------------ events


@needs_qemu
async def test_a_watch_has_no_older_events(state: StateDirectory) -> None:
    qemu = await launch(state)
    with qemu.watch("STOP", "RESUME") as early:
        await qemu.execute("stop")
        await qemu.execute("cont")
        with qemu.watch("STOP", "RESUME") as late:
            await qemu.execute("stop")
            stop = await late.next("STOP", LONG_S)
            assert stop.at is not None and stop.at <= stop.now
        names = [item.name for item in early.take() if isinstance(item, Event)]
    assert names == ["STOP", "RESUME", "STOP"]
    with qemu.watch("NEVER") as never, pytest.raises(VmmError, match=r"no NEVER within 0.05 s \(saw nothing\)"):
        await never.next("NEVER", 0.05)
    with qemu.watch("NEVER") as never:
        waiting = asyncio.create_task(never.next("NEVER", LONG_S))
        await qemu.kill()
        with pytest.raises(QmpError, match="QMP lost"):
            await waiting
        with pytest.raises(VmmExited, match="SIGKILL") as caught:
            await never.next("NEVER", LONG_S)
        assert caught.value.status == -signal.SIGKILL
    await qemu.close()


async def test_the_bus_is_bounded_and_says_what_was_lost() -> None:
    bus = Bus()
    with bus.watch(limit=2) as slow, bus.watch("A", limit=2) as chosen:
        for name in ("A", "B", "C"):
            bus.publish(Event(name, {}, None, 0))
        assert (slow.lost, chosen.lost) == (1, 0)
        assert [item.name for item in slow.take() if isinstance(item, Event)] == ["B", "C"]
        bus.publish(Connected(1))
        assert await chosen.get() == Event("A", {}, None, 0)
        assert await chosen.get(LONG_S) == Connected(1)
        with pytest.raises(VmmError, match="nothing within 0 s"):
            await chosen.get(0)
        bus.publish(Lost("gone", 2))
        with pytest.raises(QmpError, match="gone"):
            await chosen.next("A", LONG_S)
    bus.publish(Connected(3))
    assert chosen.take() == []


def rom(program: bytes) -> bytes:
    """64 KiB of firmware that runs this in real mode: the reset vector jumps to it."""
    start = 0xFF00
    jump = b"\xe9" + (start - 0xFFF3).to_bytes(2, "little", signed=True)
    return (b"\x90" * start + program.ljust(0xF0, b"\xf4") + jump).ljust(0x10000, b"\x90")


def out32(port: int, value: int) -> bytes:
    """mov dx, port; mov eax, value; out dx, eax"""
    return b"\xba" + port.to_bytes(2, "little") + b"\x66\xb8" + value.to_bytes(4, "little") + b"\x66\xef"


# lidt of a table of no length, int3: a triple fault, which is a PC's way to reboot
REBOOT = b"\x0f\x01\x1e\x00\x00\xcc"
# mov dx, 0x505; mov al, 1; out dx, al: to the panic device
PANIC = b"\xba\x05\x05\xb0\x01\xee"
# PIIX4's power management gets its I/O base 0xb000 and is switched on; then ACPI's way to power off, by PM1a_CNT
POWER_OFF = (
    out32(0xCF8, 0x80000B40)
    + out32(0xCFC, 0xB001)
    + out32(0xCF8, 0x80000B80)
    + out32(0xCFC, 1)
    + b"\xba\x04\xb0\xb8\x00\x20\xef"  # mov dx, 0xb004; mov ax, SLP_EN; out dx, ax
)


@needs_qemu
@pytest.mark.parametrize(
    ("program", "options", "events", "cause", "said"),
    [
        (POWER_OFF, "", ["SHUTDOWN"], Cause.GUEST, "shut down from inside"),
        (REBOOT, "-no-reboot", ["SHUTDOWN"], Cause.GUEST, "rebooted"),
        (PANIC, "-device pvpanic", ["GUEST_PANICKED", "SHUTDOWN"], Cause.FAULT, "panicked"),
    ],
    ids=["power off", "reboot", "panic"],
)
async def test_a_guest_that_ends_itself(
    state: StateDirectory, program: bytes, options: str, events: list[str], cause: Cause, said: str
) -> None:
    firmware = state.files.directory / "rom"
    firmware.write_bytes(rom(program))
    machine = Machine("web", TCG, options=["-M", "pc", "-m", "1032k", "-bios", str(firmware), *options.split()])
    line = make_command_line(machine, state.files, "primary", paused=True)
    qemu = await QemuProcess.launch(state, "web", line)
    with qemu.watch("SHUTDOWN", "GUEST_PANICKED") as watch:
        assert await qemu.status() == "prelaunch"
        await qemu.execute("cont")
        async with asyncio.timeout(LONG_S):
            ended = await asyncio.shield(qemu.exited)
        assert [item.name for item in watch.take() if isinstance(item, Event)] == events
    assert (ended.status, ended.cause) == (0, cause) and said in ended.text
    await qemu.close()


# --------------------------------------------------------------------- log


@needs_qemu
async def test_the_log_is_bounded_while_qemu_writes_to_it(state: StateDirectory) -> None:
    qemu = await launch(state)
    with state.files.log.open("ab") as log:
        log.write(b"x" * LOG_LIMIT + b"last words")
    assert trim_log(state.files)
    assert not trim_log(state.files)
    assert state.files.log.stat().st_size == 0
    assert state.files.old_log.stat().st_size == LOG_LIMIT
    assert state.files.old_log.read_bytes().endswith(b"last words")
    os.kill(qemu.pid, signal.SIGTERM)  # which it mentions in the log
    async with asyncio.timeout(LONG_S):
        ended = await asyncio.shield(qemu.exited)
    assert "signal" in ended.text
    assert state.files.log.read_bytes().startswith(b"qemu-system")  # at the new end, no hole before it
    await qemu.close()


def test_the_log_is_rotated_at_a_start(tmp_path: Path) -> None:
    with StateDirectory.open(tmp_path) as state:
        state.files.log.write_bytes(b"old\n" * (LOG_LIMIT // 4) + b"end\n")
        os.close(open_log(state.files))
        assert state.files.log.read_bytes() == b""
        assert log_tail(state.files) == ""
        assert state.files.old_log.read_bytes().endswith(b"end\n")
        state.files.log.write_bytes(b"short\n")
        os.close(open_log(state.files))
        assert log_tail(state.files) == "short"
        assert log_tail(state.files, offset=3, limit=2) == "t"
        assert log_tail(state.files, offset=99) == ""


# -------------------------------------- a directory of a QEMU's that is not its own master any more


@pytest.mark.parametrize("name", ["lock", "qemu.log", "qemu.log.1"])
@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_nothing_of_the_hosts_is_written_through_a_link(tmp_path: Path, name: str, kind: str) -> None:
    """With `user` the directory is QEMU's user's, and we are root."""
    precious = tmp_path / "precious"
    precious.write_bytes(b"root's own\n" + b"x" * (LOG_LIMIT + 1))
    before = precious.read_bytes()
    state = StateDirectory.open(tmp_path / "state")
    files = state.files
    files.log.write_bytes(b"y" * (LOG_LIMIT + 1))
    path = files.directory / name
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(precious)
    else:
        os.mkfifo(path)
    if name == "lock":
        state.close()
        with pytest.raises(VmmError, match="can't be used"):
            StateDirectory.open(files.directory)
    elif name == "qemu.log":
        assert log_tail(files) == ""
        with pytest.raises(VmmError):
            trim_log(files)
    else:
        assert trim_log(files)
        assert files.old_log.read_bytes() == b"y" * LOG_LIMIT
    assert precious.read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_nothing_of_the_hosts_is_given_away_through_a_link(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.touch()
    with StateDirectory.open(tmp_path / "state") as state:
        state.files.pidfile.symlink_to(precious)
        _give(state.files, Account("nobody", 65534, 65534, (65534,)))
        assert state.files.directory.stat().st_uid == 65534
    assert precious.stat().st_uid == 0
