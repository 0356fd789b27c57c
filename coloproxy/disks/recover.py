# SPDX-License-Identifier: Apache-2.0
"""A takeover whose QEMU or host died before the overlays were committed: the commit is done here, without QEMU running.

The guest's truth is active over hidden over the image. The overlays name no backing file, so the chain is given to
qemu-img: first active into hidden, then hidden into the image. At every moment in between, the chain reads the same: a
block is removed from an overlay only after all of it is below (qemu-img empties an overlay when its commit is done).
So it may be killed anywhere and called again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from coloproxy.errors import DiskError

from . import images, record
from .model import Disk, Kind


async def needed(disks: Sequence[Disk]) -> bool:
    """True if a takeover began on these disks and is not known to have ended."""
    return any(record.takeover(disk.overlays) is not None for disk in disks)


async def recover(disks: Sequence[Disk]) -> None:
    """Brings each image to the guest's truth. Idempotent; only if needed(). QEMU must not run.

    Raises DiskError (in-use, missing, space, corrupt, tool); the images are then as good as before.
    """
    if not await needed(disks):
        raise DiskError(Kind.STATE, "no takeover was interrupted here: the overlays hold nothing of worth")
    for disk in disks:
        await images.inspect(disk.image, disk.format)
        for overlay in (disk.active_file, disk.hidden_file):
            await images.mend(overlay)
        await images.commit(_above(disk, "hidden"), disk.active_file)
        await images.commit(_above(disk, "image"), disk.hidden_file)
        record.sync(disk.image)
    for directory in {disk.overlays for disk in disks}:
        record.end_takeover(directory)


def _above(disk: Disk, below: str) -> str:
    """An overlay and what is below it, as qemu-img takes it."""
    image = {"driver": disk.format, "file": {"driver": "file", "filename": str(disk.image)}}
    hidden = {"driver": "qcow2", "file": {"driver": "file", "filename": str(disk.hidden_file)}, "backing": image}
    active = {"driver": "qcow2", "file": {"driver": "file", "filename": str(disk.active_file)}, "backing": hidden}
    return "json:" + json.dumps(active if below == "hidden" else hidden)
