# SPDX-License-Identifier: Apache-2.0
"""Two QEMUs with a replicated disk, on loopback; with a guest that writes numbered records, or without any.

Without a guest, the test itself is who writes: through an NBD export of the quorum node, by qemu-io.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from coloproxy import vmm
from coloproxy.address import parse_address
from coloproxy.disks import Disk, Format, Peer, images, primary, secondary
from coloproxy.qmp import QmpLink
from coloproxy.testbed import kernel as kernels
from coloproxy.testbed.cpio import CpioWriter
from coloproxy.testbed.debian import command, unpack_package
from coloproxy.testbed.errors import GuestError
from coloproxy.testbed.guest import cache_directory
from coloproxy.testbed.guest_files import HOST_NAME_KEY
from coloproxy.testbed.process import Daemon
from coloproxy.testbed.qemu import HOST_NAMES
from coloproxy.testbed.tcg import QEMU, choose_acceleration

MIB = 1 << 20
ON_DEMAND = 2147483647
RECORD = 4096  # bytes
_MODULES = ("virtio_pci", "virtio_blk", "qemu_fw_cfg")

_INIT = f"""#!/bin/busybox sh
# Writes record n to block n of the disk, flushes, and then says so. Each bears the name of the host that
# the guest runs on: what the two VMs write differs, always.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module"; done < /modules/order
n=0
while :; do
    n=$((n + 1))
    read -r host < /sys/firmware/qemu_fw_cfg/by_name/{HOST_NAME_KEY}/raw
    for disk in /dev/vd?; do
        yes "$n $host" | head -c {RECORD} |
            dd of=$disk bs={RECORD} seek=$n iflag=fullblock oflag=direct conv=fsync 2>/dev/null || echo "failed $n"
    done
    echo "wrote $n"
done
"""


@dataclass(frozen=True, slots=True)
class Guest:
    kernel: Path
    initrd: Path


def build_guest() -> Guest:
    """From the cache, or built. Raises GuestError."""
    cache = cache_directory()
    kernel = _kernel(cache)
    files = kernel.module_files(_MODULES)
    busybox = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    digest = hashlib.sha256(_INIT.encode() + busybox + kernel.version.encode()).hexdigest()[:16]
    place = cache / f"disk-guest-{digest}"
    if not (place / "initrd").exists():
        draft = cache / f"disk-guest.{os.getpid()}"
        draft.mkdir()
        (draft / "kernel").write_bytes(kernels.read_image(kernel.image))
        with (draft / "initrd").open("wb") as out:
            archive = CpioWriter(out)
            for name in ("bin", "dev", "proc", "sys", "modules"):
                archive.directory(name)
            archive.file("bin/busybox", busybox, 0o755)
            archive.symlink("bin/sh", "busybox")
            for file in files:
                archive.file(f"modules/{file.name.partition('.')[0]}.ko", kernels.read_module(file))
            order = "".join(f"{file.name.partition('.')[0]}.ko\n" for file in files)
            archive.file("modules/order", order.encode())
            archive.file("init", _INIT.encode(), 0o755)
            archive.finish()
        with contextlib.suppress(OSError):  # somebody else was quicker
            draft.rename(place)
        shutil.rmtree(draft, ignore_errors=True)
    return Guest(place / "kernel", place / "initrd")


def _kernel(cache: Path) -> kernels.Kernel:
    """A kernel with virtio_blk: the test bed's own if it has it, else the same package's once more."""
    found = kernels.find_kernel(cache)
    with contextlib.suppress(GuestError):
        if all(file.exists() for file in found.module_files(_MODULES)):
            return found
    place = cache / f"linux-blk-{found.version}"
    modules = Path("lib/modules") / found.version
    if not place.exists():
        with tempfile.TemporaryDirectory(prefix="building-", dir=cache) as scratch:
            whole, kept = Path(scratch) / "whole", Path(scratch) / "kept"
            whole.mkdir()
            unpack_package(f"linux-image-{found.version}", whole)
            command(["depmod", "-b", str(whole), found.version])
            all_of_it = kernels.Kernel(found.version, found.image, whole / modules)
            indices = [whole / modules / name for name in ("modules.dep", "modules.builtin")]
            for file in (*indices, *all_of_it.module_files(_MODULES)):
                target = kept / file.relative_to(whole)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
            with contextlib.suppress(OSError):
                kept.rename(place)
    return kernels.Kernel(found.version, found.image, place / modules)


class Log:
    """QMP's events, kept."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Mapping[str, object], int]] = []
        self.up = asyncio.Event()
        self._news = asyncio.Event()

    def qmp_connected(self, now: int) -> None:
        self.up.set()

    def qmp_event(self, name: str, data: Mapping[str, object], at: int | None, now: int) -> None:
        self.events.append((name, data, at if at is not None else now))
        self._news.set()

    def qmp_lost(self, reason: str) -> None: ...

    def qmp_unreachable(self, reason: str) -> None: ...

    async def wait(self, wanted: Callable[[str, Mapping[str, object]], bool], start: int, deadline_s: float) -> int:
        """Index behind the first such event from `start` on."""
        async with asyncio.timeout(deadline_s):
            while True:
                for index in range(start, len(self.events)):
                    if wanted(*self.events[index][:2]):
                        return index + 1
                self._news.clear()
                await self._news.wait()

    def names(self, start: int = 0) -> list[str]:
        return [event[0] for event in self.events[start:]]


