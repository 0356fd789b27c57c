# SPDX-License-Identifier: Apache-2.0
"""`coloproxy run`: the command line of the TAP attach."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Annotated, Literal

import typer

from coloproxy.errors import ColoproxyError
from coloproxy.lines import LineWriter

from .app import FAILED, USAGE, app
from .logs import set_up_logging


@app.command()
def run(
    role: Annotated[Literal["primary", "secondary"], typer.Option(help="Which of the pair's hosts this is.")],
    config: Annotated[Path, typer.Option("-c", "--config", help="The pair's file; the same on both hosts.")],
    state: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="Where a survivor keeps the connections that it has to translate."
        ),
    ] = None,
) -> None:
    """Mirror, compare, translate and fail over: the whole data path of this host's VMs, beside any VMM.

    On the [b]primary[/b] host: clients' frames go to the VM and, over the link, to the other host's; what both say is
    compared, and a checkpoint is asked for when it differs. On the [b]secondary[/b] host: the VM is fed what clients
    send, with its TCP numbers translated; its TAP stays closed until [b]coloproxy ctl failover[/b].

    Needs root to begin with (or CAP_NET_ADMIN, and CAP_NET_RAW for packet sockets); with [b]process.user[/b] in the
    file it becomes that user once its devices are open. SIGINT and SIGTERM end it, SIGHUP has it read its file again.

    See docs/run.md for a pair from scratch, docs/configuration.md for each key of the file, docs/control.md for
    [b]coloproxy ctl[/b] and systemd.
    """
    from coloproxy.pair import load
    from coloproxy.run.host import Host
    from coloproxy.run.privileges import no_new_privileges

    try:
        pair = load(config, role)
    except ColoproxyError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(USAGE) from error
    if pair.process.user is not None:
        no_new_privileges()  # the threads that write are there before the rights are given up
    writer = LineWriter(2, "coloproxy-log")
    level = pair.process.log_level
    set_up_logging(writer, verbose=level == "debug", quiet=level in ("warning", "error"))

    async def serve() -> int:
        return await Host(config, role, pair, state=state).run()

    code = FAILED
    try:
        code = asyncio.run(serve())
    except ColoproxyError as error:
        logging.getLogger(__name__).log(logging.ERROR, "%s", error)
    finally:
        writer.close()
    raise typer.Exit(code)
