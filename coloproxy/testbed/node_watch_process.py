# SPDX-License-Identifier: Apache-2.0
"""The program of the ownership watch (node_watch.py), in the switch's namespace.

    python -m coloproxy.testbed.node_watch_process --mac 52:54:... --guest 10.99.0.2 --interval 0.1 a=a0 b=b0

It sees each frame with the guest's MAC that enters the switch at a host's port, and asks the guest through every port
by itself, ARP and ICMP echo, so that a host that would answer clients does so.  It asks as the bridge: MAC and replies
are the bridge's own.  Commands and answers are lines of JSON on stdin and stdout, as the relay's:
{"report": true}, {"reset": true}, {"grace": 0.01}.  The end of stdin ends it.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import fcntl
import heapq
import json
import os
import select
import socket
import struct
import sys
import time
from typing import Any, Final, cast

from .node_net import HOSTS, Host
from .node_owner import Ownership

PROBE_ADDRESS: Final = "10.99.0.250"

_HOLD_SECONDS: Final = 0.05  # until frames of both ports are surely read, to be put into one order
_SNAP: Final = 64
_BUFFER: Final = 64 << 20
_FRAMES_A_TURN: Final = 2000

# if_packet.h, socket.h, filter.h
_SOL_PACKET: Final = 263
_ADD_MEMBERSHIP, _STATISTICS, _IGNORE_OUTGOING = 1, 6, 23
_MR_PROMISC: Final = 1
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS, _SO_ATTACH_FILTER = 33, 35, 26
_LD_W_ABS, _LD_H_ABS, _JEQ, _RET = 0x20, 0x28, 0x15, 0x06
_SIOCGIFHWADDR: Final = 0x8927
_TIMESPEC: Final = struct.Struct("@qq")

_ETH_ARP, _ETH_IPV4 = 0x0806, 0x0800
_ECHO_ID: Final = 0xC010


def source_filter(mac: bytes) -> bytes:
    """A socket filter (BPF) that takes the beginning of frames with that source."""
    high, low = struct.unpack("!IH", mac)
    steps = [
        (_LD_W_ABS, 0, 0, 6),
        (_JEQ, 0, 3, high),
        (_LD_H_ABS, 0, 0, 10),
        (_JEQ, 0, 1, low),
        (_RET, 0, 0, _SNAP),
        (_RET, 0, 0, 0),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


class Port:
    """A host's port of the switch."""

    def __init__(self, host: Host, interface: str, mac: bytes) -> None:
        self.host = host
        self.drops = 0
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        code = source_filter(mac)
        buffer = ctypes.create_string_buffer(code, len(code))
        program = struct.pack("@HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        membership = struct.pack("iHH8s", socket.if_nametoindex(interface), _MR_PROMISC, 0, b"")
        self._socket.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, membership)
        self._socket.bind((interface, 3))  # ETH_P_ALL
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """For epoll."""
        return self._socket.fileno()

    def receive(self) -> tuple[float, bytes] | None:
        """A frame and when it came, in seconds since 1970; None: there is none now."""
        try:
            frame, ancillary, _, _ = self._socket.recvmsg(_SNAP, 64)
        except OSError:  # none, or the port is down
            return None
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                seconds, nanoseconds = _TIMESPEC.unpack_from(data)
                return seconds + nanoseconds / 1e9, frame
        return time.time(), frame

    def send(self, frame: bytes) -> None:
        """To this port's host only."""
        try:
            self._socket.send(frame)
        except OSError:  # the port is down, or its queue is full
            return

    def count_drops(self) -> None:
        """Since the last time; the kernel forgets them by being asked."""
        _, drops = struct.unpack("II", self._socket.getsockopt(_SOL_PACKET, _STATISTICS, 8))
        self.drops += drops


class Prober:
    """The questions."""

    def __init__(self, ours: bytes, guest_mac: bytes, guest: str) -> None:
        self._ours, self._guest_mac = ours, guest_mac
        self._us, self._guest = socket.inet_aton(PROBE_ADDRESS), socket.inet_aton(guest)
        self.asked = 0

    def questions(self) -> list[bytes]:
        """Who has the guest's address, and an echo request."""
        self.asked += 1
        arp = struct.pack("!HHBBH", 1, _ETH_IPV4, 6, 4, 1) + self._ours + self._us + bytes(6) + self._guest
        echo = _with_checksum(struct.pack("!BBHHH", 8, 0, 0, _ECHO_ID, self.asked & 0xFFFF) + bytes(8), 2)
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(echo), 0, 0x4000, 64, 1, 0) + self._us + self._guest
        return [
            b"\xff" * 6 + self._ours + struct.pack("!H", _ETH_ARP) + arp,
            self._guest_mac + self._ours + struct.pack("!H", _ETH_IPV4) + _with_checksum(head, 10) + echo,
        ]

    def arp_answer(self, frame: bytes) -> bytes | None:
        """If the guest asks for our MAC: the answer."""
        if frame[12:14] != struct.pack("!H", _ETH_ARP) or frame[20:22] != b"\0\1" or frame[38:42] != self._us:
            return None
        arp = struct.pack("!HHBBH", 1, _ETH_IPV4, 6, 4, 2) + self._ours + self._us + frame[22:32]
        return frame[6:12] + self._ours + struct.pack("!H", _ETH_ARP) + arp

    def is_reply(self, frame: bytes) -> bool:
        """True for the answer to our echo."""
        if frame[12:14] != struct.pack("!H", _ETH_IPV4) or frame[23] != 1 or frame[30:34] != self._us:
            return False
        at = 14 + 4 * (frame[14] & 0xF)
        return frame[at] == 0 and frame[at + 4 : at + 6] == struct.pack("!H", _ECHO_ID)


