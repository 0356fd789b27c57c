# SPDX-License-Identifier: Apache-2.0
"""Recordings: what the engine wrote, fed to a comparator again, gives the verdicts that it wrote."""

from __future__ import annotations

import itertools
import json
import random
import re
import resource
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import wire
from wire import ACK, PSH, SYN

from coloproxy.capture import CapturedFrame, CaptureReader
from coloproxy.comparator import Comparator, Discarded, Emitted, Frame, Released
from coloproxy.config import ComparatorOptions
from coloproxy.engine import Engine, EngineCounters
from coloproxy.engine_events import Port, RecordingEnded, RingDumped
from coloproxy.errors import MisuseError
from coloproxy.events import FrameClass, Side
from coloproxy.recording import RecordOptions, RingOptions, next_number, numbered
from coloproxy.replay.recording import replay_recording
from coloproxy.rules import rules_from_document

PATIENCE = 20.0
HEAD = "coloproxy recording 1 "


class Service:
    """An engine that records, and the far ends of its sockets."""

    def __init__(
        self,
        record: RecordOptions | None,
        number: int = 0,
        *,
        ring: RingOptions | None = None,
        vnet_hdr: bool = False,
        nics: int = 1,
        **options: int,
    ) -> None:
        self.vnet_hdr = vnet_hdr
        self.nics = nics
        self.engine = Engine(vnet_hdr=vnet_hdr, nics=nics, **{"compare_timeout": 3600 * 10**9, **options})  # type: ignore[arg-type]
        self.engine.record(record, number, ring=ring)
        self.engine.start()
        self.far: dict[Port, socket.socket] = {}
        for port in Port:
            ours, self.far[port] = socket.socketpair()
            self.engine.attach(port, ours)
        self.fed = [0, 0]

    def send(self, side: Side, *frames: bytes) -> None:
        """Returns when the comparator has them: nothing that follows depends on the scheduler."""
        for frame in frames:
            head = struct.pack("!I", len(frame))
            if self.vnet_hdr:
                head += struct.pack("!I", wire.nic_of(frame) << 24 | wire.vnet_len(frame))
            self.far[Port(side)].sendall(head + frame)
        self.fed[side] += len(frames)
        self.until(lambda n: list(n.comparator.frames_in) == self.fed)

    def until(self, condition: Callable[[EngineCounters], bool]) -> EngineCounters:
        end = time.monotonic() + PATIENCE
        while not condition(counters := self.engine.counters()):
            assert time.monotonic() < end, counters
            while select.select([self.far[Port.OUTDEV]], [], [], 0)[0]:
                self.far[Port.OUTDEV].recv(1 << 20)
        return counters

    def commit(self) -> None:
        commits = self.engine.counters().comparator.commits
        self.engine.checkpoint_commit(time.monotonic_ns())
        self.until(lambda n: n.comparator.commits == commits + 1)

    def end(self) -> EngineCounters:
        self.engine.stop(0)
        counters = self.engine.counters()
        for sock in self.far.values():
            sock.close()
        return counters

    def close(self) -> None:
        self.engine.close()


def words(frame: CapturedFrame) -> dict[str, str]:
    """The comment of a recorded frame."""
    (comment,) = frame.comments
    first, *rest = comment.split()
    assert first == "coloproxy"
    return {name: value for name, _, value in (word.partition("=") for word in rest)}


def read(path: Path) -> tuple[dict[str, object], list[tuple[CapturedFrame, dict[str, str]]]]:
    with CaptureReader(path) as reader:
        head = next(text for text in reader.comments if text.startswith(HEAD))
        return json.loads(head.removeprefix(HEAD)), [(frame, words(frame)) for frame in reader]


def comparator(options: dict[str, object]) -> Comparator:
    """As the head of the file says."""
    given = {name: value for name, value in options.items() if name in ComparatorOptions.__annotations__}
    names = {str(member): member for member in FrameClass}
    given["pass_classes"] = [names[name] for name in given["pass_classes"]]  # type: ignore[attr-defined]
    given["rules"] = rules_from_document(given["rules"])  # type: ignore[arg-type]
    return Comparator(**given)  # type: ignore[arg-type]


def replay(options: dict[str, object], recorded: list[tuple[CapturedFrame, dict[str, str]]]) -> dict[int, str]:
    """Feeds in seq order; returns the verdict of each frame by seq, as the recording words it."""
    core = comparator(options)
    verdicts: dict[int, str] = {}
    seqs: list[int] = []
    emitted: list[tuple[bytes, int]] = []
    sent: dict[int, bytes] = {}
    given = sorted((int(word["seq"]), frame, word) for frame, word in recorded if "seq" in word)
    for seq, frame, word in given:
        match word.get("mark"):
            case None:
                side = Side.PRIMARY if frame.interface_name == "primary_in" else Side.SECONDARY
                vnet = bytes.fromhex(word.get("vnet", ""))
                nic = int(word.get("nic", 0))
                assert core.feed(side, [Frame(vnet + frame.data, len(vnet), nic)], frame.time) == 1
                seqs.append(seq)
                verdicts[seq] = "withheld"
            case "commit":
                core.commit(int(word["resumed"]), frame.time)
            case mark:
                getattr(core, str(mark))(frame.time)
        for action in core.actions():
            match action:
                case Released():
                    verdicts[seqs[action.frame]] = f"released {action.reason}"
                    sent[seqs[action.frame]] = action.data
                case Discarded():
                    verdicts[seqs[action.frame]] = f"discarded {action.reason}"
                case Emitted():
                    emitted.append((action.data[action.vnet_len :], action.nic))
    # what went out is what goes out now, as far as it was kept
    for frame, word in recorded:
        if "of" in word:
            data = sent[int(word["of"])]
            assert data.endswith(frame.data) or data[-frame.wire_len :].startswith(frame.data)
    told = [(frame.data, int(word.get("nic", 0))) for frame, word in recorded if "emitted" in word]
    assert told == emitted
    return verdicts


def recorded_verdicts(recorded: list[tuple[CapturedFrame, dict[str, str]]]) -> dict[int, str]:
    return {
        int(word["seq"]): f"{word['verdict']} {word.get('reason', '')}".strip()
        for _, word in recorded
        if "seq" in word and "verdict" in word
    }


