# SPDX-License-Identifier: Apache-2.0
"""The wish for a checkpoint: many wants make one request, sent when allowed, and again when QEMU lost it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from .checkpoint_actions import Timing

MAX_CAUSES: Final = 8  # remembered for one request; more would only say the same


@dataclass(slots=True)
class Request:
    """Empty (no causes) while no checkpoint is wanted. Times in ns.

    sent_at     the first sending, None: not sent yet
    last_sent   the latest sending that still counts, None: to be sent at `not_before`
    not_before  no sending before that time
    """

    causes: list[str] = field(default_factory=list)
    sent_at: int | None = None
    last_sent: int | None = None
    attempts: int = 0
    not_before: int = 0

    def remember(self, cause: str) -> None:
        """One more want. The first causes are kept."""
        if cause not in self.causes and len(self.causes) < MAX_CAUSES:
            self.causes.append(cause)

    def next_sending(self, timing: Timing) -> int | None:
        """When it is to be sent (again), None: never."""
        if not self.causes:
            return None
        if self.last_sent is None:
            return self.not_before
        return max(self.not_before, self.last_sent + timing.retry)

    def mark_sent(self, now: int) -> None:
        """It goes out now."""
        self.attempts += 1
        self.last_sent = now
        if self.sent_at is None:
            self.sent_at = now

    def send_afresh(self) -> None:
        """Whoever was asked is gone: to be sent again without waiting."""
        self.sent_at = self.last_sent = None
        self.attempts = 0

    def forget(self) -> None:
        """Nothing is wanted any more."""
        self.causes = []
        self.send_afresh()
