# SPDX-License-Identifier: Apache-2.0
"""Programs of Debian packages that need nothing but the C library: installed here, or unpacked into the cache.

To install such a package would start its service on the machine that only tests something.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from .debian import unpack_package
from .guest import cache_directory

PACKAGES: Final[Mapping[str, str]] = MappingProxyType(
    {"etcd": "etcd-server", "etcdctl": "etcd-client", "promtool": "prometheus"}
)
"""The programs, each with the package that brings it."""


def find_program(name: str, cache: Path | None = None) -> Path | None:
    """One of PACKAGES, on this machine or in the cache; None: it is in neither."""
    if (installed := shutil.which(name)) is not None:
        return Path(installed)
    kept = _place(name, cache) / name
    return kept if kept.exists() else None


def fetch_program(name: str, cache: Path | None = None) -> Path:
    """The same; blocks, and downloads it into the cache if need be.  Raises GuestError."""
    found = find_program(name, cache)
    if found is not None:
        return found

    def fill(directory: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="unpacking-", dir=directory.parent) as whole:
            unpack_package(PACKAGES[name], Path(whole))
            shutil.move(Path(whole) / "usr/bin" / name, directory / name)

    return kept_once(_place(name, cache), fill) / name


def kept_once(place: Path, fill: Callable[[Path], None]) -> Path:
    """A directory of the cache that is made whole or not at all: *fill* makes a new one, unless it is there."""
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="downloading-", dir=place.parent) as scratch:
            whole = Path(scratch) / "whole"
            whole.mkdir()
            fill(whole)
            with contextlib.suppress(OSError):  # somebody else was quicker
                whole.rename(place)
    return place


def _place(name: str, cache: Path | None) -> Path:
    return (cache or cache_directory()) / f"program-{name}"
