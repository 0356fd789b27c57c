# SPDX-License-Identifier: Apache-2.0
"""How long the peer has been silent, as far as we were there to listen. Pure."""

from __future__ import annotations

from typing import Final

PATIENCE: Final = 4
"""Whoever stalls all the time judges all the same, once he has listened in vain for PATIENCE timeouts in all."""


class Silence:
    """One listener. Times: ns of one monotonic clock.

    It is over when `limit` has passed without a word and without a stall of ours in between; or, if we stall again and
    again, when the times in which we did listen add up to PATIENCE x limit.
    """

    __slots__ = ("_counted", "_limit", "_since")

    def __init__(self, limit: int, now: int) -> None:
        self._limit = limit
        self._since = now
        self._counted = 0

    def heard(self, now: int) -> None:
        """A word of the peer's."""
        self._since = max(self._since, now)
        self._counted = 0

    def stalled(self, due: int, now: int) -> None:
        """We should have been awake at `due`, and are so only now. What we missed since then is nobody's silence."""
        self._counted += max(0, due - self._since)
        self._since = max(self._since, now)

    def deadline(self) -> int:
        """When it is over, if nothing comes."""
        return self._since + min(self._limit, max(0, PATIENCE * self._limit - self._counted))

    def over(self, now: int) -> bool:
        return now >= self.deadline()
