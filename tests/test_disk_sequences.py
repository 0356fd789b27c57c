# SPDX-License-Identifier: Apache-2.0
"""coloproxy.disks: its conversations with a real QEMU, without a guest. The test writes in the guest's place."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from disk_bed import MIB, Bed, Vm, bed, make_disks, same, small_file_system, tool

from coloproxy.disks import (
    Blocks,
    Disk,
    Kind,
    Lineage,
    Mode,
    Progress,
    Via,
    What,
    primary,
    read_event,
    resync,
    secondary,
)
from coloproxy.errors import DiskError

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-img") is None or shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed"
)


@pytest_asyncio.fixture
async def table(tmp_path: Path) -> AsyncIterator[Bed]:
    async with bed(tmp_path) as made:
        yield made


async def pair(table: Bed, count: int = 1, content: bool = True) -> tuple[Vm, Vm]:
    """Two bare QEMUs; the first one's disks hold something."""
    one = await make_disks(table.directory / "a", count)
    other = await make_disks(table.directory / "b", count)
    if content:
        for disk in one:
            await tool("qemu-io", "-c", f"write -P {disk.index + 1} 1M 20M", str(disk.image))
    return await table.bare_primary("a", one), await table.bare_secondary("b", other)


async def end(*vms: Vm) -> None:
    """As a clean shutdown: all is in the files."""
    for vm in vms:
        await vm.qmp.execute("quit")
        await vm.daemon.wait()


async def equal(a: Vm, b: Vm) -> bool:
    await end(a, b)
    return all([await same(one.image, other.image) for one, other in zip(a.disks, b.disks, strict=True)])


async def test_prepare_twice_is_once_and_reset_too(table: Bed) -> None:
    a, b = await pair(table, 2)
    await secondary.prepare(b.qmp, b.disks, table.peer)
    assert await Blocks(b.qmp).exports() == {"exp0", "exp1"}
    await primary.attach(a.qmp, a.disks, table.peer)
    begin = len(a.log.events)
    await secondary.prepare(b.qmp, b.disks, table.peer)  # cuts no connection
    await table.write(a, 7, MIB, MIB)
    assert "QUORUM_REPORT_BAD" not in a.log.names(begin)
    await secondary.reset(b.qmp)
    await secondary.reset(b.qmp)
    assert await Blocks(b.qmp).exports() == set()


async def test_prepare_goes_on_where_it_was_killed(table: Bed) -> None:
    _, b = await pair(table, 2)
    await b.qmp.execute("block-export-del", {"id": "exp1"})
    await secondary.prepare(b.qmp, b.disks, table.peer)
    assert await Blocks(b.qmp).exports() == {"exp0", "exp1"}


@pytest.mark.parametrize("via", list(Via))
async def test_attach_and_detach_twice_are_once(table: Bed, via: Via) -> None:
    a, _ = await pair(table, 2)
    before = await Blocks(a.qmp).edges()
    for _ in range(2):
        for _ in range(2):
            await primary.attach(a.qmp, a.disks, table.peer, via)
            assert await primary.attached(a.qmp, a.disks)
        for _ in range(2):
            await primary.detach(a.qmp, a.disks)
            assert not await primary.attached(a.qmp, a.disks)
    assert sorted(map(str, await Blocks(a.qmp).edges())) == sorted(map(str, before))


async def test_what_is_written_while_attached_is_on_both(table: Bed) -> None:
    a, b = await pair(table, content=False)
    await primary.attach(a.qmp, a.disks, table.peer)
    await table.write(a, 7, 3 * MIB, 2 * MIB)
    await primary.detach(a.qmp, a.disks)
    assert await equal(a, b)


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_secondary_that_is_gone_hurts_no_write(table: Bed, death: signal.Signals) -> None:
    """SIGSTOP: the write waits, until the yank."""
    a, b = await pair(table, content=False)
    await primary.attach(a.qmp, a.disks, table.peer)
    b.signal(death)
    begin = len(a.log.events)
    writing = asyncio.create_task(table.write(a, 7, MIB, MIB))
    if death == signal.SIGSTOP:
        done, _ = await asyncio.wait([writing], timeout=1.0)
        assert not done
    await primary.yank(a.oob, a.disks)
    await writing
    await primary.detach(a.qmp, a.disks)
    troubles = [read_event(name, data, a.disks) for name, data, _ in a.log.events[begin:]]
    assert What.PEER_LOST in [trouble.what for trouble in troubles if trouble]
    await table.write(a, 8, 2 * MIB, MIB)
    await end(a)
    await tool("qemu-io", "-c", "read -P 7 1M 1M", "-c", "read -P 8 2M 1M", str(a.disk.image))


