# SPDX-License-Identifier: Apache-2.0
"""How the node came to be where it is: each change of its state or record is told, and kept for the status."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any, Final

from . import told
from .board import Board
from .facts import State
from .machine import Event

KEPT: Final = 200


class History:
    """since: in this state, CLOCK_MONOTONIC ns. reason: for it, or for the last change of the record."""

    def __init__(self, board: Board) -> None:
        self.reason = "begins"
        self.since = time.monotonic_ns()
        self._board = board
        self._entries: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._moved = asyncio.Event()

    def note(self, before: State, event: Event, why: str, reason: str) -> None:
        """After the change. why: by the table; reason: what was heard."""
        facts, now = self._board.facts, time.monotonic_ns()
        if facts.state is not before:
            self.since = now
            self._moved.set()
        self.reason = f"{why} ({reason})" if reason else why
        report = told.NodeState(
            facts.host, before.value, facts.state.value, event.value, self.reason,
            facts.own.standing.value, facts.own.generation,
        )  # fmt: skip
        self._board.tell(report)
        self._entries.append(
            {
                "at": round(time.time(), 3),
                "from": before.value,
                "to": facts.state.value,
                "event": event.value,
                "reason": self.reason,
            }
        )

    async def move(self) -> None:
        """Until the node goes to another state."""
        self._moved.clear()
        await self._moved.wait()

    def entries(self) -> list[dict[str, Any]]:
        """JSON; the last ones, oldest first."""
        return list(self._entries)
