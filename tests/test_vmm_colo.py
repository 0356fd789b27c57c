# SPDX-License-Identifier: Apache-2.0
"""The node's command lines under COLO, with disks and a real guest; and disks of a survivor that is started anew."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from qemu_process import needs_qemu

from coloproxy.errors import QmpError, VmmError
from coloproxy.testbed.errors import GuestError, RequirementError
from coloproxy.testbed.guest import Guest, build_guest
from coloproxy.testbed.tcg import KVM_RAM_KIB, TCG_RAM_KIB
from coloproxy.vmm import (
    Acceleration,
    Cause,
    Disk,
    Event,
    Health,
    Machine,
    QemuProcess,
    Role,
    StateDirectory,
    choose_acceleration,
    command_line,
)

LONG_S = 60.0  # never met, unless something is wrong
DISK_BYTES = 4 << 20
CAPABILITIES = {"capabilities": [{"capability": name, "state": True} for name in ("x-colo", "events")]}

pytestmark = [
    needs_qemu,
    pytest.mark.skipif(shutil.which("qemu-io") is None, reason="qemu-io is not installed (qemu-utils)"),
]


def image(path: Path, *writes: str) -> Path:
    """A new qcow2 image, with what qemu-io writes to it."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(DISK_BYTES)], check=True)
    io(path, *writes)
    return path


def io(path: Path, *commands: str) -> str:
    """What qemu-io says to its commands."""
    words = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(["qemu-io", "-f", "qcow2", *words, str(path)], capture_output=True, text=True, check=True)
    return done.stdout


def disk(directory: Path, extension: str = "") -> Disk:
    image, active, hidden = (directory / f"{name}{extension}" for name in ("image", "active", "hidden"))
    return Disk(image, active=active, hidden=hidden)


class Vm:
    """One host's side, with a disk."""

    def __init__(self, state: StateDirectory, machine: Machine) -> None:
        self.state = state
        self.machine = machine

    async def launch(self, role: Role) -> QemuProcess:
        line = command_line(self.machine, self.state.files, role)
        return await QemuProcess.launch(
            self.state, self.machine.name, line, environment=self.machine.acceleration.environment
        )


@pytest.fixture
async def running() -> AsyncIterator[list[QemuProcess]]:
    """QEMUs to be ended after the test."""
    made: list[QemuProcess] = []
    yield made
    for qemu in made:
        with contextlib.suppress(VmmError):  # let go of, and adopted by another
            await qemu.kill()
        await qemu.close()


# --------------------------------------------------------------------- COLO


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def guest() -> Guest:
    try:
        return build_guest(large_bytes=1000)
    except (GuestError, RequirementError) as error:
        pytest.skip(f"no guest: {error}")


@pytest.mark.e2e
async def test_a_protected_pair_loses_its_primary(tmp_path: Path, guest: Guest, running: list[QemuProcess]) -> None:
    acceleration = await asyncio.to_thread(choose_acceleration)
    ram = KVM_RAM_KIB if acceleration.name == "kvm" else TCG_RAM_KIB
    with StateDirectory.open(tmp_path / "a") as a, StateDirectory.open(tmp_path / "b") as b:
        for state in (a, b):
            for name in ("image", "active", "hidden"):
                image(state.files.directory / name)
        one, two = (Vm(state, machine(state, acceleration, guest, ram)) for state in (a, b))
        primary = await one.launch("primary")
        running.append(primary)
        secondary = await two.launch("secondary")
        running.append(secondary)
        await console_says(a, "service is up")
        assert await secondary.status() == "inmigrate"

        await prepare(primary, secondary)
        await migrate(primary, secondary)
        with primary.watch("STOP", "RESUME") as events:
            for _ in range(3):
                await events.next("STOP", LONG_S)
                await events.next("RESUME", LONG_S)
        assert (await primary.probe(LONG_S)).health is Health.RESPONSIVE

        with secondary.watch("COLO_EXIT", "RESUME") as events:
            await primary.kill()
            exited = await events.next("COLO_EXIT", LONG_S)
            assert exited.data == {"mode": "secondary", "reason": "error"}
            await secondary.execute("yank", {"instances": [{"type": "migration"}]}, out_of_band=True)
            await secondary.execute("nbd-server-stop")
            await secondary.execute("x-colo-lost-heartbeat")
            await events.next("RESUME", LONG_S)
        assert await secondary.status() == "running"
        # What took over is found again by a restarted coloproxy, and its end explained.
        await secondary.close()
        again = await QemuProcess.adopt(b, "web")
        assert again is not None
        running.append(again)
        assert list(again.argv)[-2:] == ["-incoming", "defer"]  # what it was started as, not what it is
        with again.watch("SHUTDOWN") as events:
            ended = await again.quit()
            assert [item.name for item in events.take() if isinstance(item, Event)] == ["SHUTDOWN"]
        assert (ended.status, ended.cause) == (0, Cause.OPERATOR)


