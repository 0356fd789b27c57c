# SPDX-License-Identifier: Apache-2.0
"""`coloproxy replay` as a process: exit status, JSON, errors that name the packet, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import wire
from wire import ACK, SYN

from coloproxy.capture import CaptureWriter

FLOW = wire.Path()
REPLAY = [sys.executable, "-m", "coloproxy", "replay"]
DEADLINE = 60


def capture(path: Path, *payloads: bytes, cut: bool = False) -> str:
    with path.open("wb") as file:
        writer = CaptureWriter(file)
        seq = 1
        writer.write(0, wire.tcp(FLOW, seq - 1, 1, SYN | ACK))
        for n, payload in enumerate(payloads, 1):
            data = wire.tcp(FLOW, seq, 1, ACK, payload)
            writer.write(n * 1000, data, wire_len=len(data) + cut)
            seq += len(payload)
    return str(path)


def replay(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*REPLAY, *arguments], capture_output=True, text=True, timeout=DEADLINE, check=False)


def test_equal_is_0(tmp_path: Path) -> None:
    done = replay(capture(tmp_path / "p", b"one", b"two"), capture(tmp_path / "s", b"onetwo"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "equal: all that the primary sent was released" in done.stdout


def test_different_is_1_and_says_where(tmp_path: Path) -> None:
    done = replay(capture(tmp_path / "p", b"one", b"two"), capture(tmp_path / "s", b"one", b"twX"))
    assert (done.returncode, done.stderr) == (1, "")
    assert "1 difference" in done.stdout
    assert "payload: tcp 10.0.0.1:" in done.stdout
    assert "offset 5: primary packet 3, secondary packet 3" in done.stdout


def test_json_is_one_document(tmp_path: Path) -> None:
    done = replay(capture(tmp_path / "p", b"one"), capture(tmp_path / "s", b"onX"), "--json", "--vm", "10.0.0.1")
    assert (done.returncode, done.stderr) == (1, "")
    told = json.loads(done.stdout)
    assert told["verdict"] == "different"
    assert told["settings"]["align"] == "start"
    assert told["settings"]["vm"] == ["10.0.0.1"]
    (divergence,) = told["divergences"]
    assert divergence["offset"] == 2
    assert divergence["secondary"]["packet"]["number"] == 2
    assert divergence["secondary"]["packet"]["file"] == str(tmp_path / "s")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--vm", "nonsense"], "--vm nonsense: neither"),
        (["--vm", "10.9.9.9"], "no packets from the VM"),
        (["--pass", "nonsense"], "--pass nonsense: no frame class"),
        (["--inbound", "missing.pcap"], "missing.pcap: can't be opened"),
        (["--rules", "missing.toml"], "missing.toml"),
        (["--primary-interface", "nope"], "no packets of interface nope"),
    ],
)
def test_unusable_options_are_2(tmp_path: Path, options: list[str], text: str) -> None:
    path = capture(tmp_path / "p", b"one")
    done = replay(path, path, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("coloproxy replay: ")
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_unusable_input_is_2_and_names_file_and_packet(tmp_path: Path) -> None:
    good = capture(tmp_path / "good", b"one", b"two")
    raw = Path(good).read_bytes()
    (tmp_path / "short").write_bytes(raw[:-10])
    done = replay(good, str(tmp_path / "short"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"coloproxy replay: {tmp_path / 'short'}: packet 3: the file ends in the middle")
    done = replay(good, capture(tmp_path / "cut", b"one", cut=True))
    assert done.returncode == 2
    assert "cut: packet 2: is cut by the snap length" in done.stderr
    done = replay(good)
    assert done.returncode == 2
    assert "one interface only" in done.stderr
    assert replay().returncode == 2


def test_an_interrupt_is_130_without_a_trace(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [*REPLAY, str(pipe), str(pipe)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        with pipe.open("wb"):  # returns when the replay has opened it; it waits for bytes that never come
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert (out, err) == ("", "")


def test_help_teaches() -> None:
    done = replay("--help")
    assert done.returncode == 0
    for text in ("--align", "--vm", "--checkpoint-after", "Exit status", "tcpdump -i tap0"):
        assert text in done.stdout
