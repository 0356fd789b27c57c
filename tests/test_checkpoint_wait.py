# SPDX-License-Identifier: Apache-2.0
"""`ctl checkpoint --wait`: until the VMs were made equal, or it is known that they won't be."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coloproxy.control.protocol import ARGUMENTS, MAX_WAIT_S, wait_of
from coloproxy.errors import ControlRefused, PeerError
from coloproxy.reports import CheckpointAsked, CheckpointCommitted, CheckpointFailed, Protected, QmpLost, Report
from coloproxy.run.checkpoints import Checkpoints, until_committed

LONG = 60.0  # s; nothing here waits for it
COMMITTED = CheckpointCommitted(1, ("a test",), 1, 2, 3)


@pytest.mark.parametrize("report", [COMMITTED, Protected(None)])
async def test_each_that_waits_hears_of_the_next_epoch(report: Report) -> None:
    history = Checkpoints(0)
    waiting = [asyncio.create_task(until_committed([history.next()], LONG)) for _ in range(2)]
    for before in (CheckpointAsked(("a test",), 1), CheckpointFailed("a test", (), 1), QmpLost("a test")):
        history.hear(before)
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
    history.hear(report)
    await asyncio.gather(*waiting)


async def test_an_epoch_that_has_begun_is_not_the_next_one() -> None:
    history = Checkpoints(0)
    first = history.next()
    history.hear(COMMITTED)
    second = history.next()
    await until_committed([first], LONG)
    with pytest.raises(PeerError, match=r"no checkpoint has committed in 0 s"):
        await until_committed([second], 0)
    history.hear(COMMITTED)
    await until_committed([second], 0)


async def test_the_end_of_protection_is_told_at_once_whatever_else_is_waited_for() -> None:
    """Of two VMs the one goes on alone; the other's checkpoint neither comes nor fails."""
    ended, other = Checkpoints(0), Checkpoints(0)
    waiting = asyncio.create_task(until_committed([other.next(), ended.next()], LONG))
    await asyncio.sleep(0)
    ended.over("the secondary is gone")
    ended.over("and again")
    with pytest.raises(PeerError, match="protection has ended: the secondary is gone"):
        await waiting
    assert not ended.next().done()  # of a later protection


async def test_whoever_gives_up_takes_nothing_from_the_others() -> None:
    history = Checkpoints(0)
    hasty, patient = (asyncio.create_task(until_committed([history.next()], LONG)) for _ in range(2))
    await asyncio.sleep(0)
    hasty.cancel()
    await asyncio.wait([hasty])
    history.hear(COMMITTED)
    await patient


@pytest.mark.parametrize(("given", "seconds"), [({}, None), ({"wait_s": None}, None), ({"wait_s": 0}, 0.0),
                                                ({"wait_s": 2.5}, 2.5), ({"wait_s": MAX_WAIT_S}, 86400.0)])  # fmt: skip
def test_how_long_is_waited(given: dict[str, Any], seconds: float | None) -> None:
    assert wait_of(given) == seconds


@pytest.mark.parametrize("wait", [-1, True, "5", [], float("nan"), float("inf"), MAX_WAIT_S + 1])
def test_what_is_no_time_to_wait(wait: object) -> None:
    with pytest.raises(ControlRefused) as caught:
        wait_of({"wait_s": wait})
    assert caught.value.kind == ARGUMENTS
