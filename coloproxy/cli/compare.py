# SPDX-License-Identifier: Apache-2.0
"""`coloproxy compare`."""

from __future__ import annotations

import asyncio
import logging
import shlex
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from coloproxy.address import Address, parse_address
from coloproxy.checkpoint_actions import ON_DEMAND_ONLY, Timing
from coloproxy.checkpoint_policy import PolicyOptions
from coloproxy.cli.app import FAILED, USAGE, app
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
from coloproxy.cli.logs import set_up_logging
from coloproxy.command_guide import CommandOptions
from coloproxy.compare import Compare
from coloproxy.errors import ColoproxyError, MisuseError
from coloproxy.lines import LineWriter
from coloproxy.options import CompareOptions
from coloproxy.recording import RecordOptions, RingOptions
from coloproxy.rules import NO_RULES, load_rules

log = logging.getLogger(__name__)

COMPARE_HELP = "\n\n".join(
    (
        "Compares what two VMs in COLO send, and lets the client have it once they agree.",
        "Stands in the place of QEMU's [bold]-object colo-compare[/bold]; the options have its names. QEMU keeps its "
        "own filter-mirror, filter-redirector and filter-rewriter; their chardev sockets end here instead.",
        "With [bold]--qmp[/bold] it also asks the primary for checkpoints when the VMs differ, learns when one has "
        "committed, releases what it covers, and knows when COLO begins and ends: until then, and after, everything "
        "passes. Whenever it can't know (QMP is away), output is held, for a client must never see what only one VM "
        "has said.",
        r"[bold]ADDR[/bold] is HOST:PORT, \[IPV6]:PORT or unix:PATH; coloproxy listens there, or with the prefix "
        "connect: it connects, and again after each loss. One peer at a time, others wait.",
    )
)

EPILOG = r"""
[bold]Example[/bold], all on the primary's host (192.0.2.1); start it before both QEMUs:
  coloproxy compare --primary-in 127.0.0.1:9001 --secondary-in 192.0.2.1:9002 --outdev 127.0.0.1:9003
    --qmp unix:/run/p-proxy.qmp --stats-interval 1 --json-events events.json

[bold]Primary[/bold] (besides its own options; that monitor is for coloproxy alone, it serves one client):
  -qmp unix:/run/p-proxy.qmp,server=on,wait=off
  -netdev tap,id=hn0,ifname=tap0,script=no,downscript=no
  -device e1000,netdev=hn0,mac=52:54:00:12:34:56
  -chardev socket,id=mirror0,host=192.0.2.2,port=9004,reconnect=1
  -chardev socket,id=compare0,host=127.0.0.1,port=9001,reconnect=1
  -chardev socket,id=compare_out,host=127.0.0.1,port=9003,reconnect=1
  -object filter-mirror,id=m0,netdev=hn0,queue=tx,outdev=mirror0
  -object filter-redirector,id=redire0,netdev=hn0,queue=rx,indev=compare_out
  -object filter-redirector,id=redire1,netdev=hn0,queue=rx,outdev=compare0

[bold]Secondary[/bold]:
  -chardev socket,id=red0,host=192.0.2.2,port=9004,server=on,wait=off
  -chardev socket,id=red1,host=192.0.2.1,port=9002,reconnect=1
  -object filter-redirector,id=f1,netdev=hn0,queue=tx,indev=red0
  -object filter-redirector,id=f2,netdev=hn0,queue=rx,outdev=red1
  -object filter-rewriter,id=rew0,netdev=hn0,queue=all
  -incoming tcp:0.0.0.0:9998

With virtio-net: vnet_hdr_support=on on every filter, and --vnet-hdr-support here.

[bold]Exit status[/bold]: 0 ended by SIGINT or SIGTERM, 1 failed, 2 wrong usage.
"""


class Policy(StrEnum):
    """--checkpoint-policy."""

    FIXED = "fixed"
    ADAPTIVE = "adaptive"


SOCKETS, CHECKPOINTS, OUTPUT = "Sockets", "Checkpoints", "Output"
RECORDING = "Recording"


