# SPDX-License-Identifier: Apache-2.0
"""Lets the hosts of a protected pair die, again and again, and counts what the clients kept.

    python tools/node_cycles.py --cycles 20
    python tools/node_cycles.py --cycles 60 --death kill stop cut link --seed 7 --json report.json
    python tools/node_cycles.py --hours 24 --logs soak

Each cycle begins protected: downloads, uploads and a write log run, one host dies when a random part of the transfers
is through, the other goes on alone, the host is back, and the pair is protected again. With --attach filters each
cycle has a write log of its own. The primary and the secondary die in turns; each kind of death comes to both. In the
end the disk is examined offline. A cycle with a fault ends the run (--keep-going: not), and so does a state that is
not reached in time. Exit status 1 if there was any. Ctrl-C ends it with what there is so far; status 130.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from coloproxy.errors import ColoproxyError
from coloproxy.testbed.node_bed import NodeBed, NodeOptions
from coloproxy.testbed.node_cycle import Cycle, Death, Load, plan, run_cycle, summary
from coloproxy.testbed.node_net import HOSTS
from coloproxy.testbed.node_toml import Attach, NodeFile, etcd_arbiter

BOOT_SECONDS = 120.0
INTERRUPTED = 130


def node_file(arguments: argparse.Namespace) -> NodeFile:
    """What pair.toml says besides what the bed decides."""
    heartbeat = {"timeout": arguments.heartbeat_timeout} if arguments.heartbeat_timeout else {}
    if arguments.arbiter == "none":
        arbiter: dict[str, object] = {"kind": "none", "on_partition": arguments.on_partition}
    else:
        arbiter = etcd_arbiter()
    return NodeFile(node={"arbiter": arbiter}, heartbeat=heartbeat)


async def run(arguments: argparse.Namespace, cycles: list[Cycle], report: dict[str, Any]) -> None:
    """Until the cycles are through or the time is; fills both in as it goes."""
    options = NodeOptions(
        nic=arguments.nic,
        attach=arguments.attach,
        file=node_file(arguments),
        arbiter=arguments.arbiter == "etcd",
        keep_logs=arguments.logs,
    )
    load = Load(downloads=arguments.downloads, uploads=arguments.uploads, ipv6_downloads=arguments.ipv6_downloads)
    until = time.monotonic() + arguments.hours * 3600 if arguments.hours else None
    async with NodeBed(options) as bed:
        begun = time.monotonic()
        for host in HOSTS:
            await bed.start_node(host)
        await bed.protected(BOOT_SECONDS)
        report["first_protected_seconds"] = round(time.monotonic() - begun, 1)
        await bed.serves()
        log = await bed.write_log("soak")
        counted: list[tuple[str, int, int]] = []
        while (until is None and len(cycles) < arguments.cycles) or (until is not None and time.monotonic() < until):
            number = len(cycles) + 1
            if cycles and arguments.attach == "filters":  # a connection of it survives one failover for certain
                counted.append(await log.end(BOOT_SECONDS))
                log = await bed.write_log(f"soak-{number}")
            death, victim = plan(arguments.death, number)
            cycle = await run_cycle(bed, log, number, death, victim, seed=arguments.seed, load=load)
            cycles.append(cycle)
            print(cycle.told(), flush=True)
            if cycle.faults and not arguments.keep_going:
                break
        counted.append(await log.end(BOOT_SECONDS))
        primary = await bed.protected(BOOT_SECONDS)
        overlays = [Path(path) for path in (await bed.ask(primary, "status")).get("overlays", [])]
        for host in HOSTS:
            await bed.kill_host(host)
        found = await bed.verify(primary, counted, overlays=overlays)
        report["records"] = sum(log.found for log in found.logs.values())
        if not found.intact:
            report["faults"].append(f"disk of {primary}: {found}")


def write_report(arguments: argparse.Namespace, cycles: Sequence[Cycle], report: dict[str, Any]) -> None:
    """The summary for people, and all of it as JSON."""
    report["summary"] = summary(cycles)
    for name, facts in report["summary"].items():
        for fact, spread in facts.items():
            values = ", ".join(f"{what} {value:g}" for what, value in spread.items())
            print(f"{name}: {fact}: {values}")
    bad = sum(bool(cycle.faults) for cycle in cycles)
    disk = f"{report['records']} records on the disk" if "records" in report else "the disk was not examined"
    print(f"{len(cycles)} cycles, {bad} with faults; {disk}")
    for fault in report["faults"]:
        print(f"FAULT: {fault}")
    if arguments.json:
        report["cycles"] = [dataclasses.asdict(cycle) for cycle in cycles]
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=20, help="how many (20)")
    parser.add_argument("--hours", type=float, default=0.0, help="so long instead")
    parser.add_argument("--death", nargs="+", choices=get_args(Death), default=["kill"], help="kinds, in turns (kill)")
    parser.add_argument("--seed", default="1", help="of the moments of death (1)")
    parser.add_argument("--arbiter", choices=("etcd", "none"), default="etcd")
    parser.add_argument("--on-partition", choices=("primary", "stop"), default="primary", help="without an arbiter")
    parser.add_argument("--attach", choices=get_args(Attach), default="tap", help="node.attach of the pair (tap)")
    parser.add_argument("--nic", choices=("e1000", "virtio"), default="virtio")
    parser.add_argument("--heartbeat-timeout", metavar="TIME", help="node.heartbeat.timeout, 2s for a busy machine")
    parser.add_argument("--downloads", type=int, default=1, help="at once (1)")
    parser.add_argument("--uploads", type=int, default=1, help="at once (1)")
    parser.add_argument("--ipv6-downloads", type=int, default=0, help="at once, over IPv6, besides (0)")
    parser.add_argument("--keep-going", action="store_true", help="after a cycle with a fault")
    parser.add_argument("--json", type=Path, help="write a report into this file")
    parser.add_argument("--logs", type=Path, help="keep the logs in this directory")
    arguments = parser.parse_args()

    cycles: list[Cycle] = []
    report: dict[str, Any] = {"seed": arguments.seed, "deaths": arguments.death, "faults": []}
    try:
        asyncio.run(run(arguments, cycles, report))
    except ColoproxyError as error:
        report["faults"].append(f"in cycle {len(cycles) + 1}: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    finally:
        write_report(arguments, cycles, report)
    return 1 if report["faults"] or any(cycle.faults for cycle in cycles) else 0


if __name__ == "__main__":
    sys.exit(main())
