# SPDX-License-Identifier: Apache-2.0
"""bench/guests.py: its arithmetic by tables, its client against a real server, and a quick run of all of it."""

from __future__ import annotations

import http.server
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coloproxy.testbed import missing
from coloproxy.testbed.monitor import Event
from guests import SCHEMA
from real_guests.meter import pair_events
from real_guests.summary import FIGURES, ratios, summarize, table
from real_guests.work import _percentile, all_works

TOP = Path(__file__).resolve().parent.parent
CONTENT = b"what the page says"


@pytest.mark.parametrize(
    ("count", "percent", "expected"),
    [(1, 50, 1), (2, 50, 1), (3, 50, 2), (100, 50, 50), (100, 99, 99), (101, 99, 100), (10, 99, 10), (1000, 99, 990)],
)
def test_percentiles_are_of_the_nearest_rank(count: int, percent: int, expected: int) -> None:
    assert _percentile(range(1, count + 1), percent) == expected


def test_no_percentile_of_nothing() -> None:
    assert _percentile([], 99) is None


@pytest.mark.parametrize(
    ("names", "pauses", "rest"),
    [
        ("", [], 0),
        ("SR", [1], 0),
        ("SRSR", [1, 1], 0),
        ("S", [], 1),
        ("SRS", [1], 1),
        ("RSR", [1], 0),  # the end of one that had begun before
        ("SSR", [1], 0),
    ],
)
def test_checkpoints_are_stop_and_resume(names: str, pauses: list[int], rest: int) -> None:
    kinds = {"S": "STOP", "R": "RESUME"}
    events = [Event(kinds[name], {}, float(second)) for second, name in enumerate(names)]
    found, left = pair_events(events)
    assert (found, len(left)) == (pauses, rest)


def entry(set_up: str, **figures: float | None) -> dict[str, Any]:
    return {"set_up": set_up, "results": {"work": {"figures": figures}}}


def test_medians_spread_and_ratios() -> None:
    rounds = [
        entry("stock", p50_ms=4.0, checkpoints=0, pause_max_ms=None),
        entry("coloproxy", p50_ms=1.0, checkpoints=1, pause_max_ms=5.0),
        entry("coloproxy", p50_ms=3.0, checkpoints=1, pause_max_ms=None),
        entry("coloproxy", p50_ms=9.0, checkpoints=1, pause_max_ms=7.0),
    ]
    summary = summarize(rounds)
    assert summary["work"]["coloproxy"]["p50_ms"] == {"median": 3.0, "min": 1.0, "max": 9.0, "count": 3}
    assert summary["work"]["coloproxy"]["pause_max_ms"] == {"median": 6.0, "min": 5.0, "max": 7.0, "count": 2}
    assert "pause_max_ms" not in summary["work"]["stock"]
    found = ratios(summary)["work"]
    assert found["p50_ms"] == {"coloproxy/stock": 0.75}
    assert found["checkpoints"] == {"coloproxy/stock": None}  # of none
    assert found["pause_max_ms"] == {"coloproxy/stock": None}
    lines = list(
        table(
            {
                "parameters": {"set_ups": ["stock", "coloproxy"]},
                "works": {"work": "Some work", "other": "Other work"},
                "summary": summary,
                "ratios": ratios(summary),
            }
        )
    )
    assert "  latency, p50 (ms)" in lines[2] and "3 (1..9)" in lines[2] and lines[2].endswith("0.75")
    assert lines[-1] == "Other work: not measured"


class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = CONTENT if self.path == "/page" else b"another"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def ask(port: int, mode: str, path: str) -> dict[str, Any]:
    argv = [sys.executable, "-P", str(TOP / "bench/real_guests/http_client.py"), "--host", "127.0.0.1"]
    argv += ["--port", str(port), "--path", path, "--requests", "10", "--connections", "3", "--mode", mode]
    done = subprocess.run(argv, input=CONTENT, capture_output=True, check=True, timeout=60)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize(("mode", "connects"), [("keep", 3), ("new", 10)])
def test_the_client_times_each_request(port: int, mode: str, connects: int) -> None:
    result = ask(port, mode, "/page")
    assert len(result["latencies_ns"]) == 10 and min(result["latencies_ns"]) > 0
    assert (result["errors"], result["connects"]) == ({}, connects)


def test_a_wrong_answer_is_an_error(port: int) -> None:
    result = ask(port, "keep", "/other")
    assert result["latencies_ns"] == []
    assert result["errors"] == {"wrong answer: status 200, 7 bytes": 10}


def test_nobody_there_is_an_error(port: int) -> None:
    result = ask(1, "keep", "/page")
    assert sum(result["errors"].values()) == 10


@pytest.mark.e2e
@pytest.mark.skipif(bool(missing()), reason=f"this machine lacks {', '.join(item.what for item in missing())}")
@pytest.mark.parametrize("nic", ["e1000", "virtio"])
def test_a_quick_run_has_every_figure(nic: str, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    argv = [sys.executable, str(TOP / "bench/guests.py"), "--quick", "--nic", nic, "--json", str(file)]
    # It finds its parts beside it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=400, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(file.read_text())
    assert document["schema"] == SCHEMA
    assert all(document["machine"].values())
    assert all(
        document["versions"][name] for name in ("coloproxy", "qemu", "guest_kernel", "nginx", "iperf3", "python")
    )
    works = [work.name for work in all_works(60, 4, 1, 4)]
    assert list(document["works"]) == works
    assert [entry["set_up"] for entry in document["rounds"]] == ["unprotected", "stock", "coloproxy"]
    for one in document["rounds"]:
        assert one["error"] is None
        assert list(one["results"]) == works
        for work, result in one["results"].items():
            check_figures(work, result, one["set_up"])
    for work in works:
        assert set(document["summary"][work]) == {"unprotected", "stock", "coloproxy"}
        main = "p50_ms" if work.startswith("http") else "mbit_per_second"
        assert all(document["ratios"][work][main].values())
        assert document["works"][work] in done.stdout


def check_figures(work: str, result: dict[str, Any], set_up: str) -> None:
    figures = result["figures"]
    assert result["error"] is None
    assert set(figures) <= set(FIGURES)
    http_ones = {"p50_ms", "p99_ms", "max_ms", "mean_ms", "answered", "connects", "seconds"}
    iperf_ones = {"mbit_per_second", "bytes", "seconds"}
    always = {"errors", "checkpoints", "pause_sum_ms", "cpu_primary_s", "cpu_primary_and_comparator_s"}
    for name in (http_ones if work.startswith("http") else iperf_ones) | always:
        assert figures[name] is not None and math.isfinite(figures[name]), (work, set_up, name)
    assert len(result["pauses_ms"]) == figures["checkpoints"]
    assert (figures["cpu_secondary_s"] is None) == (set_up == "unprotected")
    assert (figures["cpu_comparator_s"] is None) == (set_up != "coloproxy")
    if set_up == "unprotected":
        assert (figures["checkpoints"], figures["errors"]) == (0, 0)
