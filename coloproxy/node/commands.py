# SPDX-License-Identifier: Apache-2.0
"""What an operator may ask a node for, over its control socket. docs/control.md."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from coloproxy.control.protocol import FAILED, REFUSED, wait_of
from coloproxy.control.server import Handler
from coloproxy.errors import ControlRefused
from coloproxy.run.checkpoints import until_committed

from .board import Board
from .facts import State
from .history import History
from .machine import Event, decide
from .plane import Plane

_SERVES: Final = frozenset({State.ALONE, State.PROTECT, State.PROTECTED})
_DOES_NOT: Final = frozenset({State.FAILED, State.STOPPED})


class Commands:
    """vm: its name. status: what the node says of itself.

    wanted: puts on disk that the VM is to run, before what follows from it.
    """

    def __init__(
        self,
        board: Board,
        history: History,
        plane: Plane,
        vm: str,
        status: Callable[[], dict[str, Any]],
        wanted: Callable[[], Awaitable[None]],
    ) -> None:
        self._board = board
        self._history = history
        self._plane = plane
        self._vm = vm
        self._status = status
        self._wanted = wanted

    def handlers(self) -> dict[str, Handler]:
        return {
            "status": self._do_status,
            "checkpoint": self._do_checkpoint,
            "failover": self._do_force,
            "alone": self._do_force,
            "start": self._do_start,
        }

    async def _do_status(self, arguments: Mapping[str, Any]) -> object:
        return self._status()

    async def _do_checkpoint(self, arguments: Mapping[str, Any]) -> object:
        wait_s = wait_of(arguments)
        begins = self._plane.checkpoint(_reason(arguments))
        if wait_s is None:
            return {"asked": [self._vm]}
        await until_committed([begins], wait_s)
        return {"committed": [self._vm]}

    async def _do_force(self, arguments: Mapping[str, Any]) -> object:
        if arguments.get("force") is not True:
            raise ControlRefused(
                REFUSED,
                "the node decides that by itself. With force it goes on here, whatever the other host does: say so "
                "only if that one is certainly off, or its data may be lost",
            )
        wait_s, facts = wait_of(arguments), self._board.facts
        if decide(facts, Event.FORCE) is None:
            raise ControlRefused(REFUSED, f"there is nothing to force: this node is {facts.state.value}")
        await self._wanted()

        def forced() -> None:
            self._board.know(moment=int(time.time()))

        self._board.say(Event.FORCE, _reason(arguments), forced)
        await self._until_served(wait_s)
        return {"forced": facts.host}

    async def _do_start(self, arguments: Mapping[str, Any]) -> object:
        wait_s, facts = wait_of(arguments), self._board.facts
        if decide(facts, Event.START) is None:
            raise ControlRefused(REFUSED, f"there is nothing to start: this node is {facts.state.value}")
        await self._wanted()
        self._board.say(Event.START, "the operator's wish")
        await self._until_served(wait_s)
        return {"started": facts.host}

    async def _until_served(self, wait_s: float | None) -> None:
        """What was just said has not had its turn yet: so it may have failed, or be stopped, as it was before.

        Raises ControlRefused: it comes to nothing, or has not come to be served in wait_s seconds.
        """
        if wait_s is None:
            return
        try:
            async with asyncio.timeout(wait_s):
                while self._board.facts.state not in _SERVES:
                    await self._history.move()
                    if self._board.facts.state in _DOES_NOT:
                        text = f"the VM is not served: this node is {self._board.facts.state.value}"
                        raise ControlRefused(FAILED, f"{text}: {self._history.reason}")
        except TimeoutError:
            text = f"the VM is not served after {wait_s:g} s: this node is {self._board.facts.state.value}"
            raise ControlRefused(FAILED, f"{text}: {self._history.reason}") from None


def _reason(arguments: Mapping[str, Any]) -> str:
    return str(arguments.get("reason") or "the operator's wish")
