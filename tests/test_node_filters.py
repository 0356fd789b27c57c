# SPDX-License-Identifier: Apache-2.0
"""`coloproxy node` with attach = "filters": QEMU owns the TAP, its net filters carry the frames.

The tests share one pair, as those of test_node.py do. What the node decides is the same there; here it is what the
other data path makes of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from node_pairs import LONG, MARKS, running, small_pair

from coloproxy.testbed.errors import ProcessError
from coloproxy.testbed.node_bed import NodeBed, NodeOptions
from coloproxy.testbed.node_cycle import Death, Load, Victim, run_cycle
from coloproxy.testbed.node_guest import LARGE_PATH, SMALL_PATH
from coloproxy.testbed.node_kill import Plan, run_trial
from coloproxy.testbed.node_net import HOSTS, Host, other
from coloproxy.testbed.qemu import Nic

pytestmark = MARKS

RATE = 100_000  # bytes a second of a transfer that has to last through two failovers
BODY = random.Random(3).randbytes(16_000_000)
BODY_SHA256 = hashlib.sha256(BODY).hexdigest()
PRIMARY, SECONDARY = {"m0", "redire0", "redire1"}, {"f1", "f2", "rew0"}


def options(nic: Nic = "virtio") -> NodeOptions:
    return small_pair(tables={"compare": {"compare_timeout": "1s"}}, nic=nic, attach="filters")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[NodeBed]:
    async with running(options()) as bed:
        yield bed


@pytest_asyncio.fixture(loop_scope="module")
async def bed(shared: NodeBed) -> NodeBed:
    """Protected, and nothing seen yet but that the primary's guest answers."""
    primary = await shared.protected(LONG)
    await shared.serves(LONG)
    await shared.watch.reset()
    async with asyncio.timeout(LONG):
        while not (await shared.watch.seen()).answers[primary]:  # noqa: ASYNC110 - another process does it
            await asyncio.sleep(0.05)
    return shared


async def objects(bed: NodeBed, host: Host) -> set[str]:
    """What the QEMU there has of them."""
    monitor = await bed.monitor(host)
    try:
        answer: Any = await monitor.execute("qom-list", {"path": "/objects"})
    finally:
        await monitor.close()
    return {entry["name"] for entry in answer} & (PRIMARY | SECONDARY)


async def vm(bed: NodeBed, host: Host) -> dict[str, Any]:
    return dict((await bed.ask(host, "status"))["vm"])


async def test_e1000_and_ipv6_connections_that_outlive_two_failovers() -> None:
    """filter-rewriter has no IPv6: what is opened over it differs until a checkpoint, and never again.

    First in this file: it has a pair of its own, and the others' does not run yet.
    """
    async with running(options("e1000")) as bed:
        before = await bed.protected(LONG)
        download = await bed.client.download(LARGE_PATH, rate=RATE, ipv6=True)
        upload = await bed.client.upload(BODY, rate=RATE, ipv6=True)
        for transfer in (download, upload):
            await transfer.reached(RATE, LONG)
        assert (await vm(bed, before))["checkpoints_by_cause"]["rst"] >= 1
        for number in range(2):
            primary = await bed.protected(LONG)
            fresh = bed.traffic(f"ipv4 {number}")
            await fresh.start(upload_bytes=8_000_000)
            await fresh.reached(0.1, LONG)
            await bed.kill_host(primary)
            await bed.until_state(other(primary), {"alone"}, LONG)
            at = [download.bytes, upload.bytes]
            assert await bed.client.get(SMALL_PATH, ipv6=True, deadline=LONG) == b"small\n"
            kept = await fresh.finish(LONG)
            assert all(transfer.kept for transfer in kept), kept
            for transfer, count in zip((download, upload), at, strict=True):
                await transfer.reached(count + RATE, LONG)
            await bed.boot_host(primary)
        assert await bed.protected(LONG) == before
        for transfer, digest in ((download, bed.disk.large_sha256), (upload, BODY_SHA256)):
            transfer.rate = None
            result = await transfer.result(LONG)
            assert (result.returncode, result.sha256, result.connections) == (0, digest, 1), result
        assert (await bed.watch.seen()).faults([before, other(before), before]) == []


async def test_a_pair_has_each_filter_at_its_place(bed: NodeBed) -> None:
    primary = await bed.protected(LONG)
    assert (await vm(bed, primary))["state"] == "protected"
    assert (await vm(bed, other(primary)))["state"] == "standby"
    assert await objects(bed, primary) == PRIMARY
    assert await objects(bed, other(primary)) == SECONDARY
    assert [(await vm(bed, host))["nics"][0]["open"] for host in (primary, other(primary))] == [True, False]


