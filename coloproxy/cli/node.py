# SPDX-License-Identifier: Apache-2.0
"""`coloproxy node`: the command line of a pair that heals itself."""

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
def node(
    host: Annotated[Literal["a", "b"], typer.Option(help="Which of the pair's two hosts this is, for good.")],
    config: Annotated[Path, typer.Option("-c", "--config", help="The pair's file; the same on both hosts.")],
) -> None:
    """Take a VM from an image on disk to a protected pair, keep it so, fail over, and protect the survivor again.

    Run it on both hosts, under a supervisor that starts it again. The pair begins on the host that has the disks'
    images ([b]a[/b] if both have). QEMU is started by the node and outlives it; a node that starts again adopts it.

    What it does and why is in [b]coloproxy status[/b] and in the log, a line for each change of state. Needs root.

    See docs/node.md for a pair from scratch, docs/node-table.md for each step of its life, docs/arbiter.md for who goes
    on when the hosts lose each other.
    """
    from coloproxy.node.node import Node
    from coloproxy.node.setting import Setting

    try:
        setting = Setting.load(config, host)
    except ColoproxyError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(USAGE) from error
    writer = LineWriter(2, "coloproxy-log")
    level = setting.pair.process.log_level
    set_up_logging(writer, verbose=level == "debug", quiet=level in ("warning", "error"))
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request

    async def serve() -> int:
        return await Node(setting).run()

    code = FAILED
    try:
        code = asyncio.run(serve())
    except ColoproxyError as error:
        logging.getLogger(__name__).log(logging.ERROR, "%s", error)
    finally:
        writer.close()
    raise typer.Exit(code)
