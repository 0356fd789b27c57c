# SPDX-License-Identifier: Apache-2.0
"""Reads a disk that no QEMU has open any more, and compares it with what clients were told.  Mounts nothing.

e2fsck does what the guest's kernel would do at its next mount, play the journal back, on a copy; whatever else it had
to put right is a fault, and so is everything that a second run, which may change nothing, still finds.  No fault: the
totals of free blocks and inodes, which Linux writes only when it unmounts (those of each group are in the journal).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import tempfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .node_guest import LARGE_FILE, LOG_DIRECTORY, DiskImage, program

_CORRECTED: Final = 1  # e2fsck(8), exit status
_ANSWERED: Final = re.compile(r"\? (?:yes|no)$")
_TOTALS: Final = re.compile(r"Free (?:blocks|inodes) count wrong \(\d+, counted=\d+\)\. Fix\? \w+")
_PAYLOAD_BYTES: Final = 24


def record(log: str, number: int) -> bytes:
    """A line of the write log: its number, some text that only it has, and the CRC-32 of both.  Numbers begin at 1."""
    text = hashlib.shake_128(f"{log} {number}".encode()).hexdigest(_PAYLOAD_BYTES)
    line = f"{number} {text}".encode()
    return b"%s %08x\n" % (line, zlib.crc32(line))


@dataclass(frozen=True, slots=True)
class LogFindings:
    """One log: what is on the disk, against what the client sent and was told."""

    sent: int
    """Records 1 to this were sent."""
    acknowledged: int
    """Records 1 to this were answered."""
    found: int = 0
    """Whole records on the disk."""
    lost: tuple[int, ...] = ()
    """Acknowledged, and not on the disk."""
    torn: tuple[bytes, ...] = ()
    """Lines that are no whole record."""
    misplaced: tuple[int, ...] = ()
    """Not one more than the record before, or never sent."""

    @property
    def intact(self) -> bool:
        """True if there is nothing to complain about."""
        return not (self.lost or self.torn or self.misplaced)


@dataclass(frozen=True, slots=True)
class DiskFindings:
    """One disk."""

    repairs: tuple[str, ...]
    """What e2fsck had to put right besides playing the journal back."""
    complaints: tuple[str, ...]
    """What its second run found."""
    large_intact: bool
    logs: Mapping[str, LogFindings] = field(default_factory=dict)

    @property
    def intact(self) -> bool:
        """True if there is nothing to complain about."""
        clean = not self.repairs and not self.complaints and self.large_intact
        return clean and all(log.intact for log in self.logs.values())


def examine_log(log: str, content: bytes, *, sent: int, acknowledged: int) -> LogFindings:
    """*content*: of the log's file."""
    torn: list[bytes] = []
    numbers: list[int] = []
    for line in content.splitlines(keepends=True):
        number = line.partition(b" ")[0]
        if number.isdigit() and line == record(log, int(number)):
            numbers.append(int(number))
        else:
            torn.append(line)
    present = set(numbers)
    expected = range(1, len(numbers) + 1)
    misplaced = [number for number, place in zip(numbers, expected, strict=True) if number != place or number > sent]
    return LogFindings(
        sent=sent,
        acknowledged=acknowledged,
        found=len(numbers),
        lost=tuple(number for number in range(1, acknowledged + 1) if number not in present),
        torn=tuple(torn),
        misplaced=tuple(misplaced),
    )


def problems(said: str) -> list[str]:
    """What e2fsck asked to put right, in its own words, but for the totals."""
    found: list[str] = []
    lines: list[str] = []
    for line in said.splitlines():
        lines = [] if not line.strip() or line.startswith("Pass ") else [*lines, line.strip()]
        if _ANSWERED.search(line):
            found.append(" ".join(lines))
            lines = []
    return [text for text in found if not _TOTALS.fullmatch(text)]


async def verify(
    chain: Sequence[Path], disk: DiskImage, logs: Iterable[tuple[str, int, int]] = (), *, scratch: Path | None = None
) -> DiskFindings:
    """*chain*: the image, or overlays and the image below them, the topmost first; all qcow2, none in use.

    *logs*: of each its name, how many records were sent, and how many were acknowledged.
    Raises GuestError if the image or its file system can't be read at all, or still belongs to a running QEMU.
    """
    return await asyncio.to_thread(_verify, chain, disk, list(logs), scratch)


def _verify(
    chain: Sequence[Path], disk: DiskImage, logs: list[tuple[str, int, int]], scratch: Path | None
) -> DiskFindings:
    with tempfile.TemporaryDirectory(prefix="verify-", dir=scratch or chain[-1].parent) as directory:
        raw = Path(directory) / "raw"
        program(["qemu-img", "convert", "-O", "raw", _source(chain), str(raw)])
        repaired = program(["e2fsck", "-fy", str(raw)], accepted=(0, _CORRECTED))
        checked = program(["e2fsck", "-fn", str(raw)], accepted=range(8))
        complaints = problems(checked.stdout)
        if checked.returncode != 0 and not complaints:
            complaints = [checked.stdout.strip()]
        large = _read(raw, LARGE_FILE, Path(directory))
        findings: dict[str, LogFindings] = {}
        for name, sent, acknowledged in logs:
            content = _read(raw, f"{LOG_DIRECTORY}/{name}", Path(directory))
            findings[name] = examine_log(name, content, sent=sent, acknowledged=acknowledged)
    return DiskFindings(
        repairs=tuple(problems(repaired.stdout)),
        complaints=tuple(complaints),
        large_intact=hashlib.sha256(large).hexdigest() == disk.large_sha256,
        logs=findings,
    )


def _source(chain: Sequence[Path]) -> str:
    """Overlays of replication don't name what is below them, so it is said here."""
    node: dict[str, object] | None = None
    for path in reversed(chain):
        above: dict[str, object] = {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}}
        if node is not None:
            above["backing"] = node
        node = above
    return f"json:{json.dumps(node)}"


def _read(raw: Path, path: str, directory: Path) -> bytes:
    """The content of a file of the file system; empty if there is none."""
    out = directory / "out"
    out.unlink(missing_ok=True)
    program(["debugfs", "-R", f"dump /{path} {out}", str(raw)])
    return out.read_bytes() if out.exists() else b""