async def test_qemus_replication_driver_loses_what_is_written_before_colo(table: Bed) -> None:
    """Why Via.NBD is the default."""
    a, b = await pair(table, content=False)
    await primary.attach(a.qmp, a.disks, table.peer, Via.REPLICATION)
    begin = len(a.log.events)
    await table.write(a, 7, MIB, MIB)
    troubles = [read_event(name, data, a.disks) for name, data, _ in a.log.events[begin:]]
    assert What.PEER_LOST in [trouble.what for trouble in troubles if trouble]
    await primary.detach(a.qmp, a.disks)
    assert not await equal(a, b)


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_peer_that_is_gone_before_we_connect_leaves_qemu_answering(table: Bed, death: signal.Signals) -> None:
    a, b = await pair(table)
    await a.qmp.execute("cont")
    b.signal(death)
    if death == signal.SIGKILL:
        await b.daemon.wait()
    with pytest.raises(DiskError):
        await primary.attach(a.qmp, a.disks, table.peer)
    with pytest.raises(DiskError):
        await resync.resync(a.qmp, a.disks, table.peer, resync.new_token())
    await primary.detach(a.qmp, a.disks)
    assert await a.status() == "running"
    await table.write(a, 7, MIB, MIB)


async def test_detach_of_a_disk_that_is_not_there_says_so(table: Bed, tmp_path: Path) -> None:
    a, _ = await pair(table)
    with pytest.raises(DiskError) as caught:
        await primary.detach(a.qmp, [Disk(5, tmp_path / "x", "qcow2", MIB, tmp_path)])
    assert caught.value.kind == Kind.STATE


# ------------------------------------------------------------------- resync


async def load(table: Bed, vm: Vm, stop: asyncio.Event) -> int:
    """Writes all over the disks until told to stop; returns the number of writes."""
    count = 0
    while not stop.is_set():
        for disk in vm.disks:
            where = count * 1_310_720 % (60 * MIB) // 512 * 512
            await table.write(vm, 100 + count % 100, where, 200 * 512, disk.index)
        count += 1
    return count


@pytest.mark.parametrize("count", [1, 2])
async def test_full_and_live_under_load(table: Bed, count: int) -> None:
    a, b = await pair(table, count)
    stop = asyncio.Event()
    writing = asyncio.create_task(load(table, a, stop))
    seen: list[float] = []
    token = resync.new_token()
    outcome = await resync.resync(
        a.qmp,
        a.disks,
        table.peer,
        token,
        bandwidth=count * 40 * MIB,
        report=lambda progress: seen.append(progress.fraction),
    )
    for _ in range(10):  # and what is written from here on is on both, too
        await table.write(a, 99, 63 * MIB, MIB)
    stop.set()
    assert await writing > 0
    assert outcome.pause == 0.0
    assert seen[-1] == 1.0
    assert len(seen) > 2
    assert await primary.attached(a.qmp, a.disks)
    await primary.detach(a.qmp, a.disks)
    assert await equal(a, b)


async def test_full_in_stop_mode_ends_with_the_replication_driver_and_a_vm_that_stands(table: Bed) -> None:
    a, b = await pair(table)
    await a.qmp.execute("cont")
    outcome = await resync.resync(a.qmp, a.disks, table.peer, resync.new_token(), mode=Mode.STOP)
    assert outcome.pause is None
    assert await a.status() == "paused"
    assert "replication0" in await Blocks(a.qmp).nodes()
    assert "rs0" not in await Blocks(a.qmp).nodes()
    await primary.detach(a.qmp, a.disks)
    assert await equal(a, b)


