# SPDX-License-Identifier: Apache-2.0
"""pcapng: sections, interfaces, and the three packet blocks; everything else is skipped.

Framing, byte order, padding and fields are python-pcapng's (`pcapng.structs`). Its FileScanner is not used, for three
reasons found in 2.1.1: it takes a block that ends too early for the end of the file, it decodes blocks and options
that we don't need and fails on some that are valid (if_IPv6addr, an option given twice), and its times are floats.
The format: draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from pcapng import blocks, exceptions, structs

from coloproxy.capture.frame import CapturedFrame
from coloproxy.capture.link import check_link
from coloproxy.capture.stream import BoundedStream

__all__ = ["MAGIC", "PcapngDecoder"]

MAGIC: Final = structs.SECTION_HEADER_MAGIC.to_bytes(4, "big")  # reads the same in either byte order

_COMMENT, _IF_NAME, _IF_TSRESOL, _IF_FCSLEN, _IF_TSOFFSET = 1, 2, 9, 13, 14
_MAX_TIME: Final = 2**63  # ns; what the comparator's clock can hold


def _fields(block: Any) -> list[tuple[str, Any, Any]]:
    """A block's schema without its options, which `read_options` gives undecoded."""
    return [row for row in block.schema if row[0] != "options"]


_SECTION: Final = _fields(blocks.SectionHeader)
_INTERFACE: Final = _fields(blocks.InterfaceDescription)
_PACKETS: Final = {
    block.magic_number: _fields(block) for block in (blocks.EnhancedPacket, blocks.ObsoletePacket, blocks.SimplePacket)
}
_SIMPLE: Final = blocks.SimplePacket.magic_number


@dataclass(frozen=True, slots=True)
class _Interface:
    number: int  # in the file
    name: str | None
    link: int
    snaplen: int
    tick_num: int  # a tick is tick_num / tick_den ns
    tick_den: int
    offset: int  # ns
    fcs: int  # bytes

    def time(self, ticks: int) -> int:
        return ticks * self.tick_num // self.tick_den + self.offset

    def __str__(self) -> str:
        return f"interface {self.number}" + (f" ({self.name})" if self.name else "")