@app.command(help=COMPARE_HELP, epilog=EPILOG)
def compare(
    primary_in: Annotated[
        str,
        typer.Option(
            metavar="ADDR", rich_help_panel=SOCKETS, help="The primary's output (its redirector with outdev=)."
        ),
    ],
    secondary_in: Annotated[
        str,
        typer.Option(metavar="ADDR", rich_help_panel=SOCKETS, help="The secondary's output (its redirector f2)."),
    ],
    outdev: Annotated[
        str,
        typer.Option(
            metavar="ADDR", rich_help_panel=SOCKETS, help="What is released (the primary's redirector with indev=)."
        ),
    ],
    qmp: Annotated[
        str | None,
        typer.Option(
            metavar="ADDR",
            rich_help_panel=SOCKETS,
            help="The primary's QMP monitor; QEMU listens there, connect: is implied. Use a monitor of its own.",
        ),
    ] = None,
    notify_dev: Annotated[
        str | None,
        typer.Option(
            metavar="ADDR",
            rich_help_panel=SOCKETS,
            help="Xen's COLO frame: it is sent DO_CHECKPOINT and sends COLO_CHECKPOINT. Not together with --qmp.",
        ),
    ] = None,
    checkpoint_command: Annotated[
        str | None,
        typer.Option(
            metavar="CMD",
            rich_help_panel=CHECKPOINTS,
            help="For VMs without QEMU: this program, run with `take`, stops both VMs and makes the secondary the "
            "primary's copy; with `resume` both go on. Words as in a shell. See docs/checkpoint-command.md. Not "
            "together with --qmp or --notify-dev.",
        ),
    ] = None,
    checkpoint_timeout: Annotated[
        float,
        typer.Option(
            metavar="S",
            min=0.05,
            rich_help_panel=CHECKPOINTS,
            help="A run of --checkpoint-command that takes longer has failed, and is killed.",
        ),
    ] = 60.0,
    assume_equal: Annotated[
        bool,
        typer.Option(
            "--assume-equal",
            rich_help_panel=CHECKPOINTS,
            help="With --checkpoint-command: both VMs are equal when the secondary first connects, and are compared "
            "from then on. Without it output passes until a first checkpoint, when the secondary has connected.",
        ),
    ] = False,
    vnet_hdr_support: Annotated[
        bool,
        typer.Option(
            "--vnet-hdr-support", rich_help_panel=SOCKETS, help="QEMU's filters have vnet_hdr_support=on (virtio-net)."
        ),
    ] = False,
    out_redirector: Annotated[
        str,
        typer.Option(
            metavar="ID",
            rich_help_panel=SOCKETS,
            help="QEMU's redirector behind outdev goes deaf when its peer closes. With --qmp it is made anew when "
            "coloproxy was restarted. Its id; auto: found by its connection; none: left alone.",
        ),
    ] = "auto",
    compare_timeout: Annotated[
        int,
        typer.Option(
            metavar="MS",
            min=1,
            rich_help_panel=RULES,
            help="A frame that waited so long for the other VM's asks for a checkpoint.",
        ),
    ] = 3000,
    gap_timeout: Annotated[
        int,
        typer.Option(
            metavar="MS",
            min=1,
            rich_help_panel=RULES,
            help="TCP bytes that the secondary has left out for so long, while it has gone on beyond them, ask for a "
            "checkpoint.",
        ),
    ] = 50,
    expired_scan_cycle: Annotated[
        int,
        typer.Option(
            metavar="MS",
            min=1,
            rich_help_panel=RULES,
            help="How often DO_CHECKPOINT is repeated on --notify-dev while unanswered. Time-outs need no scan here: "
            "each is met exactly.",
        ),
    ] = 1000,
    keep_gap: Annotated[
        bool,
        typer.Option(
            "--keep-gap",
            rich_help_panel=RULES,
            help="Take what the secondary says between the primary's STOP and RESUME as the new epoch's. Without it "
            "that is dropped, and a connection in full flow can stand still until TCP has sent it again. Right where "
            "the secondary's output comes over a link as quick as QEMU's migration, and loses nothing.",
        ),
    ] = False,
    rules: RulesFile = None,
    checkpoint_period: Annotated[
        int,
        typer.Option(
            metavar="MS",
            min=0,
            max=ON_DEMAND_ONLY,
            rich_help_panel=CHECKPOINTS,
            help="Also a checkpoint at least so often (QEMU's x-checkpoint-delay); 0: only when the VMs differ.",
        ),
    ] = 0,
    min_checkpoint_interval: Annotated[
        int,
        typer.Option(
            metavar="MS",
            min=0,
            rich_help_panel=CHECKPOINTS,
            help="From a commit to the next request. The default lets VMs that always differ still run half of the "
            "time.",
        ),
    ] = 20,
    checkpoint_policy: Annotated[
        Policy,
        typer.Option(
            rich_help_panel=CHECKPOINTS,
            help="adaptive: also a checkpoint when the network is quiet and many pages are dirty, so that the next one "
            "that a client waits for is short. See docs/checkpoints.md.",
        ),
    ] = Policy.FIXED,
    checkpoint_quiet: Annotated[
        int,
        typer.Option(
            metavar="MS",
            min=1,
            rich_help_panel=CHECKPOINTS,
            help="adaptive: the network is quiet when neither VM has sent a frame for so long, and none is held.",
        ),
    ] = 20,
    checkpoint_budget: Annotated[
        int,
        typer.Option(
            metavar="PERCENT",
            min=1,
            max=50,
            rich_help_panel=CHECKPOINTS,
            help="adaptive: of the time, that the VMs may stand still for such checkpoints.",
        ),
    ] = 5,
    qmp_deadline: Annotated[
        float,
        typer.Option(
            metavar="S",
            min=0.05,
            rich_help_panel=CHECKPOINTS,
            help="QEMU should have answered by then; after --qmp-patience of them it is reported. We keep trying.",
        ),
    ] = 1.0,
    qmp_patience: Annotated[
        int, typer.Option(metavar="N", min=1, rich_help_panel=CHECKPOINTS, help="See --qmp-deadline.")
    ] = 3,
    max_queue_size: MaxQueueSize = None,
    max_flow_bytes: MaxFlowBytes = None,
    max_flows: MaxFlows = None,
    max_fragments: MaxFragments = None,
    max_frames: MaxFrames = None,
    max_bytes: MaxBytes = None,
    stats_interval: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            min=0.05,
            rich_help_panel=OUTPUT,
            help="Print a line of statistics every S seconds, and one for the whole at the end.",
        ),
    ] = None,
    json_events: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=OUTPUT,
            help="Append one JSON object a line for each event: divergences with both sides' bytes, checkpoints with "
            "durations, ... -: standard output (statistics then go to standard error).",
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=RECORDING,
            help="Write all frames with their verdicts to a pcapng file (mode 0600: it holds clients' data), see "
            "docs/recording.md. What the disk is too slow for is left out and counted.",
        ),
    ] = None,
    record_size: Annotated[
        int | None,
        typer.Option(
            metavar="MB",
            min=1,
            rich_help_panel=RECORDING,
            help="Go on in a new file when one has so many million bytes: FILE-00001, FILE-00002, ...",
        ),
    ] = None,
    record_time: Annotated[
        float | None,
        typer.Option(metavar="S", min=0.01, rich_help_panel=RECORDING, help="The same after so many seconds."),
    ] = None,
    record_files: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, rich_help_panel=RECORDING, help="Keep the N newest of them. Default: all."),
    ] = None,
    record_ring: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            min=0.01,
            rich_help_panel=RECORDING,
            help="Keep the last S seconds in memory; when the VMs differ they go to a file in --record-dir, that "
            "coloproxy replay reads. Once an epoch and in 10 seconds at most. With or without --record.",
        ),
    ] = None,
    record_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            rich_help_panel=RECORDING,
            help="For those files, divergence-TIME-N.pcapng (mode 0600). coloproxy deletes none of them.",
        ),
    ] = None,
    record_ring_bytes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1 << 16,
            rich_help_panel=RECORDING,
            help="Bytes of memory for those seconds; the oldest make room. Default: 67,108,864 (64 MiB).",
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", rich_help_panel=OUTPUT, help="Log each step too.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", rich_help_panel=OUTPUT, help="Log warnings and errors only.")
    ] = False,
) -> None:
    writer = LineWriter(2, "coloproxy-log")
    set_up_logging(writer, verbose=verbose, quiet=quiet)
    code = USAGE
    try:
        options = CompareOptions(
            primary_in=parse_address(primary_in, "--primary-in"),
            secondary_in=parse_address(secondary_in, "--secondary-in"),
            outdev=parse_address(outdev, "--outdev"),
            notify_dev=_optional(notify_dev, "--notify-dev", may_listen=True),
            qmp=_optional(qmp, "--qmp", may_listen=False),
            checkpoint_command=_command(
                checkpoint_command, checkpoint_timeout, min_checkpoint_interval / 1000, assume_equal=assume_equal
            ),
            vnet_hdr_support=vnet_hdr_support,
            compare_timeout_ms=compare_timeout,
            gap_timeout_ms=gap_timeout,
            expired_scan_cycle_ms=expired_scan_cycle,
            max_queue_size=max_queue_size,
            max_flow_bytes=max_flow_bytes,
            max_flows=max_flows,
            max_fragments=max_fragments,
            max_frames=max_frames,
            max_bytes=max_bytes,
            keep_gap=keep_gap,
            rules=NO_RULES if rules is None else load_rules(rules),
            timing=Timing(
                checkpoint_delay_ms=checkpoint_period or ON_DEMAND_ONLY,
                min_interval=min_checkpoint_interval * 1_000_000,
                deadline=round(qmp_deadline * 1e9),
                patience=qmp_patience,
            ),
            policy=PolicyOptions(
                checkpoint_policy.value,
                min_interval=min_checkpoint_interval * 1_000_000,
                quiet=checkpoint_quiet * 1_000_000,
                budget=checkpoint_budget,
            ),
            out_redirector=out_redirector,
            stats_interval_s=stats_interval,
            json_events=json_events,
            record=_record(record, record_size, record_time, record_files),
            record_ring=_ring(record_ring, record_dir, record_ring_bytes),
        )
        service = Compare(options)
        code = FAILED  # from here on it isn't the command line's fault
        code = asyncio.run(service.run())
    except (ColoproxyError, OSError) as error:
        log.log(logging.ERROR, "%s", error)
    except KeyboardInterrupt:
        pass  # before the service could take SIGINT for itself
    finally:
        writer.close()
    raise typer.Exit(code)


