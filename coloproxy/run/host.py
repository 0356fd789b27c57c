# SPDX-License-Identifier: Apache-2.0
"""`coloproxy run`: the process beside one host's VMs. Opens what needs rights, gives the rights up, then serves."""

from __future__ import annotations

import asyncio
import encodings.idna  # noqa: F401  # getaddrinfo's: the user that we become may not be able to read Python's files
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from coloproxy.address import Address
from coloproxy.control.protocol import REFUSED, wait_of
from coloproxy.control.server import ControlServer
from coloproxy.errors import ColoproxyError, ConfigError, ControlRefused, MisuseError, TableError
from coloproxy.journal import Journal
from coloproxy.metrics import MetricsServer
from coloproxy.pair import Pair, Role, load
from coloproxy.path.session import Dialer, Listener
from coloproxy.path.tls import Keys, read_psk

from .changes import changes, live_only
from .checkpoints import until_committed
from .estate import load_table, save_table
from .primary import PrimaryVm
from .privileges import DEFAULT_KEEP, drop, identity
from .secondary import SecondaryVm
from .service import Service

log = logging.getLogger(__name__)

CLEAN, FAILED = 0, 1
ALL: Mapping[str, Any] = MappingProxyType({})
"""Arguments of a command: nothing is chosen."""


def keys_of(pair: Pair) -> Keys | None:
    """What proves to the peer who we are; None: plain text. Raises MisuseError: a file that can't be used."""
    link = pair.link
    if link.security == "psk" and link.psk_file is not None:
        return Keys.psk(pair.name, read_psk(Path(link.psk_file)))
    if link.security == "certificates" and link.certificate and link.key and link.ca:
        return Keys.certificates(Path(link.certificate), Path(link.key), Path(link.ca), link.peer_name)
    return None


