# SPDX-License-Identifier: Apache-2.0
"""A pair of "VMs" that are network namespaces: real TCP stacks and servers, two hosts, a client, and no QEMU."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from .errors import DeadlineError
from .leftovers import new_name, remove_leftovers
from .namespace_net import (
    HOST_INTERFACE,
    RELAY_LEFT,
    RELAY_RIGHT,
    VM_INTERFACE,
    NamespaceNetwork,
    Place,
    Stack,
    VmKind,
    namespace_network,
)
from .net import batch
from .process import Daemon
from .qemu import Role
from .relay import Relay
from .services import ALL_SERVICES, Content, Service, VmServices, prepare_content
from .vm_client import VmClient

Cut = Literal["kill", "down", "delete"]

ROLES: Final[tuple[Role, ...]] = ("primary", "secondary")
_TAP: Final = "tap0"
_VM_TAP: Final = "vmtap"
_POLL_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceOptions:
    """What kind of pair to make."""

    kind: VmKind = "packet"
    offloads: bool = False
    """The VM's network card leaves checksums and segmentation to others: frames with partial checksums and super-frames
    come out of it.  Who reads them needs virtio-net headers."""
    client_stack: Stack = field(default_factory=Stack)
    vm_stacks: Mapping[Role, Stack] = field(default_factory=lambda: {role: Stack() for role in ROLES})
    impaired: frozenset[Place] = frozenset()
    """Cables with a relay in them; NamespacePair.relays has it by that name."""
    seed: int | str = 1
    """Of the relays."""
    large_bytes: int = 20_000_000
    """Size of /large.bin."""
    keep_logs: Path | None = None
    """Copy all logs, journals and coloproxy's configuration into this directory in the end."""


