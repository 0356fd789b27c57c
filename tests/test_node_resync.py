# SPDX-License-Identifier: Apache-2.0
"""`coloproxy node`: a secondary that comes back gets what was written since, and is then equal to the primary.

All share one pair with an etcd. Each begins with it protected, and leaves it so.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from node_pairs import BUSY_LINK, LONG, MARKS, running, small_pair

from coloproxy.testbed.errors import DeadlineError, ProcessError
from coloproxy.testbed.node_bed import NodeBed
from coloproxy.testbed.node_net import HOSTS, Host, other
from coloproxy.testbed.node_traffic import WriteLog
from coloproxy.testbed.process import run

pytestmark = MARKS

MIB = 1 << 20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[NodeBed]:
    async with running(small_pair(node={"resync_speed": "0B"}, tables={"link": BUSY_LINK})) as bed:
        yield bed


@pytest_asyncio.fixture(loop_scope="module")
async def bed(shared: NodeBed) -> NodeBed:
    """Protected, with a copy that a later one can begin from."""
    await shared.serves(LONG)
    await settled(shared)
    return shared


async def resync_of(bed: NodeBed, host: Host) -> dict[str, Any]:
    found: dict[str, Any] = (await bed.ask(host, "status"))["resync"]
    return found


async def bitmaps(bed: NodeBed, host: Host) -> dict[str, int]:
    """Ours, in that QEMU: bytes that they say may differ, by token."""
    monitor = await bed.monitor(host)
    try:
        nodes = await monitor.execute("query-named-block-nodes", deadline=LONG)
    finally:
        await monitor.close()
    (disk,) = [node for node in nodes if node["node-name"] == "colo-disk0"]
    return {each["name"].removeprefix("colo-"): each["count"] for each in disk.get("dirty-bitmaps", [])}


def lineage(bed: NodeBed, host: Host) -> str:
    path = bed.hosts[host].state / "overlays" / "lineage.json"
    return path.read_text() if path.exists() else "none"


async def settled(bed: NodeBed) -> Host:
    """Protected, and the secondary's disk has the name of the only bitmap that is left."""
    primary = await bed.protected(LONG)
    async with asyncio.timeout(LONG):
        while True:
            names = [*await bitmaps(bed, primary)]
            found = lineage(bed, other(primary))
            if len(names) == 1 and f'"{names[0]}", "settled": true' in found:
                return primary
            await asyncio.sleep(0.1)


async def set_speed(bed: NodeBed, host: Host, speed: int) -> None:
    """Of what that host copies from now on, in bytes/s (0: no limit): its coloproxy begins anew, its QEMU runs on."""
    text = bed.config.read_text()
    assert text.count("resync_speed") == 1
    bed.config.write_text(re.sub(r'resync_speed = "[^"]*"', f'resync_speed = "{speed}B"', text))
    await bed.kill_coloproxy(host)
    await bed.until_state(host, {"alone"}, LONG)


async def dirty(bed: NodeBed, host: Host) -> int:
    (amount,) = (await bitmaps(bed, host)).values()
    return amount


async def written(bed: NodeBed, host: Host, name: str, amount: int) -> tuple[str, int, int]:
    """Records, until so many bytes may differ; WriteLog.end()."""
    log = await bed.write_log(name, interval=0.0)
    while await dirty(bed, host) < amount:
        await log.reached(log.acknowledged + 20, LONG)
    return await log.end(LONG)


async def copying(bed: NodeBed, host: Host) -> dict[str, Any]:
    """Until that host copies, and has something done."""
    async with asyncio.timeout(LONG):
        while True:
            with contextlib.suppress(ProcessError, DeadlineError):
                status = await bed.ask(host, "status")
                if status["state"] == "protect" and status["disks"][0]["resync"] and status["resync"]["copied"]:
                    return status
            await asyncio.sleep(0.01)


