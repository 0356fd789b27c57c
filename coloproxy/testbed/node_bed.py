# SPDX-License-Identifier: Apache-2.0
"""Two hosts for `coloproxy node`, their clients, an arbiter, and every way in which they can fail.

    file = NodeFile(node={"arbiter": etcd_arbiter()})
    async with NodeBed(NodeOptions(arbiter=True, file=file)) as bed:
        for host in HOSTS:
            await bed.start_node(host)
        primary = await bed.protected()
        await bed.serves()
        traffic = bed.traffic()
        await traffic.start(downloads=1, uploads=1)
        await bed.kill_host(primary)
        await bed.until_state(other(primary), {"alone"})
        await bed.boot_host(primary)
        await bed.protected()

A host is a network namespace with a directory.  All that runs in it dies with it, whoever started it (node_host.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from .client import Client
from .control_client import ask_control
from .errors import DeadlineError, NetworkError, ProcessError
from .etcd import Etcd, Member
from .guest import Guest
from .guest_files import GUEST_IPV4, GUEST_MAC
from .leftovers import new_name, remove_leftovers, remove_mounts
from .monitor import Monitor
from .namespace_net import RELAY_LEFT, RELAY_RIGHT
from .net import batch
from .node_guest import LOG_PORT, POWER_PORT, SMALL_PATH, DiskImage, build_disk_guest, make_disk, program
from .node_host import HostProcesses
from .node_net import (
    ARBITER_ADDRESSES,
    CLIENT_BRIDGE,
    ETCD_PORT,
    HOSTS,
    Cable,
    Host,
    NodeNetwork,
    Wire,
    node_network,
    other,
)
from .node_supervisor import Supervisor
from .node_toml import Attach, NodeFile, NodePaths, node_toml
from .node_traffic import Traffic, WriteLog
from .node_verify import DiskFindings, verify
from .node_watch import OwnerWatch
from .process import Daemon
from .qemu import Nic, guest_options
from .relay import Relay
from .tcg import QEMU, Acceleration, choose_acceleration

_ETCD_PEER_PORT: Final = 2380
_POLL_SECONDS: Final = 0.02
_STATUS_SECONDS: Final = 2.0
_POWER_SECONDS: Final = 10.0
_GUEST_NAMES: Final[Mapping[Host, str]] = {"a": "host-a", "b": "host-b"}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """What kind of bed to make."""

    nic: Nic = "virtio"
    attach: Attach = "tap"
    file: NodeFile = field(default_factory=NodeFile)
    arbiter: bool = False
    """A third place with an etcd."""
    impaired: frozenset[Wire] = frozenset()
    """Cables with a relay in them; NodeBed.relays has it by that name."""
    seed: int | str = 1
    """Of the relays."""
    images: frozenset[Host] = frozenset({"a"})
    """Hosts that have the disk's image in the beginning."""
    disk_mebibytes: int = 96
    large_bytes: int = 32_000_000
    """Size of node_guest.LARGE_PATH."""
    host_mebibytes: int | None = None
    """Size of each host's own file system, which is memory then; for fill_disk().  It knows no O_DIRECT."""
    restart_seconds: float = 0.2
    """Until the supervisor starts a node again."""
    command: Sequence[str] = (sys.executable, "-P", "-m", "coloproxy", "node")
    """What gets `-c FILE --host a` behind it."""
    watch_interval: float = 0.1
    allow_kvm: bool = True
    shim: Path | None = None
    keep_logs: Path | None = None
    """Copy all logs, journals and configuration into this directory in the end."""


