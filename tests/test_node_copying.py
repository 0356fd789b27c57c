# SPDX-License-Identifier: Apache-2.0
"""How two nodes agree on what a returning secondary needs: with real QEMUs and images, and no guest, heartbeat or COLO.

The test writes in the guest's place; a stop of the VM stands for a checkpoint, for QEMU flushes in it as it does there.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from disk_bed import MIB, Bed, Vm, bed, make_disks, same

from coloproxy import vmm
from coloproxy.disks import Lineage, primary, record, resync
from coloproxy.errors import DiskError, PeerError
from coloproxy.node import copying
from coloproxy.node.adverts import Said
from coloproxy.node.copying import WATCHED, Copying
from coloproxy.node.facts import Advert, Facts, Record, Standing, State

needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-img") is None or shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed"
)
LONG = 60.0

# ---------------------------------------------------------------------- when a secondary does what is wanted

OLD, NEW, SETTLED = Lineage("old", settled=True), Lineage("new", settled=False), Lineage("new", settled=True)
JOINED = Record(Standing.SECONDARY, 7, "o")
READY = Facts("b", State.READY, Record(Standing.VOID, 5), alive=True, offer="o")
STANDBY = Facts("b", State.STANDBY, JOINED, alive=True)
COPIES = Said(Advert(State.PROTECT, Standing.OWNER, 6, offer="o"), wanted=NEW)
PROTECTED = Said(Advert(State.PROTECTED, Standing.PRIMARY, 7, offer="o"), wanted=SETTLED)


def saying(said: Said, *, wanted: Lineage | None = None, **advert: object) -> Said:
    return replace(said, advert=replace(said.advert, **advert), wanted=wanted or said.wanted)  # type: ignore[arg-type]


OBEYED: list[tuple[str, Facts, Said, Lineage]] = [
    ("a full copy begins", READY, COPIES, NEW),
    ("it is settled", STANDBY, PROTECTED, SETTLED),
    ("another bitmap", STANDBY, saying(PROTECTED, wanted=Lineage("third", settled=True)), Lineage("third", True)),
    ("nothing is wanted", READY, replace(COPIES, wanted=None), OLD),
    ("of another offer", READY, saying(COPIES, offer="p"), OLD),
    ("of no offer", READY.with_(offer=""), saying(COPIES, offer=""), OLD),
    ("settled, but not protected yet", READY, saying(COPIES, wanted=SETTLED), OLD),
    ("settled, and we have not heard that we are the secondary", READY, PROTECTED, OLD),
    ("settled, of another offer", STANDBY, saying(PROTECTED, offer="p"), OLD),
    ("settled, of another pair", STANDBY, saying(PROTECTED, generation=8), OLD),
    ("settled by no primary", STANDBY, saying(PROTECTED, standing=Standing.OWNER), OLD),
    ("not settled any more", STANDBY, saying(PROTECTED, wanted=NEW), OLD),
    ("a dead peer's wish", STANDBY.with_(alive=False), PROTECTED, OLD),
    *(
        (f"{state.value}", STANDBY.with_(state=state, offer="o"), PROTECTED, OLD)
        for state in State
        if state not in (State.STANDBY, State.READY)
    ),
]


@pytest.mark.parametrize(("facts", "said", "then"), [case[1:] for case in OBEYED], ids=[case[0] for case in OBEYED])
async def test_a_secondary_believes_only_the_primary_of_its_copy(
    tmp_path: Path, facts: Facts, said: Said, then: Lineage
) -> None:
    record.write_lineage(tmp_path, OLD)
    made = Copying(tmp_path)
    assert made.lineage == OLD
    made.obey(facts)  # nothing was heard
    made.hear(said)
    made.obey(facts)
    await made.load()  # waits for what is being written
    assert made.lineage == record.lineage(tmp_path) == then


async def test_what_is_being_written_is_written_before_a_takeover_forgets_it(tmp_path: Path) -> None:
    record.write_lineage(tmp_path, OLD)
    made = Copying(tmp_path)
    made.hear(PROTECTED)
    made.obey(STANDBY)
    await made.forget()
    assert made.lineage is record.lineage(tmp_path) is None


async def test_a_disk_that_takes_no_note_is_no_copy_and_is_tried_again_later(tmp_path: Path) -> None:
    made = Copying(tmp_path / "overlays")
    (tmp_path / "overlays").write_text("no directory")
    made.hear(COPIES)
    for _ in range(3):
        made.obey(READY)
        await made.end()
        assert made.lineage is None
    (tmp_path / "overlays").unlink()
    made.obey(READY)
    await made.end()
    assert made.lineage is None  # not yet
    made._writes_again = 0.0
    made.obey(READY)
    await made.end()
    assert made.lineage == NEW


# ---------------------------------------------------------------------- two nodes


@pytest_asyncio.fixture
async def table(tmp_path: Path) -> AsyncIterator[Bed]:
    async with bed(tmp_path) as made:
        yield made


class Two:
    """Primary and secondary, who hear each other at once. `offers`: how often the secondary has begun anew."""

    def __init__(self, table: Bed, a: Vm, b: Vm) -> None:
        self.table, self.a, self.b, self.offers = table, a, b, 1
        self.deaf = False
        self.bus = vmm.bus.Bus()
        self.one, self.other = Copying(table.directory / "none"), Copying(b.disk.overlays)
        self.pair = False
        self.tidy = contextlib.ExitStack()
        self.one.changed = self.other.changed = self.talk
        log, told = a.log, a.log.qmp_event

        def heard(name: str, data: Mapping[str, object], at: int | None, now: int) -> None:
            told(name, data, at, now)
            self.bus.publish(vmm.Event(name, data, at, now))

        log.qmp_event = heard  # type: ignore[method-assign]

    @property
    def offer(self) -> str:
        return f"offer{self.offers}"

    def talk(self) -> None:
        state, standing = (State.PROTECTED, Standing.PRIMARY) if self.pair else (State.PROTECT, Standing.OWNER)
        if not self.deaf:
            self.other.hear(Said(Advert(state, standing, 7, offer=self.offer), wanted=self.one.wanted))
            facts = Facts("b", State.STANDBY, Record(Standing.SECONDARY, 7, self.offer), alive=True)
            if not self.pair:
                facts = Facts("b", State.READY, Record(Standing.VOID, 6), alive=True, offer=self.offer)
            self.other.obey(facts)
        advert = Advert(State.STANDBY if self.pair else State.READY, Standing.VOID, 6, offer=self.offer)
        self.one.hear(Said(advert, lineage=self.other.lineage))

    async def protect(self, speed: int = 0) -> str:
        """As Work.protect, with what came before: the mode."""
        await self.one.end()
        self.pair = False
        self.talk()
        with contextlib.ExitStack() as stack:
            since = stack.enter_context(self.bus.watch(*WATCHED))
            token = await self.one.copy(self.a.qmp, self.a.disks, self.table.peer, self.offer, speed)
            await self.checkpoint()
            self.pair = True
            self.one.settle(self.a.qmp, self.a.disks, token, since, stack.pop_all().close)
        status = self.one.status()
        assert status is not None and status["state"] == "done"
        return str(status["mode"])

    async def checkpoint(self) -> None:
        await self.a.qmp.execute("stop")
        await self.a.qmp.execute("cont")

    async def settled(self) -> Lineage:
        """Until the secondary's disk says so, and one bitmap is left."""
        async with asyncio.timeout(LONG):
            while True:
                names = [*(await resync.bitmaps(self.a.qmp, self.a.disks))[self.a.disk]]
                found = record.lineage(self.b.disk.overlays)
                if found is not None and found.settled and names == [found.token]:
                    return found
                await asyncio.sleep(0.05)

    async def lose(self) -> None:
        """The secondary's host dies; the primary goes on alone."""
        await self.b.kill()
        await primary.yank(self.a.oob, self.a.disks)
        await self.one.end()
        await primary.detach(self.a.qmp, self.a.disks)

    async def come_back(self) -> None:
        self.offers += 1
        self.b = await self.table.bare_secondary(f"b{self.offers}", self.b.disks)
        self.pair = False
        self.other = Copying(self.b.disk.overlays)
        self.other.changed = self.talk
        self.talk()

    async def equal(self) -> bool:
        """When all has ended."""
        await self.checkpoint()
        await self.one.end()
        for vm in (self.a, self.b):
            await vm.kill()  # what was flushed must be there
        return all([await same(a.image, b.image) for a, b in zip(self.a.disks, self.b.disks, strict=True)])


