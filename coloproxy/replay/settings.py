# SPDX-License-Identifier: Apache-2.0
"""How to replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from coloproxy.config import ComparatorOptions

__all__ = ["Align", "ReplayOptions"]


class Align(Enum):
    """How the clocks of two captures are brought together."""

    START = "start"
    ABSOLUTE = "absolute"


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """What `coloproxy replay` was told.

    Attributes:
        primary: capture of the primary's output, or of both on two interfaces.
        secondary: capture of the secondary's; None: the primary's file has both.
        inbound: capture of the client's frames, None: none.
        align: None: START for two files, ABSOLUTE for one.
        vm: MAC and IP addresses of the VM: frames from them are its output, all others inbound; empty: all are output.
        primary_interface, secondary_interface: name or number of the interface to take from its file; None: all, and
            with one file the first and the second.
        checkpoint_after: ns from a wish for a checkpoint to the simulated commit; None: none happens.
        comparator: the comparator's options.
        shown: options as the user gave them, for the result.
    """

    primary: str
    secondary: str | None = None
    inbound: str | None = None
    align: Align | None = None
    vm: tuple[str, ...] = ()
    primary_interface: str | None = None
    secondary_interface: str | None = None
    checkpoint_after: int | None = None
    comparator: ComparatorOptions = field(default_factory=ComparatorOptions)
    shown: Mapping[str, object] = field(default_factory=dict)

    @property
    def alignment(self) -> Align:
        """What ``align`` comes to."""
        return self.align or (Align.ABSOLUTE if self.secondary is None else Align.START)
