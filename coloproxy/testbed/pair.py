# SPDX-License-Identifier: Apache-2.0
"""A protected pair of virtual machines, from nothing to nothing."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from . import colo
from .client import Client
from .errors import DeadlineError, ProcessError
from .guest import LARGE_FILE_BYTES, Guest, build_guest
from .leftovers import new_name, remove_leftovers
from .monitor import Monitor
from .net import LINK_PRIMARY, Network, network
from .process import Daemon
from .qemu import (
    OUTDEV_PORT,
    PRIMARY_IN_PORT,
    SECONDARY_IN_PORT,
    MachineOptions,
    Nic,
    Role,
    Sockets,
    primary_command,
    secondary_command,
)
from .tcg import Acceleration, choose_acceleration

_PROBE_DEADLINE = 2.0


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the comparator meets the two QEMUs; ADDRs as `coloproxy compare` takes them."""

    primary_in: str
    secondary_in: str
    outdev: str
    qmp: str
    """A monitor of the primary that nobody else uses."""
    vnet_hdr: bool
    directory: Path
    """Scratch directory of the test bed, removed with it."""


ComparatorCommand = Callable[[Endpoints], Sequence[str]]
"""Makes the comparator's command line; it runs in the primary's namespace."""


def coloproxy_compare(*options: str) -> ComparatorCommand:
    """The usual comparator: `coloproxy compare` on the running Python, with checkpoints over QMP.

    -P: the installed package, not a source tree that happens to be the working directory.
    """

    def command(endpoints: Endpoints) -> list[str]:
        argv = [sys.executable, "-P", "-m", "coloproxy", "compare", "--primary-in", endpoints.primary_in]
        argv += ["--secondary-in", endpoints.secondary_in, "--outdev", endpoints.outdev, "--qmp", endpoints.qmp]
        if endpoints.vnet_hdr:
            argv.append("--vnet-hdr-support")
        return [*argv, *options]

    return command


@dataclass(frozen=True, slots=True)
class PairOptions:
    """What kind of pair to make."""

    comparator: ComparatorCommand | None
    """None: colo-compare inside the primary's QEMU."""
    nic: Nic = "e1000"
    allow_kvm: bool = True
    shim: Path | None = None
    """The TCG preload library, if it is not the one built with the package."""
    large_bytes: int = LARGE_FILE_BYTES
    checkpoint_delay: int = colo.ON_DEMAND
    """QEMU's x-checkpoint-delay in ms."""
    stock_compare_options: str = ""
    boot_deadline: float = 60.0
    keep_logs: Path | None = None
    """Copy all logs into this directory in the end."""
    progress: Callable[[str], None] = lambda _: None
    """Is told of each step, in words for people."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One of the two QEMUs."""

    role: Role
    namespace: str
    process: Daemon
    control: Monitor
    oob: Monitor
    sockets: Sockets

    def console(self) -> str:
        """What the guest wrote to its console."""
        return self.sockets.console.read_text(errors="replace") if self.sockets.console.exists() else ""


