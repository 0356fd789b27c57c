# SPDX-License-Identifier: Apache-2.0
"""What a VM that took over leaves to the primary that it becomes: its connections, and its open TAPs.

The connections are also kept in a file, for a coloproxy that dies while its QEMU lives on. A file of an earlier boot is
void: so is the VM. Its age is counted by CLOCK_BOOTTIME, which nobody sets back and which runs on in suspend.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coloproxy.errors import TableError

from .devices import TapDevice

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_HEAD_MAX: Final = 200  # bytes of the line before the table
_FILE_MAX: Final = 1 << 31  # bytes: 2^24 connections


@dataclass(frozen=True, slots=True)
class Estate:
    """table: of Path.export_table. taps: one for each NIC, with descriptors that are the owner's to close."""

    table: bytes
    taps: tuple[TapDevice, ...]

    def close(self) -> None:
        """When nobody takes the TAPs over."""
        for tap in self.taps:
            for fd in tap.fds:
                os.close(fd)


def save_table(path: Path, table: bytes) -> None:
    """The whole file or none, also if the machine fails. Raises OSError."""
    head = json.dumps({"coloproxy": "connections", "boot": _boot(), "at": _now()}).encode() + b"\n"
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")  # mode 0600
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(head + table)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def load_table(path: Path) -> tuple[bytes, int] | None:
    """The table, and how old it is in ns; None: there is no file, or it is of an earlier boot.

    What is in the table the path checks. Raises TableError: the file is none of ours; OSError.
    """
    try:
        if path.stat().st_size > _FILE_MAX:
            raise TableError(f"{path} is too long to be a file of connections")
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    line, newline, table = data.partition(b"\n")
    try:
        head = json.loads(line) if newline and len(line) <= _HEAD_MAX else None
    except (ValueError, RecursionError):
        head = None
    if not isinstance(head, dict) or head.get("coloproxy") != "connections":
        raise TableError(f"{path} is no file of connections")
    at = head.get("at")
    if not isinstance(at, int) or isinstance(at, bool) or at < 0:
        raise TableError(f"{path} doesn't say when it was made")
    if head.get("boot") != _boot():
        return None
    age = _now() - at
    if age < 0:
        raise TableError(f"{path} was made in the future")
    return table, age


def _boot() -> str:
    return _BOOT_ID.read_text().strip()


def _now() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
