# SPDX-License-Identifier: Apache-2.0
"""coloproxy itself on the two hosts of a pair: its two processes; and what a pair of namespaces needs besides."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from .control_client import ask_control
from .errors import DeadlineError, ProcessError
from .guest_files import GUEST_IPV4, GUEST_IPV6, GUEST_MAC
from .namespace_net import HOST_INTERFACE, VM_INTERFACE, Stack
from .namespaces import ROLES, Cut, NamespacePair
from .pair_toml import PairFile as PairFile
from .pair_toml import control_socket, pair_toml
from .process import Daemon, run
from .qemu import Role
from .services import ALL_SERVICES, Service

TAP: Final = "tap0"
_POLL_SECONDS: Final = 0.02
_CTL_SECONDS: Final = 15.0
_UP_SECONDS: Final = 15.0


class Hosts(Protocol):
    """A bed, as far as coloproxy's two processes are concerned."""

    directory: Path

    async def run_in_host(self, role: Role, name: str, argv: Sequence[str]) -> Daemon:
        """Starts a program in that host's namespace."""


def write_pair_toml(bed: NamespacePair, file: PairFile) -> Path:
    """pair.toml for both hosts of namespaces."""
    options = bed.options
    vm: dict[str, Any] = {"kind": options.kind, "vnet_hdr": options.offloads}
    if options.kind == "tap":
        vm |= {"name": VM_INTERFACE, "netns": dict(bed.network.vms)}
    else:
        vm |= {"name": HOST_INTERFACE}
    nic = {
        "name": "nic0",
        "mac": GUEST_MAC,
        "announce": [GUEST_IPV4, GUEST_IPV6],
        "tap": {"name": TAP, "bridge": "br0", "vnet_hdr": options.offloads},
        "vm": vm,
    }
    return pair_toml(bed.directory, file, nic)


@dataclass(frozen=True, slots=True)
class Proxy:
    """A running `coloproxy run`."""

    role: Role
    daemon: Daemon
    socket: Path

    async def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """What `coloproxy ctl` does, without a process of its own: a failover must not wait for Python to start.

        Raises ProcessError if it is refused, DeadlineError.
        """
        try:
            return await ask_control(self.socket, f"coloproxy ({self.role})", command, arguments)
        except ProcessError:
            self.daemon.check()
            raise

    async def ctl(self, command: str, *options: str) -> dict[str, Any]:
        """`coloproxy ctl COMMAND --json` itself; its answer.  Raises ProcessError if it is refused."""
        argv = [sys.executable, "-P", "-m", "coloproxy", "ctl", command, "--socket", str(self.socket), "--json"]
        done = await run([*argv, *options], deadline=_CTL_SECONDS)
        self.daemon.check()
        answer: dict[str, Any] = json.loads(done.check().stdout)
        return answer

    async def vm_status(self) -> dict[str, Any]:
        """What the status says of the VM."""
        (vm,) = (await self.ask("status"))["vms"]
        return dict(vm)

    async def until(self, what: str, condition: Callable[[Mapping[str, Any]], bool], deadline: float = 15.0) -> None:
        """Until the VM's status is so.  Raises DeadlineError with the last one."""
        until = time.monotonic() + deadline
        while not condition(status := await self.vm_status()):
            if time.monotonic() >= until:
                raise DeadlineError(f"{self.role}: not {what} after {deadline:g} s: {json.dumps(status)}")
            await asyncio.sleep(_POLL_SECONDS)


async def start_proxy(
    bed: Hosts, role: Role, config: Path, prefix: Sequence[str] = (), options: Sequence[str] = ()
) -> Proxy:
    """`coloproxy run` in that host's namespace; returns once its control socket answers.

    *prefix*: a program, and its arguments, that changes something and then executes ours.  *options*: more of its own.
    """
    # -P: the installed package, not a source tree that happens to be the working directory.
    argv = [*prefix, sys.executable, "-P", "-m", "coloproxy", "run", "--role", role, "--config", str(config)]
    argv += options
    proxy = Proxy(role, await bed.run_in_host(role, "coloproxy", argv), control_socket(bed.directory, role))
    until = time.monotonic() + _UP_SECONDS
    while not proxy.socket.exists():
        proxy.daemon.check()
        if time.monotonic() >= until:
            raise DeadlineError(f"coloproxy ({role}) has no control socket; its log ends:\n{proxy.daemon.tail()}")
        await asyncio.sleep(_POLL_SECONDS)
    await proxy.ctl("status", "--wait", str(_UP_SECONDS))
    return proxy


async def protect(
    bed: NamespacePair,
    file: PairFile | None = None,
    *,
    services: Collection[Service] = ALL_SERVICES,
    prefix: Sequence[str] = (),
) -> dict[Role, Proxy]:
    """Both coloproxies and both VMs with their servers; returns once the primary says that it is protected."""
    config = write_pair_toml(bed, file or PairFile())
    secondary = await start_proxy(bed, "secondary", config, prefix)  # first: the primary dials it
    primary = await start_proxy(bed, "primary", config, prefix)
    for role in ROLES:
        await bed.start_vm(role, services)
    await primary.until("protected", lambda vm: vm["state"] == "protected")
    return {"primary": primary, "secondary": secondary}


async def fail_over(bed: NamespacePair, secondary: Proxy, how: Cut) -> float:
    """Cut the primary's host off, and let the secondary take over once it knows that its peer is gone.

    Returns when the cut was (time.monotonic()).  Raises DeadlineError or ProcessError.
    """
    at = await bed.cut("primary", how)
    await secondary.until("without its peer", lambda vm: vm["link"]["state"] == "down")
    await secondary.ask("failover")
    return at


def divergences(vm_status: Mapping[str, Any]) -> int:
    """How often the two VMs differed, by the primary's status of the VM."""
    return sum(vm_status["comparator"]["divergences"].values())


def tcp_options(*, timestamps: bool = True, sack: bool = True, scales_differ: bool = False) -> dict[Role, Stack]:
    """Stacks of the two VMs.  Timestamps are of different clocks."""
    return {
        "primary": Stack(timestamps=1 if timestamps else 0, sack=sack),
        "secondary": Stack(
            timestamps=2 if timestamps else 0,
            sack=sack,
            receive_buffer=64 << 20 if scales_differ else Stack().receive_buffer,
        ),
    }
