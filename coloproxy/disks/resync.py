# SPDX-License-Identifier: Apache-2.0
"""Makes the secondary's images equal to the primary's, with the guest running, and keeps them so from then on.

full, live   a mirror job to `rs{i}` that also hands on each new write before the guest hears that it is done; once all
             disks' jobs are ready, `nbd{i}` goes into the quorum and the jobs end. The guest never stands still.
full, stop   a mirror job; at the end the VM is stopped, and stays so until COLO runs. With QEMU's replication driver.
bitmap       the VM is stopped while the blocks are copied that were written since the two sides parted, `nbd{i}` goes
             into the quorum, and the VM runs again.

Nothing of this needs to be remembered: after a restart of ours, call it again. A copy that was broken begins anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from coloproxy.errors import DiskError

from . import primary
from .graph import Blocks, Job
from .model import Disk, Kind, Monitor, Peer
from .primary import Via, nbd_node
from .record import Lineage

REPORT_S: Final = 0.1
BITMAP_PREFIX: Final = "colo-"
BITMAP_MAX: Final = 64 << 20
"""Bytes that are still worth a standstill: 0.6 s at 1 Gbit/s."""


class Mode(StrEnum):
    """How; see above."""

    LIVE = "live"
    STOP = "stop"
    BITMAP = "bitmap"


@dataclass(frozen=True, slots=True)
class Progress:
    """Of all disks together."""

    done: int
    """Bytes."""
    total: int
    """Bytes; grows as the guest writes."""
    bytes_per_s: float
    """Since the begin."""

    @property
    def fraction(self) -> float:
        return 1.0 if self.total == 0 else min(1.0, self.done / self.total)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished resync."""

    mode: Mode
    copied: int
    """Bytes."""
    seconds: float
    pause: float | None
    """Seconds that the guest stood still; 0 in live mode, None in stop mode: it still does."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a returning secondary needs."""

    mode: Mode
    token: str | None
    """Of the bitmaps to be used."""
    reason: str


Report = Callable[[Progress], None]


def _ignore(_: Progress) -> None:
    pass


def new_token() -> str:
    """Names a resync: the secondary keeps it in its Lineage, the primary's bitmaps bear it."""
    return secrets.token_hex(8)


# ----------------------------------------------------------------- bitmaps


async def begin_bitmaps(monitor: Monitor, disks: Sequence[Disk], token: str) -> None:
    """From now on, the primary remembers which blocks it writes, under that token. Idempotent.

    Before a resync's first write. Old bitmaps stay, until drop_bitmaps: they tell of the copy before.
    """
    blocks = Blocks(monitor)
    there = await bitmaps(monitor, disks)
    for disk in disks:
        if token not in there[disk]:
            await blocks.run("block-dirty-bitmap-add", node=disk.quorum, name=BITMAP_PREFIX + token)


async def drop_bitmaps(monitor: Monitor, disks: Sequence[Disk], keep: str | None) -> None:
    """Removes all of our bitmaps but those of the token `keep`. Once the secondary's lineage is settled."""
    blocks = Blocks(monitor)
    for disk, found in (await bitmaps(monitor, disks)).items():
        for token in found:
            if token != keep:
                await blocks.run("block-dirty-bitmap-remove", node=disk.quorum, name=BITMAP_PREFIX + token)


async def bitmaps(monitor: Monitor, disks: Sequence[Disk]) -> dict[Disk, dict[str, int]]:
    """For each disk: bytes of the blocks that were written since, by token. Bitmaps end with QEMU's process."""
    nodes = await Blocks(monitor).nodes()
    made: dict[Disk, dict[str, int]] = {}
    for disk in disks:
        found: dict[str, int] = {}
        listed = nodes[disk.quorum].get("dirty-bitmaps", []) if disk.quorum in nodes else []
        assert isinstance(listed, list)
        for bitmap in listed:
            name = str(bitmap.get("name", ""))
            if name.startswith(BITMAP_PREFIX) and bitmap["recording"] and not bitmap.get("inconsistent"):
                found[name.removeprefix(BITMAP_PREFIX)] = int(bitmap["count"])
        made[disk] = found
    return made