class Host:
    """`await run()` returns the exit code. `ready` is called when frames move.

    state: a directory for the connections of VMs that have taken over, from a secondary to the primary after it.
    """

    def __init__(
        self,
        path: Path,
        role: Role,
        pair: Pair,
        ready: Callable[[], None] = lambda: None,
        state: Path | None = None,
    ) -> None:
        self._path = path
        self._role: Role = role
        self._pair = pair
        self._ready = ready
        self._state = state
        self._journal = Journal(pair.process.json_events)
        kind = PrimaryVm if role == "primary" else SecondaryVm
        self.vms: list[PrimaryVm | SecondaryVm] = [kind(pair, vm, self._journal, self._fail) for vm in pair.vms]
        self._stop = asyncio.Event()
        self._failure: str | None = None
        self._began = time.monotonic_ns()
        self._service = Service()
        self._listener: Listener | None = None
        self._dialers: list[Dialer] = []
        metrics = pair.process.metrics
        self._metrics = None if metrics is None else MetricsServer(metrics, self.status)

    # ------------------------------------------------------------------ life

    async def run(self) -> int:
        """Until SIGINT or SIGTERM (0), or something failed for good (1). Raises ColoproxyError at the start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_by_signal)
        tasks: list[asyncio.Task[None]] = []
        server = ControlServer(
            self._pair.control_socket, self._handlers(), mode=self._pair.control.mode, group=self._pair.control.group
        )
        try:
            keys = keys_of(self._pair)
            if self._pair.process.user is not None:
                identity(self._pair.process.user, self._pair.process.group)  # before anything is made
            if keys is None:
                log.warning("link: PLAIN TEXT: anybody on its way can read, forge and replay all that the VMs say")
            for vm in self.vms:
                self._inherit(vm)
                await vm.open()
            await server.start()
            await self._open_link(keys)
            if self._metrics is not None:
                self._metrics.open()
            self._give_up_rights()
            if self._metrics is not None:
                self._metrics.start()
            for vm in self.vms:
                tasks.append(self._spawn(vm.run(), vm.vm.name))
            tasks.append(self._spawn(self._service.watch(), "watchdog"))
            if self._pair.process.stats_interval is not None:
                tasks.append(self._spawn(self._print_stats(), "statistics"))
            await asyncio.sleep(0)  # the VMs' paths start
            self._journal.write("started", {"pair": self._pair.name, "role": self._role})
            log.info("%s of pair %s is up; control socket %s", self._role, self._pair.name, self._pair.control_socket)
            self._service.ready(f"{self._role} of {self._pair.name}")
            self._ready()
            await self._stop.wait()
            log.info("stopping")
            self._service.stopping()
            for vm in self.vms:
                self._keep_connections(vm)
        finally:
            await server.stop()
            await self._end(tasks)
        return CLEAN if self._failure is None else FAILED

    def _connections_of(self, vm: PrimaryVm | SecondaryVm) -> Path | None:
        return None if self._state is None else self._state / f"{vm.vm.name}.connections"

    def _inherit(self, vm: PrimaryVm | SecondaryVm) -> None:
        """A primary: what the one before on this host has left, if that was a survivor. Raises TableError."""
        path = self._connections_of(vm)
        if path is None or not isinstance(vm, PrimaryVm):
            return
        try:
            found = load_table(path)
        except OSError as error:
            raise TableError(f"{path}: {error.strerror}") from error
        if found is not None:
            table, age = found
            vm.inherit(table, age=age)

    def _keep_connections(self, vm: PrimaryVm | SecondaryVm) -> None:
        """For a coloproxy that comes after this one. An older file does no harm, so trouble with it is only told."""
        path = self._connections_of(vm)
        if path is None or (isinstance(vm, SecondaryVm) and vm.state != "taken-over"):
            return
        try:
            save_table(path, vm.hand_over())
        except OSError as error:
            log.log(logging.ERROR, "%s: connections can't be kept: %s: %s", vm.vm.name, path, error.strerror)

    async def _open_link(self, keys: Keys | None) -> None:
        link = self._pair.link
        if self._role == "secondary":
            self._listener = Listener(link.secondary, keys, [vm.endpoint() for vm in self.vms])
            await self._listener.start()
            return
        address = Address(connect=True, host=link.secondary.host, port=link.secondary.port)
        for vm in self.vms:
            if isinstance(vm, PrimaryVm):
                vm.dialer = Dialer(address, keys, vm.endpoint(), source=link.primary)
                self._dialers.append(vm.dialer)

    def _give_up_rights(self) -> None:
        process = self._pair.process
        if process.user is None:
            return
        packets = any(nic.vm.kind == "packet" for vm in self._pair.vms for nic in vm.nics)
        drop(identity(process.user, process.group), DEFAULT_KEEP | ({"NET_RAW"} if packets else set()))
        log.info("now user %s", process.user)

    async def _end(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._metrics is not None:
            await self._metrics.close()
        if self._listener is not None:
            await self._listener.close()
        for vm in self.vms:
            await vm.close()
        self._service.close()
        self._journal.write("stopped", {"failure": self._failure})
        self._journal.close()

    def _spawn(self, work: Awaitable[None], name: str) -> asyncio.Task[None]:
        """A task whose failure ends the process."""

        async def watched() -> None:
            try:
                await work
            except* ColoproxyError as group:
                self._fail(f"{name}: {_first(group)}")
            except* Exception as group:
                log.debug("%s", name, exc_info=group)
                self._fail(f"{name}: {_first(group)!r}")

        return asyncio.get_running_loop().create_task(watched(), name=name)

    def _fail(self, reason: str) -> None:
        if self._failure is None:
            self._failure = reason
            log.error("%s", reason)
        self._stop.set()

    async def _print_stats(self) -> None:
        while (interval := self._pair.process.stats_interval) is not None:
            await asyncio.sleep(interval / 1e9)
            for vm in self.vms:
                status = vm.status()
                self._journal.write("stats", status)
                log.info("%s", _one_line(status))

    # --------------------------------------------------------------- control

    def _handlers(self) -> dict[str, Callable[[Mapping[str, Any]], Awaitable[object]]]:
        return {
            "status": self._do_status,
            "checkpoint": self._do_checkpoint,
            "failover": self._do_failover,
            "alone": self._do_alone,
            "reload": self._do_reload,
        }

    def _chosen(self, arguments: Mapping[str, Any]) -> list[PrimaryVm | SecondaryVm]:
        """The VMs a command is about: one by name, or all."""
        name = arguments.get("vm")
        chosen = [vm for vm in self.vms if name is None or vm.vm.name == name]
        if not chosen:
            raise ControlRefused(
                REFUSED, f"there is no VM {name!r}; there are {', '.join(vm.vm.name for vm in self.vms)}"
            )
        return chosen

    async def _do_status(self, arguments: Mapping[str, Any]) -> object:
        return self.status(arguments)

    def status(self, arguments: Mapping[str, Any] = ALL) -> dict[str, Any]:
        """As `coloproxy ctl status` has it."""
        return {
            "pair": self._pair.name,
            "role": self._role,
            "state": _summary([vm.state for vm in self.vms]),
            "pid": os.getpid(),
            "uptime_s": round((time.monotonic_ns() - self._began) / 1e9, 3),
            "refusals": dict(self._listener.refusals) if self._listener is not None else {},
            "journal_lost": self._journal.lost,
            "vms": [vm.status() for vm in self._chosen(arguments)],
        }

    async def _do_checkpoint(self, arguments: Mapping[str, Any]) -> object:
        wait_s, vms = wait_of(arguments), []
        for vm in self._chosen(arguments):
            if not isinstance(vm, PrimaryVm):
                raise ControlRefused(REFUSED, "checkpoints are the primary's: ask its host")
            vms.append(vm)
        epochs = [vm.checkpoint(_reason(arguments)) for vm in vms]
        if wait_s is None:
            return {"asked": [vm.vm.name for vm in vms]}
        await until_committed(epochs, wait_s)
        return {"committed": [vm.vm.name for vm in vms]}

    async def _do_failover(self, arguments: Mapping[str, Any]) -> object:
        vms = self._chosen(arguments)
        for vm in vms:
            if not isinstance(vm, SecondaryVm):
                raise ControlRefused(
                    REFUSED, "this is the primary: failover is for the secondary, alone for the primary"
                )
            await vm.take_over(
                _reason(arguments),
                force=arguments.get("force") is True,
                tell_vmm=arguments.get("network_only") is not True,
            )
            self._keep_connections(vm)
        return {"taken_over": [vm.vm.name for vm in vms]}

    async def _do_alone(self, arguments: Mapping[str, Any]) -> object:
        vms = self._chosen(arguments)
        for vm in vms:
            if not isinstance(vm, PrimaryVm):
                raise ControlRefused(
                    REFUSED, "this is the secondary: alone is for the primary, failover for the secondary"
                )
            await vm.go_alone(_reason(arguments), tell_vmm=arguments.get("network_only") is not True)
        return {"alone": [vm.vm.name for vm in vms]}

    async def _do_reload(self, arguments: Mapping[str, Any]) -> object:
        return {"changed": self._reload()}

    def _reload(self) -> list[str]:
        """Takes over what can be changed while frames move. Raises ControlRefused: all stays as it was."""
        try:
            pair = load(self._path, self._role)
            keys = keys_of(pair)
        except ConfigError as error:
            raise ControlRefused(REFUSED, str(error)) from error
        changed = changes(self._pair, pair)
        if fixed := [key for key in changed if not live_only(key)]:
            raise ControlRefused(REFUSED, f"can't be changed while it runs, restart for it: {', '.join(fixed)}")
        self._service.reloading()
        self._pair = pair
        for vm, fresh in zip(self.vms, pair.vms, strict=True):
            vm.reload(pair, fresh)
        for dialer in self._dialers:
            dialer.keys = keys
        if self._listener is not None:
            self._listener.keys = keys
        logging.getLogger().setLevel(pair.process.log_level.upper())
        self._service.ready(f"{self._role} of {pair.name}")
        log.info("reloaded: %s", ", ".join(changed) or "nothing has changed")
        return changed

    def _reload_by_signal(self) -> None:
        try:
            self._reload()
        except (ControlRefused, MisuseError) as error:
            log.log(logging.ERROR, "reload: %s", error)


def _reason(arguments: Mapping[str, Any]) -> str:
    reason = arguments.get("reason")
    return reason if isinstance(reason, str) and reason else "the operator's wish"


def _summary(states: list[str]) -> str:
    return states[0] if len(set(states)) == 1 else "mixed"


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _one_line(status: Mapping[str, Any]) -> str:
    link, path = status["link"], status["path"]
    text = f"{status['name']}: {status['state']}, link {link['state']}, mirrored {path['mirrored']}"
    if "comparator" in status:
        n = status["comparator"]
        text += (
            f", released {sum(n['released'].values())}, held {n['held_frames'][0]}, checkpoints {status['checkpoints']}"
        )
    else:
        text += f", output {path['output']}, epoch {status['epoch']}"
    return text
