# SPDX-License-Identifier: Apache-2.0
"""One cycle of a pair's life: protected, a host dies under load, the other goes on, the host is back, protected."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final, Literal

from .node_bed import NodeBed
from .node_guest import LOG_PATH
from .node_net import Host, other
from .node_traffic import Kept, WriteLog
from .node_verify import examine_log

Death = Literal["kill", "stop", "cut", "link"]
"""kill: everything there gets SIGKILL; stop: SIGSTOP, and SIGCONT in the end; cut: all its cables; link: only that one,
so that both halves live, and whoever wins goes on."""

Victim = Literal["primary", "secondary"]

THAWED_SECONDS: Final = 0.1
"""Filter attach: so long what a stopped host had in its sockets may leave when it goes on."""

_FACTS: Final = ("stalls", "record_stall", "alone_seconds", "protected_seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What clients do in each cycle."""

    downloads: int = 1
    uploads: int = 1
    upload_bytes: int = 20_000_000
    ipv6_downloads: int = 0
    """Over IPv6, besides.  They are under way before the others begin, for in the filter attach each of them brings a
    checkpoint, after which nothing that is open then is translated any more."""
    earliest: float = 0.05
    """The death comes when each transfer has moved a part of its bytes between these two."""
    latest: float = 0.6
    patience: float = 30.0
    """Seconds without a byte that are a loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds."""

    alone: float = 30.0
    protected: float = 180.0
    record: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycle:
    """What happened."""

    number: int
    death: Death
    victim: Victim
    primary: Host
    """Before."""
    survivor: Host
    transfers: Sequence[Kept]
    record_stall: float
    """The longest time that a record of the write log waited in this cycle, in seconds."""
    alone_seconds: float
    """From the death until the survivor said that it is alone."""
    protected_seconds: float
    """From the host's return until the pair was protected."""
    faults: Sequence[str] = field(default_factory=tuple)
    """All that should not have been."""

    @property
    def stalls(self) -> list[float]:
        """The longest time without a byte of each transfer that was kept, in seconds."""
        return [transfer.stall for transfer in self.transfers if transfer.kept]

    def told(self) -> str:
        """A line for people."""
        stalls = ", ".join(f"{transfer.kind} {transfer.stall:.2f} s" for transfer in self.transfers)
        text = f"{self.number}: {self.death} of the {self.victim} ({self.primary} -> {self.survivor}): "
        text += f"stalls {stalls}, record {self.record_stall:.2f} s; alone after {self.alone_seconds:.2f} s, "
        text += f"protected {self.protected_seconds:.1f} s after its return"
        return text + "".join(f"\n    FAULT: {fault}" for fault in self.faults)


def plan(deaths: Sequence[Death], number: int) -> tuple[Death, Victim]:
    """Cycle *number* (from 1): the victim alternates, and each kind of death comes to each victim."""
    return deaths[(number - 1) // 2 % len(deaths)], "primary" if number % 2 else "secondary"


async def run_cycle(
    bed: NodeBed,
    log: WriteLog,
    number: int,
    death: Death,
    victim: Victim,
    *,
    seed: str = "",
    load: Load | None = None,
    deadlines: Deadlines | None = None,
) -> Cycle:
    """From protected to protected.  Returns what was wrong; raises DeadlineError where nothing can follow."""
    load, deadlines = load or Load(), deadlines or Deadlines()
    draw = random.Random(f"{seed} {number}")
    primary = await bed.protected(deadlines.protected)
    host = primary if victim == "primary" else other(primary)
    await bed.watch.reset()
    log.longest_stall = 0.0
    traffic = bed.traffic(f"{seed} {number}")
    await traffic.start(downloads=load.ipv6_downloads, uploads=0, ipv6=True)
    await traffic.reached(0.01, deadlines.record)
    await traffic.start(downloads=load.downloads, uploads=load.uploads, upload_bytes=load.upload_bytes)
    await traffic.reached(draw.uniform(load.earliest, load.latest), deadlines.record)

    died = await _die(bed, host, death)
    survivor = await _survivor(bed, host, death, deadlines.alone)
    alone_seconds = time.monotonic() - died
    transfers = await traffic.finish(load.patience)
    await log.reached(log.acknowledged + 2, deadlines.record)
    owners = [primary] if survivor == primary else [primary, survivor]
    thaws = death == "stop" and survivor != primary and bed.options.attach == "filters"
    faults = (await bed.watch.seen()).faults(owners) if thaws else []

    returned = time.monotonic()
    await _return(bed, host, death)
    now_primary = await bed.protected(deadlines.protected)
    protected_seconds = time.monotonic() - returned
    await log.reached(log.acknowledged + 2, deadlines.record)

    faults += [f"{transfer.kind} lost: {transfer.text}" for transfer in transfers if not transfer.kept]
    seen = await bed.watch.seen()
    if thaws:
        seen = seen.without_thawed(primary, THAWED_SECONDS)
    faults += [fault for fault in seen.faults(owners) if fault not in faults]
    if now_primary != survivor:
        faults.append(f"{survivor} went on alone, but {now_primary} is the primary now")
    faults += await _log_faults(bed, log)
    return Cycle(
        number=number,
        death=death,
        victim=victim,
        primary=primary,
        survivor=survivor,
        transfers=transfers,
        record_stall=log.longest_stall,
        alone_seconds=alone_seconds,
        protected_seconds=protected_seconds,
        faults=tuple(faults),
    )


async def _die(bed: NodeBed, host: Host, death: Death) -> float:
    match death:
        case "kill":
            return await bed.kill_host(host)
        case "stop":
            return await bed.freeze_host(host)
        case "cut":
            return bed.black_out(host)
        case "link":
            return bed.cut("link", host)


async def _return(bed: NodeBed, host: Host, death: Death) -> None:
    match death:
        case "kill":
            await bed.boot_host(host)
        case "stop":
            bed.thaw_host(host)
        case "cut" | "link":
            bed.light_up(host)


async def _survivor(bed: NodeBed, host: Host, death: Death, deadline: float) -> Host:
    if death != "link":
        await bed.until_state(other(host), {"alone"}, deadline)
        return other(host)
    return await bed.until_alone(deadline)


async def _log_faults(bed: NodeBed, log: WriteLog) -> list[str]:
    """By what the guest itself reads of the log now; what is on the disk is looked at in the end (NodeBed.verify)."""
    acknowledged = log.acknowledged
    content = await bed.client.get(f"{LOG_PATH}/{log.name}")
    found = examine_log(log.name, content, sent=log.sent, acknowledged=acknowledged)
    return [] if found.intact else [f"the write log, as the guest has it: {found}"]


def summary(cycles: Sequence[Cycle]) -> dict[str, Any]:
    """For JSON: of each kind of death and victim, least, median and most of each measure, in seconds, and how many."""
    groups: dict[str, list[Cycle]] = {}
    for cycle in cycles:
        groups.setdefault(f"{cycle.death} {cycle.victim}", []).append(cycle)
    return {name: {fact: _spread(_values(group, fact)) for fact in _FACTS} for name, group in sorted(groups.items())}


def _values(cycles: Sequence[Cycle], fact: str) -> list[float]:
    found: list[float] = []
    for cycle in cycles:
        value: float | list[float] = getattr(cycle, fact)
        found += value if isinstance(value, list) else [value]
    return found


def _spread(values: Sequence[float]) -> Mapping[str, float]:
    if not values:
        return {"count": 0}
    spread = {"min": min(values), "median": median(values), "max": max(values)}
    return {"count": len(values), **{name: round(value, 3) for name, value in spread.items()}}
