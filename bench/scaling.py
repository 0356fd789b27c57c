# SPDX-License-Identifier: Apache-2.0
"""How the comparator's cost grows: with flows, segment size, skew and held bytes; in process, and through sockets.

    python bench/scaling.py [--rounds 3] [--seconds 2] [--only SERIES]... [--json FILE]
    python bench/scaling.py --quick

In process, each point is a process of its own, so that memory a flow is exact too. What --json writes is one object:

    schema      "coloproxy-scaling/1"
    began, machine, versions    as in bench/side_by_side.py
    parameters  {rounds, seconds, omit, passes, sink, quick, series}
    series      {series: {title, x, figure, unit, lines: {line: title}}}
    runs        a list, in order of measurement, of {round, series, line, x, work, comparator, command, error, figures};
                figures: ns_per_frame, gbit_per_second, frames_per_second, grown_bytes, bytes_per_flow (in process), or
                those of bench/side_by_side.py
    seconds     how long all of it took
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from core.library import Built, Spec, build
from core.sizes import cold_frames
from suite.goals import MEMORY, NAMES, OURS, RELAY, STOCK, SUPER, Arm
from suite.machine import heading, last_cache
from suite.runs import SINKS, measure_process, measure_sockets

SCHEMA: Final = "coloproxy-scaling/1"
STOCKS_FLOWS: Final = 10_000
"""Its connection table is simply cleared at 16,384."""

FLOWS: Final = (1, 10, 100, 1_000, 10_000, 100_000)
LENGTHS: Final = (64, 128, 256, 512, 1024, 1448, 4096, 16384, SUPER)
SKEWS: Final = (0, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24)
HELD: Final = (1 << 20, 1 << 22, 1 << 24, 1 << 26, 1 << 27)


@dataclass(frozen=True, slots=True)
class Series:
    """One plot: `figure` of each line against x."""

    title: str
    x: str
    figure: str
    unit: str
    lines: Mapping[str, str]


_ALONE: Final = {OURS: NAMES[OURS]}
_BOTH: Final = {OURS: NAMES[OURS], MEMORY: NAMES[MEMORY]}
_ALL: Final = {OURS: NAMES[OURS], RELAY: NAMES[RELAY], STOCK: NAMES[STOCK]}
SERIES: Final[Mapping[str, Series]] = {
    "flows": Series("In process: each 64-byte segment of another flow", "flows", "ns_per_frame", "ns a frame", _ALONE),
    "memory": Series("What the process grows by, divided by the flows", "flows", "bytes_per_flow", "bytes", _ALONE),
    "length": Series("In process: segment size, out of cache", "payload bytes", "gbit_per_second", "Gbit/s", _BOTH),
    "skew": Series(
        "In process: how far the secondary is behind, 1448-byte segments", "bytes", "ns_per_frame", "ns a frame", _ALONE
    ),
    "held": Series(
        "In process: 1448-byte segments, held, then flushed by a checkpoint",
        "bytes",
        "ns_per_frame",
        "ns a frame",
        _ALONE,
    ),
    "sockets-flows": Series("TCP sockets: 1448-byte segments", "flows", "frames_per_second", "frames/s", _ALL),
    "sockets-length": Series("TCP sockets: segment size, 1 flow", "payload bytes", "gbit_per_second", "Gbit/s", _ALL),
}


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement: in process by `spec`, else through sockets by `options`."""

    series: str
    line: str
    x: int
    spec: Spec | None = None
    options: tuple[str, ...] = ()


