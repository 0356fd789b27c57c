# SPDX-License-Identifier: Apache-2.0
"""Recordings replayed: every verdict is the recorded one, and what is not is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import wire
from test_record import Service
from wire import ACK, SYN

from coloproxy.capture import CaptureWriter
from coloproxy.errors import CaptureError
from coloproxy.events import Side
from coloproxy.recording import RecordOptions
from coloproxy.replay.recording import HEAD, is_recording, replay_recording

FLOW = wire.Path()
P, S, OUT = 0, 1, 2
START = 1_700_000_000_000_000_000
SYN_ACK = wire.tcp(FLOW, 10, 1, SYN | ACK)
ONE, TWO = wire.tcp(FLOW, 11, 1, ACK, b"one"), wire.tcp(FLOW, 11, 1, ACK, b"two")
Row = tuple[int, int, bytes, str]

# As the proxy writes it: a frame when its verdict is known, so not by seq.
ROWS: list[Row] = [
    (0, OUT, b"", "seq=1 mark=commit epoch=1 resumed=1700000000000000000"),
    (1, P, SYN_ACK, "seq=2 epoch=1 verdict=released reason=matched"),
    (2, S, SYN_ACK, "seq=3 epoch=1 verdict=discarded reason=matched"),
    (2, OUT, SYN_ACK[:20], "epoch=1 of=2 reason=matched"),
    (4, S, TWO, "seq=5 epoch=1 verdict=discarded reason=diverged"),
    (5, OUT, b"", "seq=6 mark=stop epoch=1"),
    (3, P, ONE, "seq=4 epoch=1 verdict=released reason=committed"),
    (6, OUT, b"", "seq=7 mark=commit epoch=2 resumed=1700000000000000006"),
    (8, S, ONE, "verdict=dropped epoch=2"),
    (7, P, wire.udp(FLOW, b"left"), "seq=8 epoch=2 verdict=withheld"),
]


def recording(
    path: Path, rows: list[Row], options: str = '{"compare_timeout":3000000000,"pass_classes":["arp"]}'
) -> str:
    with path.open("wb") as file:
        writer = CaptureWriter(file, ("primary_in", "secondary_in", "outdev"), comments=(HEAD + options,))
        for time, interface, data, words in rows:
            writer.write(START + time, data, interface, (f"coloproxy {words}",))
    return str(path)


def test_every_verdict_is_the_recorded_one(tmp_path: Path) -> None:
    path = recording(tmp_path / "r", ROWS)
    assert is_recording(path)
    result = replay_recording(path)
    assert result.mismatches == ()
    assert result.equal
    assert (result.frames, result.marks, result.same, result.unfed) == (5, 3, 5, 1)
    assert result.notes == ()


def test_another_verdict_is_told(tmp_path: Path) -> None:
    rows = list(ROWS)
    rows[4] = (4, S, ONE, "seq=5 epoch=1 verdict=discarded reason=diverged")
    result = replay_recording(recording(tmp_path / "r", rows))
    assert not result.equal
    assert [(m.number, m.seq, m.recorded, m.replayed) for m in sorted(result.mismatches, key=lambda m: m.number)] == [
        (5, 5, "discarded diverged", "discarded matched"),
        (7, 4, "released committed", "released matched"),
    ]


def test_the_options_are_the_recorded_ones(tmp_path: Path) -> None:
    arp = (1, P, wire.ethernet(0x0806, bytes(28)), "seq=2 epoch=1 verdict=released reason=passed")
    assert replay_recording(recording(tmp_path / "r", [ROWS[0], arp])).equal
    assert not replay_recording(recording(tmp_path / "s", [ROWS[0], arp], '{"pass_classes":[]}')).equal


def test_a_file_without_the_option_is_of_a_comparator_that_had_none(tmp_path: Path) -> None:
    def syn_ack(scale: int) -> bytes:
        return wire.tcp(wire.Path(), 9, 9, wire.SYN | wire.ACK, options=wire.Options(wscale=scale))

    rows = [
        ROWS[0],
        (1, S, syn_ack(9), "seq=2 epoch=1 verdict=discarded reason=diverged"),
        (2, P, syn_ack(7), "seq=3 epoch=1 verdict=withheld"),
    ]
    assert replay_recording(recording(tmp_path / "r", rows)).equal
    assert not replay_recording(recording(tmp_path / "s", rows, '{"any_scale":true}')).equal


def test_a_vnet_header_is_put_back(tmp_path: Path) -> None:
    rows = [
        ROWS[0],
        (1, P, SYN_ACK, "seq=2 epoch=1 verdict=released reason=matched vnet=00000000000000000000"),
        (2, S, SYN_ACK, "seq=3 epoch=1 verdict=discarded reason=matched vnet=000000000000000000000000"),
    ]
    assert replay_recording(recording(tmp_path / "r", rows)).equal


def test_a_nic_is_given_back(tmp_path: Path) -> None:
    rows = [
        ROWS[0],
        (1, P, SYN_ACK, "seq=2 epoch=1 verdict=released reason=matched nic=3"),
        (2, S, SYN_ACK, "seq=3 epoch=1 verdict=withheld nic=2"),
        (3, S, SYN_ACK, "seq=4 epoch=1 verdict=discarded reason=matched nic=3"),
    ]
    assert replay_recording(recording(tmp_path / "r", rows)).equal


def test_a_file_that_begins_in_the_middle_says_so(tmp_path: Path) -> None:
    rows: list[Row] = [
        (0, OUT, b"", "seq=0 mark=mode mode=protected epoch=4"),
        (2, S, SYN_ACK, "seq=42 epoch=4 verdict=discarded reason=matched"),
        (1, P, SYN_ACK, "seq=41 epoch=4 verdict=released reason=matched"),
        (3, P, ONE, "lost=2 seq=46 epoch=4 verdict=withheld"),
    ]
    result = replay_recording(recording(tmp_path / "r", rows))
    assert result.equal
    assert len(result.notes) == 2
    assert "middle" in result.notes[0] and "missing" in result.notes[1]


@pytest.mark.parametrize(
    ("rows", "options", "what"),
    [
        ([(0, OUT, b"", "seq=x mark=stop")], "{}", "packet 1: its seq=x is no number"),
        ([(0, OUT, b"", "seq=1 mark=dance")], "{}", "packet 1: its mark=dance"),
        ([(0, OUT, b"", "seq=1 mark=commit resumed=y")], "{}", "packet 1: its resumed=y"),
        ([(0, OUT, b"x", "seq=1 verdict=released")], "{}", "packet 1: is no packet of a recording"),
        ([(0, P, b"x", "seq=1")], "{}", "packet 1: is no packet of a recording"),
        ([(0, P, b"x", "seq=1 verdict=withheld vnet=zz")], "{}", "packet 1: its vnet=zz"),
        ([(0, P, b"x", "seq=1 verdict=withheld nic=256")], "{}", "packet 1: its nic=256"),
        ([(0, P, b"x", "seq=1 verdict=withheld nic=one")], "{}", "packet 1: its nic=one"),
        ([], "[]", "no JSON object"),
        ([], "nonsense", "no JSON object"),
        ([], '{"max_flows":-1}', "options that can't be used"),
        ([], '{"pass_classes":["nonsense"]}', "options that can't be used"),
    ],
)
def test_damage_is_told(tmp_path: Path, rows: list[Row], options: str, what: str) -> None:
    with pytest.raises(CaptureError, match="r: ") as caught:
        replay_recording(recording(tmp_path / "r", rows, options))
    assert what in str(caught.value)


def test_what_a_real_engine_recorded_gives_its_verdicts(tmp_path: Path) -> None:
    service = Service(RecordOptions(tmp_path / "r.pcapng"))
    try:
        service.commit()
        frames = [SYN_ACK, *(wire.tcp(FLOW, 11 + 4 * n, 1, ACK, b"%04d" % n) for n in range(40))]
        for n, frame in enumerate(frames):
            service.send(Side.PRIMARY, frame)
            service.send(Side.SECONDARY, frame if n != 20 else wire.tcp(FLOW, 11 + 4 * 19, 1, ACK, b"else"))
            if n in (10, 30):
                service.commit()
        service.send(Side.PRIMARY, wire.udp(FLOW, b"left"))
        service.end()
    finally:
        service.close()
    result = replay_recording(str(tmp_path / "r.pcapng"))
    assert result.mismatches == ()
    assert (result.frames, result.same) == (83, 83)


def test_the_command_knows_a_recording(tmp_path: Path) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "coloproxy", "replay"]
    path = recording(tmp_path / "r", ROWS)
    done = subprocess.run([*command, path], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "equal: all 5 verdicts are the recorded ones" in done.stdout
    rows = [*ROWS[:-1], (7, P, wire.udp(FLOW, b"left"), "seq=8 epoch=2 verdict=released reason=matched")]
    path = recording(tmp_path / "s", rows)
    done = subprocess.run([*command, path, "--json"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["verdict"] == "different"
    assert [(m["number"], m["recorded"], m["replayed"]) for m in told["mismatches"]] == [
        (10, "released matched", "withheld")
    ]
