# SPDX-License-Identifier: Apache-2.0
"""What QEMU's events say about the disks, and what must follow; docs/disks.md has the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from .model import Disk


class What(StrEnum):
    """Of a disk."""

    PEER_LOST = "peer-lost"
    """P: a write did not reach the secondary's image: it is no copy any more. No checkpoint may commit after this;
    detach at once (yank, x-colo-lost-heartbeat, primary.detach)."""
    LOCAL_FAILED = "local-failed"
    """This host's own storage failed. P, protected: the guest noticed nothing, for the write went to the secondary, but
    this image isn't the truth any more, and reads come from it: end this QEMU at once, the secondary takes over. S: end
    it, too; the primary goes on alone. Alone: what the guest saw follows as another event."""
    GUEST_STOPPED = "guest-stopped"
    """The guest's disk failed and QEMU has stopped the VM (disk full)."""
    GUEST_TOLD = "guest-told"
    """The guest's disk failed and the guest was told so."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """One event's meaning."""

    what: What
    node: str
    text: str


def read_event(name: str, data: Mapping[str, object], disks: Sequence[Disk]) -> Trouble | None:
    """What a QMP event means for these disks; None: nothing."""
    if name == "QUORUM_REPORT_BAD":
        node = str(data.get("node-name", ""))
        operation = str(data.get("type", "?"))
        error = str(data.get("error", "failed"))
        text = f"{node}: {operation}: {error}"
        if operation == "read":
            remote = any(node in (disk.remote, disk.forwarder) for disk in disks)
            return None if remote else Trouble(What.LOCAL_FAILED, node, text)
        if any(node in (disk.remote, disk.forwarder) for disk in disks):
            return Trouble(What.PEER_LOST, node, text)
        return Trouble(What.LOCAL_FAILED, node, text)
    if name == "BLOCK_IO_ERROR":
        node = str(data.get("node-name", ""))
        stopped = data.get("action") == "stop"
        full = ", no space left" if data.get("nospace") else ""
        text = f"{node}: {data.get('operation')}: {data.get('reason')}{full}"
        return Trouble(What.GUEST_STOPPED if stopped else What.GUEST_TOLD, node, text)
    return None