class VmPair:
    """Two QEMUs, three hosts' worth of networks, a comparator and a client.

        async with VmPair(PairOptions(coloproxy_compare("--json-events", "events"))) as pair:
            await pair.start_colo()
            transfer = await pair.client.download()
            await transfer.reached(10_000_000, deadline=30)
            await pair.kill_primary()
            await pair.fail_over()
            result = await transfer.result(deadline=60)

    Entering boots the guest on the primary until its service answers; the secondary waits.  Leaving, in whatever way,
    ends every process and removes every namespace and file.  Errors are subclasses of errors.TestbedError.
    """

    guest: Guest
    acceleration: Acceleration
    network: Network
    directory: Path
    client: Client
    endpoints: Endpoints
    primary: Machine
    secondary: Machine
    comparator: Daemon | None
    boot_seconds: float
    """From the start of the primary's QEMU until its service answered."""

    def __init__(self, options: PairOptions) -> None:
        self.options = options
        self._stack = contextlib.AsyncExitStack()
        self._comparators = 0

    async def __aenter__(self) -> VmPair:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def start_colo(self, deadline: float = 30.0) -> colo.Start:
        """Protect the guest; returns once both machines run in step."""
        self.options.progress("copying the primary's state to the secondary")
        self._check()
        primary = ["mirror0", "compare0", "compare_out"]
        await colo.wait_for_sockets(self.primary.control, primary, deadline)
        await colo.wait_for_sockets(self.secondary.control, ("red0", "red1"), deadline)
        return await colo.start_colo(
            self.primary.control,
            self.secondary.control,
            checkpoint_delay=self.options.checkpoint_delay,
            deadline=deadline,
        )

    async def checkpoint(self, deadline: float = 10.0) -> colo.Checkpoint:
        """Ask for a checkpoint by our own monitor, and wait until it is committed."""
        return await colo.checkpoint(self.primary.control, delay=self.options.checkpoint_delay, deadline=deadline)

    async def kill_primary(self, notice_deadline: float = 5.0) -> float:
        """SIGKILL the primary's QEMU; returns after how many seconds the secondary's QEMU noticed (COLO_EXIT)."""
        self.options.progress("killing the primary")
        with self.secondary.control.watch("COLO_EXIT") as watch:
            killed = time.monotonic()
            await self.primary.process.kill()
            await watch.next("COLO_EXIT", notice_deadline)
            return time.monotonic() - killed

    async def fail_over(self) -> colo.Failover:
        """Let the secondary go on alone, on the client network.  The primary must be dead."""
        if self.primary.process.running:
            raise ProcessError("won't fail over while the primary's QEMU runs: there would be two of the same machine")
        self.options.progress("failing over to the secondary")
        return await colo.fail_over(
            self.secondary.control,
            self.secondary.oob,
            lambda: self.network.connect_tap(self.network.secondary),
        )

    async def restart_comparator(self, stop: signal.Signals = signal.SIGKILL) -> None:
        """End the comparator by that signal and start another; returns once all of QEMU's sockets are back.

        `coloproxy compare --qmp` makes the primary's redire0, deaf since its socket broke, listen again by itself.
        """
        if self.comparator is None:
            raise ProcessError("the comparator is part of the primary's QEMU: it can't be restarted")
        self.comparator.signal(stop)
        await self.comparator.wait()
        await self._start_comparator()
        await colo.wait_for_sockets(self.primary.control, ("compare0", "compare_out"), 10.0)
        await colo.wait_for_sockets(self.secondary.control, ("red1",), 10.0)

    async def _start(self) -> None:
        options = self.options
        remove_leftovers()
        options.progress("building the guest")
        self.guest, self.acceleration = await asyncio.gather(
            asyncio.to_thread(build_guest, large_bytes=options.large_bytes),
            asyncio.to_thread(choose_acceleration, allow_kvm=options.allow_kvm, shim=options.shim),
        )
        name = new_name()
        self.directory = Path(tempfile.gettempdir()) / name
        self.directory.mkdir(mode=0o700)
        self._stack.callback(self._remove_directory)
        self.network = self._stack.enter_context(network(name, vnet_hdr=options.nic == "virtio"))
        self.client = Client(self.network.client)
        self._stack.push_async_callback(self.client.close)
        self.comparator = None
        machine_options = MachineOptions(
            guest=self.guest,
            acceleration=self.acceleration,
            nic=options.nic,
            stock_comparator=options.comparator is None,
            stock_compare_options=options.stock_compare_options,
        )
        self.endpoints = Endpoints(
            primary_in=f"127.0.0.1:{PRIMARY_IN_PORT}",
            secondary_in=f"{LINK_PRIMARY}:{SECONDARY_IN_PORT}",
            outdev=f"127.0.0.1:{OUTDEV_PORT}",
            qmp=f"unix:{Sockets.below(self.directory, 'primary').proxy}",
            vnet_hdr=machine_options.vnet_hdr,
            directory=self.directory,
        )
        # First the comparator, then the secondary, then the primary: each finds whom it connects to.
        await self._start_comparator()
        options.progress(f"booting the guest ({self.acceleration.name})")
        self.secondary = await self._start_machine("secondary", self.network.secondary, machine_options)
        started = time.monotonic()
        self.primary = await self._start_machine("primary", self.network.primary, machine_options)
        await self._wait_for_service(started + options.boot_deadline)
        self.boot_seconds = time.monotonic() - started

    async def _start_comparator(self) -> None:
        if self.options.comparator is None:
            return
        self._comparators += 1
        log = self.directory / f"comparator-{self._comparators}.log"
        argv = self.options.comparator(self.endpoints)
        self.comparator = await Daemon.start("comparator", argv, log, namespace=self.network.primary)
        self._stack.push_async_callback(self.comparator.stop)

    async def _start_machine(self, role: Role, namespace: str, options: MachineOptions) -> Machine:
        sockets = Sockets.below(self.directory, role)
        command = primary_command if role == "primary" else secondary_command
        argv = command(options, sockets)
        log = self.directory / f"{role}.log"
        environment = self.acceleration.environment
        process = await Daemon.start(f"QEMU ({role})", argv, log, namespace=namespace, env=environment)
        self._stack.push_async_callback(process.kill)
        try:
            control = await Monitor.connect(sockets.control, role)
            self._stack.push_async_callback(control.close)
            oob = await Monitor.connect(sockets.oob, f"{role} (out of band)")
            self._stack.push_async_callback(oob.close)
        except DeadlineError:
            process.check()
            raise
        return Machine(role, namespace, process, control, oob, sockets)

    async def _wait_for_service(self, until: float) -> None:
        while True:
            self._check()
            with contextlib.suppress(ProcessError, DeadlineError):
                await self.client.get("/hello.txt", "--connect-timeout", "0.3", deadline=_PROBE_DEADLINE)
                return
            if time.monotonic() >= until:
                raise DeadlineError(
                    f"the guest's service doesn't answer; its console ends:\n{self.primary.console()[-2000:]}"
                )
            await asyncio.sleep(0.1)

    def _check(self) -> None:
        """Raise ProcessError if a process that should run has ended."""
        for process in (self.comparator, self.secondary.process, self.primary.process):
            if process is not None:
                process.check()

    def _remove_directory(self) -> None:
        if self.options.keep_logs is not None:
            self.options.keep_logs.mkdir(parents=True, exist_ok=True)
            for log in self.directory.glob("*.log"):
                shutil.copy(log, self.options.keep_logs)
        shutil.rmtree(self.directory, ignore_errors=True)
