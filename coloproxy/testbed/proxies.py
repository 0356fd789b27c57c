# SPDX-License-Identifier: Apache-2.0
"""coloproxy itself on the two hosts of a pair of namespaces: its file, its two processes, failover."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from .errors import DeadlineError, ProcessError
from .guest_files import GUEST_IPV4, GUEST_IPV6, GUEST_MAC
from .namespace_net import HOST_INTERFACE, VM_INTERFACE, Stack
from .namespaces import ROLES, Cut, NamespacePair
from .net import LINK_PRIMARY, LINK_SECONDARY
from .process import Daemon, run
from .qemu import Role
from .services import ALL_SERVICES, Service

VM: Final = "vm"
TAP: Final = "tap0"
LINK_PORT: Final = 9810
_POLL_SECONDS: Final = 0.02
_CTL_SECONDS: Final = 15.0
_LONGEST_ANSWER: Final = 4 << 20
_UP_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFile:
    """What pair.toml says besides what the bed decides."""

    security: Literal["psk", "plain"] = "psk"
    checkpoint: Mapping[str, Any] = field(
        default_factory=lambda: {"back_end": "command", "command": ["/bin/true"], "min_interval": "0s"}
    )
    """Namespaces have no state that could be copied: a "checkpoint" only says that the two are equal, which holds for
    fresh ones and for whatever has not differed."""
    compare: Mapping[str, Any] = field(default_factory=dict)
    link: Mapping[str, Any] = field(default_factory=lambda: {"keepalive": "50ms", "timeout": "500ms"})


def write_pair_toml(bed: NamespacePair, file: PairFile) -> Path:
    """pair.toml for both hosts in the bed's directory, and the key of the link beside it."""
    options, directory = bed.options, bed.directory
    link: dict[str, Any] = {"primary": LINK_PRIMARY, "secondary": f"{LINK_SECONDARY}:{LINK_PORT}", **file.link}
    link["security"] = file.security
    if file.security == "psk":
        key = directory / "link.psk"
        key.touch(mode=0o600)
        key.write_text(secrets.token_hex(32))
        link["psk_file"] = str(key)
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
    tables = {
        "link": link,
        "checkpoint": file.checkpoint,
        "compare": file.compare,
        "control": {"socket": {role: str(control_socket(bed, role)) for role in ROLES}},
        "process": {"json_events": {role: str(directory / f"events-{role}.jsonl") for role in ROLES}},
    }
    lines = ['name = "bed"']
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    lines += [
        "",
        "[[vm]]",
        f'name = "{VM}"',
        "",
        "[[vm.nic]]",
        *(f"{key} = {_toml(value)}" for key, value in nic.items()),
    ]
    path = directory / "pair.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value)  # texts, numbers, true and false are written alike


def control_socket(bed: NamespacePair, role: Role) -> Path:
    """Of the coloproxy on that host."""
    return bed.directory / f"control-{role}.sock"


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
        line = json.dumps({"command": command, "arguments": arguments}).encode() + b"\n"
        try:
            async with asyncio.timeout(_CTL_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self.socket, limit=_LONGEST_ANSWER)
                with contextlib.closing(writer):
                    writer.write(line)
                    answer: dict[str, Any] = json.loads(await reader.readline())
        except TimeoutError as error:
            raise DeadlineError(f"coloproxy ({self.role}): no answer to {command}") from error
        except (OSError, ValueError) as error:
            self.daemon.check()
            raise ProcessError(f"coloproxy ({self.role}): {command}: {error}") from error
        if "error" in answer:
            raise ProcessError(f"coloproxy ({self.role}) refuses {command}: {answer['error']}")
        return dict(answer["return"])

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


async def start_proxy(bed: NamespacePair, role: Role, config: Path) -> Proxy:
    """`coloproxy run` in that host's namespace; returns once its control socket answers."""
    # -P: the installed package, not a source tree that happens to be the working directory.
    argv = [sys.executable, "-P", "-m", "coloproxy", "run", "--role", role, "--config", str(config)]
    proxy = Proxy(role, await bed.run_in_host(role, "coloproxy", argv), control_socket(bed, role))
    until = time.monotonic() + _UP_SECONDS
    while not proxy.socket.exists():
        proxy.daemon.check()
        if time.monotonic() >= until:
            raise DeadlineError(f"coloproxy ({role}) has no control socket; its log ends:\n{proxy.daemon.tail()}")
        await asyncio.sleep(_POLL_SECONDS)
    await proxy.ctl("status", "--wait", str(_UP_SECONDS))
    return proxy


async def protect(
    bed: NamespacePair, file: PairFile | None = None, *, services: Collection[Service] = ALL_SERVICES
) -> dict[Role, Proxy]:
    """Both coloproxies and both VMs with their servers; returns once the primary says that it is protected."""
    config = write_pair_toml(bed, file or PairFile())
    secondary = await start_proxy(bed, "secondary", config)  # first: the primary dials it
    primary = await start_proxy(bed, "primary", config)
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
