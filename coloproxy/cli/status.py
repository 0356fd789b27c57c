# SPDX-License-Identifier: Apache-2.0
"""`coloproxy status`."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

import typer
from rich.console import Console

from coloproxy.cli.app import app
from coloproxy.cli.nodes import UNREACHABLE, ConfigOption, SocketOption, sockets, statuses
from coloproxy.node.view import render, told_of

PIPE_WIDTH = 160
"""Columns of what goes into a pipe or a file."""

EPILOG = r"""
Without -c and --socket: the one coloproxy that has its socket in /run/coloproxy.

[bold]Exit status[/bold]: 0 a node answers, 2 wrong usage, 3 none can be reached.
"""


@app.command(epilog=EPILOG)
def status(
    config: ConfigOption = None,
    socket: SocketOption = None,
    as_json: Annotated[bool, typer.Option("--json", help='{"nodes": [...]}, as the nodes gave it.')] = False,
) -> None:
    """Shows both nodes of a pair: this host's, and the other one's as far as this one hears of it."""
    found, reasons = asyncio.run(statuses(sockets(config, socket)))
    for reason in reasons:
        typer.echo(f"coloproxy status: {reason}", err=True)
    known = [each for each in found if each is not None]
    if not known:
        raise typer.Exit(UNREACHABLE)
    if as_json:
        heard = told_of(known[0]) if len(known) == 1 else None
        typer.echo(json.dumps({"nodes": known, "heard": heard}, indent=2))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    console.print(render(known[0], known[1] if len(known) > 1 else None))
