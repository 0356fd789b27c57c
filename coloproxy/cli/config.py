# SPDX-License-Identifier: Apache-2.0
"""`coloproxy config` and `coloproxy qemu-args`."""

from __future__ import annotations

import enum
import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from coloproxy.cli.app import FAILED, USAGE, app
from coloproxy.errors import ConfigError, MisuseError
from coloproxy.pair.config import ROLES, Nic, Pair, Vm, load
from coloproxy.pair.describe import defaults
from coloproxy.pair.files import file_problems
from coloproxy.pair.qemu import compare_arguments, qemu_arguments


class RoleOption(enum.Enum):
    """Which of the pair's hosts this is."""

    PRIMARY = "primary"
    SECONDARY = "secondary"


class AttachOption(enum.Enum):
    """Who owns the TAPs: coloproxy (tap) or QEMU (filters)."""

    TAP = "tap"
    FILTERS = "filters"


ConfigFile = Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="The pair's file.")]

config_app = typer.Typer(no_args_is_help=True, help="The file of a pair: check it, or see what can be in it.")
app.add_typer(config_app, name="config")


def load_or_exit(path: Path, role: RoleOption) -> Pair:
    """The pair; with mistakes in the file they are printed and the command ends with status 2."""
    try:
        return load(path, role.value)
    except ConfigError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(USAGE) from None


@config_app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The pair's file.")],
    role: Annotated[
        RoleOption | None,
        typer.Option(help="This is the host in that role: look at the files that the pair's file names too."),
    ] = None,
) -> None:
    """Checks a pair's file, for both hosts, and says what it makes of it.

    Exit status: 0 right, 1 it names files that are not, 2 it has mistakes; each is told with its line and key.
    """
    load_or_exit(file, RoleOption.PRIMARY)
    problems: list[str] = []
    for each in ROLES:
        if role is None or role.value == each:
            pair = load(file, each)
            typer.echo(_summary(pair))
            problems += file_problems(pair) if role is not None else []
    for problem in problems:
        typer.echo(f"{file}: {problem}", err=True)
    if problems:
        raise typer.Exit(FAILED)
    typer.echo(f"{file}: OK")


@config_app.command("show-defaults")
def show_defaults() -> None:
    """Prints a complete file: every key with its default and a line of help, a start for one's own."""
    typer.echo(defaults(), nl=False)


@app.command("qemu-args")
def qemu_args(
    config: ConfigFile,
    role: Annotated[RoleOption, typer.Option(help="The host QEMU runs on.")],
    vm: Annotated[str | None, typer.Option(metavar="NAME", help="The VM, if the file has several.")] = None,
    attach: Annotated[
        AttachOption, typer.Option(help="tap: coloproxy run has the TAPs. filters: QEMU has, for coloproxy compare.")
    ] = AttachOption.TAP,
    vnet_hdr_support: Annotated[
        bool, typer.Option("--vnet-hdr-support", help="filters: with virtio-net headers, as for coloproxy compare.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json/--shell", help="An array of strings, or words quoted for a shell.")
    ] = False,
) -> None:
    """Prints QEMU's options for a VM of the pair: its network, and the monitor for coloproxy.

    The rest (machine, disks, memory, and for the TAP attach -incoming) is yours.
    """
    pair = load_or_exit(config, role)
    try:
        chosen = _choose(pair, vm)
        arguments = qemu_arguments(pair, chosen, attach.value, vnet_hdr=vnet_hdr_support)
        beside = None
        if attach is AttachOption.FILTERS and role is RoleOption.PRIMARY:
            beside = compare_arguments(pair, chosen, vnet_hdr=vnet_hdr_support)
    except MisuseError as error:
        typer.echo(f"{config}: {error}", err=True)
        raise typer.Exit(USAGE) from None
    if as_json:
        typer.echo(json.dumps(arguments, indent=1))
        return
    words = [f"{name} {shlex.quote(value)}" for name, value in zip(arguments[::2], arguments[1::2], strict=True)]
    typer.echo(" \\\n".join(words))
    if beside is not None:
        typer.echo(f"# beside it: coloproxy compare {shlex.join(beside)}")


def _choose(pair: Pair, name: str | None) -> Vm:
    names = [vm.name for vm in pair.vms]
    if name is None and len(names) == 1:
        return pair.vms[0]
    if name not in names:
        what = "which VM? --vm NAME is needed" if name is None else f"no VM is called {name!r}"
        raise MisuseError(f"{what}; there are {', '.join(names)}")
    return pair.vms[names.index(name)]


def _summary(pair: Pair) -> str:
    link = pair.link
    where = f"connects to {link.secondary}" if pair.role == "primary" else f"listens on {link.secondary}"
    lines = [
        f"{pair.role} of pair {pair.name}",
        f"  link        {where}, {'PLAIN TEXT' if link.security == 'plain' else link.security}",
        f"  checkpoints {pair.checkpoint.back_end}",
        f"  control     {pair.control_socket}",
    ]
    for vm in pair.vms:
        lines.append(f"  VM {vm.name}" + (f", QMP at {vm.qmp}" if vm.qmp else ""))
        lines += [f"    {nic.name}: {_sides(nic)}" for nic in vm.nics]
    return "\n".join(lines)


def _sides(nic: Nic) -> str:
    side = nic.vm
    bridge = f" on {nic.tap.bridge}" if nic.tap.bridge else ""
    netns = f" in {side.netns}" if side.netns else ""
    vm = f"{side.kind} {side.address}" if side.is_socket else f"{side.kind} {side.name}{netns}"
    return f"TAP {nic.tap.name}{bridge}, MTU {nic.tap.mtu} <-> {vm}"
