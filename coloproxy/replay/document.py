# SPDX-License-Identifier: Apache-2.0
"""A Result as one JSON document; docs/replay.md lists its keys."""

from __future__ import annotations

from typing import Any

from coloproxy.comparator import Counters
from coloproxy.journal import flow_fields, printable
from coloproxy.replay.recording import RecordingResult
from coloproxy.replay.result import (
    ClassCounts,
    DivergenceRecord,
    FlowResult,
    HistoryEntry,
    Packet,
    Result,
    Source,
    Tally,
)

__all__ = ["FORMAT", "document", "recording_document"]

FORMAT = 1
"""Changes when a key changes its meaning or goes."""


def document(result: Result) -> dict[str, Any]:
    """All of a result but the frames' bytes. Times end in _ns; on the virtual clock but for captured ones."""
    return {
        "format": FORMAT,
        "verdict": "equal" if result.equal else "different",
        "settings": dict(result.settings),
        "sources": [_source(source) for source in result.sources],
        "end_ns": result.end,
        "counts": {
            "total": _classes(result.total),
            "classes": {str(kind): _classes(row) for kind, row in result.classes.items()},
            "inbound": _tally(result.inbound),
            "refused": _tally(result.refused),
        },
        "comparator": _counters(result.counters),
        "divergences": [_divergence(record) for record in result.divergences],
        "flows": [_flow(flow) for flow in result.flows],
        "flows_cut": result.flows_cut,
        "limits": [{"cause": str(e.cause), "time_ns": e.time, "flow": flow_fields(e.flow)} for e in result.limits],
        "checkpoints_wanted": [
            {"cause": str(e.cause), "time_ns": e.time, "epoch": e.epoch, "flow": flow_fields(e.flow)}
            for e in result.wanted
        ],
        "tolerated": [
            {"rule": e.rule, "time_ns": e.time, "flow": flow_fields(e.flow), "offset": e.offset}
            for e in result.tolerated
        ],
        "checkpoints_simulated": result.commits,
        "notes": list(result.notes),
    }


def recording_document(result: RecordingResult) -> dict[str, Any]:
    """The same for a recording."""
    return {
        "format": FORMAT,
        "verdict": "equal" if result.equal else "different",
        "recording": result.path,
        "options": result.options,
        "frames": result.frames,
        "marks": result.marks,
        "same": result.same,
        "different": result.different,
        "unfed": result.unfed,
        "mismatches": [
            {
                "number": mismatch.number,
                "seq": mismatch.seq,
                "side": mismatch.side.name.lower(),
                "recorded": mismatch.recorded,
                "replayed": mismatch.replayed,
            }
            for mismatch in result.mismatches
        ],
        "notes": list(result.notes),
    }


def _tally(tally: Tally) -> dict[str, int]:
    return {"frames": tally.frames, "bytes": tally.bytes}


def _classes(row: ClassCounts) -> dict[str, dict[str, int]]:
    return {name: _tally(getattr(row, name)) for name in ClassCounts.__dataclass_fields__}


def _source(source: Source) -> dict[str, object]:
    return {
        "file": source.path,
        "role": str(source.role),
        "interface": source.interface,
        "read": _tally(source.read),
        "inbound": _tally(source.inbound),
        "first_captured_ns": source.first,
        "last_captured_ns": source.last,
        "disordered": source.disordered,
    }


def _counters(counters: Counters) -> dict[str, object]:
    return {
        "released": {str(reason): count for reason, count in counters.released.items()},
        "discarded": {str(reason): count for reason, count in counters.discarded.items()},
        "compared_bytes": counters.compared_bytes,
        "acks_lowered": counters.acks_lowered,
        "acks_emitted": counters.acks_emitted,
        "parts_emitted": counters.parts_emitted,
        "flows_made": counters.flows_made,
        "flows_evicted": counters.flows_evicted,
        "held_frames_peak": counters.held_frames_peak,
        "held_bytes_peak": counters.held_bytes_peak,
        "tolerated": counters.tolerated,
    }


def _divergence(record: DivergenceRecord) -> dict[str, object]:
    event = record.event
    return {
        "cause": str(event.cause),
        "epoch": event.epoch,
        "time_ns": event.time,
        "flow": flow_fields(event.flow),
        "offset": event.offset,
        "context": event.context,
        "primary": _side(event.primary, event.primary_age, record.primary),
        "secondary": _side(event.secondary, event.secondary_age, record.secondary),
        "held_frames": event.held_frames,
        "held_bytes": event.held_bytes,
        "history": [_entry(entry) for entry in record.history],
        "history_cut_before": record.cut_before,
        "history_cut_after": record.cut_after,
    }


def _side(data: bytes, age: int | None, packet: Packet | None) -> dict[str, object]:
    where = None
    if packet is not None:
        where = {
            "file": packet.path,
            "number": packet.number,
            "time_ns": packet.time,
            "captured_ns": packet.captured,
            "length": len(packet.data),
        }
    return {"hex": data.hex(), "text": printable(data), "age_ns": age, "packet": where}


def _entry(entry: HistoryEntry) -> dict[str, object]:
    return {
        "file": entry.path,
        "role": str(entry.role),
        "number": entry.number,
        "time_ns": entry.time,
        "flags": entry.flags,
        "seq": entry.seq,
        "ack": entry.ack,
        "length": entry.length,
        "verdict": entry.verdict,
        "lowered": entry.lowered,
    }


def _flow(flow: FlowResult) -> dict[str, object]:
    return {
        "flow": flow_fields(flow.flow),
        "primary": _tally(flow.primary),
        "secondary": _tally(flow.secondary),
        "inbound": _tally(flow.inbound),
        "released": _tally(flow.released),
        "withheld": _tally(flow.withheld),
        "primary_progress": [list(point) for point in flow.primary_progress],
        "secondary_progress": [list(point) for point in flow.secondary_progress],
        "divergences": list(flow.divergences),
    }
