# SPDX-License-Identifier: Apache-2.0
"""What an engine's events say to people: a log line and a line of the journal each. `compare` and `run` speak alike."""

from __future__ import annotations

import logging
from pathlib import Path

from .engine_events import (
    Committed,
    EngineEvent,
    PeerAttached,
    PeerLost,
    RecordingEnded,
    RingDumped,
)
from .events import Divergence, LimitHit, Tolerated
from .journal import Journal, printable
from .recording import RecordOptions, RingOptions
from .rules import Rules

log = logging.getLogger(__name__)

EVIDENCE_SHOWN = 16  # bytes from the first difference on, in a log line; the journal has them all


def divergence_line(event: Divergence) -> str:
    """A difference in one line."""
    sides = [
        f"{name} {printable(side[event.context : event.context + EVIDENCE_SHOWN])!r}" if side else f"{name} nothing"
        for name, side in (("primary", event.primary), ("secondary", event.secondary))
    ]
    where = f"{event.flow}, offset {event.offset}" if event.flow is not None else f"offset {event.offset}"
    return f"divergence ({event.cause}) in {where}: {', '.join(sides)}; {event.held_frames} frames held"


class Voice:
    """Of one engine after the other. prefix: stands before each log line; extra: in each line of the journal."""

    def __init__(
        self,
        journal: Journal,
        rules: Rules,
        record: RecordOptions | None,
        ring: RingOptions | None,
        *,
        prefix: str = "",
        extra: dict[str, object] | None = None,
    ) -> None:
        self._journal = journal
        self._rules = rules
        self._record = record
        self._ring = ring
        self._prefix = prefix
        self._extra = extra or {}

    def tell(self, event: EngineEvent) -> None:
        match event:
            case PeerAttached():
                self._say(logging.INFO, f"{event.port}: connected", event)
            case PeerLost():
                self._say(logging.WARNING, event.reason, event)
            case Divergence():
                text = divergence_line(event)
                self._say(logging.WARNING, text, event, {"text": text})
            case LimitHit():
                self._say(logging.WARNING, f"limit reached: {event.cause}; {event.held_frames} frames held", event)
            case Tolerated():
                rule = self._rules.tolerances[event.rule].name
                text = f"tolerated by rule {rule}: {event.flow} differs at byte {event.offset}"
                self._say(logging.INFO, text, event, {"rule": rule})
            case RecordingEnded():
                path = str(self._record.path) if self._record is not None else ""
                text = f"{path}: {event.reason}; the service goes on without it"
                self._say(logging.ERROR, text, event, {"path": path})
            case RingDumped():
                self._dumped(event)
            case Committed():
                pass  # told with its checkpoint
            case _:
                self._journal.engine(event, self._extra)

    def _dumped(self, event: RingDumped) -> None:
        path: Path | str = self._ring.directory / event.name if self._ring is not None else event.name
        if event.reason is None:
            text = f"what came before the divergence is in {path} ({event.bytes} bytes)"
        else:
            text = f"{path}: what came before the divergence could not be written: {event.reason}"
        self._say(logging.WARNING, text, event, {"path": str(path)})

    def _say(self, level: int, text: str, event: EngineEvent, extra: dict[str, object] | None = None) -> None:
        log.log(level, "%s%s", self._prefix, text)
        self._journal.engine(event, self._extra | (extra or {}))
