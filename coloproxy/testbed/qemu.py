# SPDX-License-Identifier: Apache-2.0
"""The QEMU command lines of a protected pair, for either attach.  No disk: COLO works without.

Filter attach: unmodified QEMU; network filters as QEMU's own docs/colo-proxy.txt names them, with the far ends of their
sockets in an external comparator (or, to measure it, in QEMU's own colo-compare).

    primary                                        secondary
    m0      inbound copy  -> mirror0 ------------> red0 -> f1      inbound copy into the guest
    redire1 guest output  -> compare0 -> proxy     f2 -> red1 ---> proxy     guest output
    redire0 released      <- compare_out <- proxy  rew0            rewrites sequence numbers

TAP attach: no filter at all; the network card is what `coloproxy qemu-args` prints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coloproxy.vmm.argv import ALWAYS_ENABLED

from .guest import Guest
from .guest_files import GUEST_MAC, HOST_NAME_KEY
from .net import LINK_PRIMARY, LINK_SECONDARY, TAP
from .tcg import QEMU, Acceleration

Nic = Literal["e1000", "virtio"]
Role = Literal["primary", "secondary"]

MIGRATION_PORT = 9998
MIRROR_PORT = 9003
PRIMARY_IN_PORT = 9001
SECONDARY_IN_PORT = 9002
OUTDEV_PORT = 9004

HOST_NAMES: Mapping[Role, str] = {"primary": "host-a", "secondary": "host-b"}
"""What the guest reads of the host it runs on (guest_files.HOST_NAME_KEY); of equal length on purpose."""

PRIMARY_FILTERS = ("m0", "redire0", "redire1")
SECONDARY_FILTERS = ("f1", "f2")
"""Filters that carry the comparison.  They start switched off (no released output, no network for the guest) and are
switched on just before COLO.  The secondary's rew0 isn't among them: it is on all the time and stays after a failover.
"""

# filter-rewriter writes a whole checksum but leaves the note "checksum still to be completed" in the virtio header, so
# that a later completion breaks it.  A guest that completes its checksums and segments itself leaves no such note.
_VIRTIO_FEATURES = ",csum=off,gso=off,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off"
# rootfstype=ramfs: a tmpfs would take half of the RAM that the packed file system leaves free, too little for it.
_KERNEL_COMMAND_LINE = (
    "console=ttyS0 quiet loglevel=4 panic=-1 net.ifnames=0 mitigations=off apparmor=0 rootfstype=ramfs"
)


@dataclass(frozen=True, slots=True)
class Sockets:
    """Files of one QEMU in the scratch directory of its test bed."""

    control: Path
    """QMP, for the test bed itself."""
    oob: Path
    """QMP, spare: for out-of-band commands while the first one hangs."""
    proxy: Path
    """QMP, for the comparator (a monitor socket serves one peer at a time)."""
    console: Path
    """What the guest wrote to its serial console."""

    @classmethod
    def below(cls, directory: Path, name: str) -> Sockets:
        """The files of the QEMU of that name: its role, where there is but one of each."""
        base = directory / name
        return cls(*(base.with_suffix(s) for s in (".control.qmp", ".oob.qmp", ".proxy.qmp", ".console.log")))


@dataclass(frozen=True, slots=True)
class MachineOptions:
    """What both QEMUs of a pair have in common."""

    guest: Guest
    acceleration: Acceleration
    nic: Nic = "e1000"
    stock_comparator: bool = False
    """Compare with colo-compare inside the primary's QEMU, not in an external process."""
    stock_compare_options: str = ""
    """More properties of the colo-compare object, such as `compare_timeout=1000`."""
    primary_arguments: tuple[str, ...] = ()
    """More arguments for the primary's QEMU."""
    secondary_arguments: tuple[str, ...] = ()
    """More arguments for the secondary's QEMU."""

    @property
    def vnet_hdr(self) -> bool:
        """True if frames carry a virtio-net header on the TAP and in every filter."""
        return self.nic == "virtio"


def single_command(options: MachineOptions, sockets: Sockets) -> list[str]:
    """Command line of a machine that nobody protects: the primary's, without COLO's filters."""
    return [*_tap_machine(options, sockets, "primary"), *options.primary_arguments]


def tap_attach_command(options: MachineOptions, sockets: Sockets, role: Role, network: Sequence[str]) -> list[str]:
    """Command line of either machine under `coloproxy run`; *network* is what `coloproxy qemu-args` says."""
    incoming = ["-incoming", f"tcp:{LINK_SECONDARY}:{MIGRATION_PORT}"] if role == "secondary" else []
    more = options.primary_arguments if role == "primary" else options.secondary_arguments
    return [*_machine(options, sockets, role), *network, *incoming, *more]


def primary_command(options: MachineOptions, sockets: Sockets) -> list[str]:
    """Command line of the primary."""
    filters = _stock_filters(options, sockets) if options.stock_comparator else _external_filters(options)
    return [
        *_tap_machine(options, sockets, "primary"),
        *_client_socket("mirror0", LINK_SECONDARY, MIRROR_PORT),
        *_filter(options, "filter-mirror", "m0", "tx", "outdev=mirror0", on=False),
        *filters,
        *options.primary_arguments,
    ]


