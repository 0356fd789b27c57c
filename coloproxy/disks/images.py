# SPDX-License-Identifier: Apache-2.0
"""Image files: looked at, refused with the reason, and made, by qemu-img."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coloproxy.errors import DiskError

from . import record
from .model import Disk, Format, Kind

TOOL_S: Final = 60.0
CHECK_S: Final = 600.0
COMMIT_S: Final = 3600.0
_QCOW2: Final = b"QFI\xfb"
_LOCKED: Final = ('Failed to get "write" lock', 'Failed to get shared "write" lock', "Is another process using")
_CLEAN, _CORRUPT, _LEAKS, _NOT_SUPPORTED = 0, 2, 3, 63


@dataclass(frozen=True, slots=True)
class Image:
    """What qemu-img says of a file."""

    path: Path
    format: str
    size: int
    """Virtual size in bytes."""
    allocated: int
    """Bytes that the file takes now."""
    backing: str | None
    dirty: bool
    corrupt: bool


async def inspect(path: Path, form: Format | None = None) -> Image:
    """Looks at an image that nobody has open.

    form: None: found out by its first bytes. A raw image's content is the guest's to write, so what we start from
    is never left to probing: say "raw" where raw is meant.
    Raises DiskError (missing, in-use, format, tool).
    """
    if not _exists(path):
        raise DiskError(Kind.MISSING, f"{path}: there is no such image")
    status, out, err = await _qemu_img("info", "--output=json", *(("-f", form) if form else ()), str(path))
    if status:
        if form and "is not in" in err:
            raise DiskError(Kind.FORMAT, f"{path}: is not a {form} image: {err}")
        raise _failed(path, err)
    facts = json.loads(out)
    details = facts.get("format-specific", {}).get("data", {})
    return Image(
        path=path,
        format=str(facts["format"]),
        size=int(facts["virtual-size"]),
        allocated=int(facts.get("actual-size", 0)),
        backing=facts.get("backing-filename"),
        dirty=bool(facts.get("dirty-flag", False)),
        corrupt=bool(details.get("corrupt", False)),
    )


async def examine(path: Path, form: Format, *, size: int | None = None, repair_leaks: bool = True) -> Image:
    """The image, if a VM may be started from it.

    size: the peer's, in bytes, which it must have too.
    repair_leaks: lost clusters are harmless, and given back; anything else that is wrong is the operator's to mend.
    Raises DiskError with the reason.
    """
    if form == "qcow2" and (probed := await inspect(path)).format != "qcow2":
        raise DiskError(Kind.FORMAT, f"{path}: is {probed.format}, not qcow2")
    image = await inspect(path, form)
    if form == "raw" and await asyncio.to_thread(_begins_as_qcow2, path):
        # By these bytes alone: qemu-img would open what such a header names, and a guest can write any header there.
        raise DiskError(Kind.FORMAT, f"{path}: looks like qcow2, and is said to be raw; the guest would see qcow2")
    if image.corrupt:
        raise DiskError(Kind.CORRUPT, f"{path}: QEMU has marked it as corrupt; see `qemu-img check`")
    if size is not None and image.size != size:
        raise DiskError(Kind.SIZE, f"{path}: has {image.size} bytes, the peer's has {size}; resize or remove it")
    await _check(path, form, dirty=image.dirty, repair_leaks=repair_leaks)
    return image


def _begins_as_qcow2(path: Path) -> bool:
    """Raises DiskError."""
    try:
        with path.open("rb") as file:
            return file.read(len(_QCOW2)) == _QCOW2
    except OSError as error:
        raise DiskError(Kind.TOOL, f"{path}: {error.strerror}") from error


async def _check(path: Path, form: Format, *, dirty: bool, repair_leaks: bool) -> None:
    if form == "raw":
        return  # nothing in it that could be wrong; the lock was looked at by inspect()
    status, out, err = await _qemu_img("check", "--output=json", "-f", form, str(path), deadline_s=CHECK_S)
    if status in (_CLEAN, _NOT_SUPPORTED) and not dirty:
        return
    if status == _LEAKS and repair_leaks and not dirty:
        status, out, err = await _qemu_img(
            "check", "--output=json", "-f", form, "-r", "leaks", str(path), deadline_s=CHECK_S
        )
        if status == _CLEAN:
            return
    if any(text in err for text in _LOCKED):
        raise _failed(path, err)
    facts: Mapping[str, object] = {}
    with contextlib.suppress(ValueError):
        facts = json.loads(out)
    if dirty and not facts.get("corruptions"):
        raise DiskError(Kind.DIRTY, f"{path}: was not closed; run `qemu-img check -r all {path}`")
    if status in (_CORRUPT, _LEAKS):
        what = f"{facts.get('corruptions', 0)} corruptions, {facts.get('leaks', 0)} leaked clusters"
        raise DiskError(Kind.CORRUPT, f"{path}: {what}; see `qemu-img check {path}`")
    raise _failed(path, err)


async def prepare_overlays(disks: Sequence[Disk]) -> None:
    """Makes fresh hidden and active overlays of each disk; what was in old ones is lost, as it should be.

    Raises DiskError, and leaves all as it is, if a takeover's commit was interrupted (Kind.RECOVERY) or an overlay is
    in use.
    """
    for disk in disks:
        if record.takeover(disk.overlays) is not None:
            raise DiskError(
                Kind.RECOVERY,
                f"{disk.overlays}: a takeover began here and wasn't finished: the overlays hold what the guest wrote; "
                "recover first",
            )
    for disk in disks:
        disk.overlays.mkdir(parents=True, exist_ok=True)
        for path in (disk.hidden_file, disk.active_file):
            if path.exists() and path.stat().st_size:
                await inspect(path, "qcow2")  # refuses one that is in use
            await _qemu_img_ok(path, "create", "-q", "-f", "qcow2", str(path), str(disk.size))


async def make_blank(path: Path, form: Format, size: int) -> None:
    """Makes the secondary's empty copy of a disk. Raises DiskError; never replaces a file that exists."""
    if _exists(path):
        raise DiskError(Kind.STATE, f"{path}: exists; remove it first if it is to be made anew")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    await _qemu_img_ok(draft, "create", "-q", "-f", form, str(draft), str(size))
    record.sync(draft)
    draft.rename(path)
    record.sync(path.parent)


