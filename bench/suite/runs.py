# SPDX-License-Identifier: Apache-2.0
"""One measurement each: a run of the installed `coloproxy bench`, or of the core's driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, Final

from core.library import Built, Spec, run_driver
from suite.goals import Arm, figures

SPARE_S: Final = 120.0
"""So much longer than its traffic may a run take: 100,000 flows have to begin, what is held has to come out."""


SINKS: Final = ("verify", "count", "discard")
"""What the generator may do with what comes out."""


class BenchError(Exception):
    """A run gave no result."""


def bench_command(comparator: str, options: Sequence[str], *, seconds: float, omit: float, unix: bool) -> list[str]:
    """`coloproxy bench` of the package that is installed for this interpreter (-P: not what lies in a directory)."""
    return [
        *(sys.executable, "-P", "-m", "coloproxy", "bench", "--comparator", comparator),
        *(["--unix"] if unix else []),
        *options,
        *("-t", f"{seconds:g}", "-O", f"{omit:g}", "-i", "0", "-J"),
    ]


def run_bench(command: Sequence[str], seconds: float) -> dict[str, Any]:
    """Its JSON document. Raises BenchError."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    with tempfile.TemporaryDirectory() as nowhere:
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                cwd=nowhere,
                env=environment,
                timeout=seconds + SPARE_S,
            )
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"no end after {error.timeout:g} s") from error
    try:
        document: dict[str, Any] = json.loads(done.stdout)  # it is there although something was lost: status 1
    except ValueError as error:
        said = " ".join(done.stderr.split())[-300:]
        raise BenchError(f"exit status {done.returncode}: {said or 'no JSON'}") from error
    return document


BUFFERS: Final = ("--turn", "256K", "-w", "256K")
"""With which the generator costs least, and can drive the relay to its limit (docs/bench.md). The same for all."""


def measure_sockets(
    arm: Arm, options: Sequence[str], *, unix: bool, seconds: float, omit: float, sink: str
) -> dict[str, Any]:
    """One run: {work, comparator, command, error, figures}."""
    extra = () if "--request-response" in options else ("--sink", sink, *BUFFERS)
    command = bench_command(arm.comparator, [*options, *extra], seconds=seconds, omit=omit, unix=unix)
    run: dict[str, Any] = {**arm._asdict(), "command": command[3:], "error": None, "figures": {}}
    try:
        run["figures"] = figures(run_bench(command, seconds + omit))
    except BenchError as error:
        run["error"] = str(error)
    return run


def measure_process(arm: Arm, spec: Spec, passes: int, built: Built) -> dict[str, Any]:
    """The same of the core alone: the median of some passes in a process of their own."""
    run: dict[str, Any] = {**arm._asdict(), "command": None, "error": None, "figures": {}}
    try:
        got = run_driver(spec, passes, built)
    except RuntimeError as error:
        return run | {"error": str(error)}
    run["figures"] = {
        "gbit_per_second": got["gbit_per_s"],
        "ns_per_frame": got["ns_per_frame"],
        "frames_per_second": 1e9 / got["ns_per_frame"],
        "grown_bytes": got["grown"],
    }
    return run
