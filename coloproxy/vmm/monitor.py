# SPDX-License-Identifier: Apache-2.0
"""One QMP monitor of a QEMU, kept connected; each command with a deadline of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from coloproxy.address import Address
from coloproxy.errors import QmpError
from coloproxy.qmp import QmpLink

DEADLINE_S: Final = 3.0
LONGEST_S: Final = 60.0
"""No deadline can be longer: that of the link itself, which forgets the command then."""

Told = Callable[[str, Mapping[str, object], int | None, int], None]


class Monitor:
    """`start()` it; it connects, and again when the connection was lost, until `close()`.

    on_event(name, data, at, now), on_connected(now) and on_lost(reason) are called in the read loop, in order.
    """

    def __init__(
        self,
        path: Path,
        *,
        on_event: Told = lambda *_: None,
        on_connected: Callable[[int], None] = lambda _: None,
        on_lost: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.problem = "not connected yet"
        self._on_event = on_event
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._link = QmpLink(
            Address(True, path=str(path)), self, deadline_s=LONGEST_S, option=path.name.removesuffix(".qmp")
        )
        self._task: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._down.set()

    def start(self) -> None:
        """Begins to connect."""
        self._task = asyncio.create_task(self._link.run())

    async def close(self) -> None:
        """Disconnects."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))  # whose end, even by an exception, must not be ours

    @property
    def connected(self) -> bool:
        return self._up.is_set()

    async def wait_connected(self) -> None:
        """Until it is connected."""
        await self._up.wait()

    async def wait_lost(self) -> None:
        """Until it is not."""
        await self._down.wait()

    async def execute(
        self,
        name: str,
        arguments: Mapping[str, object] | None = None,
        *,
        out_of_band: bool = False,
        deadline_s: float = DEADLINE_S,
    ) -> object:
        """The return value of a command. Waits for the connection, if need be, within the same deadline.

        Raises QmpError: refused, not answered in time, QMP lost meanwhile.
        """
        sent = False
        try:
            async with asyncio.timeout(min(deadline_s, LONGEST_S)):
                await self._up.wait()
                sent = True
                return await self._link.execute(name, arguments, out_of_band=out_of_band)
        except TimeoutError as error:
            why = "no answer" if sent else f"not sent: no QMP ({self.problem})"
            raise QmpError(f"{name}: {why} within {deadline_s:g} s") from error

    # -------------------------------------------------- for QmpLink (its Handler)

    def qmp_connected(self, now: int) -> None:
        self.problem = ""
        self._down.clear()
        self._up.set()
        self._on_connected(now)

    def qmp_event(self, name: str, data: Mapping[str, object], at: int | None, now: int) -> None:
        self._on_event(name, data, at, now)

    def qmp_lost(self, reason: str) -> None:
        self.problem = reason
        self._up.clear()
        self._down.set()
        self._on_lost(reason)

    def qmp_unreachable(self, reason: str) -> None:
        self.problem = reason
