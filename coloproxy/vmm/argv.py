# SPDX-License-Identifier: Apache-2.0
"""QEMU's command line. Pure. Measured with QEMU 7.2; docs/vmm.md shows it as a template.

The order counts: devices get their places on the PCI bus by it, and both hosts must have the same ones, so it is the
same for every role.

    primary      colo-disk0 (quorum) -> pd0 -> pf0                            the image
    secondary    colo-disk0 (quorum) -> childs0 (replication) -> active0 -> hidden0 -> parent0 -> sf0
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from coloproxy.errors import MisuseError

from .acceleration import QEMU, Acceleration, ram_problem
from .clashes import check_options
from .files import Files

Role = Literal["primary", "secondary"]
"""What QEMU is started as.

- primary: the VM runs from its image. Also a survivor that is started anew, once its overlays have been committed
  (coloproxy.disks.recover: QEMU can't be asked to commit them while they are a quorum's child).
- secondary: the VM waits for the primary's copy; its writes go to overlays.
"""


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of the VM, as it is on this host."""

    image: Path
    format: str = "qcow2"
    """Of the image; overlays are qcow2."""
    active: Path | None = None
    """Overlay with what the secondary VM wrote since the last checkpoint. For a secondary."""
    hidden: Path | None = None
    """Overlay with what the primary overwrote in the image since the last checkpoint."""
    device: str = "virtio-blk-pci"
    device_options: str = ""
    """More of the device's properties, such as "bootindex=1"."""
    file_options: str = ""
    """More of the file nodes' properties, such as "cache.direct=on,aio=native"."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A VM, the same on both hosts but for the disks' paths and the NICs' sockets."""

    name: str
    acceleration: Acceleration
    binary: str = QEMU
    options: Sequence[str] = ()
    """The operator's machine: -machine, -m, -smp, -cpu, -kernel ..., word by word."""
    disks: Sequence[Disk] = ()
    nics: Sequence[str] = ()
    """-netdev ... -device ..., as coloproxy.pair.qemu makes them. Without the -qmp that it makes, too."""
    extra: Sequence[str] = ()
    """The operator's, last: what must come after the disks and NICs."""
    defaults: bool = False
    """With the devices that QEMU adds on its own account (without -nodefaults)."""


ALWAYS_ENABLED: Final = ("-global", "virtio-device.use-disabled-flag=off")
"""virtio devices work whether the guest lets them master the bus or not.

Else QEMU has a flag for "it does not", which a copy of the VM's state sets and never clears: a secondary whose state
was first copied while the guest boots has a dead network card for ever, unless its own guest gets to the driver before
the next checkpoint does.
"""


def command_line(machine: Machine, files: Files, role: Role, *, paused: bool = False) -> list[str]:
    """The command line of the VM's QEMU.

    paused: the VM doesn't run until QMP `cont`, or until COLO runs it; not for a secondary.

    Raises MisuseError: an option that clashes with the node's, RAM that can't be used under TCG, a missing overlay.
    """
    check_options(machine.options)
    check_options(machine.extra)
    if not machine.name:
        raise MisuseError("the VM has no name")
    problem = ram_problem(machine.acceleration, [*machine.options, *machine.extra])
    if problem is not None:
        raise MisuseError(problem)
    if paused and role == "secondary":
        raise MisuseError("a secondary can't be started paused: what it is after a failover would not run")

    argv = [machine.binary, "-name", f"guest={_escape(machine.name)},debug-threads=on", "-no-user-config"]
    if not machine.defaults:
        argv.append("-nodefaults")
    argv += ["-display", "none", "-accel", machine.acceleration.name, "-pidfile", str(files.pidfile)]
    argv += ALWAYS_ENABLED
    for path in files.sockets:
        argv += ["-qmp", f"unix:{_escape(path)},server=on,wait=off"]
    argv += machine.options
    for index, disk in enumerate(machine.disks):
        argv += blockdev_arguments(index, disk, role)
        argv += ["-device", f"{disk.device},id=vdisk{index},drive=colo-disk{index}{_more(disk.device_options)}"]
    argv += machine.nics
    # Not a fixed tcp: address. QEMU would listen before the capabilities are set, and end if it can't.
    if role == "secondary":
        argv += ["-incoming", "defer"]
    if paused:
        argv.append("-S")
    return [*argv, *machine.extra]


def blockdev_arguments(index: int, disk: Disk, role: Role) -> list[str]:
    """The block nodes of that disk, up to the quorum that the guest's device has. Raises MisuseError."""
    return list(_blockdevs(index, disk, role))


def _blockdevs(index: int, disk: Disk, role: Role) -> Iterator[str]:
    def node(driver: str, name: str, rest: str) -> tuple[str, str]:
        return "-blockdev", f"driver={driver},node-name={name}{index},{rest}"

    def file(name: str, path: Path) -> tuple[str, str]:
        return node("file", name, f"filename={_escape(path)}{_more(disk.file_options)}")

    if role == "primary":
        yield from file("pf", disk.image)
        yield from node(disk.format, "pd", f"file=pf{index}")
        child = "pd"
    else:
        if disk.active is None or disk.hidden is None:
            raise MisuseError(f"disk {index} ({disk.image}) has no overlays, which a secondary needs")
        yield from file("sf", disk.image)
        yield from node(disk.format, "parent", f"file=sf{index}")
        yield from file("hf", disk.hidden)
        yield from node("qcow2", "hidden", f"file=hf{index},backing=parent{index}")
        yield from file("af", disk.active)
        yield from node("qcow2", "active", f"file=af{index},backing=hidden{index}")
        yield from node("replication", "childs", f"mode=secondary,top-id=colo-disk{index},file=active{index}")
        child = "childs"
    # A vote of one, read in order: the quorum is only there to let a second child be added to it.
    yield from node("quorum", "colo-disk", f"read-pattern=fifo,vote-threshold=1,children.0={child}{index}")


def _more(options: str) -> str:
    return f",{options}" if options else ""


def _escape(value: str | Path) -> str:
    """A comma within a value is written twice in QEMU's options."""
    return os.fspath(value).replace(",", ",,")
