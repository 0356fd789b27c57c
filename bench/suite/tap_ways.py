# SPDX-License-Identifier: Apache-2.0
"""The ways a client's frames can take to a VM of the bed of namespaces, with coloproxy's TAP attach and without it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from coloproxy.testbed.guest_files import CLIENT_IPV4
from coloproxy.testbed.namespace_net import HOST_INTERFACE, VM_INTERFACE, VmKind, set_offloads
from coloproxy.testbed.namespaces import NamespaceOptions, NamespacePair
from coloproxy.testbed.net import batch
from coloproxy.testbed.proxies import PairFile, Proxy, divergences, protect, start_proxy, write_pair_toml
from coloproxy.testbed.qemu import Role
from coloproxy.testbed.services import Service

BRIDGED: Final = "bridged"
RELAY: Final = "relay"
ALONE: Final = "alone"
PROTECTED: Final = "protected"
PLAIN: Final = "plain"
WAYS: Final[Mapping[str, str]] = {
    BRIDGED: "no proxy: the kernel bridges",
    RELAY: "a relay in Python",
    ALONE: "coloproxy, one host",
    PROTECTED: "coloproxy, protected, TLS",
    PLAIN: "coloproxy, protected, plain link",
}

_SERVICES: Final[tuple[Service, ...]] = ("iperf3", "nginx")
_LARGE_BYTES: Final = 100_000  # of the bed's own large file, which nobody loads here
_PROTECTED_SECONDS: Final = 20.0
_QUIET_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Cell:
    """How the VM's network card is joined to its host, and what it leaves to others."""

    kind: VmKind
    offloads: bool

    @property
    def name(self) -> str:
        """Key in the results."""
        return f"{self.kind}-{'offloads' if self.offloads else 'whole'}"

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.kind}, {'offloads' if self.offloads else 'no offloads'}"


@dataclass(slots=True)
class Subject:
    """A way that is open and may be measured."""

    bed: NamespacePair
    proxies: Mapping[Role, Proxy] = field(default_factory=dict)

    def cpu_seconds(self) -> dict[Role, float]:
        """Of each coloproxy, since its start.  Raises ProcessError."""
        return {role: proxy.daemon.cpu_seconds() for role, proxy in self.proxies.items()}

    async def counts(self) -> dict[str, int]:
        """Checkpoints and divergences so far.  Raises ProcessError or DeadlineError."""
        if len(self.proxies) < 2:
            return {}
        status = await self.proxies["primary"].vm_status()
        return {"checkpoints": int(status["checkpoints"]), "divergences": divergences(status)}

    async def settle(self) -> None:
        """New iperf3 servers, and where there is a secondary: until no checkpoint comes any more.

        The two VMs' iperf3 end a test differently, and the checkpoint that this asks for may be late. In the middle of
        the next test it would end the secondary's part in it: the rewriter forgets, for a secondary has the primary's
        numbers after a checkpoint, but here no state is copied.  Raises ProcessError or DeadlineError.
        """
        for services in self.bed.services.values():
            if services.daemons:
                await services.restart("iperf3")
        if len(self.proxies) < 2:
            return
        before: dict[str, int] = {}
        while before != (now := await self.counts()):
            before = now
            await asyncio.sleep(_QUIET_SECONDS)
            await self.proxies["primary"].until("protected", lambda vm: vm["state"] == "protected", _PROTECTED_SECONDS)


def possible(way: str, cell: Cell) -> bool:
    """A TAP ends in a program: without one there is no way, and a veth pair stands for it."""
    return way != BRIDGED or cell.kind == "packet"


@contextlib.asynccontextmanager
async def running(way: str, cell: Cell) -> AsyncIterator[Subject]:
    """Make the bed, open the way, start the VM's servers.  Raises what the test bed raises."""
    options = NamespaceOptions(kind=cell.kind, offloads=cell.offloads, large_bytes=_LARGE_BYTES)
    async with NamespacePair(options) as bed:
        if way in (PROTECTED, PLAIN):
            file = PairFile(security="psk" if way == PROTECTED else "plain")
            proxies = await protect(bed, file, services=_SERVICES)
            await _know_client(bed)
            yield Subject(bed, proxies)
            return
        subject = Subject(bed)
        if way == BRIDGED:
            host = bed.network.hosts["primary"]
            batch(host, [f"link set {HOST_INTERFACE} addrgenmode none master br0", f"link set {HOST_INTERFACE} up"])
            # What comes to the VM is cut to its card's size as well: else the kernel hands super-frames through.
            set_offloads(host, HOST_INTERFACE, on=cell.offloads)
        elif way == RELAY:
            await bed.stand_in("primary")
        else:
            subject.proxies = {"primary": await start_proxy(bed, "primary", write_pair_toml(bed, PairFile()))}
        await bed.start_vm("primary", _SERVICES)
        await _know_client(bed)
        yield subject


async def _know_client(bed: NamespacePair) -> None:
    """The client's MAC for good in the VMs' tables.

    A secondary that asks for it when the primary does not gets no answer, and has no neighbour then. A checkpoint of
    real VMs makes that good; here nothing would.  Raises NetworkError, ProcessError or DeadlineError.
    """
    told = (await bed.client.run("ip", "-json", "link", "show", "dev", VM_INTERFACE)).check()
    (interface,) = json.loads(told.stdout)
    line = f"neigh replace {CLIENT_IPV4} lladdr {interface['address']} dev {VM_INTERFACE} nud permanent"
    for role, services in bed.services.items():
        if services.daemons:  # else it is not there
            batch(bed.network.vms[role], [line])
