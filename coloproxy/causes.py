# SPDX-License-Identifier: Apache-2.0
"""Causes of checkpoints, as few words: what is counted by cause must not have as many keys as there are clients.

A checkpoint's causes are texts for people ("payload in TCP 10.0.0.1:80 -> ..."). `kind_of` sorts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from coloproxy.checkpoint_policy import PERIOD, QUIET
from coloproxy.command_checkpoint import WHY_AGAIN, WHY_BEGIN, WHY_UNMARKED
from coloproxy.events import Cause

QEMU: Final = "qemu"  # nobody here asked: QEMU's own period, or somebody else
BEGIN: Final = "begin"  # the secondary is there, for the first time or again
LEFT_OUT: Final = "left-out"  # frames for or of the secondary found no room
UNMARKED: Final = "unmarked"
REQUEST: Final = "request"  # the operator: whatever else has a reason

_COMPARATOR: Final = frozenset(str(cause) for cause in Cause if cause is not Cause.NONE)
_FIXED: Final = {
    WHY_BEGIN: BEGIN,
    WHY_AGAIN: BEGIN,
    "the secondary is connected anew": BEGIN,
    WHY_UNMARKED: UNMARKED,
    QUIET: QUIET,
    PERIOD: PERIOD,
}

KINDS: Final = (*sorted(_COMPARATOR), BEGIN, LEFT_OUT, UNMARKED, PERIOD, QUIET, REQUEST, QEMU)
"""All that `kind_of` returns."""


def kind_of(causes: Sequence[str]) -> str:
    """The kind of a checkpoint's first cause, so that each checkpoint is counted once."""
    if not causes:
        return QEMU
    first = causes[0]
    word = first.partition(" in ")[0]
    if word in _COMPARATOR:
        return word
    if first.endswith(" was full"):
        return LEFT_OUT
    return _FIXED.get(first, REQUEST)