class NodeBed:
    """See the module.

    Leaving, in whatever way, ends every process and removes every namespace, mount and file; if we are killed, the next
    bed does.  Errors are subclasses of errors.TestbedError.
    """

    guest: Guest
    acceleration: Acceleration
    network: NodeNetwork
    directory: Path
    """Scratch directory."""
    hosts: Mapping[Host, NodePaths]
    processes: Mapping[Host, HostProcesses]
    disk: DiskImage
    """As it was in the beginning; the hosts have copies."""
    config: Path
    client: Client
    watch: OwnerWatch
    relays: Mapping[Wire, Relay]
    arbiter: Etcd | None

    def __init__(self, options: NodeOptions) -> None:
        self.options = options
        self._stack = contextlib.AsyncExitStack()
        self._supervisors: dict[Host, Supervisor] = {}
        self._started = 0
        self.arbiter = None

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

    # ------------------------------------------------------------------ nodes

    async def start_node(self, host: Host, *, supervised: bool = True) -> None:
        """Start that host's node; *supervised*: again whenever it ends, until the host itself is gone."""
        await self._supervisors[host].start(supervised=supervised)

    async def stop_node(self, host: Host, grace: float = 10.0) -> None:
        """SIGTERM to the node, and no other after it; what it started may live on.  SIGKILL after *grace* seconds."""
        await self._supervisors[host].let_go()
        await self.node(host).stop(grace)

    def node(self, host: Host) -> Daemon:
        """The node that runs there, or ran last.  Raises ProcessError if there was none."""
        daemon = self._supervisors[host].daemon
        if daemon is None:
            raise ProcessError(f"host {host} has had no node yet")
        return daemon

    def ends(self, host: Host) -> Sequence[int]:
        """How that host's nodes have ended under the supervisor: exit statuses, negative signal numbers."""
        return tuple(self._supervisors[host].ends)

    async def ask(self, host: Host, command: str, *, deadline: float = 15.0, **arguments: Any) -> dict[str, Any]:
        """As `coloproxy ctl` does.  Raises ProcessError if it is refused or there is no node, DeadlineError."""
        name = f"coloproxy node ({host})"
        return await ask_control(self.hosts[host].control, name, command, arguments, deadline=deadline)

    async def state(self, host: Host) -> str | None:
        """`state` of the node's status; None: it gives none now."""
        with contextlib.suppress(ProcessError, DeadlineError):
            return str((await self.ask(host, "status", deadline=_STATUS_SECONDS))["state"])
        return None

    async def until_state(self, host: Host, states: Collection[str], deadline: float = 60.0) -> str:
        """Until that node is in one of these states; which one.  Raises DeadlineError, with the node's last words."""
        until = time.monotonic() + deadline
        while (state := await self.state(host)) not in states:
            if time.monotonic() >= until:
                raise DeadlineError(
                    f"host {host} is {state or 'silent'} and not {' or '.join(sorted(states))} after {deadline:g} s; "
                    f"its log ends:\n{self.node(host).tail()}"
                )
            await asyncio.sleep(_POLL_SECONDS)
        assert state is not None
        return state

    async def states(self) -> dict[Host, str | None]:
        """Of both."""
        return dict(zip(HOSTS, await asyncio.gather(*map(self.state, HOSTS)), strict=True))

    async def until_alone(self, deadline: float = 60.0) -> Host:
        """Until one of them, whichever, is `alone`; which.  Raises DeadlineError."""
        until = time.monotonic() + deadline
        while True:
            states = await self.states()
            for host, state in states.items():
                if state == "alone":
                    return host
            if time.monotonic() >= until:
                raise DeadlineError(f"nobody is alone after {deadline:g} s: {states}")
            await asyncio.sleep(_POLL_SECONDS)

    async def protected(self, deadline: float = 120.0) -> Host:
        """Until one host is `protected` and the other `standby`; returns the one.  Raises DeadlineError."""
        until = time.monotonic() + deadline
        while True:
            states = await self.states()
            for host in HOSTS:
                if (states[host], states[other(host)]) == ("protected", "standby"):
                    return host
            if time.monotonic() >= until:
                raise DeadlineError(f"not protected after {deadline:g} s: {states}")
            await asyncio.sleep(_POLL_SECONDS)

    # ------------------------------------------------------------------ faults

    async def kill_host(self, host: Host, *, vanish: bool = False) -> float:
        """kill -9 of everything there, and nothing starts again before boot_host(); returns when (time.monotonic()).

        Its kernel says goodbye on its TCP connections, unless the host is to *vanish*: its cables go first.
        """
        await self._supervisors[host].let_go()
        if vanish:
            self.black_out(host)
        at = time.monotonic()
        await self.processes[host].kill()
        await self._reap(host)
        return at

    async def boot_host(self, host: Host, *, supervised: bool = True) -> None:
        """The host is back: its cables are in, its disk is as it was, its node starts."""
        self.light_up(host)
        await self.start_node(host, supervised=supervised)

    async def freeze_host(self, host: Host) -> float:
        """SIGSTOP to everything there; returns when."""
        at = time.monotonic()
        await self.processes[host].freeze()
        return at

    def thaw_host(self, host: Host) -> None:
        """Undo freeze_host()."""
        self.processes[host].thaw()

    def cut(self, cable: Cable, host: Host) -> float:
        """Pull that cable out of that host; returns when.  To cut one direction only: relays, impaired."""
        at = time.monotonic()
        self.network.set_cable(cable, host, up=False)
        return at

    def mend(self, cable: Cable, host: Host) -> None:
        """Undo cut()."""
        self.network.set_cable(cable, host, up=True)

    def black_out(self, host: Host) -> float:
        """Pull all cables out of that host; returns when."""
        at = time.monotonic()
        for cable in self.network.cables():
            self.network.set_cable(cable, host, up=False)
        return at

    def light_up(self, host: Host) -> None:
        """Undo black_out(), and every cut()."""
        for cable in self.network.cables():
            self.network.set_cable(cable, host, up=True)

    async def kill_coloproxy(self, host: Host) -> float:
        """kill -9 of the node alone; its supervisor starts another.  Returns when."""
        daemon = self.node(host)
        at = time.monotonic()
        await daemon.kill()
        return at

    def kill_qemu(self, host: Host, number: signal.Signals = signal.SIGKILL) -> list[int]:
        """That signal to the QEMU there; returns its process id, or those of several, or none.  Doesn't wait."""
        pids = self.qemu_pids(host)
        self.processes[host].signal(number, pids)
        return pids

    def qemu_pids(self, host: Host) -> list[int]:
        """Of the QEMU there."""
        return self.processes[host].pids(QEMU)

    def fill_disk(self, host: Host) -> int:
        """Leave no byte free in that host's file system; returns how many there were.  Needs host_mebibytes."""
        if self.options.host_mebibytes is None:
            raise ProcessError("the hosts have no file systems of their own (NodeOptions.host_mebibytes)")
        block, written = bytes(1 << 20), 0
        with self._ballast(host).open("ab", buffering=0) as file:
            while block:
                try:
                    written += file.write(block)
                except OSError:  # full, for so much
                    block = block[: len(block) // 2]
        return written

    def free_disk(self, host: Host) -> None:
        """Undo fill_disk()."""
        self._ballast(host).unlink(missing_ok=True)

    async def start_arbiter(self) -> None:
        """Start the etcd, the first or another on the same data; returns once it answers.  Kill it by bed.arbiter."""
        if self.network.arbiter is None:
            raise NetworkError("this bed has no arbiter")
        member = Member("arbiter", ARBITER_ADDRESSES["a"], ETCD_PORT, _ETCD_PEER_PORT)
        self.arbiter = Etcd(
            member,
            [member],
            self.directory / "etcd",
            namespace=self.network.arbiter,
            listen="0.0.0.0",  # each host has a way of its own to it
            durable=False,
        )
        self._stack.push_async_callback(self.arbiter.kill)
        await self.arbiter.start()
        await self.arbiter.wait_ready()

    def arbiter_url(self, host: Host) -> str:
        """Where that host finds the etcd."""
        return f"http://{ARBITER_ADDRESSES[host]}:{ETCD_PORT}"

    def fence_command(self, host: Host) -> list[str]:
        """The command line that, run anywhere on this machine, powers that host off for good (until boot_host)."""
        mark = str(self._mark(host))
        return [sys.executable, "-P", "-m", "coloproxy.testbed.node_fence", self.network.hosts[host], mark]

    # ------------------------------------------------------------------ clients and evidence

    def traffic(self, seed: str = "traffic") -> Traffic:
        """Transfers to begin."""
        return Traffic(self.client, self.disk, seed)

    async def write_log(self, name: str, *, after: int = 0, interval: float = 0.02) -> WriteLog:
        """Begin a write log; see WriteLog.start."""
        log = await WriteLog.start(self.client, name, after=after, interval=interval)
        self._stack.push_async_callback(log.close)
        return log

    async def serves(self, deadline: float = 60.0) -> None:
        """Until the guest's web server and its write log answer, from the disk.  Raises DeadlineError."""
        until = time.monotonic() + deadline
        while True:
            with contextlib.suppress(ProcessError, DeadlineError):
                await self.client.get(SMALL_PATH, "--connect-timeout", "0.3", deadline=_STATUS_SECONDS)
                nobody = ["busybox", "nc", "-w", "1", GUEST_IPV4, str(LOG_PORT)]  # the log hangs up on who has no name
                (await self.client.run(*nobody, stdin=b"", deadline=_STATUS_SECONDS)).check()
                return
            if time.monotonic() >= until:
                ends = "\n".join(f"{host}: {self.console(host)[-1500:]}" for host in HOSTS)
                raise DeadlineError(f"the guest doesn't answer after {deadline:g} s; consoles end:\n{ends}")
            await asyncio.sleep(0.1)

    async def guest_power(self, wish: Literal["reboot", "poweroff"]) -> None:
        """Have the guest do that, from inside; doesn't wait for its end.  Raises ProcessError: it doesn't listen."""
        argv = ["busybox", "nc", GUEST_IPV4, str(POWER_PORT)]
        with contextlib.suppress(DeadlineError):  # the guest is gone, and its connection never closed
            done = await self.client.run(*argv, stdin=f"{wish}\n".encode(), deadline=_POWER_SECONDS)
            if b"refused" in done.stderr:
                done.check()

    async def monitor(self, host: Host) -> Monitor:
        """The operator's own QMP monitor of the QEMU there; it serves one at a time.  Raises DeadlineError."""
        return await Monitor.connect(self.hosts[host].operator, f"QEMU's monitor ({host})")

    def console(self, host: Host) -> str:
        """What the guest wrote to its console on that host."""
        path = self.hosts[host].console
        return path.read_text(errors="replace") if path.exists() else ""

    async def verify(
        self, host: Host, logs: Sequence[tuple[str, int, int]] = (), *, overlays: Sequence[Path] = ()
    ) -> DiskFindings:
        """Examine that host's image, with the *overlays* that still count on top of it, the topmost first.

        No QEMU may have them open.  *logs*: of WriteLog.end().  Raises GuestError if it can't be read.
        """
        return await verify([*overlays, self.hosts[host].image], self.disk, logs, scratch=self.directory)

    async def run_in_host(self, host: Host, name: str, argv: Sequence[str], *, qemu: bool = False) -> Daemon:
        """Start any program there; it dies with the host, or with the bed.  *qemu*: with what one needs under TCG."""
        self._started += 1
        log = self.directory / f"{name}-{host}-{self._started}.log"
        environment = self.acceleration.environment if qemu else None
        return await Daemon.start(f"{name} ({host})", argv, log, namespace=self.network.hosts[host], env=environment)

    def add_tap(self, host: Host, name: str) -> None:
        """A TAP on the host's bridge for a QEMU without a node.  Raises NetworkError."""
        batch(
            self.network.hosts[host],
            [
                f"tuntap add dev {name} mode tap",
                f"link set {name} addrgenmode none master {CLIENT_BRIDGE}",
                f"link set {name} up",
            ],
        )

    def machine_options(self, host: Host) -> list[str]:
        """Of a QEMU there: the machine, its console and the operator's monitor; no disk and no network card."""
        console = ["-serial", f"file:{self.hosts[host].console}"]
        monitor = ["-chardev", f"socket,id=operator,path={self.hosts[host].operator},server=on,wait=off"]
        monitor += ["-mon", "chardev=operator,mode=control"]
        return [*guest_options(self.guest, self.acceleration, _GUEST_NAMES[host]), *console, *monitor]

    # ------------------------------------------------------------------ inside

    async def _start(self) -> None:
        options = self.options
        remove_leftovers()
        self.guest, self.acceleration = await asyncio.gather(
            asyncio.to_thread(build_disk_guest),
            asyncio.to_thread(choose_acceleration, allow_kvm=options.allow_kvm, shim=options.shim),
        )
        name = new_name()
        self.directory = Path(tempfile.gettempdir()) / name
        self.directory.mkdir(mode=0o700)
        self._stack.callback(self._remove_directory)
        self.hosts = {host: NodePaths(directory=self.directory / host) for host in HOSTS}
        await self._make_directories()
        self.network = self._stack.enter_context(node_network(name, arbiter=options.arbiter, impaired=options.impaired))
        self.config = self.directory / "pair.toml"
        self._supervisors = {host: self._supervisor(host) for host in HOSTS}
        self.processes = {host: HostProcesses(namespace) for host, namespace in self.network.hosts.items()}
        self._stack.push_async_callback(self._end_hosts)
        relays: dict[Wire, Relay] = {}
        for wire, namespace in self.network.relays.items():
            left, right = f"packet:{RELAY_LEFT}", f"packet:{RELAY_RIGHT}"
            relays[wire] = await Relay.start(wire, namespace, left=left, right=right, seed=f"{options.seed} {wire}")
            self._stack.push_async_callback(relays[wire].close)
        self.relays = relays
        if options.arbiter:
            await self.start_arbiter()
        self.client = Client(self.network.client)
        self._stack.push_async_callback(self.client.close)
        self.watch = await OwnerWatch.start(self.network, interval=options.watch_interval)
        self._stack.push_async_callback(self.watch.close)
        node_toml(
            self.config,
            options.file,
            self.hosts,
            nic=options.nic,
            options={host: self.machine_options(host) for host in HOSTS},
            attach=options.attach,
        )

    async def _make_directories(self) -> None:
        options = self.options
        for paths in self.hosts.values():
            paths.directory.mkdir()
            if options.host_mebibytes is not None:
                size = f"size={options.host_mebibytes}m,mode=0700"
                program(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(paths.directory)])
            paths.state.mkdir()
        self.disk = await asyncio.to_thread(
            make_disk,
            self.directory / "image.qcow2",
            mebibytes=options.disk_mebibytes,
            large_bytes=options.large_bytes,
        )
        for host in sorted(options.images):
            await asyncio.to_thread(shutil.copyfile, self.disk.path, self.hosts[host].image)

    def _supervisor(self, host: Host) -> Supervisor:
        return Supervisor(
            f"coloproxy node ({host})",
            [*self.options.command, "-c", str(self.config), "--host", host],
            namespace=self.network.hosts[host],
            log=self.directory / f"coloproxy-{host}.log",  # not in the host's file system, which may be full
            mark=self._mark(host),
            restart_seconds=self.options.restart_seconds,
        )

    async def _reap(self, host: Host) -> None:
        daemon = self._supervisors[host].daemon
        if daemon is not None:
            await daemon.kill()

    async def _end_hosts(self) -> None:
        for host in HOSTS:
            await self._supervisors[host].let_go()
        for host in HOSTS:
            await self.processes[host].kill()
            await self._reap(host)

    def _mark(self, host: Host) -> Path:
        return self.directory / f"fenced-{host}"

    def _ballast(self, host: Host) -> Path:
        return self.hosts[host].directory / "ballast"

    def _remove_directory(self) -> None:
        if self.options.keep_logs is not None:
            self.options.keep_logs.mkdir(parents=True, exist_ok=True)
            for pattern in ("*.log", "*.jsonl", "*.toml", "state.json"):
                for path in self.directory.rglob(pattern):
                    name = "-".join(path.relative_to(self.directory).parts)
                    shutil.copy(path, self.options.keep_logs / name)
        remove_mounts(self.directory)
        shutil.rmtree(self.directory, ignore_errors=True)


async def start_plain_vm(bed: NodeBed, host: Host, *, tap: str = "tap0") -> Daemon:
    """The guest on that host's image by a QEMU alone, without a node: for tests of the bed.  Raises NetworkError."""
    if not bed.network.has_interface(bed.network.hosts[host], tap):
        bed.add_tap(host, tap)
    device = "e1000" if bed.options.nic == "e1000" else "virtio-net-pci"
    argv = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-accel", bed.acceleration.name]
    argv += bed.machine_options(host)
    argv += ["-blockdev", f"driver=file,node-name=pf0,filename={bed.hosts[host].image}"]
    argv += ["-blockdev", "driver=qcow2,node-name=pd0,file=pf0", "-device", "virtio-blk-pci,drive=pd0"]
    argv += ["-netdev", f"tap,id=hn0,ifname={tap},script=no,downscript=no,vhost=off,vnet_hdr=off"]
    argv += ["-device", f"{device},netdev=hn0,mac={GUEST_MAC}"]
    return await bed.run_in_host(host, "qemu", argv, qemu=True)
