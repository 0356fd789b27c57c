# SPDX-License-Identifier: Apache-2.0
"""Follows the file that `--json-events FILE` or `json_events` names, and puts its records into words."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_POLL_SECONDS = 0.05
_TOLD = ("protected", "checkpoint-asked", "checkpoint-committed", "checkpoint-failed", "alone", "qmp-lost")

Record = dict[str, Any]


class JournalFollower:
    """Hands each record on as it is written. ``records`` keeps those that are no statistics."""

    def __init__(self, path: Path, consumer: Callable[[Record], None]) -> None:
        self.records: list[Record] = []
        self._path = path
        self._consumer = consumer
        self._rest = b""
        self._read = 0

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            self.poll()
            await asyncio.sleep(_POLL_SECONDS)

    def poll(self) -> None:
        """Take in what has been written since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        self._read += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                record: Record = json.loads(line)
            except ValueError:  # a SIGKILL has cut one short, and the next coloproxy goes on behind it
                continue
            if record.get("event") != "stats":
                self.records.append(record)
            self._consumer(record)

    async def wait(self, event: str, since: int, deadline: float) -> bool:
        """Until a record of that kind has come behind the first `since`; False: not within `deadline` seconds."""
        return await self.wait_for(lambda: any(record["event"] == event for record in self.records[since:]), deadline)

    async def wait_for(self, told: Callable[[], bool], deadline: float) -> bool:
        """Until `records` have it; False: not within `deadline` seconds.

        The proxy writes its journal beside its work: a client can have its answer a moment earlier.
        """
        until = time.monotonic() + deadline
        while not told():
            if time.monotonic() >= until:
                return False
            await asyncio.sleep(_POLL_SECONDS)
            self.poll()
        return True


def describe(record: Record) -> str:
    """A journal record in a line for people; empty for those that the demo does not show."""
    event = record.get("event")
    if event == "divergence":
        flow = record["flow"]["text"] if record["flow"] else "no flow"
        return (
            f"the two VMs differ ({record['cause']}) in {flow}, offset {record['offset']}: "
            f"primary {evidence(record, 'primary')!r}, secondary {evidence(record, 'secondary')!r}"
        )
    return str(record.get("text", event)) if event in _TOLD else ""


def evidence(record: Record, side: str) -> str:
    """A few characters of that side, from the first that differs."""
    text: str = record[side]["text"]
    return text[record["context"] :][:24]