def plan(lineage: Lineage | None, dirty: Mapping[Disk, Mapping[str, int]], limit: int = BITMAP_MAX) -> Plan:
    """Whether a returning secondary may be brought up to date by what was written since, or must be copied anew.

    lineage: of the secondary's images, by its own record; it must be of that very host.
    dirty: what bitmaps() says on the primary.

    By bitmap it is sound only if each block that may differ is in the bitmap: it was begun before the copy, the copy
    was complete and on stable storage at a later moment (settled), and nobody but this QEMU has written to it since.
    """
    if lineage is None:
        return Plan(Mode.LIVE, None, "the secondary's images are no copy of a known state")
    token = lineage.token
    if not all(token in found for found in dirty.values()) or not dirty:
        return Plan(Mode.LIVE, None, "this primary doesn't know what was written since that copy was made")
    if not lineage.settled:
        return Plan(
            Mode.LIVE, None, "no checkpoint had committed: the copy may be incomplete on the secondary's storage"
        )
    amount = sum(found[token] for found in dirty.values())
    if amount > limit:
        text = f"{amount >> 20} MiB were written since, too much for a standstill (limit {limit >> 20} MiB)"
        return Plan(Mode.LIVE, None, text)
    return Plan(Mode.BITMAP, token, f"{amount >> 10} KiB were written since")


# ------------------------------------------------------------------ resync


async def resync(
    monitor: Monitor,
    disks: Sequence[Disk],
    peer: Peer,
    token: str,
    *,
    mode: Mode = Mode.LIVE,
    known: str | None = None,
    bandwidth: int = 0,
    report: Report = _ignore,
    deadline_s: float = 24 * 3600.0,
) -> Outcome:
    """Copies the disks, and attaches the remote children. The secondary has been prepared (secondary.prepare).

    token: of this resync; its bitmaps begin here.
    known: BITMAP: the token of the bitmaps that say what to copy (Plan.token).
    bandwidth: bytes/s for all disks together; 0: no limit. What the guest writes meanwhile comes on top.
    Raises DiskError: Kind.TARGET if the copy failed, the guest goes on alone; primary.detach() tidies up. Cancelled or
    failed, the VM runs again if it ran before.
    """
    started = time.monotonic()
    blocks = Blocks(monitor)
    # What an earlier one has left goes, even a finished one: nobody can say whether a write has failed meanwhile.
    await primary.detach(monitor, disks)
    await begin_bitmaps(monitor, disks, token)
    meter = _Meter(report, started)
    for disk in disks:
        await blocks.send("blockdev-add", nbd_node(disk.target, disk, peer))
    speed = bandwidth // len(disks)
    pause: float | None = 0.0
    if mode is Mode.BITMAP:
        if known is None:
            raise DiskError(Kind.STATE, "a resync by bitmap needs to know of which")
        pause = await _by_bitmap(blocks, monitor, disks, peer, known, speed, meter, deadline_s)
    elif mode is Mode.LIVE:
        await _mirror(blocks, disks, speed, "write-blocking", meter, deadline_s)
        await primary.attach(monitor, disks, peer)
        await _finish(blocks, disks)
    else:
        await _mirror(blocks, disks, speed, "background", meter, deadline_s)
        async with _standing(monitor, disks, resume=False):
            await _finish(blocks, disks)
            await primary.attach(monitor, disks, peer, Via.REPLICATION)
        pause = None
    await blocks.delete_nodes(*(disk.target for disk in disks))
    return Outcome(mode, meter.done, time.monotonic() - started, pause)


