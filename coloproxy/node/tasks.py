# SPDX-License-Identifier: Apache-2.0
"""A node's tasks: how one is ended, and the long action, of which there is one at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any

from coloproxy.errors import ColoproxyError

from .board import Board
from .machine import Action, Event

log = logging.getLogger(__name__)


async def end(task: asyncio.Task[None] | None) -> None:
    """Cancels it, if there is one, and waits for its end; what it raises then is nobody's."""
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


async def whole(work: Coroutine[Any, Any, None]) -> None:
    """To its end, also if whoever waits for it is cancelled: that comes to him only then.

    For what would leave devices open if it ended half-way.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("%s", error)
        raise


class Doing:
    """The long action of the moment. That it has failed is an event; what else comes of it, it says itself."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._doing: tuple[Action, asyncio.Task[None]] | None = None

    @property
    def begun(self) -> bool:
        """And not ended from here since; it may have come to its end by itself."""
        return self._doing is not None

    @property
    def name(self) -> str | None:
        """Of what runs now."""
        return None if self._doing is None or self._doing[1].done() else self._doing[0].value

    def begin(self, action: Action, work: Coroutine[Any, Any, None]) -> None:
        """One at a time; what is being done already is not begun again."""
        if self._doing is not None and not self._doing[1].done():
            if self._doing[0] is action:
                work.close()
                return
            before = self._doing[1]
        else:
            before = None

        async def done() -> None:
            await end(before)
            try:
                await work
            except (ColoproxyError, OSError) as error:
                text = f"{action.value}: {error}"
                log.debug("%s", text, exc_info=error)
                self._board.trouble(text)
                self._board.say(Event.FAILED, text)
            except Exception as error:
                log.exception("%s", action.value)
                self._board.say(Event.FAILED, f"{action.value}: {error!r}")

        self._doing = (action, asyncio.create_task(done(), name=action.value))

    async def end(self) -> None:
        if self._doing is not None:
            _, task = self._doing
            self._doing = None
            await end(task)
