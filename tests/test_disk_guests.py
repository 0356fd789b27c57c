# SPDX-License-Identifier: Apache-2.0
"""coloproxy.disks with two real guests under COLO, whose writes always differ: each record bears its host's name."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from disk_bed import Bed, Guest, Vm, bed, build_guest, make_disks, records, small_file_system, tool

from coloproxy.disks import (
    Lineage,
    Mode,
    Trouble,
    Via,
    What,
    images,
    primary,
    read_event,
    record,
    recover,
    resync,
    secondary,
)
from coloproxy.errors import DiskError
from coloproxy.testbed import missing

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed"),
    pytest.mark.skipif(bool(missing()), reason=f"this machine lacks {', '.join(item.what for item in missing())}"),
]

A, B = "host-a", "host-b"


@pytest.fixture(scope="module")
def guest() -> Guest:
    return build_guest()


@pytest_asyncio.fixture
async def table(tmp_path: Path) -> AsyncIterator[Bed]:
    async with bed(tmp_path) as made:
        yield made


async def protected(table: Bed, guest: Guest, count: int = 1, via: Via = Via.NBD) -> tuple[Vm, Vm]:
    """From two equal, empty images to COLO; the guest boots in it."""
    one, other = await make_disks(table.directory / "a", count), await make_disks(table.directory / "b", count)
    a, b = await table.machine("a", one, guest, "primary"), await table.machine("b", other, guest, "secondary")
    await primary.attach(a.qmp, a.disks, table.peer, via)
    await a.qmp.execute("cont") if via is Via.NBD else None
    await table.protect(a, b)
    await a.writes(10)
    await b.writes(10)
    return a, b


async def take_over(table: Bed, b: Vm) -> float:
    """Whole: up to a disk that is as good as a primary's. Returns how long the commit took, in seconds."""
    record.begin_takeover(b.disk.overlays, 2)
    await table.take_over(b)
    begin = time.monotonic()
    await secondary.wait_commit(b.qmp, b.disks, 30)
    took = time.monotonic() - begin
    record.end_takeover(b.disk.overlays)
    await secondary.clean_up(b.qmp, b.disks)
    await secondary.clean_up(b.qmp, b.disks)
    return took


def pause(vm: Vm, begin: int) -> str:
    """How long the guest stood still since then, by QEMU's clock."""
    stood: list[float] = []
    stop = None
    for name, _, at in vm.log.events[begin:]:
        if name == "STOP" and stop is None:
            stop = at
        if name == "RESUME" and stop is not None:
            stood.append((at - stop) / 1e9)
            stop = None
    return "pauses " + ", ".join(f"{seconds:.3f}" for seconds in stood) + " s"


async def check(vm: Vm, shared: int, host: str, count: int = 1) -> None:
    """All that the guest said it wrote is there; up to `shared` by whom it may be, after that by `host` only."""
    assert vm.complaints() == []
    said = vm.written()
    await vm.kill()
    for disk in vm.disks[:count]:
        found = await records(disk)
        lacking = [n for n in range(1, said + 1) if n not in found]
        assert not lacking, f"{vm.name}: of {said} records {lacking} are missing"
        assert max(found) <= said + 1
        strangers = {n: who for n, who in found.items() if who not in (A, B) or (n > shared + 1 and who != host)}
        assert not strangers, f"{vm.name}: {strangers} (checkpoint at {shared}, {said} written)"


async def test_the_primary_dies_and_the_secondarys_disk_is_its_own_view(table: Bed, guest: Guest) -> None:
    """What P wrote after the last checkpoint is undone on S, where it never happened: S stood still meanwhile."""
    a, b = await protected(table, guest, count=2)
    await table.checkpoint(a)
    await b.writes(5)
    shared = max(a.written(), b.written())
    await b.qmp.execute("stop")
    ahead = await a.writes(40)
    await a.kill()
    took = await take_over(table, b)
    await b.writes(2)
    await b.qmp.execute("stop")
    assert b.written() < ahead
    print(f"\ncommit {took:.3f} s")
    await check(b, shared=shared, host=B, count=2)


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSTOP])
async def test_the_secondary_dies_and_the_primary_goes_on(table: Bed, guest: Guest, death: signal.Signals) -> None:
    a, b = await protected(table, guest)
    await table.checkpoint(a)
    await a.writes(5)
    b.signal(death)
    await table.go_on(a)
    await a.writes(20)
    await a.qmp.execute("stop")
    await check(a, shared=0, host=A)