def secondary_command(options: MachineOptions, sockets: Sockets) -> list[str]:
    """Command line of the secondary.  Of mirror0 and red0 this one listens."""
    return [
        *_tap_machine(options, sockets, "secondary"),
        *("-chardev", f"socket,id=red0,host={LINK_SECONDARY},port={MIRROR_PORT},server=on,wait=off"),
        *_client_socket("red1", LINK_PRIMARY, SECONDARY_IN_PORT),
        *_filter(options, "filter-redirector", "f1", "tx", "indev=red0", on=False),
        *_filter(options, "filter-redirector", "f2", "rx", "outdev=red1", on=False),
        *_filter(options, "filter-rewriter", "rew0", "all", on=True),
        *("-incoming", f"tcp:{LINK_SECONDARY}:{MIGRATION_PORT}"),
        *options.secondary_arguments,
    ]


def guest_options(guest: Guest, acceleration: Acceleration, host_name: str) -> list[str]:
    """What makes the guest the machine that it is: nothing of disks, network cards, monitors and the console.

    *host_name*: what the guest reads of the host it runs on (HOST_NAME_KEY).
    """
    argv = ["-machine", "pc", "-smp", "1", "-m", f"{acceleration.ram_kib}k"]
    # RDRAND fills the guest's random generator at once; else its first reader waits a second for entropy.
    argv += ["-cpu", "host" if acceleration.name == "kvm" else "qemu64,+rdrand"]
    argv += ["-kernel", str(guest.kernel), "-initrd", str(guest.initrd), "-append", _KERNEL_COMMAND_LINE]
    argv += ["-fw_cfg", f"name={HOST_NAME_KEY},string={host_name}"]
    # No negotiation of the e1000's speed: with it, the link comes up two seconds later.
    argv += ["-global", "e1000.autonegotiation=off"]
    # No option ROM: nobody boots from the network, and it isn't installed everywhere.
    argv += ["-global", "e1000.romfile=", "-global", "virtio-net-pci.romfile="]
    return argv


def _machine(options: MachineOptions, sockets: Sockets, role: Role) -> list[str]:
    guest, acceleration = options.guest, options.acceleration
    argv = [QEMU, "-name", f"colo-{role}", "-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-accel", acceleration.name, *guest_options(guest, acceleration, HOST_NAMES[role])]
    argv += ["-chardev", f"file,id=console,path={sockets.console}", "-serial", "chardev:console"]
    for path in (sockets.control, sockets.oob):
        argv += ["-qmp", f"unix:{path},server=on,wait=off"]
    return argv


def _tap_machine(options: MachineOptions, sockets: Sockets, role: Role) -> list[str]:
    """With a TAP that QEMU opens itself, and a monitor for the comparator."""
    argv = [*_machine(options, sockets, role), *ALWAYS_ENABLED, "-qmp", f"unix:{sockets.proxy},server=on,wait=off"]
    header = "on" if options.vnet_hdr else "off"
    argv += ["-netdev", f"tap,id=hn0,ifname={TAP},script=no,downscript=no,vhost=off,vnet_hdr={header}"]
    device = f"virtio-net-pci{_VIRTIO_FEATURES}" if options.nic == "virtio" else "e1000"
    argv += ["-device", f"{device},netdev=hn0,mac={GUEST_MAC}"]
    return argv


def _external_filters(options: MachineOptions) -> list[str]:
    # redire0 stands before redire1: frames of the guest run through the filters from the last to the first, and what
    # redire0 brings in must not come to redire1.
    return [
        *_client_socket("compare0", "127.0.0.1", PRIMARY_IN_PORT),
        *_client_socket("compare_out", "127.0.0.1", OUTDEV_PORT),
        *_filter(options, "filter-redirector", "redire0", "rx", "indev=compare_out", on=False),
        *_filter(options, "filter-redirector", "redire1", "rx", "outdev=compare0", on=False),
    ]


def _stock_filters(options: MachineOptions, sockets: Sockets) -> list[str]:
    primary_in = sockets.control.with_suffix(".primary_in")
    outdev = sockets.control.with_suffix(".outdev")
    compare = "colo-compare,id=comp0,primary_in=primary_in,secondary_in=compare1,outdev=outdev,iothread=iothread1"
    if options.vnet_hdr:
        compare += ",vnet_hdr_support=on"
    if options.stock_compare_options:
        compare += f",{options.stock_compare_options}"
    return [
        *("-chardev", f"socket,id=compare1,host={LINK_PRIMARY},port={SECONDARY_IN_PORT},server=on,wait=off"),
        *("-chardev", f"socket,id=primary_in,path={primary_in},server=on,wait=off"),
        *("-chardev", f"socket,id=compare0,path={primary_in}"),
        *("-chardev", f"socket,id=outdev,path={outdev},server=on,wait=off"),
        *("-chardev", f"socket,id=compare_out,path={outdev}"),
        *("-object", "iothread,id=iothread1"),
        *_filter(options, "filter-redirector", "redire0", "rx", "indev=compare_out", on=False),
        *_filter(options, "filter-redirector", "redire1", "rx", "outdev=compare0", on=False),
        *("-object", compare),
    ]


def _client_socket(name: str, host: str, port: int) -> Sequence[str]:
    """A socket that QEMU opens itself, and opens again a second after it broke."""
    return "-chardev", f"socket,id={name},host={host},port={port},reconnect=1"


def _filter(options: MachineOptions, kind: str, name: str, queue: str, *more: str, on: bool) -> Sequence[str]:
    properties = [kind, f"id={name}", "netdev=hn0", f"queue={queue}", f"status={'on' if on else 'off'}", *more]
    if options.vnet_hdr:
        properties.append("vnet_hdr_support=on")
    return "-object", ",".join(properties)
