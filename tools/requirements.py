# SPDX-License-Identifier: Apache-2.0
"""Programs that only the tests need, and apt-get for those that are missing.

What the VMs of the demo and of the tests need is coloproxy's own list (coloproxy/testbed/requirements.py).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from coloproxy.testbed.errors import GuestError
from coloproxy.testbed.node_guest import PROGRAMS as NODE_PROGRAMS
from coloproxy.testbed.programs import PACKAGES, fetch_program, find_program
from coloproxy.testbed.server_programs import PROGRAMS as SERVER_PROGRAMS

_PROGRAMS: Final = {
    **{program: program for program in ("clang", "cpio", "tcpdump", "valgrind")},
    "fence_dummy": "fence-agents",
    **SERVER_PROGRAMS,
    **NODE_PROGRAMS,
}


def _is_there(program: str) -> bool:
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))  # root's may lack these
    return shutil.which(program, path=path) is not None


def _clang_runtime() -> str | None:
    """The package with libFuzzer for the clang that is here; None: it is there. Debian has one for each version."""
    where = subprocess.run(["clang", "-print-runtime-dir"], capture_output=True, text=True, check=True).stdout.strip()
    if any(Path(where).glob("libclang_rt.fuzzer*")):
        return None
    version = subprocess.run(["clang", "-dumpversion"], capture_output=True, text=True, check=True).stdout
    major = re.match(r"\d+", version)
    return f"libclang-rt-{major[0] if major else ''}-dev"


def missing_packages() -> list[str]:
    """Debian packages that bring what the tests need and this machine lacks, as far as can be known now."""
    packages = sorted({package for program, package in _PROGRAMS.items() if not _is_there(program)})
    if _is_there("clang"):
        runtime = _clang_runtime()
        packages += [runtime] if runtime else []
    return packages


def install_missing_tools(report: Callable[[str], None]) -> None:
    """Install them by apt-get, or fetch them into the cache; exits with a message where that can't be."""
    _install(report)
    for program in PACKAGES:
        if find_program(program) is None:
            report(f"fetching {program}")
            try:
                fetch_program(program)
            except GuestError as error:
                raise SystemExit(f"{program}: {error}") from None


def _install(report: Callable[[str], None]) -> None:
    for _ in range(2):  # which runtime clang needs is known only once clang is there
        packages = missing_packages()
        if not packages:
            return
        if not _is_there("apt-get") or os.geteuid() != 0:
            raise SystemExit(f"please install {', '.join(packages)} (needs root and apt-get to do it for you)")
        report(f"installing {', '.join(packages)}")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for arguments in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
            done = subprocess.run(
                ["apt-get", "--quiet", *arguments], capture_output=True, text=True, env=environment, check=False
            )
            if done.returncode:
                raise SystemExit(f"apt-get {' '.join(arguments)}: {done.stderr.strip()}")
    if missing_packages():
        raise SystemExit(f"apt-get brought no {', '.join(missing_packages())}")
