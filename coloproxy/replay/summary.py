# SPDX-License-Identifier: Apache-2.0
"""A Result in short, for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from coloproxy.replay.result import ClassCounts, DivergenceRecord, Packet, Result, Tally

__all__ = ["print_summary"]

_MOST = 10


def print_summary(result: Result, console: Console) -> None:
    """What was read, what became of it, and the first differences, a line each."""
    for source in result.sources:
        where = f" ({source.interface})" if source.interface is not None else ""
        extra = f", {_count(source.inbound)} inbound" if source.inbound.frames else ""
        console.print(Text(f"{source.role}: {source.path}{where}: {_count(source.read)}{extra}"))
    console.print(_table(result))
    for note in result.notes:
        console.print(Text(f"note: {note}", style="yellow"))
    if result.equal:
        console.print(Text("equal: all that the primary sent was released", style="bold green"))
        return
    differences, withheld = len(result.divergences), result.total.withheld
    text = f"different: {differences} difference{'' if differences == 1 else 's'}, {_count(withheld)} withheld"
    console.print(Text(text, style="bold red"))
    for number, record in enumerate(result.divergences[:_MOST], 1):
        console.print(Text(f"{number}. {_line(record)}"))
    if differences > _MOST:
        console.print(Text(f"and {differences - _MOST} more; --json has all"))


def _count(tally: Tally) -> str:
    return f"{tally.frames} frame{'' if tally.frames == 1 else 's'} ({tally.bytes} bytes)"


def _table(result: Result) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("frames")
    columns = ("primary", "secondary", "released", "passed", "withheld", "unmatched")
    for name in columns:
        table.add_column(name, justify="right")
    rows: list[tuple[str, ClassCounts]] = [(str(kind), row) for kind, row in result.classes.items()]
    if len(rows) != 1:
        rows.append(("all", result.total))
    for name, row in rows:
        table.add_row(name, *(str(getattr(row, column).frames) for column in columns))
    return table


def _line(record: DivergenceRecord) -> str:
    event = record.event
    flow = "frames without a flow" if event.flow is None else str(event.flow)
    return (
        f"{event.time / 1e9:.6f} s {event.cause}: {flow}, offset {event.offset}: "
        f"primary {_place(record.primary)}, secondary {_place(record.secondary)}"
    )


def _place(packet: Packet | None) -> str:
    return "said nothing" if packet is None else f"packet {packet.number}"
