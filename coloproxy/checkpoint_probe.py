# SPDX-License-Identifier: Apache-2.0
"""One round of questions to a QEMU that may be in any state: is it in COLO, on which side, and does the guest run?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

QUESTIONS: Final = ("query-migrate-capabilities", "query-colo-status", "query-migrate", "query-status")


def text_of(value: object, key: str) -> str:
    """value[key] as text, `none` if there is no such thing."""
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, str) else "none"


@dataclass(slots=True)
class Probe:
    """Answers so far."""

    missing: set[str] = field(default_factory=lambda: set(QUESTIONS))
    run_state: str = "none"
    running: bool = False
    migration: str = "none"
    mode: str = "none"
    events_on: bool = False  # migration capability `events`

    @property
    def in_colo(self) -> bool:
        return self.migration == "colo"

    @property
    def is_secondary(self) -> bool:
        return self.mode == "secondary"

    def answer(self, question: str, value: object) -> bool:
        """Takes one reply; True when all are in."""
        match question:
            case "query-status":
                self.run_state = text_of(value, "status")
                self.running = isinstance(value, Mapping) and value.get("running") is True
            case "query-migrate":
                self.migration = text_of(value, "status")
            case "query-colo-status":
                self.mode = text_of(value, "mode")
            case "query-migrate-capabilities":
                entries = value if isinstance(value, list) else []
                self.events_on = any(
                    isinstance(entry, Mapping) and entry.get("capability") == "events" and entry.get("state") is True
                    for entry in entries
                )
            case _:
                raise AssertionError(question)
        self.missing.discard(question)
        return not self.missing
