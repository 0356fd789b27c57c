# SPDX-License-Identifier: Apache-2.0
"""coloproxy.disks: image files, and a takeover's commit done without QEMU. Real qemu-img, no VM."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from disk_bed import MIB, make_disks, tool

from coloproxy.disks import Disk, Format, Kind, Lineage, images, record, recover
from coloproxy.errors import DiskError

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")

SIZE = 16 * MIB


def _corrupt(path: Path) -> None:
    """The first L2 table's place becomes one that isn't aligned."""
    with path.open("r+b") as file:
        file.seek(40)
        (l1,) = struct.unpack(">Q", file.read(8))
        file.seek(l1)
        file.write(struct.pack(">Q", 0x8000_0000_0000_0200))


def _mark_dirty(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(72)
        (features,) = struct.unpack(">Q", file.read(8))
        file.seek(72)
        file.write(struct.pack(">Q", features | 1))


def _mark_corrupt(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(72)
        file.write(struct.pack(">Q", 2))


REFUSALS: list[tuple[str, Callable[[Path], object], Kind]] = [
    ("removed", lambda path: path.unlink(), Kind.MISSING),
    ("other size", lambda path: subprocess.run(["qemu-img", "resize", "-q", path, "32M"], check=True), Kind.SIZE),
    ("raw in truth", lambda path: path.write_bytes(bytes(SIZE)), Kind.FORMAT),
    ("bad table", _corrupt, Kind.CORRUPT),
    ("marked corrupt", _mark_corrupt, Kind.CORRUPT),
    ("marked dirty", _mark_dirty, Kind.DIRTY),
]


@pytest.mark.parametrize(("name", "damage", "kind"), REFUSALS, ids=[row[0] for row in REFUSALS])
async def test_an_image_is_refused_with_the_reason(
    tmp_path: Path, name: str, damage: Callable[[Path], object], kind: Kind
) -> None:
    (disk,) = await make_disks(tmp_path, size=SIZE)
    await tool("qemu-io", "-c", "write -P 1 0 1M", str(disk.image))
    await images.examine(disk.image, "qcow2", size=SIZE)
    damage(disk.image)
    with pytest.raises(DiskError) as caught:
        await images.examine(disk.image, "qcow2", size=SIZE)
    assert caught.value.kind == kind, caught.value
    assert str(disk.image) in caught.value.text


async def test_what_a_guest_writes_to_a_raw_disk_does_not_make_it_another_format(tmp_path: Path) -> None:
    """LUKS, say, all over its disk. A header could also name any file or address of the host's."""
    image = tmp_path / "disk.img"
    await tool("qemu-img", "create", "-q", "-f", "vmdk", str(image), "1M")
    os.truncate(image, 1 << 20)
    assert (await images.inspect(image)).format == "vmdk"  # or this proves nothing
    assert (await images.examine(image, "raw")).size == 1 << 20


async def test_a_qcow2_image_said_to_be_raw_is_refused(tmp_path: Path) -> None:
    (disk,) = await make_disks(tmp_path, size=SIZE)
    with pytest.raises(DiskError) as caught:
        await images.examine(disk.image, "raw")
    assert caught.value.kind == Kind.FORMAT


async def test_an_image_in_use_is_refused_and_its_overlays_are_kept(tmp_path: Path) -> None:
    (disk,) = await make_disks(tmp_path, size=SIZE)
    await images.prepare_overlays([disk])
    for path in (disk.image, disk.active_file):
        argv = ["qemu-io", str(path)]
        holder = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: ASYNC220
        assert holder.stdin is not None and holder.stdout is not None
        try:
            holder.stdin.write(b"write -P 1 0 64k\n")
            holder.stdin.flush()
            assert b"wrote" in holder.stdout.readline()
            with pytest.raises(DiskError) as caught:
                if path == disk.image:
                    await images.examine(path, "qcow2")
                else:
                    await images.prepare_overlays([disk])
            assert caught.value.kind == Kind.IN_USE
        finally:
            holder.kill()
            holder.communicate()
    await images.prepare_overlays([disk])
    assert (await images.inspect(disk.active_file)).size == SIZE


