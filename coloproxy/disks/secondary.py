# SPDX-License-Identifier: Apache-2.0
"""The secondary's side: the NBD server that the primary writes to, and what becomes of the disk at a takeover.

    colo-disk - childs - active - hidden - parent        before; `parent` is exported to the primary
    colo-disk - childs - parent                          after QEMU's commit; active and hidden hang loose

After the clean-up the node is as good as one that started as a primary. `childs` stays: QEMU can't take it out below a
running guest, it passes everything through, and QEMU (5.2 and later) leaves it alone when COLO starts again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from coloproxy.errors import DiskError

from .graph import Blocks
from .model import Disk, Kind, Monitor, Peer

COMMIT_POLL_S = 0.005  # what the guest writes before it is noted may be lost with the host


async def prepare(monitor: Monitor, disks: Sequence[Disk], listen: Peer) -> None:
    """Starts the NBD server at that address of this host and exports each disk. Idempotent. Raises DiskError."""
    blocks = Blocks(monitor)
    wanted = {disk.export for disk in disks}
    if wanted <= await blocks.exports():
        return
    await reset(monitor)
    address = {"type": "inet", "data": {"host": listen.host, "port": str(listen.port)}}
    server: dict[str, object] = {"addr": address}
    if listen.tls:
        server["tls-creds"] = listen.tls
    await blocks.send("nbd-server-start", server)
    for disk in disks:
        await blocks.run(
            "block-export-add", id=disk.export, type="nbd", node_name=disk.parent, name=disk.parent, writable=True
        )


async def reset(monitor: Monitor) -> None:
    """Stops the NBD server, with all exports and connections. Idempotent. The first step of a takeover."""
    try:
        await Blocks(monitor).run("nbd-server-stop")
    except DiskError as error:
        if "not running" not in error.text:
            raise


async def flush(monitor: Monitor) -> None:
    """Behind `reset`, before x-colo-lost-heartbeat: what the overlays hold is in their files, whatever befalls QEMU.

    The tables of `hidden` are in QEMU's memory, for blocks that only the primary wrote: nobody here ever flushed them.
    The VM stands still afterwards, and QEMU starts it when it fails over (7.2 does, whatever state it is in). QMP has
    nothing that flushes a single node; `stop` flushes all of them, as each checkpoint does. Raises DiskError.
    """
    await Blocks(monitor).run("stop")


async def commit_done(monitor: Monitor, disks: Sequence[Disk]) -> bool:
    """True if QEMU has written active and hidden into the image of each disk, after x-colo-lost-heartbeat."""
    below = {edge.parent: edge.child for edge in await Blocks(monitor).edges() if edge.name == "file"}
    return all(below.get(disk.replica, disk.parent) == disk.parent for disk in disks)


async def wait_commit(monitor: Monitor, disks: Sequence[Disk], deadline_s: float) -> None:
    """Waits for that. Raises DiskError: it takes as long as writing what the overlays hold."""
    try:
        async with asyncio.timeout(deadline_s):
            while not await commit_done(monitor, disks):  # noqa: ASYNC110 (QEMU has no event for it)
                await asyncio.sleep(COMMIT_POLL_S)
    except TimeoutError as error:
        raise DiskError(Kind.DEADLINE, f"the overlays aren't committed after {deadline_s:g} s") from error


async def clean_up(monitor: Monitor, disks: Sequence[Disk]) -> None:
    """After the commit: takes away the overlays' nodes, so that their files can be used again. Idempotent.

    Raises DiskError of Kind.STATE if the commit isn't done.
    """
    if not await commit_done(monitor, disks):
        raise DiskError(Kind.STATE, "the overlays aren't committed yet")
    blocks = Blocks(monitor)
    for disk in disks:
        i = disk.index
        await blocks.delete_nodes(f"active{i}", f"af{i}", f"hidden{i}", f"hf{i}")
