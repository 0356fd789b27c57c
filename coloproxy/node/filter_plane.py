# SPDX-License-Identifier: Apache-2.0
"""The filter attach: QEMU owns the TAP, its net filters carry the frames, the comparator of the primary runs here.

A VM that is alone has no filter but the rew0 of its takeover, and needs no coloproxy to serve. rew0, which translates
for clients, is QEMU's: it lives as long as the VM, whatever becomes of us.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

from coloproxy import vmm
from coloproxy.address import Address
from coloproxy.comparing import Comparing
from coloproxy.disks import Monitor
from coloproxy.engine_events import Port
from coloproxy.errors import DeviceError, MisuseError, PeerError, QmpError, VmmError
from coloproxy.journal import Journal
from coloproxy.options import CompareOptions
from coloproxy.pair.qemu import LOOPBACK, FilterHosts, card_arguments, secondary_filters
from coloproxy.reports import Report, Trouble
from coloproxy.rules import NO_RULES, load_rules
from coloproxy.run import devices, told
from coloproxy.run.checkpoints import Checkpoints, engine_status
from coloproxy.run.kept_tap import KeptTap
from coloproxy.vmm.detached import Account

from . import filters
from .facts import other
from .plane import FindQemu
from .setting import Setting
from .tasks import whole

log = logging.getLogger(__name__)

CONNECT_S: Final = 5.0
"""For the secondary's QEMU to connect: it tries once a second."""
RECONNECT_S: Final = 4.0
"""After our own restart. Then a secondary that is not there is one that is lost."""
DRAIN_S: Final = 0.5
_MS: Final = 1_000_000
_ANNOUNCE: Final = {"initial": 50, "max": 550, "rounds": 5, "step": 50}

_Role = Literal["none", "alone", "primary", "secondary"]


