# SPDX-License-Identifier: Apache-2.0
"""`coloproxy node` on two hosts: every row of its table that a pair comes to, with real QEMUs, disks and clients.

Most tests share one pair with an etcd. Each begins with it protected, and leaves it so; which host is the primary is
what the tests before have made of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from node_pairs import BUSY_LINK, LONG, MARKS, running, small_pair

from coloproxy.errors import ColoproxyError
from coloproxy.testbed.errors import ProcessError
from coloproxy.testbed.guest_files import GUEST_IPV4, READY_LINE
from coloproxy.testbed.node_bed import NodeBed, NodeOptions
from coloproxy.testbed.node_cycle import Death, Victim, run_cycle
from coloproxy.testbed.node_guest import LARGE_PATH, LOG_PATH
from coloproxy.testbed.node_kill import Plan, run_trial
from coloproxy.testbed.node_net import HOSTS, Host, other
from coloproxy.testbed.node_traffic import WriteLog
from coloproxy.testbed.node_verify import examine_log
from coloproxy.testbed.process import Daemon

pytestmark = MARKS

FILE_SYSTEM_MEBIBYTES = 160


def options(host_mebibytes: int | None = None) -> NodeOptions:
    return small_pair(tables={"link": BUSY_LINK}, host_mebibytes=host_mebibytes)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[NodeBed]:
    async with running(options()) as bed:
        yield bed


@pytest_asyncio.fixture(loop_scope="module")
async def bed(shared: NodeBed) -> NodeBed:
    """Protected, and nothing seen yet."""
    await shared.protected(LONG)
    await shared.serves(LONG)
    await shared.watch.reset()
    await answered(shared, await shared.protected(LONG))
    return shared


class Story:
    """What a node tells that it has been through since this was made; not by a node that was started meanwhile."""

    def __init__(self, bed: NodeBed, host: Host) -> None:
        self._bed, self._host, self._begun = bed, host, time.time()

    async def entries(self) -> list[dict[str, Any]]:
        history = (await self._bed.ask(self._host, "status"))["history"]
        return [entry for entry in history if entry["at"] >= self._begun - 0.01]  # it is rounded

    async def states(self) -> list[str]:
        """The states that it went to, one after the other."""
        return [entry["to"] for entry in await self.entries() if entry["from"] != entry["to"]]

    async def until(self, state: str) -> None:
        """Until it has been there."""
        until = time.monotonic() + LONG
        while state not in (seen := await self.states()):
            assert time.monotonic() < until, f"{self._host} is at {seen}:\n{self._bed.node(self._host).tail()}"
            await asyncio.sleep(0.05)


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG):
        while not done():  # noqa: ASYNC110 - other processes do it
            await asyncio.sleep(0.1)


async def until_standing(bed: NodeBed, host: Host, standing: str) -> None:
    """Until its record says that."""
    until = time.monotonic() + LONG
    while (status := await bed.ask(host, "status"))["standing"] != standing:
        assert time.monotonic() < until, status
        await asyncio.sleep(0.05)


async def log_is_whole(bed: NodeBed, log: WriteLog) -> None:
    """By what the guest reads of it now."""
    acknowledged = log.acknowledged
    content = await bed.client.get(f"{LOG_PATH}/{log.name}")
    found = examine_log(log.name, content, sent=log.sent, acknowledged=acknowledged)
    assert found.intact, found


async def answered(bed: NodeBed, host: Host) -> None:
    """Until the watch has heard the guest from that host."""
    async with asyncio.timeout(LONG):
        while not (await bed.watch.seen()).answers[host]:  # noqa: ASYNC110 - another process does it
            await asyncio.sleep(0.05)


async def faults(bed: NodeBed, owners: list[Host]) -> list[str]:
    return (await bed.watch.seen()).faults(owners)


# ---------------------------------------------------------------------- the beginning, and deaths of hosts


async def test_two_hosts_and_one_image_become_a_pair(bed: NodeBed) -> None:
    primary = await bed.protected(LONG)
    mine, its = [await bed.ask(host, "status") for host in (primary, other(primary))]
    assert (mine["standing"], its["standing"]) == ("primary", "secondary")
    assert (mine["role"], its["role"]) == ("primary", "secondary")
    assert mine["generation"] == its["generation"] > 0
    assert mine["peer"]["alive"] and its["peer"]["alive"]
    assert [path["up"] for path in mine["heartbeat"]["paths"]] == [True, True]
    assert mine["vm"]["state"] == "protected" and its["vm"]["state"] == "standby"
    assert mine["disks"][0]["size"] == its["disks"][0]["size"] == bed.disk.virtual_bytes


@pytest.mark.parametrize(
    ("death", "victim"), [("kill", "primary"), ("kill", "secondary"), ("stop", "primary"), ("stop", "secondary")]
)
async def test_a_host_dies_and_comes_back(bed: NodeBed, death: Death, victim: Victim) -> None:
    log = await bed.write_log(f"{death}-{victim}")
    cycle = await run_cycle(bed, log, 1, death, victim)
    assert cycle.faults == (), cycle.told()
    await log.end(LONG)


# ---------------------------------------------------------------------- coloproxy alone dies, at the worst time


async def test_a_takeover_that_has_lost_the_connections_numbers_gives_no_wrong_byte(bed: NodeBed) -> None:
    """The secondary's coloproxy dies with the primary's host. Its VM is booted from its disk, and connections end."""
    primary = await bed.protected(LONG)
    survivor = other(primary)
    log = await bed.write_log("numbers")
    await log.reached(5, LONG)
    transfer = await bed.client.download(LARGE_PATH, rate=1_000_000)
    await transfer.reached(1_000_000, LONG)
    await bed.kill_host(primary)
    await bed.kill_coloproxy(survivor)
    await bed.until_state(survivor, {"alone"}, LONG)
    assert (await transfer.result(LONG)).returncode != 0
    assert "the VM is booted" in bed.node(survivor).tail()
    await bed.serves(LONG)
    await log_is_whole(bed, log)
    assert await faults(bed, [primary, survivor]) == []
    await bed.boot_host(primary)
    assert await bed.protected(LONG) == survivor


# ---------------------------------------------------------------------- a QEMU alone dies


async def test_the_primarys_qemu_dies_alone_and_the_secondary_goes_on_at_once(bed: NodeBed) -> None:
    primary = await bed.protected(LONG)
    survivor = other(primary)
    log = await bed.write_log("qemu-primary")
    await log.reached(5, LONG)
    was, its = Story(bed, primary), Story(bed, survivor)
    assert len(bed.kill_qemu(primary)) == 1
    await its.until("protected")
    assert await bed.protected(LONG) == survivor
    # By the primary's word, not by its silence: its heartbeat went on all the time.
    assert (await was.states())[0] == "yielded"
    assert (await its.states())[:3] == ["claim", "settle", "alone"]
    assert "peer dead" not in [entry["event"] for entry in await its.entries()]
    assert await faults(bed, [primary, survivor]) == []
    await log.reached(log.acknowledged + 5, LONG)
    await log_is_whole(bed, log)


async def test_the_secondarys_qemu_dies_alone_and_the_primary_goes_on(bed: NodeBed) -> None:
    primary = await bed.protected(LONG)
    log = await bed.write_log("qemu-secondary")
    await log.reached(5, LONG)
    story = Story(bed, primary)
    assert len(bed.kill_qemu(other(primary))) == 1
    await story.until("alone")
    assert await bed.protected(LONG) == primary
    states = await story.states()
    assert (states[0], states[-1]) == ("suspended", "protected")
    assert "peer dead" not in [entry["event"] for entry in await story.entries()]
    assert await faults(bed, [primary]) == []
    await log.reached(log.acknowledged + 5, LONG)
    await log_is_whole(bed, log)


async def test_who_waits_for_a_checkpoint_is_told_of_it_and_of_the_end_of_protection(bed: NodeBed) -> None:
    """The second one can't commit, for the secondary's QEMU does not go on, and is killed."""
    primary = await bed.protected(LONG)
    before = (await bed.ask(primary, "status"))["vm"]["checkpoints"]
    answer = await bed.ask(primary, "checkpoint", wait_s=LONG, deadline=2 * LONG)
    assert answer == {"committed": ["vm"]}
    assert (await bed.ask(primary, "status"))["vm"]["checkpoints"] > before
    bed.kill_qemu(other(primary), signal.SIGSTOP)
    with pytest.raises(ProcessError, match="no checkpoint has committed, for protection has ended"):
        await bed.ask(primary, "checkpoint", wait_s=1000, deadline=LONG)
    assert await bed.protected(LONG) == primary
    assert await faults(bed, [primary]) == []


async def test_a_vm_that_is_booted_anew_does_not_inherit_its_dead_predecessors_connections(bed: NodeBed) -> None:
    """Their numbers would be put into connections of the new VM's that have the same addresses and ports."""
    primary = await bed.protected(LONG)
    survivor = other(primary)
    log = await bed.write_log("booted")
    await log.reached(5, LONG)
    transfer = await bed.client.download(LARGE_PATH, rate=1_000_000)
    await transfer.reached(1_000_000, LONG)
    await bed.kill_host(primary)
    await bed.until_state(survivor, {"alone"}, LONG)
    await transfer.reached(transfer.bytes + 1_000_000, LONG)
    kept = bed.hosts[survivor].state / "connections"
    vm = (await bed.ask(survivor, "status"))["vm"]
    assert vm["rewriter"]["flows"] > 0 and kept.exists()

    story = Story(bed, survivor)
    assert len(bed.kill_qemu(survivor)) == 1
    await story.until("alone")
    assert await story.states() == ["settle", "alone"]
    vm = (await bed.ask(survivor, "status"))["vm"]
    assert (vm["state"], vm["rewriter"]["inherited"], kept.exists()) == ("unprotected", 0, False)
    await bed.serves(LONG)
    assert (await transfer.result(LONG)).returncode != 0
    await log_is_whole(bed, log)
    await bed.boot_host(primary)
    assert await bed.protected(LONG) == survivor
    assert await faults(bed, [primary, survivor]) == []


