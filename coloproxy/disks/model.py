# SPDX-License-Identifier: Apache-2.0
"""What a replicated disk is, and what its parts in QEMU are called. QEMU is told of them at its start by
coloproxy.vmm.argv.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol

Format = Literal["qcow2", "raw"]


class Kind(StrEnum):
    """Why something was refused or failed (DiskError.kind)."""

    MISSING = "missing"  # the image isn't there
    CORRUPT = "corrupt"  # qemu-img check, or the image itself, says so
    DIRTY = "dirty"  # was not closed; `qemu-img check -r all` may mend it
    IN_USE = "in-use"  # another process has it open
    SIZE = "size"  # differs from the peer's
    FORMAT = "format"  # not what it is said to be
    SPACE = "space"  # there isn't room for it
    RECOVERY = "recovery"  # a takeover's commit was interrupted: recover() first
    TOOL = "tool"  # qemu-img is not there, or failed in another way
    QEMU = "qemu"  # QEMU refused a step
    DEADLINE = "deadline"  # a step was not done in time
    TARGET = "target"  # the copy to the peer failed: peer lost, link cut, its disk full
    STATE = "state"  # QEMU is not in a state in which this can be done


class Monitor(Protocol):
    """A QMP monitor of one QEMU; raises QmpError."""

    async def execute(
        self, name: str, arguments: Mapping[str, object] | None = None, *, out_of_band: bool = False
    ) -> object: ...


@dataclass(frozen=True, slots=True)
class Peer:
    """Where the secondary's NBD server listens."""

    host: str
    port: int
    tls: str = ""
    """QEMU's object with this end's credentials; "": plain text."""

    def address(self) -> dict[str, object]:
        """As QEMU's SocketAddress without the wrapping."""
        return {"type": "inet", "host": self.host, "port": str(self.port)}


@dataclass(frozen=True, slots=True)
class Disk:
    """Disk `index` of the VM, on this host."""

    index: int
    image: Path
    format: Format
    size: int
    """Virtual size in bytes."""
    overlays: Path
    """Directory for the overlays of a secondary."""

    @property
    def quorum(self) -> str:
        """The node that the guest's device uses, on either side."""
        return f"colo-disk{self.index}"

    @property
    def local(self) -> str:
        """The primary's image."""
        return f"pd{self.index}"

    @property
    def parent(self) -> str:
        """The secondary's image; also the name of its NBD export."""
        return f"parent{self.index}"

    @property
    def replica(self) -> str:
        """The secondary's replication node."""
        return f"childs{self.index}"

    @property
    def remote(self) -> str:
        """The primary's NBD client while protected."""
        return f"nbd{self.index}"

    @property
    def forwarder(self) -> str:
        """The primary's replication node over it, if it has one."""
        return f"replication{self.index}"

    @property
    def target(self) -> str:
        """The primary's NBD client of a resync."""
        return f"rs{self.index}"

    @property
    def job(self) -> str:
        """The resync's block job."""
        return f"resync{self.index}"

    @property
    def export(self) -> str:
        return f"exp{self.index}"

    @property
    def active_file(self) -> Path:
        return self.overlays / f"active{self.index}.qcow2"

    @property
    def hidden_file(self) -> Path:
        return self.overlays / f"hidden{self.index}.qcow2"
