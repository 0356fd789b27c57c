# SPDX-License-Identifier: Apache-2.0
"""`coloproxy bench`."""

from __future__ import annotations

import json
import math
import shlex
import sys
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from coloproxy.address import Address, parse_address
from coloproxy.cli.app import FAILED, INTERRUPTED, USAGE, app
from coloproxy.errors import AddressError, ColoproxyError, MisuseError

BENCH_HELP = "\n\n".join(
    (
        "Measures a comparator: makes up what a primary and a secondary VM put out, takes what is released, checks it.",
        "Without addresses it starts a comparator on loopback, drives it, and ends it: [bold]coloproxy compare[/bold], "
        "QEMU's colo-compare object, or a relay that compares nothing and so shows what the sockets alone allow.",
        "[bold]ADDR[/bold] is what the comparator was told: HOST:PORT, \\[IPV6]:PORT or unix:PATH; it is connected "
        "to, or with the prefix listen: waited at. Sizes take K, M, G (1,024), rates K, M, G (1,000).",
        "In two commands: [bold]--client[/bold] is both VMs, [bold]--server[/bold] the client's network; latency needs "
        "both ends in one command.",
    )
)

EPILOG = """
[bold]Examples[/bold]:
  coloproxy bench                                       our comparator, full speed, one flow, 10 s
  coloproxy bench --comparator qemu -P 100              QEMU's, 100 flows
  coloproxy bench --comparator relay --turn 256K -w 256K      what the sockets allow
  coloproxy bench -l 65000 --vnet-hdr -t 5 -J           TSO super-frames, JSON as iperf3's
  coloproxy bench --request-response -P 50 --think-time 10    latency of 50 busy clients
  coloproxy bench --skew 1M --recut 536 --loss 0.1 -b 500M    a secondary that is behind, and cuts otherwise
  coloproxy bench --divergence 20 -b 200M               how checkpoints go: 20 wrong frames in a million

[bold]A comparator that runs already[/bold] (coloproxy compare with the same addresses):
  coloproxy bench --primary-in 127.0.0.1:9001 --secondary-in 127.0.0.1:9002 --outdev 127.0.0.1:9003 --pid 4711

[bold]In two commands[/bold]; the server first:
  coloproxy bench --server --outdev 127.0.0.1:9003
  coloproxy bench --client --primary-in 127.0.0.1:9001 --secondary-in 127.0.0.1:9002

[bold]Real guests[/bold]: what checkpoint policies do for pauses and for clients
  coloproxy bench policies --help

[bold]Exit status[/bold]: 0 all that the primary sent came out, once, in order and unchanged; 1 it did not, or the run
failed; 2 wrong usage; 130 ended by Ctrl-C (the summary is printed all the same).
"""

COMPARATOR, TRAFFIC, SECONDARY, RUN, OUTPUT = "Comparator", "Traffic", "The secondary", "Run", "Output"


class ComparatorName(StrEnum):
    """As coloproxy.bench.options.Kind; here for --help, which must not need the generator."""

    COLOPROXY = "coloproxy"
    QEMU = "qemu"
    RELAY = "relay"


class SinkName(StrEnum):
    """As coloproxy.bench.traffic.Sink."""

    VERIFY = "verify"
    COUNT = "count"
    DISCARD = "discard"


group = typer.Typer(rich_markup_mode="rich")
app.add_typer(group, name="bench")