def _with_checksum(data: bytes, at: int) -> bytes:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return data[:at] + struct.pack("!H", total ^ 0xFFFF) + data[at + 2 :]


class WatchLoop:
    """Both ports, the questions, and the commands."""

    def __init__(self, ports: list[Port], prober: Prober, interval: float) -> None:
        self._ports = {port.fileno(): port for port in ports}
        self._prober = prober
        self._interval = interval
        self._held: list[tuple[float, int, Host]] = []
        self._serial = 0
        self._commands = b""
        self._grace = 0.0
        self._reset()
        self._epoll = select.epoll()
        for fd in (*self._ports, sys.stdin.fileno()):
            self._epoll.register(fd, select.EPOLLIN)

    def run(self) -> None:
        """Until stdin ends."""
        _say({"ready": True})
        next_question = time.monotonic()
        while True:
            wait = next_question - time.monotonic()
            if self._held:
                wait = min(wait, _HOLD_SECONDS)
            for fd, _ in self._epoll.poll(max(wait, 0.0)):
                if fd in self._ports:
                    self._take(self._ports[fd])
                elif not self._read_commands():
                    return
            self._settle(time.time() - _HOLD_SECONDS)
            if time.monotonic() >= next_question:
                next_question = time.monotonic() + self._interval
                questions = self._prober.questions()
                for port in self._ports.values():
                    for frame in questions:
                        port.send(frame)

    def _reset(self) -> None:
        self._ownership = Ownership(grace=self._grace)
        self._answers: dict[Host, int] = dict.fromkeys(HOSTS, 0)
        self._asked_before = self._prober.asked
        self._last_frame: float | None = None
        self._silence = 0.0
        for port in self._ports.values():
            port.count_drops()
            port.drops = 0

    def _take(self, port: Port) -> None:
        for _ in range(_FRAMES_A_TURN):
            got = port.receive()
            if got is None:
                return
            at, frame = got
            self._serial += 1
            heapq.heappush(self._held, (at, self._serial, port.host))
            if len(frame) >= 42:
                if self._prober.is_reply(frame):
                    self._answers[port.host] += 1
                elif (answer := self._prober.arp_answer(frame)) is not None:
                    port.send(answer)

    def _settle(self, until: float) -> None:
        while self._held and self._held[0][0] <= until:
            at, _, host = heapq.heappop(self._held)
            self._ownership.frame(host, at)
            if self._last_frame is not None:
                self._silence = max(self._silence, at - self._last_frame)
            self._last_frame = at

    def _read_commands(self) -> bool:
        data = os.read(sys.stdin.fileno(), 1 << 16)
        self._commands += data
        *lines, self._commands = self._commands.split(b"\n")
        for line in lines:
            command: dict[str, Any] = json.loads(line)
            for port in self._ports.values():
                self._take(port)
                port.count_drops()
            self._settle(time.time())
            answer = self._report()
            if "grace" in command:
                self._grace = self._ownership.grace = float(command["grace"])
            if command.get("reset"):
                self._reset()
            _say(answer)
        return bool(data)

    def _report(self) -> dict[str, Any]:
        seen = self._ownership
        quiet = time.time() - self._last_frame if self._last_frame is not None else 0.0
        return {
            "runs": [dataclasses.asdict(run) for run in seen.runs],
            "late": seen.late,
            "blind": seen.untold + sum(port.drops for port in self._ports.values()),
            "answers": self._answers,
            "asked": self._prober.asked - self._asked_before,
            "longest_silence": max(self._silence, quiet),
        }


def _mac(interface: str) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, _SIOCGIFHWADDR, struct.pack("40s", interface.encode()))
    return answer[18:24]


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="node_watch_process", description=__doc__)
    parser.add_argument("--mac", required=True)
    parser.add_argument("--guest", required=True)
    parser.add_argument("--bridge", default="br0")
    parser.add_argument("--interval", type=float, default=0.1)
    parser.add_argument("ports", nargs="+", metavar="HOST=INTERFACE")
    options = parser.parse_args()
    mac = bytes.fromhex(options.mac.replace(":", ""))
    pairs = [text.split("=", 1) for text in options.ports]
    ports = [Port(cast(Host, host), interface, mac) for host, interface in pairs]
    WatchLoop(ports, Prober(_mac(options.bridge), mac, options.guest), options.interval).run()


if __name__ == "__main__":
    main()
