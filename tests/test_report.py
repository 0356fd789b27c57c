# SPDX-License-Identifier: Apache-2.0
"""The report of a replay: its parts as functions of plain values, then the whole page and the terminal's text."""

from __future__ import annotations

import io
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import wire
from rich.console import Console

from coloproxy import Cause, Divergence, FlowId, FrameClass, Tolerated
from coloproxy.capture import CaptureWriter
from coloproxy.report import render_terminal, write_html
from coloproxy.report.build import MAX_FULL, build
from coloproxy.report.decode import MAX_PACKET, NO_SCAPY_NOTE, Decoded, Layer, compare, decode
from coloproxy.report.explain import explain
from coloproxy.report.hexview import side_by_side, window
from coloproxy.report.page import render_html
from coloproxy.report.plot import MAX_POINTS, nice_ticks, progress_svg, thin
from coloproxy.report.terminal import print_view

# ------------------------------------------------------------------ hex view


@pytest.mark.parametrize(
    ("primary", "secondary", "expected"),
    [
        (b"abcd", b"abcd", [("abcd", "abcd")]),
        (b"abcd", b"abXd", [("ab[c]d", "ab[X]d")]),
        (b"abcd", b"aXYd", [("a[bc]d", "a[XY]d")]),
        (b"abcd", b"ab", [("ab[cd]", "ab__")]),
        (b"ab", b"abcd", [("ab__", "ab[cd]")]),
        (b"abcd", b"", [("abcd", "____")]),  # nothing to compare with: nothing is marked
        (b"", b"abcd", [("____", "abcd")]),
        (b"", b"", []),
        (b"<&>\x00", b"<&>\xff", [("<&>[.]", "<&>[.]")]),
        (b"0123456789", b"01234567", [("01234567", "01234567"), ("[89]", "__")]),
    ],
)
def test_hex_rows(primary: bytes, secondary: bytes, expected: list[tuple[str, str]]) -> None:
    rows = side_by_side(primary, secondary, 100, width=8)
    halves = [
        tuple(
            "".join(f"[{run.text}]" if run.differs else run.text for run in half.runs) + "_" * half.missing
            for half in (row.primary, row.secondary)
        )
        for row in rows
    ]
    assert halves == expected
    assert [row.offset for row in rows] == [100 + 8 * i for i in range(len(expected))]
    for side, data in (("primary", primary), ("secondary", secondary)):
        digits = " ".join(run.hex for row in rows for run in getattr(row, side).runs)
        assert bytes.fromhex(digits) == data


@pytest.mark.parametrize(
    ("length", "around", "size", "first"),
    [(10, 5, 64, 0), (1000, 500, 64, 464), (1000, 0, 64, 0), (1000, 999, 64, 960), (64, 63, 64, 16)],
)
def test_the_window_holds_the_difference(length: int, around: int, size: int, first: int) -> None:
    data = bytes(i % 251 for i in range(length))
    start, one, other = window(data, data[: around + 1], around, size)
    assert start == first
    assert one == data[start : start + size]
    assert start <= around < start + size
    assert len(other) <= size


# ------------------------------------------------------------------ decoding


