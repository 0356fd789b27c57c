# SPDX-License-Identifier: Apache-2.0
"""--json-events: one JSON object a line for each event.

Every object has "time" (RFC 3339, UTC, microseconds), "monotonic_ns" (CLOCK_MONOTONIC, to subtract) and "event" (its
kind); the rest depends on the kind. Durations end in _ns. Payload bytes come as hex and as text (a dot for what can't
be printed). The file may hold clients' data: it is created readable by its owner alone.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime

from .engine_events import (
    Committed,
    EngineEvent,
    EngineFailed,
    GateLost,
    PeerAttached,
    PeerLost,
    RecordingEnded,
    RingDumped,
)
from .errors import MisuseError
from .events import CheckpointWanted, Divergence, FlowId, LimitHit, Tolerated
from .lines import LineWriter
from .reports import Report

log = logging.getLogger(__name__)


def rfc3339(real_ns: int) -> str:
    """UTC with microseconds, as `2031-01-02T03:04:05.678901Z`."""
    seconds, rest = divmod(real_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1000:06d}Z"


def printable(data: bytes) -> str:
    """For people: ASCII, and a dot for every other byte."""
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)


def flow_fields(flow: FlowId | None) -> dict[str, object] | None:
    """A flow as JSON."""
    if flow is None:
        return None
    return {
        "text": str(flow),
        "class": str(flow.frame_class),
        "protocol": flow.protocol,
        "source": flow.source,
        "source_port": flow.source_port,
        "destination": flow.destination,
        "destination_port": flow.destination_port,
        "vlans": list(flow.vlans),
        "nic": flow.nic,
    }


def event_fields(event: EngineEvent) -> tuple[str, dict[str, object]]:
    """(kind, fields) of an event of the engine or the comparator."""
    match event:
        case Divergence():
            return "divergence", {
                "cause": str(event.cause),
                "epoch": event.epoch,
                "flow": flow_fields(event.flow),
                "offset": event.offset,
                "context": event.context,
                "primary": _side(event.primary, event.primary_age),
                "secondary": _side(event.secondary, event.secondary_age),
                "held_frames": event.held_frames,
                "held_bytes": event.held_bytes,
            }
        case LimitHit() | CheckpointWanted():
            return "limit" if isinstance(event, LimitHit) else "checkpoint-wanted", {
                "cause": str(event.cause),
                "epoch": event.epoch,
                "flow": flow_fields(event.flow),
                "held_frames": event.held_frames,
                "held_bytes": event.held_bytes,
            }
        case Tolerated():
            return "tolerated", {
                "rule": event.rule,
                "epoch": event.epoch,
                "flow": flow_fields(event.flow),
                "offset": event.offset,
                "context": event.context,
                "primary": _side(event.primary, None),
                "secondary": _side(event.secondary, None),
            }
        case PeerAttached():
            return "connected", {"port": str(event.port)}
        case PeerLost():
            return "lost", {
                "port": str(event.port),
                "reason": event.reason,
                "fault": event.fault.name.lower() if event.fault is not None else None,
                "errno": event.errno,
                "position": event.position,
            }
        case GateLost():
            return "lost", {"port": "qmp", "reason": event.reason, "errno": event.errno}
        case Committed():
            return "committed", {"released_frames": event.released_frames, "released_bytes": event.released_bytes}
        case RecordingEnded():
            return "recording-ended", {"reason": event.reason, "errno": event.errno}
        case RingDumped():
            return "divergence-recorded", {
                "diverged_ns": event.diverged,
                "bytes": event.bytes,
                "reason": event.reason,
                "errno": event.errno,
            }
        case EngineFailed():
            return "engine-failed", {"reason": event.reason, "errno": event.errno}


def _side(data: bytes, age: int | None) -> dict[str, object]:
    return {"hex": data.hex(), "text": printable(data), "age_ns": age}


class Journal:
    """The file. `path` "-" is standard output; None: nothing is written.

    Raises MisuseError if the file can't be opened. Later errors are logged once and don't stop anything.
    """

    def __init__(self, path: str | None) -> None:
        self._writer: LineWriter | None = None
        if path is None:
            return
        if path == "-":
            fd, owned = 1, False
        else:
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise MisuseError(f"--json-events: can't open {path}: {error.strerror}") from error
            owned = True

        def failed(error: OSError) -> None:
            log.warning("--json-events: can't write to %s: %s; events are lost", path, error.strerror)

        self._writer = LineWriter(fd, "coloproxy-json", owned=owned, on_error=failed)

    @property
    def lost(self) -> int:
        """Events so far that found no room, or could not be written."""
        return 0 if self._writer is None else self._writer.lost

    def write(self, kind: str, fields: Mapping[str, object], at: int | None = None) -> None:
        """One event. `at`: CLOCK_MONOTONIC ns, now if None."""
        if self._writer is None:
            return
        mono, real = time.monotonic_ns(), time.time_ns()
        when = mono if at is None else at
        head = {"time": rfc3339(real - (mono - when)), "monotonic_ns": when, "event": kind}
        self._writer.put(json.dumps(head | dict(fields), separators=(",", ":")))

    def report(self, report: Report, extra: Mapping[str, object] | None = None) -> None:
        """One report of the control plane: its fields are the event's, `text` is the line for people."""
        fields = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
        self.write(report.name, fields | {"text": str(report)} | dict(extra or {}))

    def engine(self, event: EngineEvent, extra: Mapping[str, object] | None = None) -> None:
        """One event of the engine, at its own time."""
        kind, fields = event_fields(event)
        self.write(kind, fields | dict(extra or {}), event.time)

    def close(self) -> None:
        """Flushes. Idempotent."""
        if self._writer is not None:
            self._writer.close()
