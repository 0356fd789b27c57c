# SPDX-License-Identifier: Apache-2.0
"""`coloproxy top`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from coloproxy.cli.app import app
from coloproxy.cli.nodes import UNREACHABLE, ConfigOption, SocketOption, sockets, statuses
from coloproxy.cli.status import PIPE_WIDTH
from coloproxy.node.view import render

QUIT = frozenset("qQ\x03\x04")


@app.command()
def top(
    config: ConfigOption = None,
    socket: SocketOption = None,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, max=3600, help="From one look to the next.")
    ] = 1.0,
) -> None:
    """Shows both nodes of a pair live, with rates. [b]q[/b] ends it.

    Where there is no terminal it prints once. Exit status as of [b]coloproxy status[/b].
    """
    paths = sockets(config, socket)
    console = Console(highlight=False)
    if not (console.is_terminal and sys.stdin.isatty()):
        console = Console(highlight=False, width=PIPE_WIDTH)
        found, reasons = asyncio.run(statuses(paths))
        console.print(_screen(found, reasons, [], 0.0))
        raise typer.Exit(0 if any(found) else UNREACHABLE)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_live(console, paths, interval))


async def _live(console: Console, paths: Sequence[Path], interval: float) -> None:
    """Until a key that ends it. A node that does not answer is shown as that, and asked again."""
    before: list[dict[str, Any] | None] = []
    seen = 0.0
    with _keys() as quit_, Live(console=console, screen=True, auto_refresh=False) as live:
        while not quit_.is_set():
            found, reasons = await statuses(paths)
            now = time.monotonic()
            live.update(_screen(found, reasons, before, now - seen if before else 0.0), refresh=True)
            before, seen = found, now
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(quit_.wait(), interval)


def _screen(
    found: Sequence[dict[str, Any] | None],
    reasons: Sequence[str],
    before: Sequence[dict[str, Any] | None],
    seconds: float,
) -> RenderableType:
    known = [each for each in found if each is not None]
    shown = render(known[0] if known else None, known[1] if len(known) > 1 else None, before, seconds)
    return Group(shown, *(Text(reason, "red") for reason in reasons))


@contextlib.contextmanager
def _keys() -> Iterator[asyncio.Event]:
    """An event that is set by a key of QUIT; the terminal is as before afterwards."""
    quit_ = asyncio.Event()
    fd = sys.stdin.fileno()
    loop = asyncio.get_running_loop()

    def read() -> None:
        data = os.read(fd, 64)
        if not data or QUIT & set(data.decode(errors="replace")):
            quit_.set()

    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    loop.add_reader(fd, read)
    try:
        yield quit_
    finally:
        loop.remove_reader(fd)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