def machine(state: StateDirectory, acceleration: Acceleration, guest: Guest, ram: int) -> Machine:
    console = state.files.directory / "console.log"
    options = ["-M", "pc", "-m", f"{ram}k", "-cpu", "host" if acceleration.name == "kvm" else "qemu64,+rdrand"]
    options += ["-kernel", str(guest.kernel), "-initrd", str(guest.initrd)]
    options += ["-append", "console=ttyS0 quiet panic=-1 mitigations=off rootfstype=ramfs net.ifnames=0"]
    options += ["-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"]
    nic = ["-netdev", "hubport,id=hn0,hubid=0", "-device", "e1000,netdev=hn0,mac=52:54:00:00:00:01,romfile="]
    return Machine("web", acceleration, options=options, disks=[disk(state.files.directory)], nics=nic)


async def console_says(state: StateDirectory, text: str) -> None:
    async with asyncio.timeout(LONG_S):
        while text not in console(state):  # noqa: ASYNC110 - a file tells nobody
            await asyncio.sleep(0.05)


def console(state: StateDirectory) -> str:
    with contextlib.suppress(FileNotFoundError):
        return (state.files.directory / "console.log").read_text(errors="replace")
    return ""


async def prepare(primary: QemuProcess, secondary: QemuProcess) -> None:
    """The disk's second copy, as measured."""
    at: Mapping[str, object] = {"type": "unix", "path": str(secondary.files.directory / "nbd")}
    await secondary.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": at["path"]}}})
    export = {"id": "exp0", "type": "nbd", "node-name": "parent0", "name": "parent0", "writable": True}
    await secondary.execute("block-export-add", export)
    nbd = {"driver": "nbd", "node-name": "nbd0", "export": "parent0", "server": at}
    await primary.execute(
        "blockdev-add", {"driver": "replication", "mode": "primary", "node-name": "replication0", "file": nbd}
    )
    await primary.execute("x-blockdev-change", {"parent": "colo-disk0", "node": "replication0"})


async def migrate(primary: QemuProcess, secondary: QemuProcess) -> None:
    """Into COLO. The secondary listens only now, and a port that can't be had is an error, not its end."""
    for qemu in (secondary, primary):
        await qemu.execute("migrate-set-capabilities", CAPABILITIES)
    with pytest.raises(QmpError, match="Failed to bind"):
        await secondary.execute("migrate-incoming", {"uri": "tcp:203.0.113.1:9998"})
    uri = {"uri": f"tcp:127.0.0.1:{free_port()}"}
    await secondary.execute("migrate-incoming", uri)
    await primary.execute("migrate-set-parameters", {"x-checkpoint-delay": 100, "max-bandwidth": 1 << 32})
    with primary.watch("MIGRATION", "RESUME") as events:
        await primary.execute("migrate", uri)
        await events.next(lambda event: event.data.get("status") == "colo", LONG_S)
        await events.next("RESUME", LONG_S)
