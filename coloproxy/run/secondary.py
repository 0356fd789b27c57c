# SPDX-License-Identifier: Apache-2.0
"""The secondary's VM: fed what clients send to the primary; what it says goes to the comparator, until failover."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from coloproxy.errors import ColoproxyError, MisuseError, QmpError
from coloproxy.histogram import Histogram
from coloproxy.journal import Journal
from coloproxy.pair.model import Pair, Vm
from coloproxy.path.path import Neighbour, Role
from coloproxy.qmp import Outcome, QmpLink
from coloproxy.reports import QemuEvent, QmpLost

from . import announce, told
from .messages import Message
from .vm import RunningVm
from .yank import yank_migration

READY: Final = frozenset({"running", "inmigrate"})
"""Run states in which QEMU is not in the middle of a checkpoint: a SYNC mark may be put."""

SYNC_RETRY_S: Final = 0.05
FAREWELL_S: Final = 0.1  # for a message to the primary, before something that can't wait for an answer
TOLD_EVENTS: Final = frozenset({"COLO_EXIT", "SHUTDOWN", "RESET", "GUEST_PANICKED"})


class SecondaryVm(RunningVm):
    """Also the handler of its QEMU's QMP, whose STOP and RESUME are the cuts between epochs."""

    def __init__(self, pair: Pair, vm: Vm, journal: Journal, fail: Callable[[str], None]) -> None:
        super().__init__(pair, vm, Role.SECONDARY, journal, fail)
        self._qmp: QmpLink | None = None
        if pair.checkpoint.back_end == "qmp" and vm.qmp is not None:
            deadline = pair.checkpoint.qmp_deadline * pair.checkpoint.qmp_patience / 1e9
            address = dataclasses.replace(vm.qmp, connect=True)
            self._qmp = QmpLink(address, self, gate=self.path, deadline_s=deadline)
        self.epochs = 0
        self._epoch_began = self.began
        self._pauses = Histogram()
        self._taken_over = ""
        self._abandoned = ""
        self._run_state = ""  # at the last STOP, once QEMU has said it
        self._stopped_at: int | None = None
        self._known = False  # what the VM does, since QMP is connected

    # ------------------------------------------------------------------ life

    def begin(self) -> None:
        """The TAPs stay closed."""
        if self._qmp is not None:
            self.path.wait()

    async def serve(self) -> None:
        if self._qmp is not None:
            await self._qmp.run()
        else:
            await asyncio.Event().wait()

    # --------------------------------------------------------- QMP's handler

    def qmp_connected(self, now: int) -> None:
        if self._taken_over:
            return
        if self.link_up:
            self.say(Message("lost-track", text="the secondary's QMP is connected anew"))
        self.path.wait()
        self._run_state, self._stopped_at, self._known = "", None, False
        self._ask_first()

    def _ask_first(self) -> None:
        if self._qmp is not None:
            self._qmp.submit("query-status", None, self._hear_first)

    def _hear_first(self, outcome: Outcome) -> None:
        """What the VM does. One that waits for its state goes on to; so does one in the middle of a checkpoint."""
        if self._known or self._taken_over or self._qmp is None or not self._qmp.connected:
            return
        if outcome.error is not None:
            self._ask_first()  # it has had its deadline
            return
        self._known = True
        self._hear_status(outcome.value)
        if self._run_state == "running":
            self.path.stand_over()

    def qmp_event(self, name: str, data: Mapping[str, object], at: int | None, now: int) -> None:
        if name in TOLD_EVENTS:
            self.tell(QemuEvent(name, ", ".join(f"{key}={value}" for key, value in data.items())))
        if self._taken_over:
            return
        if name in ("STOP", "RESUME"):
            self._known = True
        if name == "STOP":
            self._run_state, self._stopped_at = "", now if at is None else min(at, now)
            self.path.stand()
            if self._qmp is not None:
                self._qmp.submit("query-status", None, lambda outcome: self._hear_status(outcome.value))
        elif name == "RESUME":
            # An operator's stop and cont are no checkpoint. If QEMU had no time to tell, the primary finds one mark too
            # many, and counts anew (marks.c).
            if self._run_state == "paused":
                self.path.stand_over()
            else:
                self._begin_epoch(now if at is None else min(at, now))

    def _hear_status(self, value: object) -> None:
        status = value.get("status") if isinstance(value, Mapping) else None
        self._run_state = status if isinstance(status, str) else ""

    def _begin_epoch(self, resumed: int) -> None:
        self.epochs += 1
        self.path.epoch(resumed)
        held = resumed - self._stopped_at if self._stopped_at is not None else None
        self._stopped_at = None
        self._epoch_began = time.monotonic_ns()
        if held is not None:
            self._pauses.add(held)
        self.tell(told.Epoch(self.epochs, held))

    def qmp_lost(self, reason: str) -> None:
        if reason != "shutting down":
            self.tell(QmpLost(reason))

    def qmp_unreachable(self, reason: str) -> None:
        self.trouble(f"{reason}; trying again")

    # ------------------------------------------------------------------ link

    def on_link_up(self, *, resumed: bool) -> None:
        if self._taken_over:
            self.spawn(self._send_away())

    async def _send_away(self) -> None:
        """A primary that was cut off has come back, and doesn't know: it closes its TAPs when it hears."""
        self.say(Message("took-over", text=self._taken_over))
        await asyncio.sleep(FAREWELL_S)
        self.path.link_detach(end=True)
        self.session = None
        self._disconnected("this VM has been taken over")

    def on_message(self, message: Message) -> None:
        if self._taken_over:
            return
        match message.kind:
            case "sync":
                self._abandoned = ""
                self.note_state("the primary counts epochs with this host again")
                self.spawn(self._answer(message.number))
            case "epoch":
                self.path.stand()
                self._begin_epoch(time.monotonic_ns())
            case "alone":
                self._abandoned = message.text
                self.tell(told.PeerSays(f"it goes on alone ({message.text}): this VM is out of date from now on"))
            case "left-out":
                self.tell(told.PeerSays(f"{message.text} was full"))
            case _:
                self.trouble(f"link: a secondary is not told {message.kind}")

    async def _answer(self, token: int) -> None:
        """When the VM is not in the middle of a checkpoint, of which the primary may count the rest otherwise."""
        session = self.session
        while self._qmp is not None and session == self.session and not self._taken_over:
            with contextlib.suppress(QmpError):
                value = await self._qmp.execute("query-status")
                status = value.get("status") if isinstance(value, Mapping) else None
                if status in READY or (status == "paused" and self._stopped_at is None):
                    break
            await asyncio.sleep(SYNC_RETRY_S)
        if session == self.session and not self._taken_over:
            with contextlib.suppress(MisuseError):  # the session has just ended
                self.path.answer(token)

    def on_left_out(self, place: str) -> None:
        self.say(Message("left-out", text=place))

    # --------------------------------------------------------------- control

    async def take_over(
        self,
        reason: str,
        *,
        force: bool,
        tell_vmm: bool,
        vmm: Callable[[], Awaitable[None]] | None = None,
        keep: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Opens the TAPs, announces the VM, and translates on. Idempotent.

        vmm: makes the VM run by itself, in the place of what tell_vmm does. What QEMU says of it, a RESUME, would
        otherwise be taken for a checkpoint.
        keep: puts hand_over() away, before the first frame that a client may answer: without it, whoever comes after
        us does not know what that client was told.

        Raises:
            MisuseError: the primary is alive, or has gone on alone; `force` says that this is known.
            QmpError: QEMU would not go on; the TAPs stay closed.
        """
        if self._taken_over:
            return
        if not force:
            if self._abandoned:
                raise MisuseError(
                    f"the primary goes on alone ({self._abandoned}), this VM is out of date; force to do it"
                )
            if self.link_up:
                raise MisuseError("the primary is alive, the link is up; force to have it silenced and taken over")
        self._taken_over = reason
        try:
            if self.link_up and self.say(Message("took-over", text=reason)):
                await asyncio.sleep(FAREWELL_S)  # it closes its TAPs before ours open
            if self._qmp is not None and tell_vmm:
                await self._qmp_take_over(self._qmp)
            if vmm is not None:
                await vmm()
        except BaseException:
            self._taken_over = ""
            raise
        self.path.takeover()
        self.link_up, self.link_reason, self.session = False, reason, None
        if keep is not None:
            await keep()
        for wires in self.nics:
            self._open_or_close(wires, is_open=True)
        places = self._places()
        self.tell(told.TookOver(reason, len(places)))
        self.spawn(self._announce(places))
        for wires in self.nics:  # what was announced while its TAP was lost, nobody has heard
            wires.on_tap_back = self._announce_again

    def hand_over(self) -> bytes:
        """The connections that have to be translated for as long as they live, for PrimaryVm.inherit.

        Raises MisuseError: it has not taken over.
        """
        return self.path.export_table()

    def _announce_again(self) -> None:
        self.spawn(self._announce(self._places()))

    def _places(self) -> list[Neighbour]:
        known = self.path.neighbours()
        return [
            place
            for wires in self.nics
            for place in announce.places_of(known, wires.index, wires.nic.mac, wires.nic.announce, wires.nic.vlans)
        ]

    async def _qmp_take_over(self, qmp: QmpLink) -> None:
        await yank_migration(qmp)
        with contextlib.suppress(QmpError):  # there may be none
            await qmp.execute("nbd-server-stop")
        await qmp.execute("x-colo-lost-heartbeat")

    async def _announce(self, places: list[Neighbour]) -> None:
        for pause in announce.pauses():
            await asyncio.sleep(pause)
            for place in places:
                with contextlib.suppress(ColoproxyError):  # no room: there will be another round
                    self.path.inject(place.nic, announce.frame_of(place))

    # ---------------------------------------------------------------- status

    @property
    def state(self) -> str:
        if self._taken_over:
            return "taken-over"
        return "abandoned" if self._abandoned else "standby"

    def status(self) -> dict[str, Any]:
        counters = self.path.counters()
        return {
            **super().status(),
            "state": self.state,
            "epoch": self.epochs,
            "epoch_age_s": round((time.monotonic_ns() - self._epoch_began) / 1e9, 3),
            "pauses": self._pauses.status(),
            "rewriter": counters["rewriter"],
        }
