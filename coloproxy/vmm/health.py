# SPDX-License-Identifier: Apache-2.0
"""Does a QEMU still answer, and which part of it?

QEMU's monitors have a thread of their own, which reads commands and answers out-of-band ones by itself; all other
commands are run by the main loop. `query-yank` is the one out-of-band command of 7.2 that changes nothing and works
at any time (the others: yank, migrate-recover, migrate-pause).
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Mapping
from dataclasses import dataclass

from coloproxy.errors import QmpError

from .monitor import Monitor


class Health(enum.Enum):
    """How QEMU is."""

    RESPONSIVE = "responsive"
    """The main loop answers."""
    MAIN_LOOP_HUNG = "main loop hung"
    """Only out-of-band commands are answered: yank what it waits for."""
    SILENT = "silent"
    """No answer of any kind: stopped (SIGSTOP), or starved, or all of it hangs. Kill it."""
    GONE = "gone"
    """The process has ended."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a probe found."""

    health: Health
    status: str | None
    """The VM's run state, by `query-status`."""
    in_band_s: float | None
    """Seconds until `query-status` was answered; None: not within the deadline."""
    out_of_band_s: float | None
    """Seconds until `query-yank` was answered."""


async def probe(control: Monitor, oob: Monitor, deadline_s: float) -> Probe:
    """Asks both monitors at once; takes at most `deadline_s` seconds. A refusal is an answer.

    Says RESPONSIVE as soon as the main loop answers: the other answer is not waited for.
    """
    in_band = asyncio.create_task(_ask(control, "query-status", deadline_s, out_of_band=False))
    out_of_band = asyncio.create_task(_ask(oob, "query-yank", deadline_s, out_of_band=True))
    try:
        seconds, value = await in_band
        if seconds is not None:
            status = value.get("status") if isinstance(value, Mapping) else None
            ready = out_of_band.result()[0] if out_of_band.done() else None
            return Probe(Health.RESPONSIVE, None if status is None else str(status), seconds, ready)
        seconds, _ = await out_of_band
        return Probe(Health.SILENT if seconds is None else Health.MAIN_LOOP_HUNG, None, None, seconds)
    finally:
        for task in (in_band, out_of_band):
            task.cancel()
        await asyncio.gather(in_band, out_of_band, return_exceptions=True)


async def _ask(monitor: Monitor, name: str, deadline_s: float, *, out_of_band: bool) -> tuple[float | None, object]:
    begin = time.monotonic()
    try:
        value = await monitor.execute(name, out_of_band=out_of_band, deadline_s=deadline_s)
    except QmpError:
        return None, None
    return time.monotonic() - begin, value
