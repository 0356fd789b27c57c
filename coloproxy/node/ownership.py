# SPDX-License-Identifier: Apache-2.0
"""Who owns the pair, as the arbiter has it: it is asked for the next generation, and told of one that we own."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from coloproxy.arbiter import Arbiter, Claim, Ruling, Verdict
from coloproxy.arbiter.claim import Role
from coloproxy.errors import ColoproxyError, PeerError

from . import tasks
from .board import Board
from .facts import Host, Standing, State
from .machine import Event

log = logging.getLogger(__name__)

RECORD_S: Final = 1.0


class Ownership:
    """ruling: the arbiter's last word. One question at a time; each has a number."""

    def __init__(self, board: Board, pair: str, host: Host, arbiter: Arbiter) -> None:
        self.ruling: Ruling | None = None
        self._board = board
        self._pair = pair
        self._host = host
        self._arbiter = arbiter
        self._asking: asyncio.Task[None] | None = None
        self._question = 0
        self._recording: asyncio.Task[None] | None = None

    # -------------------------------------------------------------- questions

    def ask(self) -> None:
        """May this node have the next generation? The answer is an event."""
        if self._asking is not None and not self._asking.done():
            return
        generation = self._board.facts.next_generation
        self._question += 1
        self._board.know(claiming=True, claimed=generation)
        self._asking = asyncio.create_task(self._claim(generation, self._question), name="claim")

    def withdraw(self) -> bool:
        """What was asked is not asked any more. False: nothing was."""
        if self._asking is None:
            return False
        self._asking.cancel()
        self._asking = None
        self._question += 1
        return True

    async def _claim(self, generation: int, question: int) -> None:
        facts = self._board.facts
        role: Role = "secondary" if facts.own.standing is Standing.SECONDARY else "primary"
        claim = Claim(self._pair, self._host, role, generation)
        try:
            ruling = await self._arbiter.claim(claim)
        except ColoproxyError as error:
            ruling = Ruling(Verdict.UNKNOWN, None, None, str(error), 0.0)
        self.ruling = ruling
        event = Event.UNKNOWN
        if ruling.verdict is Verdict.WON:
            event = Event.WON
        elif ruling.verdict is Verdict.LOST and ruling.owner is not None:
            event = Event.LOST

        def answered() -> None:
            self._board.know(claiming=False)

        def still_asked() -> bool:
            """Else it would be taken for the present question's answer."""
            return question == self._question

        if event is not Event.UNKNOWN or self._board.facts.state is not State.CLAIM:
            log.info("generation %d: %s (%s)", generation, ruling.verdict.value, ruling.reason)
        self._board.say(event, ruling.reason, answered, still_asked)

    # ---------------------------------------------------------------- records

    @property
    def recording(self) -> bool:
        """The arbiter does not know yet who the owner is."""
        return self._recording is not None and not self._recording.done()

    async def record(self, generation: int) -> None:
        """Raises PeerError: the register knows better. One that can't be reached is told later."""
        if await self._arbiter.record(self._pair, self._host, generation):
            return
        ruling = await self._arbiter.owner(self._pair)
        self.ruling = ruling
        another = ruling.owner not in (None, self._host)
        if ruling.generation is not None and ruling.generation >= generation and another:
            raise PeerError(f"the arbiter has host {ruling.owner} as the owner, at generation {ruling.generation}")
        self._board.trouble(
            f"the arbiter does not know yet that this host owns generation {generation}: {ruling.reason}"
        )
        if not self.recording:
            self._recording = asyncio.create_task(self._record_later(generation))

    async def _record_later(self, generation: int) -> None:
        while self._board.facts.own.generation == generation:  # nobody tells when the arbiter is there again
            await asyncio.sleep(RECORD_S)
            if await self._arbiter.record(self._pair, self._host, generation):
                return

    # -------------------------------------------------------------------- end

    async def end(self) -> None:
        """Nothing is asked or told any more."""
        await tasks.end(self._asking)
        await tasks.end(self._recording)

    async def close(self) -> None:
        await self._arbiter.close()
