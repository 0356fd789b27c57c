# SPDX-License-Identifier: Apache-2.0
"""A Result in short, for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from coloproxy.replay.recording import MAX_MISMATCHES, RecordingResult
from coloproxy.replay.result import ClassCounts, DivergenceRecord, Packet, Result, Tally
from coloproxy.report import render_terminal

__all__ = ["print_recording", "print_summary"]

_MOST = 10
_ALIGNED = {
    "start": "times: each capture from its own first packet (--align start)\n",
    "absolute": "times: as captured (--align absolute)\n",
}


def print_summary(result: Result, console: Console) -> None:
    """What was read and what became of it; where the two differ, the report's view and a line for each difference."""
    for source in result.sources:
        where = f" ({source.interface})" if source.interface is not None else ""
        extra = f", {_count(source.inbound)} inbound" if source.inbound.frames else ""
        console.print(Text(f"{source.role}: {source.path}{where}: {_count(source.read)}{extra}"))
    console.print(Text(_ALIGNED.get(str(result.settings.get("align")), "")), end="")
    if result.equal:
        console.print(_table(result))
        for note in result.notes:
            console.print(Text(f"note: {note}", style="yellow"))
        console.print(Text("equal: all that the primary sent was released", style="bold green"))
        return
    render_terminal(result, console)
    differences, withheld = len(result.divergences), result.total.withheld
    text = f"different: {differences} difference{'' if differences == 1 else 's'}, {_count(withheld)} withheld"
    console.print(Text(text, style="bold red"))
    for number, record in enumerate(result.divergences[:_MOST], 1):
        console.print(Text(f"{number}. {_line(record)}"))
    if differences > _MOST:
        console.print(Text(f"and {differences - _MOST} more; --json has all"))


def print_recording(result: RecordingResult, console: Console) -> None:
    """Whether a recording gives the verdicts that it has, and which it does not."""
    text = f"recording: {result.path}: {result.frames} frames and {result.marks} marks fed"
    console.print(Text(text + (f", {result.unfed} were never compared" if result.unfed else "")))
    for note in result.notes:
        console.print(Text(f"note: {note}", style="yellow"))
    if result.equal:
        console.print(Text(f"equal: all {result.same} verdicts are the recorded ones", style="bold green"))
        return
    total = result.same + result.different
    console.print(
        Text(f"different: {result.different} of {total} verdicts are not the recorded ones", style="bold red")
    )
    for mismatch in result.mismatches[:_MOST]:
        who = f"packet {mismatch.number} (seq {mismatch.seq}, {mismatch.side.name.lower()})"
        console.print(Text(f"{who}: recorded {mismatch.recorded}, replayed {mismatch.replayed}"))
    if result.different > _MOST:
        console.print(Text(f"and {result.different - _MOST} more; --json has the first {MAX_MISMATCHES}"))


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