async def equal_images(bed: NodeBed) -> None:
    """Both hosts end at a moment at which all that was written is on both images; which are then compared."""
    primary = await settled(bed)
    monitor = await bed.monitor(primary)
    try:
        await monitor.execute("stop", deadline=LONG)  # QEMU flushes; the guest that nobody asks for anything is idle
        await asyncio.gather(*map(bed.kill_host, HOSTS))
    finally:
        await monitor.close()
    images = [str(bed.hosts[host].image) for host in HOSTS]
    compared = await run(["qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", *images], deadline=LONG)
    for host in (primary, other(primary)):
        await bed.boot_host(host)
    assert compared.returncode == 0, compared


async def test_a_secondary_that_was_killed_gets_what_was_written_since(bed: NodeBed) -> None:
    primary = await bed.protected(LONG)
    first = await resync_of(bed, primary)
    log = await bed.write_log("returns")
    await log.reached(5, LONG)
    await bed.kill_host(other(primary))
    await bed.until_state(primary, {"alone"}, LONG)
    await log.reached(log.acknowledged + 20, LONG)
    await bed.boot_host(other(primary))
    assert await bed.protected(LONG) == primary
    copied = await resync_of(bed, primary)
    print(f"\nfirst {first}\nthen {copied}")
    assert (first["mode"], first["state"]) == ("full", "done")
    assert (copied["mode"], copied["state"]) == ("bitmap", "done")
    assert 0 < copied["copied"] <= 16 * MIB < bed.disk.virtual_bytes
    await settled(bed)
    await log.reached(log.acknowledged + 5, LONG)

    # The copy is good to take over with; and after that the host that returns has what the survivor never saw.
    await bed.kill_host(primary)
    await bed.until_state(other(primary), {"alone"}, LONG)
    await log.reached(log.acknowledged + 5, LONG)
    await bed.boot_host(primary)
    assert await bed.protected(LONG) == other(primary)
    copied = await resync_of(bed, other(primary))
    assert copied["mode"] == "full" and "no copy of a known state" in copied["reason"]
    counted = await log.end(LONG)
    await settled(bed)
    for host in HOSTS:
        await bed.kill_host(host)
    found = await bed.verify(other(primary), [counted])
    for host in HOSTS:
        await bed.boot_host(host)
    assert found.intact, found


async def test_images_are_equal_after_a_resync_by_bitmap(bed: NodeBed) -> None:
    for turn in range(3):
        primary = await settled(bed)
        log = await bed.write_log(f"equal-{turn}", interval=0.0)
        await log.reached(50, LONG)
        await bed.kill_host(other(primary))
        await bed.until_state(primary, {"alone"}, LONG)
        await log.reached(log.acknowledged + 50, LONG)
        await bed.boot_host(other(primary))
        assert await bed.protected(LONG) == primary
        assert (await resync_of(bed, primary))["mode"] == "bitmap"
        await log.end(LONG)
        await settled(bed)
        if turn == 1:
            await bed.kill_host(other(primary))
            await bed.until_state(primary, {"alone"}, LONG)
            await bed.boot_host(other(primary))
            await bed.protected(LONG)
            assert (await resync_of(bed, primary))["mode"] == "bitmap"
    await equal_images(bed)
    await bed.protected(LONG)
    await bed.serves(LONG)