def _record(path: Path | None, size: int | None, seconds: float | None, files: int | None) -> RecordOptions | None:
    if path is not None:
        return RecordOptions(
            path,
            max_bytes=None if size is None else size * 1_000_000,
            max_time=None if seconds is None else round(seconds * 1e9),
            keep=files,
        )
    if (size, seconds, files) != (None, None, None):
        raise MisuseError("--record-size, --record-time and --record-files need --record")
    return None


def _ring(seconds: float | None, directory: Path | None, size: int | None) -> RingOptions | None:
    if seconds is not None and directory is not None:
        options = RingOptions(directory, round(seconds * 1e9))
        return options if size is None else replace(options, max_bytes=size)
    if seconds is not None:
        raise MisuseError("--record-ring needs --record-dir: where its files go")
    if (directory, size) != (None, None):
        raise MisuseError("--record-dir and --record-ring-bytes need --record-ring")
    return None


def _command(text: str | None, timeout_s: float, interval_s: float, *, assume_equal: bool) -> CommandOptions | None:
    if text is None:
        if assume_equal:
            raise MisuseError("--assume-equal needs --checkpoint-command")
        return None
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise MisuseError(f"--checkpoint-command: {error}") from error
    return CommandOptions(
        tuple(words),
        timeout_s=timeout_s,
        min_interval_s=interval_s,
        initial="assume-equal" if assume_equal else "checkpoint",
    )


def _optional(text: str | None, option: str, *, may_listen: bool) -> Address | None:
    return None if text is None else parse_address(text, option, may_listen=may_listen)
