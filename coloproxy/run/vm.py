# SPDX-License-Identifier: Apache-2.0
"""What both roles have in common: one VM's path, its NICs, its end of the link."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from coloproxy.errors import ColoproxyError, DeviceError, LimitError, MisuseError, PeerError
from coloproxy.journal import Journal
from coloproxy.pair.model import Pair, Vm
from coloproxy.path.hello import LinkState, Nic, Us
from coloproxy.path.path import EventKind, Path, PathEvent, Place, Role
from coloproxy.path.session import Connected, Endpoint
from coloproxy.reports import Report, Trouble

from . import told
from .devices import TapDevice
from .estate import Estate
from .messages import Message, decode, encode
from .wires import NicWires

log = logging.getLogger(__name__)

LINGER_S: Final = 0.5
_LINK_COUNTERS: Final = ("sent_bytes", "received_bytes", "queued_bytes", "resumed", "gaps", "refused")


class RunningVm:
    """Subclasses: PrimaryVm, SecondaryVm. `open` with privileges, then `run` until cancelled.

    fail: ends the whole process with a reason.
    """

    def __init__(self, pair: Pair, vm: Vm, role: Role, journal: Journal, fail: Callable[[str], None]) -> None:
        self.pair = pair
        self.vm = vm
        self.journal = journal
        self.fail = fail
        link = pair.link
        self.path = Path(
            role,
            nics=len(vm.nics),
            stall_timeout=link.stall_timeout,
            link={"send_bytes": link.send_buffer, "keepalive": link.keepalive, "timeout": link.timeout},
        )
        self.nics = [NicWires(index, nic, self.tell) for index, nic in enumerate(vm.nics)]
        self.began = time.monotonic_ns()
        self.link_peer = ""
        self.link_cipher = ""
        self.link_up = False
        self.link_reason = "not connected yet"
        self.session: str | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_state: str | None = None
        self._stopped = False

    # ------------------------------------------------------------------ life

    async def open(self) -> None:
        """Devices and sockets. Raises ColoproxyError."""
        for wires in self.nics:
            await wires.open()

    async def run(self) -> None:
        """Until cancelled."""
        asyncio.get_running_loop().add_reader(self.path.event_fd, self._drain)
        for wires in self.nics:
            wires.start(self.path)
        self.path.start()
        self.begin()
        self._last_state = self.state
        async with asyncio.TaskGroup() as group:
            for wires in self.nics:
                group.create_task(wires.serve(self.path))
            group.create_task(self.serve())

    def begin(self) -> None:
        """The path runs; before any other task."""

    async def serve(self) -> None:
        """The role's own work, until cancelled."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Nothing that was released is lost. Idempotent."""
        await self._stop()
        self.path.close()
        for wires in self.nics:
            wires.close()

    async def give_up(self) -> Estate:
        """As close, but for what another one goes on with. `run` has been cancelled.

        Raises:
            MisuseError: a secondary that has not taken over.
            DeviceError: a TAP is lost; all is closed then.
        """
        await self._stop()
        taps: list[TapDevice] = []
        try:
            table = self.path.export_table()
            self.path.close()  # the TAPs' descriptors that it has; those that are kept hold them open
            taps += [wires.release() for wires in self.nics]
        except ColoproxyError:
            Estate(b"", tuple(taps)).close()
            raise
        finally:
            self.path.close()
            for wires in self.nics:
                wires.close()
        return Estate(table, tuple(taps))

    def adopt(self, taps: Sequence[TapDevice]) -> None:
        """Open TAPs of this VM's, one for each NIC; before `open`."""
        for wires, tap in zip(self.nics, taps, strict=True):
            wires.adopt(tap)

    async def _stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        for task in list(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
        asyncio.get_running_loop().remove_reader(self.path.event_fd)
        await asyncio.to_thread(self.path.stop, LINGER_S)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task of its own; a failure of it ends the process."""

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.debug("task", exc_info=error)
                self.fail(f"{self.vm.name}: {error}" if isinstance(error, ColoproxyError) else f"{error!r}")

        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(ended)
        return task

    # --------------------------------------------------------------- telling

    def tell(self, report: Report) -> None:
        log.log(report.level, "%s: %s", self.vm.name, report)
        self.journal.report(report, {"vm": self.vm.name})
        self.note_state(str(report))

    @property
    def state(self) -> str:
        """For the status: of a role's own states."""
        raise NotImplementedError

    def note_state(self, reason: str) -> None:
        """Tells if the state is another one by now. Called after whatever may change it."""
        if self._last_state is None or self.state == self._last_state:
            return
        before, self._last_state = self._last_state, self.state
        self.tell(told.StateChanged(before, self._last_state, reason))

    def trouble(self, text: str) -> None:
        self.tell(Trouble(text))

    def reload(self, pair: Pair, vm: Vm) -> None:
        """What may change while frames move: coloproxy/run/changes.py."""
        self.pair, self.vm = pair, vm
        for wires, nic in zip(self.nics, vm.nics, strict=True):
            wires.nic = nic

    # ------------------------------------------------------------------ link

    def endpoint(self) -> Endpoint:
        """Our end of the link."""
        nics = tuple(Nic(nic.name, nic.tap.mtu, nic.tap.vnet_hdr) for nic in self.vm.nics)
        us = Us(self.pair.name, self.vm.name, self.pair.role, nics)
        return Endpoint(us, self.before_hello, self.link_state, self.connected)

    def link_state(self) -> LinkState:
        """For the hello of a new connection. The old one is closed by then."""
        return LinkState(self.session, self.path.link_received(), self.path.link_can_resume)

    async def before_hello(self) -> None:
        """A peer has proven who it is: whatever was connected before is half dead."""
        self._disconnected("replaced by a new connection")
        self.path.link_detach()

    def connected(self, link: Connected) -> None:
        """The hello is over: frames may flow."""
        try:
            self.path.link_attach(link.transport, restart=not link.resumed, peer_received=link.peer_received)
        except ColoproxyError as error:  # what was kept has just gone
            self.session = None
            self.trouble(f"link: {error}")
            self.on_link_lost()
            return
        self.session, self.link_peer, self.link_cipher, self.link_up = link.session, link.where, link.cipher, True
        self.link_reason = ""
        self.tell(told.LinkUp(link.where, link.cipher, link.session, link.resumed))
        self.on_link_up(resumed=link.resumed)

    def on_link_up(self, *, resumed: bool) -> None:
        """For the role."""

    def on_link_lost(self) -> None:
        """For the role."""

    def on_message(self, message: Message) -> None:
        """For the role: what the other control plane says."""

    def on_left_out(self, place: str) -> None:
        """For the role: frames for or of the secondary were left out."""

    def on_path(self, event: PathEvent) -> None:
        """For the role: SYNCED, EPOCH, MISCOUNTED, and a wire that is lost. (That the gate is, QmpLink tells.)"""

    def say(self, message: Message) -> bool:
        """To the other control plane. False: there is no session, or no room."""
        try:
            self.path.control(encode(message))
        except (MisuseError, LimitError):
            return False
        return True

    def _open_or_close(self, wires: NicWires, *, is_open: bool) -> None:
        """Towards the clients. A TAP that is lost at the moment becomes so when it is back."""
        try:
            wires.set_open(is_open=is_open)
        except DeviceError as error:
            self.trouble(str(error))

    def _disconnected(self, reason: str) -> None:
        if not self.link_up:
            return
        self.link_up = False
        self.link_reason = reason
        self.tell(told.LinkLost(reason))
        self.on_link_lost()

    # ---------------------------------------------------------------- events

    def _drain(self) -> None:
        for event in self.path.events():
            self._on_event(event)

    def _on_event(self, event: PathEvent) -> None:
        match event.kind:
            case EventKind.LOST if event.place is Place.LINK:
                self._disconnected(event.reason)
            case EventKind.LOST if event.place in (Place.CLIENT, Place.VM):
                self.nics[event.nic].lost(event.place, event.reason)
                self.on_path(event)
            case EventKind.CONTROL:
                self._take_messages()
            case EventKind.OVERRUN:
                place = "the link" if event.place is Place.LINK else f"{self.vm.nics[event.nic].name}, {event.place}"
                self.tell(told.LeftOut(place))
                self.on_left_out(place)
            case EventKind.FLOWS:
                self.tell(told.LeftOut("the rewriter's table of connections"))
                self.on_left_out("the rewriter's table of connections")
            case EventKind.FATAL:
                self.fail(f"{self.vm.name}: the data path has failed: {event.reason}")
            case _:
                self.on_path(event)

    def _take_messages(self) -> None:
        try:
            for data in self.path.take_control():
                self.on_message(decode(data))
        except (PeerError, LimitError) as error:  # it has proven who it is, and yet: better without
            self.trouble(str(error))
            self.session = None
            self._disconnected(str(error))
            self.path.link_detach(end=True)

    # ---------------------------------------------------------------- status

    def status(self) -> dict[str, Any]:
        """JSON for `coloproxy ctl status`."""
        counters = self.path.counters()
        link = counters["link"]
        return {
            "name": self.vm.name,
            "link": {
                "state": "up" if self.link_up else "down",
                "reason": self.link_reason,
                "peer": self.link_peer if self.link_up else "",
                "cipher": self.link_cipher if self.link_up else "",
                "session": self.session,
                "rtt_ms": round(link["rtt"] / 1e6, 3) if link["rtt"] >= 0 else None,
                **{name: link[name] for name in _LINK_COUNTERS},
            },
            "nics": [
                {
                    "name": wires.nic.name,
                    "tap": wires.nic.tap.name,
                    "bridge": wires.nic.tap.bridge,
                    "open": wires.is_open,
                    "vm_connected": bool(counters["vm"][wires.index]["connected"]),
                    "client": counters["client"][wires.index],
                    "vm": counters["vm"][wires.index],
                }
                for wires in self.nics
            ],
            "path": {name: value for name, value in counters.items() if isinstance(value, int)},
        }
