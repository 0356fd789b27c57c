# SPDX-License-Identifier: Apache-2.0
"""Commands that have much to clean up when they are ended."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def until_signal(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work`; SIGTERM cancels it as Ctrl-C does, so that it can clean up. Raises CancelledError then."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task
