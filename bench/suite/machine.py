# SPDX-License-Identifier: Apache-2.0
"""On what it is measured, and with which versions: part of every document."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

TOP: Final = Path(__file__).resolve().parents[2]
_CPU: Final = Path("/sys/devices/system/cpu/cpu0")
_FALLBACK_CACHE: Final = 32 << 20  # where the kernel doesn't tell


def _said(*command: str) -> str:
    """What a program prints; empty where there is none."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout.strip()
    except OSError:
        return ""


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _field(path: str, pattern: str) -> str | None:
    found = re.search(pattern, _read(Path(path)) or "", re.MULTILINE)
    return found[1].strip() if found else None


def _bytes(text: str) -> int:
    """The kernel's `32768K`."""
    found = re.fullmatch(r"(\d+)([KMG]?)", text)
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]] if found else 0


def caches() -> dict[str, int]:
    """The first CPU's caches by name (L1d, L1i, L2, L3), in bytes. Empty where the kernel doesn't tell."""
    found: dict[str, int] = {}
    for index in sorted((_CPU / "cache").glob("index*")):
        kind = {"Data": "d", "Instruction": "i"}.get(_read(index / "type") or "", "")
        found[f"L{_read(index / 'level')}{kind}"] = _bytes(_read(index / "size") or "")
    return found


def last_cache() -> int:
    """Bytes of the largest cache; a guess where the kernel doesn't tell."""
    return max(caches().values(), default=_FALLBACK_CACHE) or _FALLBACK_CACHE


def memory() -> int:
    """Bytes of RAM."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def machine() -> dict[str, Any]:
    """The hardware as far as the kernel knows it, and the kernel. Keys: docs/performance.md."""
    return {
        "cpu": _field("/proc/cpuinfo", r"^model name\s*:\s*(.+)$") or platform.machine(),
        "cpus": os.cpu_count() or 0,
        "caches": caches(),
        "memory": memory(),
        "governor": _read(_CPU / "cpufreq" / "scaling_governor"),
        "hypervisor": "hypervisor" in (_field("/proc/cpuinfo", r"^flags\s*:\s*(.+)$") or "").split(),
        "kernel": platform.release(),
        "system": _field("/etc/os-release", r'^PRETTY_NAME="?([^"\n]+)'),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def commit() -> str:
    """Of the source tree; the installed package is made from it."""
    name = _said("git", "-C", str(TOP), "describe", "--always", "--dirty", "--abbrev=12", "--tags")
    return name or "unknown"


def versions() -> dict[str, str]:
    """Of all that takes part."""
    try:
        ours = version("coloproxy")
    except PackageNotFoundError:
        ours = "not installed"
    return {
        "coloproxy": ours,
        "coloproxy_commit": commit(),
        "qemu": (_said("qemu-system-x86_64", "--version").splitlines() or [""])[0].removeprefix(
            "QEMU emulator version "
        ),
        "compiler": (_said("cc", "--version").splitlines() or [""])[0],
        "python": platform.python_version(),
    }


def heading(schema: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """What each document begins with."""
    return {
        "schema": schema,
        "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "parameters": parameters,
    }
