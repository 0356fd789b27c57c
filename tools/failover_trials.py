# SPDX-License-Identifier: Apache-2.0
"""Kills the primary of a real pair in mid-transfer, again and again, and counts what the client kept.

    python tools/failover_trials.py --count 20 --kind download upload
    python tools/failover_trials.py --count 10 --kind upload --comparator stock
    python tools/failover_trials.py --count 10 --attach tap --death kill cut checkpoint

Each trial boots a pair, starts COLO, begins the transfer, and lets the primary die when a random part of it is
through. With QEMU's filters its QEMU is killed, and the secondary takes over 0.3 s later at the earliest (a deliberate
detection delay, the same for all). With the TAP attach its QEMU and its coloproxy are killed (kill), or so in the
middle of a checkpoint (checkpoint), or its cables are cut (cut), in turns; the secondary takes over once its coloproxy
has no peer. Kept: the same TCP connection, every byte, the right SHA-256; 30 s without a byte are a loss. Exit status
1 if coloproxy lost one.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from coloproxy.testbed import PairOptions, VmPair
from coloproxy.testbed.pair import coloproxy_compare
from coloproxy.testbed.tap_pair import TapOptions, TapPair, VmSide

DETECTION_SECONDS = 0.3
TRANSFER_DEADLINE = 300.0
PATIENCE_SECONDS = 30.0
PERCENTILES = (0, 50, 90, 100)


async def kill_and_fail_over(pair: VmPair) -> None:
    killed = time.monotonic()
    await pair.kill_primary()
    await asyncio.sleep(max(0.0, DETECTION_SECONDS - (time.monotonic() - killed)))
    await pair.fail_over()


async def lose_and_fail_over(pair: TapPair, death: str) -> None:
    if death == "checkpoint":
        with pair.primary.control.watch("STOP") as watch:
            await pair.proxies["primary"].ask("checkpoint")
            await watch.next("STOP", TRANSFER_DEADLINE)
    await pair.lose_primary("cut" if death == "cut" else "kill")
    await pair.fail_over()


def checkpoints(pair: TapPair) -> str:
    """How many there were before, and why."""
    records = pair.journal("primary", "checkpoint-committed")
    causes = Counter(cause.split(" in ")[0] for record in records for cause in record["causes"])
    return f"{len(records)} checkpoints" + "".join(f", {count} {cause}" for cause, count in causes.items())


async def trial(
    kind: str, pair: VmPair | TapPair, death: str, size: int, rng: random.Random, rate: int | None
) -> tuple[bool, float, str]:
    """One pair, one death. Returns whether the transfer was kept, its longest stall in seconds, and what happened."""
    async with pair:
        await pair.start_colo()
        body = rng.randbytes(size) if kind == "upload" else b""
        if kind == "upload":
            transfer = await pair.client.upload(body, rate=rate)
            want = hashlib.sha256(body).hexdigest()
        else:
            transfer = await pair.client.download(rate=rate)
            want = pair.guest.large_sha256
        at = rng.randrange(size // 10, size * 9 // 10)
        await transfer.reached(at, deadline=TRANSFER_DEADLINE)
        await (lose_and_fail_over(pair, death) if isinstance(pair, TapPair) else kill_and_fail_over(pair))
        if not await transfer.ended(PATIENCE_SECONDS):
            text = f"killed at {at / 1e6:.1f} MB; no byte since {transfer.bytes / 1e6:.1f} MB"
            return False, transfer.stalled, text
        result = await transfer.result(deadline=TRANSFER_DEADLINE)
        kept = result.returncode == 0 and result.sha256 == want and result.connections == 1
        text = f"killed at {at / 1e6:.1f} MB; {result.bytes} bytes, longest stall {result.longest_stall:.2f} s"
        if not kept:
            text += f"; curl {result.returncode} {result.error}, sha256 {'right' if result.sha256 == want else 'WRONG'}"
        if isinstance(pair, TapPair):
            text += f"; {death}, {checkpoints(pair)}"
        return kept, result.longest_stall, text


def make_pair(arguments: argparse.Namespace, logs: Path | None) -> VmPair | TapPair:
    if arguments.attach == "tap":
        return TapPair(TapOptions(nic=arguments.nic, side=arguments.side, large_bytes=arguments.size, keep_logs=logs))
    comparator = coloproxy_compare("--json-events", "-") if arguments.comparator == "coloproxy" else None
    return VmPair(PairOptions(comparator=comparator, nic=arguments.nic, large_bytes=arguments.size, keep_logs=logs))


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Nearest rank."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="trials of each kind (20)")
    parser.add_argument("--kind", nargs="+", choices=("download", "upload"), default=["download", "upload"])
    parser.add_argument("--comparator", choices=("coloproxy", "stock"), default="coloproxy")
    parser.add_argument("--attach", choices=("filters", "tap"), default="filters")
    parser.add_argument("--side", choices=get_args(VmSide), default="stream", help="tap: QEMU's back end")
    parser.add_argument(
        "--death", nargs="+", choices=("kill", "cut", "checkpoint"), default=["kill"], help="tap: how the primary goes"
    )
    parser.add_argument("--nic", choices=("e1000", "virtio"), default="e1000")
    parser.add_argument("--size", type=int, default=50_000_000, help="bytes of a transfer (50,000,000)")
    parser.add_argument("--rate", type=int, help="at most so many bytes a second, for example 20_000_000")
    parser.add_argument("--seed", type=int, default=1, help="of the kill times (1)")
    parser.add_argument("--logs", type=Path, help="keep the logs of lost trials below this directory")
    arguments = parser.parse_args()

    lost_any = False
    for kind in arguments.kind:
        rng = random.Random(f"{arguments.seed} {kind}")
        kept: list[float] = []
        for number in range(1, arguments.count + 1):
            logs = arguments.logs / f"{kind}-{number}" if arguments.logs else None
            death = arguments.death[(number - 1) % len(arguments.death)]
            pair = make_pair(arguments, logs)
            ok, stall, text = await trial(kind, pair, death, arguments.size, rng, arguments.rate)
            print(f"{arguments.comparator} {kind} {number}: {'kept' if ok else 'LOST'}: {text}", flush=True)
            if ok:
                kept.append(stall)
            else:
                lost_any = True
        line = (
            f"{arguments.comparator}, {arguments.attach}, {arguments.nic} {kind}: kept {len(kept)} of {arguments.count}"
        )
        if kept:
            kept.sort()
            line += "; stall " + ", ".join(f"p{p} {percentile(kept, p):.2f} s" for p in PERCENTILES)
        print(line, flush=True)
    return 1 if lost_any and arguments.comparator == "coloproxy" else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
