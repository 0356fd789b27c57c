# SPDX-License-Identifier: Apache-2.0
"""QEMU's options for a VM of the pair, for either attach. Measured with QEMU 7.2.

TAP attach: the NIC's back end is a socket (`-netdev stream`, `dgram`, `socket`) whose other end is `coloproxy run`.
QEMU is the server unless the file says otherwise, because 7.2 does not connect again: so either may restart.

Filter attach: QEMU owns the TAP and its filters meet `coloproxy compare`, see docs/qemu.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from coloproxy.address import Address
from coloproxy.errors import MisuseError
from coloproxy.vmm.argv import ALWAYS_ENABLED

from .model import Nic, Pair, Vm
from .units import Endpoint

Attach = Literal["tap", "filters"]

# filter-rewriter writes a whole checksum and leaves the mark that it is partial, see docs/qemu.md.
_NO_OFFLOADS = ",csum=off,gso=off,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off"


def qemu_arguments(pair: Pair, vm: Vm, attach: Attach = "tap", *, vnet_hdr: bool = False) -> list[str]:
    """Arguments for the VM's QEMU on the pair's host: network, and the monitor for coloproxy.

    Args:
        pair: the host's view.
        vm: one of its VMs.
        attach: who owns the TAPs: coloproxy, or QEMU.
        vnet_hdr: filter attach: with virtio-net headers, even if the file's TAP has none.

    Raises:
        MisuseError: the file lacks something that only this needs.
    """
    made: list[str] = []
    if vm.qmp is not None:
        made += ["-qmp", f"{_qmp(vm.qmp)},server=on,wait=off"]
    if any(nic.model.startswith("virtio") for nic in vm.nics):
        made += ALWAYS_ENABLED
    if attach == "tap":
        return [*made, *network_arguments(pair, vm)]
    return [*made, *_filters(pair, vm, vnet_hdr=vnet_hdr)]


def network_arguments(pair: Pair, vm: Vm) -> list[str]:
    """The network alone, TAP attach. Raises MisuseError as qemu_arguments()."""
    made: list[str] = []
    for index, nic in enumerate(vm.nics):
        made += ["-netdev", _backend(vm, nic, f"hn{index}"), "-device", _device(vm, nic, f"hn{index}")]
    return made


@dataclass(frozen=True, slots=True)
class FilterHosts:
    """Addresses at which QEMU's filters meet each other and the comparator; the primary's own are on its loopback."""

    primary: str
    secondary: str


LOOPBACK: Final = "127.0.0.1"
NETDEV: Final = "hn0"


def card_arguments(vm: Vm, *, vnet_hdr: bool = False) -> list[str]:
    """Filter attach: the NIC alone, with a TAP that QEMU opens. Raises MisuseError: more than one NIC, or no MAC."""
    nic = _the_nic(vm)
    header = nic.tap.vnet_hdr or vnet_hdr
    made = ["-netdev", f"tap,id={NETDEV},{_tap(nic.tap.name, vnet_hdr=header)}"]
    return [*made, "-device", _device(vm, nic, NETDEV, _NO_OFFLOADS if header else "")]


def secondary_filters(vm: Vm, hosts: FilterHosts, *, vnet_hdr: bool = False) -> list[str]:
    """Filter attach: the secondary's chardevs and filters."""
    nic, ports = _the_nic(vm), vm.filters
    header = nic.tap.vnet_hdr or vnet_hdr
    made = ["-chardev", f"socket,id=red0,host={_escape(hosts.secondary)},port={ports.mirror},server=on,wait=off"]
    made += _dial("red1", hosts.primary, ports.secondary_in)
    made += _filter("filter-redirector", "f1", "queue=tx,indev=red0", vnet_hdr=header)
    made += _filter("filter-redirector", "f2", "queue=rx,outdev=red1", vnet_hdr=header)
    made += _filter("filter-rewriter", "rew0", "queue=all", vnet_hdr=header)
    return made


def primary_filters(vm: Vm, hosts: FilterHosts, *, vnet_hdr: bool = False) -> list[str]:
    """Filter attach: the primary's, for its command line. (The node adds them to a QEMU that runs.)"""
    nic, ports = _the_nic(vm), vm.filters
    header = nic.tap.vnet_hdr or vnet_hdr
    # redire0 stands before redire1: what it brings in must not come to redire1.
    made = _dial("mirror0", hosts.secondary, ports.mirror)
    made += _dial("compare0", LOOPBACK, ports.primary_in)
    made += _dial("compare_out", LOOPBACK, ports.outdev)
    made += _filter("filter-mirror", "m0", "queue=tx,outdev=mirror0", vnet_hdr=header)
    made += _filter("filter-redirector", "redire0", "queue=rx,indev=compare_out", vnet_hdr=header)
    made += _filter("filter-redirector", "redire1", "queue=rx,outdev=compare0", vnet_hdr=header)
    return made


