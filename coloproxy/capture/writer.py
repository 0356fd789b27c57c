# SPDX-License-Identifier: Apache-2.0
"""Writing pcapng.

By hand, for python-pcapng's writer refuses packets without bytes, which recordings use as marks, and takes many times
as long: recording must keep up with the data path.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, Protocol

from coloproxy.errors import MisuseError

__all__ = ["CaptureWriter"]

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_COMMENT, _USER_APPLICATION, _IF_NAME, _IF_TSRESOL = 1, 4, 2, 9
_ETHERNET: Final = 1
_NANOSECONDS: Final = b"\x09"


def _option(code: int, value: bytes) -> bytes:
    if len(value) > 0xFFFF:
        raise MisuseError(f"CaptureWriter: a text of {len(value)} bytes is too long for pcapng (65535)")
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def _options(options: Sequence[bytes]) -> bytes:
    return b"".join(options) + bytes(4) if options else b""


def _block(kind: int, body: bytes) -> bytes:
    length = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + length + body + length


class Writable(Protocol):
    """Where a capture can be written to: a file, gzip's, a buffer."""

    def write(self, data: bytes, /) -> object: ...


class CaptureWriter:
    """Writes one section of pcapng (little-endian, ns, Ethernet) to a binary stream, which stays the caller's.

    Args:
        stream: where to.
        interfaces: their names, in the order of their numbers.
        comments: of the section header.
        snaplen: bytes of a frame that are kept; 0: all.
        application: who wrote it.

    Attributes:
        written: bytes so far.
    """

    def __init__(
        self,
        stream: Writable,
        interfaces: Sequence[str] = ("eth0",),
        *,
        comments: Sequence[str] = (),
        snaplen: int = 0,
        application: str = "coloproxy",
    ) -> None:
        self._stream = stream
        self._interfaces = len(interfaces)
        self._snaplen = snaplen
        self.written = 0
        options = [_option(_COMMENT, text.encode()) for text in comments]
        options.append(_option(_USER_APPLICATION, application.encode()))
        self._write(_block(_SECTION, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + _options(options)))
        for name in interfaces:
            options = [_option(_IF_NAME, name.encode()), _option(_IF_TSRESOL, _NANOSECONDS)]
            self._write(_block(_INTERFACE, struct.pack("<HHI", _ETHERNET, 0, snaplen) + _options(options)))

    def write(
        self, time: int, data: bytes, interface: int = 0, comments: Sequence[str] = (), *, wire_len: int | None = None
    ) -> None:
        """Writes a frame.

        Args:
            time: ns since the Unix epoch, not negative.
            data: the frame; may be empty (a mark).
            interface: its number.
            comments: of the packet.
            wire_len: where the frame was cut before: its length on the wire.

        Raises:
            MisuseError: no such interface, an impossible time, or a comment of more than 65535 bytes.
            OSError: from the stream.
        """
        if not 0 <= interface < self._interfaces:
            raise MisuseError(f"CaptureWriter: there is no interface {interface}")
        if not 0 <= time < 1 << 64:
            raise MisuseError(f"CaptureWriter: a frame of time {time} can't be written")
        wire_len = len(data) if wire_len is None else wire_len
        if self._snaplen:
            data = data[: self._snaplen]
        body = struct.pack("<IIIII", interface, time >> 32, time & 0xFFFF_FFFF, len(data), wire_len) + data
        body += bytes(-len(data) % 4)
        if comments:
            body += _options([_option(_COMMENT, text.encode()) for text in comments])
        self._write(_block(_PACKET, body))

    def _write(self, block: bytes) -> None:
        self._stream.write(block)
        self.written += len(block)