def samples() -> dict[str, bytes]:
    """Packets to decode, by name."""
    inet = pytest.importorskip("scapy.layers.inet")
    l2 = pytest.importorskip("scapy.layers.l2")
    dns = pytest.importorskip("scapy.layers.dns")
    dhcp = pytest.importorskip("scapy.layers.dhcp")
    ip = l2.Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / inet.IP(src="192.0.2.1", dst="192.0.2.2")

    def tcp(payload: bytes, port: int) -> bytes:
        return bytes(ip / inet.TCP(sport=port, dport=40000, flags="PA") / payload)

    def answer(seconds: int, port: int) -> bytes:
        date = b"Tue, 24 Nov 2026 12:00:%02d GMT" % seconds
        return tcp(b"HTTP/1.1 200 OK\r\nServer: x\r\nDate: " + date + b"\r\nX-Own: 1\r\n\r\n<p>", port)

    def addresses(*each: str) -> bytes:
        records = [dns.DNSRR(rrname="a.example", rdata=address, ttl=5) for address in each]
        message = dns.DNS(id=7, qr=1, qd=[dns.DNSQR(qname="a.example")], an=records)
        return bytes(ip / inet.UDP(sport=53, dport=40000) / message)

    def hello(random: bytes) -> bytes:
        body = b"\x03\x03" + random + b"\x00" + b"\x13\x01" + b"\x00"
        handshake = b"\x02" + len(body).to_bytes(3, "big") + body
        return tcp(b"\x16\x03\x03" + len(handshake).to_bytes(2, "big") + handshake, 443)

    offer = dhcp.BOOTP(op=2) / dhcp.DHCP(options=[("message-type", "offer"), "end"])
    packets = {
        "http": answer(0, 80),
        "http, other date": answer(1, 80),
        "http, other port": answer(0, 18080),
        "http, other port and date": answer(1, 18080),
        "dns": addresses("192.0.2.7", "192.0.2.8"),
        "dns, other answer": addresses("192.0.2.7", "192.0.2.9"),
        "tls": hello(bytes(32)),
        "tls, other random": hello(bytes(31) + b"\x01"),
        "dhcp": bytes(ip / inet.UDP(sport=67, dport=68) / offer),
        "ping": bytes(ip / inet.ICMP(type=0, id=3, seq=4) / b"abc"),
        "flood": addresses(*["192.0.2.1"] * 100),
        "long": tcp(bytes(MAX_PACKET), 9),
    }
    start = packets["http"]
    packets |= {f"http, {length} bytes": start[:length] for length in range(len(start))}
    packets |= {f"all {value}": bytes([value]) * 200 for value in range(0, 256, 5)}
    packets |= {
        f"handshake {kind} of {length}": start[:54] + bytes([22, 3, 3, length, 0, kind])
        for length in (0, 255)
        for kind in range(25)
    }
    return packets


@pytest.fixture(scope="module")
def decoded() -> dict[str, Decoded]:
    """All samples decoded, by one process: its start is what takes the time."""
    packets = samples()
    return dict(zip(packets, decode(list(packets.values())), strict=True))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (
            "http",
            "http, other date",
            ("HTTP Response", "Date", "Tue, 24 Nov 2026 12:00:00 GMT", "Tue, 24 Nov 2026 12:00:01 GMT"),
        ),
        (
            "http, other port",
            "http, other port and date",
            ("HTTP Response", "Date", "Tue, 24 Nov 2026 12:00:00 GMT", "Tue, 24 Nov 2026 12:00:01 GMT"),
        ),
        ("dns", "dns, other answer", ("DNS", "an[1] rdata", "192.0.2.8", "192.0.2.9")),
        ("tls", "tls, other random", ("TLS record", "random", "00" * 32, "00" * 31 + "01")),
    ],
)
def test_the_field_that_differs(
    decoded: dict[str, Decoded], one: str, other: str, expected: tuple[str, str, str, str]
) -> None:
    assert (decoded[one].note, decoded[other].note) == (None, None)
    assert [
        (layer.name, field.name, field.primary, field.secondary)
        for layer in compare(decoded[one], decoded[other])
        for field in layer.fields
        if field.differs and field.compared
    ] == [expected]


@pytest.mark.parametrize(
    ("name", "layer", "field", "value"),
    [
        ("http", "HTTP Response", "Status_Code", "200"),
        ("http", "HTTP Response", "X-Own", "1"),
        ("http", "Raw", "load", "<p>"),
        ("tls", "TLS record", "type", "handshake"),
        ("tls", "TLS record", "handshake", "server_hello"),
        ("tls", "TLS record", "cipher suite", "0x1301"),
        ("dhcp", "DHCP options", "options", "[message-type=offer end]"),
        ("ping", "ICMP", "type", "echo-reply"),
        ("ping", "ICMP", "seq", "0x4"),
        ("dns", "DNS", "qd[0] qname", "a.example."),
    ],
)
def test_fields(decoded: dict[str, Decoded], name: str, layer: str, field: str, value: str) -> None:
    assert [dict(one.fields).get(field) for one in decoded[name].layers if one.name == layer] == [value]


def test_a_flood_of_fields_is_cut(decoded: dict[str, Decoded]) -> None:
    assert "Only the first 400 fields" in (decoded["flood"].note or "")
    assert sum(len(layer.fields) for layer in decoded["flood"].layers) == 400


