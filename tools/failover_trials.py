# SPDX-License-Identifier: Apache-2.0
"""Kills the primary of a real pair in mid-transfer, again and again, and counts what the client kept.

    python tools/failover_trials.py --count 20 --kind download upload
    python tools/failover_trials.py --count 10 --kind upload --comparator stock

Each trial boots a pair, starts COLO, begins the transfer, sends SIGKILL to the primary's QEMU when a random part of
it is through, fails over 0.3 s after the kill at the earliest (a deliberate detection delay, the same for all), and
waits for the end. Kept: the same TCP connection, every byte, the right SHA-256; 30 s without a byte are a loss. Exit
status 1 if coloproxy lost one.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import statistics
import sys
import time
from pathlib import Path

from coloproxy.testbed import PairOptions, VmPair
from coloproxy.testbed.pair import coloproxy_compare

DETECTION_SECONDS = 0.3
TRANSFER_DEADLINE = 300.0
PATIENCE_SECONDS = 30.0


async def trial(
    kind: str, options: PairOptions, size: int, rng: random.Random, limit_rate: str | None
) -> tuple[bool, float, str]:
    """One pair, one kill. Returns whether the transfer was kept, its longest stall in seconds, and what happened."""
    async with VmPair(options) as pair:
        await pair.start_colo()
        body = rng.randbytes(size) if kind == "upload" else b""
        if kind == "upload":
            transfer = await pair.client.upload(body, limit_rate=limit_rate)
            want = hashlib.sha256(body).hexdigest()
        else:
            transfer = await pair.client.download(limit_rate=limit_rate)
            want = pair.guest.large_sha256
        at = rng.randrange(size // 10, size * 9 // 10)
        await transfer.reached(at, deadline=TRANSFER_DEADLINE)
        killed = time.monotonic()
        await pair.kill_primary()
        await asyncio.sleep(max(0.0, DETECTION_SECONDS - (time.monotonic() - killed)))
        await pair.fail_over()
        if not await transfer.ended(PATIENCE_SECONDS):
            text = f"killed at {at / 1e6:.1f} MB; no byte since {transfer.bytes / 1e6:.1f} MB"
            return False, transfer.stalled, text
        result = await transfer.result(deadline=TRANSFER_DEADLINE)
        kept = result.returncode == 0 and result.sha256 == want and result.connections == 1
        text = f"killed at {at / 1e6:.1f} MB; {result.bytes} bytes, longest stall {result.longest_stall:.2f} s"
        if not kept:
            text += f"; curl {result.returncode} {result.error}, sha256 {'right' if result.sha256 == want else 'WRONG'}"
        return kept, result.longest_stall, text


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="trials of each kind (20)")
    parser.add_argument("--kind", nargs="+", choices=("download", "upload"), default=["download", "upload"])
    parser.add_argument("--comparator", choices=("coloproxy", "stock"), default="coloproxy")
    parser.add_argument("--nic", choices=("e1000", "virtio"), default="e1000")
    parser.add_argument("--size", type=int, default=50_000_000, help="bytes of a transfer (50,000,000)")
    parser.add_argument("--limit-rate", help="as curl's, for example 20M")
    parser.add_argument("--seed", type=int, default=1, help="of the kill times (1)")
    parser.add_argument("--logs", type=Path, help="keep the logs of lost trials below this directory")
    arguments = parser.parse_args()

    lost_any = False
    for kind in arguments.kind:
        rng = random.Random(f"{arguments.seed} {kind}")
        kept: list[float] = []
        for number in range(1, arguments.count + 1):
            logs = arguments.logs / f"{kind}-{number}" if arguments.logs else None
            options = PairOptions(
                comparator=coloproxy_compare("--json-events", "-") if arguments.comparator == "coloproxy" else None,
                nic=arguments.nic,
                large_bytes=arguments.size,
                keep_logs=logs,
            )
            ok, stall, text = await trial(kind, options, arguments.size, rng, arguments.limit_rate)
            print(f"{arguments.comparator} {kind} {number}: {'kept' if ok else 'LOST'}: {text}", flush=True)
            if ok:
                kept.append(stall)
            else:
                lost_any = True
        line = f"{arguments.comparator} {arguments.nic} {kind}: kept {len(kept)} of {arguments.count}"
        if kept:
            line += f"; stall min/median/max {min(kept):.2f}/{statistics.median(kept):.2f}/{max(kept):.2f} s"
        print(line, flush=True)
    return 1 if lost_any and arguments.comparator == "coloproxy" else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
