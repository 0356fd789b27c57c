# SPDX-License-Identifier: Apache-2.0
"""What a report shows, as plain text and numbers: made by coloproxy.report.build, drawn as HTML or on a terminal."""

from __future__ import annotations

from dataclasses import dataclass

from coloproxy.report.decode import LayerRow
from coloproxy.report.explain import Explanation
from coloproxy.report.hexview import HexRow

__all__ = ["Difference", "HistoryRow", "View"]


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One frame of the flow. `when` is in ms, relative to the difference; `here`: it is one of the two that differ."""

    when: str
    role: str
    number: int
    what: str
    verdict: str
    here: bool


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference in full.

    Attributes:
        number: from 1, in the order found.
        flow: both ends in words.
        facts: short names and values, for a table.
        why: the cause in words.
        rows: both sides' bytes around the difference.
        rows_say: what the rows show.
        layers: both packets' fields; empty where there is no decoding, then `decoding_notes` say why.
        history: the flow's frames around the difference.
        history_cut: what is left out of it, in words.
        plot: an SVG element, safe as it stands, and the same in words.
    """

    number: int
    flow: str
    facts: tuple[tuple[str, str], ...]
    why: Explanation
    rows: tuple[HexRow, ...]
    rows_say: str
    layers: tuple[LayerRow, ...]
    decoding_notes: tuple[str, ...]
    history: tuple[HistoryRow, ...]
    history_cut: str
    plot: str | None
    plot_words: str


@dataclass(frozen=True, slots=True)
class View:
    """A whole report.

    Attributes:
        good: all was released and nothing differed.
        verdict: one sentence.
        counts: a table by class: its head and its rows, the last one the total.
        sources: what was read, a row each.
        differences: in full; `more` of them are not, in words, one a line.
        limits: limits that were met.
        tolerated: samples of what rules let pass, a line each, and how often they did.
        settings: the command's options.
        command: what repeats it, for a shell.
        notes: what was settled while reading.
    """

    good: bool
    verdict: str
    counts_head: tuple[str, ...]
    counts: tuple[tuple[str, ...], ...]
    sources: tuple[tuple[str, ...], ...]
    differences: tuple[Difference, ...]
    more: tuple[str, ...]
    more_untold: int
    limits: tuple[tuple[str, str], ...]
    tolerated: tuple[str, ...]
    tolerated_times: int
    settings: tuple[tuple[str, str], ...]
    command: str
    notes: tuple[str, ...]
