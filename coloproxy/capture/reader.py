# SPDX-License-Identifier: Apache-2.0
"""Reading a capture of any kind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from coloproxy.capture import pcap, pcapng
from coloproxy.capture.frame import CapturedFrame
from coloproxy.capture.stream import open_stream

__all__ = ["CaptureReader", "read_capture"]


class CaptureReader:
    """A pcap or pcapng file, gzip or not, told apart by its first bytes; read once, from the front.

    Use it as a context manager, and iterate it for its :class:`CapturedFrame`.

    Attributes:
        path: the file's name.
        comments: of a pcapng's first section header.
        size: bytes of the file, 0 where it has no size (a pipe).

    Raises:
        CaptureError: on opening or iterating: the file is missing, no capture, damaged, truncated, or not Ethernet.
            All packets before the damaged one have been given by then, but for damaged gzip data, which is found
            up to 128 KB ahead.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.comments: tuple[str, ...] = ()
        self._stream, self._file = open_stream(self.path)
        try:
            self.size = Path(self.path).stat().st_size
            self._frames = self._decode()
        except BaseException:
            self.close()
            raise

    def _decode(self) -> Iterator[CapturedFrame]:
        magic = self._stream.magic()
        if magic == pcapng.MAGIC:
            decoder = pcapng.PcapngDecoder(self._stream)
            self.comments = decoder.comments
            return iter(decoder)
        if magic in pcap.MAGICS:
            return pcap.read_pcap(self._stream)
        if not magic:
            raise self._stream.error("is empty")
        raise self._stream.error(f"is neither pcap nor pcapng (it begins with {magic.hex(' ')})")

    def __iter__(self) -> Iterator[CapturedFrame]:
        return self._frames

    @property
    def position(self) -> int:
        """Bytes of the file read so far (packed ones, where it is gzip); for progress."""
        return self._file.tell() if self.size and not self._file.closed else 0

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> CaptureReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_capture(path: str | os.PathLike[str]) -> Iterator[CapturedFrame]:
    """The frames of a capture, in the order of the file. Raises CaptureError, as :class:`CaptureReader` does."""
    with CaptureReader(path) as reader:
        yield from reader
