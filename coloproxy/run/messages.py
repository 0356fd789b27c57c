# SPDX-License-Identifier: Apache-2.0
"""What the two control planes say to each other over the link: one JSON object a message, sans-I/O.

P to S
    sync        {"token": n}   answer with a SYNC mark when the VM is not in the middle of a checkpoint
    epoch       {"number": n}  (back end `command`) both VMs stand still and are equal: put the mark
    alone       {"reason": s}  the primary goes on alone: the secondary's VM is out of date from now on
S to P
    lost-track  {"reason": s}  a checkpoint may have gone by unseen: sync again
    took-over   {"reason": s}  the secondary's TAPs are open: the primary must be silent
both
    left-out    {"place": s}   frames found no room: a checkpoint is wanted
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from coloproxy.errors import PeerError

_TEXT_MAX: Final = 500

_FIELDS: Final[Mapping[str, tuple[str, type]]] = {
    "sync": ("token", int),
    "epoch": ("number", int),
    "alone": ("reason", str),
    "lost-track": ("reason", str),
    "took-over": ("reason", str),
    "left-out": ("place", str),
}


@dataclass(frozen=True, slots=True)
class Message:
    """kind: a key of the table above. number, text: its one field, whichever of them it is."""

    kind: str
    number: int = 0
    text: str = ""


def encode(message: Message) -> bytes:
    name, kind = _FIELDS[message.kind]
    value: int | str = message.number if kind is int else message.text[:_TEXT_MAX]
    return json.dumps({"kind": message.kind, name: value}).encode()


def decode(data: bytes) -> Message:
    """Raises PeerError: it makes no sense."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PeerError(f"link: a message that is no JSON: {data[:60]!r}") from error
    kind = fields.get("kind") if isinstance(fields, dict) else None
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise PeerError(f"link: a message of no kind that is known: {data[:60]!r}")
    name, wanted = _FIELDS[kind]
    value = fields.get(name)
    if wanted is int and isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64:
        return Message(kind, number=value)
    if wanted is str and isinstance(value, str):
        return Message(kind, text=value[:_TEXT_MAX])
    raise PeerError(f"link: a message {kind} whose {name} makes no sense: {data[:60]!r}")
