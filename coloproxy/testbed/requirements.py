# SPDX-License-Identifier: Apache-2.0
"""What this machine lacks to run a test bed, and how to get it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from .errors import RequirementError

_APT_SECONDS = 900.0
_TUN = Path("/dev/net/tun")


@dataclass(frozen=True, slots=True)
class Missing:
    """One thing that the machine lacks."""

    what: str
    package: str | None
    """The Debian package that brings it; None if no package can."""


_PROGRAMS: dict[str, str] = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "ip": "iproute2",
    "curl": "curl",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "depmod": "kmod",
}
_NOTHING_ELSE: Mapping[str, str] = MappingProxyType({})


def missing(also: Mapping[str, str] = _NOTHING_ELSE) -> list[Missing]:
    """Everything that a test bed needs and this machine lacks.

    *also* names more programs, each with its package.
    The guest's kernel is not among it: if /boot has none, building the guest fetches one (kernel.py).
    """
    lacks: list[Missing] = []
    if platform.machine() != "x86_64":
        lacks.append(Missing(f"an x86-64 processor (this one is {platform.machine()})", None))
    if os.geteuid() != 0:
        lacks.append(Missing("root (network namespaces and TAP devices)", None))
    if not _TUN.is_char_device():
        lacks.append(Missing("/dev/net/tun (try: modprobe tun)", None))
    lacks += [
        Missing(program, package) for program, package in (_PROGRAMS | dict(also)).items() if not _installed(program)
    ]
    return lacks


def install_missing(report: Callable[[str], None] = lambda _: None, also: Mapping[str, str] = _NOTHING_ELSE) -> None:
    """Install by apt-get whatever a package can bring.

    *report* is told of each step; *also* as for missing().  Raises RequirementError for what can't be had, on a system
    without apt-get too.
    """
    lacks = missing(also)
    hopeless = [item.what for item in lacks if item.package is None]
    if hopeless:
        raise RequirementError("this machine lacks: " + "; ".join(hopeless))
    packages = sorted({item.package for item in lacks if item.package is not None})
    if not packages:
        return
    if _find("apt-get") is None:
        wanted = ", ".join(item.what for item in lacks)
        raise RequirementError(f"this is no Debian: please install by hand what brings {wanted}")
    report(f"installing {', '.join(packages)}")
    _apt_get(["update"])
    _apt_get(["install", "--yes", "--no-install-recommends", *packages])
    still = [item.what for item in missing(also)]
    if still:
        raise RequirementError(f"apt-get installed {', '.join(packages)}, but there still is no {', '.join(still)}")


def _apt_get(arguments: Sequence[str]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    argv = ["apt-get", "--quiet", *arguments]
    try:
        subprocess.run(
            argv,
            check=True,
            capture_output=True,
            text=True,
            env=environment,
            stdin=subprocess.DEVNULL,
            timeout=_APT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise RequirementError(f"{' '.join(argv)}: not done after {_APT_SECONDS:g} s") from error
    except subprocess.CalledProcessError as error:
        raise RequirementError(f"{' '.join(argv)}: {error.stderr.strip()}") from error


def _installed(program: str) -> bool:
    return _find(program) is not None


def _find(program: str) -> str | None:
    """Where the program is; looks into the sbin directories too, which root's PATH lacks in some containers."""
    return shutil.which(program, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/bin")))
