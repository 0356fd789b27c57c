# SPDX-License-Identifier: Apache-2.0
"""One trial: `coloproxy node` alone gets SIGKILL in the middle of something, and its supervisor starts it again.

The pair must then come to be protected by itself, no record that a client was told of may be gone, and never may two
hosts own the guest. A client's connection may break, for what translates it may have died; what it carried may not be
wrong.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from .errors import DeadlineError, ProcessError
from .node_bed import NodeBed
from .node_guest import LOG_PATH
from .node_net import HOSTS, Host, other
from .node_traffic import Kept, WriteLog
from .node_verify import examine_log

Moment = Literal["start", "failover", "resync", "protected"]
"""start: of a pair that never was. failover: a host died. resync: it is back. protected: nothing else happens."""

_LATEST: Final = {"start": 6.0, "failover": 1.5, "resync": 6.0, "protected": 1.0}
"""Seconds from the begin of each to the SIGKILL, at most."""
_LONG: Final = 120.0
_RECORD: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be done; drawn from the seed alone."""

    number: int
    moment: Moment
    victim: Literal["primary", "secondary"]
    """failover, resync: whose host dies first."""
    killed: tuple[Host | Literal["survivor", "victim"], ...]
    """Whose coloproxy: all of them, at once."""
    delay: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What happened."""

    plan: Plan
    primary: Host | None
    """Before."""
    now: Host
    """The primary in the end."""
    states: tuple[str | None, ...]
    """Of the nodes that were killed, just before."""
    seconds: float
    """From the SIGKILL to protected."""
    transfers: Sequence[Kept]
    faults: Sequence[str]

    def told(self) -> str:
        """A line for people."""
        plan = self.plan
        where = f"{plan.number}: {plan.moment}"
        if plan.moment in ("failover", "resync"):
            where += f" of the {plan.victim}"
        text = f"{where}: SIGKILL to the node of {' and '.join(plan.killed)} after {plan.delay:.2f} s "
        text += f"(it was {', '.join(str(state) for state in self.states)}); "
        text += f"{self.primary} -> {self.now}, protected after {self.seconds:.1f} s"
        broken = sum(not transfer.kept for transfer in self.transfers)
        text += f"; {broken} of {len(self.transfers)} connections broken" if self.transfers else ""
        return text + "".join(f"\n    FAULT: {fault}" for fault in self.faults)


def draw(seed: str, number: int, moment: Moment) -> Plan:
    """The *number*th trial."""
    dice = random.Random(f"{seed} {number}")
    killed: tuple[Host | Literal["survivor", "victim"], ...]
    if moment in ("start", "protected"):
        killed = dice.choice((("a",), ("b",), ("a", "b")))
    elif moment == "failover":
        killed = ("survivor",)
    else:
        killed = dice.choice((("survivor",), ("victim",), ("survivor", "victim")))
    victim: Literal["primary", "secondary"] = "primary" if dice.random() < 0.6 else "secondary"
    return Plan(number=number, moment=moment, victim=victim, killed=killed, delay=dice.uniform(0.0, _LATEST[moment]))


async def run_start(bed: NodeBed, plan: Plan) -> Trial:
    """In a bed whose nodes were never started."""
    for host in HOSTS:
        await bed.start_node(host)
    states, killed = await _kill(bed, plan, {})
    first = await bed.protected(_LONG)
    seconds = time.monotonic() - killed
    await bed.serves(_LONG)
    now = await bed.protected(_LONG)
    # On a busy machine the secondary may have taken over before the guest said its first word.
    owners = (await bed.watch.seen()).owners
    faults = (await bed.watch.seen()).faults([first, now] if first != now and owners != [now] else [now])
    return Trial(plan=plan, primary=None, now=now, states=states, seconds=seconds, transfers=(), faults=tuple(faults))


async def run_trial(bed: NodeBed, plan: Plan) -> tuple[Trial, tuple[str, int, int]]:
    """From protected to protected; and what is to be on the disk, for verify().

    Raises DeadlineError where nothing can follow.
    """
    primary = await bed.protected(_LONG)
    await bed.serves(_LONG)
    victim = primary if plan.victim == "primary" else other(primary)
    survivor = other(victim)
    log = await bed.write_log(f"kill-{plan.number}")
    await log.reached(3, _RECORD)
    await bed.watch.reset()
    await _answered(bed, primary)
    traffic = bed.traffic(f"{plan.number}")
    await traffic.start(downloads=1, uploads=1, upload_bytes=5_000_000)
    roles: dict[str, Host] = {"survivor": survivor, "victim": victim}
    if plan.moment in ("failover", "resync"):
        await bed.kill_host(victim)
    if plan.moment == "resync":
        await bed.until_state(survivor, {"alone"}, _LONG)
        await bed.boot_host(victim)
    states, killed = await _kill(bed, plan, roles)
    if plan.moment == "failover":
        await bed.until_state(survivor, {"alone"}, _LONG)
        await bed.boot_host(victim)
    now = await bed.protected(_LONG)
    seconds = time.monotonic() - killed
    transfers = await traffic.finish(_RECORD)
    await bed.serves(_LONG)

    faults = [f"{each.kind}: {each.text}" for each in transfers if "WRONG" in each.text and "curl 0" in each.text]
    faults += await _owners(bed, primary, None if plan.moment == "protected" else survivor)
    faults += await _log_faults(bed, log)
    await log.close()
    trial = Trial(
        plan=plan, primary=primary, now=now, states=states, seconds=seconds, transfers=transfers, faults=tuple(faults)
    )
    return trial, log.counted


async def _kill(bed: NodeBed, plan: Plan, roles: dict[str, Host]) -> tuple[tuple[str | None, ...], float]:
    named: dict[str, Host] = {"a": "a", "b": "b", **roles}
    hosts = [named[who] for who in plan.killed]
    until = time.monotonic() + plan.delay
    await asyncio.sleep(max(0.0, until - time.monotonic()))
    states = tuple(await asyncio.gather(*(_state(bed, host) for host in hosts)))
    await asyncio.gather(*map(bed.kill_coloproxy, hosts))
    return states, time.monotonic()


async def _answered(bed: NodeBed, host: Host) -> None:
    async with asyncio.timeout(_LONG):
        while not (await bed.watch.seen()).answers[host]:  # noqa: ASYNC110 - another process does it
            await asyncio.sleep(0.05)


async def _state(bed: NodeBed, host: Host) -> str | None:
    try:
        return str((await bed.ask(host, "status", deadline=0.5))["state"])
    except (ProcessError, DeadlineError):
        return None


async def _owners(bed: NodeBed, primary: Host, survivor: Host | None) -> list[str]:
    """One owner after the other. The secondary may have taken over, also where nothing but coloproxy died."""
    seen = await bed.watch.seen()
    last = other(primary) if survivor is None else survivor
    if seen.owners == [primary]:
        return seen.faults([primary])
    return seen.faults([primary, last] if last != primary else [primary])


async def _log_faults(bed: NodeBed, log: WriteLog) -> list[str]:
    acknowledged = log.acknowledged
    content = await bed.client.get(f"{LOG_PATH}/{log.name}")
    found = examine_log(log.name, content, sent=log.sent, acknowledged=acknowledged)
    return [] if found.intact else [f"the write log, as the guest has it: {found}"]
