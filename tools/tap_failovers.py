# SPDX-License-Identifier: Apache-2.0
"""Cuts off the primary's host of a pair of namespaces in mid-transfer, again and again, and counts what clients kept.

    python tools/tap_failovers.py --count 50
    python tools/tap_failovers.py --count 10 --kind tap --cut down --offloads --no-sack

Each trial makes a pair with a coloproxy on each host, begins a download and an upload, each over IPv4 and IPv6, cuts
the primary's host off when a random part of them is through, and lets the secondary take over once it knows. The kinds
of network card and of cut take turns unless one is chosen. Kept: the same TCP connection, every byte, the right
SHA-256; 20 s without a byte are a loss. Exit status 1 if one was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from coloproxy.errors import ColoproxyError
from coloproxy.testbed.namespace_net import VmKind
from coloproxy.testbed.namespaces import Cut, NamespaceOptions
from coloproxy.testbed.proxies import tcp_options
from coloproxy.testbed.tap_trial import OFFLOADED_BYTES, failover_trial

PERCENTILES = (0, 50, 90, 99, 100)


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Nearest rank."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, help="failovers (50)")
    parser.add_argument("--kind", choices=get_args(VmKind), help="of the VM's network card")
    parser.add_argument("--cut", choices=get_args(Cut), help="how the host goes")
    parser.add_argument("--offloads", action="store_true", help="the VMs leave checksums and segmentation to others")
    parser.add_argument("--no-timestamps", action="store_true")
    parser.add_argument("--no-sack", action="store_true")
    parser.add_argument("--scales-differ", action="store_true", help="the VMs announce other window scales")
    parser.add_argument("--size", type=int, help="bytes of a transfer (10,000,000; with offloads 30,000,000)")
    parser.add_argument("--seed", type=int, default=1, help="of the times of the cuts (1)")
    parser.add_argument("--logs", type=Path, help="keep the logs below this directory")
    arguments = parser.parse_args()

    kinds = itertools.cycle([arguments.kind] if arguments.kind else get_args(VmKind))
    cuts = itertools.cycle([arguments.cut] if arguments.cut else get_args(Cut))
    stacks = tcp_options(
        timestamps=not arguments.no_timestamps, sack=not arguments.no_sack, scales_differ=arguments.scales_differ
    )
    stalls: list[float] = []
    survived = failed = lost = 0
    for number, kind, how in zip(range(1, arguments.count + 1), kinds, cuts, strict=False):
        options = NamespaceOptions(
            kind=kind,
            offloads=arguments.offloads,
            vm_stacks=stacks,
            large_bytes=arguments.size or (OFFLOADED_BYTES if arguments.offloads else 10_000_000),
            keep_logs=arguments.logs / str(number) if arguments.logs else None,
        )
        try:
            outcomes = await failover_trial(options, how, seed=f"{arguments.seed} {number}")
        except ColoproxyError as error:
            failed += 1
            print(f"{number} ({kind}, {how}): FAILED: {error}", flush=True)
            continue
        for outcome in outcomes:
            if outcome.kept:
                stalls.append(outcome.stall)
            else:
                lost += 1
                print(f"{number} ({kind}, {how}): LOST: {outcome.kind}: {outcome.text}", flush=True)
        kept = sum(outcome.kept for outcome in outcomes)
        survived += kept == len(outcomes)
        longest = max(outcome.stall for outcome in outcomes)
        print(f"{number} ({kind}, {how}): kept {kept} of {len(outcomes)}, longest stall {longest:.2f} s", flush=True)
    print(f"{survived} of {arguments.count} failovers survived; {len(stalls)} transfers kept, {lost} lost")
    if stalls:
        stalls.sort()
        print("stall " + ", ".join(f"p{p} {percentile(stalls, p):.3f} s" for p in PERCENTILES))
    return 1 if lost or failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
