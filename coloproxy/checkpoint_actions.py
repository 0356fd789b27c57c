# SPDX-License-Identifier: Apache-2.0
"""What the checkpoint controller asks its adapter to do, and the times it goes by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .reports import Report

ON_DEMAND_ONLY: Final = 2147483647  # ms; the largest x-checkpoint-delay QEMU takes: 24 days


@dataclass(frozen=True, slots=True)
class SendCommand:
    """Send a QMP command; its outcome comes back as `on_reply(token, ...)` or `on_failure(token, ...)`."""

    token: int
    name: str
    arguments: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class EngineStop:
    """Engine.checkpoint_stop()."""


@dataclass(frozen=True, slots=True)
class EngineCommit:
    """Engine.checkpoint_commit(resumed_ns)."""

    resumed_ns: int


@dataclass(frozen=True, slots=True)
class EngineAbort:
    """Engine.checkpoint_abort()."""


@dataclass(frozen=True, slots=True)
class EngineAlone:
    """Engine.alone()."""


Action = SendCommand | EngineStop | EngineCommit | EngineAbort | EngineAlone | Report


@dataclass(frozen=True, slots=True)
class Timing:
    """All in ns, but for `checkpoint_delay_ms`.

    min_interval  from one commit to the next request. 20 ms by default: about what a checkpoint itself costs, so
                  that a guest which always differs still runs half of the time, and too little for a client to notice.
    retry         without a STOP for so long, a request is taken for lost and sent again. Measured with QEMU 7.2: 2 to
                  16 ms from command to STOP as a median, 189 ms at worst.
    deadline      QEMU should have answered by then.
    patience      that many deadlines in a row make a report.
    probe_retry   from a question that QEMU could not answer to the next.
    """

    checkpoint_delay_ms: int = ON_DEMAND_ONLY
    min_interval: int = 20_000_000
    retry: int = 250_000_000
    deadline: int = 1_000_000_000
    patience: int = 3
    probe_retry: int = 500_000_000
