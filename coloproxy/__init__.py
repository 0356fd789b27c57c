# SPDX-License-Identifier: Apache-2.0
"""coloproxy: everything around an unmodified QEMU that COLO needs.

Public API: `Comparator` (sans-I/O, to drive by hand), what it takes and gives, and the exception tree in
`coloproxy.errors`. The command line is `coloproxy --help`.
"""

from __future__ import annotations

from coloproxy.comparator import Comparator, Counters, Discarded, Emitted, Frame, Released
from coloproxy.errors import ColoproxyError
from coloproxy.events import (
    Cause,
    CheckpointWanted,
    Divergence,
    FlowId,
    FrameClass,
    LimitHit,
    Mode,
    Reason,
    Side,
    Tolerated,
)

__all__ = [
    "Cause",
    "CheckpointWanted",
    "ColoproxyError",
    "Comparator",
    "Counters",
    "Discarded",
    "Divergence",
    "Emitted",
    "FlowId",
    "Frame",
    "FrameClass",
    "LimitHit",
    "Mode",
    "Reason",
    "Released",
    "Side",
    "Tolerated",
    "__version__",
]

__version__ = "0.1.0"