class PcapngDecoder:
    """Reads the first section header at once, the packets when iterated.

    Attributes:
        comments: of the first section header.

    Raises:
        CaptureError: the file is damaged or of a link type that is no Ethernet.
    """

    def __init__(self, stream: BoundedStream) -> None:
        self._stream = stream
        self._order = "<"
        self._section: list[_Interface] = []  # interfaces of the present section
        self._known: dict[tuple[int, str | None], int] = {}  # place in the section and name -> number in the file
        self._number = 0
        self._last_time = 0
        self.comments: tuple[str, ...] = ()
        first = self._next_block()
        assert first is not None  # the caller saw the magic
        self.comments = self._begin_section(first[1])

    def __iter__(self) -> Iterator[CapturedFrame]:
        self._stream.packet = 1
        while (block := self._next_block()) is not None:
            kind, body = block
            if kind in _PACKETS:
                yield self._packet(kind, body)
                self._number += 1
                self._stream.packet = self._number + 1
            elif kind == structs.SECTION_HEADER_MAGIC:
                self._begin_section(body)
            elif kind == blocks.InterfaceDescription.magic_number:
                self._add_interface(body)

    def _next_block(self) -> tuple[int, bytes] | None:
        """Type and body of the next block; None at the end of the file."""
        start = self._stream.tell()
        try:
            kind = structs.read_int(self._stream, 32, False, self._order)
            if kind != structs.SECTION_HEADER_MAGIC:
                return kind, structs.read_block_data(self._stream, self._order)
            header = structs.read_section_header(self._stream)
        except exceptions.StreamEmpty:
            if self._stream.tell() == start:
                return None
            raise self._stream.error("the file ends in the middle of a block: it is truncated") from None
        except exceptions.TruncatedFile as error:
            raise self._stream.error(f"the file ends in the middle of a block ({error}): it is truncated") from error
        except exceptions.PcapngException as error:
            raise self._stream.error(f"the file is damaged here ({error})") from error
        except RuntimeError as error:  # a length that is no multiple of four
            raise self._stream.error("a block's length is no multiple of 4: the file is damaged here") from error
        self._order = header["endianness"]
        return kind, header["data"]

    def _decode(self, schema: list[tuple[str, Any, Any]], body: io.BytesIO, what: str) -> dict[str, Any]:
        try:
            fields: dict[str, Any] = structs.struct_decode(schema, body, self._order)
        except (exceptions.PcapngException, RuntimeError, struct.error) as error:
            raise self._stream.error(f"its {what} block is too short for what it says ({error})") from error
        return fields

    def _options(self, body: io.BytesIO, what: str) -> dict[int, list[bytes]]:
        options: dict[int, list[bytes]] = {}
        try:
            for code, value in structs.read_options(body, self._order):
                options.setdefault(code, []).append(value)
        except (exceptions.PcapngException, RuntimeError) as error:
            raise self._stream.error(f"an option of its {what} block is damaged ({error})") from error
        return options

    def _begin_section(self, raw: bytes) -> tuple[str, ...]:
        body = io.BytesIO(raw)
        fields = self._decode(_SECTION, body, "section header")
        if fields["version_major"] != 1:
            version = f"{fields['version_major']}.{fields['version_minor']}"
            raise self._stream.error(f"is pcapng of version {version}; 1.x can be read")
        self._section = []
        return _texts(self._options(body, "section header"), _COMMENT)

    def _add_interface(self, raw: bytes) -> None:
        body = io.BytesIO(raw)
        fields = self._decode(_INTERFACE, body, "interface description")
        options = self._options(body, "interface description")
        name = next(iter(_texts(options, _IF_NAME)), None)
        resolution = self._integer(options, _IF_TSRESOL, "if_tsresol", "B", 6)
        tick_den = 1 << (resolution & 0x7F) if resolution & 0x80 else 10**resolution
        number = self._known.setdefault((len(self._section), name), len(self._known))
        self._section.append(
            _Interface(
                number=number,
                name=name,
                link=fields["link_type"],
                snaplen=fields["snaplen"],
                tick_num=1_000_000_000,
                tick_den=tick_den,
                offset=self._integer(options, _IF_TSOFFSET, "if_tsoffset", "q", 0) * 1_000_000_000,
                fcs=self._integer(options, _IF_FCSLEN, "if_fcslen", "B", 0) // 8,
            )
        )

    def _integer(self, options: dict[int, list[bytes]], code: int, name: str, layout: str, default: int) -> int:
        if code not in options:
            return default
        try:
            return int(struct.unpack(self._order + layout, options[code][0])[0])
        except struct.error as error:
            raise self._stream.error(f"{name} of an interface has {len(options[code][0])} bytes") from error

    def _packet(self, kind: int, raw: bytes) -> CapturedFrame:
        body = io.BytesIO(raw)
        if kind == _SIMPLE:
            return self._simple_packet(body)
        fields = self._decode(_PACKETS[kind], body, "packet")
        interface = self._interface(fields["interface_id"])
        time = interface.time(fields["timestamp_high"] << 32 | fields["timestamp_low"])
        if not -_MAX_TIME <= time < _MAX_TIME:
            raise self._stream.error(f"its time stamp, {time} ns since 1970, is out of range")
        self._last_time = time
        comments = _texts(self._options(body, "packet"), _COMMENT) if body.tell() < len(raw) else ()
        return self._frame(interface, time, fields["packet_data"], fields["packet_len"], comments)

    def _simple_packet(self, body: io.BytesIO) -> CapturedFrame:
        wire_len = self._decode(_PACKETS[_SIMPLE][:1], body, "packet")["packet_len"]
        interface = self._interface(0)
        captured = min(wire_len, interface.snaplen) if interface.snaplen else wire_len
        data = body.read(captured)
        if len(data) < captured:
            raise self._stream.error(f"its block has {len(data)} of {captured} bytes")
        return self._frame(interface, self._last_time, data, wire_len, ())

    def _frame(
        self, interface: _Interface, time: int, data: bytes, wire_len: int, comments: tuple[str, ...]
    ) -> CapturedFrame:
        if interface.fcs and wire_len == len(data):
            data = data[: max(len(data) - interface.fcs, 0)]
            wire_len = len(data)
        return CapturedFrame(
            self._number + 1, time, data, max(wire_len, len(data)), interface.number, interface.name, comments
        )

    def _interface(self, index: int) -> _Interface:
        if index >= len(self._section):
            raise self._stream.error(f"names interface {index}, but its section describes {len(self._section)}")
        interface = self._section[index]
        check_link(self._stream, interface.link, str(interface))
        return interface


def _texts(options: dict[int, list[bytes]], code: int) -> tuple[str, ...]:
    return tuple(value.rstrip(b"\0").decode("utf-8", "replace") for value in options.get(code, ()))
