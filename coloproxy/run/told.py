# SPDX-License-Identifier: Apache-2.0
"""What `coloproxy run` has to tell beyond what every comparator does (coloproxy/reports.py)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

from coloproxy.reports import Report


@dataclass(frozen=True, slots=True)
class LinkUp(Report):
    """The two coloproxies are connected. resumed: nothing was lost since the last connection."""

    peer: str
    cipher: str
    session: str
    resumed: bool
    name: ClassVar[str] = "link-up"

    def __str__(self) -> str:
        how = "goes on without loss" if self.resumed else f"new session {self.session[:8]}"
        return f"link: connected with {self.peer} ({self.cipher}), {how}"


@dataclass(frozen=True, slots=True)
class LinkLost(Report):
    reason: str
    name: ClassVar[str] = "link-lost"
    level: ClassVar[int] = logging.WARNING

    def __str__(self) -> str:
        return f"link: lost ({self.reason})"


@dataclass(frozen=True, slots=True)
class VmConnected(Report):
    nic: str
    where: str
    name: ClassVar[str] = "vm-connected"

    def __str__(self) -> str:
        return f"{self.nic}: the VM's side is connected ({self.where})"


@dataclass(frozen=True, slots=True)
class WireLost(Report):
    """A NIC's TAP or VM side is gone."""

    nic: str
    side: str
    reason: str
    name: ClassVar[str] = "wire-lost"
    level: ClassVar[int] = logging.WARNING

    def __str__(self) -> str:
        return f"{self.nic}: {self.side}: {self.reason}"


@dataclass(frozen=True, slots=True)
class LeftOut(Report):
    """Frames for or of the secondary found no room; told once an epoch and place."""

    place: str
    name: ClassVar[str] = "left-out"
    level: ClassVar[int] = logging.WARNING

    def __str__(self) -> str:
        return f"{self.place}: no room, frames for or of the secondary are left out; a checkpoint makes it good"


@dataclass(frozen=True, slots=True)
class Synced(Report):
    """Both sides count epochs from here."""

    name: ClassVar[str] = "synced"

    def __str__(self) -> str:
        return "link: both sides agree on the epoch"


@dataclass(frozen=True, slots=True)
class Epoch(Report):
    """SECONDARY: a checkpoint has made the VM the primary's copy."""

    number: int
    held_ns: int | None
    name: ClassVar[str] = "epoch"
    level: ClassVar[int] = logging.DEBUG

    def __str__(self) -> str:
        return f"epoch {self.number}: the VM is the primary's copy again"


@dataclass(frozen=True, slots=True)
class TookOver(Report):
    reason: str
    addresses: int
    name: ClassVar[str] = "took-over"
    level: ClassVar[int] = logging.WARNING

    def __str__(self) -> str:
        return f"taken over ({self.reason}): the TAPs are open, {self.addresses} addresses are being announced"


@dataclass(frozen=True, slots=True)
class Inherited(Report):
    connections: int
    name: ClassVar[str] = "inherited"

    def __str__(self) -> str:
        return f"{self.connections} connections of the time before the failover are translated until they close"


@dataclass(frozen=True, slots=True)
class WentAlone(Report):
    reason: str
    name: ClassVar[str] = "went-alone"
    level: ClassVar[int] = logging.WARNING

    def __str__(self) -> str:
        return f"alone ({self.reason}): what was held is released, output passes"


@dataclass(frozen=True, slots=True)
class StoodDown(Report):
    """PRIMARY: the secondary has taken over while we were there: two must not speak. reason: its own."""

    reason: str
    name: ClassVar[str] = "stood-down"
    level: ClassVar[int] = logging.ERROR

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        return f"the secondary has taken over{why}: the TAPs are closed, nothing of this VM leaves any more"


@dataclass(frozen=True, slots=True)
class StateChanged(Report):
    """before, after: as in the status. reason: what was told last, or done, before it was so."""

    before: str
    after: str
    reason: str
    name: ClassVar[str] = "state"
    level: ClassVar[int] = logging.DEBUG

    def __str__(self) -> str:
        return f"{self.before} -> {self.after}: {self.reason}"


@dataclass(frozen=True, slots=True)
class PeerSays(Report):
    """A message of the other host's coloproxy that is for people."""

    text: str
    name: ClassVar[str] = "peer-says"

    def __str__(self) -> str:
        return f"the other host: {self.text}"
