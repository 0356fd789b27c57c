# SPDX-License-Identifier: Apache-2.0
"""Options of the comparator that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

RULES, LIMITS = "Comparison", "Limits"


def _limit(text: str) -> Any:
    return typer.Option(metavar="N", min=1, rich_help_panel=LIMITS, help=text)


RulesFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=RULES,
        help="TOML file that says which flows are compared, pass, or wait for checkpoints; see docs/rules.md.",
    ),
]
MaxQueueSize = Annotated[
    int | None, _limit("Unmatched frames of one side of one flow. More ask for a checkpoint; none is dropped.")
]
MaxFlowBytes = Annotated[int | None, _limit("Bytes of those frames.")]
MaxFlows = Annotated[
    int | None,
    _limit("Flows; idle ones make room: closed ones first, then half-open ones. At most 512 bytes each."),
]
MaxFragments = Annotated[
    int | None,
    _limit(
        "Fragments of one side that wait for the rest of their datagram. More of the secondary's push out the oldest; "
        "more of the primary's wait for a checkpoint."
    ),
]
MaxFrames = Annotated[int | None, _limit("Frames held, both sides together.")]
MaxBytes = Annotated[int | None, _limit("Bytes held, both sides together.")]
