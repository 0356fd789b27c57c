# SPDX-License-Identifier: Apache-2.0
"""Checkpoint policies against each other, with real guests in COLO: on demand only, fixed periods, adaptive.

Each round boots the guest anew for each policy, in an order that changes from round to round, and lets a client send
the same requests at the same times (burst_client.py) to a guest that writes to so many pages a second (dirtier.c), one
piece of work after the other. Pauses and what they were for are from coloproxy's journal (docs/events.md). Percentiles
are of all rounds together. The document that `measure()` returns:

    schema      "coloproxy-policies/1"
    began       RFC 3339
    machine, versions, parameters
    works       {work: title}, in order
    policies    {policy: keys of pair.toml's `checkpoint`}
    rounds      a list of {round, policy, error, results: {work: {seconds, same_ns, differ_ns, errors, checkpoints}}};
                checkpoints: [{causes, pause_ns}, ...]
    summary     {work: {policy: {figure: number or null}}}

Figures: checkpoints_per_minute, of these quiet_per_minute; paused_percent of the time; pause_{p50,p90,p99,max}_ms of
all; waited_{p50,p90,p99,max}_ms: of the pauses that somebody waited for (any cause but quiet and QEMU's period);
differ_{p50,p90,p99,max}_ms: requests whose answers differ; all_{p50,p99,max}_ms: all requests; requests, errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from coloproxy.bench.facts import machine, versions
from coloproxy.checkpoint_policy import QUIET
from coloproxy.demo.journal import JournalFollower
from coloproxy.errors import ColoproxyError, MisuseError
from coloproxy.testbed import (
    AddedFile,
    Addition,
    Endpoints,
    PairOptions,
    TestBed,
    VmPair,
    colo,
    coloproxy_compare,
    install_missing,
)
from coloproxy.testbed.errors import TestbedError
from coloproxy.testbed.guest_files import GUEST_IPV4
from coloproxy.testbed.pair_toml import PairFile
from coloproxy.testbed.tap_pair import TapOptions, TapPair

SCHEMA: Final = "coloproxy-policies/1"
PORT: Final = 7077
AREA: Final = 16384  # pages: 64 MiB
Checkpoints = Mapping[str, str | int]
Document = dict[str, Any]
Tell = Callable[[str], None]
_PROGRAM: Final = Path(__file__).with_name("dirtier.c")
_CLIENT: Final = "coloproxy.bench.burst_client"

WORKS: Final[dict[str, tuple[str, int, float, float]]] = {
    # name: (title, pages a second, mean lull in seconds, part of the seconds)
    "bursts-2000": ("bursts, 1 s apart; 2,000 pages/s", 2000, 1.0, 1.0),
    "bursts-8000": ("bursts, 1 s apart; 8,000 pages/s", 8000, 1.0, 1.0),
    "bursts-idle": ("bursts, 1 s apart; the guest writes nothing else", 0, 1.0, 0.75),
    "steady-2000": ("a request each 5 ms, no lull; 2,000 pages/s", 2000, 0.0, 0.5),
}
COLUMNS: Final = {
    "checkpoints_per_minute": "checkpoints / min",
    "quiet_per_minute": "... quiet",
    "paused_percent": "paused, %",
    "pause_p50_ms": "pause p50, ms",
    "pause_p99_ms": "p99",
    "pause_max_ms": "max",
    "waited_p50_ms": "waited for: p50, ms",
    "waited_p90_ms": "p90",
    "waited_p99_ms": "p99",
    "differ_p50_ms": "requests that differ: p50, ms",
    "differ_p90_ms": "p90",
    "differ_p99_ms": "p99",
    "all_p50_ms": "all requests: p50, ms",
    "all_p99_ms": "p99",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is measured."""

    rounds: int = 3
    seconds: float = 20.0
    """Of each piece of work, or a part of it (WORKS)."""
    periods: tuple[int, ...] = (1000, 200)
    """Of the fixed policies, in ms."""
    budgets: tuple[int, ...] = (5,)
    """Of the adaptive ones, in percent."""
    works: tuple[str, ...] = tuple(WORKS)
    attach: Literal["tap", "filters"] = "tap"
    comparator_options: tuple[str, ...] = ()
    """More for `coloproxy compare`: attach = "filters"."""

    def check(self) -> None:
        """Raises MisuseError."""
        if self.comparator_options and self.attach != "filters":
            raise MisuseError("--comparator-options are those of coloproxy compare: with --attach filters only")
        for values, option in ((self.periods, "--period"), (self.budgets, "--budget"), (self.works, "--work")):
            if len(set(values)) != len(values):
                raise MisuseError(f"{option}: one of them is given twice")

    def policies(self) -> dict[str, Checkpoints]:
        """By name, with the keys of pair.toml's `checkpoint` that make them."""
        return {
            "on demand": {},
            **{f"fixed {_period(period)}": {"period": f"{period}ms"} for period in self.periods},
            **{f"adaptive {budget} %": {"policy": "adaptive", "budget": budget} for budget in self.budgets},
        }


