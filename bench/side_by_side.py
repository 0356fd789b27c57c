# SPDX-License-Identifier: Apache-2.0
"""coloproxy beside QEMU's colo-compare, a relay that compares nothing, and plain memory work: the goals' table.

    python bench/side_by_side.py [--rounds 7] [--seconds 3] [--only ROW]... [--json FILE]
    python bench/side_by_side.py --quick

Each round runs every comparator at every work once, in an order that changes from round to round, so that whatever
else the machine does meets all of them alike. A row's ratio is that of both medians; beside it stand the smallest and
the largest ratio of a round. The generator, the sockets and their buffers are the same for all: `coloproxy bench` of
the installed package. Latency is what the generator sees: both hops through the sockets are part of it.

Measuring never fails by what it measures: exit status 1 means that a figure is missing. docs/performance.md explains
each row. What --json writes is one object:

    schema      "coloproxy-side-by-side/1"
    began       RFC 3339
    machine     {cpu, cpus, caches, memory, governor, hypervisor, kernel, system, load_average}
    versions    {coloproxy, coloproxy_commit, qemu, compiler, python}
    parameters  {rounds, seconds, omit, passes, sink, quick, rows}
    runs        a list, in order of measurement, of {round, work, comparator, command, error, figures}; error: null, or
                why there are no figures
    rows        the table: {name, work, title, transport, figure, against, ours, theirs, ratio, ratio_min, ratio_max,
                goal, lower, at_least, nothing_lost, met, notes}; ours and theirs: {median, min, max, rounds} or null
    seconds     how long all of it took
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

from core.library import Built, Spec, build
from core.sizes import cold_frames
from suite.goals import MEMORY, ROWS, WORKS, Arm, arms, judge, order
from suite.machine import heading, last_cache
from suite.runs import SINKS, measure_process, measure_sockets
from suite.tables import rows_table

SCHEMA: Final = "coloproxy-side-by-side/1"


def measure(arm: Arm, options: argparse.Namespace, built: Built | None) -> dict[str, Any]:
    """One run of one arm."""
    work = WORKS[arm.work]
    if work.options is None:
        assert built is not None
        spec = Spec(
            kind="memory" if arm.comparator == MEMORY else "tcp",
            frames=cold_frames(1448, options.quick),
            evict=2 * last_cache(),
        )
        return measure_process(arm, spec, options.passes, built)
    return measure_sockets(
        arm, work.options, unix=work.unix, seconds=options.seconds, omit=options.omit, sink=options.sink
    )


def side_by_side(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds, and the table; what --json writes."""
    start = time.monotonic()
    parameters = {name: getattr(options, name) for name in ("rounds", "seconds", "omit", "passes", "sink", "quick")}
    document = heading(SCHEMA, parameters | {"rows": options.only})
    wanted = arms(options.only)
    built = build() if any(WORKS[arm.work].options is None for arm in wanted) else None
    runs: list[dict[str, Any]] = []
    for number in range(options.rounds):
        for arm in order(wanted, number):
            run = {"round": number} | measure(arm, options, built)
            runs.append(run)
            rate = run["figures"].get("frames_per_second")
            told = run["error"] or (f"{rate:,.0f} frames/s" if rate else "")
            print(
                f"{number + 1}/{options.rounds} {arm.work:14} {arm.comparator:10} {told}", file=sys.stderr, flush=True
            )
    return document | {
        "runs": runs,
        "rows": [judge(name, runs) for name in options.only],
        "seconds": round(time.monotonic() - start, 1),
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="(7; quick: 1)")
    parser.add_argument("--seconds", type=float, help="that are measured of each run (3; quick: 0.3)")
    parser.add_argument("--omit", type=float, help="seconds before that (0.5; quick: 0.1)")
    parser.add_argument("--passes", type=int, help="of each run in process (15; quick: 3)")
    parser.add_argument("--sink", choices=SINKS, default="count", help="of the generator (count)")
    parser.add_argument("--only", action="append", choices=list(ROWS), metavar="ROW", help=f"of: {', '.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="a smoke run: its figures are no figures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    options = parser.parse_args()
    for name, usual, quick in (("rounds", 7, 1), ("seconds", 3.0, 0.3), ("omit", 0.5, 0.1), ("passes", 15, 3)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else usual)
    options.only = list(dict.fromkeys(options.only or ROWS))
    return options


def main() -> int:
    """Measures, prints the table, writes the file."""
    options = arguments()
    document = side_by_side(options)
    print(rows_table(document["rows"]))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if any(row["ratio"] is None for row in document["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
