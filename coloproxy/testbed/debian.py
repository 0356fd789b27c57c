# SPDX-License-Identifier: Apache-2.0
"""Files of Debian packages for a guest, without installing the package on the machine that hosts it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from .errors import GuestError

_COMMAND_SECONDS = 600.0


def update_index() -> None:
    """Let apt learn what there is.  Raises GuestError."""
    command(["apt-get", "--quiet", "update"])


def unpack_package(name: str, into: Path) -> None:
    """Download that package and unpack its files below *into*, an existing directory.  Raises GuestError."""
    argv = ["apt-get", "--quiet", "download", name]
    try:
        command(argv, cwd=into)
    except GuestError:  # apt may know of an older one only, or of none
        update_index()
        command(argv, cwd=into)
    for package in into.glob("*.deb"):
        command(["dpkg-deb", "-x", str(package), str(into)])
        package.unlink()


def command(argv: Sequence[str], cwd: Path | None = None) -> str:
    """Run one of Debian's programs and return what it wrote.  Raises GuestError."""
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            check=True,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise GuestError(f"there is no {argv[0]} here (not Debian?)") from error
    except subprocess.TimeoutExpired as error:
        raise GuestError(f"{' '.join(argv)}: not done after {_COMMAND_SECONDS:g} s") from error
    except subprocess.CalledProcessError as error:
        raise GuestError(f"{' '.join(argv)}: {error.stderr.strip()}") from error
    return done.stdout
