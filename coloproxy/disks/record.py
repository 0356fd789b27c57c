# SPDX-License-Identifier: Apache-2.0
"""What a host must know of its images after a crash, on disk, in the directory of the overlays.

takeover.json   a takeover has begun and its commit isn't known to be done: the guest's truth is active over hidden
                over the image.
lineage.json    of which primary's stream the image is a copy (see resync.plan).
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from coloproxy.errors import DiskError

from .model import Kind


@dataclass(frozen=True, slots=True)
class Lineage:
    """Of a secondary's images."""

    token: str
    """Names the resync that made them; the primary's bitmaps bear it too."""
    settled: bool
    """A checkpoint has committed since: all that the primary had written until then is on stable storage here."""


@dataclass(frozen=True, slots=True)
class Takeover:
    """An unfinished one."""

    generation: int


def begin_takeover(directory: Path, generation: int) -> None:
    """On the secondary, before x-colo-lost-heartbeat. From now on the images are no copy of anyone's."""
    forget_lineage(directory)
    _write(directory / "takeover.json", {"generation": generation})


def takeover(directory: Path) -> Takeover | None:
    """The unfinished takeover, if there is one. Raises DiskError for a file that can't be understood."""
    facts = _read(directory / "takeover.json")
    try:
        return None if facts is None else Takeover(int(str(facts["generation"])))
    except (KeyError, ValueError) as error:
        raise DiskError(Kind.RECOVERY, f"{directory / 'takeover.json'}: is damaged: {error}") from error


def end_takeover(directory: Path) -> None:
    """When the commit is done (secondary.commit_done, or recover)."""
    _remove(directory / "takeover.json")


def write_lineage(directory: Path, lineage: Lineage) -> None:
    """On the secondary: unsettled before a resync's first write, settled after the first checkpoint."""
    _write(directory / "lineage.json", asdict(lineage))


def lineage(directory: Path) -> Lineage | None:
    """None if there is none, or it can't be understood: then the copy is worth nothing, and is made anew."""
    with contextlib.suppress(DiskError, KeyError):
        facts = _read(directory / "lineage.json")
        if facts is not None:
            return Lineage(str(facts["token"]), facts["settled"] is True)
    return None


def forget_lineage(directory: Path) -> None:
    """When the image is about to be written by anyone but the primary."""
    _remove(directory / "lineage.json")


def sync(path: Path) -> None:
    """Puts a file, or the names in a directory, on stable storage."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, facts: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(facts) + "\n")
    sync(draft)
    draft.replace(path)
    sync(path.parent)


def _read(path: Path) -> dict[str, object] | None:
    try:
        facts = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DiskError(Kind.RECOVERY, f"{path}: can't be read: {error}") from error
    if not isinstance(facts, dict):
        raise DiskError(Kind.RECOVERY, f"{path}: is damaged")
    return facts


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        sync(path.parent)
