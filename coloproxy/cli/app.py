# SPDX-License-Identifier: Apache-2.0
"""The `coloproxy` command itself; each of its commands is a module beside this one."""

from __future__ import annotations

from typing import Annotated

import typer

from coloproxy import __version__

FAILED = 1
USAGE = 2
INTERRUPTED = 130

app = typer.Typer(
    name="coloproxy",
    help="Everything around an unmodified QEMU that COLO needs.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"coloproxy {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Everything around an unmodified QEMU that COLO needs."""
