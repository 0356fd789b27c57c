# SPDX-License-Identifier: Apache-2.0
"""The copy of the disks: how much of it a returning secondary needs, and what both sides keep so that it is little.

The two nodes agree through what they say in each heartbeat (adverts.Said):

    lineage   the secondary: of which copy its images are, as its disk says
    wanted    the primary: what it is to say

    before the first write of a full copy    wanted = (token, unsettled); the primary waits until it is said back
    a resync by bitmap                       wanted = None: what the secondary has stays right if this one breaks
    a checkpoint later, no write was lost    wanted = (token, settled); said back: older bitmaps go

Each bitmap begins before something is copied or flushed, and is thrown away only when the secondary's disk names a
later one. So whatever dies, the bitmap that the secondary's lineage names has every block that may differ.
docs/disks.md, "Resync", has the reasons.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Never

from coloproxy import vmm
from coloproxy.disks import (
    Blocks,
    Disk,
    Lineage,
    Mode,
    Monitor,
    Outcome,
    Peer,
    Plan,
    Progress,
    What,
    read_event,
    resync,
)
from coloproxy.disks import record as disk_record
from coloproxy.errors import ColoproxyError, PeerError
from coloproxy.reports import Report

from . import told
from .adverts import Said
from .facts import Facts, Standing, State

log = logging.getLogger(__name__)

AGREE_S: Final = 10.0
OLD_NEWS_S: Final = 1.2  # QEMU tells of a failed write up to a second late: it limits how often
STANDSTILL_S: Final = 2.0  # of the VM, for a resync by bitmap with a limited bandwidth
LOOK_S: Final = 5.0
AGAIN_S: Final = 2.0
_STEP_S: Final = 0.2
WATCHED: Final = ("QUORUM_REPORT_BAD", "COLO_EXIT", "STOP", "RESUME")


class Copying:
    """Of one node, in either role."""

    def __init__(self, overlays: Path) -> None:
        """overlays: the directory of the lineage."""
        self.changed: Callable[[], None] = _nothing
        """Called when the advert is to be another."""
        self.tell: Callable[[Report], None] = _ignore
        self.lineage: Lineage | None = disk_record.lineage(overlays)
        """The secondary's: what the disk says."""
        self.wanted: Lineage | None = None
        """The primary's: what the secondary's disk is to say."""
        self.progress: Progress | None = None
        """While it is copied."""
        self.limit = resync.BITMAP_MAX
        """Bytes that are worth a standstill of the VM."""
        self._overlays = overlays
        self._peer: Said | None = None
        self._heard = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None
        self._writes_again = 0.0
        self._keeping: asyncio.Task[None] | None = None
        self._last: dict[str, Any] | None = None

    def hear(self, said: Said) -> None:
        """What the peer says now."""
        self._peer = said
        self._heard.set()

    def status(self) -> dict[str, Any] | None:
        """Of the last copy that this host made, or makes."""
        if self._last is None or self.progress is None:
            return self._last
        return self._last | {"copied": self.progress.done}

    # ---------------------------------------------------------------- the secondary

    async def load(self) -> None:
        """When a copy is to be made here: what the images are is what the disk says."""
        await self._written()
        self.lineage = await asyncio.to_thread(disk_record.lineage, self._overlays)

    async def forget(self) -> None:
        """Before somebody else than the primary writes to the images, or they are made anew."""
        await self._written()
        self.lineage = None
        await asyncio.to_thread(disk_record.forget_lineage, self._overlays)

    def obey(self, facts: Facts) -> None:
        """After each event: puts on disk what the primary wants there, if it is the one that our copy is of."""
        said = self._peer
        if said is None or said.wanted in (None, self.lineage) or not facts.alive:
            return
        if (self._writing is not None and not self._writing.done()) or time.monotonic() < self._writes_again:
            return
        wanted = said.wanted
        assert wanted is not None
        offer = facts.own.offer if facts.state is State.STANDBY else facts.offer
        by_us = said.advert.offer == offer != ""
        begins = facts.state is State.READY and said.advert.state is State.PROTECT and not wanted.settled
        settles = (
            facts.state is State.STANDBY
            and said.advert.standing is Standing.PRIMARY
            and said.advert.generation == facts.own.generation
            and wanted.settled
        )
        if by_us and (begins or settles):
            self._writing = asyncio.create_task(self._write(wanted), name="lineage")

    async def _write(self, lineage: Lineage) -> None:
        """A disk that is busy, as after a copy, must not hold up the node: so this is a task."""
        try:
            await asyncio.to_thread(disk_record.write_lineage, self._overlays, lineage)
        except OSError as error:
            log.warning("what copy this is can't be put on disk: %s", error)
            self._writes_again = time.monotonic() + AGAIN_S
        else:
            self.lineage = lineage
            self.changed()

    async def _written(self) -> None:
        """Threads can't be cancelled: what is being written is waited for."""
        if self._writing is not None:
            await asyncio.wait({self._writing})

    # ------------------------------------------------------------------ the primary

    async def end(self) -> None:
        """Of the last copy: nothing more is wanted of the secondary. Idempotent."""
        keeping, self._keeping = self._keeping, None
        if keeping is not None and keeping is not asyncio.current_task():
            keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeping
        await self._written()
        self._want(None)

    async def copy(self, qemu: Monitor, disks: Sequence[Disk], peer: Peer, offer: str, speed: int) -> str:
        """Makes the waiting secondary's images equal to ours; the token of this copy.

        offer: which secondary. speed: bytes/s; 0: no limit. Raises PeerError, DiskError.
        """
        said = self._said(offer)
        dirty = await resync.bitmaps(qemu, disks)
        plan = resync.plan(said.lineage, dirty, self._most(speed))
        token = resync.new_token()
        name = "bitmap" if plan.mode is Mode.BITMAP else "full"
        self._last = {"state": "copying", "mode": name, "reason": plan.reason, "copied": 0}
        self.tell(told.ResyncBegins(name, plan.reason))
        try:
            await self._agree(plan, token, offer, said)
            await resync.drop_bitmaps(qemu, disks, keep=plan.token)
            outcome = await resync.resync(
                qemu, disks, peer, token, mode=plan.mode, known=plan.token, bandwidth=speed, report=self._report
            )
        except BaseException:
            self._last = (self.status() or {}) | {"state": "broken"}
            self._want(None)
            raise
        finally:
            self.progress = None
        self._done(name, outcome)
        return token

    def _most(self, speed: int) -> int:
        return min(self.limit, int(speed * STANDSTILL_S)) if speed else self.limit

    def _said(self, offer: str) -> Said:
        """By the secondary of that offer. Raises PeerError: it is another one now."""
        if self._peer is None or self._peer.advert.offer != offer:
            raise PeerError("the secondary has begun anew")
        return self._peer

    async def _agree(self, plan: Plan, token: str, offer: str, said: Said) -> None:
        """Before the first write. Raises PeerError: the secondary does not say it back."""
        if plan.mode is Mode.BITMAP:
            self._want(None)
            return
        wanted = Lineage(token, settled=False)
        self._want(wanted)
        if said.lineage is None:  # nothing there that could be taken for more than it is
            return
        try:
            async with asyncio.timeout(AGREE_S):
                while self._said(offer).lineage != wanted:
                    self._heard.clear()
                    await self._heard.wait()
        except TimeoutError as error:
            text = f"the secondary has not said within {AGREE_S:g} s that its old copy counts no more"
            raise PeerError(text) from error

    def _report(self, progress: Progress) -> None:
        self.progress = progress

    def _done(self, name: str, outcome: Outcome) -> None:
        assert self._last is not None
        pause = outcome.pause or 0.0
        self._last |= {
            "state": "done",
            "copied": outcome.copied,
            "seconds": round(outcome.seconds, 3),
            "pause_s": round(pause, 3),
        }
        self.tell(told.ResyncDone(name, outcome.copied, round(outcome.seconds, 3), round(pause, 3)))

    def settle(
        self,
        qemu: Monitor,
        disks: Sequence[Disk],
        token: str,
        events: vmm.Subscription,
        close: Callable[[], None],
    ) -> None:
        """Begin to look after the finished copy, until end(): COLO runs.

        events: WATCHED ones, from before the copy on. close: when no more are wanted.
        """

        async def keep() -> None:
            try:
                await self._look_after(qemu, disks, token, events)
            except ColoproxyError as error:
                log.info("the copy is not looked after any more: %s", error)
            except Exception:
                log.exception("the copy is not looked after any more")
            finally:
                close()
                self._want(None)

        self._keeping = asyncio.create_task(keep(), name="copy")

    async def _look_after(self, qemu: Monitor, disks: Sequence[Disk], token: str, events: vmm.Subscription) -> Never:
        """Settles it, and begins another bitmap when this one is half of what a standstill is worth.

        A new bitmap is as good as a new copy, for all that was written before its begin is on the secondary's stable
        storage after the next checkpoint, if no write was lost: so only who has heard of all since the copy may do it.
        Raises PeerError: one was lost, or may have been.
        """
        while True:
            await _quiet(events, disks, OLD_NEWS_S)
            for _ in range(2):  # behind all that it had to say, were its main loop late
                await Blocks(qemu).run_state()
            await _quiet(events, disks, 0.0)
            wanted = Lineage(token, settled=True)
            self._want(wanted)
            while self._peer is None or self._peer.lineage != wanted:
                await _quiet(events, disks, _STEP_S)
            await resync.drop_bitmaps(qemu, disks, keep=token)
            while await _amount(qemu, disks, token) <= self.limit // 2:
                await _quiet(events, disks, LOOK_S)
            token = resync.new_token()
            await resync.begin_bitmaps(qemu, disks, token)
            await _quiet(events, disks, 0.0)
            await _checkpoint(events, disks)

    def _want(self, lineage: Lineage | None) -> None:
        if lineage != self.wanted:
            self.wanted = lineage
            self.changed()


