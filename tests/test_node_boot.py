# SPDX-License-Identifier: Apache-2.0
"""`coloproxy node`: protection that begins while the guest boots."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

import pytest
from node_pairs import BUSY_LINK, LONG, MARKS, small_pair

from coloproxy.testbed.guest_files import READY_LINE
from coloproxy.testbed.node_bed import NodeBed
from coloproxy.testbed.node_net import HOSTS, Host, other

pytestmark = MARKS

ATTEMPTS = 5  # half of the boot is left when an idle machine has come to protection


@contextlib.asynccontextmanager
async def slow(bed: NodeBed, host: Host) -> AsyncIterator[None]:
    """The QEMU there stands still most of the time."""

    async def hold() -> None:
        while True:
            bed.kill_qemu(host, signal.SIGSTOP)
            await asyncio.sleep(0.15)
            bed.kill_qemu(host, signal.SIGCONT)
            await asyncio.sleep(0.05)

    task = asyncio.create_task(hold())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        bed.kill_qemu(host, signal.SIGCONT)


async def test_a_secondary_whose_guest_boots_late_has_a_network() -> None:
    """The first state that it gets has the card switched off; the next one comes before its own guest is so far."""
    for _ in range(ATTEMPTS):
        async with NodeBed(small_pair(tables={"link": BUSY_LINK})) as bed:
            for host in HOSTS:
                await bed.start_node(host)
            primary = await bed.protected(LONG)
            if READY_LINE in bed.console(primary):
                continue  # it was up before it was protected
            async with slow(bed, other(primary)), asyncio.timeout(LONG):
                while READY_LINE not in bed.console(primary):  # noqa: ASYNC110 - another process does it
                    await asyncio.sleep(0.05)
            await bed.ask(primary, "checkpoint")
            await bed.serves(LONG)
            await bed.kill_host(primary)
            await bed.until_state(other(primary), {"alone"}, LONG)
            await bed.serves(LONG)
            return
    pytest.fail(f"{ATTEMPTS} times the guest was up before it was protected")
