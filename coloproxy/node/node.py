# SPDX-License-Identifier: Apache-2.0
"""`coloproxy node`: one process a host. Makes the parts, lets them run, and ends them; QEMU outlives it. docs/node.md.

One task plays the table (play.py); whatever else runs says events, which come to it in one queue (board.py).
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

from coloproxy import vmm
from coloproxy.control.server import ControlServer
from coloproxy.journal import Journal
from coloproxy.metrics import MetricsServer
from coloproxy.run.service import Service

from . import status, tasks
from .board import Board
from .commands import Commands
from .facts import Facts
from .machine import Event
from .ownership import Ownership
from .peer import Peer
from .planes import make_plane
from .play import Play
from .record import RecordFile
from .setting import Setting
from .watch import Watch
from .work import Work

log = logging.getLogger(__name__)


def _nothing() -> None:
    pass


class Node:
    """`await run()` returns the exit code. `ready` is called when it serves its control socket."""

    def __init__(self, setting: Setting, ready: Callable[[], None] = _nothing) -> None:
        self._setting = setting
        self._ready = ready
        self._began = time.monotonic_ns()
        self._journal = Journal(setting.pair.process.json_events)
        arbiter, register = setting.arbiter()
        self._board = Board(Facts(setting.host, register=register), self._journal)
        self._ownership = Ownership(self._board, setting.pair.name, setting.host, arbiter)
        self._stop = asyncio.Event()
        self._failure: str | None = None

    async def run(self) -> int:
        """Until SIGINT or SIGTERM (0), or something failed for good (1); QEMU runs on.

        Raises ColoproxyError at the start.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        setting, pair = self._setting, self._setting.pair
        with vmm.StateDirectory.open(setting.directory) as state:
            self._make_parts(state)
            play, plane = self._play, self._plane
            commands = Commands(self._board, play.history, plane, pair.vms[0].name, self.status, play.wanted)
            setting.control_socket.parent.mkdir(parents=True, exist_ok=True)
            control = ControlServer(
                setting.control_socket, commands.handlers(), mode=pair.control.mode, group=pair.control.group
            )
            metrics = None if pair.process.metrics is None else MetricsServer(pair.process.metrics, self.status)
            service = Service()
            running: list[asyncio.Task[None]] = []
            try:
                if metrics is not None:
                    metrics.open()
                await control.start()
                if metrics is not None:
                    metrics.start()
                view = await self._work.adopt()
                await self._work.know_sizes()
                self._board.know(own=self._kept.kept.record, vm=view, image=bool(self._work.sizes))
                self._peer.advertise()
                self._peer.start()
                self._board.say(Event.BEGIN, "the node begins")
                peer, watch = self._peer, self._watch
                for part in (play.serve(), play.tick(), peer.keep_lease(), watch.probe(), service.watch()):
                    running.append(self._spawn(part))
                self._journal.write("started", {"pair": pair.name, "host": setting.host})
                if setting.node.security == "plain":
                    log.warning("node.security is plain: whoever reaches the ports of NBD and migration has the VM")
                log.info("node %s of pair %s is up; control socket %s", setting.host, pair.name, setting.control_socket)
                service.ready(f"node {setting.host} of {pair.name}")
                self._ready()
                await self._stop.wait()
                service.stopping()
            finally:
                await control.stop()
                if metrics is not None:
                    await metrics.close()
                self._peer.close()
                await self._end(running)
                service.close()
        return 0 if self._failure is None else 1

    def _make_parts(self, state: vmm.StateDirectory) -> None:
        """Raises ColoproxyError: a file that is needed can't be used."""
        board, setting = self._board, self._setting
        self._kept = RecordFile(setting.directory)
        self._plane = make_plane(setting, self._journal, self._plane_failed, lambda: self._work.qemu)
        self._work = Work(setting, state, self._kept, self._plane, lambda qemu: self._watch.begin(qemu))
        self._peer = Peer(board, setting, self._plane, self._work)
        self._work.copying.changed, self._work.copying.tell = self._peer.advertise, board.tell
        self._watch = Watch(board, setting, self._kept, self._work, self._peer.lost_colo, self._spawn)
        self._play = Play(board, setting, self._kept, self._plane, self._work, self._peer, self._ownership)

    async def _end(self, running: list[asyncio.Task[None]]) -> None:
        for task in running:
            await tasks.end(task)
        await self._ownership.end()
        await self._peer.end()
        await self._watch.end()
        await self._play.end()
        await self._work.copying.end()
        await self._plane.let_go()
        if self._work.qemu is not None:
            await self._work.qemu.close()
        await self._ownership.close()
        self._journal.write("stopped", {"failure": self._failure})
        self._journal.close()

    # ---------------------------------------------------------------- failure

    def _spawn(self, work: Awaitable[None]) -> asyncio.Task[None]:
        """A task whose failure ends the node."""

        async def guarded() -> None:
            try:
                await work
            except asyncio.CancelledError:
                raise
            except Exception as error:
                log.exception("the node has failed")
                self._fail(repr(error))

        return asyncio.create_task(guarded())

    def _plane_failed(self, reason: str) -> None:
        """The data path is gone: without it this node is worth nothing. A supervisor starts it again."""
        self._fail(f"data path: {reason}")

    def _fail(self, reason: str) -> None:
        if self._failure is None:
            self._failure = reason
            log.error("%s", reason)
        self._stop.set()

    # ----------------------------------------------------------------- status

    def status(self) -> dict[str, Any]:
        """JSON; docs/observability.md has its schema."""
        work, watch, history, qemu = self._work, self._watch, self._play.history, self._work.qemu
        return status.document(
            status.Shown(
                setting=self._setting,
                facts=self._board.facts,
                secondary=self._kept.kept.secondary,
                began=self._began,
                since=history.since,
                reason=history.reason,
                doing=self._play.doing,
                heartbeat=self._peer.stats(),
                ruling=self._ownership.ruling,
                vm=self._plane.status(),
                qemu=None if qemu is None else status.Qemu(qemu.pid, watch.hung, watch.halt_reason),
                sizes=work.sizes,
                progress=work.copying.progress,
                resync=work.copying.status(),
                history=history.entries(),
            )
        )
