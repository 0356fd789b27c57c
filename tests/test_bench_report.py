# SPDX-License-Identifier: Apache-2.0
"""bench/: which goals there are and when they are met; tables, plots and the page, from made-up documents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import report
import scaling
from suite import goals, machine, plot, runs, tables
from suite.goals import MEMORY, OURS, RELAY, ROWS, STOCK, WORKS, Arm
from suite.tap_tables import tap_tables

TOP = Path(__file__).resolve().parent.parent


def run_of(number: int, arm: Arm, **figures: Any) -> dict[str, Any]:
    return {"round": number, **arm._asdict(), "command": [], "error": None, "figures": {"lost_frames": 0, **figures}}


def runs_of(row: str, ours: list[float], theirs: list[float], **more: Any) -> list[dict[str, Any]]:
    of = ROWS[row]
    found = [run_of(n, of.ours, **({of.figure: value} | more)) for n, value in enumerate(ours)]
    return found + [run_of(n, of.against, **{of.figure: value}) for n, value in enumerate(theirs)]


# ---------------------------------------------------------------------- goals


def test_the_goals_are_the_issues() -> None:
    found = {
        (row.ours.work, row.against.comparator if row.against.work == row.ours.work else "own", row.figure): row.goal
        for row in ROWS.values()
        if row.goal is not None
    }
    throughput = "frames_per_second"
    assert found == {
        ("1448x1", STOCK, throughput): 10,
        ("1448x64", STOCK, throughput): 10,
        ("64x64", STOCK, throughput): 30,
        ("1448x1", RELAY, throughput): 0.85,
        ("1448x64", RELAY, throughput): 0.85,
        ("1448x1000", "own", throughput): 0.8,
        ("1448x100000", "own", throughput): 0.8,
        ("recut", "own", throughput): 0.7,
        ("skew", "own", throughput): 0.7,
        ("tso", RELAY, throughput): 0.9,
        ("process", MEMORY, "gbit_per_second"): 0.5,
        ("request", STOCK, "latency_p50_us"): 0.5,
        ("request", STOCK, "latency_p99_us"): 0.5,
        ("1448x1", STOCK, "cpu_seconds_per_gb"): 0.1,
        ("1448x64", STOCK, "cpu_seconds_per_gb"): 0.1,
    }


def test_a_ratio_is_that_of_the_medians_and_its_spread_that_of_the_rounds() -> None:
    row = goals.judge("stock-1448x1", runs_of("stock-1448x1", [100, 300, 110], [10, 20, 11]))
    assert row["ours"] == {"median": 110, "min": 100, "max": 300, "rounds": 3}
    assert row["theirs"]["median"] == 11
    assert (row["ratio"], row["ratio_min"], row["ratio_max"]) == (10, 10, 15)
    assert row["met"] is True
    assert row["against"] == "stock colo-compare"


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "met"),
    [
        ("stock-1448x1", 99, 10, False),
        ("relay-1448x1", 85, 100, True),
        ("relay-1448x1", 84, 100, False),
        ("latency-p50", 50, 100, None),
        ("cpu-1448x1", 0.51, 5, False),
        ("cpu-1448x1", 0.5, 5, True),
        ("process", 40, 80, True),
        ("process", 39, 50, False),  # the ratio would do, the figure itself doesn't
        ("unix-stock-1448x1", 99, 1, None),
    ],
)
def test_when_a_goal_is_met(name: str, ours: float, theirs: float, met: bool | None) -> None:
    assert goals.judge(name, runs_of(name, [ours], [theirs]))["met"] is met


@pytest.mark.parametrize(("ours", "met"), [(24.0, True), (31.0, False)])
def test_what_both_have_in_common_is_taken_from_both(ours: float, met: bool) -> None:
    hops = [run_of(n, Arm("request", RELAY), latency_p50_us=20.0 + n) for n in (0, 1)]
    measured = runs_of("added-p50", [ours, ours + 1, 99.0], [40.0, 41.0, 1.0])  # no hops of the third round
    row = goals.judge("added-p50", measured + hops)
    assert (row["ours"]["median"], row["theirs"]["median"], row["met"]) == (ours - 20, 20, met)
    assert goals.judge("added-p50", measured)["met"] is None
    assert Arm("request", RELAY) in goals.arms(["added-p50"])


@pytest.mark.parametrize(("lost", "met", "note"), [(0, True, []), (3, False, ["lost 3 frames"]), (None, False, None)])
def test_where_nothing_may_be_lost(lost: int | None, met: bool, note: list[str] | None) -> None:
    row = goals.judge("flows-1000", runs_of("flows-1000", [100, 90], [100, 100], lost_frames=lost))
    assert row["met"] is met
    assert row["notes"] == (["lost frames: unknown"] if note is None else note)


def test_a_figure_that_is_missing_is_no_verdict() -> None:
    of = ROWS["stock-64x64"]
    ours = run_of(0, of.ours, frames_per_second=5.0)
    failed = {**run_of(0, of.against), "error": "exit status 2: no QEMU", "figures": {}}
    row = goals.judge("stock-64x64", [ours, failed])
    assert (row["ratio"], row["met"], row["theirs"]) == (None, None, None)
    assert row["notes"] == ["stock colo-compare: exit status 2: no QEMU"]
    assert "not measured" in tables.markdown(tables.goals_table([row]))


def test_every_row_is_known_and_every_round_has_every_arm_once() -> None:
    wanted = goals.arms(ROWS)
    assert len(set(wanted)) == len(wanted)
    assert all(arm.work in WORKS and arm.comparator in goals.NAMES for arm in wanted)
    assert all(row.figure in goals.FIGURES for row in ROWS.values())
    orders = [goals.order(wanted, number) for number in range(8)]
    assert all(sorted(one) == sorted(wanted) for one in orders)
    assert len({tuple(one) for one in orders}) == 8
    assert goals.order([], 3) == []


def test_figures_of_a_document_with_and_without_everything() -> None:
    full = {
        "start": {"test_start": {"blksize": 250}},
        "end": {
            "cpu_utilization_percent": {"remote_total": 90.0, "host_total": 80.0},
            "coloproxy": {
                "frames": {"per_second": 1e6},
                "lost_frames": 2,
                "latency_us": {"p50": 10.0, "p99": 20.0},
                "cpu_seconds_per_gb": 0.5,
                "checkpoints": 0,
                "faults": ["corrupt"],
            },
        },
    }
    assert goals.figures(full) == {
        "frames_per_second": 1e6,
        "gbit_per_second": 2.0,
        "latency_p50_us": 10.0,
        "latency_p99_us": 20.0,
        "cpu_seconds_per_gb": 0.5,
        "cpu_percent_comparator": 90.0,
        "cpu_percent_generator": 80.0,
        "lost_frames": 2,
        "checkpoints": 0,
        "faults": ["corrupt"],
    }
    for less in ({}, {"end": None}, {"end": {"coloproxy": {"latency_us": None, "frames": {}}}}):
        assert {value for name, value in goals.figures(less).items() if name != "faults"} == {None}


def test_a_run_that_fails_says_why() -> None:
    with pytest.raises(runs.BenchError, match="exit status 3: broken"):
        runs.run_bench([sys.executable, "-c", "import sys; sys.stderr.write('broken'); sys.exit(3)"], 1)
    # Frames were lost: status 1, and a document all the same.
    assert runs.run_bench([sys.executable, "-c", "print('{\"end\": 1}'); exit(1)"], 1) == {"end": 1}


def test_the_installed_package_is_what_is_run() -> None:
    command = runs.bench_command(OURS, ["-P", "1"], seconds=1, omit=0.5, unix=True)
    assert command[:5] == [sys.executable, "-P", "-m", "coloproxy", "bench"]
    assert "--unix" in command


# --------------------------------------------------------------- the machine


def test_the_machines_facts() -> None:
    found = machine.heading("x/1", {"rounds": 1})
    assert found["machine"]["cpus"] >= 1
    assert found["machine"]["memory"] > 1 << 20
    assert found["versions"]["python"].startswith("3.")
    assert machine.last_cache() >= 1 << 16


# ------------------------------------------------------------ tables and page


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (7, "7"),
        (1234, "1,234"),
        (1_204_567.0, "1,205,000"),
        (12.34, "12.3"),
        (1.234, "1.23"),
        (0.0312, "0.031"),
        (0.0, "0"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert tables.number(value) == text


def scaling_document() -> dict[str, Any]:
    series = {
        "flows": {
            "title": "Flows",
            "x": "flows",
            "figure": "ns",
            "unit": "ns a frame",
            "lines": {"a": "A & B", "b": "C"},
        }
    }
    points = [
        {"round": n, "series": "flows", "line": line, "x": x, "error": None, "figures": {"ns": float(x + n)}}
        for n in range(3)
        for line in "ab"
        for x in (1, 10, 100)
        if (line, x) != ("b", 100)
    ]
    failed = {"round": 0, "series": "flows", "line": "b", "x": 100, "error": "it <broke>", "figures": {}}
    return {
        "series": series,
        "runs": [*points, failed],
        "parameters": {"quick": True},
        "machine": {},
        "versions": {},
    }


def tap_document() -> dict[str, Any]:
    rate = {"median": 100.0, "min": 90.0, "max": 110.0, "count": 2}
    result = {"error": None, "figures": {"checkpoints": 3}}
    failed = {"error": "no answer", "figures": {}}
    return {
        "parameters": {
            "rounds": 2,
            "seconds": 1,
            "requests": 40,
            "quick": False,
            "ratios": ["alone/bridged", "x/alone"],
        },
        "cells": {"tap-whole": "tap, no offloads"},
        "ways": {"bridged": "no proxy", "alone": "coloproxy", "never": "not measured"},
        "works": {"up": "upload", "none": "never run"},
        "figures": {"mbit_per_second": "Mbit/s", "p50_ms": "p50, ms", "p99_ms": "p99, ms", "cpu_s_per_gb": "CPU s/GB"},
        "rounds": [
            {"round": 1, "cell": "tap-whole", "way": "alone", "error": None, "results": {"up": result}},
            {"round": 2, "cell": "tap-whole", "way": "alone", "error": "broken", "results": {"up": failed}},
            {"round": 1, "cell": "other", "way": "alone", "error": "of another", "results": {"up": result}},
        ],
        "summary": {
            "tap-whole": {"up": {"bridged": {"mbit_per_second": rate}, "alone": {"mbit_per_second": rate}}},
        },
        "ratios": {"tap-whole": {"up": {"mbit_per_second": {"alone/bridged": 0.5}}}},
    }


def test_the_tap_table_has_what_was_measured_and_what_failed() -> None:
    (table,) = tap_tables(tap_document())
    assert table.head == ("work", "no proxy", "coloproxy", "alone/bridged")
    assert table.rows == (("upload: Mbit/s", "100 (90.0 to 110)", "100 (90.0 to 110)", "0.500x"),)
    assert table.notes == (
        "Checkpoints in all rounds: alone 3.",
        "round 2, coloproxy: broken",
        "round 2, coloproxy, up: no answer",
    )


def documents() -> dict[str, dict[str, Any]]:
    measured = runs_of("stock-1448x1", [100, 120, 110], [10, 10, 11]) + runs_of("cpu-1448x1", [3.0], [4.0])
    side = machine.heading("coloproxy-side-by-side/1", {"rounds": 3, "seconds": 1.0, "quick": False}) | {
        "runs": measured,
        "rows": [goals.judge(name, measured) for name in ("stock-1448x1", "cpu-1448x1", "tso")],
    }
    side["machine"]["cpu"] = "<script>alert(1)</script> | CPU"
    core = {
        "benchmarks": [
            {
                "name": "test_cold[tcp]",
                "group": "cold",
                "stats": {"median": 1e-3, "min": 1e-3, "max": 2e-3},
                "extra_info": {"flows": 1, "frames": 1000, "ns_per_frame": 1000.0, "gbit_per_s": 12.0},
            },
            {
                "name": "test_memory_per_flow",
                "group": "flows",
                "stats": {"median": 1.0, "min": 1.0, "max": 1.0},
                "extra_info": {"flows": 1000, "bytes_per_flow": 425.0},
            },
        ]
    }
    one = {"median": 1.5, "min": 1.0, "max": 2.0, "count": 3}
    guests = {
        "works": {"http": "GETs", "none": "never run"},
        "figures": {"p50_ms": {"title": "p50", "unit": "ms", "better": "lower"}},
        "summary": {"http": {"stock": {"p50_ms": one}, "coloproxy": {"p50_ms": one, "errors": one}}},
    }
    return {"side_by_side": side, "core": core, "scaling": scaling_document(), "tap": tap_document(), "guests": guests}


class Checker(HTMLParser):
    """Whether tags are closed in order, and what is referred to."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.ids: list[str] = []
        self.refers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        values = dict(attrs)
        self.ids += [str(values["id"])] if "id" in values else []
        self.refers += [str(values[name]) for name in ("src", "href", "data", "xlink:href") if name in values]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone() -> None:
    html = report.render_html(report.build_page(documents()))
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    assert checker.refers == []
    assert len(checker.ids) == len(set(checker.ids))
    assert "script" not in checker.seen
    assert checker.seen.count("svg") >= 3
    assert "url(" not in html
    assert "&lt;script&gt;" in html
    for name in (
        "prefers-color-scheme: dark",
        "1 of 3 goals are met, 1 not measured",
        "Real guests",
        "it &lt;broke&gt;",
    ):
        assert name in html, name


