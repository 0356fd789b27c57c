# SPDX-License-Identifier: Apache-2.0
"""What the demo shows: steps as they happen, what coloproxy says meanwhile, and a board of how things stand."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

_NOTES_SHOWN = 8
_REFRESH_PER_SECOND = 8


class View:
    """A live screen on a terminal, plain lines elsewhere. A context manager."""

    def __init__(self, console: Console, *, live: bool | None = None) -> None:
        self.board: Callable[[], RenderableType] | None = None
        """How things stand, for the live screen."""
        self._console = console
        self._steps: list[tuple[str, float]] = []
        self._notes: deque[Text] = deque(maxlen=_NOTES_SHOWN)
        self._started = time.monotonic()
        self._progress: Callable[[], str] | None = None
        use_live = console.is_terminal if live is None else live
        self._live = (
            Live(console=console, get_renderable=self._render, refresh_per_second=_REFRESH_PER_SECOND, transient=True)
            if use_live
            else None
        )

    @property
    def live(self) -> bool:
        """Whether there is a screen with a board."""
        return self._live is not None

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
        self._steps.append((text, time.monotonic()))
        if not self._live:
            self._print(Text(f"{self._clock()}  {text} ..."))

    def done(self, result: str) -> None:
        """It has ended well."""
        text, _ = self._steps.pop()
        self._progress = None
        self._print(Text.assemble((f"{self._clock()}  ", "dim"), ("✓ ", "green"), text, (f"  {result}", "bold")))

    def note(self, who: str, line: str) -> None:
        """What coloproxy says meanwhile."""
        self._notes.append(Text.assemble((f"{self._clock()}  ", "dim"), (f"{who}: ", "cyan"), line))
        if not self._live:
            self._print(Text(f"{self._clock()}    {who}: {line}"))

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
            text, since = self._steps[-1]
            words = self._progress() if self._progress else f"{time.monotonic() - since:.1f} s"
            current = Text.assemble((f"{self._clock()}  ", "dim"), ("… ", "yellow"), text, (f"  {words}", "bold"))
        notes = Text("\n", overflow="ellipsis", no_wrap=True).join(self._notes) or Text("nothing yet")
        parts: list[RenderableType] = [current] if self.board is None else [current, self.board()]
        return Group(*parts, Panel(notes, title="what coloproxy says", border_style="cyan"))