def compare_arguments(pair: Pair, vm: Vm, *, vnet_hdr: bool = False) -> list[str]:
    """Arguments of the `coloproxy compare` that belongs to the filter attach; it runs on the primary."""
    nic, ports = _the_nic(vm), vm.filters
    made = ["--primary-in", f"127.0.0.1:{ports.primary_in}"]
    made += ["--secondary-in", str(Address(False, _primary_host(pair), ports.secondary_in))]
    made += ["--outdev", f"127.0.0.1:{ports.outdev}"]
    if vm.qmp is not None:
        made += ["--qmp", str(vm.qmp)]
    if nic.tap.vnet_hdr or vnet_hdr:
        made.append("--vnet-hdr-support")
    return made


# ------------------------------------------------------------------ TAP attach


def _backend(vm: Vm, nic: Nic, name: str) -> str:
    side = nic.vm
    if side.kind == "packet":  # QEMU's own TAP, whose network end we read by a packet socket
        return f"tap,id={name},{_tap(str(side.name), vnet_hdr=side.vnet_hdr)}"
    if side.kind == "tap":
        raise MisuseError(
            f'vm.{vm.name}: {nic.name}: kind = "tap" is a TAP of coloproxy\'s own, no QEMU can open it; '
            'use "stream", or "packet" with the name of QEMU\'s TAP'
        )
    assert side.address is not None  # checked when the file was read
    if side.kind == "socket":
        return f"socket,id={name},{'connect' if side.listen else 'listen'}={side.address.host}:{side.address.port}"
    if side.kind == "dgram":
        assert side.local is not None
        return f"dgram,id={name},{_address('local', side.address)},{_address('remote', side.local)}"
    return f"stream,id={name},server={'off' if side.listen else 'on'},{_address('addr', side.address)}"


def _address(key: str, at: Endpoint) -> str:
    if at.path is not None:
        return f"{key}.type=unix,{key}.path={_escape(at.path)}"
    return f"{key}.type=inet,{key}.host={_escape(at.host)},{key}.port={at.port}"


def _device(vm: Vm, nic: Nic, name: str, more: str = "") -> str:
    if nic.mac is None:
        raise MisuseError(f"vm.{vm.name}: {nic.name}: mac is missing: both VMs must have the same one")
    virtio = nic.model.startswith("virtio-net")
    mtu = f",host_mtu={nic.tap.mtu}" if virtio and nic.tap.mtu != 1500 else ""
    return f"{nic.model}{more if virtio else ''},netdev={name},mac={nic.mac}{mtu}"


def _tap(name: str, *, vnet_hdr: bool) -> str:
    return f"ifname={_escape(name)},script=no,downscript=no,vhost=off,vnet_hdr={'on' if vnet_hdr else 'off'}"


# --------------------------------------------------------------- filter attach


def _filters(pair: Pair, vm: Vm, *, vnet_hdr: bool) -> list[str]:
    made = card_arguments(vm, vnet_hdr=vnet_hdr)
    if pair.role == "primary":  # whose own address is on its loopback
        return [*made, *primary_filters(vm, FilterHosts(LOOPBACK, pair.link.secondary.host), vnet_hdr=vnet_hdr)]
    hosts = FilterHosts(_primary_host(pair), pair.link.secondary.host)
    made += secondary_filters(vm, hosts, vnet_hdr=vnet_hdr)
    return [*made, "-incoming", f"tcp:{Address(False, hosts.secondary, vm.filters.migration)}"]


def _dial(name: str, host: str, port: int) -> list[str]:
    return ["-chardev", f"socket,id={name},host={_escape(host)},port={port},reconnect=1"]


def _filter(kind: str, name: str, rest: str, *, vnet_hdr: bool) -> list[str]:
    support = ",vnet_hdr_support=on" if vnet_hdr else ""
    return ["-object", f"{kind},id={name},netdev={NETDEV},{rest}{support}"]


def _the_nic(vm: Vm) -> Nic:
    if len(vm.nics) != 1:
        raise MisuseError(f"vm.{vm.name}: the filter attach is for one NIC, {len(vm.nics)} are there")
    return vm.nics[0]


def _primary_host(pair: Pair) -> str:
    if pair.link.primary is None:
        raise MisuseError("link.primary is missing: the filter attach needs the primary's address")
    return pair.link.primary


def _qmp(at: Address) -> str:
    return f"unix:{_escape(at.path)}" if at.path is not None else f"tcp:{at}"


def _escape(value: str) -> str:
    """A comma within a value is written twice in QEMU's options."""
    return value.replace(",", ",,")