@pytest.mark.parametrize("mode", [Mode.LIVE, Mode.STOP])
async def test_protected_again_and_swapped_twice(table: Bed, guest: Guest, mode: Mode) -> None:
    """B takes over, A comes back and is copied to, B dies, A takes over, B comes back, and A has all of it."""
    a, b = await protected(table, guest)
    first, second, shared = a, b, 0
    for turn in range(2):
        await table.checkpoint(first)
        await asyncio.gather(first.writes(5), second.writes(5))
        await first.kill()
        await take_over(table, second)
        await second.writes(5)
        name = f"{'ab'[turn]}{turn}"
        new = await table.machine(name, first.disks, guest, "secondary")
        begin = len(second.log.events)
        outcome = await resync.resync(second.qmp, second.disks, table.peer, resync.new_token(), mode=mode)
        await table.protect(second, new)
        print(f"\n{mode}, turn {turn}: {outcome.seconds:.3f} s of copying; {pause(second, begin)}")
        first, second = second, new
        await asyncio.gather(first.writes(5), second.writes(5))
    await table.checkpoint(first)
    shared = max(first.written(), second.written())
    await asyncio.gather(first.writes(5), second.writes(5))
    await first.kill()
    await take_over(table, second)
    await second.writes(5)
    await second.qmp.execute("stop")
    await check(second, shared=shared, host=B)


async def test_a_secondary_comes_back_and_gets_what_was_written_since(table: Bed, guest: Guest) -> None:
    one, other = await make_disks(table.directory / "a"), await make_disks(table.directory / "b")
    a, b = await table.machine("a", one, guest, "primary"), await table.machine("b", other, guest, "secondary")
    token = resync.new_token()
    record.write_lineage(b.disk.overlays, Lineage(token, settled=False))
    await resync.begin_bitmaps(a.qmp, a.disks, token)
    await primary.attach(a.qmp, a.disks, table.peer)
    await table.protect(a, b)
    await a.writes(10)
    await table.checkpoint(a)
    record.write_lineage(b.disk.overlays, Lineage(token, settled=True))
    await a.writes(10)
    await b.kill()  # QEMU's own caches are lost with it
    await table.go_on(a)
    await a.writes(10)
    c = await table.machine("b2", b.disks, guest, "secondary")
    plan = resync.plan(record.lineage(c.disk.overlays), await resync.bitmaps(a.qmp, a.disks))
    assert plan.mode is Mode.BITMAP, plan
    again = resync.new_token()
    begin = len(a.log.events)
    outcome = await resync.resync(a.qmp, a.disks, table.peer, again, mode=plan.mode, known=plan.token)
    await table.protect(a, c)
    print(f"\nbitmap: {outcome.copied >> 10} KiB; {pause(a, begin)}")
    await a.writes(5)
    await table.checkpoint(a)
    shared = max(a.written(), c.written())
    await c.writes(5)
    await a.kill()
    await take_over(table, c)
    await c.writes(5)
    await c.qmp.execute("stop")
    await check(c, shared=shared, host=B)


async def test_takeover_interrupted_before_its_commit_is_done(table: Bed, guest: Guest) -> None:
    """QEMU is killed while it commits; recover() gives what the guest had written."""
    for attempt in range(4):
        if await interrupted(table, guest, str(attempt)):
            return
    pytest.fail("four times the commit was done before QEMU could be killed")


async def interrupted(table: Bed, guest: Guest, attempt: str) -> bool:
    """False: the commit was done too early."""
    one, other = await make_disks(table.directory / f"a{attempt}"), await make_disks(table.directory / f"b{attempt}")
    a = await table.machine("a", one, guest, "primary")
    b = await table.machine("b", other, guest, "secondary", throttled=True)
    await primary.attach(a.qmp, a.disks, table.peer)
    await table.protect(a, b)
    await a.writes(10)
    await table.checkpoint(a)
    await b.writes(5)
    shared = max(a.written(), b.written())
    await asyncio.gather(a.writes(20), b.writes(20))
    await b.qmp.execute("stop")
    ahead = await a.writes(300)  # these are in hidden only, and take a minute to commit
    slow = {"bps-write": 16384, "bps-write-max": 16384}
    await b.qmp.execute("qom-set", {"path": "/objects/slow", "property": "limits", "value": slow})
    await a.kill()
    record.begin_takeover(b.disk.overlays, 2)
    await table.take_over(b)
    # Two: one may have been flushed before, and a flush writes hidden's tables.
    assert await b.writes(2) < ahead
    if await secondary.commit_done(b.qmp, b.disks):
        await b.kill()
        return False
    with pytest.raises(DiskError):
        await secondary.clean_up(b.qmp, b.disks)
    await b.kill()
    assert await recover.needed(b.disks)
    await recover.recover(b.disks)
    await check(b, shared=shared, host=B)
    return True


