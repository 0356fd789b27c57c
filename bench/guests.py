# SPDX-License-Identifier: Apache-2.0
"""End to end with real guests: the same VM unprotected, behind QEMU's own colo-compare, and behind coloproxy.

    python bench/guests.py [--rounds 5] [--seconds 5] [--requests 1000] [--nic e1000] [--json FILE]
    python bench/guests.py --quick

Each round boots each set-up anew (in an order that changes from round to round), on the test bed's networks, and lets
real clients do the same work on it, one piece after the other: GETs of 1 KiB from nginx on kept connections, the same
with a new connection each, iperf3 in both directions with one stream and with several. Checkpoints are counted the
same way for both comparators, by STOP and RESUME on the primary's QMP, and processor time by /proc. Everything is
QEMU's and the test bed's default; iperf3 in the guest sends zeros, for its usual data differ on the two VMs.

A request that was not answered within 10 s, or wrongly, is an error and not among the latencies. Missing packages are
installed (as root, on Debian), and nothing else stays but the cached guest. Exit status 1: something couldn't be
measured.

What --json writes is one object:

    schema          "coloproxy-guests/1"
    began, seconds  RFC 3339; how long all of it took
    command         how it was called, a list
    machine         {processor, processors, memory_mib, kernel, system}
    versions        {coloproxy, coloproxy_commit, qemu, guest_kernel, nginx, iperf3, python}
    parameters      {rounds, seconds, requests, connections, streams, nic, acceleration, set_ups, coloproxy_options}
    works           {work: title}, in order. Works: http_keep_alive, http_new_connection,
                    iperf3_{guest_to_client,client_to_guest}_{streams}
    figures         {figure: {title, unit, better}}; better is "lower", "higher" or ""
    rounds          a list, in order of measurement, of {round, set_up, error, boot_seconds, protect_seconds,
                    acceleration, guest_kernel, checkpoints, results}; set_up is unprotected, stock or coloproxy;
                    error (null or text): this set-up ended early, and what came after is missing; checkpoints:
                    of the whole, also between the works
      results       {work: {began, error, errors, figures, pauses_ms, causes}}
        began       seconds since 1970
        error       null, or why there is no result; it then counts as one in figures.errors
        errors      {what: how many}
        figures     {figure: number or null}
        pauses_ms   of each checkpoint, from the primary's STOP to its RESUME
        causes      {cause: checkpoints}; coloproxy only, from its events (docs/events.md); one can have several
    summary         {work: {set_up: {figure: {median, min, max, count}}}}; count: rounds that have the figure
    ratios          {work: {figure: {"coloproxy/stock", "coloproxy/unprotected", "stock/unprotected"}}}: of the
                    medians; null where the lower one is 0 or missing

All durations of a figure are in the unit that its name ends in. http: p50_ms, p99_ms, max_ms, mean_ms, answered,
errors, connects, seconds. iperf3: mbit_per_second and bytes (as received), retransmits, errors, seconds. Both:
checkpoints, checkpoints_per_1000_requests or checkpoints_per_100_mb, pause_median_ms, pause_max_ms, pause_sum_ms,
cpu_primary_s, cpu_secondary_s, cpu_comparator_s (coloproxy's process; colo-compare is a thread of the primary's QEMU),
cpu_primary_and_comparator_s. These cover the work and the half second behind it.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coloproxy.bench.facts import machine
from coloproxy.errors import ColoproxyError
from coloproxy.testbed import install_missing
from real_guests import facts, services
from real_guests.runner import run_rounds
from real_guests.setups import SET_UPS, Ground
from real_guests.summary import FIGURES, ratios, summarize, table
from real_guests.work import all_works

SCHEMA = "coloproxy-guests/1"


def report(text: str) -> None:
    """A line of progress."""
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything; returns what --json writes."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, current_task().cancel)
    began, start = datetime.datetime.now(datetime.UTC), time.monotonic()
    await asyncio.to_thread(install_missing, report, services.PROGRAMS)
    addition, versions = await asyncio.gather(asyncio.to_thread(services.addition), asyncio.to_thread(facts.versions))
    works = all_works(options.requests, options.connections, options.seconds, options.streams)
    ground = Ground(options.nic, options.kvm, addition, options.coloproxy_options, options.keep_logs)
    rounds = await run_rounds(options.set_ups, works, options.rounds, ground, report)
    booted = next((entry for entry in rounds if "guest_kernel" in entry), {})
    summary = summarize(rounds)
    return {
        "schema": SCHEMA,
        "began": began.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - start, 1),
        "command": ["python", "bench/guests.py", *sys.argv[1:]],
        "machine": machine(),
        "versions": versions | {"guest_kernel": booted.get("guest_kernel")},
        "parameters": {
            "rounds": options.rounds,
            "seconds": options.seconds,
            "requests": options.requests,
            "connections": options.connections,
            "streams": options.streams,
            "nic": options.nic,
            "acceleration": booted.get("acceleration"),
            "set_ups": options.set_ups,
            "coloproxy_options": options.coloproxy_options,
        },
        "works": {work.name: work.title for work in works},
        "figures": {
            name: {k: v for k, v in asdict(figure).items() if k != "shown"} for name, figure in FIGURES.items()
        },
        "rounds": rounds,
        "summary": summary,
        "ratios": ratios(summary),
    }


def current_task() -> asyncio.Task[Any]:
    """The task that runs this."""
    task = asyncio.current_task()
    assert task is not None
    return task


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=_at_least_one, help="(5; quick: 1)")
    parser.add_argument("--seconds", type=_at_least_one, help="of each iperf3 test (5; quick: 1)")
    parser.add_argument("--requests", type=_at_least_one, help="of each HTTP test (1000; quick: 60)")
    parser.add_argument("--connections", type=_at_least_one, default=4, help="HTTP requests at a time (4)")
    parser.add_argument("--streams", type=int, default=4, choices=range(2, 33), metavar="2-32", help="iperf3's (4)")
    parser.add_argument("--nic", choices=("e1000", "virtio"), default="e1000", help="(e1000)")
    parser.add_argument("--set-ups", nargs="+", choices=SET_UPS, default=list(SET_UPS), help="(all)")
    parser.add_argument("--coloproxy-options", type=str.split, default=[], metavar="TEXT", help="for coloproxy compare")
    parser.add_argument("--kvm", action=argparse.BooleanOptionalAction, default=True, help="where it works (yes)")
    parser.add_argument("--quick", action="store_true", help="a smoke run, less than 90 s: its figures are no figures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("--keep-logs", type=Path, metavar="DIR", help="of QEMU and coloproxy, below this directory")
    options = parser.parse_args()
    options.set_ups = list(dict.fromkeys(options.set_ups))
    for name, usual, quick in (("rounds", 5, 1), ("seconds", 5, 1), ("requests", 1000, 60)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else usual)
    return options


def _at_least_one(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def main() -> int:
    """Measures, prints the table, writes the file."""
    options = arguments()
    try:
        document = asyncio.run(measure(options))
    except ColoproxyError as error:
        print(f"guests.py: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("guests.py: interrupted; everything it started is gone", file=sys.stderr)
        return 130
    for line in table(document):
        print(line)
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    measured = all(
        entry["error"] is None and all(result["error"] is None for result in entry["results"].values())
        for entry in document["rounds"]
    )
    return 0 if measured else 1


if __name__ == "__main__":
    sys.exit(main())
