# SPDX-License-Identifier: Apache-2.0
"""The program of the impairment relay: joins two interfaces, one Lane in each direction.  Started by relay.py.

    python -m coloproxy.testbed.impair_process --left packet:left --right packet:right --seed 1

Ends are `packet:IF`, a packet socket on an interface that is there, or `tap:IF`, a TAP that it makes.  It reads
commands from stdin, one JSON object a line, and answers each with a line on stdout; the first line on stdout says that
both ends are open.  The end of stdin ends it.

    {"set": {"to_right": {"loss": 0.01}, "to_left": {}}}      {"cut": {"to_left": true}}      {"counters": true}

Delays are as exact as epoll's timeout, a millisecond.  Its interfaces must not offload (namespace_net.set_offloads),
unless with --vnet-hdr: then both ends carry frames behind 10 bytes of virtio-net header, as they come.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import select
import socket
import struct
import sys
import time
from typing import Any, Final, Protocol

from ..errors import ColoproxyError
from .errors import NetworkError
from .impair import Impairment, Lane

_FRAMES_A_TURN: Final = 64
_LARGEST: Final = 1 << 17
_BUFFER: Final = 8 << 20
_SEND_PATIENCE_MS: Final = 100
_VNET_HEADER: Final = 10

# if_packet.h, if_tun.h
_SOL_PACKET: Final = 263
_ADD_MEMBERSHIP, _AUXDATA, _VNET_HDR, _IGNORE_OUTGOING = 1, 8, 15, 23
_MR_PROMISC: Final = 1
_AUXDATA_FORMAT: Final = struct.Struct("=IIIHHHH")
_VLAN_VALID: Final = 1 << 4
_TUNSETIFF, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_CHECKSUM_TSO4_TSO6: Final = 0x01 | 0x02 | 0x04


class End(Protocol):
    """One of the two interfaces."""

    def fileno(self) -> int:
        """For epoll."""

    def receive(self) -> bytes | None:
        """The next frame; None: there is none now.  Raises OSError."""

    def send(self, frame: bytes) -> None:
        """Raises OSError; BlockingIOError: not now."""


class PacketEnd:
    """A packet socket; sees all that comes in there, and nothing that it sent itself."""

    def __init__(self, interface: str, vnet_hdr: bool) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
        self._socket.setsockopt(_SOL_PACKET, _AUXDATA, 1)
        if vnet_hdr:
            self._socket.setsockopt(_SOL_PACKET, _VNET_HDR, 1)
        for name in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            forced = {socket.SO_RCVBUF: 33, socket.SO_SNDBUF: 32}[name]  # SO_RCVBUFFORCE, SO_SNDBUFFORCE
            self._socket.setsockopt(socket.SOL_SOCKET, forced, _BUFFER)
        membership = struct.pack("iHH8s", socket.if_nametoindex(interface), _MR_PROMISC, 0, b"")
        self._socket.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, membership)
        self._socket.bind((interface, 3))  # ETH_P_ALL
        self._socket.setblocking(False)
        self._vnet_hdr = vnet_hdr
        self._buffer = bytearray(_LARGEST)
        self._view = memoryview(self._buffer)

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> bytes | None:
        try:
            length, ancillary, _, _ = self._socket.recvmsg_into([self._buffer], 64)
        except BlockingIOError:
            return None
        frame = bytes(self._view[:length])
        for level, kind, data in ancillary:
            if level == _SOL_PACKET and kind == _AUXDATA:
                status, _, _, _, _, tag, protocol = _AUXDATA_FORMAT.unpack_from(data)
                if status & _VLAN_VALID:
                    return self._with_vlan(frame, protocol, tag)
        return frame

    def send(self, frame: bytes) -> None:
        self._socket.send(frame)

    def _with_vlan(self, frame: bytes, protocol: int, tag: int) -> bytes:
        # The kernel keeps the tag beside the frame.
        if self._vnet_hdr:
            raise NetworkError("a frame with a VLAN tag and a virtio-net header: can't put them together")
        return frame[:12] + struct.pack("!HH", protocol, tag) + frame[12:]


class TapEnd:
    """A TAP of our own, gone with the process."""

    def __init__(self, interface: str, vnet_hdr: bool) -> None:
        self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        flags = _IFF_TAP | _IFF_NO_PI | (_IFF_VNET_HDR if vnet_hdr else 0)
        fcntl.ioctl(self._fd, _TUNSETIFF, struct.pack("16sH22x", interface.encode(), flags))
        if vnet_hdr:
            fcntl.ioctl(self._fd, _TUNSETVNETHDRSZ, struct.pack("i", _VNET_HEADER))
            fcntl.ioctl(self._fd, _TUNSETOFFLOAD, _CHECKSUM_TSO4_TSO6)

    def fileno(self) -> int:
        return self._fd

    def receive(self) -> bytes | None:
        try:
            return os.read(self._fd, _LARGEST)
        except BlockingIOError:
            return None

    def send(self, frame: bytes) -> None:
        os.write(self._fd, frame)


def open_end(text: str, vnet_hdr: bool) -> End:
    """`packet:IF` or `tap:IF`.  Raises NetworkError."""
    kind, _, interface = text.partition(":")
    makers: dict[str, type[PacketEnd] | type[TapEnd]] = {"packet": PacketEnd, "tap": TapEnd}
    if kind not in makers or not interface:
        raise NetworkError(f"{text!r} is neither packet:INTERFACE nor tap:INTERFACE")
    try:
        return makers[kind](interface, vnet_hdr)
    except OSError as error:
        raise NetworkError(f"{text}: {error}") from error


class Direction:
    """From one end to the other."""

    def __init__(self, source: End, sink: End, lane: Lane) -> None:
        self.lane = lane
        self.errors = 0
        self._source = source
        self._sink = sink

    def take(self) -> bool:
        """Read what is there, up to a turn's worth; False if there was nothing."""
        for taken in range(_FRAMES_A_TURN):
            try:
                frame = self._source.receive()
            except OSError:  # the interface is down, or was
                self.errors += 1
                return taken > 0
            if frame is None:
                return taken > 0
            self.lane.offer(frame, time.monotonic_ns())
        return True

    def give(self) -> None:
        """Send what is due."""
        for frame in self.lane.due(time.monotonic_ns()):
            try:
                self._send(frame)
            except OSError:  # down, or too long for it
                self.errors += 1

    def _send(self, frame: bytes) -> None:
        with contextlib.suppress(BlockingIOError):
            self._sink.send(frame)
            return
        waiter = select.poll()
        waiter.register(self._sink.fileno(), select.POLLOUT)
        waiter.poll(_SEND_PATIENCE_MS)
        self._sink.send(frame)


