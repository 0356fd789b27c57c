# SPDX-License-Identifier: Apache-2.0
"""Follows the file that `coloproxy compare --json-events FILE` writes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

_POLL_SECONDS = 0.05

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
            record: Record = json.loads(line)
            if record.get("event") != "stats":
                self.records.append(record)
            self._consumer(record)

    def count(self, event: str) -> int:
        """How many records of that kind there have been."""
        return sum(record.get("event") == event for record in self.records)
