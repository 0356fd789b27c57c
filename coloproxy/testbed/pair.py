# SPDX-License-Identifier: Apache-2.0
"""A protected pair of virtual machines, from nothing to nothing."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import colo
from .bed import BedOptions, Machine, TestBed
from .errors import ProcessError
from .net import LINK_PRIMARY
from .process import Daemon
from .qemu import (
    OUTDEV_PORT,
    PRIMARY_IN_PORT,
    SECONDARY_IN_PORT,
    MachineOptions,
    Sockets,
    primary_command,
    secondary_command,
)


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
class PairOptions(BedOptions):
    """What kind of pair to make."""

    comparator: ComparatorCommand | None
    """None: colo-compare inside the primary's QEMU."""
    checkpoint_delay: int = colo.ON_DEMAND
    """QEMU's x-checkpoint-delay in ms."""
    stock_compare_options: str = ""


class VmPair(TestBed):
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

    endpoints: Endpoints
    secondary: Machine
    comparator: Daemon | None = None

    def __init__(self, options: PairOptions) -> None:
        super().__init__(options)
        self._pair_options = options
        self._comparators = 0

    async def start_colo(self, deadline: float = 30.0) -> colo.Start:
        """Protect the guest; returns once both machines run in step."""
        self.options.progress("copying the primary's state to the secondary")
        self._check()
        primary = ["mirror0", "compare0", "compare_out"]
        await colo.wait_for_sockets(self.primary.control, primary, deadline)
        await colo.wait_for_sockets(self.secondary.control, ("red0", "red1"), deadline)
        await colo.switch_filters(self.primary.control, self.secondary.control, on=True)
        return await colo.start_colo(
            self.primary.control,
            self.secondary.control,
            checkpoint_delay=self._pair_options.checkpoint_delay,
            deadline=deadline,
        )

    async def checkpoint(self, deadline: float = 10.0) -> colo.Checkpoint:
        """Ask for a checkpoint by our own monitor, and wait until it is committed."""
        return await colo.checkpoint(self.primary.control, delay=self._pair_options.checkpoint_delay, deadline=deadline)

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

    async def _start_machines(self) -> None:
        options = self._pair_options
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
        sockets = Sockets.below(self.directory, "secondary")
        self.secondary = await self._start_machine("secondary", secondary_command(machine_options, sockets), sockets)
        sockets = Sockets.below(self.directory, "primary")
        await self._boot_primary(primary_command(machine_options, sockets), sockets)

    async def _start_comparator(self) -> None:
        if self._pair_options.comparator is None:
            return
        self._comparators += 1
        log = self.directory / f"comparator-{self._comparators}.log"
        argv = self._pair_options.comparator(self.endpoints)
        self.comparator = await Daemon.start("comparator", argv, log, namespace=self.network.primary)
        self._stack.push_async_callback(self.comparator.stop)

    def _processes(self) -> list[Daemon]:
        return [*([self.comparator] if self.comparator else []), self.secondary.process, *super()._processes()]
