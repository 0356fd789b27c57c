# SPDX-License-Identifier: Apache-2.0
"""A QMP connection in which everything has a deadline.

A thin layer over `qemu.qmp`, whose execute() waits for ever and whose default listener keeps every event for ever.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, Message, QMPClient, QMPError, Runstate

from .errors import DeadlineError, MonitorError

DEFAULT_DEADLINE = 5.0
_RETRY_SECONDS = 0.05
_LIVENESS_SECONDS = 0.25
_WATCH_LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class Event:
    """An event as QEMU sent it."""

    name: str
    data: Mapping[str, object]
    seconds: float
    """QEMU's own time stamp: seconds since 1970 by the clock of its host."""


class Watch:
    """The events that arrived since the watch began, oldest first.  Keeps the last 10,000."""

    def __init__(self, monitor: Monitor, names: frozenset[str]) -> None:
        self._monitor = monitor
        self._names = names
        self._events: collections.deque[Event] = collections.deque(maxlen=_WATCH_LIMIT)
        self._arrived = asyncio.Event()

    def put(self, event: Event) -> None:
        """Take in an event; for Monitor."""
        if event.name in self._names:
            self._events.append(event)
            self._arrived.set()

    def take(self) -> list[Event]:
        """All that arrived and was not taken yet."""
        taken = list(self._events)
        self._events.clear()
        return taken

    async def next(self, wanted: Callable[[Event], bool] | str, deadline: float) -> Event:
        """The next event of that name, or that satisfies the predicate; events before it are thrown away.

        Raises DeadlineError, or MonitorError if the monitor goes away meanwhile.
        """
        until = time.monotonic() + deadline
        seen: list[str] = []
        while True:
            while self._events:
                event = self._events.popleft()
                if (event.name == wanted) if isinstance(wanted, str) else wanted(event):
                    return event
                seen.append(event.name)
            self._monitor.check_connected()
            left = until - time.monotonic()
            if left <= 0:
                what = wanted if isinstance(wanted, str) else "/".join(sorted(self._names))
                raise DeadlineError(
                    f"{self._monitor.name}: no {what} event within {deadline:g} s (saw {', '.join(seen) or 'none'})"
                )
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, _LIVENESS_SECONDS)):
                    await self._arrived.wait()


class Monitor:
    """One QMP connection.  Make it with Monitor.connect()."""

    def __init__(self, name: str, client: QMPClient) -> None:
        self.name = name
        self._client = client
        self._watches: list[Watch] = []
        # The default listener can't be removed, and stores whatever its filter accepts.  So the filter hands each
        # event to our own, bounded watches, and accepts none.
        client.events.event_filter = self._dispatch

    @classmethod
    async def connect(cls, path: Path, name: str, deadline: float = DEFAULT_DEADLINE) -> Monitor:
        """Connect to QEMU's monitor socket, which may not exist yet.

        Out-of-band commands are enabled where QEMU offers them.  Raises DeadlineError.
        """
        until = time.monotonic() + deadline
        while True:
            client = QMPClient(name)
            try:
                async with asyncio.timeout(max(until - time.monotonic(), _RETRY_SECONDS)):
                    await client.connect(str(path))
                return cls(name, client)
            except (ConnectError, TimeoutError) as error:
                if time.monotonic() >= until:
                    raise DeadlineError(f"{name}: no QMP monitor at {path} within {deadline:g} s: {error}") from error
                await asyncio.sleep(_RETRY_SECONDS)

    def check_connected(self) -> None:
        """Raise MonitorError if the connection is no longer up."""
        if self._client.runstate != Runstate.RUNNING:
            raise MonitorError(f"{self.name}: the QMP connection is gone; QEMU ended, or closed it")

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        deadline: float = DEFAULT_DEADLINE,
        oob: bool = False,
    ) -> object:
        """Run a command and return its answer.

        *oob* runs it out of band: QEMU then answers even while its main loop hangs.
        Raises MonitorError if QEMU refuses or goes away, DeadlineError if it doesn't answer in time.
        """
        self.check_connected()
        try:
            async with asyncio.timeout(deadline):
                return await self._client.execute(command, dict(arguments) if arguments else None, oob=oob)
        except TimeoutError as error:
            raise DeadlineError(f"{self.name}: no answer to {command} within {deadline:g} s") from error
        except ExecuteError as error:
            raise MonitorError(f"{self.name}: QEMU refused {command}: {error.error_class}: {error}") from error
        except (ExecInterruptedError, QMPError, OSError, EOFError) as error:
            raise MonitorError(f"{self.name}: connection lost during {command}: {error}") from error

    @contextlib.contextmanager
    def watch(self, *names: str) -> Iterator[Watch]:
        """Collect events of these names from now on, until the end of the `with` block."""
        watch = Watch(self, frozenset(names))
        self._watches.append(watch)
        try:
            yield watch
        finally:
            self._watches.remove(watch)

    async def close(self) -> None:
        """Disconnect; says nothing of a peer that went first."""
        with contextlib.suppress(QMPError, OSError, EOFError, TimeoutError):
            async with asyncio.timeout(DEFAULT_DEADLINE):
                await self._client.disconnect()

    def _dispatch(self, message: Message) -> bool:
        stamp = message.get("timestamp")
        data = message.get("data")
        event = Event(
            name=str(message["event"]),
            data=data if isinstance(data, dict) else {},
            seconds=stamp["seconds"] + stamp["microseconds"] / 1e6 if isinstance(stamp, dict) else 0.0,
        )
        for watch in self._watches:
            watch.put(event)
        return False
