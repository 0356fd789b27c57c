# SPDX-License-Identifier: Apache-2.0
"""Why a peer of the link was refused: kinds, counters, and log lines that a flood of strangers can't multiply."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

INTERVAL_S: Final = 10.0  # between two lines of one kind
TEXT_MAX: Final = 200  # characters of a peer's own words that we repeat


class Kind(StrEnum):
    """What a refusal is counted under."""

    PLAIN = "plain-text"  # no TLS where TLS is spoken, or the other way round
    KEY = "key"  # wrong pre-shared key or identity, or none
    CERTIFICATE = "certificate"
    TLS = "tls"  # anything else that TLS refuses
    TIMEOUT = "timeout"  # not done with its hello in time
    CROWDED = "crowded"  # pushed out by newer ones
    REPLACED = "replaced"  # the same peer came again in the middle of its hello
    CUT = "cut"  # closed or lost in the middle
    MALFORMED = "malformed"
    OVERSIZE = "oversize"
    VERSION = "version"
    PAIR = "pair"
    VM = "vm"
    ROLE = "role"
    NICS = "nics"
    BY_PEER = "by-peer"  # the peer has refused us


def printable(text: str) -> str:
    """A peer's words, fit for a log: no control characters, TEXT_MAX at most."""
    return "".join(c if c.isprintable() else "?" for c in text[:TEXT_MAX])


@dataclass(slots=True)
class _Line:
    at: float
    silent: int = 0


class Refusals:
    """Counts per kind, and logs at most one line of each kind in INTERVAL_S."""

    def __init__(self, log: logging.Logger, option: str) -> None:
        self.counts: Counter[str] = Counter()
        self._log = log
        self._option = option
        self._lines: dict[str, _Line] = {}

    def note(self, kind: str, where: str, text: str, now: float) -> None:
        """Counts one; `now`: seconds of any monotonic clock."""
        self.counts[kind] += 1
        last = self._lines.get(kind)
        if last is not None and now - last.at < INTERVAL_S:
            last.silent += 1
            return
        more = f" (and {last.silent} more like it)" if last is not None and last.silent else ""
        self._lines[kind] = _Line(now)
        self._log.warning("%s: %s: refused: %s%s", self._option, where, text, more)