def points(only: list[str], quick: bool) -> Iterator[Point]:
    """All of them. Quick: the first, one in the middle, one of the larger ones."""

    def some(values: tuple[int, ...]) -> tuple[int, ...]:
        return (values[0], values[len(values) // 2], values[-2]) if quick else values

    for flows in some(FLOWS):
        if "flows" in only:
            yield Point("flows", OURS, flows, Spec(flows=flows, length=64, burst=1, frames=max(flows, 4096)))
        if "memory" in only and flows >= 1000:
            yield Point("memory", OURS, flows, Spec(flows=flows, length=1, burst=1, frames=flows))
    evict = 2 * last_cache()
    for length in some(LENGTHS):
        for line, kind in ((OURS, "tcp"), (MEMORY, "memory")):
            if "length" in only:
                frames, vnet = cold_frames(length, quick), 12 if length > 1448 else 0
                spec = Spec(kind=kind, length=length, frames=frames, vnet_len=vnet, evict=evict)
                yield Point("length", line, length, spec)
    for skew in some(SKEWS):
        if "skew" in only:
            yield Point("skew", OURS, skew, Spec(skew=skew, frames=cold_frames(1448, quick), evict=evict))
    for held in some(HELD):
        if "held" in only:
            yield Point("held", OURS, held, Spec(kind="commit", frames=held // 1448, evict=evict))
    for flows in some(FLOWS):
        for line in _ALL if "sockets-flows" in only else ():
            if line != STOCK or flows <= STOCKS_FLOWS:
                yield Point("sockets-flows", line, flows, options=("-l", "1448", "-P", str(flows)))
    for length in some(LENGTHS):
        for line in _ALL if "sockets-length" in only else ():
            vnet_hdr = ("--vnet-hdr",) if length > 1448 else ()
            yield Point("sockets-length", line, length, options=("-l", str(length), "-P", "1", *vnet_hdr))


def measure(point: Point, options: argparse.Namespace, built: Built) -> dict[str, Any]:
    """One run of one point."""
    arm = Arm(point.series, point.line)
    if point.spec is None:
        return measure_sockets(
            arm, point.options, unix=False, seconds=options.seconds, omit=options.omit, sink=options.sink
        )
    run = measure_process(arm, point.spec, options.passes, built)
    if run["figures"]:
        run["figures"]["bytes_per_flow"] = run["figures"]["grown_bytes"] / point.spec.flows
    return run


def scaling(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds; what --json writes."""
    start = time.monotonic()
    parameters = {name: getattr(options, name) for name in ("rounds", "seconds", "omit", "passes", "sink", "quick")}
    document = heading(SCHEMA, parameters | {"series": options.only})
    built = build()
    wanted = list(points(options.only, options.quick))
    runs: list[dict[str, Any]] = []
    for number in range(options.rounds):
        for point in wanted if number % 2 == 0 else reversed(wanted):
            place = {"round": number, "series": point.series, "line": point.line, "x": point.x}
            run: dict[str, Any] = place | measure(point, options, built)
            runs.append(run)
            value = run["figures"].get(SERIES[point.series].figure)
            told = run["error"] or (f"{value:,.1f} {SERIES[point.series].unit}" if value is not None else "")
            print(
                f"{number + 1}/{options.rounds} {point.series:14} {point.x:10,} {point.line:10} {told}",
                file=sys.stderr,
                flush=True,
            )
    return document | {
        "series": {name: asdict(SERIES[name]) for name in options.only},
        "runs": runs,
        "seconds": round(time.monotonic() - start, 1),
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="(3; quick: 1)")
    parser.add_argument("--seconds", type=float, help="of each run through sockets (2; quick: 0.2)")
    parser.add_argument("--omit", type=float, help="seconds before that (0.5; quick: 0.1)")
    parser.add_argument("--passes", type=int, help="of each run in process (9; quick: 2)")
    parser.add_argument("--sink", choices=SINKS, default="count", help="of the generator (count)")
    parser.add_argument("--only", action="append", choices=list(SERIES), help="these series only")
    parser.add_argument("--quick", action="store_true", help="a smoke run: its figures are no figures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    options = parser.parse_args()
    for name, usual, quick in (("rounds", 3, 1), ("seconds", 2.0, 0.2), ("omit", 0.5, 0.1), ("passes", 9, 2)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else usual)
    options.only = list(dict.fromkeys(options.only or SERIES))
    return options


def main() -> int:
    """Measures, and writes the file."""
    options = arguments()
    document = scaling(options)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if any(run["error"] for run in document["runs"]) else 0


if __name__ == "__main__":
    sys.exit(main())
