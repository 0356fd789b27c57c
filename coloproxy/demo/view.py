# SPDX-License-Identifier: Apache-2.0
"""What the demo shows: steps as they happen, the proxy's counters live, each checkpoint and why it happened."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from coloproxy.demo.journal import Record

_EVENTS_SHOWN = 8
_REFRESH_PER_SECOND = 8


class View:
    """A live screen on a terminal, plain lines elsewhere. A context manager."""

    def __init__(self, console: Console, *, live: bool | None = None) -> None:
        self._console = console
        self._steps: list[tuple[str, str]] = []
        self._events: deque[str] = deque(maxlen=_EVENTS_SHOWN)
        self._stats: Record = {}
        self._started = time.monotonic()
        self._progress: Callable[[], str] | None = None
        use_live = console.is_terminal if live is None else live
        self._live = (
            Live(console=console, get_renderable=self._render, refresh_per_second=_REFRESH_PER_SECOND, transient=True)
            if use_live
            else None
        )

    def __enter__(self) -> View:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def explain(self, text: str) -> None:
        """A sentence for newcomers, ahead of what happens next."""
        self._print(Text(text, style="dim"))

    def step(self, text: str, progress: Callable[[], str] | None = None) -> None:
        """Something begins; `progress` is asked for a few words while it lasts."""
        self._progress = progress
        self._steps.append((text, ""))
        if not self._live:
            self._print(Text(f"{self._clock()}  {text} ..."))

    def done(self, result: str) -> None:
        """It has ended well."""
        text, _ = self._steps.pop()
        self._progress = None
        self._print(Text.assemble((f"{self._clock()}  ", "dim"), ("✓ ", "green"), text, (f"  {result}", "bold")))

    def event(self, record: Record) -> None:
        """One record of the proxy's journal."""
        if record.get("event") == "stats":
            self._stats = record
            return
        line = describe(record)
        if not line:
            return
        self._events.append(line)
        if not self._live:
            self._print(Text(f"{self._clock()}    proxy: {line}"))

    def show(self, renderable: RenderableType) -> None:
        """Print something for good."""
        self._print(renderable)

    def _print(self, renderable: RenderableType) -> None:
        self._console.print(renderable, soft_wrap=isinstance(renderable, Text))

    def _clock(self) -> str:
        return f"{time.monotonic() - self._started:6.1f} s"

    def _render(self) -> RenderableType:
        current = Text()
        if self._steps:
            text = self._steps[-1][0]
            if self._progress:
                text += f"  {self._progress()}"
            current = Text.assemble((f"{self._clock()}  ", "dim"), ("… ", "yellow"), text)
        events = Text("\n".join(self._events) or "nothing yet", overflow="ellipsis", no_wrap=True)
        return Group(current, self._counters(), Panel(events, title="what the proxy says", border_style="cyan"))

    def _counters(self) -> Table:
        table = Table(title="the proxy's counters", title_justify="left", expand=True)
        rows = counter_rows(self._stats)
        for name, _ in rows:
            table.add_column(name, justify="right")
        table.add_row(*(value for _, value in rows))
        return table


def counter_rows(stats: Record) -> list[tuple[str, str]]:
    """The counters worth a column, from a `stats` record (empty before the first)."""

    def number(name: str) -> str:
        value: Any = stats.get(name)
        return f"{value:,}" if isinstance(value, int) else "-"

    return [
        ("primary frames", number("primary_frames")),
        ("secondary frames", number("secondary_frames")),
        ("released: equal", number("released_matched")),
        ("by checkpoint", number("released_committed")),
        ("ACKs lowered", number("acks_lowered")),
        ("ACKs sent later", number("acks_emitted")),
        ("held now", number("held_frames")),
        ("checkpoints", number("checkpoints")),
    ]


def describe(record: Record) -> str:
    """A journal record in a line for people; empty for those that the demo does not show."""
    event = record.get("event")
    if event == "divergence":
        flow = record["flow"]["text"] if record["flow"] else "no flow"
        return (
            f"the two VMs differ ({record['cause']}) in {flow}, offset {record['offset']}: "
            f"primary {evidence(record, 'primary')!r}, secondary {evidence(record, 'secondary')!r}"
        )
    if event in ("protected", "checkpoint-asked", "checkpoint-committed", "checkpoint-failed", "alone", "qmp-lost"):
        return str(record.get("text", event))
    return ""


def evidence(record: Record, side: str) -> str:
    """A few characters of that side, from the first that differs."""
    text: str = record[side]["text"]
    return text[record["context"] :][:24]
