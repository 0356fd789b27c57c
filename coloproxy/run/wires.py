# SPDX-License-Identifier: Apache-2.0
"""A NIC's two sides: opens them, gives them to the path, and again when they are lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path as FilePath
from typing import Final

from coloproxy.address import Address, PeerSource
from coloproxy.errors import AddressError, ColoproxyError, DeviceError
from coloproxy.pair.model import Nic
from coloproxy.path.path import Path, Place, WireKind
from coloproxy.reports import Report

from . import devices, told

RETRY_S: Final = 0.2
DEVICE_RETRY_S: Final = 1.0
_BUFFER: Final = 4 << 20  # bytes asked for in the kernel, each way


class NicWires:
    """One NIC. `open` first, with the rights that devices need; then `start`, and `serve` for its life."""

    def __init__(self, index: int, nic: Nic, tell: Callable[[Report], None]) -> None:
        self.index = index
        self.nic = nic
        self.is_open = False  # towards the clients
        self.on_tap_back: Callable[[], None] = lambda: None  # a lost TAP is there again, as open as it is to be
        self._tell = tell
        self._tap: devices.TapDevice | None = None
        self._kept: devices.TapDevice | None = None  # the TAP once more: the path has its own descriptors
        self._vm_fd: tuple[int, WireKind, int] | None = None  # of an interface: the descriptor, and how it is read
        self._source: PeerSource | None = None
        self._lost = {Place.CLIENT: asyncio.Event(), Place.VM: asyncio.Event()}

    # ------------------------------------------------------------------ life

    async def open(self) -> None:
        """Makes the devices and binds the sockets. Raises DeviceError or AddressError."""
        if self._tap is None:
            await devices.apart(self._open_tap)
        side = self.nic.vm
        if not side.is_socket:
            await devices.apart(self._open_interface)
        elif side.kind != "dgram" and side.address is not None:
            plain = Address(
                connect=not side.listen, host=side.address.host, port=side.address.port, path=side.address.path
            )
            self._source = PeerSource(plain, f"nic {self.nic.name}")
            await self._source.open()

    def _open_tap(self) -> None:
        tap = self.nic.tap
        device = devices.open_tap(tap.name, queues=tap.queues, vnet_hdr=tap.vnet_hdr)
        try:
            devices.set_up_tap(tap.name, mtu=tap.mtu, bridge=tap.bridge)
        except DeviceError:
            for fd in device.fds:
                os.close(fd)
            raise
        self.adopt(device)

    def adopt(self, device: devices.TapDevice) -> None:
        """A TAP that is open and set up already; its descriptors are ours from now on."""
        self._tap = device
        self._close_kept()
        self._kept = devices.TapDevice(device.name, tuple(os.dup(fd) for fd in device.fds), device.vnet_len)

    def release(self) -> devices.TapDevice:
        """The open TAP, for whoever goes on with it; the path has been stopped. Raises DeviceError: it is lost."""
        if self._kept is None or self._lost[Place.CLIENT].is_set():
            raise DeviceError(f"TAP {self.nic.tap.name} is not there")
        device, self._kept = self._kept, None
        return device

    def _close_kept(self) -> None:
        if self._kept is not None:
            for fd in self._kept.fds:
                os.close(fd)
        self._kept = None

    def _open_interface(self) -> None:
        side = self.nic.vm
        assert side.name is not None
        vnet_len = devices.VNET_LEN if side.vnet_hdr else 0
        if side.kind == "packet":
            fd = devices.open_packet(side.name, side.netns, vnet_hdr=side.vnet_hdr)
            self._vm_fd = fd, WireKind.PACKET, vnet_len
            return
        device = devices.open_tap(side.name, vnet_hdr=side.vnet_hdr, netns=side.netns)
        mtu, mac = self.nic.tap.mtu, self.nic.mac
        try:
            device.set_carrier(on=True)
            devices.set_up_tap(side.name, mtu=mtu, bridge=None, netns=side.netns, mac=mac, ours=False)
        except DeviceError:
            os.close(device.fds[0])
            raise
        self._vm_fd = device.fds[0], WireKind.FRAMES, device.vnet_len

    def start(self, path: Path) -> None:
        """Gives the path what is open. Raises ColoproxyError."""
        self._attach_tap(path)
        if self._vm_fd is not None:
            self._attach_interface(path)

    def _attach_tap(self, path: Path) -> None:
        assert self._tap is not None
        device, self._tap = self._tap, None
        for fd in device.fds:
            path.attach(Place.CLIENT, fd, WireKind.FRAMES, nic=self.index, vnet_len=device.vnet_len)

    def _attach_interface(self, path: Path) -> None:
        assert self._vm_fd is not None
        (fd, kind, vnet_len), self._vm_fd = self._vm_fd, None
        path.attach(Place.VM, fd, kind, nic=self.index, vnet_len=vnet_len)
        self._tell(told.VmConnected(self.nic.name, f"{self.nic.vm.kind} {self.nic.vm.name}"))

    def set_open(self, *, is_open: bool) -> None:
        """Opens the TAP towards the clients, or closes it; a lost one, when it is back.

        Raises DeviceError: it is lost, or can't be.
        """
        self.is_open = is_open
        if self._kept is None:
            raise DeviceError(f"TAP {self.nic.tap.name} is not there")
        self._kept.set_carrier(on=is_open)

    def close(self) -> None:
        self._close_kept()
        if self._source is not None:
            self._source.close()
        for fds in (self._tap.fds if self._tap is not None else (), (self._vm_fd[0],) if self._vm_fd else ()):
            for fd in fds:
                os.close(fd)
        self._tap = self._vm_fd = None
        if self.nic.vm.kind == "dgram" and self.nic.vm.local is not None and self.nic.vm.local.path is not None:
            with contextlib.suppress(OSError):
                FilePath(self.nic.vm.local.path).unlink()

    # ------------------------------------------------------------------ again

    def lost(self, place: Place, reason: str) -> None:
        """The path says so."""
        side = f"TAP {self.nic.tap.name}" if place is Place.CLIENT else "the VM's side"
        self._tell(told.WireLost(self.nic.name, side, reason))
        self._lost[place].set()

    async def serve(self, path: Path) -> None:
        """Until cancelled: the VM's sides one after the other, and what was lost again."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._serve_tap(path))
            if self._source is not None:
                group.create_task(self._serve_stream(path, self._source))
            elif self.nic.vm.kind == "dgram":
                group.create_task(self._serve_dgram(path))
            else:
                group.create_task(self._serve_interface(path))

    async def _serve_tap(self, path: Path) -> None:
        lost = self._lost[Place.CLIENT]

        async def again() -> None:
            await devices.apart(self._open_tap)
            self._attach_tap(path)
            self.set_open(is_open=self.is_open)
            self.on_tap_back()

        await self._serve_device(lost, again)

    async def _serve_interface(self, path: Path) -> None:
        async def again() -> None:
            await devices.apart(self._open_interface)
            self._attach_interface(path)

        await self._serve_device(self._lost[Place.VM], again)

    async def _serve_device(self, lost: asyncio.Event, again: Callable[[], Awaitable[None]]) -> None:
        said = ""
        while True:
            await lost.wait()
            lost.clear()
            await asyncio.sleep(DEVICE_RETRY_S)
            try:
                await again()
                said = ""
            except ColoproxyError as error:
                lost.set()
                if str(error) != said:
                    said = str(error)
                    self._tell(told.WireLost(self.nic.name, "trying again", said))

    async def _serve_stream(self, path: Path, source: PeerSource) -> None:
        lost = self._lost[Place.VM]
        while True:
            sock = await source.next()
            lost.clear()
            devices.enlarge(sock, _BUFFER)
            path.attach(Place.VM, sock.detach(), WireKind.STREAM, nic=self.index)
            self._tell(told.VmConnected(self.nic.name, str(self.nic.vm.address)))
            await lost.wait()
            await asyncio.sleep(RETRY_S)

    async def _serve_dgram(self, path: Path) -> None:
        lost = self._lost[Place.VM]
        said = ""
        while True:
            lost.clear()
            try:
                sock = self._dgram()
            except OSError as error:  # QEMU is not there yet
                text = error.strerror or str(error)
                if text != said and not isinstance(error, ConnectionRefusedError | FileNotFoundError):
                    said = text
                    self._tell(told.WireLost(self.nic.name, "the VM's side", text))
                await asyncio.sleep(RETRY_S)
                continue
            said = ""
            path.attach(Place.VM, sock.detach(), WireKind.FRAMES, nic=self.index)
            self._tell(told.VmConnected(self.nic.name, str(self.nic.vm.address)))
            await lost.wait()
            await asyncio.sleep(RETRY_S)

    def _dgram(self) -> socket.socket:
        local, address = self.nic.vm.local, self.nic.vm.address
        if local is None or address is None:
            raise AddressError(f"nic {self.nic.name}: dgram needs two addresses")
        if address.path is not None and local.path is not None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            ours: str | tuple[str, int] = local.path
            theirs: str | tuple[str, int] = address.path
            with contextlib.suppress(FileNotFoundError):
                FilePath(local.path).unlink()
        else:
            family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_DGRAM)
            ours, theirs = (local.host, local.port), (address.host, address.port)
        try:
            devices.enlarge(sock, _BUFFER)
            sock.bind(ours)
            sock.connect(theirs)
        except OSError:
            sock.close()
            raise
        return sock
