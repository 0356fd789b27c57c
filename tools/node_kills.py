# SPDX-License-Identifier: Apache-2.0
"""Kills `coloproxy node` alone, with SIGKILL, at random points of a pair's life, and looks whether it heals.

    python tools/node_kills.py --count 30 --seed 1
    python tools/node_kills.py --count 12 --moment failover --logs kills --json report.json

QEMU lives on; the supervisor starts the node again. Each trial must end protected, without a lost record, without two
owners at once (coloproxy/testbed/node_kill.py). In the end the disk is examined offline. A trial at `start` has a bed
of its own. A trial with a fault ends the run (--keep-going: not). Exit status 1 if there was any. Ctrl-C ends it with
what there is so far; status 130.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from coloproxy.errors import ColoproxyError
from coloproxy.testbed.node_bed import NodeBed, NodeOptions
from coloproxy.testbed.node_kill import Moment, Plan, Trial, draw, run_start, run_trial
from coloproxy.testbed.node_net import HOSTS
from coloproxy.testbed.node_toml import NodeFile, etcd_arbiter

BOOT_SECONDS = 120.0
INTERRUPTED = 130


def options(logs: Path | None) -> NodeOptions:
    """A pair with an etcd."""
    # A busy machine must not look like a dead host: here it is only coloproxy that dies.
    heartbeat = {"timeout": "2s"}
    file = NodeFile(node={"arbiter": etcd_arbiter()}, heartbeat=heartbeat)
    return NodeOptions(file=file, arbiter=True, large_bytes=16_000_000, disk_mebibytes=64, keep_logs=logs)


async def run(arguments: argparse.Namespace, trials: list[Trial], report: dict[str, Any]) -> None:
    """All trials; fills both in as it goes."""
    moments: Sequence[Moment] = arguments.moment
    plans = [draw(arguments.seed, n, moments[n % len(moments)]) for n in range(1, arguments.count + 1)]

    def goes_on(trial: Trial) -> bool:
        trials.append(trial)
        print(trial.told(), flush=True)
        return not trial.faults or arguments.keep_going

    for plan in (plan for plan in plans if plan.moment == "start"):
        async with NodeBed(options(_logs(arguments, f"start-{plan.number}"))) as bed:
            if not goes_on(await run_start(bed, plan)):
                return
    rest = [plan for plan in plans if plan.moment != "start"]
    if rest:
        await run_rest(arguments, rest, goes_on, report)


async def run_rest(arguments: argparse.Namespace, plans: list[Plan], goes_on: Any, report: dict[str, Any]) -> None:
    """In one bed."""
    async with NodeBed(options(_logs(arguments, "pair"))) as bed:
        for host in HOSTS:
            await bed.start_node(host)
        counted: list[tuple[str, int, int]] = []
        for plan in plans:
            trial, written = await run_trial(bed, plan)
            counted.append(written)
            if not goes_on(trial):
                return
        primary = await bed.protected(BOOT_SECONDS)
        for host in HOSTS:
            await bed.kill_host(host)
        found = await bed.verify(primary, counted)
        report["records"] = sum(log.found for log in found.logs.values())
        if not found.intact:
            report["faults"].append(f"disk of {primary}: {found}")


def _logs(arguments: argparse.Namespace, name: str) -> Path | None:
    return arguments.logs / name if arguments.logs else None


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=30, help="how many (30)")
    parser.add_argument("--seed", default="1", help="of moments and delays (1)")
    parser.add_argument(
        "--moment", nargs="+", choices=get_args(Moment), default=["failover", "resync", "start"], help="in turns"
    )
    parser.add_argument("--keep-going", action="store_true", help="after a trial with a fault")
    parser.add_argument("--json", type=Path, help="write a report into this file")
    parser.add_argument("--logs", type=Path, help="keep the logs in this directory")
    arguments = parser.parse_args()

    trials: list[Trial] = []
    report: dict[str, Any] = {"seed": arguments.seed, "faults": []}
    interrupted = False
    try:
        asyncio.run(run(arguments, trials, report))
    except ColoproxyError as error:
        report["faults"].append(f"in trial {len(trials) + 1}: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        interrupted = True
    bad = sum(bool(trial.faults) for trial in trials)
    disk = f"{report['records']} records on the disk" if "records" in report else "the disk was not examined"
    print(f"{len(trials)} trials, {bad} with faults; {disk}")
    for fault in report["faults"]:
        print(f"FAULT: {fault}")
    if arguments.json:
        report["trials"] = [dataclasses.asdict(trial) for trial in trials]
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if interrupted:
        return INTERRUPTED
    return 1 if bad or report["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
