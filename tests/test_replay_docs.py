# SPDX-License-Identifier: Apache-2.0
"""docs/replay.md and docs/mutate.md: each command is run as written, and does what the page says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent


def run_commands(page: str, tmp_path: Path) -> list[subprocess.CompletedProcess[str]]:
    text = (TOP / "docs" / page).read_text(encoding="utf-8")
    commands = [line for block in re.findall(r"^```sh\n(.*?)```", text, re.M | re.S) for line in block.splitlines()]
    assert len(commands) == 3
    shutil.copytree(TOP / "tests" / "captures", tmp_path / "tests" / "captures")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = []
    for command in commands:
        program, *arguments = command.split()
        assert program == "coloproxy"
        done.append(
            subprocess.run(
                [sys.executable, "-m", "coloproxy", *arguments],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
        )
    return done


def test_every_command_of_mutate(tmp_path: Path) -> None:
    done = run_commands("mutate.md", tmp_path)
    assert [run.returncode for run in done] == [0, 0, 0], [run.stderr for run in done]
    assert '"kind": "flip"' in done[1].stdout
    assert "equal" in done[2].stdout


def test_every_command_of_replay(tmp_path: Path) -> None:
    done = run_commands("replay.md", tmp_path)
    mutated, different, equal = done
    assert [run.returncode for run in done] == [0, 1, 0], [run.stderr for run in done]
    assert [run.stderr for run in (different, equal)] == ["", ""]
    assert "payload: tcp 192.0.2.1:80 > 192.0.2.2:" in different.stdout
    assert (tmp_path / "out" / "report.html").stat().st_size > 1000
    assert mutated.returncode == 0
    assert "equal" in equal.stdout