@pytest.mark.parametrize("mode", [Mode.LIVE, Mode.STOP])
@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_resync_whose_target_dies_leaves_the_guest_running(
    table: Bed, mode: Mode, death: signal.Signals
) -> None:
    a, b = await pair(table)
    await a.qmp.execute("cont")
    half = asyncio.Event()
    copying = asyncio.create_task(
        resync.resync(
            a.qmp,
            a.disks,
            table.peer,
            resync.new_token(),
            mode=mode,
            bandwidth=10 * MIB,
            report=lambda progress: half.set() if progress.done else None,
        )
    )
    await half.wait()
    b.signal(death)
    if death == signal.SIGSTOP:
        await primary.yank(a.oob, a.disks)
    with pytest.raises(DiskError) as caught:
        await copying
    assert caught.value.kind == Kind.TARGET
    await table.write(a, 9, 5 * MIB, MIB)
    await primary.yank(a.oob, a.disks)
    await primary.detach(a.qmp, a.disks)
    assert await a.status() == "running"
    # and the peer comes back: all over again
    await b.kill()
    c = await table.bare_secondary("c", b.disks)
    await resync.resync(a.qmp, a.disks, table.peer, resync.new_token())
    await primary.detach(a.qmp, a.disks)
    assert await equal(a, c)


@pytest.mark.parametrize("mode", list(Mode))
async def test_a_resync_that_we_died_in_is_called_again(table: Bed, mode: Mode) -> None:
    a, b = await pair(table)
    await a.qmp.execute("cont")
    known = resync.new_token()
    if mode is Mode.BITMAP:
        await resync.resync(a.qmp, a.disks, table.peer, known)
        await primary.detach(a.qmp, a.disks)
        await table.write(a, 77, 10 * MIB, 30 * MIB)
    reported = asyncio.Event()
    copying = asyncio.create_task(
        resync.resync(
            a.qmp,
            a.disks,
            table.peer,
            resync.new_token(),
            mode=mode,
            known=known,
            bandwidth=8 * MIB,
            report=lambda _: reported.set(),
        )
    )
    await reported.wait()
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    assert await a.status() == "running"
    await resync.resync(a.qmp, a.disks, table.peer, resync.new_token(), mode=mode, known=known)
    await primary.detach(a.qmp, a.disks)
    assert await equal(a, b)


# ------------------------------------------------------------------- bitmap


async def test_a_resync_by_bitmap_that_is_cancelled_before_a_frozen_peer_lets_the_guest_go_on(table: Bed) -> None:
    a, b = await pair(table)
    await a.qmp.execute("cont")
    token = resync.new_token()
    await resync.resync(a.qmp, a.disks, table.peer, token)
    await primary.detach(a.qmp, a.disks)
    await table.write(a, 52, 20 * MIB, 20 * MIB)
    moved = asyncio.Event()

    def report(progress: Progress) -> None:
        if progress.done:
            moved.set()

    again = resync.new_token()
    copying = asyncio.create_task(
        resync.resync(
            a.qmp, a.disks, table.peer, again, mode=Mode.BITMAP, known=token, bandwidth=8 * MIB, report=report
        )
    )
    await moved.wait()
    assert await a.status() == "paused"
    b.signal(signal.SIGSTOP)
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    assert await a.status() == "running"
    await table.write(a, 53, 20 * MIB, 20 * MIB)
    await primary.detach(a.qmp, a.disks)


async def test_a_secondary_that_comes_back_gets_what_was_written_since(table: Bed) -> None:
    a, b = await pair(table)
    await a.qmp.execute("cont")
    token = resync.new_token()
    await resync.resync(a.qmp, a.disks, table.peer, token)
    await table.write(a, 50, MIB, MIB)  # flushed: a checkpoint does that
    b.signal(signal.SIGKILL)
    await table.write(a, 51, 30 * MIB, 2 * MIB)
    await primary.yank(a.oob, a.disks)
    await primary.detach(a.qmp, a.disks)
    await table.write(a, 52, 40 * MIB, 2 * MIB)
    await b.kill()
    c = await table.bare_secondary("c", b.disks)
    plan = resync.plan(Lineage(token, settled=True), await resync.bitmaps(a.qmp, a.disks))
    assert (plan.mode, plan.token) == (Mode.BITMAP, token)
    again = resync.new_token()
    outcome = await resync.resync(a.qmp, a.disks, table.peer, again, mode=plan.mode, known=plan.token)
    assert 5 * MIB <= outcome.copied <= 6 * MIB
    assert await a.status() == "running"
    await resync.drop_bitmaps(a.qmp, a.disks, keep=again)
    assert await resync.bitmaps(a.qmp, a.disks) == {a.disk: {again: 0}}
    await table.write(a, 53, 50 * MIB, MIB)
    await primary.detach(a.qmp, a.disks)
    assert await equal(a, c)


