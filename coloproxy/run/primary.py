# SPDX-License-Identifier: Apache-2.0
"""The primary's VM: its frames go to the comparator, what clients send goes to the secondary too."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import socket
import time
from collections.abc import Callable
from typing import Any, Final

from coloproxy.checkpoint_pacer import Pacer, activity_of
from coloproxy.command_guide import CommandGuide, CommandOptions
from coloproxy.engine import Engine
from coloproxy.engine_events import EngineEvent, EngineFailed, PeerAttached, PeerLost, Port
from coloproxy.errors import ColoproxyError, MisuseError, QmpError
from coloproxy.guide import Guide, PlainGuide, QmpGuide
from coloproxy.held import HeldAtTheEnd
from coloproxy.journal import Journal
from coloproxy.pair.model import Pair, Vm
from coloproxy.path.path import EventKind, PathEvent, Place, Role
from coloproxy.path.session import Dialer
from coloproxy.recording import next_number
from coloproxy.reports import Report
from coloproxy.rules import NO_RULES, load_rules
from coloproxy.voice import Voice

from . import devices, told
from .checkpoints import Checkpoints, engine_status, ms
from .messages import Message
from .vm import RunningVm
from .yank import yank_migration

MARK_WAIT_S: Final = 2.0
SETTLE_S: Final = 1.0  # from a commit until the secondary's mark must have come
SYNC_RETRY_S: Final = 0.2
_SOCKETS: Final = (
    (Port.PRIMARY_IN, Place.PRIMARY_IN),
    (Port.SECONDARY_IN, Place.SECONDARY_IN),
    (Port.OUTDEV, Place.OUTDEV),
)
_BUFFER: Final = 1 << 20


class _Epochs:
    """The engine with the path around it: what a checkpoint means for both, in the right order."""

    def __init__(self, owner: PrimaryVm, engine: Engine) -> None:
        self._owner = owner
        self._engine = engine
        self.stops = 0
        self.standing = False

    def checkpoint_stop(self) -> None:
        self.stops += 1
        self.standing = True
        self._owner.path.drain(self._owner.stopped_at())
        self._engine.checkpoint_stop()

    def checkpoint_commit(self, resumed_ns: int) -> None:
        self.standing = False
        self._engine.checkpoint_commit(resumed_ns)
        # Only now: the secondary's frames of the new epoch must find the engine in it.
        self._owner.path.commit()
        self._owner.committed()

    def checkpoint_abort(self) -> None:
        self.standing = False
        self._engine.checkpoint_abort()
        self._owner.path.stand_over()

    def alone(self) -> None:
        self.standing = False
        self._engine.alone()
        self._owner.path.stand_over()

    def gate_attach(self, sock: socket.socket) -> socket.socket:
        return self._engine.gate_attach(sock)

    def gate_done(self, messages: int) -> None:
        self._engine.gate_done(messages)

    def gate_detach(self) -> None:
        self._engine.gate_detach()


class PrimaryVm(RunningVm):
    """Also: the comparator's engine, and the guide that ends its epochs.

    hold_when_over: when COLO ends, whoever ended it, all is held until go_alone(): somebody must know first that the
        secondary does not go on.
    in_colo: a predecessor has left us a VM that is in COLO, or was.
    """

    def __init__(
        self,
        pair: Pair,
        vm: Vm,
        journal: Journal,
        fail: Callable[[str], None],
        *,
        hold_when_over: bool = False,
        in_colo: bool = False,
    ) -> None:
        super().__init__(pair, vm, Role.PRIMARY, journal, fail)
        self._holds_when_over, self._in_colo = hold_when_over, in_colo
        self._held: HeldAtTheEnd | None = None
        self._rules = NO_RULES if pair.compare.rules is None else load_rules(pair.compare.rules)
        compare = pair.compare
        self._record, self._ring = compare.recording(vm.name), compare.ring(vm.name)
        self._voice = Voice(
            journal, self._rules, self._record, self._ring, prefix=f"{vm.name}: ", extra={"vm": vm.name}
        )
        self._engine = self._make_engine(again=False)
        self._epochs = _Epochs(self, self._engine)
        self._guide, self._qmp = self._make_guide()
        self._pacer = Pacer(
            pair.checkpoint.pacing(),
            lambda: activity_of(self._engine.counters()),
            lambda cause: self._guide.want(cause),
        )
        self.dialer: Dialer | None = None
        self._dialing: asyncio.Task[None] | None = None
        self._serving = False
        self._token_stops = 0
        self._marked = asyncio.Event()
        self._synced = False
        self._commits = 0
        self._alone = ""
        self._stood_down = False
        self._losing: asyncio.TimerHandle | None = None
        self._primary_lost = False
        self._history = Checkpoints(self.began)
        self.silent_since: int | None = None  # its predecessor on this host was stopped then, CLOCK_MONOTONIC ns
        self.handed_over_ns: int | None = None  # how long nothing moved between the two

    def _make_engine(self, *, again: bool) -> Engine:
        options = self.pair.compare.options()
        options["rules"] = self._rules
        options["any_scale"] = True  # the secondary's rewriter translates windows
        engine = Engine(vnet_hdr=True, nics=len(self.vm.nics), **options)
        if self._record is not None or self._ring is not None:
            number = 0 if self._record is None else next_number(self._record, opened=again)
            engine.record(self._record, number, ring=self._ring)
        return engine

    def _make_guide(self) -> tuple[Guide, QmpGuide | None]:
        checkpoint = self.pair.checkpoint
        if checkpoint.back_end == "qmp" and self.vm.qmp is not None:
            qmp = QmpGuide(dataclasses.replace(self.vm.qmp, connect=True), checkpoint.timing(), self.hear, lambda: None)
            return qmp, qmp
        if checkpoint.back_end == "command" and checkpoint.command is not None:
            options = CommandOptions(
                checkpoint.command,
                vm=self.vm.name,
                timeout_s=checkpoint.timeout / 1e9,
                min_interval_s=checkpoint.min_interval / 1e9,
                initial=checkpoint.initial,
            )
            return CommandGuide(options, self.hear, before_commit=self._before_commit), None
        return PlainGuide(self.hear, None, 1.0), None

    def inherit(self, table: bytes, *, age: int = 0) -> None:
        """The connections that its VM has as the survivor of a failover: SecondaryVm.hand_over, `age` ns ago.

        Before `run`. The secondary is told of them at the beginning of each session. Raises TableError: nothing of it
        was taken.
        """
        self.path.import_table(table, age=age)
        count = self.inherited
        if count:
            self.tell(told.Inherited(count))

    @property
    def inherited(self) -> int:
        """Connections that are still translated."""
        return int(self.path.counters()["rewriter"]["inherited"])

    def hand_over(self) -> bytes:
        """The connections that it still translates."""
        return self.path.export_table()

    # ------------------------------------------------------------------ life

    def begin(self) -> None:
        for wires in self.nics:
            wires.set_open(is_open=True)
        self._start_engine()
        if self.silent_since is not None:
            self.handed_over_ns = time.monotonic_ns() - self.silent_since

    def _start_engine(self) -> None:
        engine = self._engine
        asyncio.get_running_loop().add_reader(engine.event_fd, self._drain_engine)
        if self._holds_when_over:
            self._held = HeldAtTheEnd(self._epochs, engine.checkpoint_stop, begun=self._in_colo)
        self._guide.begin(self._held or self._epochs)
        engine.start()
        for port, place in _SOCKETS:
            ours, theirs = socket.socketpair()
            devices.enlarge(ours, _BUFFER)
            devices.enlarge(theirs, _BUFFER)
            engine.attach(port, theirs)
            self.path.attach_comparator(place, ours)

    def _end_engine(self) -> None:
        for _, place in _SOCKETS:
            self.path.detach(place)
        asyncio.get_running_loop().remove_reader(self._engine.event_fd)
        self._engine.stop(0)
        for event in self._engine.events():
            self._voice.tell(event)

    def _replace_engine(self) -> None:
        """The primary's VMM has died: what it said and what was held of it must never reach a client (R1)."""
        self._primary_lost = self._in_colo = False
        self._history.over("the primary VM is gone")
        self._pacer.rest()
        held = self._engine.counters().comparator.held_frames[0]
        self.trouble(f"the primary VM is gone: {held} held frames of it are void; waiting for the next one")
        self._end_engine()
        self._engine.close()
        self._engine = self._make_engine(again=True)
        self._epochs = _Epochs(self, self._engine)
        self.path.stand_over()
        self._start_engine()
        # The new engine lets all pass until a guide begins protection. QMP's hears of the next QEMU; the others must be
        # told that the secondary is there, or they never would.
        if self._qmp is None and self.link_up:
            self._sync()

    async def serve(self) -> None:
        self._serving = True
        if self.dialer is not None:
            self.dial(self.dialer)
        await self._guide.run()

    def dial(self, dialer: Dialer) -> None:
        """From now on, or as soon as it runs: the secondary's host."""
        self.dialer = dialer
        if self._serving and self._dialing is None:
            self._dialing = self.spawn(dialer.run())

    async def close(self) -> None:
        self._history.over("its data path ends")
        self._pacer.rest()
        with contextlib.suppress(ColoproxyError):
            await asyncio.to_thread(self._engine.stop, 0.5)
        if self._losing is not None:
            self._losing.cancel()
        await super().close()
        with contextlib.suppress(ValueError, ColoproxyError):
            asyncio.get_running_loop().remove_reader(self._engine.event_fd)
        self._engine.close()

    # ---------------------------------------------------------------- engine

    def _drain_engine(self) -> None:
        engine = self._engine
        for event in engine.events():
            self._on_engine(event)
            if engine is not self._engine:
                return

    def _on_engine(self, event: EngineEvent) -> None:
        if isinstance(event, PeerAttached | PeerLost):  # our own ends: the VM's and the link's are the path's to tell
            return
        self._voice.tell(event)
        if isinstance(event, EngineFailed):
            self.fail(f"{self.vm.name}: {event.reason}")
        self._guide.on_engine(event)

    def hear(self, report: Report) -> None:
        """The guide's reports; some of them are kept for the status."""
        self._history.hear(report)
        if not self._guide.protected():
            self._history.over(str(report))
        self._pacer.on_report(report)
        self.tell(report if self._held is None else self._held.as_told(report))

    # ------------------------------------------------------------------ link

    def on_link_up(self, *, resumed: bool) -> None:
        if self._losing is not None:
            self._losing.cancel()
            self._losing = None
        if not resumed:
            self._sync()

    def on_link_lost(self) -> None:
        if self._stood_down:
            return
        if self.dialer is not None:
            self.dialer.redial()
        link = self.pair.link
        if link.on_loss == "alone" and not self._alone and self._losing is None:
            loop = asyncio.get_running_loop()
            self._losing = loop.call_later(link.alone_after / 1e9, self._lost_for_long)

    def _lost_for_long(self) -> None:
        self._losing = None
        if not self.link_up:
            self.spawn(
                self.go_alone(f"the link has been lost for {self.pair.link.alone_after / 1e9:g} s", tell_vmm=True)
            )

    def _sync(self) -> None:
        """Both sides count epochs from the next checkpoint on."""
        self._synced = False
        token = secrets.randbits(63) + 1
        self._token_stops = self._epochs.stops
        self.path.sync(token)
        self.say(Message("sync", number=token))
        self.note_state("both sides count epochs anew")

    def on_path(self, event: PathEvent) -> None:
        if event.kind is EventKind.SYNCED:
            self.spawn(self._accept())
        elif event.kind is EventKind.EPOCH:
            self._marked.set()
        elif event.kind is EventKind.MISCOUNTED:
            self.trouble("the secondary has begun an epoch that is no checkpoint of ours: counting anew")
            self._sync()
        elif event.kind is EventKind.LOST and event.place is Place.VM:
            self._primary_lost = True
            if self._guide.primary_is_gone():
                self._replace_engine()

    async def _accept(self) -> None:
        """The answer has come; but a checkpoint may have begun between question and answer."""
        stops = self._token_stops
        if self._qmp is not None and self._qmp.link.connected:
            with contextlib.suppress(QmpError):
                await self._qmp.link.execute("query-status")  # what QEMU said before has been heard then
        if stops != self._epochs.stops or self._epochs.standing or stops != self._token_stops:
            await asyncio.sleep(SYNC_RETRY_S)
            if self.link_up and not self._synced:
                self._sync()
            return
        if not self._alone:
            # Before: a commit that begins protection without a checkpoint ends no epoch of the secondary's.
            self._guide.secondary_is_there()
        try:
            self.path.accept()
        except MisuseError:  # another token was given, or the secondary has begun an epoch since it answered
            await asyncio.sleep(SYNC_RETRY_S)
            if self.link_up and not self._synced:
                self._sync()
            return
        self._synced = True
        self.tell(told.Synced())

    def stopped_at(self) -> int:
        """Since when the VM stands still, CLOCK_MONOTONIC ns."""
        return self._qmp.stopped_at if self._qmp is not None else time.monotonic_ns()

    def committed(self) -> None:
        """The guide has ended an epoch: by then, or soon, the secondary's mark must be there."""
        self._commits += 1
        commits = self._commits
        asyncio.get_running_loop().call_later(SETTLE_S, self._settle, commits)

    def _settle(self, commits: int) -> None:
        if self._stopped or commits != self._commits or not self._synced or not self.link_up:
            return
        counters = self.path.counters()
        if counters["marks"] != counters["commits"]:
            self.trouble("the secondary's marks don't fit our checkpoints: counting anew")
            self._sync()

    async def _before_commit(self) -> None:
        """Back end `command`: both VMs stand still. The secondary's path is to know before they go on."""
        self._marked.clear()
        self.path.drain(time.monotonic_ns())
        if self.link_up and self.say(Message("epoch", number=self._commits + 1)):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MARK_WAIT_S):
                    await self._marked.wait()

    def on_left_out(self, place: str) -> None:
        self._guide.want(f"{place} was full")

    def on_message(self, message: Message) -> None:
        match message.kind:
            case "lost-track":
                self.tell(told.PeerSays(message.text))
                self._sync()
            case "left-out":
                self._guide.want(f"on the secondary: {message.text} was full")
            case "took-over":
                self._stand_down(message.text)
            case _:
                self.trouble(f"link: a primary is not told {message.kind}")

    def _stand_down(self, reason: str) -> None:
        if self._stood_down:
            return
        self._stood_down = True
        self._history.over("the secondary has taken over")
        self._pacer.rest()
        for wires in self.nics:
            self._open_or_close(wires, is_open=False)
        self.tell(told.StoodDown(reason))
        # Nothing is left to say: a new connection would only begin a session with a VM that goes its own way.
        if self._losing is not None:
            self._losing.cancel()
            self._losing = None
        if self._dialing is not None:
            self._dialing.cancel()
            self._dialing = None

    # --------------------------------------------------------------- control

    def checkpoint(self, reason: str) -> asyncio.Future[None]:
        """Asks for one: Checkpoints.next(). Raises MisuseError: there is nobody to be made equal."""
        if self._alone or not self._guide.protected():
            raise MisuseError(f"{self.vm.name} is not protected: there is no secondary to be made equal")
        begins = self._history.next()
        self._guide.want(reason)
        return begins

    async def go_alone(self, reason: str, *, tell_vmm: bool) -> None:
        """Releases what is held, and passes from now on. Idempotent.

        Raises:
            MisuseError: the secondary has taken over; what this VM says reaches nobody.
        """
        if self._stood_down:
            raise MisuseError(f"{self.vm.name}: the secondary has taken over, there is nothing to go on with")
        if self._alone:
            return
        self._alone = reason
        self._history.over(reason)
        self.say(Message("alone", text=reason))
        if self._qmp is not None and tell_vmm:
            await self._qmp_alone(self._qmp)
        self._pacer.rest()
        if self._held is not None:
            self._held.let_go()
        self._epochs.alone()
        await asyncio.sleep(0.05)  # the message above
        if self._dialing is not None:
            self._dialing.cancel()
            self._dialing = None
        self.session = None
        self.path.link_detach(end=True)
        self._disconnected(reason)
        self.link_reason = reason  # also if it was down before
        self.tell(told.WentAlone(reason))

    async def _qmp_alone(self, qmp: QmpGuide) -> None:
        """QEMU is to stop asking the secondary.

        Also when it has told that COLO is over: after COLO_EXIT with an error it still waits for this, and the guest
        may stand still for it. A QEMU that was never in COLO refuses, which is no trouble.
        """
        protected = qmp.protected()
        await yank_migration(qmp.link)
        try:
            await qmp.link.execute("x-colo-lost-heartbeat")
        except QmpError as error:
            if protected:
                self.trouble(f"QEMU would not leave COLO: {error}")

    # ---------------------------------------------------------------- status

    @property
    def state(self) -> str:
        if self._stood_down:
            return "stood-down"
        if self._alone:
            return "alone"
        compares = self._guide.protected() or (self._held is not None and self._held.holds)
        return "protected" if compares and self._synced else "unprotected"

    def status(self) -> dict[str, Any]:
        return {
            **super().status(),
            "state": self.state,
            **self._history.status(),
            **engine_status(self._engine.counters()),
            "checkpoint_policy": self._pacer.status(),
            "rewriter": self.path.counters()["rewriter"],
            "handed_over_ms": ms(self.handed_over_ns),
        }