def eventful(service: Service, rounds: int, seed: int) -> None:
    """Traffic with equal and differing data, lowered ACKs, datagrams, every kind of mark."""
    dice = random.Random(seed)
    vnet = service.vnet_hdr
    both = (Side.PRIMARY, Side.SECONDARY)

    nic = 0

    def frame(data: bytes) -> bytes:
        return wire.of_nic(wire.with_vnet(data, dice.choice((10, 12))) if vnet else data, nic)

    service.send(Side.PRIMARY, frame(wire.arp()))
    service.commit()
    for round_ in range(rounds):
        nic = round_ % service.nics
        path = wire.Path(dport=40000 + round_ // service.nics)  # every NIC has the same
        for side in both:
            service.send(side, frame(wire.tcp(path, 1000 + 5 * side, 77, SYN | ACK)))
        offset = 1
        for _ in range(dice.randrange(3, 9)):
            payload = dice.randbytes(dice.randrange(1, 1400))
            ack = 78 + offset
            service.send(Side.PRIMARY, frame(wire.tcp(path, 1000 + offset, ack + 50, PSH | ACK, payload)))
            service.send(Side.SECONDARY, frame(wire.tcp(path, 1005 + offset, ack, PSH | ACK, payload)))
            service.send(Side.SECONDARY, frame(wire.tcp(path, 1005 + offset + len(payload), ack + 50)))
            offset += len(payload)
        for side in both:
            service.send(side, frame(wire.udp(path, b"same")))
        match dice.randrange(4):
            case 0:
                service.send(Side.PRIMARY, frame(wire.tcp(path, 1000 + offset, 200, PSH | ACK, b"ours")))
                service.send(Side.SECONDARY, frame(wire.tcp(path, 1005 + offset, 200, PSH | ACK, b"not!")))
                service.engine.checkpoint_stop()
                service.send(Side.PRIMARY, frame(wire.udp(path, b"late")))
                service.commit()
            case 1:
                service.engine.checkpoint_stop()
                service.send(Side.PRIMARY, frame(wire.udp(path, b"kept")))
                service.engine.checkpoint_abort()
                service.send(Side.SECONDARY, frame(wire.udp(path, b"kept")))
            case 2:
                service.engine.alone()
                service.send(Side.PRIMARY, frame(wire.udp(path, b"alone")))
                service.commit()
            case _:
                service.send(Side.PRIMARY, frame(wire.udp(path, b"held until a commit")))
    service.send(Side.PRIMARY, frame(wire.udp(wire.Path(dport=9), b"held at the end")))


@pytest.mark.parametrize(("vnet_hdr", "nics"), [(False, 1), (True, 1), (True, 3)])
def test_a_recording_gives_the_same_verdicts(tmp_path: Path, vnet_hdr: bool, nics: int) -> None:
    path = tmp_path / "seen.pcapng"
    service = Service(RecordOptions(path), vnet_hdr=vnet_hdr, nics=nics)
    eventful(service, 12, seed=3)
    counters = service.end()
    options, recorded = read(path)
    assert options["vnet_hdr"] is vnet_hdr
    assert counters.record_lost == 0
    assert counters.recorded == len(recorded)
    assert counters.recorded_bytes == path.stat().st_size
    want = recorded_verdicts(recorded)
    assert len(want) == sum(counters.comparator.frames_in)
    seqs = sorted(int(word["seq"]) for _, word in recorded if "seq" in word)
    assert seqs == list(range(1, len(seqs) + 1)), "every frame and mark has its own number, without a gap"
    assert {"released matched", "released committed", "released alone", "withheld"} <= set(want.values())
    assert {word.get("mark") for _, word in recorded} >= {"stop", "commit", "abort", "alone"}
    assert any(word.get("ack") == "lowered" for _, word in recorded)
    assert {word.get("nic", "0") for _, word in recorded} == {str(nic) for nic in range(nics)}
    assert replay(options, recorded) == want
    assert replay_recording(path).equal
    service.close()


@pytest.mark.parametrize("any_scale", [False, True])
def test_any_scale_is_recorded(tmp_path: Path, any_scale: bool) -> None:
    path = tmp_path / "seen.pcapng"
    service = Service(RecordOptions(path), any_scale=any_scale)
    service.commit()
    for side, scale in ((Side.SECONDARY, 9), (Side.PRIMARY, 7)):
        options = wire.Options(mss=1460, wscale=scale)
        service.send(side, wire.tcp(wire.Path(), 9, 9, wire.SYN | wire.ACK, options=options))
    service.end()
    options, recorded = read(path)
    assert options["any_scale"] is any_scale
    verdicts = recorded_verdicts(recorded)
    assert ("released matched" in verdicts.values()) is any_scale
    assert replay(options, recorded) == verdicts
    assert replay_recording(path).equal
    service.close()


def test_replay_notices_a_changed_byte(tmp_path: Path) -> None:
    path = tmp_path / "seen.pcapng"
    service = Service(RecordOptions(path))
    eventful(service, 2, seed=5)
    service.end()
    options, recorded = read(path)
    want = recorded_verdicts(recorded)
    for at, (frame, word) in enumerate(recorded):
        if frame.interface_name == "secondary_in" and frame.data.endswith(b"same"):
            changed = CapturedFrame(
                frame.number, frame.time, frame.data[:-4] + b"SAME", frame.wire_len, frame.interface,
                frame.interface_name, frame.comments,
            )  # fmt: skip
            recorded[at] = changed, word
            break
    without = [(frame, word) for frame, word in recorded if "of" not in word and "emitted" not in word]
    with pytest.raises(AssertionError):
        assert replay(options, without) == want
    service.close()


@pytest.mark.skipif(shutil.which("tcpdump") is None, reason="no tcpdump here to read with")
def test_files_are_for_their_owner_and_for_tcpdump(tmp_path: Path) -> None:
    path = tmp_path / "seen.pcapng"
    path.write_bytes(b"an older one")
    path.chmod(0o644)
    service = Service(RecordOptions(path))
    eventful(service, 2, seed=1)
    service.end()
    service.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    _, recorded = read(path)
    out = subprocess.run(["tcpdump", "-n", "-r", str(path)], capture_output=True, text=True, check=True)
    assert len(out.stdout.splitlines()) >= sum("mark" not in word for _, word in recorded)


def test_rotation(tmp_path: Path) -> None:
    record = RecordOptions(tmp_path / "seen.pcapng", max_bytes=4000, keep=3)
    assert next_number(record) == 1
    service = Service(record, 1)
    eventful(service, 8, seed=2)
    counters = service.end()
    service.close()
    assert counters.record_files > 4
    there = sorted(tmp_path.iterdir())
    last = counters.record_files
    assert there == [numbered(record.path, number) for number in (last - 2, last - 1, last)]
    for path in there:
        _, recorded = read(path)
        frame, word = recorded[0]
        assert (word["seq"], word["mark"], frame.data) == ("0", "mode", b"")
        assert word["mode"] in ("alone", "protected", "stopped")
    assert next_number(record) == last + 1


def test_a_full_disk_ends_the_recording_only(tmp_path: Path) -> None:
    path = tmp_path / "seen.pcapng"
    before, ignore = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        service = Service(RecordOptions(path))
        eventful(service, 10, seed=4)  # it waits for what it sends: the data path goes on
        counters = service.end()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignore)
    (ended,) = [event for event in service.engine.events() if isinstance(event, RecordingEnded)]
    assert "EFBIG" in ended.reason
    assert counters.record_error == ended.errno
    _, recorded = read(path)  # what is there is whole
    assert path.stat().st_size <= 20_000
    assert len(recorded) < sum(counters.comparator.frames_in)
    service.close()


