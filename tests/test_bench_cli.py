# SPDX-License-Identifier: Apache-2.0
"""`coloproxy bench` as a process; and what it makes of its options and its counters."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qemu_process import needs_qemu

from coloproxy.address import Address
from coloproxy.bench.comparators import stock_command
from coloproxy.bench.cpu import CpuTime
from coloproxy.bench.document import document
from coloproxy.bench.lines import amount, interval_line, summary
from coloproxy.bench.options import BenchOptions, Role, Sockets, check_sockets, check_traffic, parse_number
from coloproxy.bench.result import Interval, Latency, Result, Snapshot
from coloproxy.bench.traffic import Counters, End, Sent, Sink, TrafficConfig
from coloproxy.errors import MisuseError

BENCH = [sys.executable, "-m", "coloproxy", "bench"]
DEADLINE = 60


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BENCH, *options], capture_output=True, text=True, timeout=DEADLINE, check=False)


def measured(*options: str, code: int = 0) -> dict[str, Any]:
    done = bench("-J", *options)
    assert done.returncode == code, done.stdout + done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


# -------------------------------------------------------------------- pure


@pytest.mark.parametrize(
    ("text", "base", "number"),
    [("0", 1000, 0), ("64K", 1024, 65536), ("1.5g", 1000, 1_500_000_000), (" 10M ", 1000, 10_000_000), ("7", 1024, 7)],
)
def test_numbers(text: str, base: int, number: int) -> None:
    assert parse_number(text, "--x", base=base) == number


@pytest.mark.parametrize("text", ["", "K", "-1", "1KB", "1e3", "0x10", "1 000"])
def test_no_numbers(text: str) -> None:
    with pytest.raises(MisuseError, match="--x"):
        parse_number(text, "--x")


def test_amounts() -> None:
    assert [amount(v, "bits/s") for v in (0, 999, 1000, 1.25e9, 999e9)] == [
        "0 bits/s",
        "999 bits/s",
        "1 Kbits/s",
        "1.25 Gbits/s",
        "999 Gbits/s",
    ]
    assert amount(1 << 20, "Bytes", base=1024) == "1 MBytes"


def result(**more: Any) -> Result:
    first = Snapshot(0, Counters(), CpuTime(1.0, 1.0), CpuTime())
    sent = Sent(frames=1000, segments=999, payload=999_000, bytes=1_060_000)
    counters = Counters(sent, sent, released_frames=990, released_segments=989, released_payload=989_000,
                        released_bytes=1_000_000)  # fmt: skip
    last = Snapshot(2_000_000_000, counters, CpuTime(1.5, 2.0), CpuTime(0.25, 0.25))
    whole = Interval(first, last)
    fields: dict[str, Any] = {
        "intervals": (whole,),
        "total": whole,
        "last": last,
        "latency": Latency.of({10_000: 50, 20_000: 49, 1_000_000: 1}),
        "end": End.COMPLETE,
        "fault": "",
        "interrupted": False,
        "sink": Sink.VERIFY,
        "role": Role.BOTH,
        "may_lose": False,
    }
    return Result(**(fields | more))


def test_what_follows_from_the_counters() -> None:
    one = result()
    assert one.lost_frames == 10
    assert one.faults == ["lost 10 frames (1 %)"]
    assert result(may_lose=True).faults == []
    assert result(may_lose=True).misorders == one.faults
    assert result(sink=Sink.DISCARD).lost_frames is None
    assert result(role=Role.CLIENT).lost_frames is None
    assert one.cpu == CpuTime(0.5, 1.0)
    assert one.cpu_seconds_per_gb == pytest.approx(1500)
    assert one.latency is not None
    assert one.latency.percentiles["p50"] == pytest.approx(10, rel=0.002)
    assert one.latency.percentiles["p99"] == pytest.approx(20, rel=0.002)
    assert one.latency.maximum == pytest.approx(1000, rel=0.002)
    assert result(end=End.CLOSED, fault="outdev: closed by its peer").faults[0] == "outdev: closed by its peer"
    assert result(end=End.CLOSED, role=Role.SERVER).faults == []


def test_the_lines() -> None:
    one = result()
    assert interval_line(one.total).split() == [
        "0.00-2.00", "976", "KBytes", "4", "Mbits/s", "500", "495", "10", "0"
    ]  # fmt: skip
    text = "\n".join(summary(one))
    assert "lost         10 frames (1 %)" in text
    assert "p50 10.0" in text
    assert "comparator 75.0 % (0.50 s user, 1.00 s system), 1500.000 s/GB released" in text
    assert "FAULT        lost 10 frames (1 %)" in text
    assert "all that the primary sent came out" not in text


def test_the_document_has_iperfs_shape() -> None:
    told = document(BenchOptions(traffic=TrafficConfig()), result(), ("relay",))
    assert set(told) == {"start", "intervals", "end"}
    assert {"version", "system_info", "connecting_to", "test_start"} <= set(told["start"])
    assert told["start"]["test_start"]["blksize"] == 1448
    assert set(told["intervals"][0]) == {"streams", "sum"}
    end = told["end"]
    assert end["sum_sent"]["bytes"] == 999_000
    assert end["sum_sent"]["bits_per_second"] == pytest.approx(999_000 * 4)
    assert end["sum_received"]["bytes"] == 989_000
    assert end["cpu_utilization_percent"] == {
        "host_total": 25.0, "host_user": 12.5, "host_system": 12.5,
        "remote_total": 75.0, "remote_user": 25.0, "remote_system": 50.0,
    }  # fmt: skip
    assert end["coloproxy"]["lost_frames"] == 10
    assert {"p50", "p90", "p99", "p99.9", "max"} <= set(end["coloproxy"]["latency_us"])
    json.dumps(told)


def test_latency_without_samples() -> None:
    assert Latency.of({}) is None
    assert (
        document(BenchOptions(traffic=TrafficConfig()), result(latency=None), ())["end"]["coloproxy"]["latency_us"]
        is None
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flows": 0}, "--flows"),
        ({"length": 70_000}, "--length"),
        ({"udp": True, "recut": 5}, "--recut"),
        ({"udp": True, "loss_ppm": 5}, "--loss"),
        ({"udp": True, "length": 9, "divergence_ppm": 1}, "--divergence"),
        ({"request_response": True, "sink": Sink.COUNT}, "--request-response"),
        ({"think_time": 5}, "--think-time"),
    ],
)
def test_what_traffic_can_not_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        check_traffic(TrafficConfig(**options))


def test_sockets_belong_to_roles() -> None:
    at = Address(connect=True, host="h", port=1)
    check_sockets(Role.BOTH, None, TrafficConfig())
    check_sockets(Role.BOTH, Sockets(at, at, at), TrafficConfig())
    check_sockets(Role.CLIENT, Sockets(at, at, None, at), TrafficConfig())
    check_sockets(Role.SERVER, Sockets(outdev=at), TrafficConfig())
    for role, sockets in (
        (Role.BOTH, Sockets(at, at)),
        (Role.CLIENT, Sockets(at)),
        (Role.CLIENT, None),
        (Role.CLIENT, Sockets(at, at, at)),
        (Role.SERVER, Sockets(at, at, at)),
    ):
        with pytest.raises(MisuseError, match="--"):
            check_sockets(role, sockets, TrafficConfig())
    with pytest.raises(MisuseError, match="--notify-dev"):
        check_sockets(Role.BOTH, Sockets(at, at, at), TrafficConfig(divergence_ppm=1))


# --------------------------------------------------------------- processes


@pytest.mark.parametrize(
    "options",
    [
        ["-l", "0"],
        ["-l", "x"],
        ["-b", "1M", "--rate", "5"],
        ["--primary-in", "127.0.0.1:1"],
        ["--client", "--server"],
        ["--server"],
        ["--comparator", "relay", "--divergence", "5"],
        ["--comparator", "relay", "--comparator-options", "x", "-t", "1"],
        ["--comparator-options", "'", "-t", "1"],
        ["--pid", "1"],
        ["--primary-in", "nonsense", "--secondary-in", "h:1", "--outdev", "h:2"],
    ],
    ids=" ".join,
)
def test_wrong_usage(options: list[str]) -> None:
    done = bench(*options)
    assert (done.returncode, done.stdout) == (2, "")
    assert "coloproxy bench: " in done.stderr


def test_nobody_listens(tmp_path: Path) -> None:
    ends = [f"unix:{tmp_path}/{name}" for name in "pso"]
    done = bench("--primary-in", ends[0], "--secondary-in", ends[1], "--outdev", ends[2], "--connect-timeout", "0.1")
    assert done.returncode == 1
    assert "can't connect" in done.stderr


def test_a_comparator_that_can_not_start() -> None:
    done = bench("--comparator-options", "--no-such-option", "-t", "1")
    assert done.returncode == 1
    assert "coloproxy bench: coloproxy: " in done.stderr


def test_no_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    done = bench("--comparator", "qemu", "-t", "1")
    assert done.returncode == 2
    assert "there is no qemu-system-x86_64 here" in done.stderr


@pytest.mark.parametrize("unix", [[], ["--unix"]], ids=["tcp", "unix"])
@pytest.mark.parametrize("comparator", ["coloproxy", "relay", pytest.param("qemu", marks=needs_qemu)])
def test_each_comparator(comparator: str, unix: list[str]) -> None:
    told = measured("--comparator", comparator, "-n", "3M", "-P", "3", *unix)
    ours = told["end"]["coloproxy"]
    assert told["end"]["sum_sent"]["bytes"] >= 3 << 20
    assert ours["frames"]["sent"] == ours["frames"]["released"] + ours["lost_frames"]
    assert (ours["frames"]["corrupt"], ours["frames"]["foreign"], ours["faults"]) == (0, 0, [])
    if comparator != "qemu":
        assert ours["lost_frames"] == 0
        assert ours["frames"]["late"] == 0


@pytest.mark.parametrize(
    "options",
    [
        ["-u", "-P", "4"],
        ["-6"],
        ["-6", "-u"],
        ["--timestamps", "--recut", "999", "--skew", "64K"],
        ["--loss", "1", "-P", "10"],
        ["-l", "65000", "--vnet-hdr"],
        ["-l", "65000", "--vnet-hdr", "--recut", "1448", "-6"],
        ["-l", "64", "-P", "2000", "--burst", "4", "-n", "500K"],
        ["--sink", "count"],
        ["--sink", "discard"],
        ["--turn", "4K", "-w", "64K"],
    ],
    ids=" ".join,
)
def test_ours_releases_all(options: list[str]) -> None:
    ours = measured("-n", "2M", *options)["end"]["coloproxy"]
    assert ours["faults"] == []
    assert ours["lost_frames"] == (None if "discard" in options else 0)


def test_responses() -> None:
    told = measured("--request-response", "-P", "20", "--think-time", "5", "-t", "0.5")
    latency = told["end"]["coloproxy"]["latency_us"]
    assert told["start"]["test_start"]["blksize"] == 200
    assert 200 < latency["samples"] <= told["end"]["coloproxy"]["frames"]["sent"]
    assert latency["p50"] <= latency["p99.9"] <= latency["max"]


@pytest.mark.parametrize("comparator", ["coloproxy", pytest.param("qemu", marks=needs_qemu)])
@pytest.mark.parametrize("protocol", [[], ["-u"]], ids=["tcp", "udp"])
def test_divergence_leads_to_checkpoints(comparator: str, protocol: list[str]) -> None:
    told = measured(
        *("--comparator", comparator, "--divergence", "2000", "-n", "5M", "--checkpoint-pause", "1", "-b", "500M"),
        *protocol,
    )
    ours = told["end"]["coloproxy"]
    assert ours["secondary"]["diverged"] > 0
    assert ours["checkpoints"] > 0
    assert ours["frames"]["corrupt"] == 0  # what comes out is the primary's
    if comparator == "coloproxy":
        assert ours["lost_frames"] == 0


def test_rate_and_omit() -> None:
    told = measured("-b", "20M", "-t", "1", "-O", "0.5", "-i", "0.25")
    assert [interval["sum"]["omitted"] for interval in told["intervals"]] == [True] * 2 + [False] * 4
    assert told["end"]["sum_sent"]["start"] >= 0.5
    assert told["start"]["test_start"]["target_bitrate"] == 20e6
    assert told["end"]["sum_sent"]["bytes"] <= 20e6 / 8 * 1.5


def test_interrupted() -> None:
    """Ctrl-C ends it with its summary, and the comparator with it."""
    with subprocess.Popen([*BENCH, "-t", "60", "-i", "0.1"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 1
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=DEADLINE)
    assert "released/s" in lines[0]
    assert process.returncode == 130
    assert "lost         0 frames" in rest
    assert not Path(f"/proc/{children[0]}").exists()


@contextlib.contextmanager
def relay(folder: Path) -> Iterator[dict[str, str]]:
    ends = {name: f"unix:{folder}/{name}" for name in ("primary_in", "secondary_in", "outdev")}
    with subprocess.Popen([sys.executable, "-m", "coloproxy.bench.relay", *ends.values()]) as process:
        try:
            yield {"pid": str(process.pid), **ends}
        finally:
            process.terminate()


def test_a_running_comparator(tmp_path: Path) -> None:
    with relay(tmp_path) as at:
        told = measured(
            *("--primary-in", at["primary_in"], "--secondary-in", at["secondary_in"], "--outdev", at["outdev"]),
            *("--pid", at["pid"], "-t", "0.5"),
        )
    assert told["end"]["coloproxy"]["faults"] == []
    assert told["end"]["cpu_utilization_percent"]["remote_total"] > 0


def test_two_commands(tmp_path: Path) -> None:
    with relay(tmp_path) as at:
        server = subprocess.Popen(
            [*BENCH, "--server", "--outdev", at["outdev"], "-J"], stdout=subprocess.PIPE, text=True
        )
        sent = measured(
            *("--client", "--primary-in", at["primary_in"], "--secondary-in", at["secondary_in"]),
            *("-n", "1M", "-P", "5", "--drain", "0.2"),
        )
        out, _ = server.communicate(timeout=DEADLINE)
    received = json.loads(out)
    assert server.returncode == 0
    assert sent["end"]["coloproxy"]["lost_frames"] is None
    assert received["end"]["coloproxy"]["frames"]["released"] == sent["end"]["coloproxy"]["frames"]["sent"]
    assert received["end"]["coloproxy"]["faults"] == []


def test_frames_that_are_lost_are_a_failure(tmp_path: Path) -> None:
    """A comparator in the test drops every 50th of the primary's frames."""
    import threading

    listeners = []
    for name in "pso":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / name))
        listener.listen()
        listeners.append(listener)

    def serve() -> None:
        out, primary, secondary = (listeners[i].accept()[0] for i in (2, 0, 1))
        swallow = threading.Thread(target=lambda: [None for _ in iter(lambda: secondary.recv(1 << 16), b"")])
        swallow.start()
        stream, number = primary.makefile("rb"), 0
        while head := stream.read(4):
            body = stream.read(int.from_bytes(head, "big"))
            number += 1
            if number % 50:
                out.sendall(head + body)
        swallow.join()
        out.close()

    thread = threading.Thread(target=serve)
    thread.start()
    ends = ("--primary-in", f"unix:{tmp_path}/p", "--secondary-in", f"unix:{tmp_path}/s")
    told = measured(*ends, "--outdev", f"unix:{tmp_path}/o", "-n", "100K", "--drain", "1", code=1)
    thread.join()
    ours = told["end"]["coloproxy"]
    assert ours["lost_frames"] == ours["frames"]["sent"] // 50 > 0
    assert ours["faults"][0].startswith(f"lost {ours['lost_frames']} frames")


def test_stocks_command_line() -> None:
    command = stock_command({"primary_in": Address(connect=True, path="/p")}, vnet_hdr=True, options="a=1")
    assert command[-1].endswith("iothread=io1,vnet_hdr_support=on,a=1")
    assert "socket,id=primary_in,path=/p,server=on,wait=off" in command