class Vm:
    """One QEMU, with its two monitors."""

    def __init__(self, name: str, directory: Path, disks: Sequence[Disk]) -> None:
        self.name = name
        self.directory = directory
        self.disks = tuple(disks)
        self.log = Log()
        self.console = directory / f"{name}.console"
        self._daemon: Daemon | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def disk(self) -> Disk:
        return self.disks[0]

    async def start(self, arguments: Sequence[str], env: Mapping[str, str] | None = None) -> Vm:
        sockets = [self.directory / f"{self.name}.qmp", self.directory / f"{self.name}.oob"]
        argv = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", *arguments]
        for path in sockets:
            argv += ["-qmp", f"unix:{path},server=on,wait=off"]
        self._daemon = await Daemon.start(self.name, argv, self.directory / f"{self.name}.log", env=env)
        self.qmp = QmpLink(parse_address(f"unix:{sockets[0]}", may_listen=False), self.log)
        oob_log = Log()
        self.oob = QmpLink(parse_address(f"unix:{sockets[1]}", may_listen=False), oob_log)
        self._tasks = [asyncio.create_task(link.run()) for link in (self.qmp, self.oob)]
        async with asyncio.timeout(20):
            for log in (self.log, oob_log):
                waiting = asyncio.create_task(log.up.wait())
                while not waiting.done():
                    self._daemon.check()
                    await asyncio.wait([waiting], timeout=0.1)
        return self

    @property
    def daemon(self) -> Daemon:
        assert self._daemon is not None
        return self._daemon

    def signal(self, number: signal.Signals) -> None:
        self.daemon.signal(number)

    async def kill(self) -> None:
        if self._daemon is not None:
            await self._daemon.kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def status(self) -> str:
        answer = await self.qmp.execute("query-status")
        assert isinstance(answer, dict)
        return str(answer["status"])

    # ------------------------------------------------------------- the guest

    def written(self) -> int:
        """Number of the last record that the guest said is written."""
        lines = self.console.read_text(errors="replace").split("\n")[:-1] if self.console.exists() else []
        numbers = [int(line.split()[1]) for line in lines if line.startswith("wrote ")]
        return numbers[-1] if numbers else 0

    def complaints(self) -> list[str]:
        return [line for line in self.console.read_text(errors="replace").splitlines() if line.startswith("failed ")]

    async def writes(self, more: int = 5, deadline_s: float = 60.0) -> int:
        """Waits until the guest has written that many more records; returns the last one's number."""
        target = self.written() + more
        async with asyncio.timeout(deadline_s):
            while self.written() < target:
                self.daemon.check()
                await asyncio.sleep(0.02)
        return self.written()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def make_disks(directory: Path, count: int = 1, size: int = 64 * MIB, form: Format = "qcow2") -> list[Disk]:
    """The images of one host."""
    directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240
    disks = [Disk(i, directory / f"disk{i}.img", form, size, directory / "overlays") for i in range(count)]
    for disk in disks:
        await images.make_blank(disk.image, disk.format, size)
    return disks


