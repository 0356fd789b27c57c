# SPDX-License-Identifier: Apache-2.0
"""`coloproxy demo`."""

from __future__ import annotations

import asyncio
import enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from coloproxy.cli.app import FAILED, INTERRUPTED, app
from coloproxy.cli.signals import until_signal
from coloproxy.errors import ColoproxyError


class Nic(enum.Enum):
    """The demo's choice of network cards."""

    E1000 = "e1000"
    VIRTIO = "virtio"


class Attach(enum.Enum):
    """How coloproxy and the VMs meet."""

    TAP = "tap"
    FILTERS = "filters"


DEMO_HELP = """
Shows on this machine what coloproxy does. Network namespaces stand for two hosts, their clients and an etcd; one host
has a disk image, and [b]coloproxy node[/b] on each makes a protected VM of it. Then, under a download, an upload and a
write log, the primary's host dies, comes back and is the secondary; then the secondary's host dies and comes back. In
the end the disk is examined.

Needs root and Debian's packages: those that are missing are installed by apt-get. Takes less than a minute without KVM,
uses KVM where it works, and leaves nothing behind but the cached guest.
"""

EPILOG = """
[bold]Exit status[/bold]: 0 all of it held, 1 it did not or this machine can't run it, 130 interrupted.
"""


@app.command(help=DEMO_HELP, epilog=EPILOG)
def demo(
    attach: Annotated[
        Attach | None,
        typer.Option(
            help="Instead: a pair without disk that fails over once. tap: under coloproxy run. filters: with coloproxy "
            "compare behind QEMU's own filters."
        ),
    ] = None,
    nic: Annotated[Nic, typer.Option(help="The VM's network card.")] = Nic.VIRTIO,
    kvm: Annotated[bool, typer.Option("--kvm/--no-kvm", help="Use KVM where it works.")] = True,
    fast: Annotated[bool, typer.Option("--fast", help="Smaller disk and transfers, for slow machines.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of a live screen.")] = False,
    keep_logs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the logs of QEMU and coloproxy there.")
    ] = None,
) -> None:
    from coloproxy.demo import DemoOptions, run_demo  # pulls in the test bed: only for those who want it

    console = Console(highlight=False)
    options = DemoOptions(
        attach=attach.value if attach else None,
        nic=nic.value,
        allow_kvm=kvm,
        fast=fast,
        keep_logs=keep_logs,
        plain=plain,
    )
    code = 0
    try:
        asyncio.run(until_signal(run_demo(options, console)))
    except ColoproxyError as error:
        console.print(Text(f"coloproxy demo: {error}", style="bold red"), soft_wrap=True)
        code = FAILED
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("coloproxy demo: interrupted; everything it started is gone")
        code = INTERRUPTED
    raise typer.Exit(code)
