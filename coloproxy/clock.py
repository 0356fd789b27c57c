# SPDX-License-Identifier: Apache-2.0
"""QEMU's wall-clock timestamps on our monotonic clock. Both processes run on the same host."""

from __future__ import annotations

import time
from collections.abc import Mapping


def monotonic_of(timestamp: object, mono: int, real: int) -> int | None:
    """The time of a QMP event on CLOCK_MONOTONIC, in ns; None if the event carries no usable time.

    timestamp: QMP's {"seconds": s, "microseconds": us} (QEMU: qapi/qmp-event.c; -1 where its clock failed).
    mono, real: CLOCK_MONOTONIC and CLOCK_REALTIME in ns, read at reception in this order: so the result errs to the
    early side, as QEMU's own truncation to microseconds does.
    """
    if not isinstance(timestamp, Mapping):
        return None
    seconds, micros = timestamp.get("seconds"), timestamp.get("microseconds")
    if not isinstance(seconds, int) or not isinstance(micros, int) or seconds < 0 or micros < 0:
        return None
    return (seconds * 1_000_000 + micros) * 1000 - real + mono


def receive(timestamp: object) -> tuple[int | None, int]:
    """(time of the event, now) for an event that has just been received, both CLOCK_MONOTONIC ns."""
    mono = time.monotonic_ns()
    real = time.time_ns()
    return monotonic_of(timestamp, mono, real), mono
