# SPDX-License-Identifier: Apache-2.0
"""The other node: what each says of itself, whether it is alive, and how long we may speak without a word of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from typing import Final

from coloproxy import vmm
from coloproxy.errors import PeerError
from coloproxy.heartbeat import Heartbeat, Stats

from . import tasks
from .adverts import Said, decode, encode
from .board import Board
from .facts import Standing, State, VmView
from .machine import Event
from .plane import Plane
from .setting import Setting
from .work import Work

OUTLIVE_S: Final = 0.05
LINK_S: Final = 1.0  # beyond the link's own time-out, for it to be made again


class Peer:
    """sizes: of its disks, bytes, as it said last; empty: not known.

    Raises ConfigError, MisuseError: the heartbeat's key.
    """

    def __init__(self, board: Board, setting: Setting, plane: Plane, work: Work) -> None:
        self.sizes: tuple[int, ...] = ()
        self._board = board
        self._plane = plane
        self._work = work
        self._beats = setting.node.heartbeat
        settings, paths = setting.heartbeat()
        self._heartbeat = Heartbeat(settings, paths, on_alive=self._alive, on_dead=self._dead, on_state=self._says)
        self._link_down_since: float | None = None
        self._outliving: asyncio.Task[None] | None = None
        self._outlived = -1
        """The generation at which our QEMU has answered since the peer's had lost it."""

    def start(self) -> None:
        """From now on both hear each other. Raises ColoproxyError."""
        self._heartbeat.start()

    def close(self) -> None:
        self._heartbeat.close()

    async def end(self) -> None:
        await tasks.end(self._outliving)

    def stats(self) -> Stats:
        return self._heartbeat.stats()

    # -------------------------------------------------------------- what we say

    def advertise(self) -> None:
        copying = self._work.copying
        said = Said(self._board.facts.advert(), self._work.sizes, copying.lineage, copying.wanted)
        self._heartbeat.set_state(encode(said))

    def lost_colo(self, reason: str) -> None:
        """COLO has ended, by our QEMU or by what is between it and the other one: the peer is to know."""

        def lost() -> None:
            facts = self._board.facts
            view = VmView.RUNNING if facts.vm is VmView.COLO else facts.vm
            self._board.know(vm=view, colo_lost=True)
            self.advertise()

        self._board.say(Event.COLO_LOST, reason, lost)

    # --------------------------------------------------------------- what it says

    def repeat(self) -> None:
        """What is known of it already, as events: a step may be possible now that was not when they came."""
        self._hear()
        if self._heartbeat.alive is False:
            self._dead("still silent")

    def _alive(self, boot: str) -> None:
        self._hear()

    def _dead(self, reason: str) -> None:
        def dead() -> None:
            self._board.know(alive=False)

        self._board.say(Event.PEER_DEAD, reason, dead)

    def _says(self, state: dict[str, object]) -> None:
        self._hear()

    def _hear(self) -> None:
        beat, facts = self._heartbeat, self._board.facts
        if not beat.alive or beat.peer_state is None:
            return
        try:
            said = decode(beat.peer_state.state)
        except PeerError as error:
            self._board.trouble(str(error))
            return
        advert = said.advert
        if advert.colo_lost and facts.state is State.PROTECTED and self._outlived != advert.generation:
            advert = replace(advert, colo_lost=False)
            if self._outliving is None or self._outliving.done():
                self._outliving = asyncio.create_task(self._outlive(advert.generation), name="outlive")

        def heard() -> None:
            self.sizes = said.sizes or self.sizes
            self._work.copying.hear(said)
            self._board.know(peer=advert, alive=True)

        self._board.say(Event.PEER, f"the peer is {advert.state.value}", heard)

    async def _outlive(self, generation: int) -> None:
        """The secondary's QEMU has lost ours. Because ours is dead? Its end is told here later than over there.

        So we believe it only once ours has answered a question that was asked after the word came. Else we would claim
        the pair for a VM that is dead, and the secondary would throw away the one that lives.
        """
        while self._board.facts.state is State.PROTECTED and self._board.facts.own.generation == generation:
            qemu = self._work.qemu
            found = None if qemu is None else await qemu.probe()
            if found is not None and found.health in (vmm.Health.RESPONSIVE, vmm.Health.MAIN_LOOP_HUNG):
                self._outlived = generation
                self._hear()
                return
            await asyncio.sleep(OUTLIVE_S)

    # ------------------------------------------------------------ what is between

    async def keep_lease(self) -> None:
        """Twice a beat; and the link is looked at."""
        while True:
            await asyncio.sleep(self._beats.interval / 2e9)
            self.renew_lease()
            self._look_at_link()

    def renew_lease(self) -> None:
        """While somebody may take over from us, we may speak only as long as he can't have done so.

        He waits for `timeout` after the last beat of ours that he heard. A node that was stopped for longer, QEMU, data
        path and all, therefore says nothing when it goes on, until it has heard what became of the pair.
        """
        facts, beat = self._board.facts, self._heartbeat
        standing = facts.own.standing
        if standing is not Standing.PRIMARY:
            self._plane.lease(None if standing is Standing.OWNER else 0)
            return
        if beat.confirmed is None:
            self._plane.lease(0)
            return
        known = facts.peer
        if beat.peer_state is not None:
            with contextlib.suppress(PeerError):
                known = decode(beat.peer_state.state).advert
        superseded = known is None or known.generation > facts.own.generation
        self._plane.lease(0 if superseded else beat.confirmed + self._beats.timeout)

    def _look_at_link(self) -> None:
        """A cable that is cut tells nobody: QEMU would wait for the other one for minutes."""
        facts = self._board.facts
        in_pair = facts.state in (State.PROTECTED, State.STANDBY)
        if not in_pair or self._plane.link_up or facts.colo_lost:
            self._link_down_since = None
            return
        now = time.monotonic()
        if self._link_down_since is None:
            self._link_down_since = now
        elif now - self._link_down_since >= LINK_S:
            self._link_down_since = None
            self.lost_colo(f"the link has been down for {LINK_S:g} s")
