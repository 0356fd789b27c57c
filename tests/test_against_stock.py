# SPDX-License-Identifier: Apache-2.0
"""Stock QEMU's own colo-compare object and coloproxy's engine, given the same frames over the same framing.

Where they differ is why coloproxy keeps uploads that colo-compare loses: colo-compare lets a pure ACK out as soon as
any secondary packet of the flow is queued, also if the secondary has acknowledged less. A client that was told so
throws its data away, and the survivor of a failover never gets it.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import wire

from coloproxy.address import Address
from coloproxy.bench.comparators import QEMU, stock_command, wait_until_accepted
from coloproxy.engine import Engine
from coloproxy.engine_events import Port

DEADLINE = 10.0
FLOW = wire.Path(sport=80, dport=40000)
MARKER = wire.Path(sport=53, dport=40001)


class Comparator:
    """The three sockets of a comparator, QEMU's framing on each."""

    def __init__(self, primary: socket.socket, secondary: socket.socket, out: socket.socket) -> None:
        self.primary, self.secondary, self.out = primary, secondary, out
        self.out.settimeout(DEADLINE)
        self._buffer = b""

    def say(self, side: socket.socket, frame: bytes) -> None:
        side.sendall(struct.pack(">I", len(frame)) + frame)

    def next_released(self) -> bytes:
        while len(self._buffer) < 4 or len(self._buffer) < 4 + struct.unpack_from(">I", self._buffer)[0]:
            data = self.out.recv(65536)
            assert data, "the comparator closed outdev"
            self._buffer += data
        (length,) = struct.unpack_from(">I", self._buffer)
        frame, self._buffer = self._buffer[4 : 4 + length], self._buffer[4 + length :]
        return frame

    def released_until_marker(self, text: bytes) -> list[bytes]:
        """All that comes out before a datagram which both sides send now: what came in before it has been judged."""
        marker = wire.udp(MARKER, text)
        self.say(self.primary, marker)
        self.say(self.secondary, marker)
        frames: list[bytes] = []
        while (frame := self.next_released()) != marker:
            frames.append(frame)
        return frames


@contextlib.contextmanager
def stock(directory: Path) -> Iterator[Comparator]:
    paths = {name: directory / name for name in ("primary_in", "secondary_in", "outdev")}
    command = stock_command({name: Address(connect=True, path=str(path)) for name, path in paths.items()})
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            sockets = [connect(path, process) for path in paths.values()]
            assert process.stdin is not None and process.stdout is not None
            wait_until_accepted(process.stdin, process.stdout)
            yield Comparator(*sockets)
        finally:
            process.kill()


def connect(path: Path, process: subprocess.Popen[bytes]) -> socket.socket:
    until = time.monotonic() + DEADLINE
    while True:
        assert process.poll() is None, "QEMU ended early"
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(path))
        except OSError:
            sock.close()
            assert time.monotonic() < until, f"nobody listens on {path}"
            time.sleep(0.01)
        else:
            return sock


@contextlib.contextmanager
def ours(_directory: Path) -> Iterator[Comparator]:
    with Engine() as engine:
        engine.start()
        near = []
        for port in (Port.PRIMARY_IN, Port.SECONDARY_IN, Port.OUTDEV):
            ours_end, theirs = socket.socketpair()
            engine.attach(port, theirs)
            near.append(ours_end)
        engine.checkpoint_commit(time.monotonic_ns())
        yield Comparator(*near)
        for sock in near:
            sock.close()


def ack_numbers(frames: list[bytes]) -> list[int]:
    """ACK numbers of the TCP frames (Ethernet, IPv4 without options)."""
    return [struct.unpack_from(">I", frame, 14 + 20 + 8)[0] for frame in frames if frame[23] == 6]


def upload_seen_by(comparator: Comparator) -> list[int]:
    """The primary has taken 5,000 bytes of an upload, the secondary 1,000: which ACK numbers does the client see?"""
    for side in (comparator.primary, comparator.secondary):
        options = wire.Options(mss=1460, wscale=7, sack_ok=True)
        comparator.say(side, wire.tcp(FLOW, 100, 1, wire.SYN | wire.ACK, options=options))
    released = comparator.released_until_marker(b"one")
    comparator.say(comparator.secondary, wire.tcp(FLOW, 101, 1001))
    comparator.say(comparator.primary, wire.tcp(FLOW, 101, 5001))
    released += comparator.released_until_marker(b"two")
    return ack_numbers(released)


@pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"no {QEMU} here")
def test_stock_tells_the_client_what_the_secondary_has_not_got(tmp_path: Path) -> None:
    with stock(tmp_path) as comparator:
        assert max(upload_seen_by(comparator)) == 5001


def test_ours_does_not(tmp_path: Path) -> None:
    with ours(tmp_path) as comparator:
        assert max(upload_seen_by(comparator)) <= 1001
        comparator.say(comparator.secondary, wire.tcp(FLOW, 101, 5001))
        assert max(ack_numbers(comparator.released_until_marker(b"three"))) == 5001
