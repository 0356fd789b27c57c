# SPDX-License-Identifier: Apache-2.0
"""Names that say whose they are, so that what a killed run left behind can be found and removed.

A test bed removes everything it made when it closes.  SIGKILL leaves it no chance: its child processes die with it
(process.py), but namespaces and the scratch directory stay.  Their names hold the owner's process id and start time,
a pair that is never used twice between two boots; the next test bed removes those whose owner is gone.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from .errors import TestbedError
from .node_host import HostProcesses

_PREFIX = "colotb"
_NAME = re.compile(rf"{_PREFIX}-(?P<pid>\d+)-(?P<start>\d+)-\d+")
_NAMESPACES = Path("/run/netns")
_numbers = itertools.count(1)


def new_name() -> str:
    """A name for one test bed, unique on this machine: colotb-PID-STARTTIME-NUMBER."""
    pid = os.getpid()
    return f"{_PREFIX}-{pid}-{_start_time(pid)}-{next(_numbers)}"


def remove_leftovers() -> list[str]:
    """Remove namespaces and scratch directories whose owner no longer runs; returns their names."""
    removed: list[str] = []
    for path in _abandoned(_NAMESPACES):
        # A bed's processes die with it, but not a QEMU that was started to outlive the one who started it.
        with contextlib.suppress(OSError, TestbedError):
            HostProcesses(path.name).kill_now()
        done = subprocess.run(["ip", "netns", "delete", path.name], check=False, capture_output=True, timeout=10)
        if done.returncode == 0:
            removed.append(path.name)
    for path in _abandoned(Path(tempfile.gettempdir())):
        remove_mounts(path)
        shutil.rmtree(path, ignore_errors=True)
        removed.append(str(path))
    return removed


def remove_mounts(directory: Path) -> None:
    """Unmount what is mounted below that directory (node_bed.NodeOptions.disk_mib)."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]  # proc(5)
    for point in sorted((point for point in points if Path(directory) in Path(point).parents), reverse=True):
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True, timeout=10)


def _abandoned(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    found: list[Path] = []
    for path in sorted(directory.glob(f"{_PREFIX}-*")):
        match = _NAME.match(path.name)
        if match and _start_time(int(match["pid"])) != int(match["start"]):
            found.append(path)
    return found


def _start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot (proc(5), field 22); None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the program's name in parentheses, which may hold blanks and parentheses itself.
    return int(stat.rpartition(")")[2].split()[19])
