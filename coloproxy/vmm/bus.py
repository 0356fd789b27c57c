# SPDX-License-Identifier: Apache-2.0
"""What happened to a QEMU, in order, to as many as want to know it; each with a bounded queue of its own."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from coloproxy.errors import QmpError, VmmError, VmmExited

from .explain import Cause

LIMIT: Final = 1000


@dataclass(frozen=True, slots=True)
class Event:
    """A QMP event of the control monitor."""

    name: str
    data: Mapping[str, object]
    at: int | None
    """When QEMU says that it happened, CLOCK_MONOTONIC ns; None if it didn't say."""
    now: int
    """When it was read, CLOCK_MONOTONIC ns."""


@dataclass(frozen=True, slots=True)
class Connected:
    """The control monitor is connected. Events before this may have been missed: ask for the state."""

    now: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The control monitor is lost: QEMU ended, or closed it, or another peer's nonsense did."""

    reason: str
    now: int


@dataclass(frozen=True, slots=True)
class Exit:
    """QEMU has ended. The last thing on the bus."""

    status: int | None
    """Exit status, -N if signal N ended it; None: not known, for it was not our child (adopted)."""
    shutdown: Event | None
    """The SHUTDOWN event that came before, if one did."""
    cause: Cause
    """Who is behind it: the guest, an operator, or nobody. Without a SHUTDOWN event it counts as a fault."""
    text: str
    """Why, for people."""
    now: int


Item = Event | Connected | Lost | Exit


class Subscription:
    """What comes on the bus from the subscription on, oldest first. Keeps `limit`; of more, the oldest go.

    Attributes:
        lost: how many went unread. Not 0: ask QEMU for its state instead of counting on events.
    """

    def __init__(self, names: frozenset[str], limit: int) -> None:
        self.lost = 0
        self._names = names
        self._items: collections.deque[Item] = collections.deque()
        self._limit = limit
        self._arrived = asyncio.Event()

    def put(self, item: Item) -> None:
        """For the bus."""
        if isinstance(item, Event) and self._names and item.name not in self._names:
            return
        if len(self._items) >= self._limit:
            self._items.popleft()
            self.lost += 1
        self._items.append(item)
        self._arrived.set()

    def take(self) -> list[Item]:
        """All that came and was not read yet."""
        items = list(self._items)
        self._items.clear()
        return items

    async def get(self, deadline_s: float | None = None) -> Item:
        """The next item of any kind. Raises VmmError: none came within `deadline_s` seconds (None: waits for ever)."""
        item = await self._pop(deadline_s)
        if item is None:
            raise VmmError(f"{self._what()}: nothing within {deadline_s:g} s")
        return item

    async def next(self, wanted: Callable[[Event], bool] | str, deadline_s: float) -> Event:
        """The next event of that name, or that satisfies the predicate; what came before it is thrown away.

        Raises VmmError: it did not come within `deadline_s` seconds. QmpError: the monitor was lost meanwhile, so it
        may have been missed. VmmExited: QEMU has ended.
        """
        until = time.monotonic() + deadline_s
        seen: list[str] = []
        while True:
            item = await self._pop(max(until - time.monotonic(), 0))
            match item:
                case Event():
                    if (item.name == wanted) if isinstance(wanted, str) else wanted(item):
                        return item
                    seen.append(item.name)
                case Lost():
                    raise QmpError(f"QMP lost while waiting for {self._what()}: {item.reason}")
                case Exit():
                    raise VmmExited(item.status, item.text)
                case None:
                    what = wanted if isinstance(wanted, str) else self._what()
                    raise VmmError(f"no {what} within {deadline_s:g} s (saw {', '.join(seen[-10:]) or 'nothing'})")

    async def _pop(self, deadline_s: float | None) -> Item | None:
        """The next item, None at the deadline. One that is there already is found even if no time is left."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                while not self._items:
                    self._arrived.clear()
                    await self._arrived.wait()
        return self._items.popleft() if self._items else None

    def _what(self) -> str:
        return "/".join(sorted(self._names)) or "any event"


class Bus:
    """Hands each item to every subscription."""

    def __init__(self) -> None:
        self._subscriptions: list[Subscription] = []

    def publish(self, item: Item) -> None:
        """In the order of what happened."""
        for subscription in self._subscriptions:
            subscription.put(item)

    @contextlib.contextmanager
    def watch(self, *names: str, limit: int = LIMIT) -> Iterator[Subscription]:
        """Events of these names (none named: all), and everything that is no event, until the end of the block.

        Begin it before the command whose events are awaited: it holds no older ones.
        """
        subscription = Subscription(frozenset(names), limit)
        self._subscriptions.append(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)
