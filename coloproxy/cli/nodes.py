# SPDX-License-Identifier: Apache-2.0
"""Where `coloproxy status` and `coloproxy top` find the nodes of a pair on this host."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from coloproxy.cli.config import RoleOption, load_or_exit
from coloproxy.control.client import ask
from coloproxy.errors import ControlError
from coloproxy.pair.model import RUNTIME_DIRECTORY

ANSWER_S = 5.0
UNREACHABLE = 3

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="The pair's file.")]
SocketOption = Annotated[
    list[Path] | None,
    typer.Option("--socket", metavar="PATH", help="A control socket, instead of -c; twice: of both nodes."),
]


def sockets(config: Path | None, given: Sequence[Path] | None) -> list[Path]:
    """The control sockets to ask: two at most. Ends the command for a wrong usage."""
    if config is not None and given:
        raise typer.BadParameter("use either --socket or -c")
    if given:
        if len(given) > 2:
            raise typer.BadParameter("a pair has two nodes")
        return list(given)
    if config is not None:
        both = [load_or_exit(config, role).control_socket for role in RoleOption]
        return [path for path in dict.fromkeys(both) if path.exists()] or both[:1]
    found = sorted(RUNTIME_DIRECTORY.glob("*.sock"))
    names = ", ".join(path.name for path in found) or "none"
    if len(found) != 1:
        raise typer.BadParameter(f"which pair? -c FILE, or --socket PATH; in {RUNTIME_DIRECTORY}: {names}")
    return found


async def statuses(paths: Sequence[Path]) -> tuple[list[dict[str, Any] | None], list[str]]:
    """What each says, None for one that can't be asked; and why not."""
    answers = await asyncio.gather(
        *(asyncio.to_thread(ask, path, "status", timeout=ANSWER_S) for path in paths), return_exceptions=True
    )
    found: list[dict[str, Any] | None] = []
    reasons = []
    for path, answer in zip(paths, answers, strict=True):
        if isinstance(answer, BaseException) and not isinstance(answer, ControlError):
            raise answer
        found.append(answer if isinstance(answer, dict) else None)
        if not isinstance(answer, dict):
            reasons.append(str(answer) if isinstance(answer, ControlError) else f"{path}: the answer is no status")
    return found, reasons