async def _amount(qemu: Monitor, disks: Sequence[Disk], token: str) -> int:
    found = await resync.bitmaps(qemu, disks)
    return sum(found[disk].get(token, 0) for disk in disks)


async def _quiet(events: vmm.Subscription, disks: Sequence[Disk], seconds: float) -> None:
    """For so long nothing is lost. Raises PeerError."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        try:
            async with asyncio.timeout(left):
                _look(await events.get(), disks)
        except TimeoutError:
            break
    for item in events.take():
        _look(item, disks)
    if events.lost:
        raise PeerError("QEMU said more than could be read")


async def _checkpoint(events: vmm.Subscription, disks: Sequence[Disk]) -> None:
    """Until the VM was stopped and has gone on: QEMU flushes in between, on both sides. Raises PeerError."""
    for name in ("STOP", "RESUME"):
        while True:
            item = await events.get()
            _look(item, disks)
            if isinstance(item, vmm.Event) and item.name == name:
                break


def _look(item: vmm.Item, disks: Sequence[Disk]) -> None:
    match item:
        case vmm.Exit() | vmm.Lost():
            raise PeerError(f"QEMU is not heard any more: {item}")
        case vmm.Event():
            if item.name == "COLO_EXIT":
                raise PeerError("COLO has ended")
            trouble = read_event(item.name, item.data, disks)
            if trouble is not None and trouble.what in (What.PEER_LOST, What.LOCAL_FAILED):
                raise PeerError(trouble.text)
        case _:
            pass


def _nothing() -> None:
    pass


def _ignore(_: Report) -> None:
    pass
