# SPDX-License-Identifier: Apache-2.0
"""The primary's side of replication: the second child of the quorum, which carries each write to the secondary.

The child is an NBD client without QEMU's replication driver over it (`Via.NBD`), for that driver refuses every write
until COLO runs, and what the guest writes until then is lost to the secondary. `Via.REPLICATION` is QEMU's documented
way; the VM must then stand still from attach() until COLO runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from coloproxy.errors import DiskError

from .graph import Blocks
from .model import Disk, Kind, Monitor, Peer

OPEN_S: Final = 1
"""Seconds for connecting to the peer: whole ones only, and 0 is none."""


class Via(StrEnum):
    """What the quorum's second child is."""

    NBD = "nbd"
    REPLICATION = "replication"


def nbd_node(name: str, disk: Disk, peer: Peer) -> dict[str, object]:
    """The NBD client of that name, as blockdev-add takes it.

    With a time limit: QEMU's main loop stands still while it connects, without one for ever if the peer is frozen, and
    no yank helps.
    """
    node: dict[str, object] = {"driver": "nbd", "node-name": name, "export": disk.parent, "server": peer.address()}
    node["open-timeout"] = OPEN_S
    if peer.tls:
        node["tls-creds"] = peer.tls
    return node


async def attach(monitor: Monitor, disks: Sequence[Disk], peer: Peer, via: Via = Via.NBD) -> None:
    """Gives each quorum its remote child. Idempotent.

    Writes go to both from then on; what was written before does not: both images must be equal now (a fresh copy with
    the VM paused, or inside a resync). Raises DiskError; then detach().
    """
    blocks = Blocks(monitor)
    for disk in disks:
        child = disk.remote if via is Via.NBD else disk.forwarder
        if (await remote_child(blocks, disk)) is not None:
            continue
        there = await blocks.nodes()
        if via is Via.NBD and disk.remote not in there:
            await blocks.send("blockdev-add", nbd_node(disk.remote, disk, peer))
        if via is Via.REPLICATION and disk.forwarder not in there:
            await blocks.delete_nodes(disk.remote)
            file = nbd_node(disk.remote, disk, peer)
            await blocks.run("blockdev-add", driver="replication", mode="primary", node_name=disk.forwarder, file=file)
        await blocks.run("x-blockdev-change", parent=disk.quorum, node=child)


async def attached(monitor: Monitor, disks: Sequence[Disk]) -> bool:
    """True if every disk has its remote child."""
    blocks = Blocks(monitor)
    return all([await remote_child(blocks, disk) is not None for disk in disks])


async def yank(monitor: Monitor, disks: Sequence[Disk]) -> None:
    """Breaks the NBD connections, so that nothing waits for a peer that is frozen or cut off.

    On a monitor with out-of-band commands; QEMU answers even if its main loop hangs. Doesn't fail on what isn't there.
    """
    blocks = Blocks(monitor)
    wanted = {name for disk in disks for name in (disk.remote, disk.target)}
    instances = await blocks.send("query-yank", {}, out_of_band=True)
    assert isinstance(instances, list)
    chosen = [i for i in instances if i["type"] == "block-node" and i["node-name"] in wanted]
    if chosen:
        await blocks.send("yank", {"instances": chosen}, out_of_band=True)


async def detach(monitor: Monitor, disks: Sequence[Disk]) -> None:
    """Takes the remote children away, and what a resync has left. Idempotent; yank() first if the peer isn't well.

    If COLO runs on this QEMU, x-colo-lost-heartbeat comes before this. The guest goes on throughout.
    """
    blocks = Blocks(monitor)
    for disk in disks:
        await blocks.end_jobs(disk.job)
        child = await remote_child(blocks, disk)
        if child is not None:
            await blocks.run("x-blockdev-change", parent=disk.quorum, child=child)
        await blocks.delete_nodes(disk.forwarder, disk.remote, disk.target)


async def remote_child(blocks: Blocks, disk: Disk) -> str | None:
    """Name of the quorum's child that leads to the secondary ("children.1"), if it has one.

    Raises DiskError if the disk isn't in this QEMU.
    """
    edges = [edge for edge in await blocks.edges() if edge.parent == disk.quorum]
    if not edges:
        raise DiskError(Kind.STATE, f"this QEMU has no node {disk.quorum}")
    for edge in edges:
        if edge.child in (disk.remote, disk.forwarder):
            return edge.name
    return None
