# SPDX-License-Identifier: Apache-2.0
"""Plays the table of machine.py: takes events, one after the other, and does what it says. docs/node-table.md.

The record is on disk before any action that follows from it. Long actions are tasks whose end is an event.
"""

from __future__ import annotations

import asyncio
from typing import Final

from coloproxy.errors import ColoproxyError, PeerError

from .board import Board
from .facts import Standing, State, VmView
from .history import History
from .machine import Action, Event, decide
from .ownership import Ownership
from .peer import Peer
from .plane import Plane
from .record import RecordFile
from .setting import Setting
from .tasks import Doing
from .work import Work

FAILED_S: Final = 60.0  # at most, from one attempt to the next
_BUSY: Final = frozenset({State.SETTLE, State.JOIN, State.PROTECT})
_ASKS: Final = frozenset({State.SUSPENDED, State.YIELDED, State.CLAIM, State.STOPPED})


class Play:
    """`await serve()`, and `await tick()` beside it. history: what has come of it so far."""

    def __init__(
        self,
        board: Board,
        setting: Setting,
        kept: RecordFile,
        plane: Plane,
        work: Work,
        peer: Peer,
        ownership: Ownership,
    ) -> None:
        self.history = History(board)
        self._board = board
        self._retry = setting.node.retry / 1e9
        self._kept = kept
        self._plane = plane
        self._work = work
        self._peer = peer
        self._ownership = ownership
        self._doing = Doing(board)
        self._failures = 0

    @property
    def doing(self) -> str | None:
        """The long action that runs."""
        return self._doing.name

    async def end(self) -> None:
        """Of the long action."""
        await self._doing.end()

    # ----------------------------------------------------------------- events

    async def tick(self) -> None:
        """For ever: what no event may tell is looked at again."""
        while True:
            await asyncio.sleep(self._retry)
            self._peer.repeat()
            self._board.say(Event.TICK, "")

    async def serve(self) -> None:
        """For ever."""
        while True:
            happened = await self._board.next()
            if not happened.counts():
                continue
            happened.before()
            await self._happens(happened.event, happened.reason)
            self._work.copying.obey(self._board.facts)

    async def _happens(self, event: Event, reason: str) -> None:
        board = self._board
        step = decide(board.facts, event)
        if step is None:
            if not self._doing.begun and event is Event.FAILED:
                self._peer.advertise()
            return
        before, changes = board.facts.state, step.record != board.facts.own
        if step.state is State.STOPPED and before is not State.STOPPED:
            await self._keep_stopped(stopped=True)
        if changes:
            await asyncio.to_thread(self._kept.write, step.record)  # a busy disk must not look like our death
        facts = board.facts.with_(state=step.state, own=step.record)
        if before is State.PROTECT and event is not Event.COLO and facts.offer:
            facts = facts.with_(spent=facts.offer)
        if step.record.standing in (Standing.PRIMARY, Standing.SECONDARY) or step.state in (State.SETTLE, State.JOIN):
            facts = facts.with_(offer="")
        if step.state not in _ASKS and self._ownership.withdraw():
            facts = facts.with_(claiming=False)
        board.facts = facts
        self._peer.renew_lease()  # before anybody hears of a pair
        if step.state is not before or changes:
            self.history.note(before, event, step.row.why, reason)
        if step.state is not before and step.state not in _BUSY:
            await self._doing.end()
        if step.state is State.FAILED:
            self._try_again()
        elif step.state is State.ALONE:
            self._failures = 0
        self._peer.advertise()
        for action in step.actions:
            await self._act(action, f"{step.row.why} ({reason})")

    def _try_again(self) -> None:
        """Most failures pass: a disk that is full, a port that is taken. So not a person alone may say START."""
        self._failures += 1
        delay = min(self._retry * 2**self._failures, FAILED_S)

        def again() -> None:
            if self._board.facts.state is State.FAILED:
                self._board.say(Event.START, "after a while")

        asyncio.get_running_loop().call_later(delay, again)

    async def wanted(self) -> None:
        """The operator wants the VM to run, though its guest or he himself has ended it."""
        await self._keep_stopped(stopped=False)

    async def _keep_stopped(self, *, stopped: bool) -> None:
        """For a coloproxy that comes after this one."""
        try:
            await asyncio.to_thread(self._kept.note, stopped=stopped)
        except OSError as error:
            self._board.trouble(f"whether the VM is to be started can't be noted: {error}")

    # ---------------------------------------------------------------- actions

    async def _act(self, action: Action, reason: str) -> None:
        match action:
            case Action.CLAIM:
                self._ownership.ask()
            case Action.MUTE:
                self._plane.mute()
            case Action.DISCARD:
                await self._doing.end()
                await self._discard()
            case Action.ADOPT:
                self._doing.begin(action, self._adopt())
            case Action.SETTLE:
                self._doing.begin(action, self._settle(reason))
            case Action.PREPARE:
                self._doing.begin(action, self._prepare())
            case Action.PROTECT:
                assert self._board.facts.peer is not None  # a guard has looked
                self._board.know(offer=self._board.facts.peer.offer, colo_lost=False)
                self._doing.begin(action, self._protect())

    async def _discard(self) -> None:
        try:
            await self._plane.end()
        except ColoproxyError as error:
            self._board.trouble(f"data path: {error}")
        try:
            await self._work.kill()
        except ColoproxyError as error:
            self._board.trouble(str(error))
        self._board.know(vm=VmView.NONE, colo_lost=False, offer="")

    async def _adopt(self) -> None:
        primary = self._board.facts.own.standing is Standing.PRIMARY
        await (self._plane.become_primary() if primary else self._plane.become_secondary())
        if primary and self._board.facts.state is not State.PROTECTED:
            self._plane.mute()

    async def _settle(self, reason: str) -> None:
        facts = self._board.facts
        generation = facts.own.generation
        if facts.register and facts.claimed != generation:
            await self._ownership.record(generation)
        if self._kept.kept.stopped and self._work.qemu is None:
            self._board.say(Event.VM_SHUTDOWN, "it was stopped when an earlier coloproxy ended")
            return
        await self._work.settle(generation, reason)

        def settled() -> None:
            self._board.know(vm=VmView.RUNNING, colo_lost=False, image=True)

        self._board.say(Event.SETTLED, "", settled)

    async def _prepare(self) -> None:
        offer = await self._work.prepare(self._peer.sizes)

        def ready() -> None:
            self._board.know(vm=VmView.WAITING, offer=offer, colo_lost=False)

        self._board.say(Event.READY, "", ready)

    async def _protect(self) -> None:
        if self._ownership.recording:
            raise PeerError("the arbiter does not know yet who the owner is: no protection before that")
        await self._work.protect(self._board.facts.offer)

        def colo() -> None:
            self._board.know(vm=VmView.COLO)

        self._board.say(Event.COLO, "the first checkpoint has committed", colo)
