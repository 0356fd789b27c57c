# SPDX-License-Identifier: Apache-2.0
"""What packets say, field by field, and where those of the two sides differ.

Scapy does the reading, in a process of its own with a deadline (coloproxy.report.dissect). Without scapy, or when it
fails, the answer is a note in words: a report never fails for want of decoding.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from importlib.util import find_spec
from pathlib import Path

__all__ = ["MAX_PACKET", "Decoded", "FieldRow", "Layer", "LayerRow", "compare", "decode"]

MAX_PACKET = 2048
"""Bytes of a packet that are decoded, from its beginning."""

DEADLINE_S = 20.0
"""For all packets of a report together, scapy's own start included."""

NO_SCAPY_NOTE = 'No decoding: scapy is not installed. pip install "coloproxy[report]" brings it.'

_VALUE_SHOWN = 160
_NO_SCAPY_STATUS = 3
_WORKER = Path(__file__).with_name("dissect.py")

# What the comparator never looks at (docs/comparison.md): fields of these may differ freely.
_NOT_COMPARED = {
    "IP": {"id", "ttl", "tos", "chksum", "len", "ihl", "flags"},
    "IPv6": {"tc", "fl", "hlim", "plen"},
    "TCP": {"seq", "ack", "window", "chksum", "urgptr", "dataofs"},
    "UDP": {"chksum"},
    "ICMP": {"chksum"},
}


@dataclass(frozen=True, slots=True)
class Layer:
    """A protocol's header: its name and its fields, in order, as text."""

    name: str
    fields: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Decoded:
    """One packet's layers, outermost first; `note` tells what is missing and why."""

    layers: tuple[Layer, ...] = ()
    note: str | None = None


@dataclass(frozen=True, slots=True)
class FieldRow:
    """One field of both sides; None where a side lacks it. `compared`: the comparator looks at this field."""

    name: str
    primary: str | None
    secondary: str | None
    differs: bool
    compared: bool = True


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer of both sides."""

    name: str
    fields: tuple[FieldRow, ...]


def decode(
    packets: Sequence[bytes], *, deadline: float = DEADLINE_S, worker: Sequence[str] | None = None
) -> list[Decoded]:
    """Decodes Ethernet frames; the answer has as many items. Never raises for what is in them.

    Args:
        packets: frames without FCS; only the first MAX_PACKET bytes of each are looked at.
        deadline: seconds for all of them; what is not done by then has a note that says so.
        worker: the command that does it, for tests.
    """
    if not packets:
        return []
    if worker is None:
        if find_spec("scapy") is None:
            return [Decoded(note=NO_SCAPY_NOTE)] * len(packets)
        worker = [sys.executable, "-P", str(_WORKER)]
    question = json.dumps({"packets": [packet[:MAX_PACKET].hex() for packet in packets]}).encode()
    try:
        done = subprocess.run(worker, input=question, capture_output=True, timeout=deadline, check=False)
        output, reason = done.stdout, f"scapy ended early (status {done.returncode})"
        if done.returncode == _NO_SCAPY_STATUS:
            return [Decoded(note=NO_SCAPY_NOTE)] * len(packets)
    except subprocess.TimeoutExpired as late:
        output, reason = late.stdout or b"", f"scapy did not come to an end within {deadline:g} s"
    except OSError as error:
        output, reason = b"", f"scapy can't be started: {error}"
    answers = []
    for line, packet in zip(output.split(b"\n")[:-1], packets, strict=False):
        answers.append(_from_json(line, cut=len(packet) > MAX_PACKET))
    answers += [Decoded(note=f"No decoding: {reason}.")] * (len(packets) - len(answers))
    return answers


def _from_json(line: bytes, *, cut: bool) -> Decoded:
    try:
        answer = json.loads(line)
        layers = tuple(
            Layer(name, tuple((field, value) for field, value in fields)) for name, fields in answer["layers"]
        )
        note = answer["note"]
    except (ValueError, KeyError, TypeError):
        return Decoded(note="No decoding: scapy's process wrote something else than an answer.")
    if cut:
        note = " ".join(filter(None, [note, f"Only the first {MAX_PACKET} bytes of the packet were decoded."]))
    return Decoded(layers, note)


def compare(primary: Decoded, secondary: Decoded) -> tuple[LayerRow, ...]:
    """Both packets' fields side by side, layers and fields paired by name and order."""
    names = [layer.name for layer in primary.layers], [layer.name for layer in secondary.layers]
    rows = []
    for one, other in _pair(*names):
        left = primary.layers[one] if one is not None else None
        right = secondary.layers[other] if other is not None else None
        both = bool(primary.layers) and bool(secondary.layers)
        rows.append(_layer_row(left, right, compared_with=both))
    return tuple(rows)


def _layer_row(left: Layer | None, right: Layer | None, *, compared_with: bool) -> LayerRow:
    name = (left or right or Layer("", ())).name
    ours, theirs = left.fields if left else (), right.fields if right else ()
    ignored = _NOT_COMPARED.get(name, set())
    rows = []
    for one, other in _pair([field for field, _ in ours], [field for field, _ in theirs]):
        field = ours[one][0] if one is not None else theirs[other or 0][0]
        a = ours[one][1] if one is not None else None
        b = theirs[other][1] if other is not None else None
        shown_a, shown_b = _excerpts(a, b)
        rows.append(FieldRow(field, shown_a, shown_b, compared_with and a != b, field not in ignored))
    return LayerRow(name, tuple(rows))


def _pair(left: Sequence[str], right: Sequence[str]) -> list[tuple[int | None, int | None]]:
    """Indices of equal names side by side, in order; None where one side has no partner."""
    pairs: list[tuple[int | None, int | None]] = []
    for _, a0, a1, b0, b1 in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if left[a0:a1] == right[b0:b1]:
            pairs += zip(range(a0, a1), range(b0, b1), strict=True)
        else:
            pairs += [(i, None) for i in range(a0, a1)] + [(None, i) for i in range(b0, b1)]
    return pairs


def _excerpts(a: str | None, b: str | None) -> tuple[str | None, str | None]:
    """Both cut to what fits into a table, around the first place where they differ."""
    start = 0
    if a is not None and b is not None and a != b and max(len(a), len(b)) > _VALUE_SHOWN:
        same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        start = max(0, same - _VALUE_SHOWN // 3)
    return _excerpt(a, start), _excerpt(b, start)


def _excerpt(value: str | None, start: int) -> str | None:
    if value is None:
        return None
    piece = value[start : start + _VALUE_SHOWN]
    return ("… " if start else "") + piece + (" …" if start + _VALUE_SHOWN < len(value) else "")