async def test_a_resync_by_bitmap_that_breaks_is_taken_up_by_the_bitmap(bed: NodeBed) -> None:
    primary = await bed.protected(LONG)
    secondary = other(primary)
    await bed.kill_host(secondary)
    await bed.until_state(primary, {"alone"}, LONG)
    await written(bed, primary, "breaks", 2 * MIB)
    amount = await dirty(bed, primary)
    await set_speed(bed, primary, int(amount / 1.5))
    for _ in range(2):
        await bed.boot_host(secondary)
        seen = await copying(bed, primary)
        await bed.kill_host(secondary)
        print(f"\nbroken at {seen['resync']}, {seen['disks'][0]['resync']}")
        assert seen["resync"]["mode"] == "bitmap"
        await bed.until_state(primary, {"alone"}, LONG)
        await bed.serves(LONG)  # the VM that stood still runs
        assert len(await bitmaps(bed, primary)) <= 2  # what no copy is of any more has gone
    log = await bed.write_log("broken", interval=0.0)
    await log.reached(10, LONG)
    await log.end(LONG)
    await set_speed(bed, primary, 0)
    await bed.boot_host(secondary)
    assert await bed.protected(LONG) == primary
    copied = await resync_of(bed, primary)
    print(copied)
    assert (copied["mode"], copied["state"]) == ("bitmap", "done")
    assert amount <= copied["copied"] < bed.disk.virtual_bytes / 2
    await equal_images(bed)
    await bed.protected(LONG)
    await bed.serves(LONG)


@pytest.mark.parametrize("victim", ["secondary", "primary"])
async def test_coloproxy_alone_dies_in_a_resync(bed: NodeBed, victim: str) -> None:
    """At any time from the secondary's return on; its QEMU and the primary's live."""
    primary = await settled(bed)
    secondary = other(primary)
    draw = random.Random(f"{victim} resync")
    await bed.kill_host(secondary)
    await bed.until_state(primary, {"alone"}, LONG)
    await set_speed(bed, primary, 2 * MIB)  # a copy by bitmap takes about a second
    log: WriteLog = await bed.write_log(f"alone-{victim}")
    for _ in range(4):
        await log.reached(log.acknowledged + 50, LONG)
        await bed.boot_host(secondary)
        await bed.until_state(secondary, {"ready", "standby"}, LONG)
        await asyncio.sleep(delay := draw.uniform(0.0, 2.0))
        host = secondary if victim == "secondary" else primary
        states = await bed.states()
        await bed.kill_coloproxy(host)
        await asyncio.sleep(0.5)  # or the states are those of before
        now = await bed.protected(LONG)
        copied = await resync_of(bed, now)
        print(f"\n{victim}: killed after {delay:.2f} s at {states}; {primary} -> {now}; {copied}")
        await log.reached(log.acknowledged + 2, LONG)
        primary, secondary = now, other(now)
        if draw.random() < 0.5:
            await asyncio.sleep(2.0)  # settled, perhaps
        await bed.kill_host(secondary)
        await bed.until_state(primary, {"alone"}, LONG)
    await log.end(LONG)
    await set_speed(bed, primary, 0)
    await bed.boot_host(secondary)
    await equal_images(bed)
    await bed.protected(LONG)
    await bed.serves(LONG)


async def test_after_a_full_copy_that_broke_the_old_copy_counts_no_more(bed: NodeBed) -> None:
    primary = await settled(bed)
    secondary = other(primary)
    await bed.kill_host(secondary)
    await bed.until_state(primary, {"alone"}, LONG)
    await set_speed(bed, primary, 4 * MIB)
    assert len(bed.kill_qemu(primary)) == 1
    await bed.serves(LONG)  # booted anew: what was written since that copy is not known any more
    await bed.until_state(primary, {"alone"}, LONG)
    assert '"settled": true' in lineage(bed, secondary)
    await bed.boot_host(secondary)
    seen = await copying(bed, primary)
    assert seen["resync"]["mode"] == "full" and "doesn't know" in seen["resync"]["reason"]
    assert '"settled": false' in lineage(bed, secondary)
    await bed.kill_host(secondary)
    await bed.until_state(primary, {"alone"}, LONG)
    await set_speed(bed, primary, 0)
    await bed.boot_host(secondary)
    assert await bed.protected(LONG) == primary
    copied = await resync_of(bed, primary)
    assert copied["mode"] == "full" and "no checkpoint had committed" in copied["reason"]
    await equal_images(bed)
    await bed.protected(LONG)
    await bed.serves(LONG)
