# SPDX-License-Identifier: Apache-2.0
"""QEMU's options for a VM of the pair, for either attach. Measured with QEMU 7.2.

TAP attach: the NIC's back end is a socket (`-netdev stream`, `dgram`, `socket`) whose other end is `coloproxy run`.
QEMU is the server unless the file says otherwise, because 7.2 does not connect again: so either may restart.

Filter attach: QEMU owns the TAP and its filters meet `coloproxy compare`, see docs/qemu.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from coloproxy.address import Address
from coloproxy.errors import MisuseError

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
    if attach == "tap":
        return [*made, *network_arguments(pair, vm)]
    return [*made, *_filters(pair, vm, vnet_hdr=vnet_hdr)]


def network_arguments(pair: Pair, vm: Vm) -> list[str]:
    """The network alone, TAP attach. Raises MisuseError as qemu_arguments()."""
    made: list[str] = []
    for index, nic in enumerate(vm.nics):
        made += ["-netdev", _backend(vm, nic, f"hn{index}"), "-device", _device(vm, nic, f"hn{index}")]
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


def _filters(pair: Pair, vm: Vm, *, vnet_hdr: bool) -> Iterator[str]:
    nic, ports = _the_nic(vm), vm.filters
    header = nic.tap.vnet_hdr or vnet_hdr
    support = ",vnet_hdr_support=on" if header else ""

    def dial(name: str, host: str, port: int) -> tuple[str, str]:
        return "-chardev", f"socket,id={name},host={_escape(host)},port={port},reconnect=1"

    def filter_(kind: str, name: str, rest: str) -> tuple[str, str]:
        return "-object", f"{kind},id={name},netdev=hn0,{rest}{support}"

    yield from ("-netdev", f"tap,id=hn0,{_tap(nic.tap.name, vnet_hdr=header)}")
    yield from ("-device", _device(vm, nic, "hn0", _NO_OFFLOADS if header else ""))
    if pair.role == "primary":
        # redire0 stands before redire1: what it brings in must not come to redire1.
        yield from dial("mirror0", pair.link.secondary.host, ports.mirror)
        yield from dial("compare0", "127.0.0.1", ports.primary_in)
        yield from dial("compare_out", "127.0.0.1", ports.outdev)
        yield from filter_("filter-mirror", "m0", "queue=tx,outdev=mirror0")
        yield from filter_("filter-redirector", "redire0", "queue=rx,indev=compare_out")
        yield from filter_("filter-redirector", "redire1", "queue=rx,outdev=compare0")
        return
    here = pair.link.secondary.host
    yield from ("-chardev", f"socket,id=red0,host={_escape(here)},port={ports.mirror},server=on,wait=off")
    yield from dial("red1", _primary_host(pair), ports.secondary_in)
    yield from filter_("filter-redirector", "f1", "queue=tx,indev=red0")
    yield from filter_("filter-redirector", "f2", "queue=rx,outdev=red1")
    yield from filter_("filter-rewriter", "rew0", "queue=all")
    yield from ("-incoming", f"tcp:{Address(False, here, ports.migration)}")


def _the_nic(vm: Vm) -> Nic:
    if len(vm.nics) != 1:
        raise MisuseError(f"vm.{vm.name}: the filter attach is for one NIC, {len(vm.nics)} are there; use --attach tap")
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