@pytest_asyncio.fixture
async def two(table: Bed, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Two]:
    monkeypatch.setattr(copying, "LOOK_S", 0.05)
    one, other = await make_disks(table.directory / "a", 2), await make_disks(table.directory / "b", 2)
    a, b = await table.bare_primary("a", one), await table.bare_secondary("b", other)
    await a.qmp.execute("cont")
    made = Two(table, a, b)
    await table.write(a, 1, MIB, 20 * MIB)
    yield made
    await made.one.end()


@needs_qemu
async def test_the_first_copy_is_full_and_the_second_is_what_was_written_since(two: Two) -> None:
    assert await two.protect() == "full"
    assert record.lineage(two.b.disk.overlays) in (None, two.other.lineage)
    first = await two.settled()
    await two.table.write(two.a, 2, 5 * MIB, MIB)
    await two.lose()
    await two.table.write(two.a, 3, 40 * MIB, MIB, disk=1)
    await two.come_back()
    assert await two.protect() == "bitmap"
    status = two.one.status()
    assert status is not None and status["copied"] == 2 * MIB and status["reason"] == "2048 KiB were written since"
    assert (await two.settled()).token != first.token
    assert await two.equal()


@needs_qemu
async def test_a_copy_is_not_begun_before_the_old_one_counts_no_more(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "AGREE_S", 0.2)
    record.write_lineage(two.b.disk.overlays, Lineage("of another primary", settled=True))
    two.other = Copying(two.b.disk.overlays)
    two.other.changed = two.talk
    two.deaf = True
    begin = two.b.disk.image.read_bytes()
    with pytest.raises(PeerError, match="counts no more"):
        await two.protect()
    assert two.b.disk.image.read_bytes() == begin
    assert (await resync.bitmaps(two.a.qmp, two.a.disks))[two.a.disk] == {}
    assert (two.one.status() or {})["state"] == "broken"
    two.deaf = False
    assert await two.protect() == "full"
    await two.settled()


