# SPDX-License-Identifier: Apache-2.0
"""Both hosts live and don't see each other; clients see both. Who goes on, with each kind of arbiter: never two.

The evidence is the ownership watch, which asks the guest through both hosts' cables all the time.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from node_pairs import KEEP_LOGS, LONG, MARKS

from coloproxy.testbed.net import batch
from coloproxy.testbed.node_bed import NodeBed, NodeOptions
from coloproxy.testbed.node_guest import LOG_PATH
from coloproxy.testbed.node_net import CLIENT_ADDRESSES, CLIENT_BRIDGE, HOSTS, Host, other
from coloproxy.testbed.node_toml import NodeFile, etcd_arbiter
from coloproxy.testbed.node_traffic import WriteLog
from coloproxy.testbed.node_verify import examine_log

pytestmark = MARKS

QUESTIONS = 20  # of the watch, a tenth of a second apart


@asynccontextmanager
async def running(arbiter: Mapping[str, Any], *, etcd: bool = False) -> AsyncIterator[NodeBed]:
    """A bed whose nodes are not started."""
    # A busy machine must not look like a dead host.
    file = NodeFile(node={"arbiter": arbiter}, heartbeat={"timeout": "1s"})
    options = NodeOptions(file=file, arbiter=etcd, large_bytes=1_000_000, disk_mebibytes=32, keep_logs=KEEP_LOGS)
    async with NodeBed(options) as bed:
        yield bed


async def begin(bed: NodeBed) -> tuple[Host, WriteLog]:
    """Protected, with a client that writes."""
    for host in HOSTS:
        if not bed.processes[host].pids():
            await bed.start_node(host)
    primary = await bed.protected(LONG)
    await bed.serves(LONG)
    log = await bed.write_log(f"log-{time.monotonic_ns()}")
    await log.reached(5, LONG)
    await bed.watch.reset()
    await watched(bed)
    return primary, log


def part(bed: NodeBed) -> None:
    """No way leads from one host to the other, and each is reached by clients as ever."""
    bed.cut("link", "a")
    for host in HOSTS:
        nobody = (
            f"neigh replace {CLIENT_ADDRESSES[other(host)]} lladdr 02:00:00:00:00:99 dev {CLIENT_BRIDGE} nud permanent"
        )
        batch(bed.network.hosts[host], [nobody])


def mend(bed: NodeBed) -> None:
    for host in HOSTS:
        peer = CLIENT_ADDRESSES[other(host)]
        batch(bed.network.hosts[host], [f"neigh flush to {peer} dev {CLIENT_BRIDGE} nud permanent"])
        bed.light_up(host)


async def watched(bed: NodeBed) -> None:
    """Until both hosts were asked many times more."""
    begin = (await bed.watch.seen()).asked
    async with asyncio.timeout(LONG):
        while (await bed.watch.seen()).asked < begin + QUESTIONS:  # noqa: ASYNC110 - another process does it
            await asyncio.sleep(0.05)


async def comparator(bed: NodeBed, host: Host) -> dict[str, Any]:
    """As the primary's status has it."""
    status = await bed.ask(host, "status")
    found: dict[str, Any] = status["vm"]["comparator"]
    return found


async def ends_well(bed: NodeBed, log: WriteLog, owners: list[Host]) -> None:
    """Protected again, by these owners one after the other, and nothing is lost that was written."""
    assert await bed.protected(LONG) == owners[-1]
    await log.reached(log.acknowledged + 5, LONG)
    acknowledged = log.acknowledged
    content = await bed.client.get(f"{LOG_PATH}/{log.name}")
    found = examine_log(log.name, content, sent=log.sent, acknowledged=acknowledged)
    assert found.intact, found
    assert (await bed.watch.seen()).faults(owners) == []
    await log.close()


# ---------------------------------------------------------------------- with a register


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def etcd() -> AsyncIterator[NodeBed]:
    async with running(etcd_arbiter(), etcd=True) as bed:
        yield bed


async def test_the_register_is_reached_by_both(etcd: NodeBed) -> None:
    primary, log = await begin(etcd)
    part(etcd)
    survivor = await etcd.until_alone(LONG)
    await log.reached(log.acknowledged + 5, LONG)
    await watched(etcd)
    assert await etcd.state(other(survivor)) in {"suspended", "claim", "yielded"}
    mend(etcd)
    await ends_well(etcd, log, [primary] if survivor == primary else [primary, survivor])


@pytest.mark.parametrize("who", ["primary", "secondary"])
async def test_the_register_is_reached_by_one(etcd: NodeBed, who: str) -> None:
    primary, log = await begin(etcd)
    survivor = primary if who == "primary" else other(primary)
    etcd.cut("arbiter", other(survivor))
    part(etcd)
    await etcd.until_state(survivor, {"alone"}, LONG)
    await log.reached(log.acknowledged + 5, LONG)
    await watched(etcd)
    assert await etcd.state(other(survivor)) in {"suspended", "claim"}
    mend(etcd)
    await ends_well(etcd, log, [primary] if survivor == primary else [primary, survivor])


async def test_nothing_is_said_from_the_end_of_colo_to_the_registers_word(etcd: NodeBed) -> None:
    """The primary can't know that the secondary does not win: what it says is held, not released uncompared (R1)."""
    primary, log = await begin(etcd)
    assert etcd.arbiter is not None
    await etcd.arbiter.freeze()  # a claim waits
    monitor = await etcd.monitor(primary)
    try:
        await monitor.execute("yank", {"instances": [{"type": "migration"}]}, deadline=LONG)
    finally:
        await monitor.close()
    await etcd.ask(primary, "checkpoint")  # at which its QEMU finds that COLO is over
    await etcd.until_state(primary, {"suspended"}, LONG)
    async with asyncio.timeout(LONG):  # equal output leaves until the comparator has heard of the end, too
        while (before := await comparator(etcd, primary))["mode"] == "protected":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await watched(etcd)  # the guest was asked, and answers
    after = await comparator(etcd, primary)
    assert await etcd.state(primary) == "suspended"
    uncompared = {"passed": 0}  # ARP is
    assert (after["mode"], after["released"] | uncompared) == ("stopped", before["released"] | uncompared)
    assert after["frames_in"][0] > before["frames_in"][0]
    etcd.arbiter.thaw()
    await ends_well(etcd, log, [primary])


