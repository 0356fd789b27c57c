# SPDX-License-Identifier: Apache-2.0
"""Replay: captures of two VMs' output against each other, by the comparator that runs in `coloproxy compare`.

``replay_files`` reads captures; ``Replay`` is the core without I/O; ``Result`` is what both give.
"""

from __future__ import annotations

from coloproxy.replay.core import Replay
from coloproxy.replay.lane import Input
from coloproxy.replay.result import (
    ClassCounts,
    DivergenceRecord,
    FlowResult,
    HistoryEntry,
    Packet,
    Progress,
    Result,
    Role,
    Source,
    Tally,
)
from coloproxy.replay.run import ProgressCallback, replay_files
from coloproxy.replay.settings import Align, ReplayOptions

__all__ = [
    "Align",
    "ClassCounts",
    "DivergenceRecord",
    "FlowResult",
    "HistoryEntry",
    "Input",
    "Packet",
    "Progress",
    "ProgressCallback",
    "Replay",
    "ReplayOptions",
    "Result",
    "Role",
    "Source",
    "Tally",
    "replay_files",
]
