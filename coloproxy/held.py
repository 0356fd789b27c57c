# SPDX-License-Identifier: Apache-2.0
"""What follows the end of COLO is held, until it is known that the secondary does not go on.

A guide that hears that COLO has ended lets all go: a program that stands alone can't know better. A node does: the
secondary may be claiming the pair at that moment, and what this VM says meanwhile was never compared (R1).
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from .guide import Epochs
from .reports import Alone, Report, Trouble


class HeldAtTheEnd:
    """An Epochs for a guide, which can't end a protection that has begun.

    inner: the engine, or what is around it.
    hold: what is done in the place of `alone`: the engine's STOP.
    begun: a protection has begun already, under a predecessor.
    """

    def __init__(self, inner: Epochs, hold: Callable[[], None], *, begun: bool) -> None:
        self._inner = inner
        self._hold = hold
        self.holds = begun
        """It has begun, and nobody has said otherwise."""

    def let_go(self) -> None:
        """From now on the guide may end it."""
        self.holds = False

    def as_told(self, report: Report) -> Report:
        """What the guide reports, as it is."""
        if isinstance(report, Alone) and self.holds:
            return Trouble(f"no secondary any more ({report.reason}): all is held until it is known who goes on")
        return report

    def checkpoint_stop(self) -> None:
        self._inner.checkpoint_stop()

    def checkpoint_commit(self, resumed_ns: int) -> None:
        self.holds = True
        self._inner.checkpoint_commit(resumed_ns)

    def checkpoint_abort(self) -> None:
        self._inner.checkpoint_abort()

    def alone(self) -> None:
        if self.holds:
            self._hold()
        else:
            self._inner.alone()

    def gate_attach(self, sock: socket.socket) -> socket.socket:
        return self._inner.gate_attach(sock)

    def gate_done(self, messages: int) -> None:
        self._inner.gate_done(messages)

    def gate_detach(self) -> None:
        self._inner.gate_detach()
