# SPDX-License-Identifier: Apache-2.0
"""The supervisor of a host's node, as systemd would be: whatever the node dies of, it is started again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .errors import ProcessError
from .process import Daemon

_FOREVER: Final = 1e9
_MOST_STARTS: Final = 1000


class Supervisor:
    """Of one host.  Its own death is the bed's business: it then only has to let go."""

    def __init__(
        self, name: str, argv: Sequence[str], *, namespace: str, log: Path, mark: Path, restart_seconds: float
    ) -> None:
        """*mark*: a file by which somebody else says that the host is off (node_fence.py)."""
        self.name = name
        self.mark = mark
        self.daemon: Daemon | None = None
        """The node that runs, or ran last."""
        self.ends: list[int] = []
        """How nodes have ended while they were supervised: exit statuses, negative signal numbers."""
        self._argv = argv
        self._namespace = namespace
        self._log = log
        self._restart_seconds = restart_seconds
        self._task: asyncio.Task[None] | None = None

    async def start(self, *, supervised: bool) -> None:
        """Raises ProcessError if the node runs already."""
        if self.daemon is not None and self.daemon.running:
            raise ProcessError(f"{self.name} runs already, pid {self.daemon.pid}")
        await self.let_go()
        self.mark.unlink(missing_ok=True)
        await self._launch()
        if supervised:
            self._task = asyncio.create_task(self._supervise())

    async def let_go(self) -> None:
        """Start it no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _launch(self) -> None:
        self.daemon = await Daemon.start(self.name, self._argv, self._log, namespace=self._namespace)

    async def _supervise(self) -> None:
        while self.daemon is not None and len(self.ends) < _MOST_STARTS:
            self.ends.append(await self.daemon.wait(_FOREVER))
            await asyncio.sleep(self._restart_seconds)
            if self.mark.exists():
                return
            await self._launch()
