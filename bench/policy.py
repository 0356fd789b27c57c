# SPDX-License-Identifier: Apache-2.0
"""Checkpoint policies against each other, with real guests in COLO: on demand only, fixed periods, adaptive.

    python bench/policy.py [--rounds 3] [--seconds 20] [--budgets 5] [--attach tap] [--json FILE]
    python bench/policy.py --quick

Each round boots the guest anew for each policy, in an order that changes from round to round, and lets a client send
the same requests at the same times (real_guests/burst_client.py) to a guest that writes to so many pages a second
(real_guests/dirtier.c), one piece of work after the other. Pauses and what they were for are from coloproxy's journal
(docs/events.md). Percentiles are of all rounds together. Exit status 1: something couldn't be measured. Root, Debian.

What --json writes is one object:

    schema      "coloproxy-policy/1"
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

import argparse
import asyncio
import contextlib
import datetime
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from coloproxy.checkpoint_policy import QUIET
from coloproxy.demo.journal import JournalFollower
from coloproxy.errors import ColoproxyError
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
from coloproxy.testbed.guest_files import GUEST_IPV4
from coloproxy.testbed.pair_toml import PairFile
from coloproxy.testbed.tap_pair import TapOptions, TapPair
from real_guests import facts

SCHEMA: Final = "coloproxy-policy/1"
PORT: Final = 7077
AREA: Final = 16384  # pages: 64 MiB
Checkpoints = Mapping[str, str | int]
HERE: Final = Path(__file__).with_name("real_guests")

WORKS: Final[dict[str, tuple[str, int, float, float]]] = {
    # name: (title, pages a second, mean lull in seconds, part of --seconds)
    "bursts_2000": ("bursts, 1 s apart; 2,000 pages/s", 2000, 1.0, 1.0),
    "bursts_8000": ("bursts, 1 s apart; 8,000 pages/s", 8000, 1.0, 1.0),
    "bursts_idle": ("bursts, 1 s apart; the guest writes nothing else", 0, 1.0, 0.75),
    "steady_2000": ("a request each 5 ms, no lull; 2,000 pages/s", 2000, 0.0, 0.5),
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


def report(text: str) -> None:
    """A line of progress."""
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def policies(budgets: list[int]) -> dict[str, Checkpoints]:
    """By name, with the keys of pair.toml's `checkpoint` that make them."""
    return {
        "on demand": {},
        "fixed 1 s": {"period": "1000ms"},
        "fixed 200 ms": {"period": "200ms"},
        **{f"adaptive {budget} %": {"policy": "adaptive", "budget": budget} for budget in budgets},
    }


def addition() -> Addition:
    """The guest's program, built here."""
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "dirtier"
        argv = ["cc", "-O2", "-static", "-pthread", "-o", str(program), str(HERE / "dirtier.c")]
        subprocess.run(argv, check=True)
        files = {"usr/bin/dirtier": AddedFile(program.read_bytes(), 0o755)}
    return Addition(files, f"/usr/bin/dirtier {PORT} > /dev/null 2>&1 &\n")


async def measure_policy(
    more: Checkpoints, extra: Addition, number: int, options: argparse.Namespace
) -> dict[str, Any]:
    """All works with one policy. Raises TestbedError."""
    results: dict[str, Any] = {}
    async with contextlib.AsyncExitStack() as stack:
        bed, commits_of = await start_pair(stack, more, extra, options)
        for name in options.works:
            _, rate, lull, part = WORKS[name]
            seconds = options.seconds * part
            argv = [sys.executable, "-P", str(HERE / "burst_client.py"), "--host", GUEST_IPV4, "--port", str(PORT)]
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
    stack: contextlib.AsyncExitStack, more: Checkpoints, extra: Addition, options: argparse.Namespace
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
        argv = ["--json-events", str(endpoints.directory / "events.log"), *options.coloproxy_options]
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


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything; returns what --json writes."""
    began = datetime.datetime.now(datetime.UTC)
    await asyncio.to_thread(install_missing, report)
    extra = await asyncio.to_thread(addition)
    all_of_them = list(policies(options.budgets).items())
    rounds: list[dict[str, Any]] = []
    for number in range(1, options.rounds + 1):
        turn = (number - 1) % len(all_of_them)
        for name, more in (*all_of_them[turn:], *all_of_them[:turn]):
            entry: dict[str, Any] = {"round": number, "policy": name, "error": None, "results": {}}
            try:
                entry["results"] = await measure_policy(more, extra, number, options)
            except ColoproxyError as error:
                entry["error"] = str(error)
            report(f"round {number}, {name}: {entry['error'] or 'measured'}")
            rounds.append(entry)
    return {
        "schema": SCHEMA,
        "began": began.isoformat(timespec="seconds"),
        "machine": facts.machine(),
        "versions": await asyncio.to_thread(facts.versions),
        "parameters": {name: getattr(options, name) for name in ("attach", "rounds", "seconds", "coloproxy_options")},
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


def table(document: dict[str, Any]) -> list[str]:
    """Markdown: a row for each work and policy."""
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for work, title in document["works"].items():
        lines.append(f"| **{title}** |" + " |" * len(COLUMNS))
        for policy, row in document["summary"][work].items():
            cells = ["-" if row[name] is None else f"{row[name]:.3g}" for name in COLUMNS]
            lines.append(f"| {policy} | " + " | ".join(cells) + " |")
    return lines


def main() -> int:
    """Measures, prints the table, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="(3; quick: 1)")
    parser.add_argument("--seconds", type=float, help="of each piece of work (20; quick: 3)")
    parser.add_argument("--budgets", type=int, nargs="+", default=[5], help="of adaptive, in percent (5)")
    parser.add_argument("--works", nargs="+", choices=list(WORKS), default=list(WORKS), help="(all)")
    parser.add_argument("--coloproxy-options", type=str.split, default=[], metavar="TEXT", help="for coloproxy compare")
    parser.add_argument("--attach", choices=("filters", "tap"), default="tap", help="QEMU's filters, or TAP (tap)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: its figures are no figures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (3.0 if options.quick else 20.0)
    try:
        document = asyncio.run(measure(options))
    except (ColoproxyError, subprocess.CalledProcessError) as error:
        print(f"policy.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for line in table(document):
        print(line)
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    wrong = [r for r in document["rounds"] if r["error"] or any(x["errors"] for x in r["results"].values())]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
