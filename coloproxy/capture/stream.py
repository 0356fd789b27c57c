# SPDX-License-Identifier: Apache-2.0
"""What the two decoders read from: a file, unpacked where it is gzip, that never gives more than is sane."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from typing import BinaryIO, Final, Protocol

from coloproxy.errors import CaptureError

__all__ = ["MAX_RECORD", "BoundedStream", "open_stream"]

MAX_RECORD: Final = 16 << 20
"""Bytes of one packet or block; more is taken for damage (Wireshark draws the line at the same place). A length in a
hostile file thus never makes us allocate more."""

_GZIP: Final = b"\x1f\x8b"


class _Peekable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...
    def peek(self, size: int = ..., /) -> bytes: ...


class BoundedStream:
    """A stream of bytes with the two methods that the decoders need, and a memory of where it is.

    Attributes:
        path: the file's name, for errors.
        packet: number of the packet being read, for errors.
        ended: a read found the end of the file.
    """

    def __init__(self, source: _Peekable, path: str) -> None:
        self._source = source
        self._offset = 0
        self.path = path
        self.packet: int | None = None
        self.ended = False

    def error(self, what: str) -> CaptureError:
        """An error at the present packet."""
        return CaptureError(self.path, self.packet, what)

    def magic(self) -> bytes:
        """The first four bytes of what is left (fewer at its end), without reading them."""
        return self._guarded(self._source.peek, 4)[:4]

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer only at the end of the file.

        Raises:
            CaptureError: the length is nonsense, or the file can't be read or unpacked.
        """
        if not 0 <= size <= MAX_RECORD:
            raise self.error(f"claims {size} bytes, which can't be: the file is damaged here")
        data = self._guarded(self._source.read, size)
        while len(data) < size:  # a pipe gives what it has
            more = self._guarded(self._source.read, size - len(data))
            if not more:
                self.ended = True
                break
            data += more
        self._offset += len(data)
        return data

    def tell(self) -> int:
        """Bytes read so far, unpacked."""
        return self._offset

    def _guarded(self, call: Callable[[int], bytes], size: int) -> bytes:
        try:
            return call(size)
        except EOFError as error:
            raise self.error("the gzip data ends in the middle: the file is truncated") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise self.error(f"the gzip data is damaged ({error})") from error
        except OSError as error:
            raise self.error(f"can't be read ({error.strerror or error})") from error


def open_stream(path: str) -> tuple[BoundedStream, BinaryIO]:
    """Opens a capture. Returns what to decode, and the file itself (its ``tell()`` shows progress; close it).

    Raises:
        CaptureError: it can't be opened or unpacked.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115, PTH123 - the caller closes it
    except OSError as error:
        raise CaptureError(path, None, f"can't be opened ({error.strerror or error})") from error
    stream = BoundedStream(file, path)
    try:
        if stream.magic()[:2] == _GZIP:
            stream = BoundedStream(io.BufferedReader(gzip.GzipFile(fileobj=file, mode="rb")), path)
            stream.magic()
    except BaseException:
        file.close()
        raise
    return stream, file
