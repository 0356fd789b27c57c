# SPDX-License-Identifier: Apache-2.0
"""A writer for the `newc` cpio format that Linux unpacks as its initial file system.

Written here rather than by cpio(1): the archive is then the same, byte by byte, whoever builds it and when, and needs
neither a scratch directory nor root.  Format: Documentation/driver-api/early-userspace/buffer-format.rst in Linux.
"""

from __future__ import annotations

import stat
from typing import BinaryIO

_ALIGN = 4


class CpioWriter:
    """Writes entries in the order of the calls; a directory must come before what it contains."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._inode = 0

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory; *path* has no leading slash."""
        self._entry(path, stat.S_IFDIR | mode, b"", links=2)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._entry(path, stat.S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def finish(self) -> None:
        """Write the trailer; nothing may be added behind it."""
        self._inode = -1
        self._entry("TRAILER!!!", 0, b"")

    def _entry(self, path: str, mode: int, data: bytes, links: int = 1) -> None:
        self._inode += 1
        name = path.encode() + b"\0"
        fields = (
            self._inode,
            mode,
            0,  # uid
            0,  # gid
            links,
            0,  # mtime: always the epoch, for reproducible archives
            len(data),
            0,  # device, major
            0,  # device, minor
            0,  # special file, major
            0,  # special file, minor
            len(name),
            0,  # checksum, unused by newc
        )
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._padded(header + name)
        self._padded(data)

    def _padded(self, data: bytes) -> None:
        self._out.write(data)
        self._out.write(b"\0" * (-len(data) % _ALIGN))
