# SPDX-License-Identifier: Apache-2.0
"""Network devices: TAPs of our own, packet sockets on interfaces that are there, bridges. Needs CAP_NET_ADMIN.

A TAP is closed by its carrier: without one the bridge passes it nothing, and neither learns nor floods through it. That
is set through the TAP's own descriptor, so a process that has given up its privileges can still open it at failover.

Source: Linux, Documentation/networking/tuntap.rst; packet(7).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from coloproxy.errors import DeviceError

_T = TypeVar("_T")

VNET_LEN: Final = 10
"""Bytes of the virtio-net header before each frame where devices have one (struct virtio_net_hdr)."""

_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_TUNSETCARRIER: Final = 0x400454E2
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6 = 0x01, 0x02, 0x04

_SOL_PACKET: Final = 263
_PACKET_ADD_MEMBERSHIP, _PACKET_AUXDATA, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 1, 8, 15, 23
_PACKET_MR_PROMISC: Final = 1
_ETH_P_ALL: Final = 3
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_PACKET_BUFFER: Final = 8 << 20  # bytes of the socket's queue: a burst while the thread is busy


@dataclass(frozen=True, slots=True)
class TapDevice:
    """An open TAP. fds: one for each queue; whoever uses them closes them."""

    name: str
    fds: tuple[int, ...]
    vnet_len: int

    def set_carrier(self, *, on: bool) -> None:
        """Plugs the cable in, or pulls it. Raises DeviceError."""
        set_carrier(self.fds[0], self.name, on=on)


def set_carrier(fd: int, name: str, *, on: bool) -> None:
    """The same by a descriptor. Raises DeviceError."""
    try:
        fcntl.ioctl(fd, _TUNSETCARRIER, struct.pack("i", on))
    except OSError as error:
        raise DeviceError(f"{name}: can't set its carrier: {error.strerror}") from error


def open_tap(name: str, *, queues: int = 1, vnet_hdr: bool = False, netns: str | None = None) -> TapDevice:
    """Makes the TAP, or takes over one that nobody has open. It is not up yet, and has no carrier.

    netns: the namespace where it is; None: our own.

    Raises:
        DeviceError: no right to, in use, or of another kind (queues, not a TAP).
    """
    where = name if netns is None else f"{name} in namespace {netns}"
    with _telling(f"TAP {where}"), _inside(netns):
        return _open_tap(name, queues, vnet_hdr=vnet_hdr)


def _open_tap(name: str, queues: int, *, vnet_hdr: bool) -> TapDevice:
    flags = _IFF_TAP | _IFF_NO_PI | (_IFF_VNET_HDR if vnet_hdr else 0) | (_IFF_MULTI_QUEUE if queues > 1 else 0)
    fds: list[int] = []
    try:
        for _ in range(queues):
            fds.append(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
            fcntl.ioctl(fds[-1], _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        if vnet_hdr:
            fcntl.ioctl(fds[0], _TUNSETVNETHDRSZ, struct.pack("i", VNET_LEN))
        # A persistent one may have a former owner's: frames must come whole where nobody can take super-frames.
        fcntl.ioctl(fds[0], _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6 if vnet_hdr else 0)
        set_carrier(fds[0], name, on=False)
    except OSError as error:
        _close(fds)
        raise DeviceError(f"TAP {name}: {_tap_reason(error, queues)}") from error
    except DeviceError:
        _close(fds)
        raise
    return TapDevice(name, tuple(fds), VNET_LEN if vnet_hdr else 0)


def _tap_reason(error: OSError, queues: int) -> str:
    if error.errno == errno.EBUSY:
        return "another program has it open"
    if error.errno == errno.EINVAL:
        return (
            f"an interface of that name is there, and is no TAP with {'several queues' if queues > 1 else 'one queue'}"
        )
    if error.errno in (errno.EPERM, errno.EACCES):
        return "no right to make or open it (needs CAP_NET_ADMIN)"
    if error.errno in (errno.ENOENT, errno.ENODEV):
        return "/dev/net/tun is not there (try: modprobe tun)"
    return error.strerror or str(error)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def set_up_tap(
    name: str, *, mtu: int, bridge: str | None, netns: str | None = None, mac: str | None = None, ours: bool = True
) -> None:
    """Its MTU, its address, its place on a bridge, and up. Raises DeviceError.

    ours: the host's end, on which the host itself must not speak: its own IPv6 would reach the VM as if from a client.
    """
    with _telling(f"TAP {name}"), _inside(netns), IPRoute() as ip:
        index = _index(ip, name)
        ip.link("set", index=index, mtu=mtu)
        if mac is not None:
            ip.link("set", index=index, address=mac)
        if ours:
            with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
                Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        if bridge is not None:
            master = ip.link_lookup(ifname=bridge)
            if not master:
                raise DeviceError(f"TAP {name}: there is no bridge {bridge}")
            ip.link("set", index=index, master=master[0])
        ip.link("set", index=index, state="up")


def open_packet(interface: str, netns: str | None, *, vnet_hdr: bool) -> int:
    """A packet socket on an interface that is there, for all its frames; its own output does not come back.

    Returns its descriptor. Raises DeviceError.
    """
    what = f"interface {interface}" + (f" in namespace {netns}" if netns is not None else "")
    with _telling(what), _inside(netns):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
        try:
            index = socket.if_nametoindex(interface)
            sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            sock.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            if vnet_hdr:
                sock.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
            enlarge(sock, _PACKET_BUFFER)
            promiscuous = struct.pack("iHH8s", index, _PACKET_MR_PROMISC, 0, b"")
            sock.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, promiscuous)
            sock.bind((interface, _ETH_P_ALL))
        except OSError:
            sock.close()
            raise
        return sock.detach()


async def apart(function: Callable[[], _T]) -> _T:
    """Runs it in a thread of its own: pyroute2 has an event loop that can't run inside ours.

    A new one each time, for capabilities are a thread's: those from before the process gave its rights up have none.
    A thread can't be cancelled: whoever is waits for its end, so that what it has opened is there to be closed.
    """
    executor = ThreadPoolExecutor(1, "coloproxy-devices")
    done = asyncio.get_running_loop().run_in_executor(executor, function)
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        while not done.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({done})
        done.exception()  # it was seen
        raise
    finally:
        executor.shutdown(wait=False)


def enlarge(sock: socket.socket, size: int) -> None:
    """Kernel buffers of a socket: beyond the system's limit where we may, else up to it."""
    for forced, plain in ((_SO_SNDBUFFORCE, socket.SO_SNDBUF), (_SO_RCVBUFFORCE, socket.SO_RCVBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, size)
        except OSError:
            sock.setsockopt(socket.SOL_SOCKET, plain, size)


# ------------------------------------------------------------------ namespaces


def namespace_path(netns: str) -> Path:
    """Of a namespace's name as `ip netns` has it, or of its file."""
    return Path(netns) if "/" in netns else Path("/run/netns") / netns


@contextlib.contextmanager
def _namespace(netns: str) -> Iterator[int]:
    fd = os.open(namespace_path(netns), os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _inside(netns: str | None) -> Iterator[None]:
    """This thread in that namespace."""
    if netns is None:
        yield
        return
    with _namespace("/proc/thread-self/ns/net") as home, _namespace(netns) as there:
        _setns(there)
        try:
            yield
        finally:
            _setns(home)


def _setns(fd: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(fd, 0x40000000) < 0:  # CLONE_NEWNET; os.setns is Python 3.12's
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _index(ip: Any, name: str) -> int:
    found = ip.link_lookup(ifname=name)
    if not found:
        raise DeviceError(f"interface {name} is not there")
    return int(found[0])


@contextlib.contextmanager
def _telling(what: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise DeviceError(f"{what}: {os.strerror(error.code)}") from error
    except OSError as error:
        raise DeviceError(f"{what}: {error.strerror or error}") from error


__all__ = [
    "VNET_LEN",
    "TapDevice",
    "enlarge",
    "open_packet",
    "open_tap",
    "set_carrier",
    "set_up_tap",
]