class Bed:
    """Makes VMs, and ends them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.vms: list[Vm] = []
        self.peer = Peer("127.0.0.1", free_port())
        self.migration = free_port()

    # ---------------------------------------------------------- without a guest

    async def bare_primary(self, name: str, disks: Sequence[Disk]) -> Vm:
        """Its disks are written through the export `front{i}` (write())."""
        vm = Vm(name, self.directory, disks)
        self.vms.append(vm)
        await vm.start(["-M", "none", "-S", *block_nodes(disks, "primary")])
        await vm.qmp.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": self._front(vm)}}})
        for disk in disks:
            front = f"front{disk.index}"
            arguments = {"type": "nbd", "id": front, "name": front, "node-name": disk.quorum, "writable": True}
            await vm.qmp.execute("block-export-add", arguments)
        return vm

    async def bare_secondary(self, name: str, disks: Sequence[Disk]) -> Vm:
        vm = Vm(name, self.directory, disks)
        self.vms.append(vm)
        await images.prepare_overlays(disks)
        await vm.start(["-M", "none", "-S", *block_nodes(disks, "secondary")])
        await secondary.prepare(vm.qmp, disks, self.peer)
        return vm

    def _front(self, vm: Vm) -> str:
        return str(self.directory / f"{vm.name}.front")

    async def write(self, vm: Vm, pattern: int, offset: int, length: int, disk: int = 0) -> None:
        """As the guest would; flushed. Raises CalledProcessError if the guest would have seen an error."""
        where = f"nbd+unix:///front{disk}?socket={self._front(vm)}"
        commands = ["-c", f"write -P {pattern} {offset} {length}", "-c", "flush"]
        await tool("qemu-io", "-f", "raw", *commands, where)

    # ------------------------------------------------------------- with a guest

    async def machine(
        self, name: str, disks: Sequence[Disk], guest: Guest, role: str, *, throttled: bool = False
    ) -> Vm:
        """A guest that boots ("alone"), stands at its first instruction ("primary") or waits ("secondary").

        throttled: with the throttle group "slow" below a secondary's images; it has no limits yet.
        """
        acceleration = choose_acceleration()
        vm = Vm(name, self.directory, disks)
        self.vms.append(vm)
        host = HOST_NAMES["primary" if name.startswith("a") else "secondary"]
        argv = ["-machine", "pc", "-accel", acceleration.name, "-smp", "1", "-m", f"{acceleration.ram_kib}k"]
        argv += ["-cpu", "host" if acceleration.name == "kvm" else "qemu64,+rdrand"]
        argv += ["-kernel", str(guest.kernel), "-initrd", str(guest.initrd)]
        argv += ["-append", "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off apparmor=0 rootfstype=ramfs"]
        argv += ["-fw_cfg", f"name={HOST_NAME_KEY},string={host}"]
        argv += ["-chardev", f"file,id=console,path={vm.console}", "-serial", "chardev:console"]
        if role == "secondary":
            await images.prepare_overlays(disks)
            argv += [
                *(_throttled(disks) if throttled else block_nodes(disks, "secondary")),
                *("-incoming", f"tcp:127.0.0.1:{self.migration}"),
            ]
        else:
            argv += [*block_nodes(disks, "primary"), *(["-S"] if role == "primary" else [])]
        for disk in disks:
            argv += ["-device", f"virtio-blk-pci,drive={disk.quorum},id=disk{disk.index}"]
        await vm.start(argv, acceleration.environment)
        if role == "secondary":
            await secondary.prepare(vm.qmp, disks, self.peer)
        return vm

    async def protect(self, first: Vm, second: Vm) -> float:
        """COLO; the disks are attached. Returns how long the guest stood still in it, in seconds."""
        capabilities = [{"capability": name, "state": True} for name in ("x-colo", "events")]
        for vm in (second, first):
            await vm.qmp.execute("migrate-set-capabilities", {"capabilities": capabilities})
        parameters = {"x-checkpoint-delay": ON_DEMAND, "max-bandwidth": 1 << 32}
        await first.qmp.execute("migrate-set-parameters", parameters)
        begin = len(first.log.events)
        await first.qmp.execute("migrate", {"uri": f"tcp:127.0.0.1:{self.migration}"})
        at = await first.log.wait(lambda name, data: data.get("status") == "colo", begin, 60)
        at = await first.log.wait(lambda name, data: name == "RESUME", at, 20)
        stops = [event[2] for event in first.log.events[begin:at] if event[0] == "STOP"]
        return (first.log.events[at - 1][2] - stops[0]) / 1e9 if stops else 0.0

    async def checkpoint(self, first: Vm) -> int:
        """Number of the last record that P had written, and said so, before it stood still for this checkpoint."""
        begin = len(first.log.events)
        before = first.written()
        for _ in range(10):  # a request that comes at the wrong moment is forgotten
            await first.qmp.execute("migrate-set-parameters", {"x-checkpoint-delay": ON_DEMAND})
            with contextlib.suppress(TimeoutError):
                at = await first.log.wait(lambda name, data: name == "STOP", begin, 2)
                await first.log.wait(lambda name, data: name == "RESUME", at, 20)
                return before
        raise AssertionError("no checkpoint")

    async def take_over(self, second: Vm) -> None:
        """What a secondary does, as far as its disks and QEMU go; up to a running guest."""
        begin = len(second.log.events)
        await secondary.reset(second.qmp)
        await second.qmp.execute("x-colo-lost-heartbeat")
        await second.log.wait(lambda name, data: name == "RESUME", begin, 10)

    async def go_on(self, first: Vm) -> float:
        """What a primary does whose secondary is gone; returns the seconds until the guest runs without it."""
        begin = time.monotonic()
        await primary.yank(first.oob, first.disks)
        await first.oob.execute("yank", {"instances": [{"type": "migration"}]}, out_of_band=True)
        await first.qmp.execute("x-colo-lost-heartbeat")
        await primary.detach(first.qmp, first.disks)
        async with asyncio.timeout(10):
            while await first.status() != "running":  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        return time.monotonic() - begin


def block_nodes(disks: Sequence[Disk], role: vmm.Role) -> list[str]:
    """As the node starts QEMU with them."""
    given = [vmm.Disk(disk.image, disk.format, active=disk.active_file, hidden=disk.hidden_file) for disk in disks]
    return [
        word for disk, its in zip(disks, given, strict=True) for word in vmm.blockdev_arguments(disk.index, its, role)
    ]


def _throttled(disks: Sequence[Disk]) -> list[str]:
    """A secondary's block nodes with a throttle below each image."""
    made = ["-object", json.dumps({"qom-type": "throttle-group", "id": "slow"})]
    for word in block_nodes(disks, "secondary"):
        if image := re.fullmatch(r"driver=\w+,node-name=(parent\d+),file=(sf\d+)", word):
            slow = f"slow-{image[1]}"
            made += [f"driver=throttle,node-name={slow},throttle-group=slow,file={image[2]}", "-blockdev"]
            word = word.replace(f"file={image[2]}", f"file={slow}")
        made.append(word)
    return made