# ---------------------------------------------------------------------- the guest and the operator


async def test_the_guest_reboots_and_stays_protected(bed: NodeBed) -> None:
    primary = await bed.protected(LONG)
    story = {host: Story(bed, host) for host in HOSTS}
    before = bed.console(primary).count(READY_LINE)
    await bed.guest_power("reboot")
    await until(lambda: bed.console(primary).count(READY_LINE) > before)
    await bed.serves(LONG)
    assert await bed.protected(LONG) == primary
    assert [await story[host].states() for host in HOSTS] == [[], []]
    log = await bed.write_log("rebooted")
    await log.reached(5, LONG)
    await log_is_whole(bed, log)
    assert await faults(bed, [primary]) == []


async def test_the_guest_powers_off_and_nobody_takes_over_until_it_is_started(bed: NodeBed) -> None:
    primary = await bed.protected(LONG)
    log = await bed.write_log("poweroff")
    await log.reached(5, LONG)
    its = Story(bed, other(primary))
    await bed.guest_power("poweroff")
    await bed.until_state(primary, {"stopped"}, LONG)
    await its.until("join")
    await until_standing(bed, primary, "owner")
    assert bed.qemu_pids(primary) == []
    assert not {"claim", "settle", "alone"} & {*await its.states()}
    states = await bed.states()
    assert states[primary] == "stopped"
    # ready: its loss was told before the guest's wish, so that the primary was alone for a moment.
    assert states[other(primary)] in ("join", "ready")
    for host in HOSTS:  # its guest's wish outlives coloproxy
        await bed.kill_coloproxy(host)
    await bed.until_state(primary, {"stopped"}, LONG)
    await bed.until_state(other(primary), {"join"}, LONG)
    assert bed.qemu_pids(primary) == []
    with pytest.raises(ProcessError, match="there is nothing to start"):
        await bed.ask(other(primary), "start")
    assert await faults(bed, [primary]) == []

    await bed.ask(primary, "start", wait_s=LONG, deadline=2 * LONG)
    assert (await bed.ask(primary, "status"))["state"] in ("alone", "protect", "protected")
    assert await bed.protected(LONG) == primary
    await bed.serves(LONG)
    assert await faults(bed, [primary]) == []
    content = await bed.client.get(f"{LOG_PATH}/{log.name}")
    found = examine_log(log.name, content, sent=log.sent, acknowledged=log.acknowledged)
    assert found.intact, found