async def test_takeover_whose_qemu_dies_before_anybody_has_flushed_hidden(table: Bed, guest: Guest) -> None:
    """What only the primary wrote is undone even so: flush() has put hidden's tables into its file."""
    a, b = await protected(table, guest)
    await table.checkpoint(a)
    await b.writes(5)
    shared = max(a.written(), b.written())
    await b.qmp.execute("stop")
    assert await a.writes(300) > b.written() + 100
    await a.kill()
    record.begin_takeover(b.disk.overlays, 2)
    await secondary.reset(b.qmp)
    await secondary.flush(b.qmp)
    await b.kill()
    await recover.recover(b.disks)
    await check(b, shared=shared, host=B)


# ---------------------------------------------------------------- disk full


def troubles(vm: Vm, begin: int = 0) -> list[Trouble]:
    return [t for name, data, _ in vm.log.events[begin:] if (t := read_event(name, data, vm.disks)) is not None]


async def until(vm: Vm, what: What) -> Trouble:
    async with asyncio.timeout(60):
        while True:
            for trouble in troubles(vm):
                if trouble.what is what:
                    return trouble
            await asyncio.sleep(0.05)


async def test_the_overlays_disk_is_full(table: Bed, guest: Guest, small_disk: Path) -> None:
    """S's guest stands still, P hears nothing of it; were there a checkpoint now, S's QEMU would abort itself."""
    one = await make_disks(table.directory / "a")
    other = [replace(disk, overlays=small_disk) for disk in await make_disks(table.directory / "b")]
    a, b = await table.machine("a", one, guest, "primary"), await table.machine("b", other, guest, "secondary")
    before = images.overlay_bytes(b.disks)
    await primary.attach(a.qmp, a.disks, table.peer)
    await table.protect(a, b)
    await a.writes(10)
    assert "no space left" in (await until(b, What.GUEST_STOPPED)).text
    assert images.overlay_bytes(b.disks) > before
    assert await b.status() == "io-error"
    await a.writes(20)
    await b.kill()
    await table.go_on(a)
    await a.writes(5)
    await a.qmp.execute("stop")
    await check(a, shared=0, host=A)


async def test_the_primarys_disk_is_full(table: Bed, guest: Guest, small_disk: Path) -> None:
    """Its guest doesn't notice: the write went to S. So P must end, before it reads what is not there."""
    one = [replace(disk, overlays=table.directory / "a") for disk in await make_disks(small_disk)]
    other = await make_disks(table.directory / "b")
    a, b = await table.machine("a", one, guest, "primary"), await table.machine("b", other, guest, "secondary")
    await primary.attach(a.qmp, a.disks, table.peer)
    await table.protect(a, b)
    await a.writes(10)
    await table.checkpoint(a)
    await b.writes(5)
    shared = max(a.written(), b.written())
    assert "No space left" in (await until(a, What.LOCAL_FAILED)).text
    assert await a.status() == "running"
    await a.kill()
    await take_over(table, b)
    await b.writes(5)
    await b.qmp.execute("stop")
    await check(b, shared=shared, host=B)


async def test_the_disk_of_a_primary_that_is_alone_is_full(table: Bed, guest: Guest, small_disk: Path) -> None:
    """It stands still, and goes on when there is room."""
    one = [replace(disk, overlays=table.directory / "a") for disk in await make_disks(small_disk)]
    a = await table.machine("a", one, guest, "alone")
    assert "no space left" in (await until(a, What.GUEST_STOPPED)).text
    assert await a.status() == "io-error"
    await tool("mount", "-o", "remount,size=64m", str(small_disk))
    await a.qmp.execute("cont")
    await a.writes(20)
    await a.qmp.execute("stop")
    await check(a, shared=0, host=A)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    with small_file_system(tmp_path / "small", mebibytes=1) as place:
        yield place
