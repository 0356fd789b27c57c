# SPDX-License-Identifier: Apache-2.0
"""A TAP for QEMU to open, which stays when QEMU or we end; and whether it is on the clients' bridge.

By ioctl: whoever takes a VM off the network can't wait for a thread (see devices.apart). Needs CAP_NET_ADMIN.

Source: Linux, Documentation/networking/tuntap.rst; netdevice(7); include/uapi/linux/sockios.h, if_tun.h.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from coloproxy.errors import DeviceError

_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFMTU = 0x8913, 0x8914, 0x8922
_SIOCBRADDIF, _SIOCBRDELIF = 0x89A2, 0x89A3
_IFF_UP: Final = 0x1


class KeptTap:
    """The TAP of that name, wherever it is in its life. All methods raise DeviceError, and are idempotent.

    bridge: the clients'; None: somebody else puts it there, and it is only taken up and down.
    """

    def __init__(self, name: str, bridge: str | None) -> None:
        self.name = name
        self._bridge = bridge

    def make(self, *, mtu: int, owner: int | None) -> None:
        """There is one, as if it were new: down, on no bridge. owner: a user id that may open it without rights."""
        with self._telling():
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", self.name.encode(), _IFF_TAP | _IFF_NO_PI))
                fcntl.ioctl(fd, _TUNSETOWNER, os.getuid() if owner is None else owner)
                fcntl.ioctl(fd, _TUNSETPERSIST, 1)
            finally:
                os.close(fd)
            self.close()
            # The host itself must not speak there: its own IPv6 would reach the VM as if from a client.
            with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
                Path(f"/proc/sys/net/ipv6/conf/{self.name}/disable_ipv6").write_text("1")
            with _socket() as sock:
                fcntl.ioctl(sock, _SIOCSIFMTU, struct.pack("16si20x", self.name.encode(), mtu))

    def open(self) -> None:
        """On the bridge, and up."""
        with self._telling(), _socket() as sock:
            if self._bridge is not None:
                try:
                    fcntl.ioctl(sock, _SIOCBRADDIF, self._on_bridge(self._bridge))
                except OSError as error:
                    if error.errno == errno.ENODEV:
                        raise DeviceError(f"TAP {self.name}: there is no bridge {self._bridge}") from error
                    if error.errno != errno.EBUSY:  # it is there already
                        raise
            self._set_up(sock, up=True)

    def close(self) -> None:
        """Off the bridge, and down. Of no effect if there is none."""
        with self._telling(), _socket() as sock:
            try:
                if self._bridge is not None:
                    with contextlib.suppress(OSError):  # it is not there, or the bridge isn't: down will do
                        fcntl.ioctl(sock, _SIOCBRDELIF, self._on_bridge(self._bridge))
                self._set_up(sock, up=False)
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise

    def remove(self) -> None:
        """There is none any more, also if QEMU has it open. Not in the event loop's thread: see devices.apart."""
        with self._telling():
            try:
                with IPRoute() as ip:
                    for index in ip.link_lookup(ifname=self.name):
                        ip.link("del", index=index)
            except NetlinkError as error:
                if error.code != errno.ENODEV:
                    raise OSError(error.code, os.strerror(error.code)) from error

    # ----------------------------------------------------------------- inside

    def _on_bridge(self, bridge: str) -> bytes:
        return struct.pack("16si20x", bridge.encode(), socket.if_nametoindex(self.name))

    def _set_up(self, sock: socket.socket, *, up: bool) -> None:
        request = struct.pack("16sH22x", self.name.encode(), 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)
        flags = flags | _IFF_UP if up else flags & ~_IFF_UP
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH22x", self.name.encode(), flags))

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DeviceError(f"TAP {self.name}: {_reason(error)}") from error


def _socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)


def _reason(error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return "another program has it open"
    if error.errno == errno.EINVAL:
        return "an interface of that name is there, and is no TAP with one queue"
    if error.errno in (errno.EPERM, errno.EACCES):
        return "no right to make or change it (needs CAP_NET_ADMIN)"
    if error.errno in (errno.ENOENT, errno.ENXIO):
        return "/dev/net/tun is not there (try: modprobe tun)"
    return error.strerror or str(error)