async def test_an_operator_stops_the_vm_and_lets_it_go_on(bed: NodeBed) -> None:
    """A checkpoint runs a VM that was stopped again (QEMU does): so it is only a pause. Nothing else comes of it."""
    primary = await bed.protected(LONG)
    log = await bed.write_log("stop-cont")
    await log.reached(5, LONG)
    story = {host: Story(bed, host) for host in HOSTS}
    monitor = await bed.monitor(primary)
    try:
        await monitor.execute("stop", deadline=LONG)
        await asyncio.sleep(1.0)  # longer than any timeout of heartbeat and link: nobody may take it for a death
        await monitor.execute("cont", deadline=LONG)
    finally:
        await monitor.close()
    await log.reached(log.acknowledged + 5, LONG)
    assert await bed.protected(LONG) == primary
    assert [await story[host].states() for host in HOSTS] == [[], []]
    assert await faults(bed, [primary]) == []
    await log_is_whole(bed, log)


@pytest.mark.parametrize("how", ["quit", "SIGTERM"])
async def test_an_operator_ends_qemu_which_looks_like_a_crash_to_the_secondary(bed: NodeBed, how: str) -> None:
    """The secondary's QEMU hears a broken connection only, as after a crash: nobody may take over nevertheless."""
    primary = await bed.protected(LONG)
    log = await bed.write_log(f"ended-by-{how.lower()}")
    await log.reached(5, LONG)
    its = Story(bed, other(primary))
    if how == "quit":
        monitor = await bed.monitor(primary)
        try:
            await monitor.execute("quit", deadline=LONG)
        finally:
            await monitor.close()
    else:
        assert len(bed.kill_qemu(primary, signal.SIGTERM)) == 1
    await bed.until_state(primary, {"stopped"}, LONG)
    await its.until("join")
    await until_standing(bed, primary, "owner")
    assert not {"claim", "settle", "alone"} & {*await its.states()}
    await bed.ask(primary, "start")
    assert await bed.protected(LONG) == primary
    await bed.serves(LONG)
    assert await faults(bed, [primary]) == []
    await log_is_whole(bed, log)


