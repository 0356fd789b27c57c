# SPDX-License-Identifier: Apache-2.0
"""The core's paths take no more instructions than their budgets; and the guard itself can fail.

bench/instructions.py says how it is counted, and how a budget is changed.
"""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

import instructions
from core.library import Built, Spec, Workload, build, run_driver
from instructions import Budgets, Toolchain, compare

HERE = Toolchain("gcc 12.2.0", "x86_64-linux-gnu")
BUDGETS = Budgets(HERE, {"parse": 100.0, "equal": 1000.0})

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("core"))


@needs_compiler
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="no valgrind")
def test_no_path_takes_more_instructions_than_its_budget(built: Built) -> None:
    budgets = instructions.read(instructions.BUDGETS.read_text(encoding="utf-8"))
    here = instructions.toolchain()
    if (why := instructions.loose_because(budgets, here)) is not None:
        warnings.warn(why, stacklevel=1)
    wrong = compare(instructions.count_all(built), budgets, here)
    assert not wrong, "\n".join(wrong)


@needs_compiler
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="no valgrind")
def test_more_work_is_more_instructions(built: Built) -> None:
    """What is counted is the core's work: secondary frames of half the length are twice as many to parse."""
    spec = Spec(length=64, frames=256)
    whole, halves = (instructions.count(one, built) for one in (spec, replace(spec, recut=32)))
    parse = instructions.count(replace(spec, kind="parse"), built)
    assert halves > whole + parse / 2
    assert whole > 2 * parse


@pytest.mark.parametrize(
    ("equal", "says"),
    [
        (1000.0, None),
        (1049.0, None),
        (1051.0, "MORE than 5% above"),
        (901.0, None),
        (899.0, "lower the budget"),
    ],
)
def test_a_budget_has_two_ends(equal: float, says: str | None) -> None:
    wrong = compare({"parse": 100.0, "equal": equal}, BUDGETS, HERE)
    if says is None:
        assert wrong == []
    else:
        (line,) = wrong
        assert line.startswith("equal: ")
        assert says in line
        assert instructions.UPDATE in line


def test_paths_and_budgets_are_the_same_set() -> None:
    assert ["has no budget" in line for line in compare({**BUDGETS.paths, "new": 1.0}, BUDGETS, HERE)] == [True]
    assert ["nothing is counted" in line for line in compare({"parse": 100.0}, BUDGETS, HERE)] == [True]
    recorded = instructions.read(instructions.BUDGETS.read_text(encoding="utf-8"))
    assert list(recorded.paths) == list(instructions.PATHS)


@pytest.mark.parametrize(
    "other", [Toolchain("gcc 13.3.0", HERE.machine), Toolchain(HERE.compiler, "aarch64-linux-gnu")]
)
def test_another_toolchain_is_judged_loosely_and_that_is_said(other: Toolchain) -> None:
    assert instructions.loose_because(BUDGETS, HERE) is None
    why = instructions.loose_because(BUDGETS, other)
    assert why is not None
    assert other.compiler in why
    assert compare({"parse": 30.0, "equal": 1990.0}, BUDGETS, other) == []
    (line,) = compare({"parse": 100.0, "equal": 2010.0}, BUDGETS, other)
    assert "MORE than 100% above" in line


def test_budgets_are_read_as_they_were_written() -> None:
    assert instructions.read(instructions.write(BUDGETS)) == BUDGETS


def test_only_lines_of_the_core_are_counted() -> None:
    text = """\
events: Ir
ob=/x/driver
fl=/top/csrc/tcp.c
fn=colo_tcp_feed
10 7
11 2
fi=/top/bench/core/workload.c
12 1000
fe=/top/csrc/tcp.c
13 1
cfi=/top/csrc/parse.c
cfn=colo_parse
calls=3 20
14 5000
15 4
cob=/lib/libc.so.6
cfi=???
cfn=memcmp
calls=1 0
16 6000

fl=???
fn=memcmp
0 6000

fl=/top/csrc/parse.c
fn=colo_parse
20 100
fl=/top/csrc.c
fn=main
1 9000
totals: 20000
"""
    assert instructions.own_instructions(text.splitlines(keepends=True), Path("/top/csrc")) == 7 + 2 + 1 + 4 + 100


@needs_compiler
@pytest.mark.parametrize(
    "spec",
    [
        Spec(frames=64),
        Spec(frames=64, flows=7, recut=1000),
        Spec(frames=256, skew=50_000),
        Spec(frames=64, kind="udp", flows=3),
        Spec(frames=64, kind="commit", flows=3),
        Spec(frames=64, kind="parse"),
        Spec(frames=64, kind="memory", evict=1 << 16),
        Spec(frames=64, kind="lookup", flows=64, burst=1),
        Spec(frames=8, burst=2, length=65160, vnet_len=12),
    ],
    ids=lambda spec: f"{spec.kind}-{spec.flows}-{spec.length}-{spec.recut}-{spec.skew}",
)
def test_every_workload_releases_all_frames_in_each_pass(spec: Spec, built: Built) -> None:
    with Workload(spec, built) as workload:
        for _ in range(3):
            workload.fill()
            workload.run()
        assert workload.frames >= spec.frames
        assert workload.bytes > workload.frames * spec.length


@needs_compiler
def test_the_driver_measures_what_flows_take(built: Built) -> None:
    few, many = (
        run_driver(Spec(flows=n, length=64, frames=n, burst=1), 1, built) for n in (1, 2000)
    )  # fmt: skip
    assert many["grown"] > few["grown"] + 2000 * 100
    with pytest.raises(ValueError, match="makes no sense"):
        Workload(Spec(flows=0), built)
