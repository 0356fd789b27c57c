# SPDX-License-Identifier: Apache-2.0
"""What an operator may ask a node for, over its control socket. docs/control.md."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from coloproxy.control.protocol import REFUSED
from coloproxy.control.server import Handler
from coloproxy.errors import ControlRefused, MisuseError

from .board import Board
from .machine import Event, decide
from .plane import Plane


class Commands:
    """status: what the node says of itself. wanted: puts on disk that the VM is to run, before what follows from it."""

    def __init__(
        self,
        board: Board,
        plane: Plane,
        status: Callable[[], dict[str, Any]],
        wanted: Callable[[], Awaitable[None]],
    ) -> None:
        self._board = board
        self._plane = plane
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
        try:
            asked = self._plane.checkpoint(_reason(arguments))
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
        facts = self._board.facts
        if decide(facts, Event.FORCE) is None:
            raise ControlRefused(REFUSED, f"there is nothing to force: this node is {facts.state.value}")
        await self._wanted()

        def forced() -> None:
            self._board.know(moment=int(time.time()))

        self._board.say(Event.FORCE, _reason(arguments), forced)
        return {"forced": facts.host}

    async def _do_start(self, arguments: Mapping[str, Any]) -> object:
        facts = self._board.facts
        if decide(facts, Event.START) is None:
            raise ControlRefused(REFUSED, f"there is nothing to start: this node is {facts.state.value}")
        await self._wanted()
        self._board.say(Event.START, "the operator's wish")
        return {"started": facts.host}


def _reason(arguments: Mapping[str, Any]) -> str:
    return str(arguments.get("reason") or "the operator's wish")
