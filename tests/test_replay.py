# SPDX-License-Identifier: Apache-2.0
"""Replay in process: streams of frames with their times in, a Result out."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import wire
from wire import ACK, FIN, SYN

from coloproxy.capture import CaptureWriter
from coloproxy.describe import describe, flags_text, reverse
from coloproxy.errors import CaptureError, MisuseError
from coloproxy.events import Cause, FrameClass
from coloproxy.replay import Align, ReplayOptions, Result, Role, Tally, replay_files
from coloproxy.replay.document import document
from coloproxy.vm_filter import VmFilter

HERE = Path(__file__).resolve().parent
CAPTURES = HERE / "captures"
FLOW = wire.Path()
MS = 1_000_000
START = 1_700_000_000_000_000_000
Row = tuple[int, bytes]  # (ms since the capture's start, frame)


def conversation(isn: int, *payloads: bytes, end: bool = True) -> list[Row]:
    """What a server sends: SYN-ACK, the payloads 10 ms apart, a FIN."""
    out: list[Row] = [(0, wire.tcp(FLOW, isn, 1001, SYN | ACK))]
    seq = isn + 1
    for i, payload in enumerate(payloads, 1):
        out.append((10 * i, wire.tcp(FLOW, seq, 1101, ACK, payload)))
        seq += len(payload)
    if end:
        out.append((10 * len(payloads) + 10, wire.tcp(FLOW, seq, 1101, FIN | ACK)))
    return out


def capture(path: Path, rows: Sequence[Row], start: int = START) -> str:
    with path.open("wb") as file:
        writer = CaptureWriter(file)
        for time, data in rows:
            writer.write(start + time * MS, data)
    return str(path)


def both(path: Path, *lanes: tuple[str, Sequence[Row]]) -> str:
    """One file with an interface for each lane, in order of time."""
    rows = sorted((time, n, data) for n, (_, rows) in enumerate(lanes) for time, data in rows)
    with path.open("wb") as file:
        writer = CaptureWriter(file, [name for name, _ in lanes])
        for time, n, data in rows:
            writer.write(START + time * MS, data, n)
    return str(path)


def run(tmp_path: Path, primary: Sequence[Row], secondary: Sequence[Row], **options: Any) -> Result:
    start = options.pop("secondary_start", START)
    return replay_files(
        ReplayOptions(
            capture(tmp_path / "p.pcapng", primary), capture(tmp_path / "s.pcapng", secondary, start), **options
        )
    )


# ------------------------------------------------------------------- equal


def test_equal_conversations_are_released(tmp_path: Path) -> None:
    result = run(tmp_path, conversation(5000, b"one", b"two"), conversation(90_000, b"onetwo"))
    assert result.equal
    assert result.divergences == result.flows == result.limits == result.wanted == ()
    counts = result.classes[FrameClass.TCP]
    assert (counts.primary.frames, counts.secondary.frames, counts.released) == (4, 3, counts.primary)
    assert counts.withheld == counts.unmatched == counts.passed == Tally()
    assert [source.role for source in result.sources] == [Role.PRIMARY, Role.SECONDARY]


def test_captures_of_different_days_are_aligned_at_their_starts(tmp_path: Path) -> None:
    later = START + 86_400_000_000_000
    rows = conversation(1, b"x")
    assert run(tmp_path, rows, rows, secondary_start=later).equal
    result = run(tmp_path, rows, rows, secondary_start=later, align=Align.ABSOLUTE)
    assert not result.equal
    assert result.divergences[0].event.cause is Cause.PRIMARY_TIMEOUT
    assert any("do not overlap" in note for note in result.notes)


def test_one_file_keeps_its_times(tmp_path: Path) -> None:
    rows = conversation(1, b"x")
    late = [(time + 2000, data) for time, data in rows]
    path = both(tmp_path / "b.pcapng", ("pri", rows), ("sec", late))
    result = replay_files(ReplayOptions(path))
    assert result.equal
    assert result.end >= 2000 * MS
    timeout = {"compare_timeout": 1000 * MS}
    assert not replay_files(ReplayOptions(path, comparator=timeout)).equal  # type: ignore[arg-type]
    assert replay_files(ReplayOptions(path, align=Align.START, comparator=timeout)).equal  # type: ignore[arg-type]


@pytest.mark.parametrize(("first", "second"), [("pri", "sec"), ("1", "2"), ("pri", "2")])
def test_interfaces_are_chosen_by_name_or_number(tmp_path: Path, first: str, second: str) -> None:
    rows = conversation(1, b"x")
    path = both(tmp_path / "b.pcapng", ("other", conversation(1, b"y")), ("pri", rows), ("sec", rows))
    assert not replay_files(ReplayOptions(path)).equal
    assert replay_files(ReplayOptions(path, primary_interface=first, secondary_interface=second)).equal


def test_pass_classes_pass(tmp_path: Path) -> None:
    arp = wire.ethernet(0x0806, bytes(28))
    result = run(tmp_path, [(0, arp)], [])
    assert result.equal
    assert result.classes[FrameClass.ARP].passed.frames == 1
    assert not run(tmp_path, [(0, arp)], [], comparator={"pass_classes": ()}).equal


# ------------------------------------------------------------------- different


def test_a_difference_names_the_packets_and_the_offset(tmp_path: Path) -> None:
    primary = conversation(5000, b"HTTP/1.1 200 OK\r\n", b"body")
    secondary = [(time + 3, data) for time, data in conversation(70, b"HTTP/1.1 500 OK\r\n", b"body")]
    result = run(tmp_path, primary, secondary, align=Align.ABSOLUTE)
    (record,) = result.divergences
    event = record.event
    assert (event.cause, event.offset, event.context) == (Cause.PAYLOAD, 9, 9)
    assert (event.primary[9:12], event.secondary[9:12]) == (b"200", b"500")
    assert record.primary is not None and record.secondary is not None
    assert (record.primary.number, record.secondary.number) == (2, 2)
    assert (record.primary.role, record.secondary.role) == (Role.PRIMARY, Role.SECONDARY)
    assert (record.primary.data, record.secondary.data) == (primary[1][1], secondary[1][1])
    assert (record.primary.time, record.secondary.time) == (10 * MS, 13 * MS)
    assert record.primary.captured == START + 10 * MS
    assert record.primary.data[record.primary.payload_offset :].startswith(b"HTTP")
    assert [(e.role.value, e.number, e.flags, e.seq, e.length, e.verdict) for e in record.history] == [
        ("primary", 1, "SA", -1, 0, "matched"),
        ("secondary", 1, "SA", -1, 0, "matched"),
        ("primary", 2, "A", 0, 17, "withheld"),
        ("secondary", 2, "A", 0, 17, "diverged"),
        ("primary", 3, "A", 17, 4, "withheld"),
        ("secondary", 3, "A", 17, 4, "diverged"),
        ("primary", 4, "FA", 21, 0, "withheld"),
        ("secondary", 4, "FA", 21, 0, "diverged"),
    ]
    (flow,) = result.flows
    assert (flow.primary.frames, flow.released.frames, flow.withheld.frames, flow.divergences) == (4, 1, 3, (0,))
    assert flow.primary_progress[:2] == ((0, 0), (10 * MS, 17))
    assert flow.secondary_progress[-1] == (33 * MS, 22)
    assert not result.equal
    assert len(result.wanted) == 1


def test_what_is_missing_is_told_when_the_clock_has_run_on(tmp_path: Path) -> None:
    result = run(tmp_path, conversation(1, b"one", b"two"), conversation(1, b"one", end=False))
    (record,) = result.divergences
    assert (record.event.cause, record.event.offset) == (Cause.PRIMARY_TIMEOUT, 3)
    assert record.primary is not None and record.primary.number == 3
    assert record.secondary is None
    assert result.end == (20 + 3000) * MS
    assert result.total.withheld.frames == 2
    result = run(tmp_path, conversation(1, b"one", end=False), conversation(1, b"one", b"two"))
    (record,) = result.divergences
    assert record.event.cause is Cause.SECONDARY_TIMEOUT
    assert record.primary is None and record.secondary is not None and record.secondary.number == 3
    assert result.total.withheld == Tally()
    assert result.total.unmatched.frames == 2
    assert not result.equal


def test_simulated_checkpoints_show_what_comes_behind(tmp_path: Path) -> None:
    primary = conversation(1, b"aaaa", b"bbbb", b"cccc", b"dddd")
    secondary = conversation(1, b"aaaa", b"XbbX", b"cccc", b"dXdd")
    once = run(tmp_path, primary, secondary)
    assert [record.event.offset for record in once.divergences] == [4]
    assert (once.commits, once.total.withheld.frames) == (0, 4)
    assert any("--checkpoint-after" in note for note in once.notes)
    result = run(tmp_path, primary, secondary, checkpoint_after=MS)
    assert [record.event.offset for record in result.divergences] == [4, 13]
    assert [record.event.epoch for record in result.divergences] == [1, 2]
    assert result.commits == len(result.wanted) == 2
    assert result.total.withheld == Tally()
    assert result.total.committed.frames > 0
    assert not result.equal


def test_datagrams(tmp_path: Path) -> None:
    one, two, other = (wire.udp(FLOW, text) for text in (b"one", b"two", b"other"))
    assert run(tmp_path, [(0, one), (1, two)], [(0, two), (1, one)]).equal
    result = run(tmp_path, [(0, one), (1, two)], [(0, other), (1, two)])
    record = result.divergences[0]
    assert record.event.cause is Cause.DATAGRAM
    assert record.primary is not None and record.primary.number == 1
    assert all(entry.seq is None and entry.flags == "" for entry in record.history)


def test_a_limit_withholds_and_ends(tmp_path: Path) -> None:
    rows = [(n, wire.udp(FLOW, bytes([n]))) for n in range(50)]
    result = run(tmp_path, rows, [], comparator={"max_frames": 8})
    assert result.total.withheld.frames == 50
    assert result.refused.frames == 46
    assert Cause.LIMIT_FRAMES in {limit.cause for limit in result.limits}
    assert any("limit" in note for note in result.notes)
    assert run(tmp_path, rows, rows, comparator={"max_frames": 8}).equal


def test_frames_that_a_limit_kept_out_go_in_when_there_is_room(tmp_path: Path) -> None:
    rows = [(n, wire.udp(FLOW, bytes([n]))) for n in range(50)]
    late = [(time + 1000, data) for time, data in rows]
    result = run(tmp_path, rows, late, align=Align.ABSOLUTE, comparator={"max_frames": 8})
    assert result.equal
    assert result.refused == Tally()


def test_history_is_bounded_around_the_difference(tmp_path: Path) -> None:
    before = [b"%04d" % n for n in range(300)]
    primary = conversation(1, *before, b"yes", *before)
    secondary = conversation(1, *before, b"no!", *before)
    (record,) = run(tmp_path, primary, secondary).divergences
    assert record.event.offset == 1200
    assert len(record.history) == 160
    assert record.cut_before and record.cut_after
    assert {(entry.role, entry.seq) for entry in record.history} >= {(Role.PRIMARY, 1200), (Role.SECONDARY, 1200)}


# ------------------------------------------------------------------- both directions


def test_the_vm_is_told_from_its_client(tmp_path: Path) -> None:
    ask = bytearray(wire.udp(wire.Path(vm=FLOW.client, client=FLOW.vm, sport=FLOW.dport, dport=FLOW.sport), b"ask"))
    ask[:12] = ask[6:12] + ask[:6]
    answer = wire.udp(FLOW, b"answer")
    arp = wire.ethernet(0x0806, bytes(28))
    other = wire.udp(FLOW, b"other")
    rows = [(0, bytes(ask)), (1, answer), (2, arp)]
    for vm in (wire.VM_MAC.hex(":"), wire.VM_MAC.hex("-").upper(), "10.0.0.1"):
        result = run(tmp_path, rows, rows, vm=(vm,))
        assert result.equal
        assert (result.total.primary.frames, result.inbound.frames) == (2, 2)
        assert [source.inbound.frames for source in result.sources] == [1, 1]
    result = run(tmp_path, rows, [(0, bytes(ask)), (1, other)], vm=("10.0.0.1",))
    history = result.divergences[0].history
    assert [(e.role, e.verdict) for e in history if e.number == 1] == [(Role.INBOUND, "inbound")] * 2
    with pytest.raises(CaptureError, match="no packets from the VM"):
        run(tmp_path, rows, rows, vm=("10.9.9.9",))


def test_the_clients_capture_is_shown_and_judges_nothing(tmp_path: Path) -> None:
    client = wire.Path(vm=FLOW.client, client=FLOW.vm, sport=FLOW.dport, dport=FLOW.sport)
    rows = [(-1, wire.tcp(client, 1000, 0, SYN)), (5, wire.tcp(client, 1001, 5001, ACK, bytes(100)))]
    inbound = capture(tmp_path / "i.pcapng", rows)
    primary = conversation(5000, b"yes")
    assert run(tmp_path, primary, primary, inbound=inbound).equal
    result = run(tmp_path, primary, conversation(70, b"no!"), inbound=inbound)
    shown = [
        (e.time // MS, e.flags, e.seq, e.ack, e.length) for e in result.divergences[0].history if e.path == inbound
    ]
    assert shown == [(-1, "S", -1, None, 0), (5, "A", 0, 0, 100)]
    assert result.inbound.frames == 2


def test_vm_addresses_must_be_addresses() -> None:
    with pytest.raises(MisuseError, match="--vm nonsense"):
        VmFilter(["nonsense"])


# ------------------------------------------------------------------- refusals


def test_a_cut_packet_is_refused_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "cut.pcapng"
    with path.open("wb") as file:
        writer = CaptureWriter(file)
        writer.write(START, wire.udp(FLOW, b"whole"))
        writer.write(START, wire.udp(FLOW, bytes(200))[:96], wire_len=242)
    whole = capture(tmp_path / "p.pcapng", [(0, wire.udp(FLOW, b"whole"))])
    with pytest.raises(CaptureError, match=r"cut\.pcapng: packet 2: is cut by the snap length \(96 of 242 bytes\)"):
        replay_files(ReplayOptions(whole, str(path)))
    assert replay_files(ReplayOptions(whole, whole, inbound=str(path))).equal  # only shown: may be cut


def test_one_interface_is_not_two(tmp_path: Path) -> None:
    path = capture(tmp_path / "one.pcapng", conversation(1, b"x"))
    with pytest.raises(CaptureError, match="one interface only"):
        replay_files(ReplayOptions(path))
    with pytest.raises(CaptureError, match="no packets of interface nope, but of eth0"):
        replay_files(ReplayOptions(path, path, secondary_interface="nope"))


def test_times_decades_apart_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.pcapng"
    with path.open("wb") as file:
        writer = CaptureWriter(file)
        writer.write(0, wire.udp(FLOW, b"x"))
        writer.write(2**63 - 1, wire.udp(FLOW, b"x"))
    with pytest.raises(CaptureError, match="packet 2: its time stamp"):
        replay_files(ReplayOptions(str(path), str(path)))


def test_packets_out_of_order_keep_the_order_of_the_file(tmp_path: Path) -> None:
    rows = conversation(1, b"one", b"two")
    rows[1], rows[2] = (rows[2][0], rows[1][1]), (rows[1][0], rows[2][1])
    result = run(tmp_path, rows, conversation(1, b"one", b"two"))
    assert result.equal
    assert [source.disordered for source in result.sources] == [1, 0]


# ------------------------------------------------------------------- golden captures


GOLDEN = sorted(path.name for path in CAPTURES.glob("*.pcap*"))


@pytest.mark.parametrize("name", GOLDEN)
def test_a_real_capture_against_itself_is_equal(name: str) -> None:
    vm = tomllib.loads((CAPTURES / "captures.toml").read_text())["vm"]
    path = str(CAPTURES / name)
    result = replay_files(ReplayOptions(path, path, vm=(vm,)))
    assert result.equal
    assert result.total.released == result.total.primary
    assert result.total.primary.frames > 0
    assert result.total.unmatched == Tally()


# ------------------------------------------------------------------- parts


def test_describe_sees_what_the_comparator_sees() -> None:
    what = describe(wire.tcp(FLOW, 7, 9, SYN | ACK, b"payload"))
    assert (what.seq, what.ack, flags_text(what.flags), what.payload_len, what.stream_len) == (7, 9, "SA", 7, 8)
    assert (what.flow.source, what.flow.source_port, what.flow.destination_port) == ("10.0.0.1", FLOW.sport, FLOW.dport)
    assert reverse(reverse(what.flow)) == what.flow
    assert reverse(what.flow).source == what.flow.destination
    frame = wire.tcp(FLOW, 7, 9, ACK, b"payload")
    what = describe(frame)
    assert frame[what.payload_offset : what.payload_offset + what.payload_len] == b"payload"
    for size in range(len(frame)):
        describe(frame[:size])
    assert describe(b"").flow.frame_class is FrameClass.MALFORMED
    with pytest.raises(MisuseError):
        describe(b"abc", 10)


def test_the_document_is_plain_json(tmp_path: Path) -> None:
    import json

    result = run(tmp_path, conversation(1, b"yes"), conversation(1, b"no!"))
    told = json.loads(json.dumps(document(result)))
    assert told["verdict"] == "different"
    (divergence,) = told["divergences"]
    assert (divergence["cause"], divergence["offset"]) == ("payload", 0)
    assert (divergence["primary"]["text"], divergence["primary"]["packet"]["number"]) == ("yes", 2)
    assert told["counts"]["total"]["withheld"]["frames"] == 2
    assert told["counts"]["classes"]["tcp"]["primary"]["frames"] == 3
    assert told["flows"][0]["divergences"] == [0]