async def set_bandwidth(monitor: Monitor, disks: Sequence[Disk], bandwidth: int) -> None:
    """Changes the limit of a running resync, in bytes/s for all disks together; 0: none."""
    blocks = Blocks(monitor)
    jobs = await blocks.jobs()
    for disk in disks:
        if disk.job in jobs:
            await blocks.run("block-job-set-speed", device=disk.job, speed=bandwidth // len(disks))


async def go_on(monitor: Monitor, disks: Sequence[Disk]) -> None:
    """After our own death in a resync by bitmap: the VM that it has stopped runs again. Does nothing otherwise."""
    blocks = Blocks(monitor)
    if await blocks.run_state() == "paused":
        jobs = await blocks.jobs()
        if any(disk.job in jobs for disk in disks):
            await _run_again(monitor, disks)


async def _mirror(
    blocks: Blocks, disks: Sequence[Disk], speed: int, copy_mode: str, meter: _Meter, deadline_s: float
) -> None:
    """Starts the mirror jobs and waits until all are ready."""
    for disk in disks:
        await blocks.run(
            "blockdev-mirror",
            job_id=disk.job,
            device=disk.quorum,
            target=disk.target,
            sync="full",
            copy_mode=copy_mode,
            speed=speed,
            on_target_error="report",
            on_source_error="report",
            auto_dismiss=False,  # so that we see how it ended, even after a restart of ours
        )
    await _watch(blocks, disks, "ready", meter, deadline_s)


async def _finish(blocks: Blocks, disks: Sequence[Disk]) -> None:
    """Ends mirror jobs that are ready: the copies are then complete."""
    for disk in disks:
        await blocks.run("block-job-cancel", device=disk.job)
    await _conclude(blocks, disks)


async def _conclude(blocks: Blocks, disks: Sequence[Disk]) -> None:
    jobs = await blocks.wait_jobs({disk.job for disk in disks}, lambda job: job.status == "concluded", blocks.step_s)
    for disk in disks:
        error = jobs[disk.job].error
        if error is not None:
            raise DiskError(Kind.TARGET, f"{disk.quorum}: the copy failed: {error}")
    for disk in disks:
        await blocks.run("job-dismiss", id=disk.job)


async def _by_bitmap(
    blocks: Blocks,
    monitor: Monitor,
    disks: Sequence[Disk],
    peer: Peer,
    known: str,
    speed: int,
    meter: _Meter,
    deadline_s: float,
) -> float:
    """Returns how long the VM stood still.

    It must: QEMU's backup job, the only one that takes a bitmap, lets a write of the guest fail if the target does.
    """
    for disk in disks:  # connected before, for that may take a while
        await blocks.send("blockdev-add", nbd_node(disk.remote, disk, peer))
    began = time.monotonic()
    async with _standing(monitor, disks, resume=True):
        for disk in disks:
            await blocks.run(
                "blockdev-backup",
                job_id=disk.job,
                device=disk.quorum,
                target=disk.target,
                sync="bitmap",
                bitmap=BITMAP_PREFIX + known,
                bitmap_mode="never",  # it stays as it is: if this resync breaks, too, it is needed again
                speed=speed,
                on_target_error="report",
                on_source_error="report",
                auto_dismiss=False,
            )
        await _watch(blocks, disks, "concluded", meter, deadline_s)
        await _conclude(blocks, disks)
        await primary.attach(monitor, disks, peer)
    return time.monotonic() - began


@asynccontextmanager
async def _standing(monitor: Monitor, disks: Sequence[Disk], *, resume: bool) -> AsyncIterator[None]:
    """The VM is stopped in here. resume: it runs again behind it; else only if something went wrong in here."""
    blocks = Blocks(monitor)
    ran = await blocks.run_state() == "running"
    if ran:
        await blocks.run("stop")
    try:
        yield
    except BaseException:
        if ran:
            await asyncio.shield(_run_again(monitor, disks))
        raise
    if ran and resume:
        await blocks.run("cont")


async def _run_again(monitor: Monitor, disks: Sequence[Disk]) -> None:
    """After a failure. Jobs end first: with a target that is gone, a backup job would fail the guest's writes.

    Should a job not end, the VM stays stopped: that can be mended, a guest that was told of I/O errors can't.
    """
    blocks = Blocks(monitor)
    with contextlib.suppress(DiskError):  # a monitor without out-of-band commands; the peer may be well, too
        await primary.yank(monitor, disks)
    await blocks.end_jobs(*(disk.job for disk in disks))
    await blocks.run("cont")


async def _watch(blocks: Blocks, disks: Sequence[Disk], until: str, meter: _Meter, deadline_s: float) -> None:
    """Reports until all jobs have that status. Raises DiskError as soon as one has failed."""
    reported = 0.0

    def wanted(job: Job) -> bool:
        if job.status == "concluded" and job.error is not None:
            raise DiskError(Kind.TARGET, f"{job.ident}: the copy failed: {job.error}")
        return job.status == until

    async with asyncio.timeout(deadline_s) as limit:
        try:
            while True:
                jobs = await blocks.jobs()
                ours = [jobs[disk.job] for disk in disks if disk.job in jobs]
                if len(ours) < len(disks):
                    raise DiskError(Kind.STATE, "a job of the resync is gone")
                states = [wanted(job) for job in ours]  # each is looked at: one may have failed
                if all(states) or time.monotonic() - reported >= REPORT_S:
                    reported = time.monotonic()
                    meter.tell(ours)
                if all(states):
                    return
                await asyncio.sleep(0.01)
        except asyncio.CancelledError as error:
            if limit.expired():
                raise DiskError(Kind.DEADLINE, f"the copy isn't done after {deadline_s:g} s") from error
            raise


class _Meter:
    """Turns jobs into progress."""

    def __init__(self, report: Report, started: float) -> None:
        self._report = report
        self._started = started
        self.done = 0

    def tell(self, jobs: Sequence[Job]) -> None:
        self.done = sum(job.offset for job in jobs)
        total = sum(job.length for job in jobs)
        elapsed = max(time.monotonic() - self._started, 1e-6)
        self._report(Progress(self.done, total, self.done / elapsed))
