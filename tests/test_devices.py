# SPDX-License-Identifier: Apache-2.0
"""What is opened in a thread, whose caller may be cancelled meanwhile. Devices themselves: test_tap_namespaces.py."""

from __future__ import annotations

import asyncio
import threading

import pytest

from coloproxy.run.devices import apart


async def test_who_is_cancelled_waits_for_what_was_begun() -> None:
    """Else a TAP is opened behind the back of him who has closed all, and stays open."""
    begun, may_end, opened = threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        may_end.wait()
        opened.append(True)

    task = asyncio.create_task(apart(work))
    await asyncio.to_thread(begun.wait)
    for _ in range(2):
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert opened == [True]


async def test_what_is_raised_there_is_raised_here() -> None:
    def work() -> None:
        raise ValueError("of the thread")

    with pytest.raises(ValueError, match="of the thread"):
        await apart(work)
