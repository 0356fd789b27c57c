# SPDX-License-Identifier: Apache-2.0
"""The VM's disks: can they be replicated, and is there room for what that needs?"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from .check import Finding, Subject, check, fail, ok, output_of, warn

_SHARE: Final = 0.25
"""Of the disks' size that the overlays should have room for: what the guest writes until the next checkpoint."""
_GIB: Final = 1 << 30


@check("images", "format, size and soundness of the disks' images")
def images(subject: Subject) -> Iterator[Finding]:
    for path in subject.images:
        yield from _image(subject, path)


def _image(subject: Subject, path: Path) -> Iterator[Finding]:
    if not path.exists() and subject.made:
        if os.access(path.parent, os.W_OK):
            yield ok(f"{path}: not there yet; the node makes it")
        else:
            yield fail(f"{path.parent}: the node is to make an image there, and can't", "make the directory")
        return
    if not path.exists():
        yield fail(f"{path}: there is no such file", "copy the image there, or let the first resync make it")
        return
    if not os.access(path, os.R_OK | os.W_OK):
        yield fail(f"{path}: may not be read and written", "give it to the user that QEMU runs as")
        return
    text = _info(subject, path)
    if text is None:
        return  # qemu-img has its own check
    info: dict[str, Any] = json.loads(text)
    size = int(info["virtual-size"])
    if path.suffix == ".qcow2" and info["format"] != "qcow2":
        yield fail(f"{path}: it is no qcow2, in spite of its name", "restore it: its first bytes are damaged")
        return
    if info.get("dirty-flag"):
        yield fail(f"{path}: it was not closed cleanly", f"qemu-img check -r leaks {path}, with its VM off")
        return
    corrupt = info.get("format-specific", {}).get("data", {}).get("corrupt")
    if corrupt:
        yield fail(f"{path}: it is marked as corrupt", f"qemu-img check -r all {path}, from a backup if that fails")
        return
    if info.get("backing-filename"):
        yield warn(
            f"{path}: it has a backing file, {info['backing-filename']}",
            "the other host must have the very same one: flatten it (qemu-img convert)",
        )
        return
    yield ok(f"{path}: {info['format']}, {size} bytes")


def _info(subject: Subject, path: Path) -> str | None:
    """-U: it may be in use; nothing is changed. Of a raw image the format must not be guessed: its first bytes are the
    guest's, and could make qemu-img open any file or address of the host's."""
    form = ["-f", "raw"] if path in subject.raw else []
    return output_of([subject.qemu_img, "info", "-U", *form, "--output=json", str(path)])


@check("image-sizes", "whether all images can be opened at their size on both hosts: compare this line")
def sizes(subject: Subject) -> Iterator[Finding]:
    """The other host's doctor says the same, or one of them is wrong."""
    found = []
    for path in subject.images:
        if path.exists() and (text := _info(subject, path)):
            found.append(f"{path.name} {json.loads(text)['virtual-size']}")
    if found:
        yield ok(", ".join(found))


@check("overlay-space", "room for the disks' overlays")
def space(subject: Subject) -> Iterator[Finding]:
    if subject.overlays is None:
        return
    there = next((path for path in (subject.overlays, *subject.overlays.parents) if path.exists()), Path("/"))
    room = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        yield fail(f"{subject.overlays}: may not be written to", "give it to the user that coloproxy and QEMU run as")
        return
    size = sum(path.stat().st_size for path in subject.images if path.exists())
    need = max(int(size * _SHARE), _GIB // 4)
    text = f"{subject.overlays}: {room / _GIB:.1f} GiB free"
    if room < need:
        yield fail(
            text,
            f"make room for {need / _GIB:.1f} GiB: the secondary keeps there what the guest writes between "
            "checkpoints, and fails when it is full",
        )
    else:
        yield ok(text)
