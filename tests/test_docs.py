# SPDX-License-Identifier: Apache-2.0
"""The documents: their links lead somewhere, their Python runs, their options exist, the tables name what there is."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from coloproxy import Cause, Comparator, Side

TOP = Path(__file__).resolve().parent.parent
BENCH_PROGRAMS = [
    TOP / "bench" / f"{name}.py"
    for name in ("arbiter", "heartbeat", "instructions", "report", "scaling", "side_by_side")
]
DOCUMENTS = [TOP / "README.md", TOP / "CHANGELOG.md", *sorted((TOP / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_the_readmes_python(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (TOP / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(code, {})
    assert "Released(frame=0" in capsys.readouterr().out


@functools.cache
def every_help() -> str:
    helps = [
        [sys.executable, "-P", "-m", "coloproxy", "bench", "--help"],
        [sys.executable, "-P", "-m", "coloproxy", "bench", "policies", "--help"],
        [sys.executable, "-P", "-m", "coloproxy", "compare", "--help"],
        [sys.executable, "-P", "-m", "coloproxy", "config", "check", "--help"],
        [sys.executable, "-P", "-m", "coloproxy", "ctl", "--help"],
        [sys.executable, "-P", "-m", "coloproxy", "demo", "--help"],
        [sys.executable, "-P", "-m", "coloproxy", "doctor", "--help"],
        [sys.executable, "-P", "-m", "coloproxy", "mutate", "--help"],
        [sys.executable, "-P", "-m", "coloproxy", "node", "--help"],
        [sys.executable, "-P", "-m", "coloproxy", "qemu-args", "--help"],
        [sys.executable, "-P", "-m", "coloproxy", "replay", "--help"],
        [sys.executable, "-P", "-m", "coloproxy", "status", "--help"],
        [sys.executable, "-P", "-m", "coloproxy", "top", "--help"],
        [sys.executable, "-P", "-m", "coloproxy", "run", "--help"],
        [sys.executable, str(TOP / "tools" / "make_captures.py"), "--help"],
        [sys.executable, "-P", str(TOP / "tools" / "failover_trials.py"), "--help"],
        [sys.executable, str(TOP / "tools" / "run_fuzz.py"), "--help"],
        [sys.executable, "-P", str(TOP / "tools" / "tap_failovers.py"), "--help"],
        [sys.executable, "-P", str(TOP / "tools" / "node_cycles.py"), "--help"],
        [sys.executable, str(TOP / "bench" / "guests.py"), "--help"],
        *([sys.executable, str(program), "--help"] for program in BENCH_PROGRAMS),
    ]
    environment = {**os.environ, "COLUMNS": "200"}
    environment.pop("PYTHONSAFEPATH", None)  # a tool finds what lies beside it

    def ask(command: list[str]) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return "".join(pool.map(ask, helps))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_options_exist(path: Path) -> None:
    known = every_help()
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"```sh\n#!/bin/sh.*?```", "", text, flags=re.DOTALL)  # a script of the reader's runs other programs
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)):
        assert re.search(rf"{option}(?![a-z0-9-])", known), f"{path.name} names {option}, which there is not"


def test_every_cause_is_explained() -> None:
    text = (TOP / "docs" / "events.md").read_text(encoding="utf-8")
    assert [str(cause) for cause in Cause if cause is not Cause.NONE and f"`{cause}`" not in text] == []


def test_the_documented_limits_are_the_defaults() -> None:
    text = (TOP / "docs" / "comparison.md").read_text(encoding="utf-8")
    assert "131,072 frames, 256 MiB" in text
    comparator = Comparator()
    comparator.commit(0, 0)
    frame = bytes(12) + b"\x88\xb5"
    taken = comparator.feed(Side.PRIMARY, [frame] * (131_072 // 2 + 1), 1)
    assert taken == 131_072 // 2
