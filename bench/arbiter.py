# SPDX-License-Identifier: Apache-2.0
"""How long a claim takes with a real etcd on this machine's loopback: its own process, data on disk.

    python bench/arbiter.py [--claims 500] [--members 1] [--directory DIR]

Three kinds, in milliseconds (min, p50, p99, max):

    won           the claim is won: a look at the key and a transaction, which etcd writes to disk
    won, anew     the same with a new connection each time, as after a partition
    lost          the other host asks afterwards: a look at the key only

The directory decides much: etcd answers when its log is on disk. Network round trips come on top: two a won claim, and
one more for a new connection (TLS: two).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from coloproxy.arbiter import Claim, EtcdArbiter, EtcdOptions, Verdict
from coloproxy.errors import ColoproxyError
from coloproxy.testbed.etcd import Etcd, loopback_members

PAIR = "bench"


async def measure(claims: int, members: int, directory: Path) -> dict[str, list[float]]:
    """Seconds of each claim, by kind. Raises ColoproxyError."""
    where = loopback_members(members)
    servers = [Etcd(one, where, directory / one.name) for one in where]
    try:
        for server in servers:
            await server.start()
        for server in servers:
            await server.wait_ready()
        options = EtcdOptions(tuple(server.url for server in servers), deadline_s=30.0)
        return await _claims(claims, options)
    finally:
        for server in servers:
            await server.kill()


async def _claims(claims: int, options: EtcdOptions) -> dict[str, list[float]]:
    took: dict[str, list[float]] = {"won": [], "won, anew": [], "lost": []}
    winner, loser = EtcdArbiter(options), EtcdArbiter(options)
    if not await winner.record(PAIR, "a", 1):
        raise ColoproxyError("the first record was not made")
    for generation in range(2, 2 * claims + 2):
        kept = generation % 2 == 0
        fresh = winner if kept else EtcdArbiter(options)
        began = time.perf_counter()
        ruling = await fresh.claim(Claim(PAIR, "a", "primary", generation))
        took["won" if kept else "won, anew"].append(time.perf_counter() - began)
        if ruling.verdict is not Verdict.WON:
            raise ColoproxyError(f"a claim was not won: {ruling.reason}")
        if not kept:
            await fresh.close()
            continue
        began = time.perf_counter()
        ruling = await loser.claim(Claim(PAIR, "b", "secondary", generation))
        took["lost"].append(time.perf_counter() - began)
        if ruling.verdict is not Verdict.LOST:
            raise ColoproxyError(f"a claim was not lost: {ruling.reason}")
    await winner.close()
    await loser.close()
    return took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--claims", type=int, default=500, help="of each kind")
    parser.add_argument("--members", type=int, default=1, help="of the cluster")
    parser.add_argument("--directory", type=Path, help="for etcd's data; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        try:
            took = asyncio.run(measure(options.claims, options.members, Path(directory)))
        except ColoproxyError as error:
            print(error, file=sys.stderr)
            return 1
    print(f"{'':12}{'claims':>8}{'min':>9}{'p50':>9}{'p99':>9}{'max':>9}   ms")
    for kind, seconds in took.items():
        ms = sorted(1000 * one for one in seconds)
        marks = (ms[0], ms[len(ms) // 2], ms[min(len(ms) - 1, len(ms) * 99 // 100)], ms[-1])
        print(f"{kind:12}{len(ms):8}" + "".join(f"{mark:9.2f}" for mark in marks))
    return 0


if __name__ == "__main__":
    sys.exit(main())
