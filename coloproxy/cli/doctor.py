# SPDX-License-Identifier: Apache-2.0
"""`coloproxy doctor`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coloproxy.cli.app import app
from coloproxy.cli.config import RoleOption, load_or_exit
from coloproxy.cli.status import PIPE_WIDTH
from coloproxy.control.view import plain

EPILOG = r"""
[bold]Exit status[/bold]: 0 all is well, 1 there are warnings, 2 something must be mended (or wrong usage).
"""
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@app.command(epilog=EPILOG)
def doctor(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="The pair's file: look at what it says too.")
    ] = None,
    role: Annotated[
        RoleOption | None, typer.Option(help="With -c: this host's role; with \\[node] the first one.")
    ] = None,
    peer: Annotated[str | None, typer.Option(metavar="HOST", help="The other host's address, without -c.")] = None,
    image: Annotated[list[Path] | None, typer.Option(metavar="PATH", help="An image of the VM's.")] = None,
    overlays: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the overlays are put.")] = None,
    ram: Annotated[int | None, typer.Option(metavar="KIB", min=1, help="The guest's RAM.")] = None,
    qemu: Annotated[str, typer.Option(metavar="PROGRAM", help="QEMU.")] = "qemu-system-x86_64",
    only: Annotated[list[str] | None, typer.Option(metavar="CHECK", help="That check alone.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Examines this host: QEMU, kernel, rights, clock, network, disks; says what does not fit, and what to do.

    Changes nothing. Run it as root, on both hosts, before the first start. See docs/doctor.md for each check.
    """
    from coloproxy.doctor import CHECKS, Subject, examine
    from coloproxy.doctor.subject import of_pair

    if (config is None) != (role is None):
        raise typer.BadParameter("-c and --role go together: the hosts differ")
    if unknown := [name for name in only or () if name not in CHECKS]:
        raise typer.BadParameter(f"there is no check {unknown[0]!r}; there are {', '.join(CHECKS)}")
    subject = Subject(
        qemu=qemu,
        peer=peer,
        images=tuple(image or ()),
        overlays=overlays,
        ram_bytes=None if ram is None else ram << 10,
    )
    if config is not None and role is not None:
        views = {each: load_or_exit(config, each) for each in RoleOption}
        (other,) = (view for each, view in views.items() if each is not role)
        subject = of_pair(views[role], subject, other)
    findings = [(each.name, each.looks_at, finding) for each, finding in examine(subject, only)]
    worst = max((finding.level for _, _, finding in findings), default=0)
    if as_json:
        document = [
            {"check": name, "looks_at": looks_at, "result": str(each.level), "text": each.text, "do": each.do}
            for name, looks_at, each in findings
        ]
        typer.echo(json.dumps({"result": int(worst), "findings": document}, indent=2))
    else:
        _show((name, str(each.level), each.text, each.do) for name, _, each in findings)
    raise typer.Exit(int(worst))


def _show(rows: Iterable[tuple[str, str, str, str]]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    for name, level, text, do in rows:
        what = Text(plain(text))
        if do:
            what.append(f"\n-> {plain(do)}", "dim")
        table.add_row(Text(level, _STYLES[level]), name, what)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    console.print(table)
