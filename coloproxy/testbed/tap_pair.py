# SPDX-License-Identifier: Apache-2.0
"""A protected pair of virtual machines under `coloproxy run` (the TAP attach), from nothing to nothing."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from . import colo
from .bed import BedOptions, Machine, TestBed
from .guest_files import GUEST_IPV4, GUEST_IPV6, GUEST_MAC
from .net import TAP
from .pair_toml import PairFile, journal_file, pair_toml
from .process import Daemon, run
from .proxies import Proxy, start_proxy
from .qemu import MachineOptions, Nic, Role, Sockets, tap_attach_command

VmSide = Literal["stream", "stream-tcp", "socket", "dgram", "dgram-udp"]
"""How QEMU and coloproxy meet: the kind of -netdev, and the address where there is a choice (else UNIX)."""

Death = Literal["kill", "cut"]
"""How the primary's host goes: all its processes at once, or all its cables while they live."""

MODELS: Final[Mapping[Nic, str]] = {"e1000": "e1000", "virtio": "virtio-net-pci"}
ROLES: Final[tuple[Role, ...]] = ("primary", "secondary")
_VM_PORT, _OUR_PORT = 9011, 9012
_QMP: Final = {"back_end": "qmp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TapOptions(BedOptions):
    """What kind of pair to make."""

    side: VmSide = "stream"
    file: PairFile = field(default_factory=lambda: PairFile(checkpoint=_QMP))


class TapPair(TestBed):
    """Two QEMUs whose only network card is a socket, a coloproxy beside each, three hosts' worth of networks, a client.

        async with TapPair(TapOptions(nic="virtio")) as pair:
            await pair.start_colo()
            transfer = await pair.client.download()
            await transfer.reached(10_000_000, deadline=30)
            await pair.lose_primary("kill")
            await pair.fail_over()
            result = await transfer.result(deadline=60)

    Entering boots the guest on the primary until its service answers, through a coloproxy that lets all pass; the
    secondary waits.  Leaving, in whatever way, ends every process and removes every namespace and file.  Errors are
    subclasses of errors.TestbedError.
    """

    _taps_are_the_beds: ClassVar[bool] = False
    secondary: Machine
    proxies: dict[Role, Proxy]
    config: Path

    def __init__(self, options: TapOptions) -> None:
        super().__init__(options)
        self._tap_options = options
        self._starts = 0
        self.proxies = {}

    async def start_colo(self, deadline: float = 30.0) -> colo.Start:
        """Protect the guest; returns once the primary's coloproxy says that it is."""
        self.options.progress("copying the primary's state to the secondary")
        self._check()
        start = await colo.start_colo(self.primary.control, self.secondary.control, deadline=deadline)
        await self.protected(deadline)
        return start

    async def protected(self, deadline: float = 15.0) -> None:
        """Until the primary's coloproxy says so.  Raises DeadlineError."""
        await self.proxies["primary"].until("protected", lambda vm: vm["state"] == "protected", deadline)

    async def lose_primary(self, how: Death) -> float:
        """The primary's host is gone, from one moment to the next; returns when (time.monotonic())."""
        self.options.progress("the primary's host goes")
        at = time.monotonic()
        if how == "cut":
            self.network.black_out(self.network.primary)
            return at
        victims = (self.primary.process, self.proxies["primary"].daemon)
        for process in victims:
            process.signal(signal.SIGKILL)
        for process in victims:
            await process.kill()
        return at

    async def fail_over(self) -> None:
        """Let the secondary take over, once its coloproxy knows that it has no peer.

        Raises DeadlineError or ProcessError.
        """
        self.options.progress("failing over to the secondary")
        secondary = self.proxies["secondary"]
        await secondary.until("without its peer", lambda vm: vm["link"]["state"] == "down")
        await secondary.ask("failover")

    async def start_proxy(self, role: Role) -> Proxy:
        """Start that host's coloproxy, the first or the one after; returns once it answers."""
        self.proxies[role] = await start_proxy(self, role, self.config)
        return self.proxies[role]

    async def restart_proxy(self, role: Role, stop: signal.Signals = signal.SIGKILL) -> Proxy:
        """End it by that signal and start another."""
        daemon = self.proxies[role].daemon
        daemon.signal(stop)
        await daemon.wait()
        return await self.start_proxy(role)

    async def run_in_host(self, role: Role, name: str, argv: Sequence[str]) -> Daemon:
        """Start a program in that host's namespace; it is stopped in the end."""
        self._starts += 1
        log = self.directory / f"{name}-{role}-{self._starts}.log"
        daemon = await Daemon.start(f"{name} ({role})", argv, log, namespace=self._namespace(role))
        self._stack.push_async_callback(daemon.stop)
        return daemon

    def journal(self, role: Role, *kinds: str) -> list[dict[str, Any]]:
        """What that host's coloproxies have told so far, of these kinds."""
        path = journal_file(self.directory, role)
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        records = [json.loads(line) for line in lines]
        return [record for record in records if not kinds or record["event"] in kinds]

    # ------------------------------------------------------------------ start

    async def _start_machines(self) -> None:
        self.config = self._write_config()
        for role in ("secondary", "primary"):  # the primary dials it
            await self.start_proxy(role)
        self.secondary = await self._start_qemu("secondary")
        argv = await self._command("primary")
        await self._boot_primary(argv, self._sockets("primary"))

    async def _start_qemu(self, role: Role) -> Machine:
        return await self._start_machine(role, await self._command(role), self._sockets(role))

    async def _command(self, role: Role) -> list[str]:
        argv = [sys.executable, "-P", "-m", "coloproxy", "qemu-args", "--role", role, "-c", str(self.config), "--json"]
        network = json.loads((await run(argv)).check().stdout)
        options = MachineOptions(guest=self.guest, acceleration=self.acceleration, nic=self.options.nic)
        return tap_attach_command(options, self._sockets(role), role, network)

    def _sockets(self, role: Role) -> Sockets:
        return Sockets.below(self.directory, role)

    def _namespace(self, role: Role) -> str:
        return self.network.primary if role == "primary" else self.network.secondary

    def _write_config(self) -> Path:
        nic = {
            "name": "nic0",
            "mac": GUEST_MAC,
            "model": MODELS[self.options.nic],
            "announce": [GUEST_IPV4, GUEST_IPV6],
            "tap": {"name": TAP, "bridge": "br0"},
            "vm": _vm_side(self._tap_options.side, self.directory),
        }
        qmp = {role: f"unix:{self._sockets(role).proxy}" for role in ROLES}
        return pair_toml(self.directory, self._tap_options.file, nic, {"qmp": qmp})

    def _processes(self) -> list[Daemon]:
        made: Collection[Daemon] = [proxy.daemon for proxy in self.proxies.values()]
        return [*made, *([self.secondary.process] if hasattr(self, "secondary") else []), *super()._processes()]


def _vm_side(side: VmSide, directory: Path) -> dict[str, Any]:
    """The table `vm` of a network card."""

    def files(name: str) -> dict[Role, str]:
        return {role: f"unix:{directory}/{name}-{role}.sock" for role in ROLES}

    match side:
        case "stream":
            return {"kind": "stream", "address": files("nic")}
        case "stream-tcp":
            return {"kind": "stream", "address": f"tcp:127.0.0.1:{_VM_PORT}"}
        case "socket":
            return {"kind": "socket", "address": f"tcp:127.0.0.1:{_VM_PORT}"}
        case "dgram":
            return {"kind": "dgram", "address": files("nic"), "local": files("nic-us")}
        case "dgram-udp":
            return {"kind": "dgram", "address": f"udp:127.0.0.1:{_VM_PORT}", "local": f"udp:127.0.0.1:{_OUR_PORT}"}
