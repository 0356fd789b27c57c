# SPDX-License-Identifier: Apache-2.0
"""The vocabulary between an implementation, the driver and the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from coloproxy.rules import NO_RULES, Rules
from model.packet import Key

NEVER = 2**63 - 1


class Reason(IntEnum):
    MATCHED = 0
    COMMITTED = 1
    ALONE = 2
    PASSED = 3
    STALE = 4
    DIVERGED = 5
    IGNORED = 6


class Cause(IntEnum):
    NONE = 0
    PAYLOAD = 1
    FIN = 2
    SYN_OPTIONS = 3
    DATAGRAM = 4
    PRIMARY_TIMEOUT = 5
    SECONDARY_TIMEOUT = 6
    ACK_TIMEOUT = 7
    LIMIT_FRAMES = 8
    LIMIT_BYTES = 9
    LIMIT_FLOWS = 10
    LIMIT_FLOW_FRAMES = 11
    RST = 12
    MID_STREAM = 13
    LIMIT_FLOW_BYTES = 14
    POLICY = 15
    LIMIT_FRAGMENTS = 16
    CONFLICT = 17
    GAP = 18


TIMEOUTS = frozenset({Cause.PRIMARY_TIMEOUT, Cause.SECONDARY_TIMEOUT, Cause.ACK_TIMEOUT, Cause.GAP})


@dataclass(frozen=True)
class Release:
    name: int
    data: bytes  # as it leaves
    reason: Reason


@dataclass(frozen=True)
class Discard:
    name: int
    reason: Reason


@dataclass(frozen=True)
class Emit:
    data: bytes
    vnet_len: int = 0
    nic: int = 0


Action = Release | Discard | Emit


@dataclass(frozen=True)
class Want:
    cause: Cause
    epoch: int


@dataclass(frozen=True)
class Diverged:
    cause: Cause
    epoch: int
    key: Key | None
    offset: int
    context: int
    primary: bytes
    secondary: bytes


@dataclass(frozen=True)
class Limit:
    cause: Cause
    epoch: int


@dataclass(frozen=True)
class Tolerated:
    rule: int
    epoch: int
    key: Key
    offset: int
    context: int
    primary: bytes
    secondary: bytes


Event = Want | Diverged | Limit | Tolerated


@dataclass(frozen=True)
class Config:
    """What the oracle must know of an implementation's configuration."""

    max_flows: int = 1 << 16
    max_frames: int = 1 << 16
    max_bytes: int = 1 << 30
    max_flow_frames: int = 1 << 16
    max_flow_bytes: int = 1 << 30
    max_fragments: int = 1 << 16
    reorder_frames: int = 64
    compare_timeout: int = 3_000_000_000
    reorder_window: int = 10_000_000
    gap_window: int = 50_000_000
    keep_gap: bool = False
    any_scale: bool = False
    rules: Rules = NO_RULES


class Subject(Protocol):
    """An implementation of the comparator. Frames are named by the driver; each name is given once."""

    def feed(self, side: int, frames: Sequence[tuple[int, bytes]], now: int) -> int: ...
    def take(self) -> tuple[list[Action], list[Event]]: ...
    def deadline(self) -> int: ...
    def tick(self, now: int) -> None: ...
    def stop(self, now: int) -> None: ...
    def commit(self, resumed: int, now: int) -> None: ...
    def abort(self, now: int) -> None: ...
    def alone(self, now: int) -> None: ...


class Violation(AssertionError):
    """A rule of DESIGN.md that the implementation broke."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule
