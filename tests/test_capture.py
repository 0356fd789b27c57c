# SPDX-License-Identifier: Apache-2.0
"""Reading and writing captures: every kind of file as a row, every truncation, and hostile lengths."""

from __future__ import annotations

import gzip
import io
import itertools
import struct
from pathlib import Path
from typing import Any

import pytest

from coloproxy.capture import CapturedFrame, CaptureError, CaptureReader, CaptureWriter, read_capture
from coloproxy.errors import MisuseError

FRAMES = [bytes(range(n, n + 14)) + b"payload"[: n % 7] for n in (1, 2, 3)]
NS = 1_700_000_000_123_456_789  # a float of seconds would lose its end
US = NS // 1000 * 1000


class Pcapng:
    """Blocks of either byte order."""

    def __init__(self, order: str = "<") -> None:
        self.order = order

    def block(self, kind: int, body: bytes) -> bytes:
        body += bytes(-len(body) % 4)
        length = struct.pack(self.order + "I", len(body) + 12)
        return struct.pack(self.order + "I", kind) + length + body + length

    def options(self, *options: tuple[int, bytes]) -> bytes:
        out = b""
        for code, value in (*options, (0, b"")):
            out += struct.pack(self.order + "HH", code, len(value)) + value + bytes(-len(value) % 4)
        return out if options else b""

    def section(self, *options: tuple[int, bytes], version: int = 1) -> bytes:
        head = struct.pack(self.order + "IHHq", 0x1A2B3C4D, version, 0, -1)
        return self.block(0x0A0D0D0A, head + self.options(*options))

    def interface(self, *options: tuple[int, bytes], link: int = 1, snaplen: int = 0) -> bytes:
        return self.block(1, struct.pack(self.order + "HHI", link, 0, snaplen) + self.options(*options))

    def packet(
        self, ticks: int, data: bytes, interface: int = 0, *options: tuple[int, bytes], wire: int | None = None
    ) -> bytes:
        head = (interface, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data) if wire is None else wire)
        return self.block(
            6, struct.pack(self.order + "5I", *head) + data + bytes(-len(data) % 4) + self.options(*options)
        )

    def obsolete(self, ticks: int, data: bytes, interface: int = 0, *options: tuple[int, bytes]) -> bytes:
        head = (interface, 0xFFFF, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data))
        return self.block(
            2, struct.pack(self.order + "HH4I", *head) + data + bytes(-len(data) % 4) + self.options(*options)
        )

    def simple(self, data: bytes, wire: int | None = None) -> bytes:
        return self.block(3, struct.pack(self.order + "I", len(data) if wire is None else wire) + data)


def pcap(order: str, magic: int = 0xA1B2C3D4, fraction: int = 123456, link: int = 1, version: int = 2) -> bytes:
    out = struct.pack(order + "IHHIIII", magic, version, 4, 0, 0, 65535, link)
    for frame in FRAMES:
        out += struct.pack(order + "IIII", 1_700_000_000, fraction, len(frame), len(frame) + 5)
        if magic == 0xA1B2CD34:
            out += struct.pack(order + "IHBB", 1, 0x800, 0, 0)
        out += frame
    return out


def read(tmp_path: Path, raw: bytes, name: str = "x.pcap") -> list[CapturedFrame]:
    path = tmp_path / name
    path.write_bytes(raw)
    return list(read_capture(path))


def refused(tmp_path: Path, raw: bytes) -> tuple[list[CapturedFrame], CaptureError | None]:
    """What was read before the error, and the error."""
    path = tmp_path / "x"
    path.write_bytes(raw)
    frames: list[CapturedFrame] = []
    try:
        with CaptureReader(path) as reader:
            frames.extend(reader)
    except CaptureError as error:
        assert str(path) in str(error)
        return frames, error
    return frames, None


PCAPS = [
    pytest.param(order, magic, fraction, time, id=f"{magic:x}{'le' if order == '<' else 'be'}")
    for order in "<>"
    for magic, fraction, time in (
        (0xA1B2C3D4, 123456, US),
        (0xA1B23C4D, 123456789, NS),
        (0xA1B2CD34, 123456, US),
    )
]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(("order", "magic", "fraction", "time"), PCAPS)
def test_pcap_of_every_magic(tmp_path: Path, order: str, magic: int, fraction: int, time: int, packed: bool) -> None:
    raw = pcap(order, magic, fraction)
    frames = read(tmp_path, gzip.compress(raw) if packed else raw)
    assert [frame.data for frame in frames] == FRAMES
    assert [frame.number for frame in frames] == [1, 2, 3]
    assert {frame.time for frame in frames} == {time}
    assert all(frame.cut and frame.wire_len == len(frame.data) + 5 for frame in frames)
    assert {(frame.interface, frame.interface_name, frame.comments) for frame in frames} == {(0, None, ())}


@pytest.mark.parametrize(("order", "magic", "fraction", "time"), PCAPS)
def test_every_truncation_of_a_pcap_names_the_packet(
    tmp_path: Path, order: str, magic: int, fraction: int, time: int
) -> None:
    raw = pcap(order, magic, fraction)
    header = 24 if magic == 0xA1B2CD34 else 16
    ends = [24, *itertools.accumulate((header + len(frame) for frame in FRAMES), initial=24)][1:]
    for size in range(len(raw)):
        frames, error = refused(tmp_path, raw[:size])
        whole = sum(end <= size for end in ends[1:])
        assert len(frames) == whole, size
        if size in ends:
            assert error is None
        elif size < 24:
            assert error is not None and error.packet is None
        else:
            assert error is not None and error.packet == whole + 1 and "truncated" in error.what


def test_every_truncation_of_a_gzip_is_an_error(tmp_path: Path) -> None:
    raw = gzip.compress(pcap("<"))
    for size in range(2, len(raw)):
        _, error = refused(tmp_path, raw[:size])
        assert error is not None and "gzip" in error.what, size
    _, error = refused(tmp_path, raw[:-8] + bytes(8))  # its checksum
    assert error is not None and "gzip" in error.what
    _, error = refused(tmp_path, raw[:12] + b"\xff\xff" + raw[14:])
    assert error is not None


