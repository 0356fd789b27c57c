# SPDX-License-Identifier: Apache-2.0
"""Instructions that the core takes a frame, by callgrind, against recorded budgets: a speed test for noisy machines.

    python bench/instructions.py            counts, and compares with bench/core/budgets.toml (exit status 1: not kept)
    python bench/instructions.py --update   counts, and writes the counts there as the new budgets

Counted is what workload_pass runs of code whose source is in csrc/. The C library's memcmp and memcpy are not: which
variant of these runs is chosen by the CPU, and valgrind knows others than the CPU has; nor is the workload's own code,
so that a better workload needs no new budgets. What is left is the same to the last digit in each run, as long as
compiler, flags and code are the same. It says nothing of caches, of the bytes that are compared, or of time: those
are what `make bench` measures.

Budgets hold for one compiler. With another one, or on another architecture, a path only fails when it takes more than
twice its budget, and that is said.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from core.library import TOP, Built, Spec, build, compiler, driver_command

BUDGETS: Final = TOP / "bench" / "core" / "budgets.toml"
UPDATE: Final = "python bench/instructions.py --update"
ABOVE: Final = 1.05
BELOW: Final = 0.90
ABOVE_ELSEWHERE: Final = 2.0
PASSES: Final = 2

_SMALL: Final = Spec(length=64, frames=1024)
PATHS: Final[Mapping[str, Spec]] = {
    "parse": replace(_SMALL, kind="parse"),
    "equal_64": _SMALL,
    "equal_1448": replace(_SMALL, length=1448),
    "recut_1448_1000": replace(_SMALL, length=1448, recut=1000),
    "equal_64_flows": replace(_SMALL, flows=64),
    "skew_64k": replace(_SMALL, length=1448, skew=65536),
    "datagrams_64": replace(_SMALL, kind="udp"),
    "hold_and_commit": replace(_SMALL, kind="commit"),
}
"""Small workloads: callgrind is fifty times slower than the CPU."""


@dataclass(frozen=True, slots=True)
class Toolchain:
    """What decides, with the source, which instructions there are."""

    compiler: str
    machine: str


@dataclass(frozen=True, slots=True)
class Budgets:
    """Instructions a primary frame, and the toolchain they hold for."""

    made_with: Toolchain
    paths: Mapping[str, float]


def toolchain() -> Toolchain:
    """This machine's."""

    def said(option: str) -> str:
        return subprocess.run([compiler(), option], capture_output=True, text=True, check=True).stdout.strip()

    family = "clang" if "clang" in said("--version") else "gcc"
    return Toolchain(
        f"{family} {said('-dumpfullversion' if family == 'gcc' else '-dumpversion')}", said("-dumpmachine")
    )


# ------------------------------------------------------------------- counting


def own_instructions(lines: Iterable[str], directory: Path) -> int:
    """Instructions of the code whose source lies in `directory`, of a callgrind file with neither kind of compression.

    A cost line belongs to the file named last, by fl=, fi= or fe= (inlined code has its own); the line after calls= is
    what was called, which has lines of its own.
    """
    prefix = f"{directory}/"
    total, ours, called = 0, False, False
    for line in lines:
        head, equals, value = line.partition("=")
        if equals:
            if head in ("fl", "fi", "fe"):
                ours = value.strip().startswith(prefix)
            called = head == "calls"
        elif line[:1].isdigit():
            if ours and not called:
                total += int(line.split()[1])
            called = False
    return total


def count(spec: Spec, built: Built) -> float:
    """Instructions a primary frame. Raises RuntimeError."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "callgrind.out"
        command = [
            "valgrind",
            "--tool=callgrind",
            "--toggle-collect=workload_pass",
            "--compress-strings=no",
            "--compress-pos=no",
            f"--callgrind-out-file={out}",
            *driver_command(spec, PASSES, built),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}:\n{done.stderr}")
        with out.open(encoding="utf-8", errors="replace") as lines:
            total = own_instructions(lines, TOP / "csrc")
    if not total:
        raise RuntimeError("callgrind counted nothing: was the driver built with -g?")
    return total / ((PASSES + 1) * spec.frames)  # and the driver's own, to warm up


def count_all(built: Built, paths: Mapping[str, Spec] = PATHS) -> dict[str, float]:
    """Each path's count."""
    return {name: round(count(spec, built), 2) for name, spec in paths.items()}


# ------------------------------------------------------------------ comparing


def compare(counts: Mapping[str, float], budgets: Budgets, here: Toolchain) -> list[str]:
    """What is wrong, a line each; empty: all budgets are kept."""
    same = here == budgets.made_with
    above = ABOVE if same else ABOVE_ELSEWHERE
    wrong = [f"{name}: has no budget. To record it: {UPDATE}" for name in counts if name not in budgets.paths]
    wrong += [f"{name}: has a budget, but nothing is counted. {UPDATE}" for name in budgets.paths if name not in counts]
    for name, got in counts.items():
        budget = budgets.paths.get(name)
        if budget is None:
            continue
        told = f"{name}: {got:.1f} instructions a frame, budget {budget:.1f} ({got / budget - 1:+.1%})"
        if got > budget * above:
            wrong.append(f"{told}: MORE than {above - 1:.0%} above it. If it must be so, say why and run: {UPDATE}")
        elif same and got < budget * BELOW:
            wrong.append(f"{told}: FASTER, good; now lower the budget, so that it stays so: {UPDATE}")
    return wrong


def loose_because(budgets: Budgets, here: Toolchain) -> str | None:
    """Why budgets are compared loosely here; None: they are not."""
    if here == budgets.made_with:
        return None
    made = budgets.made_with
    return (
        f"budgets are {made.compiler}'s for {made.machine}, here is {here.compiler} for {here.machine}: "
        f"only paths that take more than {ABOVE_ELSEWHERE:g} times their budget fail"
    )


def read(text: str) -> Budgets:
    """Of budgets.toml."""
    document = tomllib.loads(text)
    return Budgets(Toolchain(**document["made_with"]), document["instructions_per_frame"])


def write(budgets: Budgets) -> str:
    """budgets.toml."""
    made = budgets.made_with
    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        f"# Instructions of csrc/ for each primary frame. Written by: {UPDATE}",
        "",
        "[made_with]",
        f'compiler = "{made.compiler}"',
        f'machine = "{made.machine}"',
        "",
        "[instructions_per_frame]",
        *(f"{name} = {value:.2f}" for name, value in budgets.paths.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Counts, prints, and compares or writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="make the counts the budgets")
    options = parser.parse_args()
    here = toolchain()
    before = read(BUDGETS.read_text(encoding="utf-8")) if BUDGETS.exists() else Budgets(here, {})
    counts = count_all(build())
    for name, got in counts.items():
        budget = before.paths.get(name)
        print(
            f"{name:20} {got:10.2f}" + ("" if budget is None else f"   budget {budget:10.2f}  {got / budget - 1:+.1%}")
        )
    if options.update:
        BUDGETS.write_text(write(Budgets(here, counts)), encoding="utf-8")
        print(f"wrote {BUDGETS.relative_to(TOP)}: commit it, and say why it changed")
        return 0
    if (why := loose_because(before, here)) is not None:
        print(why)
    wrong = compare(counts, before, here)
    print("\n".join(wrong) if wrong else "all budgets are kept")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
