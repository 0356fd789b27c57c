# SPDX-License-Identifier: Apache-2.0
"""The report on a terminal: the first difference, and how many more there are.

Verdict and counts are not here: the command has told them before (coloproxy.replay's summary).
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from coloproxy.report.hexview import Half
from coloproxy.report.page import clean
from coloproxy.report.view import Difference, View

__all__ = ["print_view"]

_HISTORY_BEFORE, _HISTORY_AFTER = 12, 4
_DIFFERS = "bold reverse"


def print_view(view: View, console: Console) -> None:
    """Prints it. Nothing from a capture is taken for markup or a control sequence."""
    if view.differences:
        _print_difference(view.differences[0], console)
        others = len(view.differences) - 1 + len(view.more) + view.more_untold
        if others:
            console.print(_text(f"{others:,} more; --report DIR writes a page that has them."))
    for name, meaning in view.limits:
        console.print(_text(f"Limit {name}: {meaning}"))


def _text(text: str, style: str = "") -> Text:
    return Text(clean(text), style=style)


def _print_difference(difference: Difference, console: Console) -> None:
    console.print()
    console.print(_text(f"The first difference: {difference.why.title}", "bold"))
    console.print(_text(difference.flow))
    for words in (difference.why.meaning, difference.why.usual, difference.why.remedy):
        console.print(_text(words, "dim"))
    facts = Table(box=None, show_header=False, pad_edge=False)
    for name, value in difference.facts:
        facts.add_row(_text(name, "dim"), _text(value))
    console.print(facts)
    console.print()
    console.print(_text(difference.rows_say))
    _print_bytes(difference, console)
    _print_fields(difference, console)
    _print_history(difference, console)


def _print_bytes(difference: Difference, console: Console) -> None:
    """Side by side where the terminal is wide enough, one below the other where it is not."""
    width = max((len(str(row.offset)) for row in difference.rows), default=1)
    side_by_side = console.width >= width + 2 * (16 * 4 + 3)
    for row in difference.rows:
        line = Text(f"{row.offset:>{width}}  ", style="dim")
        line.append_text(_half(row.primary, "P"))
        line.append("\n" + " " * (width + 2) if not side_by_side else "  ")
        line.append_text(_half(row.secondary, "S"))
        console.print(line, no_wrap=True, overflow="ignore", crop=False)


def _half(half: Half, name: str) -> Text:
    line = Text(f"{name} ", style="not dim")
    for i, run in enumerate(half.runs):
        line.append(" " if i else "")
        line.append(run.hex, style=_DIFFERS if run.differs else "")
    shown = sum(len(run.text) for run in half.runs)
    line.append(" " * (16 * 3 + 1 - max(0, shown * 3 - 1)))
    for run in half.runs:
        line.append(run.text, style=_DIFFERS if run.differs else "")
    line.append(" " * (16 - shown))
    return line


def _print_fields(difference: Difference, console: Console) -> None:
    for note in difference.decoding_notes:
        console.print(_text(note, "dim"))
    table = Table(box=None, pad_edge=False)
    for name in ("decoded", "primary", "secondary"):
        table.add_column(name, overflow="fold")
    for layer in difference.layers:
        for field in layer.fields:
            if field.differs and field.compared:
                values = ("none" if value is None else value for value in (field.primary, field.secondary))
                table.add_row(_text(f"{layer.name} {field.name}"), *(_text(value) for value in values))
    if table.row_count:
        console.print()
        console.print(table)


def _print_history(difference: Difference, console: Console) -> None:
    rows = difference.history
    here = next((i for i, row in enumerate(rows) if row.here), len(rows))
    shown = rows[max(0, here - _HISTORY_BEFORE) : here + _HISTORY_AFTER + 1]
    if not shown:
        return
    table = Table(box=None, pad_edge=False)
    for name in ("ms", "side", "packet", "frame", "verdict"):
        table.add_column(name, justify="right" if name in ("ms", "packet") else "left")
    for row in shown:
        cells = (row.when, row.role, str(row.number), row.what, row.verdict)
        table.add_row(*(_text(cell) for cell in cells), style="bold" if row.here else "")
    console.print()
    console.print(table)