def test_every_truncation_and_garbage_is_survived(decoded: dict[str, Decoded]) -> None:
    assert [name for name, answer in decoded.items() if "No decoding" in (answer.note or "")] == []


def test_a_long_packet_is_decoded_from_its_beginning(decoded: dict[str, Decoded]) -> None:
    assert f"first {MAX_PACKET} bytes" in (decoded["long"].note or "")
    assert decoded["long"].layers[-1].name == "Raw"


@pytest.mark.parametrize(
    ("program", "notes"),
    [
        (
            'print(\'{"layers": [], "note": "first"}\', flush=True); import time; time.sleep(600)',
            ["first", "come to an end"],
        ),
        ("import sys; sys.exit(3)", [NO_SCAPY_NOTE, NO_SCAPY_NOTE]),
        ("import os; os.abort()", ["ended early", "ended early"]),
        ("print('no JSON'); print('[]')", ["something else", "something else"]),
        ("print('{}')", ["something else", "ended early"]),
    ],
    ids=["hangs", "no scapy", "dies", "babbles", "answers too little"],
)
def test_a_failing_dissector_costs_only_the_decoding(program: str, notes: list[str]) -> None:
    answers = decode([b"one", b"two"], deadline=2, worker=[sys.executable, "-c", program])
    assert [part in (answer.note or "") for part, answer in zip(notes, answers, strict=True)] == [True, True], answers


def test_a_dissector_that_can_not_be_started() -> None:
    assert "can't be started" in (decode([b""], worker=["/nonexistent/program"])[0].note or "")


def layers(*named: tuple[str, dict[str, str]]) -> Decoded:
    return Decoded(tuple(Layer(name, tuple(fields.items())) for name, fields in named))


@pytest.mark.parametrize(
    ("primary", "secondary", "expected"),
    [
        ([("A", {"x": "1"})], [("A", {"x": "1"})], []),
        ([("A", {"x": "1"})], [("A", {"x": "2"})], [("A", "x", "1", "2", True)]),
        ([("IP", {"id": "1"})], [("IP", {"id": "2"})], [("IP", "id", "1", "2", False)]),
        ([("A", {"x": "1", "y": "2"})], [("A", {"y": "2"})], [("A", "x", "1", None, True)]),
        ([("A", {}), ("B", {"b": "1"})], [("B", {"b": "1"})], []),
        ([("A", {"x": "1"})], [("B", {"x": "1"})], [("A", "x", "1", None, True), ("B", "x", None, "1", True)]),
        ([("A", {"x": "1"})], [], []),  # nothing to compare with
    ],
)
def test_fields_are_paired(primary: list, secondary: list, expected: list) -> None:  # type: ignore[type-arg]
    found = [
        (layer.name, row.name, row.primary, row.secondary, row.compared)
        for layer in compare(layers(*primary), layers(*secondary))
        for row in layer.fields
        if row.differs
    ]
    assert found == expected


def test_a_long_value_is_shown_around_its_difference() -> None:
    one, other = "a" * 5000 + "X" + "b" * 500, "a" * 5000 + "Y" + "b" * 500
    (row,) = compare(layers(("A", {"x": one})), layers(("A", {"x": other})))[0].fields
    assert row.differs
    for shown, letter in ((row.primary, "X"), (row.secondary, "Y")):
        assert shown is not None
        assert letter in shown
        assert len(shown) < 200


# ---------------------------------------------------------------------- plot


def test_the_plot_is_well_formed_and_says_itself_in_words() -> None:
    text = progress_svg([(0, 0), (10**9, 1000)], [(10**8, 0), (2 * 10**9, 700)], mark=15 * 10**8, ident="d1")
    assert text is not None
    svg = ET.fromstring(text)
    assert svg.get("role") == "img"
    assert svg.get("aria-labelledby") == "d1-title d1-desc"
    assert [path.get("class") for path in svg.iter("path")] == ["primary", "secondary"]
    description = next(svg.iter("desc")).text or ""
    assert "primary goes from offset 0 to 1,000 in 1,000.000 ms" in description
    assert "to 700" in description
    assert [path.get("stroke-dasharray") for path in svg.iter("path")] == [None, "6 4"]  # not told by colour alone
    assert "s since the first frame shown" in [text.text for text in svg.iter("text")]


