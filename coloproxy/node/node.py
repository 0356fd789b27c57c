# SPDX-License-Identifier: Apache-2.0
"""`coloproxy node`: plays the table of machine.py with real parts. docs/node.md.

One task takes events from a queue and does what the table says, one after the other; long actions are tasks of their
own, one at a time, whose end is an event. The record is on disk before any action that follows from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from coloproxy import vmm
from coloproxy.arbiter import Claim, Ruling, Verdict
from coloproxy.control.protocol import REFUSED
from coloproxy.control.server import ControlServer
from coloproxy.disks import Progress, What, read_event
from coloproxy.errors import ColoproxyError, ControlRefused, DiskError, MisuseError, PeerError, QmpError
from coloproxy.heartbeat import Heartbeat
from coloproxy.journal import Journal
from coloproxy.metrics import MetricsServer
from coloproxy.reports import Report, Trouble
from coloproxy.run.service import Service

from . import told
from .adverts import Said, decode, encode
from .facts import Facts, Standing, State, VmView, other
from .halt import IO_ERROR, Halt, Step
from .machine import Action, Event, decide
from .planes import make_plane
from .record import RecordFile
from .setting import Setting
from .work import Work

log = logging.getLogger(__name__)

OUTLIVE_S: Final = 0.05
LINK_S: Final = 1.0  # beyond the link's own time-out, for it to be made again
PROBE_S: Final = 0.5
PROBES: Final = 4  # in a row without any answer: it hangs
HISTORY: Final = 200
RECORD_S: Final = 1.0
FAILED_S: Final = 60.0  # at most, from one attempt to the next
_BUSY: Final = frozenset({State.SETTLE, State.JOIN, State.PROTECT})
_SERVES: Final = frozenset({State.SETTLE, State.ALONE, State.PROTECT})
_ASKS: Final = frozenset({State.SUSPENDED, State.YIELDED, State.CLAIM, State.STOPPED})


@dataclass(frozen=True, slots=True)
class _Happened:
    event: Event
    reason: str
    before: Callable[[], None]
    """Facts that come with it, taken over at its turn."""
    question: int = 0
    """Of an answer of the arbiter: the number of what was asked. 0: it is none."""


def _nothing() -> None:
    pass


class Node:
    """`await run()` returns the exit code. `ready` is called when it serves its control socket."""

    def __init__(self, setting: Setting, ready: Callable[[], None] = _nothing) -> None:
        self._setting = setting
        self._ready = ready
        self._journal = Journal(setting.pair.process.json_events)
        self._arbiter, register = setting.arbiter()
        self.facts = Facts(setting.host, register=register)
        self._queue: asyncio.Queue[_Happened] = asyncio.Queue()
        self._doing: tuple[Action, asyncio.Task[None]] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._question = 0
        self._recording: asyncio.Task[None] | None = None
        self._peer_sizes: tuple[int, ...] = ()
        self._reason = "begins"
        self._since = self._began = time.monotonic_ns()
        self._history: deque[dict[str, Any]] = deque(maxlen=HISTORY)
        self._owner: Ruling | None = None
        self._stop = asyncio.Event()
        self._failure: str | None = None
        self._watching: asyncio.Task[None] | None = None
        self._killing: set[asyncio.Task[None]] = set()
        self._probe: vmm.Probe | None = None
        self._halt = Halt(setting.node.retry / 1e9)
        self._failures = 0
        self._link_down_since: float | None = None
        self._outliving: asyncio.Task[None] | None = None
        self._outlived = -1
        """The generation at which our QEMU has answered since the peer's had lost it."""
        self._heartbeat: Heartbeat | None = None

    # ------------------------------------------------------------------- life

    async def run(self) -> int:
        """Until SIGINT or SIGTERM (0), or something failed for good (1); QEMU runs on.

        Raises ColoproxyError at the start.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        setting, pair = self._setting, self._setting.pair
        with vmm.StateDirectory.open(setting.directory) as state:
            self._kept = RecordFile(setting.directory)
            self._plane = make_plane(setting, self._journal, self._plane_failed, lambda: self._work.qemu)
            self._work = Work(setting, state, self._kept, self._plane, self._watch)
            self._work.copying.changed, self._work.copying.tell = self._advertise, self._tell
            setting.control_socket.parent.mkdir(parents=True, exist_ok=True)
            control = ControlServer(
                setting.control_socket, self._handlers(), mode=pair.control.mode, group=pair.control.group
            )
            metrics = None if pair.process.metrics is None else MetricsServer(pair.process.metrics, self.status)
            service = Service()
            settings, paths = setting.heartbeat()
            self._heartbeat = Heartbeat(
                settings, paths, on_alive=self._peer_alive, on_dead=self._peer_dead, on_state=self._peer_says
            )
            tasks: list[asyncio.Task[None]] = []
            try:
                if metrics is not None:
                    metrics.open()
                await control.start()
                if metrics is not None:
                    metrics.start()
                view = await self._work.adopt()
                await self._work.know_sizes()
                self.facts = self.facts.with_(own=self._kept.kept.record, vm=view, image=bool(self._work.sizes))
                self._advertise()
                self._heartbeat.start()
                self._say(Event.BEGIN, "the node begins")
                for work in (self._serve(), self._tick(), self._keep_lease(), self._probe_qemu(), service.watch()):
                    tasks.append(asyncio.create_task(self._guarded(work)))
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
                self._heartbeat.close()
                await self._end(tasks)
                service.close()
        return 0 if self._failure is None else 1

    async def _end(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in (
            *tasks,
            self._asking,
            self._recording,
            self._outliving,
            self._watching,
            self._doing and self._doing[1],
        ):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
        await self._work.copying.end()
        await self._plane.let_go()
        if self._work.qemu is not None:
            await self._work.qemu.close()
        await self._arbiter.close()
        self._journal.write("stopped", {"failure": self._failure})
        self._journal.close()

    async def _guarded(self, work: Awaitable[None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("the node has failed")
            self._fail(repr(error))

    def _fail(self, reason: str) -> None:
        if self._failure is None:
            self._failure = reason
            log.error("%s", reason)
        self._stop.set()

    # ----------------------------------------------------------------- events

    def _say(self, event: Event, reason: str, before: Callable[[], None] = _nothing, *, question: int = 0) -> None:
        self._queue.put_nowait(_Happened(event, reason, before, question))

    def _try_again(self) -> None:
        """Most failures pass: a disk that is full, a port that is taken. So not a person alone may say START."""
        self._failures += 1
        delay = min(self._setting.node.retry / 1e9 * 2**self._failures, FAILED_S)

        def again() -> None:
            if self.facts.state is State.FAILED:
                self._say(Event.START, "after a while")

        asyncio.get_running_loop().call_later(delay, again)

    async def _keep_stopped(self, *, stopped: bool) -> None:
        """For a coloproxy that comes after this one."""
        try:
            await asyncio.to_thread(self._kept.note, stopped=stopped)
        except OSError as error:
            self._trouble(f"whether the VM is to be started can't be noted: {error}")

    async def _serve(self) -> None:
        while True:
            happened = await self._queue.get()
            if happened.question not in (0, self._question):
                continue  # it answers what is not asked any more, and would be taken for the present question's
            happened.before()
            await self._happens(happened.event, happened.reason)
            self._work.copying.obey(self.facts)

    async def _happens(self, event: Event, reason: str) -> None:
        step = decide(self.facts, event)
        if step is None:
            if self._doing is None and event is Event.FAILED:
                self._advertise()
            return
        before, changes = self.facts.state, step.record != self.facts.own
        if step.state is State.STOPPED and before is not State.STOPPED:
            await self._keep_stopped(stopped=True)
        if changes:
            await asyncio.to_thread(self._kept.write, step.record)  # a busy disk must not look like our death
        facts = self.facts.with_(state=step.state, own=step.record)
        if before is State.PROTECT and event is not Event.COLO and facts.offer:
            facts = facts.with_(spent=facts.offer)
        if step.record.standing in (Standing.PRIMARY, Standing.SECONDARY) or step.state in (State.SETTLE, State.JOIN):
            facts = facts.with_(offer="")
        if step.state not in _ASKS and self._asking is not None:
            self._asking.cancel()
            self._asking = None
            self._question += 1
            facts = facts.with_(claiming=False)
        self.facts = facts
        self._renew_lease()  # before anybody hears of a pair
        if step.state is not before or changes:
            self._note(before, event, step.row.why, reason)
        if step.state is not before and step.state not in _BUSY:
            await self._end_doing()
        if step.state is State.FAILED:
            self._try_again()
        elif step.state is State.ALONE:
            self._failures = 0
        self._advertise()
        for action in step.actions:
            await self._act(action, f"{step.row.why} ({reason})")

    def _note(self, before: State, event: Event, why: str, reason: str) -> None:
        now = time.monotonic_ns()
        if self.facts.state is not before:
            self._since = now
        self._reason = f"{why} ({reason})" if reason else why
        report = told.NodeState(
            self._setting.host, before.value, self.facts.state.value, event.value, self._reason,
            self.facts.own.standing.value, self.facts.own.generation,
        )  # fmt: skip
        self._tell(report)
        self._history.append(
            {
                "at": round(time.time(), 3),
                "from": before.value,
                "to": self.facts.state.value,
                "event": event.value,
                "reason": self._reason,
            }
        )

    def _trouble(self, text: str) -> None:
        self._tell(Trouble(text))

    def _tell(self, report: Report) -> None:
        log.log(report.level, "%s", report)
        self._journal.report(report)

    # ---------------------------------------------------------------- actions

    async def _act(self, action: Action, reason: str) -> None:
        match action:
            case Action.CLAIM:
                self._ask()
            case Action.MUTE:
                self._plane.mute()
            case Action.DISCARD:
                await self._end_doing()
                await self._discard()
            case Action.ADOPT:
                self._begin(action, self._adopt())
            case Action.SETTLE:
                self._begin(action, self._settle(reason))
            case Action.PREPARE:
                self._begin(action, self._prepare())
            case Action.PROTECT:
                assert self.facts.peer is not None  # a guard has looked
                self.facts = self.facts.with_(offer=self.facts.peer.offer, colo_lost=False)
                self._begin(action, self._protect())

    def _begin(self, action: Action, work: Coroutine[Any, Any, None]) -> None:
        """One at a time; what is being done already is not begun again."""
        if self._doing is not None and not self._doing[1].done():
            if self._doing[0] is action:
                work.close()
                return
            before = self._doing[1]
        else:
            before = None

        async def done() -> None:
            if before is not None:
                before.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await before
            try:
                await work
            except (ColoproxyError, OSError) as error:
                text = f"{action.value}: {error}"
                log.debug("%s", text, exc_info=error)
                self._trouble(text)
                self._say(Event.FAILED, text)
            except Exception as error:
                log.exception("%s", action.value)
                self._say(Event.FAILED, f"{action.value}: {error!r}")

        self._doing = (action, asyncio.create_task(done(), name=action.value))

    async def _end_doing(self) -> None:
        if self._doing is not None:
            _, task = self._doing
            self._doing = None
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task

    async def _discard(self) -> None:
        try:
            await self._plane.end()
        except ColoproxyError as error:
            self._trouble(f"data path: {error}")
        try:
            await self._work.kill()
        except ColoproxyError as error:
            self._trouble(str(error))
        self.facts = self.facts.with_(vm=VmView.NONE, colo_lost=False, offer="")

    async def _adopt(self) -> None:
        primary = self.facts.own.standing is Standing.PRIMARY
        await (self._plane.become_primary() if primary else self._plane.become_secondary())
        if primary and self.facts.state is not State.PROTECTED:
            self._plane.mute()

    async def _settle(self, reason: str) -> None:
        own = self.facts.own
        if self.facts.register and self.facts.claimed != own.generation:
            await self._record_ownership(own.generation)
        if self._kept.kept.stopped and self._work.qemu is None:
            self._say(Event.VM_SHUTDOWN, "it was stopped when an earlier coloproxy ended")
            return
        await self._work.settle(own.generation, reason)
        self._say(Event.SETTLED, "", self._has_settled)

    def _has_settled(self) -> None:
        self.facts = self.facts.with_(vm=VmView.RUNNING, colo_lost=False, image=True)

    async def _record_ownership(self, generation: int) -> None:
        """Raises PeerError: the register knows better. One that can't be reached is told later."""
        pair, host = self._setting.pair.name, self._setting.host
        if await self._arbiter.record(pair, host, generation):
            return
        ruling = await self._arbiter.owner(pair)
        self._owner = ruling
        if ruling.generation is not None and ruling.generation >= generation and ruling.owner not in (None, host):
            raise PeerError(f"the arbiter has host {ruling.owner} as the owner, at generation {ruling.generation}")
        self._trouble(f"the arbiter does not know yet that this host owns generation {generation}: {ruling.reason}")
        if self._recording is None or self._recording.done():
            self._recording = asyncio.create_task(self._record_later(generation))

    async def _record_later(self, generation: int) -> None:
        pair, host = self._setting.pair.name, self._setting.host
        while self.facts.own.generation == generation:  # nobody tells when the arbiter is there again
            await asyncio.sleep(RECORD_S)
            if await self._arbiter.record(pair, host, generation):
                return

    async def _prepare(self) -> None:
        offer = await self._work.prepare(self._peer_sizes)

        def ready() -> None:
            self.facts = self.facts.with_(vm=VmView.WAITING, offer=offer, colo_lost=False)

        self._say(Event.READY, "", ready)

    async def _protect(self) -> None:
        if self._recording is not None and not self._recording.done():
            raise PeerError("the arbiter does not know yet who the owner is: no protection before that")
        await self._work.protect(self.facts.offer)

        def colo() -> None:
            self.facts = self.facts.with_(vm=VmView.COLO)

        self._say(Event.COLO, "the first checkpoint has committed", colo)

    # ---------------------------------------------------------------- arbiter

    def _ask(self) -> None:
        if self._asking is not None and not self._asking.done():
            return
        generation = self.facts.next_generation
        self._question += 1
        self.facts = self.facts.with_(claiming=True, claimed=generation)
        self._asking = asyncio.create_task(self._claim(generation, self._question), name="claim")

    async def _claim(self, generation: int, question: int) -> None:
        role = "secondary" if self.facts.own.standing is Standing.SECONDARY else "primary"
        claim = Claim(self._setting.pair.name, self._setting.host, role, generation)  # type: ignore[arg-type]
        try:
            ruling = await self._arbiter.claim(claim)
        except ColoproxyError as error:
            ruling = Ruling(Verdict.UNKNOWN, None, None, str(error), 0.0)
        self._owner = ruling
        event = Event.UNKNOWN
        if ruling.verdict is Verdict.WON:
            event = Event.WON
        elif ruling.verdict is Verdict.LOST and ruling.owner is not None:
            event = Event.LOST

        def answered() -> None:
            self.facts = self.facts.with_(claiming=False)

        if event is not Event.UNKNOWN or self.facts.state is not State.CLAIM:
            log.info("generation %d: %s (%s)", generation, ruling.verdict.value, ruling.reason)
        self._say(event, ruling.reason, answered, question=question)

    # --------------------------------------------------------------- the peer

    def _advertise(self) -> None:
        if self._heartbeat is not None:
            copying = self._work.copying
            said = Said(self.facts.advert(), self._work.sizes, copying.lineage, copying.wanted)
            self._heartbeat.set_state(encode(said))

    def _peer_alive(self, boot: str) -> None:
        self._heard()

    def _peer_dead(self, reason: str) -> None:
        def dead() -> None:
            self.facts = self.facts.with_(alive=False)

        self._say(Event.PEER_DEAD, reason, dead)

    def _peer_says(self, state: dict[str, object]) -> None:
        self._heard()

    def _heard(self) -> None:
        beat = self._heartbeat
        if beat is None or not beat.alive or beat.peer_state is None:
            return
        try:
            said = decode(beat.peer_state.state)
        except PeerError as error:
            self._trouble(str(error))
            return
        advert = said.advert
        if advert.colo_lost and self.facts.state is State.PROTECTED and self._outlived != advert.generation:
            advert = replace(advert, colo_lost=False)
            if self._outliving is None or self._outliving.done():
                self._outliving = asyncio.create_task(self._outlive(advert.generation), name="outlive")

        def heard() -> None:
            self._peer_sizes = said.sizes or self._peer_sizes
            self._work.copying.hear(said)
            self.facts = self.facts.with_(peer=advert, alive=True)

        self._say(Event.PEER, f"the peer is {advert.state.value}", heard)

    async def _outlive(self, generation: int) -> None:
        """The secondary's QEMU has lost ours. Because ours is dead? Its end is told here later than over there.

        So we believe it only once ours has answered a question that was asked after the word came. Else we would claim
        the pair for a VM that is dead, and the secondary would throw away the one that lives.
        """
        while self.facts.state is State.PROTECTED and self.facts.own.generation == generation:
            qemu = self._work.qemu
            found = None if qemu is None else await qemu.probe()
            if found is not None and found.health in (vmm.Health.RESPONSIVE, vmm.Health.MAIN_LOOP_HUNG):
                self._outlived = generation
                self._heard()
                return
            await asyncio.sleep(OUTLIVE_S)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._setting.node.retry / 1e9)
            self._heard()
            if self._heartbeat is not None and self._heartbeat.alive is False:
                self._peer_dead("still silent")
            self._say(Event.TICK, "")

    async def _keep_lease(self) -> None:
        while True:
            await asyncio.sleep(self._setting.node.heartbeat.interval / 2e9)
            self._renew_lease()
            self._look_at_link()

    def _look_at_link(self) -> None:
        """A cable that is cut tells nobody: QEMU would wait for the other one for minutes."""
        in_pair = self.facts.state in (State.PROTECTED, State.STANDBY)
        if not in_pair or self._plane.link_up or self.facts.colo_lost:
            self._link_down_since = None
            return
        now = time.monotonic()
        if self._link_down_since is None:
            self._link_down_since = now
        elif now - self._link_down_since >= LINK_S:
            self._link_down_since = None
            self._lost_colo(f"the link has been down for {LINK_S:g} s")

    def _renew_lease(self) -> None:
        """While somebody may take over from us, we may speak only as long as he can't have done so.

        He waits for `timeout` after the last beat of ours that he heard. A node that was stopped for longer, QEMU, data
        path and all, therefore says nothing when it goes on, until it has heard what became of the pair.
        """
        standing, beat = self.facts.own.standing, self._heartbeat
        if standing is not Standing.PRIMARY:
            self._plane.lease(None if standing is Standing.OWNER else 0)
            return
        if beat is None or beat.confirmed is None:
            self._plane.lease(0)
            return
        known = self.facts.peer
        if beat.peer_state is not None:
            with contextlib.suppress(PeerError):
                known = decode(beat.peer_state.state).advert
        superseded = known is None or known.generation > self.facts.own.generation
        self._plane.lease(0 if superseded else beat.confirmed + self._setting.node.heartbeat.timeout)

    # ------------------------------------------------------------------- QEMU

    def _watch(self, qemu: vmm.QemuProcess) -> None:
        """A new one, or an adopted one: its events are ours from now on."""
        if self._watching is not None:
            self._watching.cancel()
        self._watching = asyncio.create_task(self._guarded(self._follow(qemu)))

    async def _follow(self, qemu: vmm.QemuProcess) -> None:
        missed = 0
        with qemu.watch() as events:
            while True:
                item = await events.get()
                match item:
                    case vmm.Exit():
                        if self._work.qemu is qemu:
                            self._qemu_ended(item)
                        return
                    case vmm.Event():
                        self._qemu_says(qemu, item)
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
            return self.facts.vm is VmView.COLO and self.facts.state in (State.PROTECTED, State.STANDBY)

        if self._work.qemu is qemu and believed() and await self._work.view() is VmView.RUNNING and believed():
            self._lost_colo("QEMU is not in COLO any more, which was not heard")

    def _qemu_ended(self, ended: vmm.Exit) -> None:
        def dead() -> None:
            self.facts = self.facts.with_(vm=VmView.NONE)

        wanted = ended.cause is not vmm.Cause.FAULT and not self._kept.kept.secondary  # a copy's wishes don't count
        self._say(Event.VM_SHUTDOWN if wanted else Event.VM_DEAD, ended.text, dead)

    def _qemu_says(self, qemu: vmm.QemuProcess, event: vmm.Event) -> None:
        halted = self.facts.state in _SERVES and self._halt.reason is not None  # each attempt fails with the same words
        if event.name in ("SHUTDOWN", "RESET", "GUEST_PANICKED", "COLO_EXIT", "BLOCK_IO_ERROR", "QUORUM_REPORT_BAD"):
            log.log(logging.DEBUG if halted else logging.INFO, "QEMU: %s", vmm.explain_event(event.name, event.data))
        if event.name == "MIGRATION" and event.data.get("status") == "colo" and self._kept.kept.secondary:
            self._view_is(VmView.COLO, Event.COLO, "QEMU has the primary's state")
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
        elif trouble.what is What.LOCAL_FAILED and self.facts.state in (State.PROTECTED, State.STANDBY, State.READY):
            self._trouble(f"this host's disk has failed, its QEMU is ended: {trouble.text}")
            killing = asyncio.get_running_loop().create_task(self._kill_failed(qemu))
            self._killing.add(killing)  # the loop itself keeps a task by a weak reference only
            killing.add_done_callback(self._killing.discard)
        elif trouble.what is What.GUEST_STOPPED and self.facts.state in _SERVES:
            self._has_halted(trouble.text)
        elif not halted:
            self._trouble(trouble.text)

    def _view_is(self, view: VmView, event: Event, reason: str) -> None:
        def seen() -> None:
            self.facts = self.facts.with_(vm=view)

        self._say(event, reason, seen)

    def _lost_colo(self, reason: str) -> None:
        def lost() -> None:
            view = VmView.RUNNING if self.facts.vm is VmView.COLO else self.facts.vm
            self.facts = self.facts.with_(vm=view, colo_lost=True)
            self._advertise()

        self._say(Event.COLO_LOST, reason, lost)

    async def _kill_failed(self, qemu: vmm.QemuProcess) -> None:
        with contextlib.suppress(ColoproxyError):
            await qemu.kill()

    async def _probe_qemu(self) -> None:
        """One that does not answer at all for seconds is worth nothing, and in the way."""
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
                self._trouble(f"QEMU (process {qemu.pid}) has not answered for {silent * PROBE_S:g} s: it is killed")
                silent = 0
                await self._kill_failed(qemu)

    def _has_halted(self, reason: str) -> None:
        if self._halt.stopped(reason, time.monotonic()):
            self._trouble(f"the VM stands still: {reason}; it goes on when there is room again")

    async def _look_at_halt(self, qemu: vmm.QemuProcess, status: str | None) -> None:
        """A VM that is alone and whose disk was full."""
        if self.facts.state not in _SERVES:
            self._halt.forget()
            return
        if status == IO_ERROR and self._halt.reason is None:  # while nobody listened
            self._has_halted("its disk has failed")
        match self._halt.look(status, time.monotonic()):
            case Step.CONT:
                with contextlib.suppress(QmpError):  # asked again soon
                    await qemu.execute("cont")
            case Step.OVER:
                self._trouble("the VM goes on: its disk takes what it writes")

    def _plane_failed(self, reason: str) -> None:
        """The data path is gone: without it this node is worth nothing. A supervisor starts it again."""
        self._fail(f"data path: {reason}")

    # ---------------------------------------------------------------- control

    def _handlers(self) -> dict[str, Callable[[Mapping[str, Any]], Awaitable[object]]]:
        return {
            "status": self._do_status,
            "checkpoint": self._do_checkpoint,
            "failover": self._do_force,
            "alone": self._do_force,
            "start": self._do_start,
        }

    async def _do_status(self, arguments: Mapping[str, Any]) -> object:
        return self.status()

    async def _do_checkpoint(self, arguments: Mapping[str, Any]) -> object:
        try:
            asked = self._plane.checkpoint(str(arguments.get("reason") or "the operator's wish"))
        except MisuseError as error:
            raise ControlRefused(REFUSED, str(error)) from error
        return {"asked": [asked]}

    async def _do_force(self, arguments: Mapping[str, Any]) -> object:
        if arguments.get("force") is not True:
            raise ControlRefused(
                REFUSED,
                "the node decides that by itself. With force it goes on here, whatever the other host does: say so "
                "only if that one is certainly off, or its data may be lost",
            )
        if decide(self.facts, Event.FORCE) is None:
            raise ControlRefused(REFUSED, f"there is nothing to force: this node is {self.facts.state.value}")
        await self._keep_stopped(stopped=False)

        def forced() -> None:
            self.facts = self.facts.with_(moment=int(time.time()))

        self._say(Event.FORCE, str(arguments.get("reason") or "the operator's wish"), forced)
        return {"forced": self._setting.host}

    async def _do_start(self, arguments: Mapping[str, Any]) -> object:
        if decide(self.facts, Event.START) is None:
            raise ControlRefused(REFUSED, f"there is nothing to start: this node is {self.facts.state.value}")
        await self._keep_stopped(stopped=False)
        self._say(Event.START, "the operator's wish")
        return {"started": self._setting.host}

    def status(self) -> dict[str, Any]:
        """JSON; docs/observability.md has its schema."""
        facts, now = self.facts, time.monotonic_ns()
        beat = self._heartbeat
        peer: dict[str, Any] = {"host": other(facts.host), "alive": facts.alive}
        if facts.peer is not None:
            peer |= {"state": facts.peer.state.value, "generation": facts.peer.generation}
        if beat is not None:
            peer |= told.peer(beat.stats())
        qemu = self._work.qemu
        progress = self._work.copying.progress
        disks = [
            {
                "name": f"colo-disk{index}",
                "size": self._work.sizes[index] if index < len(self._work.sizes) else None,
                "state": facts.own.standing.value,
                "resync": None
                if progress is None
                else {
                    "offset": progress.done,
                    "total": progress.total,
                    "rate": round(progress.bytes_per_s),
                    "eta_s": _eta(progress),
                },
            }
            for index in range(len(self._setting.node.disks))
        ]
        return {
            "pair": self._setting.pair.name,
            "host": facts.host,
            "role": "secondary" if self._kept.kept.secondary else "primary",
            "state": facts.state.value,
            "standing": facts.own.standing.value,
            "since_s": round((now - self._since) / 1e9, 3),
            "uptime_s": round((now - self._began) / 1e9, 3),
            "pid": os.getpid(),
            "generation": facts.own.generation,
            "reason": self._reason,
            "doing": None if self._doing is None or self._doing[1].done() else self._doing[0].value,
            "peer": peer,
            "heartbeat": {"paths": [] if beat is None else told.paths(beat.stats())},
            "arbiter": {
                "kind": self._setting.node.arbiter.kind,
                "owner": None if self._owner is None else self._owner.owner,
                "generation": None if self._owner is None else self._owner.generation,
                "reachable": None if self._owner is None else self._owner.verdict is not Verdict.UNKNOWN,
            },
            "vm": self._plane.status(),
            "qemu": None
            if qemu is None
            else {
                "pid": qemu.pid,
                "state": facts.vm.value,
                "hung": self._probe is not None and self._probe.health is not vmm.Health.RESPONSIVE,
                "halted": self._halt.reason is not None,
                "halt_reason": self._halt.reason,
            },
            "disks": disks,
            "resync": self._work.copying.status(),
            "history": list(self._history),
        }


def _eta(progress: Progress) -> float | None:
    left = progress.total - progress.done
    return round(left / progress.bytes_per_s, 1) if progress.bytes_per_s else None