def _period(milliseconds: int) -> str:
    return f"{milliseconds} ms" if milliseconds % 1000 else f"{milliseconds // 1000} s"


def addition() -> Addition:
    """The guest's program, built here. Raises TestbedError."""
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "dirtier"
        argv = ["cc", "-O2", "-static", "-pthread", "-o", str(program), str(_PROGRAM)]
        try:
            subprocess.run(argv, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            why = getattr(error, "stderr", "") or error
            raise TestbedError(f"the guest's program can't be built: {why}") from error
        files = {"usr/bin/dirtier": AddedFile(program.read_bytes(), 0o755)}
    return Addition(files, f"/usr/bin/dirtier {PORT} > /dev/null 2>&1 &\n")


async def measure_policy(more: Checkpoints, extra: Addition, number: int, options: Options) -> dict[str, Any]:
    """All works with one policy. Raises TestbedError."""
    results: dict[str, Any] = {}
    async with contextlib.AsyncExitStack() as stack:
        bed, commits_of = await start_pair(stack, more, extra, options)
        for name in options.works:
            _, rate, lull, part = WORKS[name]
            seconds = options.seconds * part
            argv = [sys.executable, "-P", "-m", _CLIENT, "--host", GUEST_IPV4, "--port", str(PORT)]
            argv += ["--seconds", str(seconds), "--lull", str(lull), "--seed", str(number)]
            argv += ["--dirty", str(rate), str(AREA)]
            done = (await bed.client.run(*argv, deadline=4 * seconds + 30)).check()
            result, ended = json.loads(done.stdout), time.monotonic_ns()
            began = result.pop("began")
            await asyncio.sleep(0.5)
            commits = [record for record in commits_of() if began <= record["monotonic_ns"] <= ended]
            results[name] = {
                "seconds": (ended - began) / 1e9,
                **result,
                "checkpoints": [{"causes": r["causes"], "pause_ns": r["stop_to_resume_ns"]} for r in commits],
            }
    return results


async def start_pair(
    stack: contextlib.AsyncExitStack, more: Checkpoints, extra: Addition, options: Options
) -> tuple[TestBed, Callable[[], list[dict[str, Any]]]]:
    """A protected pair with that policy, and what reads the journal's committed checkpoints."""
    kind = "checkpoint-committed"
    if options.attach == "tap":
        file = PairFile(checkpoint={"back_end": "qmp", **more})
        tap = await stack.enter_async_context(TapPair(TapOptions(file=file, addition=extra, large_bytes=100_000)))
        await tap.start_colo()
        if period := more.get("period"):  # the bed has set another one
            delay = int(str(period).removesuffix("ms"))
            await tap.primary.control.execute("migrate-set-parameters", {"x-checkpoint-delay": delay})
        return tap, lambda: tap.journal("primary", kind)

    def command(endpoints: Endpoints) -> Sequence[str]:
        argv = ["--json-events", str(endpoints.directory / "events.log"), *options.comparator_options]
        for key, value in more.items():
            argv += [f"--checkpoint-{key}", str(value).removesuffix("ms")]
        return coloproxy_compare(*argv)(endpoints)

    delay = int(str(more.get("period", colo.ON_DEMAND)).removesuffix("ms"))
    pair = await stack.enter_async_context(
        VmPair(PairOptions(command, addition=extra, checkpoint_delay=delay, large_bytes=100_000))
    )
    await pair.start_colo()
    journal = JournalFollower(pair.directory / "events.log", lambda _: None)
    await journal.wait("protected", 0, 30.0)

    def commits() -> list[dict[str, Any]]:
        journal.poll()
        return [record for record in journal.records if record["event"] == kind]

    return pair, commits


async def measure(options: Options, tell: Tell) -> Document:
    """Everything; see the module. A policy that can't be measured in a round is told in it.

    tell: of the progress, a line each. Raises MisuseError, TestbedError: nothing can be measured here.
    """
    options.check()
    began = datetime.datetime.now(datetime.UTC)
    await asyncio.to_thread(install_missing, tell)
    extra = await asyncio.to_thread(addition)
    all_of_them = list(options.policies().items())
    rounds: list[dict[str, Any]] = []
    for number in range(1, options.rounds + 1):
        turn = (number - 1) % len(all_of_them)
        for name, more in (*all_of_them[turn:], *all_of_them[:turn]):
            entry: dict[str, Any] = {"round": number, "policy": name, "error": None, "results": {}}
            try:
                entry["results"] = await measure_policy(more, extra, number, options)
            except ColoproxyError as error:
                entry["error"] = str(error)
            tell(f"round {number}, {name}: {entry['error'] or 'measured'}")
            rounds.append(entry)
    return {
        "schema": SCHEMA,
        "began": began.isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": await asyncio.to_thread(versions),
        "parameters": {name: getattr(options, name) for name in ("attach", "rounds", "seconds", "comparator_options")},
        "works": {name: WORKS[name][0] for name in options.works},
        "policies": dict(all_of_them),
        "rounds": rounds,
        "summary": {
            work: {name: figures([r["results"][work] for r in rounds if r["policy"] == name and work in r["results"]])
                   for name, _ in all_of_them}
            for work in options.works
        },
    }  # fmt: skip


def figures(results: list[dict[str, Any]]) -> dict[str, float | None]:
    """Of all rounds of one policy and work."""
    minutes = sum(result["seconds"] for result in results) / 60
    checkpoints = [c for result in results for c in result["checkpoints"]]
    pauses = {
        "pause": [c["pause_ns"] for c in checkpoints],
        "waited": [c["pause_ns"] for c in checkpoints if c["causes"] and c["causes"] != [QUIET]],
        "differ": [ns for result in results for ns in result["differ_ns"]],
        "all": [ns for result in results for ns in (*result["differ_ns"], *result["same_ns"])],
    }
    out: dict[str, float | None] = {
        "checkpoints_per_minute": len(checkpoints) / minutes if minutes else None,
        "quiet_per_minute": sum(c["causes"] == [QUIET] for c in checkpoints) / minutes if minutes else None,
        "paused_percent": sum(pauses["pause"]) / minutes / 6e8 if minutes else None,
        "requests": len(pauses["all"]),
        "errors": sum(result["errors"] for result in results),
    }
    for kind, values in pauses.items():
        for percent in (50, 90, 99, 100):
            name = "max" if percent == 100 else f"p{percent}"
            out[f"{kind}_{name}_ms"] = percentile(values, percent)
    return out


def percentile(values: list[int], percent: int) -> float | None:
    """Nearest rank, in ms."""
    if not values:
        return None
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)] / 1e6


def is_whole(document: Document) -> bool:
    """Everything was measured, and each request was answered rightly."""
    return not any(
        entry["error"] or any(result["errors"] for result in entry["results"].values()) for entry in document["rounds"]
    )


def markdown(document: Document) -> list[str]:
    """A table: a row for each work and policy."""
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for work, title in document["works"].items():
        lines.append(f"| **{title}** |" + " |" * len(COLUMNS))
        for policy, row in document["summary"][work].items():
            cells = ["-" if row[name] is None else f"{row[name]:.3g}" for name in COLUMNS]
            lines.append(f"| {policy} | " + " | ".join(cells) + " |")
    return lines