async def test_the_register_is_reached_by_none(etcd: NodeBed) -> None:
    primary, log = await begin(etcd)
    for host in HOSTS:
        etcd.cut("arbiter", host)
    part(etcd)
    await etcd.until_state(primary, {"suspended"}, LONG)
    await etcd.until_state(other(primary), {"claim"}, LONG)
    await watched(etcd)  # what was on its way is through
    before = await etcd.watch.reset()
    assert before.faults([primary]) == []
    await watched(etcd)
    assert (await etcd.watch.seen()).owners == []  # nobody serves
    assert await etcd.states() == {primary: "suspended", other(primary): "claim"}
    mend(etcd)
    survivor = await etcd.until_alone(LONG)
    await ends_well(etcd, log, [survivor])


# ---------------------------------------------------------------------- without


async def test_the_primary_goes_on_if_the_operator_said_so() -> None:
    async with running({"kind": "none", "on_partition": "primary"}) as bed:
        primary, log = await begin(bed)
        part(bed)
        await bed.until_state(primary, {"alone"}, LONG)
        await log.reached(log.acknowledged + 5, LONG)
        await watched(bed)
        assert await bed.state(other(primary)) == "claim"
        mend(bed)
        await ends_well(bed, log, [primary])


async def test_nobody_goes_on_if_the_operator_said_so() -> None:
    async with running({"kind": "none", "on_partition": "stop"}) as bed:
        primary, log = await begin(bed)
        part(bed)
        await bed.until_state(primary, {"suspended"}, LONG)
        await bed.until_state(other(primary), {"claim"}, LONG)
        await watched(bed)
        assert (await bed.watch.reset()).faults([primary]) == []
        await watched(bed)
        assert (await bed.watch.seen()).owners == []
        mend(bed)
        await ends_well(bed, log, [primary])


async def test_who_goes_on_has_turned_the_other_one_off(tmp_path: Path) -> None:
    agent = tmp_path / "fence_bed"
    options = {host: [f"plug={other(host)}"] for host in HOSTS}
    arbiter = {"kind": "fence", "fence": {"agent": str(agent), "options": options, "secondary_delay": "5s"}}
    async with running(arbiter) as bed:
        commands = {host: shlex.join(bed.fence_command(host)) for host in HOSTS}
        agent.write_text(AGENT.format(python=sys.executable, commands=commands))
        agent.chmod(0o755)
        primary, log = await begin(bed)
        part(bed)
        await bed.until_state(primary, {"alone"}, LONG)
        await log.reached(log.acknowledged + 5, LONG)
        await watched(bed)
        assert bed.processes[other(primary)].pids() == []
        mend(bed)
        await bed.boot_host(other(primary))
        await ends_well(bed, log, [primary])


@pytest.mark.parametrize("winner", ["primary", "secondary"])
async def test_a_command_says_who_goes_on(tmp_path: Path, winner: str) -> None:
    """One that both reach: it gives each generation away once. The other host lives on, and serves nobody."""
    command, judged, first = tmp_path / "judge", tmp_path / "judged", tmp_path / "first"
    command.write_text(JUDGE.format(python=sys.executable))
    command.chmod(0o755)
    judged.mkdir()
    arbiter = {"kind": "command", "command": [str(command), str(judged), str(first)]}
    async with running(arbiter) as bed:
        primary, log = await begin(bed)
        survivor = primary if winner == "primary" else other(primary)
        first.write_text(survivor)
        part(bed)
        await bed.until_state(survivor, {"alone"}, LONG)
        await log.reached(log.acknowledged + 5, LONG)
        await watched(bed)
        assert await bed.state(other(survivor)) in {"suspended", "claim"}
        asked = [line.split() for line in (judged / "asked").read_text().splitlines()]
        assert {(host, role) for host, role, *_ in asked} == {(primary, "primary"), (other(primary), "secondary")}
        assert {(host, code) for host, _, _, code in asked} >= {(survivor, "0"), (other(survivor), "1")}
        mend(bed)
        await ends_well(bed, log, [primary] if survivor == primary else [primary, survivor])


JUDGE = """#!{python} -P
import os, sys, time
directory, first = sys.argv[1:]
host, role, generation = (os.environ["COLO_" + name] for name in ("HOST", "ROLE", "GENERATION"))
record = os.path.join(directory, generation)
if open(first).read() == host:
    with open(record + "-" + host, "w") as mine:
        mine.write(host)
    try:
        os.link(record + "-" + host, record)  # the first one, whole
    except FileExistsError:
        pass
if not os.path.exists(record):
    sys.exit(2)
code = int(open(record).read() != host)
with open(os.path.join(directory, "asked"), "a") as asked:
    asked.write(" ".join((host, role, generation, str(code))) + "\\n")
sys.exit(code)
"""


AGENT = """#!{python} -P
import os, subprocess, sys
given = dict(line.split("=", 1) for line in sys.stdin.read().splitlines())
command = {commands!r}[given["plug"]]
if given["action"] == "off":
    sys.exit(subprocess.run(command, shell=True).returncode)
mark = command.split()[-1]
sys.exit(2 if os.path.exists(mark) else 0)
"""
