# SPDX-License-Identifier: Apache-2.0
"""`coloproxy mutate`."""

from __future__ import annotations

import gzip
import json
import secrets
from pathlib import Path
from typing import Annotated

import typer

from coloproxy.capture import CaptureWriter, read_capture
from coloproxy.cli.app import FAILED, USAGE, app
from coloproxy.errors import ColoproxyError, MisuseError
from coloproxy.mutate import Mutated, Mutation, mutate

MUTATE_HELP = "\n\n".join(
    (
        "Transforms a capture: so that it says the same in another way, or so that it has one known fault.",
        "A real stack or network may cut the same bytes into other segments, send one again, let frames overtake each "
        "other, choose other numbers. A comparator must find no difference in that, and must find one changed byte. "
        "Both make regression tests of your own captures.",
        "[bold]IN[/bold] is pcap or pcapng, [bold]OUT[/bold] becomes pcapng (with .gz at its end: gzipped). The same "
        "[bold]--seed[/bold] gives the same result. With [bold]--vm[/bold] only that machine's frames are transformed, "
        "and what its client says of its numbers follows; without, all frames are taken for the VM's. Frames that "
        "can't be transformed (no IP, cut by the snap length) pass as they are.",
    )
)

EPILOG = r"""
[bold]Example[/bold]: is the comparator quiet about a capture of your own, and does it find a changed byte?
  coloproxy mutate http.pcapng same.pcapng --vm 52:54:00:12:34:56 --all --seed 7
  coloproxy mutate http.pcapng other.pcapng --vm 52:54:00:12:34:56 --flip-random --json

[bold]Exit status[/bold]: 0 done, 1 failed (OUT can't be written), 2 wrong usage or unusable input.
"""

SAME, TIMES, FAULTS, OUTPUT = "Says the same", "Times and order", "Faults", "Output"
MS = 1_000_000


