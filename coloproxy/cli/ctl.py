# SPDX-License-Identifier: Apache-2.0
"""`coloproxy ctl`."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from coloproxy.cli.app import FAILED, app
from coloproxy.cli.config import RoleOption, load_or_exit
from coloproxy.control.client import ControlClient
from coloproxy.control.protocol import MAX_WAIT_S
from coloproxy.control.view import line, render
from coloproxy.errors import ControlError, ControlUnreachable
from coloproxy.node.view import render as render_nodes
from coloproxy.pair.model import RUNTIME_DIRECTORY

UNREACHABLE = 3
PIPE_WIDTH = 160
"""Columns of a status that goes into a pipe or a file."""
ANSWER_S = 10.0
"""Beside what --wait gives, for an answer."""


class Command(enum.Enum):
    """What a running coloproxy can be asked for."""

    STATUS = "status"
    CHECKPOINT = "checkpoint"
    FAILOVER = "failover"
    ALONE = "alone"
    RELOAD = "reload"
    START = "start"


CTL_HELP = """
Asks a running coloproxy on this host.

[bold]status[/bold]: what it does and how it is. [bold]checkpoint[/bold]: asks for one. [bold]failover[/bold]: the
secondary takes over: its TAPs open to the network and it announces itself. Make sure first that the primary is dead or
cut off. [bold]alone[/bold]: the primary goes on without a secondary: releases what it holds and passes everything.
[bold]reload[/bold]: reads the pair's file again.

Of [bold]coloproxy node[/bold], which decides by itself: [bold]status[/bold], [bold]checkpoint[/bold];
[bold]start[/bold]: runs a VM again that its guest has shut down; [bold]failover --force[/bold] or
[bold]alone --force[/bold]: go on here, whatever the other host does. You must know that it is off, or choose to lose
its data.
"""

EPILOG = r"""
Without -c and --socket: the one coloproxy that has its socket in /run/coloproxy.

[bold]Exit status[/bold]: 0 done, 1 refused or failed, 2 wrong usage, 3 coloproxy can't be reached.
"""


@app.command(help=CTL_HELP, epilog=EPILOG)
def ctl(
    command: Annotated[Command, typer.Argument(help="What to ask for.")],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="The pair's file; with --role.")
    ] = None,
    role: Annotated[RoleOption | None, typer.Option(help="This host's role.")] = None,
    socket: Annotated[
        Path | None, typer.Option("--socket", metavar="PATH", help="The control socket, instead of -c and --role.")
    ] = None,
    vm: Annotated[str | None, typer.Option(metavar="NAME", help="That VM alone; left out: all of the pair's.")] = None,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="For the logs of both hosts.")] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="failover, though the primary is alive: it is silenced first. Node: go on here.",
        ),
    ] = False,
    network_only: Annotated[
        bool,
        typer.Option(
            "--network-only",
            help="failover, alone: don't tell QEMU (x-colo-lost-heartbeat); somebody else does, or there is none.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as it came, as JSON.")] = False,
    wait: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0,
            max=MAX_WAIT_S,
            help="Wait so long for coloproxy to be there, and then until what was asked for has happened: a checkpoint "
            "has committed; the VM of a node is served. If it has not, that is an error.",
        ),
    ] = None,
) -> None:
    path = _socket(config, role, socket)
    arguments: dict[str, Any] = {} if vm is None else {"vm": vm}
    if command is not Command.STATUS:
        arguments |= {"wait_s": wait} if wait is not None else {}
        arguments |= {"reason": reason} if reason is not None else {}
    if force and command not in (Command.FAILOVER, Command.ALONE):
        raise typer.BadParameter("--force is for failover, and for alone of a node")
    if network_only and command not in (Command.FAILOVER, Command.ALONE):
        raise typer.BadParameter("--network-only is for failover and alone")
    arguments |= {name: True for name, given in (("force", force), ("network_only", network_only)) if given}
    try:
        with ControlClient(path, timeout=ANSWER_S + (wait or 0), appear=wait or 0) as client:
            answer = client.request(command.value, arguments)
    except ControlError as error:
        typer.echo(f"coloproxy ctl: {error}", err=True)
        raise typer.Exit(UNREACHABLE if isinstance(error, ControlUnreachable) else FAILED) from None
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        _show(command, answer)


def _socket(config: Path | None, role: RoleOption | None, socket: Path | None) -> Path:
    if socket is not None and (config is not None or role is not None):
        raise typer.BadParameter("use either --socket or -c with --role")
    if socket is not None:
        return socket
    if config is not None and role is not None:
        return load_or_exit(config, role).control_socket
    if config is not None or role is not None:
        raise typer.BadParameter("-c and --role go together: each role has a socket of its own")
    found = sorted(RUNTIME_DIRECTORY.glob("*.sock"))
    found = [path for path in found if path.stem.endswith(("-primary", "-secondary", "-a", "-b"))]
    if len(found) == 1:
        return found[0]
    what = f"several: {', '.join(path.name for path in found)}" if found else "none"
    raise typer.BadParameter(f"which coloproxy? -c FILE --role ROLE, or --socket PATH; in {RUNTIME_DIRECTORY}: {what}")


def _show(command: Command, answer: Any) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    if command is Command.STATUS and isinstance(answer, dict):
        console.print(render_nodes(answer, None) if "host" in answer else render(answer))
    elif isinstance(answer, dict) and answer:
        console.print(line(answer))
    else:
        console.print(Text(f"{command.value}: done" if answer in (None, {}) else str(answer)))