# ---------------------------------------------------------------------- COLO ends, and nobody is dead


@pytest.mark.parametrize("broken", ["ram", "disks"])
async def test_colo_breaks_and_both_vms_live(bed: NodeBed, broken: str) -> None:
    """COLO_EXIT, and QUORUM_REPORT_BAD of the copy: the primary goes on with the VM that it has."""
    primary = await bed.protected(LONG)
    log = await bed.write_log(f"broken-{broken}")
    await log.reached(5, LONG)
    story, before = Story(bed, primary), bed.qemu_pids(primary)
    ram = broken == "ram"
    monitor = await bed.monitor(primary if ram else other(primary))
    try:
        if ram:
            await monitor.execute("yank", {"instances": [{"type": "migration"}]}, deadline=LONG)
        else:
            await monitor.execute("nbd-server-stop", deadline=LONG)
    finally:
        await monitor.close()
    await story.until("alone")
    assert await bed.protected(LONG) == primary
    states, entries = await story.states(), await story.entries()
    assert (states[0], states[-1]) == ("suspended", "protected")
    assert (entries[0]["event"] == "colo lost" and "nbd0" in entries[0]["reason"]) or ram, entries[0]
    assert "peer dead" not in [entry["event"] for entry in entries]
    assert bed.qemu_pids(primary) == before
    assert await faults(bed, [primary]) == []
    await log.reached(log.acknowledged + 5, LONG)
    await log_is_whole(bed, log)


# ---------------------------------------------------------------------- frozen under a flood

FLOOD = """
import socket, time
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
out.connect(({address!r}, 9))
while True:
    for _ in range(20):
        try:
            out.send(bytes(1400))
        except OSError:  # the guest has no such port, and says so
            pass
    time.sleep(0.01)
"""


@contextlib.asynccontextmanager
async def flood(bed: NodeBed) -> AsyncIterator[None]:
    """2,000 datagrams/s to the guest: within half a second more than any queue on the way takes."""
    argv = [sys.executable, "-I", "-c", FLOOD.format(address=GUEST_IPV4)]
    daemon = await Daemon.start("flood", argv, bed.directory / "flood.log", namespace=bed.network.client)
    try:
        yield
        daemon.check()
    finally:
        await daemon.kill()


@pytest.mark.parametrize("victim", ["primary", "secondary"])
@pytest.mark.parametrize("what", ["host", "coloproxy", "QEMU"])
async def test_one_is_frozen_under_an_inbound_flood(bed: NodeBed, what: str, victim: Victim) -> None:
    primary = await bed.protected(LONG)
    host = primary if victim == "primary" else other(primary)
    survivor = other(host)
    log = await bed.write_log(f"flood-{what.lower()}-{victim}")
    await log.reached(5, LONG)
    story = Story(bed, survivor)
    async with flood(bed):
        if what == "host":
            await bed.freeze_host(host)
        elif what == "coloproxy":
            bed.processes[host].signal(signal.SIGSTOP, [bed.node(host).pid])
        else:
            assert len(bed.kill_qemu(host, signal.SIGSTOP)) == 1
        await story.until("alone")
        await log.reached(log.acknowledged + 5, LONG)
        bed.thaw_host(host)
        assert await bed.protected(LONG) == survivor
        await log.reached(log.acknowledged + 5, LONG)
    assert await faults(bed, [primary] if survivor == primary else [primary, survivor]) == []
    await log_is_whole(bed, log)


