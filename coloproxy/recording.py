# SPDX-License-Identifier: Apache-2.0
"""`coloproxy compare --record`, `--record-ring`: where recordings go, and how their files follow one another.

The format is in docs/recording.md; csrc/recorder.h has the mechanism.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from coloproxy import errors
from coloproxy.events import FrameClass
from coloproxy.rules import Rules, rules_document

__all__ = ["RecordOptions", "RingOptions", "next_number", "numbered", "options_json", "wall_offset"]

OUTDEV_SNAP: Final = 128
"""Bytes kept of released frames on outdev: the headers; all of the frame is on primary_in."""

TEXT_MAX: Final = 60_000


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """A recording.

    Attributes:
        path: the file. With max_bytes or max_time, or beyond the first: a number goes before its suffix.
        max_bytes: a file that has grown to so many bytes is followed by the next; None: no bound.
        max_time: ns, the same way.
        keep: so many of the newest files are kept; None: all. Needs max_bytes or max_time.
    """

    path: Path
    max_bytes: int | None = None
    max_time: int | None = None
    keep: int | None = None

    @property
    def rotates(self) -> bool:
        return self.max_bytes is not None or self.max_time is not None

    def check(self) -> None:
        """Raises MisuseError for what can't work together."""
        for name, value in (("max_bytes", self.max_bytes), ("max_time", self.max_time), ("keep", self.keep)):
            if value is not None and value < 1:
                raise errors.MisuseError(f"recording {self.path}: {name} is {value}")
        if self.keep is not None and not self.rotates:
            raise errors.MisuseError(f"recording {self.path}: files to keep, but no size or time that ends one")


@dataclass(frozen=True, slots=True)
class RingOptions:
    """The last seconds, kept in memory; a divergence has them written to a file.

    Attributes:
        directory: where these files go.
        time: ns; frames whose verdict is so long before the divergence are forgotten.
        max_bytes: of memory; the oldest frames make room.
        wait: ns; a file waits for the end of the epoch, when held frames get their verdicts, but no longer than that.
        gap: ns from one divergence with a file to the next.
    """

    directory: Path
    time: int
    max_bytes: int = 64 << 20
    wait: int = 10 * 10**9
    gap: int = 10 * 10**9

    def check(self) -> None:
        """Raises MisuseError for numbers that make no sense, and a directory that can't be written to."""
        for name, least in (("time", 1), ("max_bytes", 1 << 16), ("wait", 0), ("gap", 0)):
            value = getattr(self, name)
            if value < least:
                raise errors.MisuseError(f"recording ring: {name} is {value}, the least is {least}")
        if not self.directory.is_dir() or not os.access(self.directory, os.W_OK | os.X_OK):
            raise errors.MisuseError(f"recording ring: {self.directory} is no directory that can be written to")


def numbered(path: Path, number: int) -> Path:
    """The file with that number: `a/b-00002.pcapng` of `a/b.pcapng`; 0: the path itself."""
    return path if number == 0 else path.with_name(f"{path.stem}-{number:05d}{path.suffix}")


def next_number(options: RecordOptions, opened: bool = False) -> int:
    """The number of the next file: after the highest that is there. 0 where one file is enough.

    Args:
        options: of the recording.
        opened: this run has written a file already, which must stay.
    """
    if not options.rotates and not opened:
        return 0
    pattern = re.compile(re.escape(options.path.stem) + r"-(\d{5,9})" + re.escape(options.path.suffix))
    try:
        names = [entry.name for entry in options.path.parent.iterdir()]
    except OSError as error:
        raise errors.MisuseError(f"recording {options.path}: {error.strerror}") from error
    there = [int(match[1]) for name in names if (match := pattern.fullmatch(name))]
    return max([*there, 0 if options.rotates else 1]) + 1


def options_json(config: Any, rules: Rules, *, vnet_hdr: bool) -> str:
    """The comparator's options of a native `struct colo_config`, for the head of the file.

    Rules that are too long for a comment of pcapng are left out ("rules": null). The seed of the flow table is not
    among them: it decides nothing, and must stay secret.
    """
    names = (
        "max_flows", "max_frames", "max_bytes", "max_flow_frames", "max_flow_bytes", "max_fragments",
        "reorder_frames", "compare_timeout", "reorder_window", "gap_window",
    )  # fmt: skip
    fields: dict[str, object] = {name: int(getattr(config, name)) for name in names}
    fields["pass_classes"] = [str(member) for member in FrameClass if config.pass_classes >> member & 1]
    fields["keep_gap"] = bool(config.keep_gap)
    fields["any_scale"] = bool(config.any_scale)
    fields["vnet_hdr"] = vnet_hdr
    text = json.dumps({**fields, "rules": rules_document(rules)}, separators=(",", ":"))
    return text if len(text) < TEXT_MAX else json.dumps({**fields, "rules": None}, separators=(",", ":"))


def wall_offset() -> int:
    """ns between CLOCK_MONOTONIC and the Unix epoch, now."""
    before, real, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
    return real - (before + after) // 2
