# SPDX-License-Identifier: Apache-2.0
"""What a node knows when it decides: its own record on disk, what the peer says of itself, what its QEMU does."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Final, Literal

Host = Literal["a", "b"]
HOSTS: Final[tuple[Host, Host]] = ("a", "b")


def other(host: Host) -> Host:
    return "b" if host == "a" else "a"


class State(enum.Enum):
    """Where the node's life cycle stands. The table of transitions is machine.py's."""

    DISCOVER = "discover"
    """It has just begun, and finds out who has the truth."""
    SETTLE = "settle"
    """It owns the truth; its VM is being made to run by itself."""
    ALONE = "alone"
    """Its VM runs and serves; there is no secondary."""
    PROTECT = "protect"
    """The same, while disks are copied to the peer and QEMU migrates into COLO."""
    PROTECTED = "protected"
    """Its VM is the primary of a pair."""
    SUSPENDED = "suspended"
    """It was, and has lost the secondary: output is held until it is known who goes on."""
    YIELDED = "yielded"
    """It was, and its VM is dead: the secondary is to take over."""
    JOIN = "join"
    """The truth is the peer's; a secondary is being prepared."""
    READY = "ready"
    """QEMU waits for the primary's state."""
    STANDBY = "standby"
    """Its VM is the secondary of a pair."""
    CLAIM = "claim"
    """It was, and has lost the primary: may it take over?"""
    STOPPED = "stopped"
    """The VM has ended because its guest or the operator wanted so."""
    FAILED = "failed"
    """It can't go on without a person."""


class Standing(enum.Enum):
    """What the record on disk says of the data here. Written before anything is done that rests on it."""

    FRESH = "fresh"
    """This node was never part of the pair."""
    OWNER = "owner"
    """They are the truth, and nobody else's are."""
    PRIMARY = "primary"
    """They are the primary's of a pair: the secondary may have taken over since."""
    YIELDED = "yielded"
    """The same, and the primary VM is dead: the secondary may take over without asking anybody."""
    SECONDARY = "secondary"
    """They are the secondary's: good to take over with, until the primary goes on alone."""
    VOID = "void"
    """They are worth nothing: never to be run, only to be written over."""


@dataclass(frozen=True, slots=True)
class Record:
    """On disk. `generation` never shrinks; it grows when somebody becomes the owner and when a pair is made."""

    standing: Standing = Standing.FRESH
    generation: int = 0
    offer: str = ""
    """PRIMARY, YIELDED, SECONDARY: the secondary's offer that the pair was made of."""


class VmView(enum.Enum):
    """What our QEMU does, as far as decisions go."""

    NONE = "none"
    """There is no process, or it is not ours."""
    WAITING = "waiting"
    """Started for a primary's state, which has not come."""
    COLO = "colo"
    """In COLO, in either role."""
    RUNNING = "running"
    """By itself, or what COLO left behind when it ended."""


@dataclass(frozen=True, slots=True)
class Advert:
    """What a node says of itself in each heartbeat."""

    state: State
    standing: Standing
    generation: int
    colo_lost: bool = False
    image: bool = False
    """It has a disk image to begin with."""
    offer: str = ""
    """Names one attempt of a secondary to join: our own while READY, and later the one that the pair was made of."""
    spent: str = ""
    """The last offer of the peer's that led to nothing: it is to make another one."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The whole input of a decision, but for the event."""

    host: Host
    state: State = State.DISCOVER
    own: Record = Record()
    vm: VmView = VmView.NONE
    peer: Advert | None = None
    """The last one, also of a peer that is dead now."""
    alive: bool = False
    """The peer is."""
    register: bool = False
    """The arbiter keeps a register (compare and set): whoever goes on must have won there, whatever the peer said."""
    claiming: bool = False
    """The arbiter has been asked, and has not answered yet."""
    claimed: int = 0
    """The generation that it was asked for last."""
    image: bool = False
    offer: str = ""
    spent: str = ""
    colo_lost: bool = False
    moment: int = 0
    """At FORCE: the time of day, in seconds since 1970. 0: not known."""

    def with_(self, **changes: object) -> Facts:
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def next_generation(self) -> int:
        """What a claim is for."""
        return max(self.own.generation, 0 if self.peer is None else self.peer.generation) + 1

    def advert(self) -> Advert:
        offer = self.offer or self.own.offer
        return Advert(self.state, self.own.standing, self.own.generation, self.colo_lost, self.image, offer, self.spent)
