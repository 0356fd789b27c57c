# SPDX-License-Identifier: Apache-2.0
"""A VM that is alone and that QEMU has stopped because its disk is full: it is let go on when there is room again.

QEMU keeps the write that failed, and makes it once more after `cont`. Whether there is room is not asked beforehand: a
disk that is still full stops the VM again, and nothing is lost. Pure; times are seconds of any one clock.
"""

from __future__ import annotations

import enum

IO_ERROR = "io-error"
"""QEMU's run state then; an operator's `stop` is another one, and is left alone."""


class Step(enum.Enum):
    """What is to be done."""

    CONT = "cont"
    OVER = "over"
    """It runs again: tell."""


class Halt:
    """reason: why the VM stands still, as QEMU said first; None: it does not.

    retry_s: from one attempt to the next; so long without a new error it counts as running.
    """

    def __init__(self, retry_s: float) -> None:
        self.reason: str | None = None
        self._retry = retry_s
        self._heard = self._next = 0.0

    def stopped(self, reason: str, now: float) -> bool:
        """QEMU has stopped the VM. True: that is news; False: an attempt has failed."""
        self._heard = now
        if self.reason is not None:
            return False
        self.reason, self._next = reason, now + self._retry
        return True

    def look(self, status: str | None, now: float) -> Step | None:
        """status: QEMU's run state; None: not known."""
        if self.reason is None:
            return None
        if status == IO_ERROR:
            if now < self._next:
                return None
            self._next = now + self._retry
            return Step.CONT
        if status == "running" and now - self._heard >= self._retry:
            self.reason = None
            return Step.OVER
        return None

    def forget(self) -> None:
        """That VM is no more, or is not this host's to care for."""
        self.reason = None