@pytest.mark.parametrize("without", [*report.DOCUMENTS, None])
def test_the_page_does_with_what_there_is(without: str | None) -> None:
    some = {name: document for name, document in documents().items() if name != without}
    page = report.build_page(some)
    assert report.render_html(page)
    assert ("measured side by side" in page.verdict) == (without == "side_by_side")
    assert report.render_markdown(page).startswith("# Measured")


def test_markdown_tables_have_as_many_cells_in_each_line() -> None:
    text = report.render_markdown(report.build_page(documents()))
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 7
    for block in blocks:
        assert len({line.replace("\\|", "").count("|") for line in block}) == 1, block


def test_marked_parts_are_replaced_and_nothing_else() -> None:
    page = report.build_page(documents())
    before = (
        "top\n<!-- bench:goals:begin -->\nold\n<!-- bench:goals:end -->\nmiddle\n<!-- bench:other:begin -->\nkept\n"
    )
    once = report.update(before, page)
    assert once.startswith("top\n")
    assert once.endswith("middle\n<!-- bench:other:begin -->\nkept\n")
    assert "old" not in once
    assert "stock colo-compare" in once
    assert report.update(once, page) == once
    assert report.update("no marks", page) == "no marks"


def test_the_document_has_a_place_for_each_table_of_ours() -> None:
    text = (TOP / "docs" / "performance.md").read_text(encoding="utf-8")
    for section in report.build_page(documents()).sections:
        if section.name != "guests":
            assert text.count(f"<!-- bench:{section.name}:begin -->") == 1
            assert text.count(f"<!-- bench:{section.name}:end -->") == 1


