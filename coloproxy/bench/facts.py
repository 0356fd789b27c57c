# SPDX-License-Identifier: Apache-2.0
"""On what, and with which versions, it was measured."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from coloproxy.testbed.tcg import QEMU


def machine() -> dict[str, str | int]:
    """This machine."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "processor": cpu[1] if cpu else platform.machine(),
        "processors": os.cpu_count() or 0,
        "memory_mib": int(memory[1]) // 1024 if memory else 0,
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "") if Path("/etc/os-release").exists() else "",
    }


def versions() -> dict[str, str]:
    """Of what always takes part. Empty: it can't be had."""
    qemu = said([QEMU, "--version"]).partition("\n")[0]
    return {
        "coloproxy": version("coloproxy"),
        "qemu": qemu.removeprefix("QEMU emulator version "),
        "python": platform.python_version(),
    }


def said(argv: Sequence[str]) -> str:
    """What a program writes to its standard output; empty: it can't be run."""
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