@pytest.mark.parametrize(
    ("primary", "secondary", "drawn"),
    [
        ([], [], None),
        ([(5, 5)], [], None),
        ([(5, 5), (5, 5)], [], ["primary"]),
        ([], [(0, 0), (1, 1)], ["secondary"]),
        ([(0, 0)], [(0, 0)], ["primary", "secondary"]),
    ],
)
def test_a_plot_of_little(primary: list, secondary: list, drawn: list[str] | None) -> None:  # type: ignore[type-arg]
    text = progress_svg(primary, secondary)
    assert (None if text is None else [path.get("class") for path in ET.fromstring(text).iter("path")]) == drawn


def test_a_long_line_is_thinned() -> None:
    points = [(i * 1000, i * 1448) for i in range(100_000)]
    kept = thin(points)
    assert len(kept) == MAX_POINTS
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert kept == sorted(set(kept))
    assert len(progress_svg(points, points) or "") < 40_000


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (3, 3, [3]),
        (0, 6e9, [0, 1e9, 2e9, 3e9, 4e9, 5e9, 6e9]),
    ],
)
def test_ticks(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(expected)


# ---------------------------------------------------------------- words


@pytest.mark.parametrize("cause", list(Cause), ids=str)
def test_every_cause_is_explained(cause: Cause) -> None:
    words = explain(cause)
    assert words.title != str(cause)
    assert words.meaning.endswith(".")
    assert words.usual.endswith(".")
    assert words.remedy.endswith(".")


# ---------------------------------------------------------------- the whole

HOSTILE = b"<script>alert(1)</script>\x1b]0;x\x07&\"'[red]"


@pytest.fixture(autouse=True)
def decode_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding is the real one, but the same packets are decoded once for all tests."""
    monkeypatch.setattr("coloproxy.report.build.decode", lambda packets: decode_cached(tuple(packets)))


@cache
def decode_cached(packets: tuple[bytes, ...]) -> list[Decoded]:
    return decode(packets)


def tally(frames: int = 0, size: int = 0) -> SimpleNamespace:
    return SimpleNamespace(frames=frames, bytes=size)


def row(primary: int, withheld: int) -> SimpleNamespace:
    none = tally()
    return SimpleNamespace(
        primary=tally(primary, primary * 100),
        secondary=tally(primary, primary * 100),
        released=tally(primary - withheld, (primary - withheld) * 100),
        passed=none,
        committed=none,
        withheld=tally(withheld, withheld * 100),
        unmatched=none,
    )


def made(
    cause: Cause = Cause.PAYLOAD, differences: int = 1, frames: int = 160, path: str = "p.pcap", payload: bytes = b""
) -> SimpleNamespace:
    """A result in the shape of coloproxy.replay.Result, with so many differences of one cause."""
    flow = FlowId(FrameClass.TCP, 4, 6, "192.0.2.1", 80, "192.0.2.2", 40000)
    text = b"HTTP/1.1 200 OK\r\nDate: 12:00:00\r\n" + payload
    other = text.replace(b"12:00:00", b"12:00:01")
    header = bytes.fromhex(
        "020000000002020000000001080045000000000100004006" + "0000" + "c0000201c0000202"
        "00509c40000000010000000150180400" + "00000000"
    )
    header = header[:16] + (len(header) - 14 + len(text)).to_bytes(2, "big") + header[18:]

    def packet(role: str, data: bytes) -> SimpleNamespace:
        return SimpleNamespace(
            path=path, role=role, number=7, time=10**9, captured=10**18, data=header + data, payload_offset=54
        )

    history = tuple(
        SimpleNamespace(
            path=path, role=("inbound", "primary", "secondary")[i % 3], number=i, time=10**9 + (i - 120) * 1000,
            flags="PA", seq=i, ack=1, length=100, verdict="matched", lowered=i == 3,
        )
        for i in range(frames)
    )  # fmt: skip
    records = tuple(
        SimpleNamespace(
            event=Divergence(cause, 0, 10**9 + i, 3, 300, flow, 30, text[:96], other[:96], 30, 10**6, None),
            primary=packet("primary", text),
            secondary=packet("secondary", other),
            history=history,
            cut_before=True,
            cut_after=False,
        )
        for i in range(differences)
    )
    progress = tuple((i * 1000, i * 1448) for i in range(100_000))
    flows = SimpleNamespace(
        flow=flow,
        released=tally(5, 500),
        withheld=tally(1, 100),
        primary_progress=progress,
        secondary_progress=progress[:-5],
        divergences=tuple(range(differences)),
    )
    source = SimpleNamespace(
        path=path, role="primary", interface=None, read=tally(6, 600), first=10**18, last=10**18 + 5
    )
    return SimpleNamespace(
        sources=(source, SimpleNamespace(**{**vars(source), "role": "secondary", "path": "s.pcap"})),
        settings={
            "vm": ["192.0.2.1", "192.0.2.3"],
            "compare_timeout_ms": 3000,
            "checkpoint_after_ms": None,
            "pass": ["arp", "nd"],
        },
        classes={FrameClass.TCP: row(6, 1 if differences else 0)},
        total=row(6, 1 if differences else 0),
        equal=not differences,
        divergences=records,
        flows=(flows,) if differences else (),
        limits=(SimpleNamespace(cause=Cause.LIMIT_FRAMES),) if differences else (),
        tolerated=(Tolerated(Cause.NONE, 0, 1, 0, 0, 1, flow, 40, b"Age: 12", b"Age: 13", 6),),
        counters=SimpleNamespace(tolerated=2000),
        notes=("The clocks were brought together by their first frames.",),
    )


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects what tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def html(result: object, tmp_path: Path) -> tuple[str, Page]:
    path = write_html(result, tmp_path / "new" / "directory")
    assert path.name == "report.html"
    assert path.stat().st_mode & 0o777 == 0o600  # it holds clients' data
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def terminal(result: object, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    render_terminal(result, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_page_stands_alone(tmp_path: Path) -> None:
    text, page = html(made(), tmp_path)
    assert page.tags["script"] == page.tags["link"] == page.tags["img"] == page.tags["a"] == 0
    assert not {name for name, _ in page.attributes} & {"src", "href", "srcset", "xlink:href", "onload", "onclick"}
    assert "url(" not in text
    assert "@import" not in text
    assert "://" not in text
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {part for name, value in page.attributes if name == "aria-labelledby" for part in value.split()} <= set(ids)
    assert page.tags["table"] == page.tags["caption"]
    assert page.tags["h1"] == page.tags["main"] == page.tags["svg"] == 1


def test_the_page_tells_in_this_order(tmp_path: Path) -> None:
    _, page = html(made(differences=2), tmp_path)
    parts = [
        "2 differences, the first in tcp 192.0.2.1:80 > 192.0.2.2:40000 at offset 30: the bytes differ; "
        "1 of the primary's 6 frames were withheld.",
        "Counts by class",
        "tcp6 (600 B)",
        "The first difference: the bytes differ",
        "Date",
        "Progress of the stream",
        "History of the flow",
        "Difference 2",
        "Limits that were met",
        "Tolerated: 2,000 times",
        "tolerance 2, tcp 192.0.2.1:80 > 192.0.2.2:40000, offset 40: 2 | 3",
        "Settings, and how to repeat it",
        "coloproxy replay p.pcap s.pcap --vm 192.0.2.1 --vm 192.0.2.3 --compare-timeout 3000 --pass arp,nd",
    ]
    places = [page.text.find(part) for part in parts]
    assert -1 not in places, parts[places.index(-1)]
    assert places == sorted(places)


@pytest.mark.parametrize("cause", [cause for cause in Cause if cause is not Cause.NONE], ids=str)
def test_each_cause_is_told(cause: Cause) -> None:
    view = build(made(cause))
    words = explain(cause)
    page = Page(render_html(view))
    for sentence in (words.title, words.meaning, words.usual, words.remedy):
        assert " ".join(sentence.split()) in page.text
    console = Console(file=io.StringIO(), width=10_000)
    print_view(view, console)
    assert words.meaning in console.file.getvalue()  # type: ignore[attr-defined]


def test_no_difference(tmp_path: Path) -> None:
    _, page = html(made(differences=0), tmp_path)
    assert "all 6 frames of the primary were released" in page.text
    assert "The first difference" not in page.text
    assert terminal(made(differences=0)) == ""


@pytest.mark.parametrize("where", ["payload", "file name", "decoded field", "note", "tolerated"])
def test_hostile_bytes_never_become_markup(tmp_path: Path, where: str) -> None:
    name = HOSTILE.decode()
    result = made(path=name if where == "file name" else "p.pcap", payload=HOSTILE if where == "payload" else b"")
    if where == "decoded field":
        result = made(payload=b"X-Evil: " + HOSTILE + b"\r\n\r\n")
    if where == "tolerated":
        flow = FlowId(FrameClass.TCP, 4, 6, "192.0.2.1", 80, "192.0.2.2", 40000)
        result.tolerated = (Tolerated(Cause.NONE, 0, 1, 0, 0, 1, flow, 40, HOSTILE, HOSTILE, 0),)
    if where == "note":
        result.notes = (name,)
    text, page = html(result, tmp_path)
    assert page.tags["script"] == 0
    assert "<script>alert(1" in page.text
    assert "\x1b" not in text
    shown = terminal(result)
    assert "\x1b" not in shown
    assert "\x07" not in shown


def test_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    _, page = html(made(path="caf\udce9.pcap"), tmp_path)
    assert "caf\ufffd.pcap" in page.text
    assert "caf\ufffd.pcap" in terminal(made(path="caf\udce9.pcap"))


def test_the_page_is_bounded(tmp_path: Path) -> None:
    one, _ = html(made(frames=100_000), tmp_path)
    assert len(one) < 200_000
    many, page = html(made(differences=1000), tmp_path)
    assert len(many) < 1_000_000
    assert page.tags["svg"] == MAX_FULL
    assert "And 790 more." in page.text


def test_what_the_result_lacks_is_said() -> None:
    result = made()
    record = result.divergences[0]
    record.primary = record.secondary = None
    record.history = ()
    record.event = Divergence(Cause.PRIMARY_TIMEOUT, 0, 1, 0, 0, None, 5, b"abc", b"", 0, None, None)
    result.flows = ()
    text = Page(render_html(build(result))).text
    assert "The secondary said nothing here" in text
    assert "There is no packet to decode." in text
    assert "no flow could be made" in text
    assert "Progress of the stream" not in text
    assert "said nothing here" in terminal(result)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_terminal(width: int) -> None:
    shown = terminal(made(), width)
    assert "31 32 3a 30 30 3a 30 30" in shown
    assert "31 32 3a 30 30 3a 30 31" in shown
    assert "The first difference: the bytes differ" in " ".join(shown.split())


def test_the_report_without_scapy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coloproxy.report.build.decode", decode)
    monkeypatch.setattr("coloproxy.report.decode.find_spec", lambda _: None)
    page = Page(render_html(build(made())))
    assert NO_SCAPY_NOTE in page.text
    assert page.tags["svg"] == 1


def test_the_core_does_not_import_scapy() -> None:
    code = "import sys, coloproxy.cli, coloproxy.report.build, coloproxy.report.terminal; print('scapy' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_command_writes_it(tmp_path: Path) -> None:
    flow = wire.Path()
    for name, answer in (("p", b"HTTP/1.1 200 OK\r\nAge: 1\r\n\r\n"), ("s", b"HTTP/1.1 200 OK\r\nAge: 2\r\n\r\n")):
        with (tmp_path / name).open("wb") as file:
            writer = CaptureWriter(file)
            writer.write(0, wire.tcp(flow, 0, 1, wire.SYN | wire.ACK))
            writer.write(1000, wire.tcp(flow, 1, 1, wire.ACK, answer))
    command = [sys.executable, "-P", "-m", "coloproxy", "replay", *map(str, (tmp_path / "p", tmp_path / "s"))]
    done = subprocess.run(
        [*command, "--report", str(tmp_path / "out")], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (1, "")
    text = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).text
    assert "The first difference: the bytes differ" in text
    assert "HTTP Response" in text
    assert f"coloproxy replay {tmp_path / 'p'} {tmp_path / 's'}" in text
    assert "Age" in done.stdout