def space_warnings(disks: Sequence[Disk]) -> list[str]:
    """What may run out: the sum of what the copies and the overlays of a secondary can still grow by, per file system.

    An estimate: the overlays hold what is written between two checkpoints, yet at worst each a whole disk.
    Raises DiskError (missing).
    """
    wanted: dict[int, tuple[Path, int, int]] = {}  # device: a path on it, bytes for the images, for the overlays
    for disk in disks:
        for place, image in ((disk.image, True), (disk.overlays, False)):
            try:
                there = place.stat()
            except OSError as error:
                raise DiskError(Kind.MISSING, f"{place}: {error.strerror}") from error
            path, images, overlays = wanted.get(there.st_dev, (place, 0, 0))
            if image:
                images += max(0, disk.size - there.st_blocks * 512)
            else:
                overlays += 2 * disk.size
            wanted[there.st_dev] = (path, images, overlays)
    made: list[str] = []
    for path, images, overlays in wanted.values():
        free = _free(path)
        if free < images:
            made.append(f"{path}: {free >> 20} MiB free; the images may grow by {images >> 20} MiB")
        elif free < images + overlays:
            made.append(
                f"{path}: {free >> 20} MiB free; enough for the images, but with a long time between two checkpoints "
                f"the overlays may grow to {overlays >> 20} MiB"
            )
    return made


def overlay_bytes(disks: Sequence[Disk]) -> int:
    """What the overlays of a secondary take now. A checkpoint empties them: ask for one before they fill their disk."""
    paths = [path for disk in disks for path in (disk.hidden_file, disk.active_file) if path.exists()]
    return sum(path.stat().st_blocks * 512 for path in paths)


def _exists(path: Path) -> bool:
    return path.exists()


def _free(path: Path) -> int:
    facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize


async def _qemu_img_ok(path: Path, *arguments: str) -> str:
    status, out, err = await _qemu_img(*arguments)
    if status:
        raise _failed(path, err)
    return out


def _failed(path: Path, err: str) -> DiskError:
    if any(text in err for text in _LOCKED):
        return DiskError(Kind.IN_USE, f"{path}: another process has it open")
    if "No space left" in err:
        return DiskError(Kind.SPACE, f"{path}: no space left on its file system")
    return DiskError(Kind.TOOL, f"{path}: qemu-img: {err or 'failed without a word'}")


async def _qemu_img(*arguments: str, deadline_s: float = TOOL_S) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of qemu-img; ends it when we are cancelled. Raises DiskError (tool, deadline)."""
    try:
        child = await asyncio.create_subprocess_exec(
            "qemu-img",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError as error:
        raise DiskError(Kind.TOOL, f"can't run qemu-img (package qemu-utils): {error}") from error
    try:
        async with asyncio.timeout(deadline_s):
            out, err = await child.communicate()
    except TimeoutError as error:
        raise DiskError(Kind.DEADLINE, f"qemu-img {' '.join(arguments)}: not done after {deadline_s:g} s") from error
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await asyncio.shield(child.wait())
    assert child.returncode is not None
    return child.returncode, out.decode(), err.decode(errors="replace").strip().removeprefix("qemu-img: ")


async def mend(path: Path) -> None:
    """Makes an overlay usable that a killed QEMU or qemu-img has left. Raises DiskError.

    Leaked clusters are given back. A dirty one was being emptied: QEMU says so before it breaks the counts of
    references, and as long as a part of the tables is left, the counts can be made anew from them. What they still
    name is below already, or the emptying had not begun.
    """
    if (await inspect(path, "qcow2")).dirty:
        arguments = ("check", "-q", "-f", "qcow2", "-r", "all", str(path))
        status, _, err = await _qemu_img(*arguments, deadline_s=CHECK_S)
        if status != _CLEAN:
            raise _failed(path, err)
    await _check(path, "qcow2", dirty=False, repair_leaks=True)


async def commit(chain: str, top: Path) -> None:
    """Writes the top of a chain (a "json:" name) into what is right below it, and empties it. Raises DiskError."""
    status, _, err = await _qemu_img("commit", "-q", chain, deadline_s=COMMIT_S)
    if status:
        raise _failed(top, err)
