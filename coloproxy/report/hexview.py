# SPDX-License-Identifier: Apache-2.0
"""Two byte strings side by side, in hex and text, with the bytes that differ marked. Pure: values in, rows out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

__all__ = ["HALF_WIDTH", "Half", "HexRow", "Run", "printable", "side_by_side", "window"]

HALF_WIDTH = 16
"""Bytes of each side in a row, as in the field's own dumps."""


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring bytes of one row that are all equal to the other side's, or all not.

    Attributes:
        hex: two digits a byte, with blanks between.
        text: one character a byte, a dot for what can't be printed.
        differs: the other side has another byte, or none, at each of these places.
    """

    hex: str
    text: str
    differs: bool


@dataclass(frozen=True, slots=True)
class Half:
    """One side of a row; `missing` counts the places at its end for which this side has no byte."""

    runs: tuple[Run, ...]
    missing: int


@dataclass(frozen=True, slots=True)
class HexRow:
    """`offset` is that of the row's first byte."""

    offset: int
    primary: Half
    secondary: Half


def printable(data: bytes) -> str:
    """One character a byte: ASCII as it stands, a dot for everything else."""
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)


def side_by_side(primary: bytes, secondary: bytes, start: int, width: int = HALF_WIDTH) -> tuple[HexRow, ...]:
    """Rows of `width` bytes of each side; the first byte of both has the offset `start`.

    A byte differs if the other side has another one or none at its place. Where one side is wholly empty there is
    nothing to compare with, and nothing is marked.
    """
    compare = bool(primary) and bool(secondary)
    longest = max(len(primary), len(secondary))
    rows = []
    for at in range(0, longest, width):
        places = range(at, min(at + width, longest))
        differs = [compare and primary[i : i + 1] != secondary[i : i + 1] for i in places]
        rows.append(
            HexRow(
                start + at,
                _half(primary[at : at + width], differs),
                _half(secondary[at : at + width], differs),
            )
        )
    return tuple(rows)


def _half(data: bytes, differs: list[bool]) -> Half:
    runs = []
    for mark, group in groupby(range(len(data)), key=lambda i: differs[i]):
        indices = list(group)
        piece = data[indices[0] : indices[-1] + 1]
        runs.append(Run(piece.hex(" "), printable(piece), mark))
    return Half(tuple(runs), len(differs) - len(data))


def window(primary: bytes, secondary: bytes, around: int, size: int) -> tuple[int, bytes, bytes]:
    """Cuts both sides to at most `size` bytes around index `around`: (index of the first one kept, both pieces)."""
    first = max(0, around - size // 2)
    first -= first % HALF_WIDTH
    return first, primary[first : first + size], secondary[first : first + size]
