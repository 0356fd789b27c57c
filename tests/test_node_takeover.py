# SPDX-License-Identifier: Apache-2.0
"""A takeover of `coloproxy node` during which its process dies, at each step of it; QEMU lives on, or dies too.

All share one pair. Each test begins with it protected and leaves it so; whose disk is whose in the end is looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import pytest_asyncio
from node_pairs import BUSY_LINK, LARGE_BYTES, LONG, MARKS, running, small_pair

from coloproxy.testbed.client import TransferResult
from coloproxy.testbed.guest import large_file
from coloproxy.testbed.node_bed import NodeBed
from coloproxy.testbed.node_fault import COMMAND, arm
from coloproxy.testbed.node_guest import LARGE_PATH, LOG_PATH
from coloproxy.testbed.node_net import HOSTS, other
from coloproxy.testbed.node_verify import examine_log

pytestmark = MARKS


@dataclass
class World:
    """The pair, and what its disk must have in the end."""

    bed: NodeBed
    logs: list[tuple[str, int, int]] = field(default_factory=list)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    options = small_pair(tables={"link": BUSY_LINK}, command=COMMAND, restart_seconds=1.0)
    async with running(options) as bed:
        yield World(bed)


async def die_within(world: World, point: str, *, numbers: bool = True, qemu: bool = False) -> TransferResult:
    """The primary's host dies, and in the takeover that follows the survivor's coloproxy does, once. What a client got.

    numbers: the survivor knows how connections are numbered. qemu: its QEMU dies with it.
    """
    bed = world.bed
    primary = await bed.protected(LONG)
    survivor = other(primary)
    await bed.serves(LONG)
    await bed.watch.reset()
    log = await bed.write_log(f"log-{len(world.logs)}")
    await log.reached(10, LONG)
    transfer = await bed.client.download(LARGE_PATH, rate=2_000_000, keepalive=2)
    await transfer.reached(1_000_000, LONG)
    fault = arm(bed.config, survivor, point, qemu=qemu)
    await bed.kill_host(primary)
    if not numbers:
        await bed.kill_coloproxy(survivor)
    await fault.struck(LONG)
    await bed.until_state(survivor, {"alone"}, LONG)
    result = await transfer.result(LONG)
    await bed.serves(LONG)
    acknowledged = log.acknowledged  # it may go on
    content = await bed.client.get(f"{LOG_PATH}/{log.name}")
    found = examine_log(log.name, content, sent=log.sent, acknowledged=acknowledged)
    assert found.intact, found
    await log.close()
    world.logs.append(log.counted)
    assert (await bed.watch.seen()).faults([primary, survivor]) == []
    right = hashlib.sha256(large_file(LARGE_BYTES)[: result.bytes]).hexdigest()
    assert result.sha256 == right, f"a client got wrong bytes: {result}"
    await bed.boot_host(primary)
    assert await bed.protected(LONG) == survivor
    return result


@pytest.mark.parametrize(
    "point", ["begun", "reset", "told", "committed", "noted", "kept", "open", "cleaned", "settled"]
)
async def test_coloproxy_dies_within_a_takeover(world: World, point: str) -> None:
    """QEMU goes on. From where clients may have been heard by its guest, their connections go on too."""
    result = await die_within(world, point)
    if point not in ("committed", "noted"):  # the connections are being kept at the same time
        assert (result.returncode == 0) == (point in ("kept", "open", "cleaned", "settled")), result


@pytest.mark.parametrize("point", ["recorded", "told", "committed", "noted", "quit"])
async def test_coloproxy_dies_within_a_takeover_that_does_not_know_the_connections(world: World, point: str) -> None:
    """The VM is booted anew, from all that its disk has got."""
    assert (await die_within(world, point, numbers=False)).returncode != 0


@pytest.mark.parametrize("point", ["recorded", "begun", "told", "committed", "open", "cleaned"])
async def test_qemu_dies_too(world: World, point: str) -> None:
    """As when the host loses its power, but for what the kernel had not written yet."""
    assert (await die_within(world, point, qemu=True)).returncode != 0


async def test_the_disk_has_all_that_was_acknowledged(world: World) -> None:
    """After all of the above."""
    bed = world.bed
    primary = await bed.protected(LONG)
    for host in HOSTS:
        await bed.kill_host(host)
    found = await bed.verify(primary, world.logs)
    assert found.intact, found
