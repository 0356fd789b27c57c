# SPDX-License-Identifier: Apache-2.0
"""A program of its own, run in the client's namespace: requests to dirtier.c in bursts; a JSON object in the end.

    python -m coloproxy.bench.burst_client --host 10.99.0.2 --port 7077 --seconds 9 --lull 1 --seed 1 --dirty 2000 16384

One connection; a burst is eight requests one after the other, of which the first and the fifth are answered
differently by the two VMs. Between two bursts there is nothing: `lull` seconds as a mean, spread as Poisson's. A lull
of 0: single requests, 5 ms apart, each 100th of which is answered differently.

    began               CLOCK_MONOTONIC, ns: before the first request
    same_ns, differ_ns  how long each request took whose answers are the same, and that whose answers differ
    errors              requests that were not answered, or wrongly; the program ends at the first
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import time
from io import BufferedRWPair

BURST = 8
DIFFERING = (0, 4)
STEADY_SECONDS = 0.005
STEADY_DIFFERS = 100


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--lull", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--dirty", nargs=2, metavar=("RATE", "PAGES"), required=True, help="first of all")
    options = parser.parse_args()
    times: dict[str, list[int]] = {"same": [], "differ": []}
    errors = 0
    with socket.create_connection((options.host, options.port), timeout=10) as sock, sock.makefile("rwb") as stream:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ask(stream, f"dirty {options.dirty[0]} {options.dirty[1]}")
        time.sleep(1.0)
        began = time.monotonic_ns()
        chance = random.Random(options.seed)
        until, number = time.monotonic() + options.seconds, 0
        while time.monotonic() < until and not errors:
            time.sleep(chance.expovariate(1 / options.lull) if options.lull else STEADY_SECONDS)
            for place in range(BURST if options.lull else 1):
                number += 1
                differs = place in DIFFERING if options.lull else number % STEADY_DIFFERS == 0
                kind = "differ" if differs else "same"
                begin = time.perf_counter_ns()
                answer = ask(stream, f"{kind} {number}")
                times[kind].append(time.perf_counter_ns() - begin)
                if not answer.startswith(f"{number} "):
                    errors += 1
                    break
    print(json.dumps({"began": began, "same_ns": times["same"], "differ_ns": times["differ"], "errors": errors}))


def ask(stream: BufferedRWPair, line: str) -> str:
    """One request and its answer; empty: none."""
    try:
        stream.write(f"{line}\n".encode())
        stream.flush()
        return stream.readline().decode().strip()
    except OSError:
        return ""


if __name__ == "__main__":
    main()
