# SPDX-License-Identifier: Apache-2.0
"""How long the peer has been silent, as far as we were there to listen. Pure."""

from __future__ import annotations

from typing import Final

PATIENCE: Final = 4
"""Whoever stalls all the time judges all the same, once he has listened in vain for PATIENCE timeouts in all."""


class Silence:
    """One listener. Times: ns of one monotonic clock.

    It is over when we have listened in vain for `limit`. Our own stalls are left out of that, and each is followed by
    a grace, as long as the stall and one `interval` of the peer's, `limit` at most: before that has passed it isn't
    over either, but for PATIENCE.
    """

    __slots__ = ("_counted", "_grace", "_interval", "_limit", "_since")

    def __init__(self, limit: int, interval: int, now: int) -> None:
        self._limit = limit
        self._interval = interval
        self._since = now
        self._counted = 0  # listened in vain before `_since`
        self._grace = now  # not over before that

    def heard(self, now: int) -> None:
        """A word of the peer's."""
        self._since = max(self._since, now)
        self._counted = 0

    def stalled(self, due: int, now: int) -> None:
        """We should have been awake at `due`, and are so only now. What we missed since then is nobody's silence."""
        self._counted += max(0, due - self._since)
        self._since = max(self._since, now)
        self._grace = now + min(self._limit, now - due + self._interval)

    def deadline(self) -> int:
        """When it is over, if nothing comes."""
        regular = max(self._since + max(0, self._limit - self._counted), self._grace)
        return min(regular, self._since + max(0, PATIENCE * self._limit - self._counted))

    def over(self, now: int) -> bool:
        return now >= self.deadline()
