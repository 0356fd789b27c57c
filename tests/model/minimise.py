# SPDX-License-Identifier: Apache-2.0
"""Makes a failing schedule small: what is left of it is the row to add to a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from model.run import Feed, Run, Step, describe
from model.verdict import Violation


def single_frames(schedule: Sequence[Step]) -> list[Step]:
    out: list[Step] = []
    for step in schedule:
        out += [Feed(step.side, (frame,), step.now) for frame in step.frames] if isinstance(step, Feed) else [step]
    return out


def complaint(make_run: Callable[[], Run], schedule: Sequence[Step]) -> str | None:
    """What a run of this schedule is rejected for, without its numbers."""
    try:
        make_run().play(schedule)
    except Violation as violation:
        return re.sub(r"\d+", "N", str(violation))[:60]
    return None


def minimise(make_run: Callable[[], Run], schedule: Sequence[Step]) -> list[Step]:
    """The smallest schedule found that is rejected for the same reason; the whole where there is none."""
    steps = single_frames(schedule)
    reason = complaint(make_run, steps)
    if reason is None:
        steps = list(schedule)
        reason = complaint(make_run, steps)
    if reason is None:
        return steps
    size = max(1, len(steps) // 2)
    while True:
        at, smaller = 0, False
        while at < len(steps):
            without = steps[:at] + steps[at + size :]
            if complaint(make_run, without) == reason:
                steps, smaller = without, True
            else:
                at += size
        if size == 1 and not smaller:
            return steps
        size = max(1, size // 2)


def explain(make_run: Callable[[], Run], schedule: Sequence[Step]) -> str:
    steps = minimise(make_run, schedule)
    try:
        make_run().play(steps)
    except Violation as violation:
        return f"{violation}\nminimal schedule:\n{describe(steps)}"
    return f"fails only as a whole:\n{describe(steps)}"