def test_the_program_reads_and_writes_files(tmp_path: Path) -> None:
    command = [sys.executable, str(TOP / "bench" / "report.py"), "--from", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}  # it has neighbours
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, "has no document" in done.stderr) == (1, True)
    for name, document in documents().items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    target = tmp_path / "doc.md"
    target.write_text("<!-- bench:core:begin --><!-- bench:core:end -->", encoding="utf-8")
    command += ["--update", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "| memory per flow | flows | 1,000 |" in target.read_text(encoding="utf-8")


# ---------------------------------------------------------------------- plots


def test_lines_are_drawn_to_scale() -> None:
    line = plot.Line("ours & theirs", {1: plot.Spread(10, 5, 20), 100: plot.Spread(20, 20, 20)})
    svg = plot.lines_svg("id", "Title <1>", "flows", "ns", [line])
    assert svg is not None
    tree = ElementTree.fromstring(svg)
    circles = list(tree.iter("circle"))[-2:]
    heights = [float(one.attrib["cy"]) for one in circles]
    foot = plot._TOP + plot._TALL
    assert (foot - heights[1]) == pytest.approx(2 * (foot - heights[0]), abs=0.2)
    assert "10 ns at 1, 20 at 100" in (tree.findtext("desc") or "")
    assert plot.lines_svg("id", "t", "x", "u", [plot.Line("none", {})]) is None


def test_bars_are_drawn_to_scale() -> None:
    groups = [plot.Bars("work", {"a": plot.Spread(10, 10, 10), "b": plot.Spread(40, 30, 50)}), plot.Bars("none", {})]
    svg = plot.bars_svg("id", "Title", "frames/s", groups)
    assert svg is not None
    tree = ElementTree.fromstring(svg)
    widths = [float(one.attrib["width"]) for one in tree.iter("rect")]
    assert widths[1] == pytest.approx(4 * widths[0], abs=0.2)
    height = float(tree.attrib["viewBox"].split()[3])
    assert all(float(one.attrib["y"]) < height for one in tree.iter("text"))
    assert plot.bars_svg("id", "t", "u", []) is None


# -------------------------------------------------------------------- scaling


def test_every_series_has_points_on_each_of_its_lines() -> None:
    for quick in (False, True):
        found = {(point.series, point.line) for point in scaling.points(list(scaling.SERIES), quick)}
        assert found == {(name, line) for name, series in scaling.SERIES.items() for line in series.lines}
    assert {point.series for point in scaling.points(["skew"], False)} == {"skew"}
    assert max(p.x for p in scaling.points(["sockets-flows"], False) if p.line == STOCK) <= scaling.STOCKS_FLOWS
