# SPDX-License-Identifier: Apache-2.0
"""`coloproxy bench policies`."""

from __future__ import annotations

import asyncio
import datetime
import json
import shlex
import sys
from enum import StrEnum
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coloproxy.cli.app import FAILED, INTERRUPTED, USAGE
from coloproxy.cli.bench import group
from coloproxy.cli.signals import until_signal
from coloproxy.errors import ColoproxyError, MisuseError

HELP: Final = "\n\n".join(
    (
        "Measures what checkpoint policies do, with real guests in COLO on this machine: on demand only (a checkpoint "
        "when the VMs differ), fixed periods, and adaptive (also when the network is quiet and many pages are dirty, "
        "so that the next one that a client waits for is short). Each policy gets a pair of its own, and the same "
        "requests at the same times.",
        "Needs root and Debian's packages: those that are missing are installed by apt-get. Leaves nothing behind but "
        "the cached guest. With the defaults it takes a quarter of an hour without KVM; [bold]--quick[/bold] shows in "
        "minutes that it works.",
    )
)

EPILOG: Final = """
[bold]Examples[/bold]:
  coloproxy bench policies --quick --work bursts-2000       a smoke run: its figures are no figures
  coloproxy bench policies                                  on demand, 1 s, 200 ms, adaptive with 5 %
  coloproxy bench policies --period 500 --budget 2 --budget 10       others against each other
  coloproxy bench policies -J > policies.json               every checkpoint and request, and the summary

[bold]How to read it[/bold]: a row for each policy; times in ms, and of few values a p99 is their maximum
  checkpoints       a minute; quiet: how many of them were taken in a quiet moment
  paused            the share of time that the VM stood still
  pause             from the VM's stop until it runs again
  waited for        pauses that a client waited for, since the VMs had differed
  differ            requests that the VMs answer differently, so that a checkpoint has to come first
  all               all requests
On a busy machine single rounds (-J has them) differ more than policies do.

[bold]Exit status[/bold]: 0 measured, and each request was answered rightly; 1 not so; 2 wrong usage; 130 interrupted.
"""

_COLUMNS: Final = {
    "checkpoints_per_minute": "checkpoints\n/ min",
    "quiet_per_minute": "\nquiet",
    "paused_percent": "paused\n%",
    "pause_p50_ms": "pause\np50",
    "pause_p99_ms": "\np99",
    "pause_max_ms": "\nmax",
    "waited_p50_ms": "waited for\np50",
    "waited_p99_ms": "\np99",
    "differ_p50_ms": "differ\np50",
    "differ_p99_ms": "\np99",
    "all_p50_ms": "all\np50",
    "all_p99_ms": "\np99",
}


class Attach(StrEnum):
    """How coloproxy and the VMs meet."""

    TAP = "tap"
    FILTERS = "filters"


class Work(StrEnum):
    """As coloproxy.bench.policies.WORKS; here for --help, which must not need the test bed."""

    BURSTS_2000 = "bursts-2000"
    BURSTS_8000 = "bursts-8000"
    BURSTS_IDLE = "bursts-idle"
    STEADY_2000 = "steady-2000"


@group.command(help=HELP, epilog=EPILOG)
def policies(
    rounds: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Each policy so often. [3; --quick: 1]", show_default=False)
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(metavar="S", min=1, help="Of each piece of work. [20; --quick: 3]", show_default=False),
    ] = None,
    work: Annotated[
        list[Work] | None,
        typer.Option(
            help="Bursts of eight requests, about 1 s apart, or a request each 5 ms without a lull; the number: "
            "pages/s that the guest writes besides. Repeatable. [all]",
            show_default=False,
        ),
    ] = None,
    period: Annotated[
        list[int] | None,
        typer.Option(metavar="MS", min=20, help="A fixed policy. Repeatable. [1000 and 200]", show_default=False),
    ] = None,
    budget: Annotated[
        list[int] | None,
        typer.Option(
            metavar="PERCENT",
            min=1,
            max=50,
            help="An adaptive policy: of the time, so much may go into checkpoints in quiet moments. Repeatable. [5]",
            show_default=False,
        ),
    ] = None,
    attach: Annotated[
        Attach, typer.Option(help="coloproxy run with TAPs, or coloproxy compare behind QEMU's filters.")
    ] = Attach.TAP,
    comparator_options: Annotated[
        str, typer.Option(metavar="TEXT", help="More for coloproxy compare (--attach filters).")
    ] = "",
    quick: Annotated[bool, typer.Option("--quick", help="A smoke run.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="The table for a document, with more columns.")] = False,
    json_output: Annotated[
        bool, typer.Option("--json", "-J", help="One JSON object, its schema in coloproxy/bench/policies.py.")
    ] = False,
) -> None:
    from coloproxy.bench import policies as bench  # pulls in the test bed: only for those who want it

    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    code = USAGE
    try:
        given: dict[str, Any] = {
            "rounds": rounds or (1 if quick else None),
            "seconds": seconds or (3.0 if quick else None),
            "works": tuple(each.value for each in work or ()),
            "periods": tuple(period or ()),
            "budgets": tuple(budget or ()),
            "comparator_options": tuple(shlex.split(comparator_options)),
        }
        options = bench.Options(attach=attach.value, **{key: value for key, value in given.items() if value})
        options.check()
        code = FAILED
        document = asyncio.run(until_signal(bench.measure(options, lambda line: _progress(errors, line))))
        if json_output:
            json.dump(document, sys.stdout, indent=1)
            sys.stdout.write("\n")
        elif markdown:
            sys.stdout.write("\n".join(bench.markdown(document)) + "\n")
        else:
            _show(document)
        code = 0 if bench.is_whole(document) else FAILED
    except ColoproxyError as error:
        code = USAGE if isinstance(error, MisuseError) else FAILED
        errors.print(Text(f"coloproxy bench policies: {error}"))
    except ValueError as error:  # shlex
        errors.print(Text(f"coloproxy bench policies: --comparator-options: {error}"))
    except (KeyboardInterrupt, asyncio.CancelledError):
        errors.print("coloproxy bench policies: interrupted; everything it started is gone")
        code = INTERRUPTED
    raise typer.Exit(code)


def _progress(console: Console, line: str) -> None:
    console.print(Text(f"{datetime.datetime.now():%H:%M:%S} {line}", "dim"))


def _show(document: dict[str, Any]) -> None:
    console = Console(highlight=False)
    for work, title in document["works"].items():
        table = Table(title=Text(title), title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
        table.add_column("\n", style="cyan", no_wrap=True)
        for name in _COLUMNS.values():
            table.add_column(name, justify="right")
        for policy, row in document["summary"][work].items():
            table.add_row(policy, *["-" if row[key] is None else f"{row[key]:.3g}" for key in _COLUMNS])
        console.print(table)
        console.print()