class FilterPlane:
    """A Plane. What it tells is as the TAP attach tells it, as far as there are the same things."""

    def __init__(self, setting: Setting, journal: Journal, failed: Callable[[str], None], qemu: FindQemu) -> None:
        self._setting = setting
        self._journal = journal
        self._failed = failed
        self._qemu = qemu
        pair = setting.in_role("primary")
        self._pair, self._vm = pair, pair.vms[0]
        card = self._vm.nics[0].tap
        self._tap = KeptTap(card.name, card.bridge)
        self._rules = NO_RULES if pair.compare.rules is None else load_rules(pair.compare.rules)
        self._role: _Role = "none"
        self._since = time.monotonic()
        self._comparing: Comparing | None = None
        self._history = Checkpoints(time.monotonic_ns())
        self._went_alone = False
        self._was_linked = False
        self._is_open = False
        self._muted = False
        self._lease: int | None = None
        self._told_state = "unprotected"

    # -------------------------------------------------------------------- QEMU

    def qemu_arguments(self, role: vmm.Role) -> list[str]:
        made = card_arguments(self._vm)
        if role == "secondary":
            here, peer = self._setting.host, other(self._setting.host)
            hosts = FilterHosts(self._setting.address(peer), self._setting.address(here))
            made += secondary_filters(self._vm, hosts)
        return made

    async def before_launch(self) -> None:
        user = self._setting.node.qemu.user
        owner = None if user is None else Account.named(user).uid
        self._is_open = False
        self._tap.make(mtu=self._vm.nics[0].tap.mtu, owner=owner)

    # ------------------------------------------------------------------- roles

    async def serve_alone(self) -> None:
        qemu = self._need_qemu()
        if self._comparing is not None:
            await self._drain(qemu)
        await filters.remove_primary(qemu)
        await self._end_comparing()
        self._become("alone")

    async def become_primary(self) -> None:
        qemu = self._need_qemu()
        inherited = await filters.are_complete(qemu)  # our predecessor has left us a pair in COLO, or what was one
        comparing = await self._begin_comparing(inherited=inherited)
        if not inherited:
            try:
                async with asyncio.timeout(CONNECT_S):
                    await comparing.until_connected(Port.SECONDARY_IN)
            except TimeoutError as error:
                raise PeerError(f"the secondary's QEMU has not connected within {CONNECT_S:g} s") from error
            await filters.add_primary(qemu, self._places(), CONNECT_S)
        self._become("primary")

    async def become_secondary(self) -> None:
        await self._end_comparing()
        self._become("secondary")

    async def break_off(self) -> None:
        """A primary that was stopped does not read what our guest says, nor a secondary what clients send."""
        for chardev in ("red1", "mirror0"):
            await filters.yank(self._need_qemu(), chardev)

    async def take_over(
        self, reason: str, run_alone: Callable[[], Awaitable[None]], before_heard: Callable[[], Awaitable[None]]
    ) -> None:
        qemu = self._need_qemu()
        await run_alone()
        await filters.remove_secondary(qemu)
        await before_heard()
        self._become("alone")
        with contextlib.suppress(QmpError):
            await qemu.execute("announce-self", _ANNOUNCE)
        self._tell(told.TookOver(reason, 1))  # its MAC, by QEMU

    async def go_alone(self, reason: str) -> None:
        if self._role == "primary" and self._comparing is not None and not self._went_alone:
            self._muted = False
            self._apply()
            self._comparing.alone()  # first: QEMU's main loop may wait for room in compare0
            self._went_alone = True
            self._history.over(reason)
            self._tell(told.WentAlone(reason))
        await filters.remove_mirror(self._need_qemu())  # an earlier coloproxy may have left it, and QEMU hang in it

    async def forget(self) -> None:
        await self.end()

    async def end(self) -> None:
        self._role, self._muted, self._is_open = "none", False, False
        with contextlib.suppress(DeviceError):
            self._tap.close()
        await self._end_comparing()
        try:
            await devices.apart(self._tap.remove)
        except DeviceError as error:  # it is closed
            log.warning("%s", error)

    async def let_go(self) -> None:
        """The TAP and the filters stay: a VM that is alone serves on, one that is protected waits for our successor."""
        self._role = "none"
        await self._end_comparing()

    # --------------------------------------------------------------- who hears

    def lease(self, until_ns: int | None) -> None:
        if until_ns != self._lease:
            self._lease = until_ns
            self._apply()

    def mute(self) -> None:
        self._muted = True
        self._apply()

    # ------------------------------------------------------------------ status

    @property
    def knows_connections(self) -> bool:
        return True  # rew0 does

    @property
    def link_up(self) -> bool:
        """The primary's word counts: the secondary would see no more than that its socket is open."""
        if self._role != "primary" or self._comparing is None:
            return True
        connected = self._comparing.connected(Port.SECONDARY_IN)
        self._was_linked |= connected
        return connected or (not self._was_linked and time.monotonic() - self._since < RECONNECT_S)

    def checkpoint(self, reason: str) -> asyncio.Future[None]:
        if self._role != "primary" or self._comparing is None:
            raise MisuseError("checkpoints are the primary's: ask its host")
        begins = self._history.next()
        self._comparing.want(reason)
        return begins

    def status(self) -> dict[str, Any] | None:
        if self._role == "none":
            return None
        comparing, card = self._comparing, self._vm.nics[0]
        made: dict[str, Any] = {
            "name": self._vm.name,
            "attach": "filters",
            "state": self._state,
            "nics": [{"name": card.name, "tap": card.tap.name, "bridge": card.tap.bridge, "open": self._is_open}],
        }
        if comparing is None:
            return made
        link = {"state": "up" if comparing.connected(Port.SECONDARY_IN) else "down"}
        made |= {"link": link, **self._history.status(), **engine_status(comparing.counters())}
        return {**made, "checkpoint_policy": comparing.policy()}

    @property
    def _state(self) -> str:
        if self._role == "secondary":
            return "standby"
        if self._comparing is None or self._went_alone:
            return "alone"
        return "protected" if self._comparing.protected() else "unprotected"

    # ----------------------------------------------------------------- inside

    def _need_qemu(self) -> Monitor:
        qemu = self._qemu()
        if qemu is None:
            raise VmmError("there is no QEMU")
        return qemu

    def _become(self, role: _Role) -> None:
        if role != self._role:
            self._role, self._since, self._was_linked = role, time.monotonic(), False
            self._is_open = False  # as far as is known: it may be an earlier coloproxy's
        self._muted = False
        self._apply()

    def _apply(self) -> None:
        """Who may hear what the VM says. Without a comparator there is no lease but the bridge."""
        if self._comparing is not None:
            self._comparing.lease(0 if self._muted else self._lease)
        speaks = self._role in ("alone", "primary") and not self._muted
        if self._comparing is None and self._lease is not None:
            speaks = False
        try:
            if not speaks:
                self._is_open = False
                self._tap.close()
            elif not self._is_open:
                self._tap.open()
                self._is_open = True
        except DeviceError as error:
            self._tell(Trouble(str(error)))

    def _places(self) -> filters.Places:
        ports, peer = self._vm.filters, self._setting.address(other(self._setting.host))
        return filters.Places(peer, ports.mirror, ports.primary_in, ports.outdev, self._vm.nics[0].tap.vnet_hdr)

    async def _begin_comparing(self, *, inherited: bool) -> Comparing:
        if self._comparing is not None and not self._went_alone:
            return self._comparing
        await self._end_comparing()
        self._history = Checkpoints(time.monotonic_ns())
        comparing = Comparing(
            self._options(),
            self._journal,
            self._hear,
            self._failed,
            name=self._vm.name,
            hold_when_over=True,
            in_colo=inherited,
            silence=self._pair.link.timeout,
        )
        try:
            await comparing.open()
        except BaseException:
            comparing.close()
            raise
        comparing.lease(self._lease)
        comparing.start()
        self._comparing = comparing
        return comparing

    async def _drain(self, qemu: Monitor) -> None:
        """The guest's output goes out by itself from now on, and behind it what the comparator still has."""
        assert self._comparing is not None
        self._comparing.alone()
        await filters.remove_output(qemu)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while self._comparing.connected(Port.PRIMARY_IN):  # noqa: ASYNC110 - the engine's events tell it
                    await asyncio.sleep(0.005)
        await self._end_comparing()
        await filters.until_read(qemu, filters.PRIMARY["redire0"], DRAIN_S)

    async def _end_comparing(self) -> None:
        comparing, self._comparing = self._comparing, None
        self._went_alone = False
        self._history.over("its data path ends")
        if comparing is not None:
            await whole(_end(comparing))

    def _options(self) -> CompareOptions:
        pair, vm, node = self._pair, self._vm, self._setting.node
        compare, ports = pair.compare, vm.filters
        assert vm.qmp is not None  # in_role() has given it
        return CompareOptions(
            primary_in=Address(False, LOOPBACK, ports.primary_in),
            secondary_in=Address(False, node.address, ports.secondary_in),
            outdev=Address(False, LOOPBACK, ports.outdev),
            qmp=dataclasses.replace(vm.qmp, connect=True),
            vnet_hdr_support=vm.nics[0].tap.vnet_hdr,
            compare_timeout_ms=max(1, compare.compare_timeout // _MS),
            gap_timeout_ms=max(1, compare.gap_timeout // _MS),
            max_queue_size=compare.max_queue_size,
            max_flow_bytes=compare.max_flow_bytes,
            max_flows=compare.max_flows,
            max_fragments=compare.max_fragments,
            max_frames=compare.max_frames,
            max_bytes=compare.max_bytes,
            rules=self._rules,
            timing=pair.checkpoint.timing(),
            policy=pair.checkpoint.pacing(),
            record=compare.recording(vm.name),
            record_ring=compare.ring(vm.name),
        )

    # ---------------------------------------------------------------- telling

    def _hear(self, report: Report) -> None:
        self._history.hear(report)
        if self._comparing is not None and not self._comparing.protected():
            self._history.over(str(report))
        self._tell(report)

    def _tell(self, report: Report) -> None:
        log.log(report.level, "%s: %s", self._vm.name, report)
        self._journal.report(report, {"vm": self._vm.name})
        if self._role != "none" and self._state != self._told_state:
            before, self._told_state = self._told_state, self._state
            self._tell(told.StateChanged(before, self._told_state, str(report)))


async def _end(comparing: Comparing) -> None:
    await comparing.stop(DRAIN_S)
    comparing.close()


__all__ = ["FilterPlane"]