def test_what_cannot_be_recorded_is_refused(tmp_path: Path) -> None:
    with Engine() as engine:
        with pytest.raises(MisuseError, match=r"nowhere/seen\.pcapng: No such file"):
            engine.record(RecordOptions(tmp_path / "nowhere" / "seen.pcapng"))
        with pytest.raises(MisuseError, match="/dev/null"):
            engine.record(RecordOptions(Path("/dev/null")))
        with pytest.raises(MisuseError, match="numbered from 1"):
            engine.record(RecordOptions(tmp_path / "seen.pcapng", max_bytes=1))
        with pytest.raises(MisuseError, match="no size or time"):
            engine.record(RecordOptions(tmp_path / "seen.pcapng", keep=1))
        engine.record(RecordOptions(tmp_path / "seen.pcapng"))
        with pytest.raises(MisuseError):
            engine.record(RecordOptions(tmp_path / "other.pcapng"))
    _, recorded = read(tmp_path / "seen.pcapng")  # never started, and whole
    assert recorded == []


def exact_from_the_first_commit(path: Path) -> bool:
    """What a file that begins in the middle promises; behind the first frame that is in the next file, nothing.

    False: there is no commit.
    """
    _, recorded = read(path)
    commit = next((int(word["seq"]) for _, word in recorded if word.get("mark") == "commit"), None)
    if commit is None:
        return False
    there = {int(word["seq"]) for _, word in recorded if "seq" in word}
    end = next(seq for seq in itertools.count(commit) if seq not in there)
    result = replay_recording(str(path))
    assert any("begins in the middle" in note for note in result.notes)
    assert result.same > result.different
    assert [mismatch for mismatch in result.mismatches if commit < mismatch.seq < end] == []
    return True


def test_replay_of_a_file_in_the_middle(tmp_path: Path) -> None:
    record = RecordOptions(tmp_path / "seen.pcapng", max_bytes=60_000)
    service = Service(record, 1)
    eventful(service, 40, seed=6)
    counters = service.end()
    service.close()
    assert counters.record_files > 4
    files = [numbered(record.path, number) for number in range(2, counters.record_files)]
    assert sum(map(exact_from_the_first_commit, files)) > 2


# ---------------------------------------------------------------------- ring

HOUR = 3600 * 10**9
MS = 10**6
BOTH = (Side.PRIMARY, Side.SECONDARY)
FLOW = wire.Path(dport=40000)


def equal(service: Service, payload: bytes) -> None:
    for side in BOTH:
        service.send(side, wire.udp(FLOW, payload))
    service.until(lambda n: n.comparator.held_frames == (0, 0))


def diverge(service: Service, dport: int, cause: int = 1) -> None:
    """Two streams that differ; returns when it was found."""
    path, before = wire.Path(dport=dport), sum(service.engine.counters().comparator.divergences.values())
    for side in BOTH:
        service.send(side, wire.tcp(path, 1000, 77, SYN | ACK))
        service.send(side, wire.tcp(path, 1001, 78, PSH | ACK, b"ours" if side == Side.PRIMARY else b"not!"))
    service.until(lambda n: sum(n.comparator.divergences.values()) == before + cause)


def dumped(service: Service) -> list[RingDumped]:
    return [event for event in service.engine.events() if isinstance(event, RingDumped)]


def payloads(recorded: list[tuple[CapturedFrame, dict[str, str]]]) -> set[bytes]:
    return {frame.data[42:] for frame, word in recorded if "verdict" in word}


