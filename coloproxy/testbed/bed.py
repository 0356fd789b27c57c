# SPDX-License-Identifier: Apache-2.0
"""A guest that serves a client, from nothing to nothing: what a protected pair and a single machine have in common."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from .addition import NO_ADDITION, Addition
from .client import Client
from .errors import DeadlineError, ProcessError
from .guest import LARGE_FILE_BYTES, Guest, build_guest
from .leftovers import new_name, remove_leftovers
from .monitor import Monitor
from .net import Network, network
from .process import Daemon
from .qemu import MachineOptions, Nic, Role, Sockets, single_command
from .tcg import Acceleration, choose_acceleration

_PROBE_DEADLINE = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BedOptions:
    """What kind of guest to make."""

    nic: Nic = "e1000"
    allow_kvm: bool = True
    shim: Path | None = None
    """The TCG preload library, if it is not the one built with the package."""
    large_bytes: int = LARGE_FILE_BYTES
    addition: Addition = NO_ADDITION
    """More programs for the guest."""
    boot_deadline: float = 60.0
    keep_logs: Path | None = None
    """Copy all logs, and coloproxy's journals and configuration, into this directory in the end."""
    progress: Callable[[str], None] = lambda _: None
    """Is told of each step, in words for people."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A running QEMU."""

    role: Role
    namespace: str
    process: Daemon
    control: Monitor
    oob: Monitor
    sockets: Sockets

    def console(self) -> str:
        """What the guest wrote to its console."""
        return self.sockets.console.read_text(errors="replace") if self.sockets.console.exists() else ""


class TestBed:
    """Three hosts' worth of networks, a client, and a QEMU on the first host.

    Entering boots the guest there until its service answers.  Leaving, in whatever way, ends every process and removes
    every namespace and file.  Errors are subclasses of errors.TestbedError.
    """

    __test__ = False  # the name begins with "Test", but pytest must not collect it
    _taps_are_the_beds: ClassVar[bool] = True

    guest: Guest
    acceleration: Acceleration
    network: Network
    directory: Path
    client: Client
    primary: Machine
    boot_seconds: float
    """From the start of the primary's QEMU until its service answered."""

    def __init__(self, options: BedOptions) -> None:
        self.options = options
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
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

    async def _start(self) -> None:
        options = self.options
        remove_leftovers()
        options.progress("building the guest")
        self.guest, self.acceleration = await asyncio.gather(
            asyncio.to_thread(build_guest, large_bytes=options.large_bytes, addition=options.addition),
            asyncio.to_thread(choose_acceleration, allow_kvm=options.allow_kvm, shim=options.shim),
        )
        name = new_name()
        self.directory = Path(tempfile.gettempdir()) / name
        self.directory.mkdir(mode=0o700)
        self._stack.callback(self._remove_directory)
        self.network = self._stack.enter_context(
            network(name, vnet_hdr=options.nic == "virtio", taps=self._taps_are_the_beds)
        )
        self.client = Client(self.network.client)
        self._stack.push_async_callback(self.client.close)
        await self._start_machines()

    async def _start_machines(self) -> None:
        """Start every process of the bed; returns once the guest's service answers."""
        raise NotImplementedError

    async def _boot_primary(self, argv: Sequence[str], sockets: Sockets) -> None:
        self.options.progress(f"booting the guest ({self.acceleration.name})")
        started = time.monotonic()
        self.primary = await self._start_machine("primary", argv, sockets)
        await self._wait_for_service(started + self.options.boot_deadline)
        self.boot_seconds = time.monotonic() - started

    async def _start_machine(self, role: Role, argv: Sequence[str], sockets: Sockets) -> Machine:
        namespace = self.network.primary if role == "primary" else self.network.secondary
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

    def _processes(self) -> list[Daemon]:
        """Processes that should run as long as the bed does."""
        return [self.primary.process]

    def _check(self) -> None:
        """Raise ProcessError if a process that should run has ended."""
        for process in self._processes():
            process.check()

    def _remove_directory(self) -> None:
        if self.options.keep_logs is not None:
            self.options.keep_logs.mkdir(parents=True, exist_ok=True)
            for pattern in ("*.log", "*.jsonl", "*.toml"):
                for log in self.directory.glob(pattern):
                    shutil.copy(log, self.options.keep_logs)
        shutil.rmtree(self.directory, ignore_errors=True)


class SingleVm(TestBed):
    """The same guest on the same networks, unprotected: one QEMU, its TAP, no filter and no comparator."""

    async def _start_machines(self) -> None:
        sockets = Sockets.below(self.directory, "primary")
        options = MachineOptions(guest=self.guest, acceleration=self.acceleration, nic=self.options.nic)
        await self._boot_primary(single_command(options, sockets), sockets)
