# SPDX-License-Identifier: Apache-2.0
"""`coloproxy bench`."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from coloproxy.address import Address, parse_address
from coloproxy.bench.lines import HEADER, interval_line, summary
from coloproxy.bench.options import BenchOptions, Kind, Sockets, check_traffic, parse_number
from coloproxy.bench.result import Interval
from coloproxy.bench.run import run
from coloproxy.bench.traffic import Sink, TrafficConfig
from coloproxy.cli.app import FAILED, USAGE, app
from coloproxy.errors import ColoproxyError, MisuseError


@app.command()
def bench(
    comparator: Annotated[Kind, typer.Option(help="Started here, and ended.")] = Kind.COLOPROXY,
    comparator_options: Annotated[str, typer.Option(help="Its options.")] = "",
    unix: Annotated[bool, typer.Option("--unix", help="Unix sockets instead of TCP.")] = False,
    primary_in: Annotated[str | None, typer.Option(metavar="ADDR")] = None,
    secondary_in: Annotated[str | None, typer.Option(metavar="ADDR")] = None,
    outdev: Annotated[str | None, typer.Option(metavar="ADDR")] = None,
    notify_dev: Annotated[str | None, typer.Option(metavar="ADDR")] = None,
    pid: Annotated[int | None, typer.Option()] = None,
    flows: Annotated[int, typer.Option("--flows", "-P")] = 1,
    length: Annotated[str, typer.Option("--length", "-l")] = "1448",
    burst: Annotated[int, typer.Option()] = 16,
    rate: Annotated[str, typer.Option()] = "0",
    time: Annotated[float, typer.Option("--time", "-t")] = 10.0,
    omit: Annotated[float, typer.Option("--omit", "-O")] = 0.0,
    interval: Annotated[float, typer.Option("--interval", "-i")] = 1.0,
    skew: Annotated[str, typer.Option()] = "0",
    recut: Annotated[str, typer.Option()] = "0",
    sink: Annotated[str, typer.Option(help="verify, count or discard")] = "verify",
    turn: Annotated[str, typer.Option()] = "64K",
    window: Annotated[str | None, typer.Option("--window", "-w")] = None,
    udp: Annotated[bool, typer.Option("--udp", "-u")] = False,
    ipv6: Annotated[bool, typer.Option("--ipv6", "-6")] = False,
    vnet_hdr: Annotated[bool, typer.Option("--vnet-hdr")] = False,
) -> None:
    """Drives a comparator with made-up traffic of two VMs, and measures it."""
    console = Console(highlight=False, soft_wrap=True)
    code = USAGE
    try:
        traffic = TrafficConfig(
            flows=flows,
            length=parse_number(length, "--length", base=1024),
            burst=burst,
            rate=float(parse_number(rate, "--rate")),
            skew=parse_number(skew, "--skew", base=1024),
            recut=parse_number(recut, "--recut", base=1024),
            turn=parse_number(turn, "--turn", base=1024),
            sink=Sink[sink.upper()],
            udp=udp,
            ipv6=ipv6,
            vnet_hdr=vnet_hdr,
        )
        check_traffic(traffic)
        sockets = None
        if primary_in or secondary_in or outdev:
            if not (primary_in and secondary_in and outdev):
                raise MisuseError("--primary-in, --secondary-in and --outdev belong together")
            sockets = Sockets(
                *(
                    _address(text, name)
                    for text, name in (
                        (primary_in, "--primary-in"),
                        (secondary_in, "--secondary-in"),
                        (outdev, "--outdev"),
                        (notify_dev, "--notify-dev"),
                    )
                )
            )
        options = BenchOptions(
            traffic=traffic,
            sockets=sockets,
            pid=pid,
            comparator=comparator,
            comparator_options=tuple(shlex.split(comparator_options)),
            unix=unix,
            time=time,
            omit=omit,
            interval=interval,
            window=None if window is None else parse_number(window, "--window", base=1024),
        )
        code = FAILED
        console.print(HEADER)

        def tell(one: Interval) -> None:
            console.print(Text(interval_line(one)))

        result = run(options, tell)
        for line in summary(result):
            console.print(Text(line))
        code = FAILED if result.faults else 0
    except ColoproxyError as error:
        if isinstance(error, MisuseError):
            code = USAGE
        Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"coloproxy bench: {error}"))
    raise typer.Exit(code)


def _address(text: str | None, option: str) -> Address | None:
    if text is None:
        return None
    if text.startswith("listen:"):
        return parse_address(text.removeprefix("listen:"), option)
    return parse_address(text, option, may_listen=False)
