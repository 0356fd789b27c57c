# SPDX-License-Identifier: Apache-2.0
"""Linters, strict types and the C tests (under sanitizers) are tests like all others."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "arguments", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=" ".join
)
def test_linter(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(arguments)}:\n{done.stdout}{done.stderr}"


def test_c_tests_under_sanitizers(tmp_path: Path) -> None:
    if shutil.which("make") is None or shutil.which("cc") is None:
        pytest.skip("make and a C compiler are needed")
    command = ["make", "-s", "-j2", "-C", str(TOP / "tests" / "c"), f"BUILD={tmp_path}", "check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-10_000:]
    programs = len(list((TOP / "tests" / "c").glob("test_*.c")))
    assert done.stdout.count(" passed, 0 failed") == programs, done.stdout


def test_every_source_names_its_licence() -> None:
    missing = [
        path.relative_to(TOP)
        for pattern in (
            "coloproxy/**/*.py",
            "csrc/**/*.[ch]",
            "tests/**/*.py",
            "tests/c/*.[ch]",
            "tools/*",
            "bench/**/*.py",
            "bench/**/*.[ch]",
        )
        for path in TOP.glob(pattern)
        if path.is_file() and "__pycache__" not in path.parts
        if "SPDX-License-Identifier: Apache-2.0" not in path.read_text(encoding="utf-8")[:200]
    ]
    assert not missing