class NamespacePair:
    """Two hosts and their VMs, a switch and a client, all of them network namespaces of this kernel.

        async with NamespacePair(NamespaceOptions(kind="packet")) as bed:
            for role in ROLES:
                await bed.run_in_host(role, "proxy", ["coloproxy", "run", ...])
                await bed.start_vm(role)
            transfer = await bed.client.download()
            await transfer.reached(5_000_000, deadline=30)
            await bed.cut("primary", "kill")

    Leaving, in whatever way, ends every process and removes every namespace and file; if we are killed, the processes
    die with us and the next bed removes the rest.  Errors are subclasses of errors.TestbedError.
    """

    network: NamespaceNetwork
    directory: Path
    """Scratch directory; anybody may enter it and nobody but root may list it."""
    content: Content
    client: VmClient
    services: Mapping[Role, VmServices]
    relays: Mapping[Place, Relay]

    def __init__(self, options: NamespaceOptions) -> None:
        self.options = options
        self._stack = contextlib.AsyncExitStack()
        self._of_host: dict[Role, list[Daemon | Relay]] = {role: [] for role in ROLES}

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

    async def run_in_host(self, role: Role, name: str, argv: Sequence[str]) -> Daemon:
        """Start a program in that host's namespace, "the proxy" for one; its log is *name*-*role*.log.

        It is stopped in the end (SIGTERM first), and killed by cut(role, "kill").
        """
        log = self.directory / f"{name}-{role}.log"
        daemon = await Daemon.start(f"{name} ({role})", argv, log, namespace=self.network.hosts[role])
        self._stack.push_async_callback(daemon.stop)
        self._of_host[role].append(daemon)
        return daemon

    async def start_vm(
        self, role: Role, services: Collection[Service] = ALL_SERVICES, *, deadline: float = 10.0
    ) -> VmServices:
        """Wait for the VM's network card if the proxy makes it, give it its addresses, start its servers.

        Raises DeadlineError, ProcessError or NetworkError.
        """
        until = time.monotonic() + deadline
        while not self.network.has_interface(self.network.vms[role], VM_INTERFACE):
            self.check(role)
            if time.monotonic() >= until:
                raise DeadlineError(f"no {VM_INTERFACE} in the {role} VM's namespace after {deadline:g} s")
            await asyncio.sleep(_POLL_SECONDS)
        self.network.configure_vm(role, offloads=self.options.offloads)
        await self.services[role].start(services)
        return self.services[role]

    async def stand_in(self, role: Role) -> Relay:
        """Join the VM to its host's bridge by a relay, as one coloproxy without a peer would."""
        host, vm = self.network.hosts[role], self.network.vms[role]
        packet = self.options.kind == "packet"
        right = f"packet:{HOST_INTERFACE}" if packet else f"tap:{_VM_TAP}"
        relay = await Relay.start(
            f"stand-in ({role})",
            host,
            left=f"tap:{_TAP}",
            right=right,
            seed=self.options.seed,
            vnet_hdr=self.options.offloads,
        )
        self._stack.push_async_callback(relay.close)
        self._of_host[role].append(relay)
        batch(host, [f"link set {_TAP} addrgenmode none master br0", f"link set {_TAP} up"])
        if not packet:
            batch(host, [f"link set {_VM_TAP} netns {vm} name {VM_INTERFACE}"])
        return relay

    def check(self, role: Role) -> None:
        """Raise ProcessError if something that was started in that host has ended."""
        for process in self._of_host[role]:
            if isinstance(process, Daemon):
                process.check()

    async def cut(self, role: Role, how: Cut) -> float:
        """That host is gone, from one moment to the next; returns when (time.monotonic()).

        "kill": all its processes are; its kernel lives, says goodbye to whom it was connected, and keeps its cables.
        "down" and "delete": its processes live, but nothing goes in or out; the other side of each cable loses its
        carrier ("down", which network.mend() undoes) or its interface.
        """
        if how != "kill":
            self.network.black_out(role, how)
            return time.monotonic()
        now = time.monotonic()
        for process in self._of_host[role]:
            if isinstance(process, Daemon):
                process.signal(signal.SIGKILL)
        for process in self._of_host[role]:
            await (process.kill() if isinstance(process, Daemon) else process.close())
        self._of_host[role].clear()
        await self.services[role].kill()
        return now

    async def _start(self) -> None:
        options = self.options
        remove_leftovers()
        name = new_name()
        self.directory = Path(tempfile.gettempdir()) / name
        self.directory.mkdir(mode=0o711)
        self._stack.callback(self._remove_directory)
        self.network = self._stack.enter_context(
            namespace_network(
                name,
                kind=options.kind,
                client_stack=options.client_stack,
                vm_stacks=options.vm_stacks,
                impaired=options.impaired,
            )
        )
        self.content = await asyncio.to_thread(prepare_content, self.directory / "content", options.large_bytes)
        self.services = {
            role: VmServices(vm, self.content, self.directory / f"vm-{role}") for role, vm in self.network.vms.items()
        }
        for services in self.services.values():
            self._stack.push_async_callback(services.kill)
        self.client = VmClient(self.network.client, self.content.client_key)
        self._stack.push_async_callback(self.client.close)
        relays: dict[Place, Relay] = {}
        for place, namespace in self.network.relays.items():
            left, right = f"packet:{RELAY_LEFT}", f"packet:{RELAY_RIGHT}"
            relays[place] = await Relay.start(place, namespace, left=left, right=right, seed=f"{options.seed} {place}")
            self._stack.push_async_callback(relays[place].close)
        self.relays = relays

    def _remove_directory(self) -> None:
        if self.options.keep_logs is not None:
            self.options.keep_logs.mkdir(parents=True, exist_ok=True)
            for pattern in ("*.log", "*.jsonl", "*.toml"):
                for path in self.directory.rglob(pattern):
                    name = "-".join(path.relative_to(self.directory).parts)
                    shutil.copy(path, self.options.keep_logs / name)
        shutil.rmtree(self.directory, ignore_errors=True)