@needs_qemu
async def test_a_secondary_that_has_begun_anew_is_not_copied_to(two: Two) -> None:
    two.talk()
    with pytest.raises(PeerError, match="begun anew"):
        await two.one.copy(two.a.qmp, two.a.disks, two.table.peer, "another", 0)


@needs_qemu
async def test_a_lost_write_settles_nothing(two: Two) -> None:
    """As after a flush that failed at the secondary: what was copied may be gone with its QEMU."""
    two.pair = False
    two.talk()
    with contextlib.ExitStack() as stack:
        since = stack.enter_context(two.bus.watch(*WATCHED))
        token = await two.one.copy(two.a.qmp, two.a.disks, two.table.peer, two.offer, 0)
        data = {"node-name": "nbd0", "type": "flush", "error": "Input/output error"}
        two.bus.publish(vmm.Event("QUORUM_REPORT_BAD", data, None, time.monotonic_ns()))
        two.pair = True
        two.one.settle(two.a.qmp, two.a.disks, token, since, stack.pop_all().close)
    keeping = two.one._keeping
    assert keeping is not None
    await asyncio.wait_for(keeping, LONG)
    assert two.one.wanted is None
    assert record.lineage(two.b.disk.overlays) in (None, Lineage(token, settled=False))
    await two.lose()
    await two.come_back()
    assert await two.protect() == "full"


@needs_qemu
async def test_a_bitmap_that_grows_is_followed_by_another(two: Two) -> None:
    two.one.limit = 4 * MIB
    await two.protect()
    first = await two.settled()
    await two.table.write(two.a, 5, 10 * MIB, 3 * MIB)
    async with asyncio.timeout(LONG):
        while len((await resync.bitmaps(two.a.qmp, two.a.disks))[two.a.disk]) < 2:  # noqa: ASYNC110 - QEMU's to do
            await asyncio.sleep(0.05)
    assert record.lineage(two.b.disk.overlays) == first  # there was no checkpoint yet
    await two.table.write(two.a, 6, 20 * MIB, MIB)
    await two.checkpoint()
    second = await two.settled()
    assert second.token != first.token
    assert (await resync.bitmaps(two.a.qmp, two.a.disks))[two.a.disk] == {second.token: MIB}
    await two.lose()
    await two.table.write(two.a, 7, 30 * MIB, MIB)
    await two.come_back()
    assert await two.protect() == "bitmap"
    status = two.one.status()
    assert status is not None and status["copied"] == 2 * MIB
    assert await two.equal()


@needs_qemu
@pytest.mark.parametrize("seed", range(4))
async def test_whatever_dies_the_images_come_to_be_equal(two: Two, seed: int, request: pytest.FixtureRequest) -> None:
    """Writes at random, and deaths of the secondary in and out of copies, settled or not. At least one is by bitmap."""
    draw, modes = random.Random(f"copying {seed}"), []
    two.one.limit = 8 * MIB

    async def write(most: int) -> None:
        for _ in range(draw.randrange(1, most)):
            offset, length = draw.randrange(0, 60 * 16) << 16, draw.randrange(1, 16) << 16
            await two.table.write(two.a, draw.randrange(1, 256), offset, length, disk=draw.randrange(2))

    for _ in range(5):
        how = draw.choice(("settled", "at once", "in the copy", "in the copy"))
        if how == "in the copy":
            doing = asyncio.create_task(two.protect(speed=4 * MIB))
            await asyncio.sleep(draw.uniform(0.0, 1.2))
            await asyncio.gather(write(3), two.b.kill())
            with contextlib.suppress(DiskError, PeerError):
                modes.append(await doing)
        else:
            modes.append(await two.protect())
            await write(4)
            if how == "settled":
                await two.checkpoint()
                await two.settled()
                await write(3)
        await two.lose()
        await write(4)
        await two.come_back()
    modes.append(await two.protect())
    await write(3)
    print(f"\n{request.node.name}: {modes}")
    assert await two.equal()