class RelayLoop:
    """Both directions, and the commands."""

    def __init__(self, left: End, right: End, seed: str, header: int) -> None:
        self._directions = {
            "to_right": Direction(left, right, Lane(f"{seed} to_right", header=header)),
            "to_left": Direction(right, left, Lane(f"{seed} to_left", header=header)),
        }
        self._epoll = select.epoll()
        self._sources = {left.fileno(): self._directions["to_right"], right.fileno(): self._directions["to_left"]}
        for fd in (*self._sources, sys.stdin.fileno()):
            self._epoll.register(fd, select.EPOLLIN)
        self._commands = b""

    def run(self) -> None:
        """Until stdin ends."""
        _say({"ready": True})
        while True:
            for fd, _ in self._epoll.poll(self._timeout()):
                if fd in self._sources:
                    self._sources[fd].take()
                elif not self._read_commands():
                    return
            for direction in self._directions.values():
                direction.give()

    def _timeout(self) -> float | None:
        deadlines = [due for direction in self._directions.values() if (due := direction.lane.deadline()) is not None]
        if not deadlines:
            return None
        return max(0.0, (min(deadlines) - time.monotonic_ns()) / 1e9)

    def _read_commands(self) -> bool:
        data = os.read(sys.stdin.fileno(), 1 << 16)
        self._commands += data
        *lines, self._commands = self._commands.split(b"\n")
        for line in lines:
            try:
                self._obey(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError, ColoproxyError) as error:
                _say({"error": f"{line.decode(errors='replace')}: {error}"})
            else:
                counters = {name: dataclasses.asdict(d.lane.counters) for name, d in self._directions.items()}
                _say({"counters": counters, "errors": {name: d.errors for name, d in self._directions.items()}})
        return bool(data)

    def _obey(self, command: dict[str, Any]) -> None:
        changes = {name: Impairment(**fields) for name, fields in command.get("set", {}).items()}
        for name, impairment in changes.items():
            self._directions[name].lane.set(impairment)
        for name, cut in command.get("cut", {}).items():
            self._directions[name].lane.set_cut(bool(cut))


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="impair_process", description=__doc__)
    parser.add_argument("--left", required=True)
    parser.add_argument("--right", required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--vnet-hdr", action="store_true")
    options = parser.parse_args()
    try:
        left, right = open_end(options.left, options.vnet_hdr), open_end(options.right, options.vnet_hdr)
        RelayLoop(left, right, options.seed, _VNET_HEADER if options.vnet_hdr else 0).run()
    except NetworkError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