async def test_a_resync_by_bitmap_that_breaks_is_taken_up_by_the_same_bitmap(table: Bed) -> None:
    a, b = await pair(table)
    await a.qmp.execute("cont")
    token = resync.new_token()
    await resync.resync(a.qmp, a.disks, table.peer, token)
    await primary.detach(a.qmp, a.disks)
    await table.write(a, 52, 20 * MIB, 20 * MIB)
    moved = asyncio.Event()
    copying = asyncio.create_task(
        resync.resync(
            a.qmp,
            a.disks,
            table.peer,
            resync.new_token(),
            mode=Mode.BITMAP,
            known=token,
            bandwidth=8 * MIB,
            report=lambda progress: moved.set() if progress.done else None,
        )
    )
    await moved.wait()
    await primary.yank(a.oob, a.disks)  # as a link that is cut
    with pytest.raises(DiskError) as caught:
        await copying
    assert caught.value.kind == Kind.TARGET
    assert await a.status() == "running"
    await table.write(a, 54, 5 * MIB, MIB)
    outcome = await resync.resync(a.qmp, a.disks, table.peer, resync.new_token(), mode=Mode.BITMAP, known=token)
    assert outcome.copied == 21 * MIB
    await primary.detach(a.qmp, a.disks)
    assert await equal(a, b)


DISKS = [Disk(i, Path("x"), "qcow2", MIB, Path("y")) for i in range(2)]


@pytest.mark.parametrize(
    ("lineage", "dirty", "mode"),
    [
        (Lineage("t", settled=True), [{"t": 0}, {"t": 65536, "u": 0}], Mode.BITMAP),
        (Lineage("t", settled=True), [{"t": 0}, {"u": 0}], Mode.LIVE),
        (Lineage("t", settled=True), [{"t": 0}, {"t": 2 * MIB}], Mode.LIVE),
        (Lineage("t", settled=False), [{"t": 0}, {"t": 0}], Mode.LIVE),
        (Lineage("t", settled=True), [], Mode.LIVE),
        (None, [{"t": 0}, {"t": 0}], Mode.LIVE),
    ],
)
def test_plan(lineage: Lineage | None, dirty: list[dict[str, int]], mode: Mode) -> None:
    plan = resync.plan(lineage, dict(zip(DISKS, dirty, strict=False)), limit=MIB)
    assert plan.mode is mode
    assert (plan.token is not None) == (mode is Mode.BITMAP)


# ---------------------------------------------------------------- disk full


async def test_a_full_disk_of_the_secondary_is_the_peers_loss(table: Bed, small_disk: Path) -> None:
    """Its image can't grow: P's guest notices nothing, the copy is no copy any more."""
    one = await make_disks(table.directory / "a")
    other = await make_disks(small_disk)
    other = [Disk(0, other[0].image, "qcow2", other[0].size, table.directory / "overlays")]
    a, _ = await table.bare_primary("a", one), await table.bare_secondary("b", other)
    await primary.attach(a.qmp, a.disks, table.peer)
    begin = len(a.log.events)
    await table.write(a, 7, 0, 12 * MIB)
    troubles = [read_event(name, data, a.disks) for name, data, _ in a.log.events[begin:]]
    assert [t.what for t in troubles if t][:1] == [What.PEER_LOST]
    assert "No space left" in str([t.text for t in troubles if t])
    await primary.detach(a.qmp, a.disks)
    await end(a)
    await tool("qemu-io", "-c", "read -P 7 0 12M", str(a.disk.image))


@pytest.mark.parametrize("mode", [Mode.LIVE, Mode.STOP])
async def test_a_resync_to_a_full_disk_fails_and_says_why(table: Bed, small_disk: Path, mode: Mode) -> None:
    one = await make_disks(table.directory / "a")
    await tool("qemu-io", "-c", "write -P 1 0 20M", str(one[0].image))
    other = await make_disks(small_disk)
    other = [Disk(0, other[0].image, "qcow2", other[0].size, table.directory / "overlays")]
    a, _ = await table.bare_primary("a", one), await table.bare_secondary("b", other)
    await a.qmp.execute("cont")
    with pytest.raises(DiskError) as caught:
        await resync.resync(a.qmp, a.disks, table.peer, resync.new_token(), mode=mode)
    assert caught.value.kind == Kind.TARGET
    assert "No space left" in caught.value.text
    await primary.detach(a.qmp, a.disks)
    assert await a.status() == "running"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    with small_file_system(tmp_path / "small", mebibytes=8) as place:
        yield place
