# SPDX-License-Identifier: Apache-2.0
"""The rounds: each set-up in turn, each piece of work on each, in an order that changes from round to round."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from coloproxy.testbed.errors import TestbedError

from .meter import Meter, metering
from .setups import Ground, Subject, running
from .work import HttpWork, Work

Entry = dict[str, Any]
Report = Callable[[str], None]


async def run_rounds(
    set_ups: Sequence[str], works: Sequence[Work], rounds: int, ground: Ground, report: Report
) -> list[Entry]:
    """An entry for each set-up and round; what failed is in it, and the rest goes on."""
    entries: list[Entry] = []
    for number in range(1, rounds + 1):
        # Whoever goes first finds another machine than whoever goes last: so let that change.
        turn = (number - 1) % len(set_ups)
        for set_up in (*set_ups[turn:], *set_ups[:turn]):
            entries.append(await _run_one(set_up, number, works, ground, report))
    return entries


async def _run_one(set_up: str, number: int, works: Sequence[Work], ground: Ground, report: Report) -> Entry:
    def tell(text: str) -> None:
        report(f"round {number}, {set_up}: {text}")

    entry: Entry = {"round": number, "set_up": set_up, "error": None, "results": {}}
    try:
        tell("booting")
        async with running(set_up, ground, f"{set_up}-{number}") as subject:
            bed = subject.bed
            entry |= {
                "boot_seconds": bed.boot_seconds,
                "protect_seconds": subject.protect_seconds,
                "acceleration": bed.acceleration.name,
                "guest_kernel": bed.guest.kernel_version,
            }
            with metering(subject) as meter:
                for work in works:
                    entry["results"][work.name] = await _measure(work, subject, meter, tell)
                entry["checkpoints"] = meter.checkpoints
    except TestbedError as error:
        entry["error"] = str(error)
        tell(f"FAILED: {error}")
    return entry


async def _measure(work: Work, subject: Subject, meter: Meter, tell: Report) -> Entry:
    began = time.time()
    await meter.read()  # what came before is nobody's
    failure: str | None = None
    figures: dict[str, float | int | None] = {}
    errors: dict[str, int] = {}
    try:
        outcome = await work.run(subject.bed.client)
        figures, errors = outcome.figures, outcome.errors
    except TestbedError as error:
        failure = str(error)
        figures, errors = {"errors": 1}, {failure: 1}
    reading = await meter.read()
    figures |= reading.figures()
    if failure is None:
        per = "checkpoints_per_1000_requests" if isinstance(work, HttpWork) else "checkpoints_per_100_mb"
        amount = work.amount(figures)
        figures[per] = len(reading.pauses) / amount if amount else None
    tell(_line(work, figures, failure))
    return {
        "began": began,
        "error": failure,
        "errors": errors,
        "figures": figures,
        "pauses_ms": [round(pause * 1000, 3) for pause in reading.pauses],
        "causes": reading.causes,
    }


def _line(work: Work, figures: dict[str, float | int | None], failure: str | None) -> str:
    def number(name: str) -> str:
        value = figures.get(name)
        return "-" if value is None else f"{value:.2f}"

    if failure is not None:
        said = f"FAILED: {failure}"
    elif isinstance(work, HttpWork):
        said = f"p50 {number('p50_ms')} ms, p99 {number('p99_ms')} ms, max {number('max_ms')} ms"
    else:
        said = f"{number('mbit_per_second')} Mbit/s"
    return f"{work.name}: {said}; {figures['checkpoints']} checkpoints, {figures['errors']} errors"
