# SPDX-License-Identifier: Apache-2.0
"""What somebody adds to the guest: programs of this machine's Debian, their files, and how to start them.

The ordinary guest has none and is not slowed by this: each addition makes a guest of its own in the cache.
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from .cpio import CpioWriter
from .errors import GuestError

START_FILE = "start-addition"
"""The guest's init runs it, if it is there, before it says that its service is up."""

_PT_INTERP = 3  # elf(5)
_LDD_SECONDS = 10.0
_LDD_LINE = re.compile(r"^\t(?:(?P<name>\S+) => )?(?P<path>/\S+|not found)(?: \(0x[0-9a-f]+\))?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class AddedFile:
    """A file of the guest."""

    data: bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Addition:
    """Files and the commands that start them."""

    files: Mapping[str, AddedFile] = field(default_factory=dict)
    """By their path in the guest, without a leading slash; directories are made as needed."""
    start: str = ""
    """Shell commands, run by the guest's init while its network is up.  It waits for their end."""

    def write(self, archive: CpioWriter) -> None:
        """Add all of it to the guest's initial file system."""
        parents = {str(parent) for path in self.files for parent in PurePosixPath(path).parents if parent.name}
        for parent in sorted(parents):
            archive.directory(parent)
        for path, file in self.files.items():
            archive.file(path, file.data, file.mode)
        if self.start:
            archive.file(START_FILE, f"#!/bin/sh\n{self.start}".encode(), 0o755)

    def fingerprint(self) -> list[bytes]:
        """Everything that makes this addition another one than the next."""
        parts = [self.start.encode()]
        for path, file in sorted(self.files.items()):
            parts += [f"{path} {file.mode:o}".encode(), file.data]
        return parts


NO_ADDITION = Addition()


def program_files(program: Path, name: str) -> dict[str, AddedFile]:
    """A program of this machine as usr/bin/*name*, and the loader and shared libraries it needs, at their own paths.

    Raises GuestError for a library that isn't here, naming it.
    """
    data = program.read_bytes()
    files = {f"usr/bin/{name}": AddedFile(data, 0o755)}
    if not needs_interpreter(program, data):
        return files
    try:
        done = subprocess.run(
            ["ldd", str(program)], capture_output=True, text=True, timeout=_LDD_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GuestError(f"can't tell which libraries {program} needs: {error}") from error
    found = list(_LDD_LINE.finditer(done.stdout))
    lacking = [match["name"] for match in found if match["path"] == "not found"]
    if done.returncode or lacking or not found:
        raise GuestError(f"{program} needs libraries that aren't here: {', '.join(lacking) or done.stderr.strip()}")
    for match in found:
        files[match["path"].removeprefix("/")] = AddedFile(Path(match["path"]).read_bytes(), 0o755)
    return files


def needs_interpreter(program: Path, elf: bytes) -> bool:
    """True for a dynamically linked 64-bit ELF program: it names a loader (PT_INTERP), which the guest doesn't have."""
    if elf[:5] != b"\x7fELF\x02":
        raise GuestError(f"{program} is not a 64-bit ELF program")
    (table,) = struct.unpack_from("<Q", elf, 32)
    entry_size, entries = struct.unpack_from("<HH", elf, 54)
    kinds = [struct.unpack_from("<I", elf, table + entry_size * i)[0] for i in range(entries)]
    return _PT_INTERP in kinds