# ---------------------------------------------------------------------- coloproxy alone dies

KILLS = [
    Plan(number=1, moment="protected", victim="primary", killed=("a", "b"), delay=0.1),
    Plan(number=2, moment="failover", victim="primary", killed=("survivor",), delay=2.15),  # just after the time-out
    Plan(number=3, moment="resync", victim="primary", killed=("survivor", "victim"), delay=2.0),
]


@pytest.mark.parametrize("plan", KILLS, ids=[plan.moment for plan in KILLS])
async def test_coloproxy_alone_is_killed(bed: NodeBed, plan: Plan) -> None:
    """tools/node_kills.py does it at any point."""
    trial, _ = await run_trial(bed, plan)
    assert not trial.faults, trial.told()


# ---------------------------------------------------------------------- full disks


@pytest.mark.parametrize("victim", ["secondary", "primary"])
async def test_a_hosts_disk_is_full(victim: Victim) -> None:
    async with running(options(host_mebibytes=FILE_SYSTEM_MEBIBYTES)) as bed:
        primary = await bed.protected(LONG)
        host = primary if victim == "primary" else other(primary)
        survivor = other(host)
        log = await bed.write_log("full")
        await log.reached(5, LONG)
        await bed.watch.reset()
        await answered(bed, primary)
        story = Story(bed, survivor)
        assert bed.fill_disk(host) > 0
        filling = asyncio.create_task(fill_guest_disk(bed))  # what was allocated already can be written
        try:
            await story.until("alone")
            # Each node has kept room for its record: it could tell, and nobody had to wait for its silence.
            assert "peer dead" not in [entry["event"] for entry in await story.entries()]
            assert bed.ends(host) == ()
            bed.free_disk(host)
            assert await bed.protected(LONG) == survivor
        finally:
            filling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await filling
        await log.reached(log.acknowledged + 5, LONG)
        await log_is_whole(bed, log)
        assert await faults(bed, [primary] if survivor == primary else [primary, survivor]) == []
        counted = await log.end(LONG)
        for each in HOSTS:
            await bed.kill_host(each)
        found = await bed.verify(survivor, [counted])
        assert found.intact, found


async def test_the_disk_of_a_vm_that_is_alone_is_full() -> None:
    """The VM stands still, is told of once, and goes on by itself when there is room; only then it is protected."""
    async with running(options(host_mebibytes=FILE_SYSTEM_MEBIBYTES)) as bed:
        primary = await bed.protected(LONG)
        log = await bed.write_log("alone")
        await log.reached(5, LONG)
        await bed.kill_host(other(primary))
        await bed.until_state(primary, {"alone"}, LONG)
        story = Story(bed, primary)
        assert bed.fill_disk(primary) > 0
        filling = asyncio.create_task(fill_guest_disk(bed))
        try:
            await until_halted(bed, primary, halted=True)
            reason = (await bed.ask(primary, "status"))["qemu"]["halt_reason"]
            assert "No space left" in reason or "no space left" in reason
            await bed.boot_host(other(primary))
            await bed.until_state(primary, {"protect"}, LONG)
            await bed.until_state(other(primary), {"ready"}, LONG)
            assert (await bed.ask(primary, "status"))["qemu"]["halted"]
            bed.free_disk(primary)
            await until_halted(bed, primary, halted=False)
            assert await bed.protected(LONG) == primary
        finally:
            filling.cancel()
            with contextlib.suppress(asyncio.CancelledError, ColoproxyError):
                await filling
        told = bed.node(primary).log.read_text()
        assert told.count("the VM stands still") == told.count("the VM goes on") == 1
        assert {*await story.states()} <= {"alone", "protect", "protected"}
        await bed.serves(LONG)
        await log_is_whole(bed, log)


async def until_halted(bed: NodeBed, host: Host, *, halted: bool) -> None:
    until = time.monotonic() + LONG
    while (await bed.ask(host, "status"))["qemu"]["halted"] is not halted:
        assert time.monotonic() < until, bed.node(host).tail()
        await asyncio.sleep(0.05)


async def fill_guest_disk(bed: NodeBed) -> None:
    """Write on the guest's disk, more and more."""
    number = 0
    while True:
        number += 1
        log = await bed.write_log(f"more-{number}", interval=0.0)
        await asyncio.sleep(1.0)
        await log.close()
