# SPDX-License-Identifier: Apache-2.0
"""What the parts of a node share: what it knows, what has happened and waits for its turn, and how it tells."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from coloproxy.journal import Journal
from coloproxy.reports import Report, Trouble

from .facts import Facts
from .machine import Event

log = logging.getLogger(__name__)


def _nothing() -> None:
    pass


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Happened:
    """An event that waits for its turn."""

    event: Event
    reason: str
    before: Callable[[], None]
    """Facts that come with it, taken over at its turn."""
    counts: Callable[[], bool]
    """Asked at its turn. False: as if it had not happened."""


class Board:
    """facts: what the node knows now. Parts say events and know facts; what follows is for play.py alone."""

    def __init__(self, facts: Facts, journal: Journal) -> None:
        self.facts = facts
        self._journal = journal
        self._queue: asyncio.Queue[Happened] = asyncio.Queue()

    def know(self, **changes: object) -> None:
        """Facts, by name."""
        self.facts = self.facts.with_(**changes)

    def say(
        self,
        event: Event,
        reason: str,
        before: Callable[[], None] = _nothing,
        counts: Callable[[], bool] = _always,
    ) -> None:
        self._queue.put_nowait(Happened(event, reason, before, counts))

    async def next(self) -> Happened:
        """What has happened, one after the other."""
        return await self._queue.get()

    def tell(self, report: Report) -> None:
        """The log and the journal."""
        log.log(report.level, "%s", report)
        self._journal.report(report)

    def trouble(self, text: str) -> None:
        self.tell(Trouble(text))