@group.callback(invoke_without_command=True, help=BENCH_HELP, epilog=EPILOG)
def bench(
    context: typer.Context,
    comparator: Annotated[
        ComparatorName, typer.Option(rich_help_panel=COMPARATOR, help="Which to start, on loopback; ended afterwards.")
    ] = ComparatorName.COLOPROXY,
    comparator_options: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            rich_help_panel=COMPARATOR,
            help="More options for it: of `coloproxy compare`, or properties of QEMU's object "
            "(compare_timeout=1000,...).",
        ),
    ] = "",
    unix: Annotated[
        bool, typer.Option("--unix", rich_help_panel=COMPARATOR, help="Unix sockets to it instead of TCP.")
    ] = False,
    checkpoints: Annotated[
        bool,
        typer.Option(
            "--checkpoints",
            rich_help_panel=COMPARATOR,
            help="Give it a notify_dev, so that it can ask for checkpoints. Implied by --divergence.",
        ),
    ] = False,
    primary_in: Annotated[
        str | None,
        typer.Option(
            metavar="ADDR", rich_help_panel=COMPARATOR, help="Where a running one takes the primary's frames."
        ),
    ] = None,
    secondary_in: Annotated[
        str | None, typer.Option(metavar="ADDR", rich_help_panel=COMPARATOR, help="And the secondary's.")
    ] = None,
    outdev: Annotated[
        str | None, typer.Option(metavar="ADDR", rich_help_panel=COMPARATOR, help="And releases them.")
    ] = None,
    notify_dev: Annotated[
        str | None,
        typer.Option(metavar="ADDR", rich_help_panel=COMPARATOR, help="And asks for checkpoints, with Xen's messages."),
    ] = None,
    pid: Annotated[
        int | None,
        typer.Option(metavar="PID", min=1, rich_help_panel=COMPARATOR, help="Its process, to measure its CPU time."),
    ] = None,
    may_lose: Annotated[
        bool,
        typer.Option(
            "--may-lose",
            rich_help_panel=COMPARATOR,
            help="Frames lost or out of order are told, but no failure. Implied by --comparator qemu: it loses some.",
        ),
    ] = False,
    client: Annotated[
        bool, typer.Option("--client", rich_help_panel=COMPARATOR, help="Only send: both VMs' output.")
    ] = False,
    server: Annotated[
        bool, typer.Option("--server", rich_help_panel=COMPARATOR, help="Only receive, until outdev closes.")
    ] = False,
    flows: Annotated[
        int, typer.Option("--flows", "-P", metavar="N", rich_help_panel=TRAFFIC, help="TCP connections, or UDP flows.")
    ] = 1,
    length: Annotated[
        str,
        typer.Option("--length", "-l", metavar="BYTES", rich_help_panel=TRAFFIC, help="Payload of a segment."),
    ] = "1448",
    burst: Annotated[
        int,
        typer.Option(
            metavar="N", rich_help_panel=TRAFFIC, help="Segments of one flow before the next flow has its turn."
        ),
    ] = 16,
    bitrate: Annotated[
        str, typer.Option("--bitrate", "-b", metavar="BITS", rich_help_panel=TRAFFIC, help="Payload bits/s; 0: all.")
    ] = "0",
    rate: Annotated[
        str, typer.Option(metavar="N", rich_help_panel=TRAFFIC, help="Segments/s, in place of --bitrate; 0: all.")
    ] = "0",
    udp: Annotated[bool, typer.Option("--udp", "-u", rich_help_panel=TRAFFIC, help="Datagrams.")] = False,
    ipv6: Annotated[bool, typer.Option("--ipv6", "-6", rich_help_panel=TRAFFIC, help="IPv6.")] = False,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", rich_help_panel=TRAFFIC, help="TCP segments with timestamps.")
    ] = False,
    vnet_hdr: Annotated[
        bool,
        typer.Option(
            "--vnet-hdr",
            rich_help_panel=TRAFFIC,
            help="With virtio-net headers (vnet_hdr_support=on); longer segments are TSO super-frames then.",
        ),
    ] = False,
    request_response: Annotated[
        bool,
        typer.Option(
            "--request-response",
            rich_help_panel=TRAFFIC,
            help="Each flow has one response of --length (default 200) under way; latency of all of them.",
        ),
    ] = False,
    think_time: Annotated[
        float,
        typer.Option(metavar="MS", min=0, rich_help_panel=TRAFFIC, help="From a response's release to the next one."),
    ] = 0.0,
    skew: Annotated[
        str, typer.Option(metavar="BYTES", rich_help_panel=SECONDARY, help="It is so much of the payload behind.")
    ] = "0",
    recut: Annotated[
        str, typer.Option(metavar="BYTES", rich_help_panel=SECONDARY, help="Its own segment length; 0: --length.")
    ] = "0",
    loss: Annotated[
        float,
        typer.Option(
            metavar="PERCENT", min=0, max=100, rich_help_panel=SECONDARY, help="Of its segments that come 20 ms late."
        ),
    ] = 0.0,
    divergence: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, rich_help_panel=SECONDARY, help="Of a million segments that have a wrong byte."
        ),
    ] = 0,
    checkpoint_pause: Annotated[
        float,
        typer.Option(
            metavar="MS",
            min=0,
            rich_help_panel=SECONDARY,
            help="How long both stand still when a checkpoint is asked for.",
        ),
    ] = 10.0,
    time: Annotated[
        float | None,
        typer.Option(
            "--time", "-t", metavar="S", min=0.01, rich_help_panel=RUN, help="Default: 10; none with -n or --server."
        ),
    ] = None,
    bytes_: Annotated[
        str | None, typer.Option("--bytes", "-n", metavar="BYTES", rich_help_panel=RUN, help="Payload to send.")
    ] = None,
    connect_timeout: Annotated[
        float, typer.Option(metavar="S", min=0, rich_help_panel=RUN, help="To a comparator that runs already.")
    ] = 10.0,
    omit: Annotated[
        float, typer.Option("--omit", "-O", metavar="S", min=0, rich_help_panel=RUN, help="Not measured, at the start.")
    ] = 0.0,
    drain: Annotated[
        float,
        typer.Option(
            metavar="S", min=0, rich_help_panel=RUN, help="Wait so long for missing frames after the last one."
        ),
    ] = 5.0,
    sink: Annotated[
        SinkName,
        typer.Option(
            rich_help_panel=RUN,
            help="verify: each byte; count: frames; discard: bytes, without a copy. The cheaper last.",
        ),
    ] = SinkName.VERIFY,
    turn: Annotated[
        str,
        typer.Option(metavar="BYTES", rich_help_panel=RUN, help="Given to one side's socket before the other's turn."),
    ] = "64K",
    window: Annotated[
        str | None,
        typer.Option(
            "--window", "-w", metavar="BYTES", rich_help_panel=RUN, help="Socket buffers. Default: the kernel's."
        ),
    ] = None,
    affinity: Annotated[
        bool,
        typer.Option(
            "--affinity/--no-affinity",
            rich_help_panel=RUN,
            help="The generator has a CPU of its own, a comparator that is started here the others.",
        ),
    ] = True,
    sample_every: Annotated[
        int, typer.Option(metavar="N", min=0, rich_help_panel=RUN, help="Latency of each Nth segment; 0: of none.")
    ] = 64,
    seed: Annotated[int, typer.Option(metavar="N", min=1, rich_help_panel=RUN, help="Of loss and divergence.")] = 1,
    interval: Annotated[
        float, typer.Option("--interval", "-i", metavar="S", min=0, rich_help_panel=OUTPUT, help="0: no lines.")
    ] = 1.0,
    json_output: Annotated[
        bool, typer.Option("--json", "-J", rich_help_panel=OUTPUT, help="One JSON object, of iperf3's shape.")
    ] = False,
) -> None:
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    # Not before now: --help and the other commands do without the generator.
    from coloproxy.bench.document import document
    from coloproxy.bench.lines import HEADER, interval_line, summary
    from coloproxy.bench.options import (
        DEFAULT_TIME_S,
        BenchOptions,
        Kind,
        Role,
        Sockets,
        check_sockets,
        check_traffic,
        parse_number,
    )
    from coloproxy.bench.result import Interval
    from coloproxy.bench.run import run
    from coloproxy.bench.traffic import Sink, TrafficConfig

    console = Console(highlight=False, soft_wrap=True)
    code = USAGE
    try:
        if client and server:
            raise MisuseError("--client and --server: one of them, or none for both in one")
        role = Role.CLIENT if client else Role.SERVER if server else Role.BOTH
        size = 200 if request_response and length == "1448" else parse_number(length, "--length", base=1024)
        bits, frames = parse_number(bitrate, "--bitrate"), parse_number(rate, "--rate")
        if bits and frames:
            raise MisuseError("--bitrate and --rate: one of them")
        amount = None if bytes_ is None else parse_number(bytes_, "--bytes", base=1024)
        traffic = TrafficConfig(
            flows=1 << 20 if role is Role.SERVER else flows,
            length=size,
            recut=parse_number(recut, "--recut", base=1024),
            burst=1 if request_response else burst,
            turn=parse_number(turn, "--turn", base=1024),
            skew=parse_number(skew, "--skew", base=1024),
            max_segments=0 if amount is None else max(1, math.ceil(amount / max(1, size))),
            rate=frames or (bits / 8 / max(1, size)),
            sample_every=1 if request_response else sample_every,
            loss_ppm=round(loss * 10_000),
            divergence_ppm=divergence,
            think_time=round(think_time * 1e6),
            checkpoint_pause=round(checkpoint_pause * 1e6),
            drain=round(drain * 1e9),
            seed=seed,
            sink=Sink[sink.name],
            request_response=request_response,
            udp=udp,
            ipv6=ipv6,
            vnet_hdr=vnet_hdr,
            timestamps=timestamps,
        )
        check_traffic(traffic)
        sockets: Sockets | None = Sockets(
            primary_in=_address(primary_in, "--primary-in"),
            secondary_in=_address(secondary_in, "--secondary-in"),
            outdev=_address(outdev, "--outdev"),
            notify_dev=_address(notify_dev, "--notify-dev"),
        )
        if role is Role.BOTH and sockets == Sockets():
            sockets = None
        check_sockets(role, sockets, traffic)
        if sockets is not None and (comparator_options or unix or checkpoints):
            raise MisuseError(
                "--comparator-options, --unix and --checkpoints are for a comparator that is started here"
            )
        if sockets is None and pid is not None:
            raise MisuseError("--pid is that of a comparator that runs already")
        kind = Kind(comparator)
        notify = checkpoints or divergence > 0
        if sockets is None and notify and kind is Kind.RELAY:
            raise MisuseError("the relay compares nothing, and asks for no checkpoints")
        options = BenchOptions(
            traffic=traffic,
            role=role,
            sockets=sockets,
            pid=pid,
            comparator=kind,
            comparator_options=tuple(shlex.split(comparator_options)),
            unix=unix,
            notify=notify,
            may_lose=may_lose or (sockets is None and kind is Kind.QEMU),
            window=None if window is None else parse_number(window, "--window", base=1024),
            time=DEFAULT_TIME_S if time is None and amount is None and role is not Role.SERVER else time,
            omit=omit,
            affinity=affinity,
            interval=interval,
            connect_timeout=connect_timeout,
        )
        code = FAILED  # from here on it isn't the command line's fault
        told = 0

        def tell(one: Interval) -> None:
            nonlocal told
            if json_output or not interval:
                return
            if told % 20 == 0:
                console.print(Text(HEADER))
            told += 1
            console.print(Text(interval_line(one)))

        commands: list[tuple[str, ...]] = []
        result = run(options, tell, commands.append)
        if json_output:
            json.dump(document(options, result, commands[0]), sys.stdout, indent=1)
            sys.stdout.write("\n")
        else:
            for line in summary(result):
                console.print(Text(line))
        code = FAILED if result.faults else INTERRUPTED if result.interrupted else 0
    except ColoproxyError as error:
        if isinstance(error, MisuseError) and not isinstance(error, AddressError):
            code = USAGE
        Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"coloproxy bench: {error}"))
    except ValueError as error:  # shlex
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            Text(f"coloproxy bench: --comparator-options: {error}")
        )
    except KeyboardInterrupt:
        code = INTERRUPTED
    raise typer.Exit(code)


def _refuse_options(context: typer.Context) -> None:
    """Those before a subcommand would have no effect."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(
                f"it is not for {context.invoked_subcommand}, whose options come behind it",
                ctx=context,
                param_hint=parameter.opts[0],
            )


def _address(text: str | None, option: str) -> Address | None:
    if text is None:
        return None
    if text.startswith("listen:"):
        return parse_address(text.removeprefix("listen:"), option)
    return parse_address(text, option, may_listen=False)