@app.command("mutate", help=MUTATE_HELP, epilog=EPILOG)
def mutate_command(
    source: Annotated[Path, typer.Argument(metavar="IN", help="The capture.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Where the transformed one goes.")],
    vm: Annotated[
        str | None, typer.Option(metavar="MAC|IP", help="Whose frames are transformed; better by MAC address.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Of all chance; without it one is chosen, and printed.")
    ] = None,
    everything: Annotated[
        bool,
        typer.Option(
            "--all",
            rich_help_panel=SAME,
            help="All that must make no difference: --recut --repeat 10 --numbers --reorder-window 8.",
        ),
    ] = False,
    recut: Annotated[
        bool,
        typer.Option("--recut", rich_help_panel=SAME, help="TCP: other segments, up to the size that offload makes."),
    ] = False,
    mss: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, rich_help_panel=SAME, help="TCP: other segments, of N bytes at most."),
    ] = None,
    repeat: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT",
            min=0,
            max=100,
            rich_help_panel=SAME,
            help="TCP: so many of the segments are sent again, as a whole, in part or overlapping. TCP only: a "
            "repeated datagram is a second one, and so a difference.",
        ),
    ] = None,
    numbers: Annotated[
        bool,
        typer.Option("--numbers", rich_help_panel=SAME, help="The same as --ip-ids --ttl --timestamps --isn."),
    ] = False,
    ip_ids: Annotated[
        bool, typer.Option("--ip-ids", rich_help_panel=SAME, help="Other IP identifications and flow labels.")
    ] = False,
    ttl: Annotated[bool, typer.Option("--ttl", rich_help_panel=SAME, help="Another TTL or hop limit.")] = False,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", rich_help_panel=SAME, help="Other TCP time stamps.")
    ] = False,
    isn: Annotated[
        bool,
        typer.Option(
            "--isn",
            rich_help_panel=SAME,
            help="Another initial sequence number for each connection whose SYN of the VM is in the capture; the "
            "client's ACK numbers and SACK blocks follow.",
        ),
    ] = False,
    reorder_window: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=TIMES,
            help="Frames are delayed so that up to N later ones overtake. A SYN or RST keeps its place in its flow.",
        ),
    ] = None,
    reorder_time: Annotated[
        int,
        typer.Option(
            metavar="MS",
            min=0,
            rich_help_panel=TIMES,
            help="By so much at most. Beyond the comparator's re-order window (20 ms) datagrams differ.",
        ),
    ] = 10,
    jitter: Annotated[
        int,
        typer.Option(metavar="MS", min=0, rich_help_panel=TIMES, help="Frames are delayed by up to MS, in order."),
    ] = 0,
    shift: Annotated[
        int, typer.Option(metavar="MS", min=0, rich_help_panel=TIMES, help="The whole capture comes MS later.")
    ] = 0,
    flip: Annotated[
        int | None,
        typer.Option(
            metavar="OFFSET",
            min=0,
            rich_help_panel=FAULTS,
            help="Change the payload byte at OFFSET, counted over all that the VM sends. In TCP: in each segment that "
            "carries it.",
        ),
    ] = None,
    flip_random: Annotated[
        bool, typer.Option("--flip-random", rich_help_panel=FAULTS, help="Change any one payload byte.")
    ] = False,
    drop: Annotated[
        int | None, typer.Option(metavar="PACKET", min=1, rich_help_panel=FAULTS, help="Leave that packet out.")
    ] = None,
    truncate: Annotated[
        int | None,
        typer.Option(metavar="PACKET", min=1, rich_help_panel=FAULTS, help="Cut the last payload byte off it."),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            rich_help_panel=OUTPUT,
            help="One JSON object: seed, counts, and each fault with packet, flow and offset as `coloproxy replay` "
            "names them.",
        ),
    ] = False,
) -> None:
    mutation = Mutation(
        seed=secrets.randbelow(1 << 32) if seed is None else seed,
        vm=vm,
        recut=recut or everything,
        mss=mss,
        repeat=(10.0 if everything else 0.0) / 100 if repeat is None else repeat / 100,
        identifications=ip_ids or numbers or everything,
        hop_limits=ttl or numbers or everything,
        timestamps=timestamps or numbers or everything,
        sequence_numbers=isn or numbers or everything,
        reorder_frames=(8 if everything else 0) if reorder_window is None else reorder_window,
        reorder_time=reorder_time * MS,
        jitter=jitter * MS,
        shift=shift * MS,
        flip=flip,
        flip_random=flip_random,
        drop=drop,
        truncate=truncate,
    )
    code = USAGE
    try:
        if mutation == Mutation(seed=mutation.seed, vm=vm, reorder_time=mutation.reorder_time):
            raise MisuseError("nothing to do: give --all, or any of the transformations and faults (see --help)")
        if target.exists() and source.exists() and target.samefile(source):
            raise MisuseError(f"{target} is the input: it would be overwritten")
        frames = list(read_capture(source))
        result = mutate(frames, mutation)
        if not result.outbound:
            raise MisuseError(f"{source}: none of its {len(frames)} packets is from {vm}")
        code = FAILED
        _write(target, result)
    except (ColoproxyError, OSError) as error:
        typer.echo(f"coloproxy mutate: {error}", err=True)
        raise typer.Exit(code) from None
    _tell(source, target, mutation, result, as_json=as_json)


def _write(target: Path, result: Mutated) -> None:
    names: dict[int, str] = {}
    for frame in result.frames:
        names.setdefault(frame.source.interface, frame.source.interface_name or f"interface {frame.source.interface}")
    last = max(names, default=0)
    interfaces = [names.get(number, f"interface {number}") for number in range(last + 1)]
    with target.open("wb") as file:
        stream = gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) if target.suffix == ".gz" else file
        writer = CaptureWriter(stream, interfaces, application="coloproxy mutate")
        for frame in result.frames:
            cut = frame.source.wire_len if frame.source.cut else None
            writer.write(frame.time, frame.data, frame.source.interface, wire_len=cut)
        if stream is not file:
            stream.close()


def _tell(source: Path, target: Path, mutation: Mutation, result: Mutated, *, as_json: bool) -> None:
    sent = sum(frame.outbound for frame in result.frames)
    if as_json:
        report = {
            "seed": mutation.seed,
            "input": str(source),
            "output": str(target),
            "vm_frames_in": result.outbound,
            "vm_frames_out": sent,
            "vm_frames_untouched": result.untouched,
            "frames_out": len(result.frames),
            "faults": [fault.as_dict() for fault in result.faults],
        }
        typer.echo(json.dumps(report))
        return
    typer.echo(f"{target}: {len(result.frames)} frames, {sent} of them the VM's ({result.outbound} were)")
    typer.echo(f"seed: {mutation.seed}")
    if result.untouched:
        typer.echo(f"{result.untouched} frames of the VM can't be transformed and are as they were")
    for fault in result.faults:
        typer.echo(f"{fault.kind}: {fault}")
