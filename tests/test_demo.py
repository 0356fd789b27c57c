# SPDX-License-Identifier: Apache-2.0
"""`coloproxy demo` as a user runs it, and the words that it has for what coloproxy says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from coloproxy.demo.journal import JournalFollower
from coloproxy.testbed.node_guest import PROGRAMS
from coloproxy.testbed.requirements import missing

LACKS = ", ".join(item.what for item in missing(PROGRAMS))
DEADLINE = 300.0
NAMESPACES = Path("/run/netns")

SHOWN = (
    r"a: protect -> protected: ",
    r"protected after .*: host a primary, host b secondary",
    r"the client got the primary's answer, once, after a checkpoint",
    r"b: the network is this host's now",
    r"host b is to go on alone  .*alone after",
    r"right checksums; longest silence: download .*, upload .*, a record ",
    r"protected again after .*: host b primary, host a secondary",
    r"b: protected -> suspended: ",
    r"host b is to go on alone  .*alone after",
    r"right checksums; longest silence: download .*, upload .*, a record ",
    r"protected again after .*: host b primary, host a secondary",
    r"file system clean, all [\d,]+ acknowledged records there, in order",
    r"What you have just seen",
)
"""In this order."""


@pytest.mark.e2e
@pytest.mark.skipif(bool(LACKS), reason=f"this machine lacks {LACKS}")
def test_the_whole_life_of_a_pair(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-P",
        "-m",
        "coloproxy",
        "demo",
        "--fast",
        "--plain",
        "--keep-logs",
        str(tmp_path / "logs"),
    ]
    environment = {**os.environ, "COLUMNS": "160"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, env=environment
    ) as demo:
        try:
            said, _ = demo.communicate(timeout=DEADLINE)
        finally:
            demo.terminate()  # where it has not ended; it cleans up
    assert demo.returncode == 0, said
    place = 0
    for pattern in SHOWN:
        found = re.compile(pattern).search(said, place)
        assert found is not None, f"no {pattern} behind:\n{said[:place]}\nbut:\n{said[place:]}"
        place = found.end()
    places = (NAMESPACES, Path(tempfile.gettempdir()))
    assert [path for where in places for path in where.glob(f"colotb-{demo.pid}-*")] == []


def test_a_journal_that_a_sigkill_has_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    told: list[dict[str, Any]] = []
    follower = JournalFollower(path, told.append)
    follower.poll()  # there is none yet
    path.write_bytes(b'{"event": "one"}\n{"event": "st')
    follower.poll()
    with path.open("ab") as file:
        file.write(b'{"event": "lost with it"}\n{"event": "stats"}\n{"event": "two"}\n')
    follower.poll()
    assert [record["event"] for record in told] == ["one", "stats", "two"]
    assert [record["event"] for record in follower.records] == ["one", "two"]