def differing(recorded: list[tuple[CapturedFrame, dict[str, str]]]) -> set[str | None]:
    """The interfaces that have a frame which differs, with its verdict."""
    return {
        frame.interface_name
        for frame, word in recorded
        if "verdict" in word and frame.data.endswith((b"ours", b"not!"))
    }  # fmt: skip


def replay_cli(path: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "coloproxy", "replay", str(path)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("recording", [False, True])
def test_a_divergence_leaves_a_file_of_what_came_before(tmp_path: Path, recording: bool) -> None:
    directory = tmp_path / "dumps"
    directory.mkdir()
    path = tmp_path / "seen.pcapng"
    service = Service(RecordOptions(path) if recording else None, ring=RingOptions(directory, HOUR))
    service.commit()
    for n in range(20):
        equal(service, b"before %d" % n)
    diverge(service, 41000)
    diverge(service, 42000)  # of the same epoch: no file of its own
    assert list(directory.iterdir()) == [], "what is held has no verdict yet"
    service.commit()
    counters = service.until(lambda n: n.dumps == 1)
    (event,) = dumped(service)
    (made,) = directory.iterdir()
    assert (made.name, made.stat().st_size, event.reason) == (event.name, event.bytes, None)
    assert re.fullmatch(r"divergence-\d{8}T\d{6}Z-1\.pcapng", made.name)
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    options, recorded = read(made)
    assert {b"before %d" % n for n in range(20)} <= payloads(recorded)
    assert differing(recorded) == {"primary_in", "secondary_in"}
    assert recorded[0][1]["mark"] == "mode"
    assert recorded_verdicts(recorded) == replay(options, recorded[1:])
    code, text = replay_cli(made)
    assert (code, "begins in the middle" in text) == (0, True), text
    service.commit()
    diverge(service, 43000)  # of another epoch, but the last file is younger than the gap
    service.commit()
    counters = service.end()
    assert (counters.dumps, counters.dumps_failed, len(list(directory.iterdir()))) == (1, 0, 1)
    assert counters.record_files == recording
    if recording:
        options, recorded = read(path)
        assert replay(options, recorded) == recorded_verdicts(recorded)
        assert counters.recorded == len(recorded)
    service.close()


def test_what_is_behind_the_first_commit_of_a_dump_is_exact(tmp_path: Path) -> None:
    service = Service(None, ring=RingOptions(tmp_path, HOUR, max_bytes=1 << 17, gap=0))
    eventful(service, 40, seed=7)
    counters = service.end()
    assert counters.dumps > 4
    middle = [path for path in tmp_path.iterdir() if read(path)[1][0][1]["epoch"] != "0"]
    assert sum(map(exact_from_the_first_commit, middle)) > 2
    service.close()


@pytest.mark.parametrize("length", [400, 431, 500, 577, 700])
def test_a_stream_met_in_the_middle_replays(tmp_path: Path, length: int) -> None:
    """The primary is six segments ahead, so most places where the ring can begin have some that are held."""
    service = Service(None, ring=RingOptions(tmp_path, HOUR, max_bytes=1 << 16))
    service.commit()
    for side in BOTH:
        service.send(side, wire.tcp(FLOW, 1000, 77, SYN | ACK))
    offset, dice = 1, random.Random(length)
    for _ in range(80):
        data = dice.randbytes(6 * length)
        for side in BOTH:
            cut = length if side == Side.PRIMARY else length * 3 // 2
            for at in range(0, len(data), cut):
                service.send(side, wire.tcp(FLOW, 1000 + offset + at, 78, PSH | ACK, data[at : at + cut]))
        offset += len(data)
    diverge(service, 41000)
    service.commit()
    service.until(lambda n: n.dumps == 1)
    (made,) = tmp_path.iterdir()
    result = replay_recording(str(made))
    assert result.equal, result.mismatches
    assert result.same > 50
    assert any("begins in the middle" in note for note in result.notes)
    service.close()


def test_a_file_for_each_epoch_that_differs(tmp_path: Path) -> None:
    service = Service(None, ring=RingOptions(tmp_path, HOUR, gap=0))
    service.commit()
    for n in range(3):
        diverge(service, 41000 + n)
        service.commit()
        service.until(lambda counters, n=n: counters.dumps == n + 1)
    diverge(service, 42000)  # held at the end
    service.end()
    events = dumped(service)
    assert {event.name for event in events} == {path.name for path in tmp_path.iterdir()}
    assert len(events) == 4
    _, recorded = read(tmp_path / events[-1].name)
    assert "withheld" in {word.get("verdict") for _, word in recorded}
    service.close()


def test_a_file_does_not_wait_for_ever(tmp_path: Path) -> None:
    service = Service(None, ring=RingOptions(tmp_path, HOUR, wait=1))
    service.commit()
    equal(service, b"before")
    diverge(service, 41000)
    service.until(lambda n: n.dumps == 1)  # no commit comes; and the engine has nothing else to do
    (made,) = tmp_path.iterdir()
    assert b"before" in payloads(read(made)[1])
    service.close()


def test_nothing_older_than_the_window(tmp_path: Path) -> None:
    service = Service(None, ring=RingOptions(tmp_path, 300 * MS))
    service.commit()
    began = time.monotonic()
    while time.monotonic() < began + 1:
        equal(service, b"%.3f" % time.monotonic())
        time.sleep(0.01)
    diverge(service, 41000)
    service.commit()
    service.until(lambda n: n.dumps == 1)
    (event,), (made,) = dumped(service), tmp_path.iterdir()
    options, recorded = read(made)
    assert differing(recorded) == {"primary_in", "secondary_in"}
    # frames as they left bear the time of their verdict; in the recording's clock, like the divergence's name
    diverged = min(frame.time for frame, word in recorded if word.get("mark") == "commit")
    sent = [frame.time for frame, word in recorded if "of" in word]
    assert min(sent) >= diverged - (time.monotonic_ns() - event.diverged) - 300 * MS
    assert recorded[0][1]["mode"] == "protected"
    assert recorded[0][0].time <= min(frame.time for frame, word in recorded if "verdict" in word)
    assert replay(options, recorded[1:]).keys() == recorded_verdicts(recorded).keys()
    service.close()


def test_the_ring_is_bounded_in_bytes(tmp_path: Path) -> None:
    service = Service(None, ring=RingOptions(tmp_path, HOUR, max_bytes=1 << 16))
    service.commit()
    for n in range(300):
        equal(service, b"%3d" % n + bytes(1000))
        assert service.engine.counters().ring_bytes <= 1 << 16
    service.until(lambda n: n.ring_bytes > 1 << 15)
    diverge(service, 41000)
    service.commit()
    service.until(lambda n: n.dumps == 1)
    (made,) = tmp_path.iterdir()
    assert 1 << 15 < made.stat().st_size < (1 << 16) + 4096
    _, recorded = read(made)
    kept = sorted(int(data[:3]) for data in payloads(recorded) if data.endswith(bytes(1000)))
    assert kept == list(range(300 - len(kept), 300)), "the oldest go first"
    assert (recorded[0][1]["mode"], recorded[0][1]["epoch"]) == ("protected", "1")
    assert differing(recorded) == {"primary_in", "secondary_in"}
    assert replay_cli(made)[0] in (0, 1)
    service.close()


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    directory = tmp_path / "dumps"
    directory.mkdir()
    service = Service(None, ring=RingOptions(directory, HOUR, gap=0))
    service.commit()
    directory.rmdir()
    diverge(service, 41000)
    service.commit()
    service.until(lambda n: n.dumps_failed == 1)
    (event,) = dumped(service)
    assert event.reason is not None and "ENOENT" in event.reason
    equal(service, b"the data path goes on")
    service.close()


def test_a_full_disk_leaves_no_half_file(tmp_path: Path) -> None:
    before, ignore = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    service = Service(None, ring=RingOptions(tmp_path, HOUR))
    service.commit()
    for n in range(30):
        equal(service, b"%3d" % n + bytes(1000))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        diverge(service, 41000)
        service.commit()
        service.until(lambda n: n.dumps_failed == 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignore)
    assert list(tmp_path.iterdir()) == []
    service.close()


def test_a_ring_without_a_place_is_refused(tmp_path: Path) -> None:
    with Engine() as engine:
        with pytest.raises(MisuseError, match="nowhere is no directory"):
            engine.record(RecordOptions(tmp_path / "seen.pcapng"), ring=RingOptions(tmp_path / "nowhere", HOUR))
        with pytest.raises(MisuseError, match="max_bytes is 1"):
            engine.record(None, ring=RingOptions(tmp_path, HOUR, max_bytes=1))
        with pytest.raises(MisuseError):
            engine.record(None)
    assert list(tmp_path.iterdir()) == []
