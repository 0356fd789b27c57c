# SPDX-License-Identifier: Apache-2.0
"""What `coloproxy status` says of a node, as JSON; docs/observability.md has its schema. Decides and asks nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coloproxy.arbiter import Ruling, Verdict
from coloproxy.disks import Progress
from coloproxy.heartbeat import Stats

from . import told
from .facts import Facts, other
from .setting import Setting


@dataclass(frozen=True, slots=True)
class Qemu:
    """A process of it, and what the watch has seen of it."""

    pid: int
    hung: bool = False
    halt_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """All that a status is made of. `began`, `since`: the process, and this state; CLOCK_MONOTONIC ns."""

    setting: Setting
    facts: Facts
    secondary: bool
    """As record.Kept has it."""
    began: int
    since: int
    reason: str
    doing: str | None
    heartbeat: Stats
    ruling: Ruling | None
    vm: Mapping[str, Any] | None
    """The data path's own status."""
    qemu: Qemu | None
    sizes: Sequence[int]
    """Of the disks, bytes; those that are known."""
    progress: Progress | None
    """Of the copy that is being made."""
    resync: Mapping[str, Any] | None
    """The last copy's own status."""
    history: Sequence[Mapping[str, Any]]


def document(shown: Shown) -> dict[str, Any]:
    """JSON."""
    facts, setting, now = shown.facts, shown.setting, time.monotonic_ns()
    return {
        "pair": setting.pair.name,
        "host": facts.host,
        "role": "secondary" if shown.secondary else "primary",
        "state": facts.state.value,
        "standing": facts.own.standing.value,
        "since_s": round((now - shown.since) / 1e9, 3),
        "uptime_s": round((now - shown.began) / 1e9, 3),
        "pid": os.getpid(),
        "generation": facts.own.generation,
        "reason": shown.reason,
        "doing": shown.doing,
        "peer": _peer(facts, shown.heartbeat),
        "heartbeat": {"paths": told.paths(shown.heartbeat)},
        "arbiter": _arbiter(setting.node.arbiter.kind, shown.ruling),
        "vm": shown.vm,
        "qemu": _qemu(facts, shown.qemu),
        "disks": _disks(shown),
        "resync": shown.resync,
        "history": shown.history,
    }


def _peer(facts: Facts, heartbeat: Stats) -> dict[str, Any]:
    peer: dict[str, Any] = {"host": other(facts.host), "alive": facts.alive}
    if facts.peer is not None:
        peer |= {"state": facts.peer.state.value, "generation": facts.peer.generation}
    return peer | told.peer(heartbeat)


def _arbiter(kind: str, ruling: Ruling | None) -> dict[str, Any]:
    return {
        "kind": kind,
        "owner": None if ruling is None else ruling.owner,
        "generation": None if ruling is None else ruling.generation,
        "reachable": None if ruling is None else ruling.verdict is not Verdict.UNKNOWN,
    }


def _qemu(facts: Facts, qemu: Qemu | None) -> dict[str, Any] | None:
    if qemu is None:
        return None
    return {
        "pid": qemu.pid,
        "state": facts.vm.value,
        "hung": qemu.hung,
        "halted": qemu.halt_reason is not None,
        "halt_reason": qemu.halt_reason,
    }


def _disks(shown: Shown) -> list[dict[str, Any]]:
    return [
        {
            "name": f"colo-disk{index}",
            "size": shown.sizes[index] if index < len(shown.sizes) else None,
            "state": shown.facts.own.standing.value,
            "resync": _progress(shown.progress),
        }
        for index in range(len(shown.setting.node.disks))
    ]


def _progress(progress: Progress | None) -> dict[str, Any] | None:
    if progress is None:
        return None
    left = progress.total - progress.done
    return {
        "offset": progress.done,
        "total": progress.total,
        "rate": round(progress.bytes_per_s),
        "eta_s": round(left / progress.bytes_per_s, 1) if progress.bytes_per_s else None,
    }
