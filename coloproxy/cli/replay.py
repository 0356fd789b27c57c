# SPDX-License-Identifier: Apache-2.0
"""`coloproxy replay`."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from coloproxy.cli.app import FAILED, INTERRUPTED, USAGE, app
from coloproxy.cli.comparison import (
    RULES,
    MaxBytes,
    MaxFlowBytes,
    MaxFlows,
    MaxFragments,
    MaxFrames,
    MaxQueueSize,
    RulesFile,
)
from coloproxy.config import DEFAULT_PASS, ComparatorOptions
from coloproxy.errors import ColoproxyError, MisuseError
from coloproxy.events import FrameClass
from coloproxy.replay.document import document, recording_document
from coloproxy.replay.recording import is_recording, replay_recording
from coloproxy.replay.result import Result
from coloproxy.replay.run import ProgressCallback, replay_files
from coloproxy.replay.settings import Align, ReplayOptions
from coloproxy.replay.summary import print_recording, print_summary
from coloproxy.report import write_html
from coloproxy.rules import NO_RULES, load_rules

REPLAY_HELP = "\n\n".join(
    (
        "Compares captures of what two VMs sent, as [bold]coloproxy compare[/bold] would have done live, and says "
        "where they differ first.",
        "[bold]PRIMARY[/bold] and [bold]SECONDARY[/bold] are pcap or pcapng files (either byte order, gzip too) of "
        "whole Ethernet frames. With one file its first two interfaces are the primary and the secondary. Frames are "
        "judged by their capture time on a virtual clock, so the same files always give the same verdict.",
        "Protection begins at the first frame. No checkpoint happens, so a flow that differs stays withheld from "
        "there on, and of what is missing only the first is told; [bold]--checkpoint-after[/bold] goes on behind it.",
    )
)

EPILOG = r"""
[bold]Example[/bold]: capture on the taps of both VMs, on each host, then compare:
  tcpdump -i tap0 -s 0 -w primary.pcap       (on the primary's host)
  tcpdump -i tap0 -s 0 -w secondary.pcap     (on the secondary's host)
  coloproxy replay primary.pcap secondary.pcap --vm 52:54:00:12:34:56

[bold]--vm[/bold] tells the VM's frames from the client's, as a tap has both. Without it every frame counts as output.

[bold]--align[/bold]: two files need not be of the same time: each begins at its own first packet (start). Captures of
hosts whose clocks agree can keep their times (absolute), which is the default for one file with both.

[bold]A recording[/bold] of coloproxy compare --record, given alone, is fed again as it was, with its own
options: every verdict must be the recorded one.

[bold]Exit status[/bold]: 0 all released, 1 they differ or frames were withheld (a recording: a
verdict is another), 2 a capture or option can't be used.
"""

CLOCK, OUTPUT, INPUT = "Clock", "Output", "Captures"


def _milliseconds(name: str, panel: str, text: str, least: int = 1) -> Any:
    return typer.Option(name, metavar="MS", min=least, rich_help_panel=panel, help=text)


@app.command(help=REPLAY_HELP, epilog=EPILOG)
def replay(
    primary: Annotated[str, typer.Argument(metavar="PRIMARY", help="What the primary sent, or one file with both.")],
    secondary: Annotated[
        str | None, typer.Argument(metavar="[SECONDARY]", help="What the secondary sent.", show_default=False)
    ] = None,
    inbound: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=INPUT,
            help="What the client sent, by the primary's clock: shown in a flow's history, no part of the verdict.",
        ),
    ] = None,
    vm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MAC|IP",
            rich_help_panel=INPUT,
            help="Captures of both directions: frames from this address are output, all others inbound. Repeatable.",
        ),
    ] = None,
    primary_interface: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|N",
            rich_help_panel=INPUT,
            help="The primary's interface in its file (numbers from 0); with one file: 0 if not given.",
        ),
    ] = None,
    secondary_interface: Annotated[
        str | None,
        typer.Option(metavar="NAME|N", rich_help_panel=INPUT, help="The secondary's; with one file: 1 if not given."),
    ] = None,
    align: Annotated[
        Align | None,
        typer.Option(
            rich_help_panel=CLOCK,
            help="start: each capture from its own first packet (default for two files); absolute: by the times as "
            "captured (default for one).",
        ),
    ] = None,
    checkpoint_after: Annotated[
        int | None,
        _milliseconds(
            "--checkpoint-after",
            CLOCK,
            "Simulate a commit so long after one is wanted: releases what is held, and comparison begins anew. The "
            "captured secondary knows nothing of it, so one difference can show again as others.",
            0,
        ),
    ] = None,
    compare_timeout: Annotated[
        int,
        _milliseconds("--compare-timeout", RULES, "A frame that waited so long for the other VM's is a difference."),
    ] = 3000,
    reorder_window: Annotated[
        int,
        _milliseconds("--reorder-window", RULES, "A datagram that others have overtaken for so long is a difference."),
    ] = 20,
    gap_timeout: Annotated[
        int,
        _milliseconds(
            "--gap-timeout",
            RULES,
            "TCP bytes that the secondary has left out for so long, and has gone on beyond, ask for a checkpoint.",
        ),
    ] = 50,
    pass_classes: Annotated[
        str,
        typer.Option(
            "--pass",
            metavar="CLASS,...",
            rich_help_panel=RULES,
            help="Frame classes released uncompared; none: all are.",
        ),
    ] = ",".join(str(member) for member in sorted(DEFAULT_PASS)),
    rules: RulesFile = None,
    max_queue_size: MaxQueueSize = None,
    max_flow_bytes: MaxFlowBytes = None,
    max_flows: MaxFlows = None,
    max_fragments: MaxFragments = None,
    max_frames: MaxFrames = None,
    max_bytes: MaxBytes = None,
    json_output: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="One JSON document on standard output.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", rich_help_panel=OUTPUT, help="Also write a report there: HTML in one file, for a browser."
        ),
    ] = None,
) -> None:
    try:
        settings: dict[str, object] = {
            "vm": vm or [],
            "checkpoint_after_ms": checkpoint_after,
            "compare_timeout_ms": compare_timeout,
            "reorder_window_ms": reorder_window,
            "gap_timeout_ms": gap_timeout,
            "pass": sorted(str(member) for member in _classes(pass_classes)),
            "rules": None if rules is None else str(rules),
            "primary_interface": primary_interface,
            "secondary_interface": secondary_interface,
            "max_queue_size": max_queue_size,
            "max_flow_bytes": max_flow_bytes,
            "max_flows": max_flows,
            "max_fragments": max_fragments,
            "max_frames": max_frames,
            "max_bytes": max_bytes,
        }
        options = ReplayOptions(
            primary=primary,
            secondary=secondary,
            inbound=inbound,
            align=align,
            vm=tuple(vm or ()),
            primary_interface=primary_interface,
            secondary_interface=secondary_interface,
            checkpoint_after=None if checkpoint_after is None else checkpoint_after * 1_000_000,
            comparator=ComparatorOptions(
                compare_timeout=compare_timeout * 1_000_000,
                reorder_window=reorder_window * 1_000_000,
                gap_window=gap_timeout * 1_000_000,
                max_flow_frames=max_queue_size,
                max_flow_bytes=max_flow_bytes,
                max_flows=max_flows,
                max_fragments=max_fragments,
                max_frames=max_frames,
                max_bytes=max_bytes,
                pass_classes=_classes(pass_classes),
                rules=NO_RULES if rules is None else load_rules(rules),
            ),
            shown=settings,
        )
        settings["align"] = options.alignment.value
        if _must_be_recording(options):
            code = _replay_recording(primary, json_output=json_output)
        else:
            with _progress() as progress:
                result = replay_files(options, progress)
            _show(result, json_output=json_output, report=report)
            code = 0 if result.equal else FAILED
    except ColoproxyError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"coloproxy replay: {error}"))
        code = USAGE
    except KeyboardInterrupt:
        code = INTERRUPTED
    raise typer.Exit(code)


def _classes(text: str) -> frozenset[FrameClass]:
    names = {str(member): member for member in FrameClass}
    wanted = [name.strip() for name in text.split(",") if name.strip() not in ("", "none")]
    for name in wanted:
        if name not in names:
            raise MisuseError(f"--pass {name}: no frame class; there are {', '.join(names)}")
    return frozenset(names[name] for name in wanted)


def _must_be_recording(options: ReplayOptions) -> bool:
    """One file, no interface asked for, and it says so itself."""
    alone = options.secondary is None and options.primary_interface is None and options.secondary_interface is None
    return alone and Path(options.primary).is_file() and is_recording(options.primary)


def _replay_recording(path: str, *, json_output: bool) -> int:
    with _progress() as progress:
        result = replay_recording(path, progress)
    if json_output:
        _print_json(recording_document(result))
    else:
        print_recording(result, Console(highlight=False, soft_wrap=True))
    return 0 if result.equal else FAILED


def _show(result: Result, *, json_output: bool, report: Path | None) -> None:
    written = None if report is None else _write_report(result, report)
    if json_output:
        _print_json(document(result))
        return
    console = Console(highlight=False, soft_wrap=True)
    print_summary(result, console)
    if written is not None:
        console.print(Text(f"report: {written}"))
    elif not result.equal:
        console.print(Text("--report DIR writes all that is known of each difference as HTML"))


def _print_json(told: dict[str, Any]) -> None:
    json.dump(told, sys.stdout, indent=1)
    sys.stdout.write("\n")


def _write_report(result: Result, directory: Path) -> Path:
    try:
        return write_html(result, directory)
    except OSError as error:
        raise MisuseError(f"--report {directory}: {error.strerror or error}") from error


@contextlib.contextmanager
def _progress() -> Iterator[ProgressCallback | None]:
    """A bar on standard error, where that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def tell(done: int, size: int) -> None:
            bar.update(task, completed=done, total=size or None)

        yield tell
