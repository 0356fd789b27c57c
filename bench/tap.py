# SPDX-License-Identifier: Apache-2.0
"""The TAP attach beside the same path without coloproxy: real TCP stacks, iperf3 and small HTTP requests.

    python bench/tap.py [--rounds 3] [--seconds 2] [--requests 500] [--ways WAY ...] [--cells CELL ...] [--json FILE]
    python bench/tap.py --quick

Two hosts, their VMs (network namespaces) and a client stand on this one machine, joined by veth pairs, and the client
does the same work on each way to the primary's VM:

    bridged     no proxy: the host's bridge has the VM's card, the kernel passes frames
    relay       the bed's relay in Python passes frames between a TAP and the card; not measured unless asked for
    alone       coloproxy on the primary's host, without a peer
    protected   two coloproxies: mirror, link with TLS, secondary, comparator
    plain       the same without TLS

A cell is how the card is joined to its host (packet: a veth pair that coloproxy opens as a packet socket; tap: a TAP of
coloproxy's) and what it leaves to others (offloads: checksums and segmentation, frames have virtio-net headers; whole:
nothing). A TAP can't be bridged to itself: the tap cells are set against the veth pair of the packet cell. Each round
measures each cell by each way once, on a new bed, in an order that changes from round to round. iperf3 sends zeros
from the VM, for its usual data differ on the two VMs, and is started anew for each test. "Checkpoints" say only that
the two are equal (the bed's `command` back end with /bin/true): what is measured is the path and the comparison, not
QEMU's checkpoint.

Everything runs on the same processors. A protected VM is two VMs, so two TCP stacks and two iperf3, two proxies, and a
link of which each byte is sent and received here: more than twice the work of the bridged one.

What --json writes is one object:

    schema          "coloproxy-tap/1"
    began, seconds  RFC 3339; how long all of it took
    machine, versions   as in side_by_side.py
    parameters      {rounds, seconds, requests, connections, streams, ratios, quick}
    cells, ways, works  {name: title}, in order
    figures         {figure: title}, of those that the table shows
    rounds          a list, in order of measurement, of {round, cell, way, error, results}
      results       {work: {error, errors, figures}}; figures: guests.py's of http and iperf3, and checkpoints,
                    divergences, cpu_primary_s, cpu_secondary_s (of the coloproxies), cpu_s_per_gb (both, by 10^9 bytes)
    summary         {cell: {work: {way: {figure: {median, min, max, count}}}}}
    ratios          {cell: {work: {figure: {"alone/bridged": ...}}}}: of the medians, null where one is missing

Exit status 1: something couldn't be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from coloproxy.errors import ColoproxyError
from coloproxy.testbed import install_missing
from coloproxy.testbed.errors import TestbedError
from coloproxy.testbed.guest_files import HELLO, HTTP_PORT
from coloproxy.testbed.server_programs import PROGRAMS
from real_guests.summary import ratios, summarize
from real_guests.work import HttpWork, IperfWork, Page, Work, all_works
from suite.machine import heading
from suite.tables import markdown
from suite.tap_tables import tap_tables
from suite.tap_ways import ALONE, BRIDGED, PLAIN, PROTECTED, RELAY, WAYS, Cell, Subject, possible, running

SCHEMA: Final = "coloproxy-tap/1"
CELLS: Final = {cell.name: cell for cell in (Cell(k, o) for k in ("packet", "tap") for o in (False, True))}
RATIOS: Final = ((ALONE, BRIDGED), (PROTECTED, BRIDGED), (PROTECTED, ALONE), (PLAIN, PROTECTED))
FIGURES: Final = {
    "mbit_per_second": "Mbit/s",
    "cpu_s_per_gb": "CPU s/GB",
    "p50_ms": "p50, ms",
    "p99_ms": "p99, ms",
}
_WARM_UP: Final = (HttpWork("keep", 20, 1, Page(HTTP_PORT, "/hello.txt", HELLO)),)


def report(text: str) -> None:
    """A line of progress."""
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


async def _measure(work: Work, subject: Subject) -> dict[str, Any]:
    try:
        await subject.settle()
        cpu, counts = subject.cpu_seconds(), await subject.counts()
        outcome = await work.run(subject.bed.client)
        after, told = subject.cpu_seconds(), await subject.counts()
    except TestbedError as error:
        return {"error": str(error), "errors": {str(error): 1}, "figures": {}}
    figures = outcome.figures | {name: count - counts[name] for name, count in told.items()}
    figures |= {f"cpu_{role}_s": seconds - cpu[role] for role, seconds in after.items()}
    if isinstance(work, IperfWork) and after and figures["bytes"]:
        figures["cpu_s_per_gb"] = (sum(after.values()) - sum(cpu.values())) * 1e9 / figures["bytes"]
    return {"error": None, "errors": outcome.errors, "figures": figures}


async def _one(number: int, cell: Cell, way: str, works: Sequence[Work]) -> dict[str, Any]:
    entry: dict[str, Any] = {"round": number, "cell": cell.name, "way": way, "error": None, "results": {}}
    try:
        async with running(way, cell) as subject:
            for first in _WARM_UP:
                await first.run(subject.bed.client)
            for work in works:
                entry["results"][work.name] = result = await _measure(work, subject)
                figures = result["figures"]
                told = {name: round(figures[name], 2) for name in FIGURES if figures.get(name) is not None}
                told |= {name: figures[name] for name in ("checkpoints", "retransmits") if figures.get(name)}
                report(f"{number}, {cell.name}, {way}, {work.name}: {result['error'] or told} {result['errors'] or ''}")
    except ColoproxyError as error:
        entry["error"] = str(error)
        report(f"{number}, {cell.name}, {way}: FAILED: {error}")
    return entry


def _summary(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By cell; the veth pair's without a proxy stands for the TAP's too."""
    found = {}
    for name, cell in CELLS.items():
        stand_in = Cell("packet", cell.offloads).name
        mine = [
            entry | {"set_up": entry["way"]}
            for entry in rounds
            if entry["cell"] == name or (entry["cell"] == stand_in and entry["way"] == BRIDGED)
        ]
        if any(entry["cell"] == name for entry in mine):
            found[name] = summarize(mine)
    return found


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything; returns what --json writes."""
    start = time.monotonic()
    await asyncio.to_thread(install_missing, report, PROGRAMS)
    page = Page(HTTP_PORT, "/hello.txt", HELLO)
    works = all_works(options.requests, options.connections, options.seconds, options.streams, page)
    parameters = {name: getattr(options, name) for name in ("rounds", "seconds", "requests", "connections", "streams")}
    document = heading(
        SCHEMA, parameters | {"ratios": [f"{over}/{under}" for over, under in RATIOS], "quick": options.quick}
    )
    arms = [(CELLS[name], way) for name in options.cells for way in options.ways if possible(way, CELLS[name])]
    rounds = []
    for number in range(options.rounds):
        turn = number * len(arms) // options.rounds
        for cell, way in (*arms[turn:], *arms[:turn]):
            rounds.append(await _one(number + 1, cell, way, works))
    summary = _summary(rounds)
    return document | {
        "seconds": round(time.monotonic() - start, 1),
        "cells": {name: CELLS[name].title for name in options.cells},
        "ways": {way: WAYS[way] for way in WAYS if way in options.ways},
        "works": {work.name: work.title for work in works},
        "figures": FIGURES,
        "rounds": rounds,
        "summary": summary,
        "ratios": {name: ratios(found, RATIOS) for name, found in summary.items()},
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="(3; quick: 1)")
    parser.add_argument("--seconds", type=int, help="of each iperf3 test (2; quick: 1)")
    parser.add_argument("--requests", type=int, help="of each HTTP test (500; quick: 40)")
    parser.add_argument("--connections", type=int, default=1, help="HTTP requests at a time (1)")
    parser.add_argument("--streams", type=int, default=4, help="iperf3's (4)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[way for way in WAYS if way != RELAY])
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), help="(all)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: its figures are no figures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    options = parser.parse_args()
    for name, usual, quick in (("rounds", 3, 1), ("seconds", 2, 1), ("requests", 500, 40)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else usual)
    return options


def main() -> int:
    """Measures, prints the tables, writes the file."""
    options = arguments()
    try:
        document = asyncio.run(measure(options))
    except ColoproxyError as error:
        print(f"tap.py: {error}", file=sys.stderr)
        return 1
    for table in tap_tables(document):
        print(f"**{table.caption}**\n\n{markdown(table)}\n")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    measured = all(
        entry["error"] is None and all(result["error"] is None for result in entry["results"].values())
        for entry in document["rounds"]
    )
    return 0 if measured else 1


if __name__ == "__main__":
    sys.exit(main())
