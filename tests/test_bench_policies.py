# SPDX-License-Identifier: Apache-2.0
"""`coloproxy bench policies`: its arithmetic and its command line by tables, and a short run with real guests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from coloproxy.bench.policies import SCHEMA, WORKS, Options, figures, is_whole, markdown, percentile
from coloproxy.cli.bench_policies import _COLUMNS, Work
from coloproxy.errors import MisuseError
from coloproxy.testbed import missing

BENCH = [sys.executable, "-P", "-m", "coloproxy", "bench"]


def run(*options: str, deadline: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BENCH, *options], capture_output=True, text=True, timeout=deadline, check=False)


# -------------------------------------------------------------------- pure


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 99, None), ([3], 50, 3), ([2, 1], 50, 1), ([3, 1, 2], 50, 2), ([*range(1, 101)], 99, 99), ([1, 2], 99, 2)],
)
def test_percentiles_are_of_the_nearest_rank(values: list[int], percent: int, expected: float | None) -> None:
    assert percentile([value * 1_000_000 for value in values], percent) == expected


def result(*pauses: tuple[list[str], int], errors: int = 0) -> dict[str, Any]:
    checkpoints = [{"causes": causes, "pause_ns": ms * 1_000_000} for causes, ms in pauses]
    return {"seconds": 30.0, "same_ns": [1_000_000] * 9, "differ_ns": [20_000_000], "errors": errors,
            "checkpoints": checkpoints}  # fmt: skip


def test_a_pause_that_nobody_waited_for_is_counted_apart() -> None:
    """QEMU's own period has no cause, a quiet moment one of its own; what has another cause too was waited for."""
    found = figures([result((["quiet"], 40), ([], 30), (["payload"], 10)), result((["quiet", "payload"], 20))])
    assert found["checkpoints_per_minute"] == 4
    assert found["quiet_per_minute"] == 1
    assert found["paused_percent"] == pytest.approx(100 * 0.1 / 60)
    assert (found["pause_p50_ms"], found["pause_max_ms"]) == (20, 40)
    assert (found["waited_p50_ms"], found["waited_max_ms"]) == (10, 20)
    assert (found["requests"], found["errors"], found["all_p50_ms"], found["all_p99_ms"]) == (20, 0, 1, 20)


def test_nothing_measured_is_no_figure() -> None:
    found = figures([])
    assert (found["requests"], found["errors"]) == (0, 0)
    assert {value for name, value in found.items() if name not in ("requests", "errors")} == {None}
    assert set(_COLUMNS) <= set(found)


def test_each_policy_has_a_name_of_its_own() -> None:
    made = Options(periods=(1000, 1500, 200), budgets=(2, 10)).policies()
    assert made == {
        "on demand": {},
        "fixed 1 s": {"period": "1000ms"},
        "fixed 1500 ms": {"period": "1500ms"},
        "fixed 200 ms": {"period": "200ms"},
        "adaptive 2 %": {"policy": "adaptive", "budget": 2},
        "adaptive 10 %": {"policy": "adaptive", "budget": 10},
    }


def test_the_commands_works_are_those_that_there_are() -> None:
    assert [work.value for work in Work] == list(WORKS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(comparator_options=("-v",)), "--attach filters"),
        (Options(periods=(200, 200)), "--period"),
        (Options(budgets=(5, 5)), "--budget"),
    ],
)
def test_what_contradicts_itself_is_refused(options: Options, said: str) -> None:
    with pytest.raises(MisuseError, match=said):
        options.check()


def entry(error: str | None, errors: int) -> dict[str, Any]:
    return {"error": error, "results": {"bursts-2000": result(errors=errors)}}


@pytest.mark.parametrize(("error", "errors", "whole"), [(None, 0, True), ("no VM", 0, False), (None, 1, False)])
def test_what_failed_is_told(error: str | None, errors: int, whole: bool) -> None:
    assert is_whole({"rounds": [entry(None, 0), entry(error, errors)]}) is whole


# ------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["policies", "--budget", "0"], "--budget"),
        (["policies", "--work", "none"], "--work"),
        (["policies", "--period", "200", "--period", "200"], "given twice"),
        (["policies", "--comparator-options", "'"], "No closing quotation"),
        (["policies", "--comparator-options", "--json-events"], "--attach filters"),
        (["--udp", "policies"], "behind it"),
        (["polices"], "No such command"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_started(options: list[str], said: str) -> None:
    done = run(*options)
    assert done.returncode == 2, done.stderr
    assert said in " ".join(done.stderr.replace("│", " ").split())


# ------------------------------------------------------------------ real guests


@pytest.mark.e2e
@pytest.mark.skipif(bool(missing()) or os.geteuid() != 0, reason="this machine lacks what the test bed needs")
def test_a_short_run_measures_each_policy() -> None:
    short = ["--rounds", "1", "--seconds", "2", "--work", "bursts-idle", "--period", "300"]
    done = run("policies", *short, "-J", deadline=600)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == SCHEMA
    assert list(document["policies"]) == ["on demand", "fixed 300 ms", "adaptive 5 %"]
    assert [entry["error"] for entry in document["rounds"]] == [None] * 3
    found = document["summary"]["bursts-idle"]
    assert all(row["requests"] > 0 and row["errors"] == 0 for row in found.values())
    assert found["fixed 300 ms"]["checkpoints_per_minute"] > 0
    assert len(markdown(document)) == 2 + 1 + 3
