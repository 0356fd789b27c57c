# SPDX-License-Identifier: Apache-2.0
"""The watch over our own QEMU: what it says and how it ends become events; one that hangs is ended.

And a VM that its full disk has stopped is let go on, while it is this host's to care for (halt.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from coloproxy import vmm
from coloproxy.disks import What, read_event
from coloproxy.errors import ColoproxyError, DiskError, QmpError

from . import tasks
from .board import Board
from .facts import State, VmView
from .halt import IO_ERROR, Halt, Step
from .machine import Event
from .record import RecordFile
from .setting import Setting
from .work import Work

log = logging.getLogger(__name__)

PROBE_S: Final = 0.5
PROBES: Final = 4  # in a row without any answer: it hangs
_SERVES: Final = frozenset({State.SETTLE, State.ALONE, State.PROTECT})
_TOLD: Final = frozenset({"SHUTDOWN", "RESET", "GUEST_PANICKED", "COLO_EXIT", "BLOCK_IO_ERROR", "QUORUM_REPORT_BAD"})

Spawn = Callable[[Awaitable[None]], asyncio.Task[None]]
"""A task whose failure ends the node."""


class Watch:
    """lost_colo: is told that COLO has ended, with the reason."""

    def __init__(
        self,
        board: Board,
        setting: Setting,
        kept: RecordFile,
        work: Work,
        lost_colo: Callable[[str], None],
        spawn: Spawn,
    ) -> None:
        self._board = board
        self._setting = setting
        self._kept = kept
        self._work = work
        self._lost_colo = lost_colo
        self._spawn = spawn
        self._watching: asyncio.Task[None] | None = None
        self._killing: set[asyncio.Task[None]] = set()
        self._probe: vmm.Probe | None = None
        self._halt = Halt(setting.node.retry / 1e9)

    @property
    def hung(self) -> bool:
        """As of the last probe."""
        return self._probe is not None and self._probe.health is not vmm.Health.RESPONSIVE

    @property
    def halt_reason(self) -> str | None:
        """Why the VM stands still; None: it does not, or an operator wants it so."""
        return self._halt.reason

    async def end(self) -> None:
        await tasks.end(self._watching)

    # ------------------------------------------------------------ what it says

    def begin(self, qemu: vmm.QemuProcess) -> None:
        """A new one, or an adopted one: its events are ours from now on."""
        if self._watching is not None:
            self._watching.cancel()
        self._watching = self._spawn(self._follow(qemu))

    async def _follow(self, qemu: vmm.QemuProcess) -> None:
        missed = 0
        with qemu.watch() as events:
            while True:
                item = await events.get()
                match item:
                    case vmm.Exit():
                        if self._work.qemu is qemu:
                            self._ended(item)
                        return
                    case vmm.Event():
                        self._says(qemu, item)
                    case vmm.Connected():
                        await self._look_for_missed(qemu)
                    case _:
                        pass
                if events.lost != missed:
                    missed = events.lost
                    await self._look_for_missed(qemu)

    async def _look_for_missed(self, qemu: vmm.QemuProcess) -> None:
        """QMP was away, or has said more than there was room for: was the end of COLO among it?"""

        def believed() -> bool:
            facts = self._board.facts
            return facts.vm is VmView.COLO and facts.state in (State.PROTECTED, State.STANDBY)

        if self._work.qemu is qemu and believed() and await self._work.view() is VmView.RUNNING and believed():
            self._lost_colo("QEMU is not in COLO any more, which was not heard")

    def _ended(self, ended: vmm.Exit) -> None:
        def dead() -> None:
            self._board.know(vm=VmView.NONE)

        wanted = ended.cause is not vmm.Cause.FAULT and not self._kept.kept.secondary  # a copy's wishes don't count
        self._board.say(Event.VM_SHUTDOWN if wanted else Event.VM_DEAD, ended.text, dead)

    def _says(self, qemu: vmm.QemuProcess, event: vmm.Event) -> None:
        halted = self._serves and self._halt.reason is not None  # each attempt fails with the same words
        if event.name in _TOLD:
            log.log(logging.DEBUG if halted else logging.INFO, "QEMU: %s", vmm.explain_event(event.name, event.data))
        if event.name == "MIGRATION" and event.data.get("status") == "colo" and self._kept.kept.secondary:
            self._in_colo("QEMU has the primary's state")
        elif event.name == "COLO_EXIT" and event.data.get("reason") != "request":
            self._lost_colo("QEMU: COLO_EXIT")
        try:
            trouble = read_event(event.name, event.data, self._setting.disks(self._work.sizes))
        except (ValueError, DiskError):
            return
        if trouble is None:
            return
        if trouble.what is What.PEER_LOST:
            if self._work.replicates:
                self._lost_colo(trouble.text)
        elif trouble.what is What.LOCAL_FAILED and self._board.facts.state in (
            State.PROTECTED, State.STANDBY, State.READY,
        ):  # fmt: skip
            self._board.trouble(f"this host's disk has failed, its QEMU is ended: {trouble.text}")
            killing = asyncio.get_running_loop().create_task(self._kill(qemu))
            self._killing.add(killing)  # the loop itself keeps a task by a weak reference only
            killing.add_done_callback(self._killing.discard)
        elif trouble.what is What.GUEST_STOPPED and self._serves:
            self._has_halted(trouble.text)
        elif not halted:
            self._board.trouble(trouble.text)

    def _in_colo(self, reason: str) -> None:
        def seen() -> None:
            self._board.know(vm=VmView.COLO)

        self._board.say(Event.COLO, reason, seen)

    async def _kill(self, qemu: vmm.QemuProcess) -> None:
        """One that is in the way. If it can't be, that is seen again."""
        with contextlib.suppress(ColoproxyError):
            await qemu.kill()

    # ---------------------------------------------------------- whether it lives

    async def probe(self) -> None:
        """For ever. One that does not answer at all for seconds is worth nothing, and in the way."""
        silent = 0
        while True:
            await asyncio.sleep(PROBE_S)
            qemu = self._work.qemu
            if qemu is None or qemu.exited.done():
                silent, self._probe = 0, None
                self._halt.forget()
                continue
            self._probe = await qemu.probe()
            await self._look_at_halt(qemu, self._probe.status)
            silent = silent + 1 if self._probe.health is vmm.Health.SILENT else 0
            if silent >= PROBES and self._work.qemu is qemu:
                text = f"QEMU (process {qemu.pid}) has not answered for {silent * PROBE_S:g} s: it is killed"
                self._board.trouble(text)
                silent = 0
                await self._kill(qemu)

    # ------------------------------------------------------------ a disk is full

    @property
    def _serves(self) -> bool:
        """The VM is this host's alone: nobody else would go on when it stands still."""
        return self._board.facts.state in _SERVES

    def _has_halted(self, reason: str) -> None:
        if self._halt.stopped(reason, time.monotonic()):
            self._board.trouble(f"the VM stands still: {reason}; it goes on when there is room again")

    async def _look_at_halt(self, qemu: vmm.QemuProcess, status: str | None) -> None:
        """A VM that is alone and whose disk was full."""
        if not self._serves:
            self._halt.forget()
            return
        if status == IO_ERROR and self._halt.reason is None:  # while nobody listened
            self._has_halted("its disk has failed")
        match self._halt.look(status, time.monotonic()):
            case Step.CONT:
                with contextlib.suppress(QmpError):  # asked again soon
                    await qemu.execute("cont")
            case Step.OVER:
                self._board.trouble("the VM goes on: its disk takes what it writes")
