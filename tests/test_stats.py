# SPDX-License-Identifier: Apache-2.0
"""The statistics' lines, the journal's, and the thread that writes them."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from coloproxy import reports
from coloproxy.engine_events import Committed, EngineFailed, Fault, GateLost, PeerAttached, PeerLost, Port
from coloproxy.errors import MisuseError
from coloproxy.events import Cause, CheckpointWanted, Divergence, FlowId, FrameClass, LimitHit
from coloproxy.journal import Journal, event_fields, printable, rfc3339
from coloproxy.lines import LineWriter
from coloproxy.node.told import NodeState, ResyncBegins, ResyncDone
from coloproxy.run import told
from coloproxy.stats import HEADER, HEADER_EVERY, Snapshot, Stats, line, rate
from coloproxy.voice import divergence_line

SECOND = 1_000_000_000

RATES = [
    (0, "0 bit/s"),
    (999, "999 bit/s"),
    (1000, "1 kbit/s"),
    (95_300_000, "95.3 Mbit/s"),
    (953_000_000, "953 Mbit/s"),
    (12_300_000_000, "12.3 Gbit/s"),
    (12_300_000_000_000, "12300 Gbit/s"),
]


@pytest.mark.parametrize(("amount", "text"), RATES)
def test_rate(amount: float, text: str) -> None:
    assert rate(amount, "bit/s") == text


def test_a_line_is_the_difference_of_two_snapshots() -> None:
    before = Snapshot(released_bytes=1000, released_frames=10, checkpoints=1, divergences=1, acks_lowered=5)
    after = Snapshot(
        released_bytes=1000 + 125_000,
        released_frames=110,
        checkpoints=3,
        divergences=2,
        acks_lowered=12,
        held_frames=7,
        held_bytes=7000,
    )
    text = line(1.0, 3.0, before, after)
    assert text.split() == ["1.0-3.0", "500", "kbit/s", "50", "7", "7000", "2", "1", "7"]
    assert len(text) == len(HEADER)
    assert line(0, 0, before, after, total=True).split()[-1] == "total"


def test_the_header_comes_now_and_then() -> None:
    stats = Stats(0, Snapshot())
    lines = [text for i in range(1, 2 * HEADER_EVERY + 2) for text in stats.interval(i * SECOND, Snapshot())]
    assert [i for i, text in enumerate(lines) if text == HEADER] == [0, HEADER_EVERY + 1, 2 * HEADER_EVERY + 2]


def test_the_total_is_over_everything() -> None:
    stats = Stats(0, Snapshot())
    stats.interval(SECOND, Snapshot(released_frames=100))
    (text,) = stats.total(4 * SECOND, Snapshot(released_frames=400))
    assert text.split()[0] == "0.0-4.0"
    assert text.split()[3] == "100"
    assert Stats(0, Snapshot()).total(SECOND, Snapshot())[0] == HEADER


def test_snapshots_of_engines_after_one_another() -> None:
    both = Snapshot(released_frames=3, held_frames=9) + Snapshot(released_frames=4, held_frames=1)
    assert (both.released_frames, both.held_frames) == (7, 1)


# ------------------------------------------------------------------ journal

FLOW = FlowId(FrameClass.TCP, 4, 6, "192.0.2.1", 80, "198.51.100.7", 50000, (12,), 0x0800)
DIVERGENCE = Divergence(
    cause=Cause.PAYLOAD,
    epoch=4,
    time=123,
    held_frames=3,
    held_bytes=300,
    flow=FLOW,
    offset=87,
    primary=b"host: a\n\xff",
    secondary=b"host: b\n",
    context=6,
    primary_age=1000,
    secondary_age=None,
)

EVENTS = [
    (DIVERGENCE, "divergence"),
    (LimitHit(Cause.LIMIT_FRAMES, 1, 2, 3, 4, None), "limit"),
    (CheckpointWanted(Cause.PAYLOAD, 1, 2, 3, 4, FLOW), "checkpoint-wanted"),
    (PeerAttached(Port.OUTDEV, 5), "connected"),
    (PeerLost(Port.OUTDEV, 5, "outdev: closed", Fault.OVERSIZE, None, 7, 8), "lost"),
    (GateLost(5, "QMP: closed"), "lost"),
    (Committed(5, 6, 7), "committed"),
    (EngineFailed(5, "engine: no", 12), "engine-failed"),
]


@pytest.mark.parametrize(("event", "kind"), EVENTS, ids=[row[1] for row in EVENTS])
def test_every_event_becomes_json(event: object, kind: str) -> None:
    name, fields = event_fields(event)  # type: ignore[arg-type]
    assert name == kind
    assert json.loads(json.dumps(fields)) == fields


def test_a_divergence_has_its_evidence() -> None:
    _, fields = event_fields(DIVERGENCE)
    assert fields["primary"] == {"hex": b"host: a\n\xff".hex(), "text": "host: a..", "age_ns": 1000}
    assert fields["secondary"] == {"hex": b"host: b\n".hex(), "text": "host: b.", "age_ns": None}
    assert (fields["offset"], fields["context"], fields["cause"]) == (87, 6, "payload")
    flow = fields["flow"]
    assert isinstance(flow, dict)
    assert flow["text"] == "tcp 192.0.2.1:80 > 198.51.100.7:50000 vlan 12"
    assert divergence_line(DIVERGENCE) == (
        "divergence (payload) in tcp 192.0.2.1:80 > 198.51.100.7:50000 vlan 12, offset 87: "
        "primary 'a..', secondary 'b.'; 3 frames held"
    )


def test_a_line_each_with_both_times(tmp_path: Path) -> None:
    path = tmp_path / "events"
    journal = Journal(str(path))
    journal.write("started", {"a": 1})
    journal.engine(DIVERGENCE)
    journal.report(reports.Protected(5))
    journal.close()
    journal.close()
    records = [json.loads(text) for text in path.read_text().splitlines()]
    assert [record["event"] for record in records] == ["started", "divergence", "protected"]
    assert records[1]["monotonic_ns"] == 123
    assert records[2]["stop_to_resume_ns"] == 5
    assert records[2]["text"].startswith("protected")
    assert all(record["time"].endswith("Z") for record in records)
    assert path.stat().st_mode & 0o777 == 0o600
    appended = Journal(str(path))
    appended.write("started", {})
    appended.close()
    assert len(path.read_text().splitlines()) == 4


ALL_REPORTS = [
    reports.QmpConnected(True, "running"),
    reports.QmpLost("closed"),
    reports.Held("why"),
    reports.Entering(),
    reports.Protected(None),
    reports.CheckpointAsked(("a", "b"), 2),
    reports.CheckpointCommitted(1, (), None, None, None),
    reports.CheckpointCommitted(1, ("a",), 1, 2, 3, 4, 5),
    reports.CheckpointFailed("why", (), 3),
    reports.OperatorStopped("paused"),
    reports.OperatorResumed(4),
    reports.Alone("why"),
    reports.Unanswered("no STOP", 3_000_000_000, 4),
    reports.QemuEvent("RESET", ""),
    reports.Trouble("text"),
    reports.ResumeFailed("it exited with 1", 2),
    NodeState("a", "alone", "protect", "tick", "why", "owner", 1),
    ResyncBegins("full", "why"),
    ResyncDone("bitmap", 589_824, 0.144, 0.055),
    told.LinkUp("192.0.2.2:9810", "TLSv1.3", "0123456789abcdef", True),
    told.LinkLost("closed"),
    told.VmConnected("nic0", "unix:/x"),
    told.WireLost("nic0", "TAP x", "gone"),
    told.LeftOut("the link"),
    told.Synced(),
    told.Epoch(3, None),
    told.TookOver("why", 2),
    told.Inherited(3),
    told.WentAlone("why"),
    told.StoodDown("a wish"),
    told.StateChanged("standby", "taken-over", "a wish"),
    told.PeerSays("hello"),
]


@pytest.mark.parametrize("report", ALL_REPORTS, ids=[report.name for report in ALL_REPORTS])
def test_every_report_has_a_line(report: reports.Report) -> None:
    text = str(report)
    assert text
    assert "\n" not in text
    assert "Report(" not in text
    assert "None" not in text


@pytest.mark.parametrize("report", ALL_REPORTS, ids=[report.name for report in ALL_REPORTS])
def test_no_field_hides_the_journals_own(report: reports.Report, tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "events"))
    journal.report(report)
    journal.close()
    record = json.loads((tmp_path / "events").read_text())
    assert (record["event"], record["text"]) == (report.name, str(report))


def test_every_kind_of_report_is_in_that_list() -> None:
    # by name: slots make dataclass() build a second class of each
    kinds = [*reports.Report.__subclasses__(), *told.Report.__subclasses__()]
    assert {kind.name for kind in kinds} == {report.name for report in ALL_REPORTS}


def test_a_file_that_cant_be_opened() -> None:
    with pytest.raises(MisuseError, match=r"--json-events: can't open /nonexistent/x: No such file or directory"):
        Journal("/nonexistent/x")


def test_a_full_disk_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal("/dev/full")
    for _ in range(3):
        journal.write("event", {})
    journal.close()
    assert len(caplog.records) == 1
    assert "No space left on device" in caplog.text


def test_rfc3339_and_printable() -> None:
    assert rfc3339(1_000_000_000_123_456_789) == "2001-09-09T01:46:40.123456Z"
    assert printable(bytes([31, 32, 65, 126, 127, 200])) == ". A~.."


# -------------------------------------------------------------------- lines


def test_a_reader_that_stalls_does_not_hold_up_the_writer() -> None:
    read_end, write_end = os.pipe()
    writer = LineWriter(write_end, "test", owned=True, max_lines=4)
    long = "x" * 65536  # fills the pipe
    accepted = sum(writer.put(long) for _ in range(100))
    assert accepted < 100
    assert writer.lost == 100 - accepted
    received = bytearray()

    def read() -> None:
        while data := os.read(read_end, 1 << 20):
            received.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    writer.close(30)
    reader.join(30)
    os.close(read_end)
    assert bytes(received) == (long.encode() + b"\n") * accepted
