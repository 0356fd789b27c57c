# SPDX-License-Identifier: Apache-2.0
"""On what, and with which versions, it was measured."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

from coloproxy.testbed.tcg import QEMU

from . import services

_TOP = Path(__file__).resolve().parent.parent.parent


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
    """Of all that takes part but the guest's kernel, which is known once a guest is built."""
    return {
        "coloproxy": version("coloproxy"),
        "coloproxy_commit": _commit(),
        "qemu": _said([QEMU, "--version"]).splitlines()[0].removeprefix("QEMU emulator version "),
        "python": platform.python_version(),
        **services.versions(),
    }


def _commit() -> str:
    """Of the source tree beside this file; what runs is the installed package, made from it."""
    commit = _said(["git", "-C", str(_TOP), "rev-parse", "--short=12", "HEAD"]).strip()
    changed = _said(["git", "-C", str(_TOP), "status", "--porcelain", "--untracked-files=no"]).strip()
    return f"{commit}, changed" if commit and changed else commit


def _said(argv: list[str]) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10).stdout
    except OSError:
        return ""