@contextlib.asynccontextmanager
async def bed(directory: Path) -> AsyncIterator[Bed]:
    made = Bed(directory)
    try:
        yield made
    finally:
        for vm in made.vms:
            await vm.kill()


# -------------------------------------------------------------------- images


@contextlib.contextmanager
def small_file_system(place: Path, *, mebibytes: int) -> Iterator[Path]:
    """In memory, mounted there; the test is skipped where nothing can be."""
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(place)], capture_output=True
    )
    if done.returncode:
        pytest.skip("can't mount a tmpfs here (needs root)")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


async def tool(*argv: str) -> str:
    child = await asyncio.create_subprocess_exec(
        *argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await child.communicate()
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, argv, out, err)
    if argv[0] == "qemu-io" and (b"rror" in out or b"failed" in out):  # it tells on stdout, and leaves with 0
        raise subprocess.CalledProcessError(1, argv, out, err)
    return out.decode()


async def same(one: Path, other: Path) -> bool:
    """True if a guest would read the same from both. Nobody has them open."""
    child = await asyncio.create_subprocess_exec("qemu-img", "compare", "-q", str(one), str(other))
    return await child.wait() == 0


async def records(disk: Disk) -> dict[int, str]:
    """Number and host of each record in an image; a record that is torn or at the wrong place has the host "torn"."""
    raw = disk.image.with_suffix(".raw")
    await tool("qemu-img", "convert", "-f", disk.format, "-O", "raw", str(disk.image), str(raw))
    data = raw.read_bytes()
    raw.unlink()
    found: dict[int, str] = {}
    for number in range(len(data) // RECORD):
        block = data[number * RECORD : (number + 1) * RECORD]
        if not any(block):
            continue
        line = block.partition(b"\n")[0]
        whole = (line + b"\n") * (RECORD // (len(line) + 1) + 1)
        says, _, host = line.partition(b" ")
        good = whole[:RECORD] == block and says == str(number).encode()
        found[number] = host.decode(errors="replace") if good else "torn"
    return found