async def test_leaked_clusters_are_given_back(tmp_path: Path) -> None:
    (disk,) = await make_disks(tmp_path, size=SIZE)
    with disk.image.open("r+b") as file:  # a cluster behind all others, counted once and used by nobody
        file.seek(48)
        (table,) = struct.unpack(">Q", file.read(8))
        file.seek(table)
        (counts,) = struct.unpack(">Q", file.read(8))
        cluster = -(-disk.image.stat().st_size // 65536)
        file.seek(counts + 2 * cluster)
        file.write(struct.pack(">H", 1))
        file.truncate((cluster + 1) * 65536)
    with pytest.raises(subprocess.CalledProcessError):
        await tool("qemu-img", "check", str(disk.image))
    with pytest.raises(DiskError) as caught:
        await images.examine(disk.image, "qcow2", repair_leaks=False)
    assert caught.value.kind == Kind.CORRUPT
    await images.examine(disk.image, "qcow2", size=SIZE)
    await tool("qemu-img", "check", str(disk.image))


async def test_overlays_have_the_disks_size_and_no_backing_file(tmp_path: Path) -> None:
    size = 10 * MIB + 512
    (disk,) = await make_disks(tmp_path, size=size)
    await images.prepare_overlays([disk])
    for path in (disk.active_file, disk.hidden_file):
        image = await images.inspect(path)
        assert (image.size, image.format, image.backing) == (size, "qcow2", None)


@pytest.mark.parametrize("form", ["qcow2", "raw"])
async def test_a_blank_copy_is_made_once(tmp_path: Path, form: Format) -> None:
    (disk,) = await make_disks(tmp_path, size=SIZE, form=form)
    assert (await images.examine(disk.image, disk.format, size=SIZE)).size == SIZE
    with pytest.raises(DiskError) as caught:
        await images.make_blank(disk.image, disk.format, SIZE)
    assert caught.value.kind == Kind.STATE


async def test_want_of_space_is_told(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    disks = await make_disks(tmp_path, size=(free // MIB + 1024) * MIB)
    disks[0].overlays.mkdir()
    assert "the images may grow by" in images.space_warnings(disks)[0]
    small = [Disk(0, disks[0].image, "qcow2", MIB, disks[0].overlays)]
    assert images.space_warnings(small) == []


# ----------------------------------------------------------------- recovery


async def _interrupted(directory: Path, form: Format) -> tuple[Disk, bytes]:
    """A disk whose takeover was interrupted, and what its guest would read."""
    (disk,) = await make_disks(directory, size=SIZE, form=form)
    await images.prepare_overlays([disk])
    for path, f, commands in (
        (disk.image, form, ["write -P 1 0 8M"]),
        (disk.hidden_file, "qcow2", ["write -P 2 1M 3M", "write -z 6M 64k"]),
        (disk.active_file, "qcow2", ["write -P 3 3M 2M", "write -P 3 9M 512", "write -z 7M 64k"]),
    ):
        await tool("qemu-io", "-f", f, *(part for text in commands for part in ("-c", text)), str(path))
    want = bytearray(SIZE)
    for pattern, begin, length in (
        (1, 0, 8 * MIB),
        (2, MIB, 3 * MIB),
        (0, 6 * MIB, 65536),
        (3, 3 * MIB, 2 * MIB),
        (3, 9 * MIB, 512),
        (0, 7 * MIB, 65536),
    ):
        want[begin : begin + length] = bytes([pattern]) * length
    record.begin_takeover(disk.overlays, generation=2)
    return disk, bytes(want)


async def _content(disk: Disk) -> bytes:
    raw = disk.image.with_suffix(".content")
    await tool("qemu-img", "convert", "-f", disk.format, "-O", "raw", str(disk.image), str(raw))
    return raw.read_bytes()


@pytest.mark.parametrize("form", ["qcow2", "raw"])
async def test_an_interrupted_commit_is_done_and_overlays_are_refused_until_then(tmp_path: Path, form: Format) -> None:
    disk, want = await _interrupted(tmp_path, form)
    with pytest.raises(DiskError) as caught:
        await images.prepare_overlays([disk])
    assert caught.value.kind == Kind.RECOVERY
    await recover.recover([disk])
    assert await _content(disk) == want
    assert not await recover.needed([disk])
    await images.prepare_overlays([disk])
    with pytest.raises(DiskError) as caught:  # without a takeover, the overlays are worth nothing
        await recover.recover([disk])
    assert caught.value.kind == Kind.STATE


@pytest.mark.parametrize("after", range(1, 7))
async def test_recovery_may_be_killed_anywhere(tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed within the n-th run of qemu-img, as it writes."""
    disk, want = await _interrupted(tmp_path, "qcow2")
    trap = tmp_path / "bin"
    trap.mkdir()
    (trap / "qemu-img").write_text(
        f"""#!/bin/sh
echo >> {tmp_path}/runs
if [ $(wc -l < {tmp_path}/runs) -eq {after} ]; then
      exec timeout -s KILL 0.0{after} {shutil.which("qemu-img")} "$@"
fi
exec {shutil.which("qemu-img")} "$@"
"""
    )
    (trap / "qemu-img").chmod(0o755)
    monkeypatch.setenv("PATH", f"{trap}:{os.environ['PATH']}")
    task = asyncio.create_task(recover.recover([disk]))
    await asyncio.wait([task])
    if task.exception() is not None:  # else that run was quicker
        assert await recover.needed([disk])
        await recover.recover([disk])
    monkeypatch.undo()  # if it took fewer runs, the trap is still set
    assert await _content(disk) == want


EMPTYING = ["pwritev", "l1_update", "empty_image_prepare", "reftable_update"]
"""QEMU's names of what happens while qemu-img empties an overlay, in this order; the first is a write before that."""


@pytest.mark.parametrize("overlay", ["active", "hidden"])
@pytest.mark.parametrize("event", EMPTYING)
async def test_an_overlay_that_was_being_emptied(tmp_path: Path, event: str, overlay: str) -> None:
    """Its counts of references are broken then, which an ordinary check takes for corruption."""
    disk, want = await _interrupted(tmp_path, "qcow2")

    async def commit(*files: Path, breaks: bool) -> None:
        """The first into the second, over the others."""
        chain: dict[str, object] = {}
        for path in reversed(files):
            file: dict[str, object] = {"driver": "file", "filename": str(path)}
            if breaks and path == files[0]:
                file = {"driver": "blkdebug", "inject-error": [{"event": event, "errno": errno.EIO}], "image": file}
            chain = {"driver": "qcow2", "file": file, **({"backing": chain} if chain else {})}
        await tool("qemu-img", "commit", "-q", "json:" + json.dumps(chain))

    if overlay == "hidden":
        await commit(disk.active_file, disk.hidden_file, disk.image, breaks=False)
        with pytest.raises(subprocess.CalledProcessError):
            await commit(disk.hidden_file, disk.image, breaks=True)
    else:
        with pytest.raises(subprocess.CalledProcessError):
            await commit(disk.active_file, disk.hidden_file, disk.image, breaks=True)
    await recover.recover([disk])
    assert await _content(disk) == want
    await images.prepare_overlays([disk])


# -------------------------------------------------------------------- records


def test_a_takeover_ends_the_lineage(tmp_path: Path) -> None:
    record.write_lineage(tmp_path, Lineage("t", settled=True))
    assert record.lineage(tmp_path) == Lineage("t", settled=True)
    record.begin_takeover(tmp_path, 7)
    assert record.lineage(tmp_path) is None
    assert record.takeover(tmp_path) == record.Takeover(7)
    record.end_takeover(tmp_path)
    record.end_takeover(tmp_path)
    assert record.takeover(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"generation": "x"}'])
def test_a_damaged_takeover_is_not_no_takeover(tmp_path: Path, text: str) -> None:
    (tmp_path / "takeover.json").write_text(text)
    with pytest.raises(DiskError) as caught:
        record.takeover(tmp_path)
    assert caught.value.kind == Kind.RECOVERY


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"token": "x"}'])
def test_a_damaged_lineage_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "lineage.json").write_text(text)
    assert record.lineage(tmp_path) is None
