# SPDX-License-Identifier: Apache-2.0
"""The TAP attach: coloproxy.run's parts in the role of the moment, and how one follows another.

A PrimaryVm also serves a VM that is alone: without a link its output passes. Connections that must be translated go
from one to the next, and to a file for a coloproxy that dies while its QEMU lives on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from coloproxy import vmm
from coloproxy.address import Address
from coloproxy.errors import ColoproxyError, DeviceError, MisuseError, TableError
from coloproxy.journal import Journal
from coloproxy.pair.qemu import network_arguments
from coloproxy.path.session import Dialer, Listener
from coloproxy.path.tls import Keys
from coloproxy.run.estate import Estate, load_table, save_table
from coloproxy.run.primary import PrimaryVm
from coloproxy.run.secondary import SecondaryVm

from .setting import Setting
from .tasks import whole

log = logging.getLogger(__name__)


class TapPlane:
    """A Plane. `vm` is what runs now; None: nothing does, and the TAPs aren't there."""

    def __init__(self, setting: Setting, keys: Keys | None, journal: Journal, failed: Callable[[str], None]) -> None:
        self._setting = setting
        self._keys = keys
        self._journal = journal
        self._failed = failed
        self._running: asyncio.Task[None] | None = None
        self._listener: Listener | None = None
        self._table = setting.directory / "connections"
        self.vm: PrimaryVm | SecondaryVm | None = None
        self._lease: int | None = None

    # ------------------------------------------------------------------- QEMU

    def qemu_arguments(self, role: vmm.Role) -> list[str]:
        pair = self._setting.in_role("primary")
        return network_arguments(pair, pair.vms[0])

    async def before_launch(self) -> None:
        """Our TAPs are QEMU's no business."""

    # ------------------------------------------------------------------ roles

    async def serve_alone(self) -> None:
        """A PrimaryVm that is not linked, made if there is none. A survivor's path, which translates, stays."""
        if self._is_over(self.vm):
            await self.end()
        if self.vm is None:
            vm = self._make_primary()
            self._inherit(vm)
            await self._start(vm)
        self._unmute()

    async def become_primary(self) -> None:
        """What was before it leaves its connections and TAPs."""
        old, estate = self.vm, None
        if isinstance(old, PrimaryVm) and old.state == "unprotected" and old.dialer is None:
            vm = old
        else:
            if old is not None and not self._is_over(old):
                estate = await self._retire(old)
            elif old is not None:
                await self.end()
            try:
                vm = self._make_primary(in_colo=old is None)  # nothing runs: a predecessor has left us the pair
                await self._take_estate(vm, estate)
            except BaseException:
                if estate is not None:
                    estate.close()
                raise
        listens = self._setting.in_role("primary").link.secondary
        vm.dial(Dialer(Address(True, listens.host, listens.port), self._keys, vm.endpoint()))
        if vm is not old:
            await self._start(vm)
        self._unmute()

    async def become_secondary(self) -> None:
        """Its TAPs are closed."""
        await self.end()
        self._table.unlink(missing_ok=True)  # of an earlier life; what is there from now on is of the takeover to come
        pair = self._setting.in_role("secondary")
        vm = SecondaryVm(pair, pair.vms[0], self._journal, self._failed)
        self._listener = Listener(pair.link.secondary, self._keys, [vm.endpoint()])
        try:
            await self._listener.start()
            await self._start(vm)
        except BaseException:
            await self.end()
            raise

    async def forget(self) -> None:
        await self.end()
        self._table.unlink(missing_ok=True)

    @property
    def knows_connections(self) -> bool:
        """A path that was not there from the last checkpoint on does not, and would give clients wrong bytes.

        When there is none, an earlier one may have left them in its file.
        """
        if isinstance(self.vm, SecondaryVm):
            return self.vm.epochs > 0 or self.vm.state == "taken-over"
        if self.vm is not None:
            return True
        try:
            return load_table(self._table) is not None
        except (OSError, TableError) as error:
            log.warning("%s: %s", self._table, error)
            return False

    async def break_off(self) -> None:
        """Nothing: QEMU's socket is this process's, which always reads."""

    async def take_over(
        self, reason: str, run_alone: Callable[[], Awaitable[None]], before_heard: Callable[[], Awaitable[None]]
    ) -> None:
        if isinstance(self.vm, SecondaryVm):

            async def keep() -> None:
                await asyncio.gather(asyncio.to_thread(self._keep_connections), before_heard())

            await self.vm.take_over(reason, force=True, tell_vmm=False, vmm=run_alone, keep=keep)
        else:  # coloproxy was away in the middle of it, and has left them in the file
            await run_alone()
            await before_heard()
            await self.serve_alone()
        if self._listener is not None:
            listener, self._listener = self._listener, None
            await listener.close()

    async def go_alone(self, reason: str) -> None:
        vm = self.vm
        if isinstance(vm, PrimaryVm) and vm.dialer is not None and vm.state in ("protected", "unprotected"):
            await vm.go_alone(reason, tell_vmm=False)

    # ------------------------------------------------------------------- TAPs

    def lease(self, until_ns: int | None) -> None:
        if until_ns == self._lease:
            return
        self._lease = until_ns
        if isinstance(self.vm, PrimaryVm):
            self.vm.path.lease(until_ns)

    def mute(self) -> None:
        self._open_or_close(is_open=False)

    def _unmute(self) -> None:
        self._open_or_close(is_open=True)

    def _open_or_close(self, *, is_open: bool) -> None:
        if self.vm is None or (is_open and isinstance(self.vm, SecondaryVm) and self.vm.state != "taken-over"):
            return
        for wires in self.vm.nics:
            if wires.is_open != is_open:
                try:
                    wires.set_open(is_open=is_open)
                except DeviceError as error:  # a lost one becomes so when it is back
                    log.warning("%s", error)

    # -------------------------------------------------------------------- end

    async def end(self) -> None:
        """TAPs gone, too. Whole: nobody else could close those of a path that was left half-way."""
        await whole(self._end())

    async def _end(self) -> None:
        if self._listener is not None:
            listener, self._listener = self._listener, None
            await listener.close()
        vm, self.vm = self.vm, None
        await self._stop_running()
        if vm is not None:
            await vm.close()

    async def let_go(self) -> None:
        self._keep_connections()
        with contextlib.suppress(ColoproxyError):
            await self.end()

    def _keep_connections(self) -> None:
        """For a coloproxy that comes after this one. An older file does no harm, so trouble is only told."""
        try:
            if isinstance(self.vm, PrimaryVm) or (self.vm is not None and self.vm.state == "taken-over"):
                save_table(self._table, self.vm.hand_over())
        except (OSError, ColoproxyError) as error:
            log.warning("%s: connections that are translated can't be kept: %s", self._table, error)

    # ----------------------------------------------------------------- status

    @property
    def link_up(self) -> bool:
        return self.vm is None or self.vm.link_up

    def checkpoint(self, reason: str) -> asyncio.Future[None]:
        if not isinstance(self.vm, PrimaryVm):
            raise MisuseError("checkpoints are the primary's: ask its host")
        return self.vm.checkpoint(reason)

    def status(self) -> dict[str, Any] | None:
        return None if self.vm is None else self.vm.status()

    # ----------------------------------------------------------------- inside

    def _make_primary(self, *, in_colo: bool = False) -> PrimaryVm:
        pair = self._setting.in_role("primary")
        return PrimaryVm(pair, pair.vms[0], self._journal, self._failed, hold_when_over=True, in_colo=in_colo)

    @staticmethod
    def _is_over(vm: PrimaryVm | SecondaryVm | None) -> bool:
        """It has nothing to hand over: a secondary that never took over, or a path that stood down."""
        if isinstance(vm, SecondaryVm):
            return vm.state != "taken-over"
        return vm is not None and vm.state == "stood-down"

    def _inherit(self, vm: PrimaryVm) -> None:
        try:
            found = load_table(self._table)
        except (OSError, TableError) as error:
            log.warning("%s: connections that were translated are lost: %s", self._table, error)
            return
        if found is not None:
            table, age = found
            try:
                vm.inherit(table, age=age)
            except TableError as error:
                log.warning("%s: connections that were translated are lost: %s", self._table, error)

    async def _take_estate(self, vm: PrimaryVm, estate: Estate | None) -> None:
        if estate is None:
            self._inherit(vm)
        else:
            vm.inherit(estate.table)
            vm.adopt(estate.taps)

    async def _retire(self, old: PrimaryVm | SecondaryVm) -> Estate:
        """Whole, as end(). The connections of one that nobody takes are in their file."""
        left: list[Estate] = []

        async def retire() -> None:
            self.vm = None
            await self._stop_running()
            left.append(await old.give_up())

        try:
            await whole(retire())
        except asyncio.CancelledError:
            for estate in left:
                estate.close()
            raise
        return left[0]

    async def _start(self, vm: PrimaryVm | SecondaryVm) -> None:
        try:
            await vm.open()
        except BaseException:  # ended in the middle of it: its TAPs would be in the way of whatever comes next
            await vm.close()
            raise
        if isinstance(vm, PrimaryVm):
            vm.path.lease(self._lease)
        self.vm = vm
        self._running = asyncio.create_task(self._run(vm), name=f"data path of {vm.vm.name}")
        await asyncio.sleep(0)  # it begins: devices are attached

    async def _run(self, vm: PrimaryVm | SecondaryVm) -> None:
        try:
            await vm.run()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            log.debug("data path", exc_info=error)
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            self._failed(str(error) if isinstance(error, ColoproxyError) else repr(error))

    async def _stop_running(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