def test_an_fcs_that_the_pcap_tells_of_is_cut_off(tmp_path: Path) -> None:
    raw = struct.pack("<IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 0x24000001)
    for extra in (0, 4):  # whole; cut by the snap length: then its last bytes are no FCS
        raw += struct.pack("<IIII", 0, 0, 64, 64 + extra) + bytes(64)
    whole, cut = read(tmp_path, raw)
    assert (len(whole.data), whole.cut) == (60, False)
    assert (len(cut.data), cut.wire_len) == (64, 68)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("order", "<>")
def test_pcapng_with_all_its_packet_blocks(tmp_path: Path, order: str, packed: bool) -> None:
    png = Pcapng(order)
    raw = b"".join(
        (
            png.section((1, "größe".encode()), (4, b"test")),
            png.interface((2, b"tap0"), (9, b"\x09")),
            png.block(0x0BAD, b"anything"),  # unknown, skipped
            png.interface((5, bytes(17)), (12, b"a"), (12, b"b"), (4711, b"x"), (4711, b"y"), link=113),  # unused
            png.packet(NS, FRAMES[0], 0, (1, b"one"), (1, b"two"), (2, bytes(4))),
            png.block(5, struct.pack(order + "III", 0, 0, 0)),  # statistics
            png.obsolete(NS + 1, FRAMES[1], 0, (1, b"old")),
            png.block(4, bytes(4)),  # names
            png.simple(FRAMES[2]),
            png.packet(NS + 2, b"", 0),
        )
    )
    frames = read(tmp_path, gzip.compress(raw) if packed else raw)
    assert [(f.number, f.time, f.data, f.comments) for f in frames] == [
        (1, NS, FRAMES[0], ("one", "two")),
        (2, NS + 1, FRAMES[1], ("old",)),
        (3, NS + 1, FRAMES[2], ()),
        (4, NS + 2, b"", ()),
    ]
    assert {(f.interface, f.interface_name, f.cut) for f in frames} == {(0, "tap0", False)}
    with CaptureReader(tmp_path / "x.pcap") as reader:
        assert reader.comments == ("größe",)


RESOLUTIONS = [
    pytest.param(None, 1_700_000_000_123_456, US, id="default"),
    pytest.param(6, 1_700_000_000_123_456, US, id="micro"),
    pytest.param(9, NS, NS, id="nano"),
    pytest.param(12, 17 * 10**12 + 1_999, 17_000_000_001, id="pico"),
    pytest.param(3, 1_700_000_000_123, 1_700_000_000_123_000_000, id="milli"),
    pytest.param(0, 1_700_000_000, 1_700_000_000_000_000_000, id="seconds"),
    pytest.param(0x80 | 10, 1024 * 3 + 512, 3_500_000_000, id="2^-10"),
    pytest.param(0x80 | 32, (1_700_000_000 << 32) | (1 << 31), 1_700_000_000_500_000_000, id="2^-32"),
    pytest.param(0x80, 7, 7_000_000_000, id="2^0"),
]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("offset", [None, 3600, -5])
@pytest.mark.parametrize(("resolution", "ticks", "time"), RESOLUTIONS)
def test_times_of_every_resolution(
    tmp_path: Path, order: str, offset: int | None, resolution: int | None, ticks: int, time: int
) -> None:
    png = Pcapng(order)
    options = [] if resolution is None else [(9, bytes([resolution]))]
    options += [] if offset is None else [(14, struct.pack(order + "q", offset))]
    (frame,) = read(tmp_path, png.section() + png.interface(*options) + png.packet(ticks, FRAMES[0]))
    assert frame.time == time + (offset or 0) * 1_000_000_000


def test_sections_of_either_order_and_their_interfaces(tmp_path: Path) -> None:
    one, two = Pcapng("<"), Pcapng(">")
    raw = b"".join(
        (
            one.section(),
            one.interface((2, b"pri"), (9, b"\x09")),
            one.interface((2, b"sec"), (9, b"\x09")),
            one.packet(1, FRAMES[0], 1),
            two.section(),  # a rotated file goes on, with another writer's resolution
            two.interface((2, b"pri")),
            two.interface((2, b"sec")),
            two.interface((2, b"new")),
            two.packet(2, FRAMES[1], 0),
            two.packet(2, FRAMES[1], 2),
            one.section(),
            one.interface((2, b"sec"), (9, b"\x09")),  # another place: another interface
            one.packet(3, FRAMES[2], 0),
        )
    )
    assert [(f.number, f.time, f.interface, f.interface_name) for f in read(tmp_path, raw)] == [
        (1, 1, 1, "sec"),
        (2, 2000, 0, "pri"),
        (3, 2000, 2, "new"),
        (4, 3, 3, "sec"),
    ]


def test_cut_packets_are_given_with_their_length(tmp_path: Path) -> None:
    png = Pcapng()
    raw = png.section() + png.interface(snaplen=14) + png.simple(bytes(14), 99) + png.packet(0, bytes(20), wire=21)
    raw += png.packet(0, bytes(20), wire=0)  # some writers leave it at 0
    assert [(len(f.data), f.wire_len) for f in read(tmp_path, raw)] == [(14, 99), (20, 21), (20, 20)]


def test_an_fcs_that_the_interface_tells_of_is_cut_off(tmp_path: Path) -> None:
    png = Pcapng()
    raw = png.section() + png.interface((13, b"\x20")) + png.packet(0, bytes(64))
    assert [(len(f.data), f.cut) for f in read(tmp_path, raw)] == [(60, False)]


@pytest.mark.parametrize("order", "<>")
def test_every_truncation_of_a_pcapng_names_the_packet(tmp_path: Path, order: str) -> None:
    png = Pcapng(order)
    parts = [png.section(), png.interface((9, b"\x09")), png.packet(NS, FRAMES[0], 0, (1, b"one"))]
    parts += [png.simple(FRAMES[1]), png.obsolete(NS, FRAMES[2]), png.block(0x0BAD, b"unknown")]
    ends = list(itertools.accumulate(map(len, parts)))
    raw = b"".join(parts)
    for size in range(len(raw)):
        frames, error = refused(tmp_path, raw[:size])
        whole = sum(end <= size for end in ends[2:5])
        assert len(frames) == whole, size
        if size in ends:
            assert error is None
        elif size < ends[0]:
            assert error is not None and error.packet is None
        else:
            assert error is not None and error.packet == whole + 1, size


def _damaged() -> list[Any]:
    png = Pcapng()
    start = png.section() + png.interface()
    good = png.packet(0, FRAMES[0])
    rows = {
        "block of 4 GiB": (start + good + struct.pack("<II", 6, 0xFFFFFFFC) + bytes(64), 2, "damaged"),
        "block of 0": (start + good + struct.pack("<II", 6, 0) + bytes(64), 2, "damaged"),
        "block of 8": (start + good + struct.pack("<II", 6, 8) + bytes(64), 2, "damaged"),
        "unaligned block": (start + struct.pack("<II", 99, 13) + bytes(64), 1, "damaged"),
        "lengths differ": (start + good[:-4] + struct.pack("<I", 4), 1, "Mismatching"),
        "section of 4 GiB": (struct.pack("<III", 0x0A0D0D0A, 0xFFFFFFFC, 0x1A2B3C4D), None, "damaged"),
        "no byte order": (struct.pack("<III", 0x0A0D0D0A, 28, 0x12345678) + bytes(16), None, "byte order"),
        "version": (png.section(version=2), None, "version 2.0"),
        "second section": (start + good + png.section()[:12] + bytes(50), 2, "damaged"),
        "captured too long": (
            start + good + png.block(6, struct.pack("<5I", 0, 0, 0, 50, 50) + bytes(14)),
            2,
            "too short",
        ),
        "captured 4 GiB": (start + png.block(6, struct.pack("<5I", 0, 0, 0, 2**32 - 1, 50) + bytes(14)), 1, "short"),
        "captured, no bytes": (start + png.block(6, struct.pack("<5I", 0, 0, 0, 50, 50)), 1, "too short"),
        "empty packet block": (start + png.block(6, b""), 1, "too short"),
        "simple too short": (start + png.block(3, struct.pack("<I", 50) + bytes(14)), 1, "16 of 50"),
        "interface unknown": (start + png.packet(0, FRAMES[0], 1), 1, "interface 1"),
        "no interface": (png.section() + png.simple(FRAMES[0]), 1, "interface 0"),
        "interface of a section before": (start + good + png.section() + good, 2, "describes 0"),
        "time too late": (start + png.packet(2**64 - 1, FRAMES[0]), 1, "out of range"),
        "resolution of two bytes": (png.section() + png.interface((9, b"ab")), 1, "if_tsresol"),
        "option too long": (
            start + png.block(6, struct.pack("<5I", 0, 0, 0, 0, 0) + struct.pack("<HH", 1, 99) + b"abcd"),
            1,
            "option",
        ),
        "cooked": (png.section() + png.interface((2, b"any"), link=113) + good, 1, "LINUX_SLL (113)"),
        "cooked 2": (png.section() + png.interface((2, b"any"), link=276) + good, 1, "LINUX_SLL2 (276)"),
        "raw IP": (png.section() + png.interface(link=101) + good, 1, "RAW (101)"),
        "link type of nobody": (png.section() + png.interface(link=9999) + good, 1, "unknown (9999)"),
        "pcap of cooked packets": (pcap("<", link=113), None, "tap"),
        "pcap of version 3": (pcap(">", version=3), None, "version 3.4"),
        "pcap, packet of 4 GiB": (
            pcap(">") + struct.pack(">IIII", 0, 0, 0xFFFFFFFF, 60) + bytes(60),
            4,
            "claims 4294967295 bytes",
        ),
        "empty": (b"", None, "empty"),
        "text": (b"hello world", None, "neither pcap nor pcapng"),
        "two bytes": (b"\xa1\xb2", None, "neither"),
        "gzip of text": (gzip.compress(b"hello world"), None, "neither"),
        "gzip with rubbish behind": (gzip.compress(pcap("<")) + b"rubbish", None, "gzip"),
    }
    return [pytest.param(*row, id=name) for name, row in rows.items()]


@pytest.mark.parametrize(("raw", "packet", "what"), _damaged())
def test_damage_is_told_with_the_packet(tmp_path: Path, raw: bytes, packet: int | None, what: str) -> None:
    frames, error = refused(tmp_path, raw)
    assert error is not None
    assert error.packet == packet
    assert what in error.what
    assert len(frames) == (packet or 1) - 1


def test_any_flipped_byte_gives_frames_or_a_capture_error(tmp_path: Path) -> None:
    png = Pcapng()
    raw = png.section((1, b"c")) + png.interface((2, b"tap"), (9, b"\x09"), (14, bytes(8)))
    raw += png.packet(NS, FRAMES[0], 0, (1, b"one")) + png.simple(FRAMES[1]) + png.obsolete(NS, FRAMES[2])
    for source in (raw, pcap("<"), gzip.compress(pcap(">"))):
        for at in range(len(source)):
            for value in (0, 0xFF, source[at] ^ 1):
                refused(tmp_path, source[:at] + bytes([value]) + source[at + 1 :])  # anything else escapes


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(CaptureError) as caught:
            CaptureReader(path)
        assert caught.value.packet is None
        assert str(path) in str(caught.value)


def test_the_error_names_file_and_packet() -> None:
    assert str(CaptureError("a.pcap", 7, "is bad")) == "a.pcap: packet 7: is bad"
    assert str(CaptureError("a.pcap", None, "is bad")) == "a.pcap: is bad"


def test_the_reader_tells_how_far_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(pcap("<"))
    with CaptureReader(path) as reader:
        list(reader)
        assert reader.position == reader.size == len(pcap("<"))
    assert reader.position == 0  # closed


def test_what_is_written_is_read(tmp_path: Path) -> None:
    out = io.BytesIO()
    writer = CaptureWriter(out, ("primary_in", "secondary_in", "outdev"), comments=("coloproxy recording 1 {}",))
    rows: list[tuple[int, bytes, int, tuple[str, ...]]] = [
        (NS, FRAMES[0], 0, ()),
        (NS + 1, FRAMES[1], 1, ("seq=1 größer",)),
        (0, b"", 2, ("mark", "two")),
        (2**63 - 1, bytes(70_000), 0, ()),
    ]
    for row in rows:
        writer.write(*row)
    assert writer.written == len(out.getvalue())
    frames = read(tmp_path, out.getvalue())
    assert [(f.time, f.data, f.interface, f.comments) for f in frames] == rows
    assert [f.interface_name for f in frames] == ["primary_in", "secondary_in", "outdev", "primary_in"]
    with CaptureReader(tmp_path / "x.pcap") as reader:
        assert reader.comments == ("coloproxy recording 1 {}",)


def test_what_is_written_is_what_other_readers_read() -> None:
    from scapy.utils import PcapNgReader  # an independent decoder

    out = io.BytesIO()
    writer = CaptureWriter(out, ("a", "b"))
    for i, frame in enumerate(FRAMES):
        writer.write(NS + i, frame, i % 2, ("c",) * i)
    out.seek(0)
    with PcapNgReader(out) as reader:
        packets = list(reader)
    assert [bytes(packet) for packet in packets] == FRAMES
    assert [packet.sniffed_on for packet in packets] == ["a", "b", "a"]


def test_the_writer_cuts_at_its_snap_length(tmp_path: Path) -> None:
    out = io.BytesIO()
    writer = CaptureWriter(out, snaplen=10)
    writer.write(0, bytes(14))
    writer.write(0, bytes(9), wire_len=60)
    assert [(len(f.data), f.wire_len) for f in read(tmp_path, out.getvalue())] == [(10, 14), (9, 60)]


@pytest.mark.parametrize(
    "arguments",
    [(-1, b"", 0, ()), (1 << 64, b"", 0, ()), (0, b"", 1, ()), (0, b"", -1, ()), (0, b"", 0, ("x" * 65536,))],
)
def test_the_writer_refuses_what_the_format_cannot_hold(arguments: Any) -> None:
    out = io.BytesIO()
    writer = CaptureWriter(out)
    before = out.getvalue()
    with pytest.raises(MisuseError, match="CaptureWriter"):
        writer.write(*arguments)
    assert out.getvalue() == before
