# SPDX-License-Identifier: Apache-2.0
"""What a node must know after any crash, in state.json of its state directory: written whole, and on stable storage."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from coloproxy.errors import ConfigError
from coloproxy.vmm.files import open_plain

from .facts import Record, Standing

VERSION: Final = 1
BLOCK: Final = 4096


@dataclass(frozen=True, slots=True)
class Kept:
    """`record` decides; the rest is what its QEMU and its images are."""

    record: Record
    secondary: bool = False
    """QEMU was started as a secondary, and is not known to have been made a VM of its own."""
    made: tuple[str, ...] = ()
    """Images that this node has made itself: it may write over them."""
    stopped: bool = False
    """The guest has powered off, or the operator has ended QEMU: the VM stays so until somebody starts it."""


class RecordFile:
    """Of one state directory, which the caller has locked. Any thread may write."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "state.json"
        self._draft = self.path.with_suffix(".new")
        self._lock = threading.Lock()
        self.kept = self._load()

    def write(self, record: Record) -> None:
        """When this returns the record is on disk. Raises OSError: then nothing that rests on it may be done."""
        with self._lock:
            self._save(replace(self.kept, record=record))

    def note(self, *, secondary: bool | None = None, made: str | None = None, stopped: bool | None = None) -> None:
        """The rest. Raises OSError."""
        with self._lock:
            kept = self.kept
            if secondary is not None:
                kept = replace(kept, secondary=secondary)
            if made is not None and made not in kept.made:
                kept = replace(kept, made=(*kept.made, made))
            if stopped is not None:
                kept = replace(kept, stopped=stopped)
            self._save(kept)

    def _save(self, kept: Kept) -> None:
        if kept == self.kept:
            return
        document = {
            "version": VERSION,
            "standing": kept.record.standing.value,
            "generation": kept.record.generation,
            "offer": kept.record.offer,
            "secondary": kept.secondary,
            "made": list(kept.made),
            "stopped": kept.stopped,
        }
        text = json.dumps(document, indent=1).encode()
        size = -(-(len(text) + 1) // BLOCK) * BLOCK
        with os.fdopen(open_plain(self._draft, os.O_RDWR | os.O_CREAT), "r+b") as file:
            file.write(text.ljust(size - 1) + b"\n")
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        self._draft.replace(self.path)
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        self.kept = kept
        self._reserve(size)

    def _reserve(self, size: int) -> None:
        """The next one's place, so that it can be written when the disk is full: then it counts most."""
        with contextlib.suppress(OSError), self._draft.open("xb") as file:
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())

    def _load(self) -> Kept:
        """Raises ConfigError: a file that can't be understood. A person must look: to guess could cost the truth."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return Kept(Record())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([f"{self.path}: {error}"]) from error
        try:
            document = json.loads(text)
            return _read(document)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError([f"{self.path}: is damaged: {error}; see docs/node.md"]) from error


def _read(document: dict[str, object]) -> Kept:
    """Raises ValueError, KeyError."""
    if document["version"] != VERSION:
        raise ValueError(f"version {document['version']!r}, not {VERSION}")
    generation, offer, made = document["generation"], document["offer"], document["made"]
    secondary, stopped = document["secondary"], document.get("stopped", False)
    if type(generation) is not int or generation < 0 or not isinstance(offer, str):
        raise ValueError("generation or offer")
    if not isinstance(made, list) or not all(isinstance(path, str) for path in made):
        raise ValueError("made")
    if type(secondary) is not bool or type(stopped) is not bool:
        raise ValueError("secondary or stopped")
    record = Record(Standing(document["standing"]), generation, offer)
    return Kept(record, secondary, tuple(made), stopped)
