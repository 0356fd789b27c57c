# SPDX-License-Identifier: Apache-2.0
"""Starts COLO, asks for checkpoints, and fails over: the QMP conversations, in their order, with their deadlines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .errors import DeadlineError, MonitorError
from .monitor import Event, Monitor
from .net import LINK_SECONDARY
from .qemu import MIGRATION_PORT, PRIMARY_FILTERS, SECONDARY_FILTERS

ON_DEMAND = 2147483647
"""As x-checkpoint-delay, in ms: no periodic checkpoints."""

_MAX_BANDWIDTH = 1 << 32
_POLL_SECONDS = 0.02
_LOST_REQUEST_SECONDS = 1.0
_CAPABILITIES = [{"capability": "x-colo", "state": True}, {"capability": "events", "state": True}]
_ANNOUNCE = {"initial": 50, "max": 550, "rounds": 5, "step": 50}


@dataclass(frozen=True, slots=True)
class Start:
    """How long it took to get COLO going, in seconds."""

    total: float
    """From the migrate command until the primary runs protected."""
    pause: float
    """Of that, how long the guest stood still at the end of the first copy (by QEMU's clock)."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How long one checkpoint took, in seconds."""

    request: float
    """From the request until the primary stopped."""
    pause: float
    """From the primary's STOP to its RESUME, by QEMU's clock."""
    attempts: int
    """Requests sent: QEMU forgets one that comes while a checkpoint runs."""


@dataclass(frozen=True, slots=True)
class Failover:
    """When each step of a failover was done, in seconds since its begin."""

    yanked: float
    lost_heartbeat: float
    filters_removed: float
    connected: float
    """The VM's TAP is on the bridge."""
    announced: float
    running: float
    """QEMU says that the guest runs."""


async def wait_for_sockets(monitor: Monitor, names: Iterable[str], deadline: float) -> None:
    """Wait until these chardevs of a QEMU are connected.  Raises DeadlineError, which names those that aren't."""
    wanted = set(names)
    until = time.monotonic() + deadline
    while True:
        answer = await monitor.execute("query-chardev")
        assert isinstance(answer, list)
        missing = wanted - {c["label"] for c in answer if not str(c["filename"]).startswith("disconnected:")}
        if not missing:
            return
        if time.monotonic() >= until:
            raise DeadlineError(
                f"{monitor.name}: chardev {', '.join(sorted(missing))} not connected within {deadline:g} s"
            )
        await asyncio.sleep(_POLL_SECONDS)


async def switch_filters(primary: Monitor, secondary: Monitor, *, on: bool) -> None:
    """Switch the network filters of a pair on or off."""
    for monitor, names in ((secondary, SECONDARY_FILTERS), (primary, PRIMARY_FILTERS)):
        for name in names:
            arguments = {"path": f"/objects/{name}", "property": "status", "value": "on" if on else "off"}
            await monitor.execute("qom-set", arguments)


async def start_colo(
    primary: Monitor, secondary: Monitor, *, checkpoint_delay: int = ON_DEMAND, deadline: float = 30.0
) -> Start:
    """Copy the primary to the secondary, and return once both run in step.  Filters, if any, must be on.

    *checkpoint_delay* is QEMU's x-checkpoint-delay in ms.  Raises MonitorError or DeadlineError.
    """
    for monitor in (secondary, primary):
        await monitor.execute("migrate-set-capabilities", {"capabilities": _CAPABILITIES})
    parameters = {"x-checkpoint-delay": checkpoint_delay, "max-bandwidth": _MAX_BANDWIDTH}
    await primary.execute("migrate-set-parameters", parameters)
    with primary.watch("MIGRATION", "STOP", "RESUME") as watch:
        started = time.monotonic()
        await primary.execute("migrate", {"uri": f"tcp:{LINK_SECONDARY}:{MIGRATION_PORT}"})
        stop = await watch.next("STOP", deadline)
        await watch.next(_reached_colo, deadline)
        resume = await watch.next("RESUME", deadline)
        return Start(total=time.monotonic() - started, pause=resume.seconds - stop.seconds)


async def checkpoint(primary: Monitor, *, delay: int = ON_DEMAND, deadline: float = 10.0) -> Checkpoint:
    """Ask for a checkpoint and wait until it is committed.

    The request is the setting of x-checkpoint-delay: that also starts a checkpoint.  *delay* should therefore be what
    the pair was started with.  Raises MonitorError or DeadlineError.
    """
    until = time.monotonic() + deadline
    attempts = 0
    with primary.watch("STOP", "RESUME", "COLO_EXIT") as watch:
        while True:
            attempts += 1
            asked = time.monotonic()
            await primary.execute("migrate-set-parameters", {"x-checkpoint-delay": delay})
            try:
                stop = await watch.next(_not_exit, _LOST_REQUEST_SECONDS)
            except DeadlineError:
                if time.monotonic() >= until:
                    raise
                continue
            if stop.name == "RESUME":
                continue  # the end of one that was running when we asked: our request may be lost
            request = time.monotonic() - asked
            resume = await watch.next(_not_exit, max(until - time.monotonic(), _POLL_SECONDS))
            return Checkpoint(request=request, pause=resume.seconds - stop.seconds, attempts=attempts)


async def fail_over(secondary: Monitor, spare: Monitor, connect_tap: Callable[[], None]) -> Failover:
    """Turn the secondary into a machine of its own.  The primary must be dead, or cut off, before.

    *spare* is a second monitor of the same QEMU; *connect_tap* puts its TAP on the bridge.
    filter-rewriter stays: open connections need it as long as they live.  Raises MonitorError or DeadlineError.
    """
    begin = time.monotonic()

    def elapsed() -> float:
        return time.monotonic() - begin

    # If the primary froze while it sent its memory, the secondary's main loop hangs in reading it, and with it every
    # in-band command.  So first of all break that connection, out of band.
    await _yank_migration(spare)
    yanked = elapsed()
    await secondary.execute("x-colo-lost-heartbeat")
    lost_heartbeat = elapsed()
    for name in ("f2", "f1"):
        await secondary.execute("object-del", {"id": name})
    filters_removed = elapsed()
    connect_tap()
    connected = elapsed()
    await secondary.execute("announce-self", _ANNOUNCE)
    announced = elapsed()
    await _wait_running(secondary)
    return Failover(yanked, lost_heartbeat, filters_removed, connected, announced, running=elapsed())


async def _yank_migration(spare: Monitor) -> None:
    answer = await spare.execute("query-yank", oob=True)
    assert isinstance(answer, list)
    if {"type": "migration"} in answer:
        await spare.execute("yank", {"instances": [{"type": "migration"}]}, oob=True)


async def _wait_running(monitor: Monitor, deadline: float = 5.0) -> None:
    until = time.monotonic() + deadline
    while True:
        answer = await monitor.execute("query-status")
        assert isinstance(answer, dict)
        if answer["status"] == "running":
            return
        if time.monotonic() >= until:
            raise DeadlineError(f"{monitor.name}: still in state {answer['status']} after {deadline:g} s")
        await asyncio.sleep(_POLL_SECONDS)


def _reached_colo(event: Event) -> bool:
    """True at MIGRATION colo.  Raises MonitorError if the migration ended in another way."""
    if event.name != "MIGRATION":
        return False
    status = event.data.get("status")
    if status in ("failed", "cancelled", "completed"):
        raise MonitorError(f"migration ended as {status} instead of getting to colo; see the log of the secondary")
    return status == "colo"


def _not_exit(event: Event) -> bool:
    """True at any event but COLO_EXIT, at which it raises MonitorError."""
    if event.name == "COLO_EXIT":
        raise MonitorError(f"COLO ended: {event.data.get('reason')}")
    return True