@pytest.mark.parametrize(
    ("death", "victim"),
    [("kill", "primary"), ("kill", "secondary"), ("stop", "primary"), ("stop", "secondary"), ("link", "secondary")],
)
async def test_a_host_dies_and_comes_back(bed: NodeBed, death: Death, victim: Victim) -> None:
    """Transfers that began under this protection end with the right bytes."""
    log = await bed.write_log(f"{death}-{victim}")
    cycle = await run_cycle(bed, log, 1, death, victim, load=Load(ipv6_downloads=int(victim == "primary")))
    assert cycle.faults == (), cycle.told()
    await log.end(LONG)
    rewriter = {"rew0"} if "rew0" in await objects(bed, cycle.survivor) else set()
    assert await objects(bed, cycle.survivor) == PRIMARY | rewriter
    assert rewriter or victim == "secondary"


async def test_a_vm_that_is_alone_serves_without_coloproxy(bed: NodeBed) -> None:
    primary = await bed.protected(LONG)
    await bed.kill_host(other(primary))
    await bed.until_state(primary, {"alone"}, LONG)
    traffic = bed.traffic("alone")
    await traffic.start(downloads=1, uploads=1)
    await traffic.reached(0.05, LONG)
    await bed.stop_node(primary)
    assert len(bed.qemu_pids(primary)) == 1
    transfers = await traffic.finish(LONG)
    assert all(transfer.kept for transfer in transfers), transfers
    await bed.serves(LONG)
    await bed.start_node(primary)
    await bed.until_state(primary, {"alone"}, LONG)
    await bed.boot_host(other(primary))
    assert await bed.protected(LONG) == primary
    assert (await bed.watch.seen()).faults([primary]) == []


@pytest.mark.parametrize("killed", ["primary", "secondary", "both"])
async def test_coloproxy_alone_is_killed(bed: NodeBed, killed: str) -> None:
    primary = await bed.protected(LONG)
    hosts = {"primary": (primary,), "secondary": (other(primary),), "both": HOSTS}[killed]
    plan = Plan(number=len(killed), moment="protected", victim="primary", killed=hosts, delay=0.1)
    trial, _ = await run_trial(bed, plan)
    assert not trial.faults, trial.told()


async def test_vms_that_differ_are_made_equal(bed: NodeBed) -> None:
    """The page says on which host it was made, so the two answers are never the same."""
    primary = await bed.protected(LONG)
    before = (await vm(bed, primary))["checkpoints_by_cause"].get("payload", 0)
    page = await bed.client.get("/cgi-bin/diverge", deadline=LONG)
    assert b"differs on purpose" in page
    now = await vm(bed, primary)
    assert now["checkpoints_by_cause"].get("payload", 0) > before, now
    assert await bed.protected(LONG) == primary


async def test_the_operator_has_a_checkpoint_of_the_primary_alone(bed: NodeBed) -> None:
    primary = await bed.protected(LONG)
    before = (await vm(bed, primary))["checkpoints"]
    with pytest.raises(ProcessError, match="checkpoints are the primary's"):
        await bed.ask(other(primary), "checkpoint")
    assert (await bed.ask(primary, "checkpoint"))["asked"] == ["vm"]
    async with asyncio.timeout(LONG):
        while (await vm(bed, primary))["checkpoints"] <= before:  # noqa: ASYNC110 - another process does it
            await asyncio.sleep(0.05)


async def test_who_waits_for_a_checkpoint_is_told_of_it_and_of_the_end_of_protection(bed: NodeBed) -> None:
    """The second one can't commit, for the secondary's QEMU does not go on, and is killed."""
    primary = await bed.protected(LONG)
    before = (await vm(bed, primary))["checkpoints"]
    assert await bed.ask(primary, "checkpoint", wait_s=LONG, deadline=2 * LONG) == {"committed": ["vm"]}
    assert (await vm(bed, primary))["checkpoints"] > before
    bed.kill_qemu(other(primary), signal.SIGSTOP)
    with pytest.raises(ProcessError, match="no checkpoint has committed, for protection has ended"):
        await bed.ask(primary, "checkpoint", wait_s=1000, deadline=LONG)
    assert await bed.protected(LONG) == primary
    assert (await bed.watch.seen()).faults([primary]) == []
