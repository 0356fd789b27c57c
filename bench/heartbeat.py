# SPDX-License-Identifier: Apache-2.0
"""The heartbeat: how long until a dead host is called dead, what a stall of the peer does, and what it all costs.

    python bench/heartbeat.py [--settings 50/400,20/150] [--kills 10] [--pairs 10] [--cpu-seconds 10] [--json FILE]
    python bench/heartbeat.py --quick

Real UDP sockets on loopback. The peers of all pairs run in one process, begun at random times within an interval;
that process is killed by SIGKILL, and for each pair the time is taken from the signal to on_dead. Before each kill
the process is stopped for --stall ms (SIGSTOP, SIGCONT): a death that this gives is a false one. All pairs share the
machine with each other, so what the scheduler adds is in the figures. CPU time is of one heartbeat in a process of its
own, and of single messages given to the core without sockets.

What --json writes is one object:

    schema      "coloproxy-heartbeat/1"
    command     how it was called, a list
    machine     {processor, processors, kernel, python}
    detection   a list of {interval_ms, timeout_ms, kills, samples, min_ms, p50_ms, p99_ms, max_ms, stall_ms,
                stalled, false_deaths}; samples: pairs x
                kills, less those that were called dead before; stalled: stalls that a pair went through
    cpu         a list of {interval_ms, paths, core_percent, us_a_beat}; us_a_beat: of one message sent and one
                received, with the loop's own work
    messages    {accepted, forged, replayed, malformed}: microseconds of Detector.receive for one
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from coloproxy.heartbeat import Detector, Heartbeat, Settings, UdpPath
from coloproxy.heartbeat.message import Host

MS = 10**6
PSK = b"bench/heartbeat!"
SETTINGS = "50/400,20/100,20/200,50/250,100/400,100/1000,250/2000"
DEADLINE_S = 60.0
Pair = tuple[UdpPath, UdpPath]


@dataclass(frozen=True, slots=True)
class Detection:
    """See the head of this file."""

    interval_ms: int
    timeout_ms: int
    kills: int
    samples: int
    min_ms: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    stall_ms: int
    stalled: int
    false_deaths: int


@dataclass(frozen=True, slots=True)
class Cpu:
    """See the head of this file."""

    interval_ms: int
    paths: int
    core_percent: float
    us_a_beat: float


def make_pairs(count: int) -> list[Pair]:
    """Both ends of so many paths on free ports of loopback."""
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2 * count)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        ends = [("127.0.0.1", int(sock.getsockname()[1])) for sock in socks]
    return [
        (UdpPath(str(i), a, b), UdpPath(str(i), b, a))
        for i, (a, b) in enumerate(zip(ends[::2], ends[1::2], strict=True))
    ]


def settings_of(host: Host, interval_ms: int, timeout_ms: int) -> Settings:
    timeout = timeout_ms * MS
    return Settings("bench", host, PSK, interval_ms * MS, timeout, max(timeout, 60_000 * MS))


class Near:
    """Our end of one pair."""

    def __init__(self, settings: Settings, paths: Sequence[UdpPath]) -> None:
        self.alive = asyncio.Event()
        self.dead = asyncio.Event()
        self.died = 0  # monotonic ns
        self.deaths = 0
        self.heartbeat = Heartbeat(
            settings, paths, on_alive=self._on_alive, on_dead=self._on_dead, on_state=lambda _: None
        )
        self.heartbeat.start()

    def close(self) -> None:
        self.heartbeat.close()

    def _on_alive(self, _boot: str) -> None:
        self.dead.clear()
        self.alive.set()

    def _on_dead(self, _reason: str) -> None:
        self.died = time.monotonic_ns()
        self.deaths += 1
        self.alive.clear()
        self.dead.set()


async def peer(plan: str) -> None:
    """The other process: b's end of all pairs, until its input ends. Then its CPU time goes to standard output."""
    wanted = json.loads(plan)
    settings = settings_of("b", wanted["interval_ms"], wanted["timeout_ms"])
    groups = [[UdpPath(name, tuple(local), tuple(there)) for name, local, there in paths] for paths in wanted["groups"]]
    for paths in groups:
        await asyncio.sleep(random.uniform(0, wanted["interval_ms"] / 1e3 / len(groups) * 2))
        Heartbeat(settings, paths, on_alive=lambda _: None, on_dead=lambda _: None, on_state=lambda _: None).start()
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    marks: list[tuple[float, float]] = []

    def line() -> None:
        marks.append((time.monotonic(), time.process_time()))
        if not os.read(0, 1):
            over.set()

    loop.add_reader(0, line)
    await over.wait()
    (begin, cpu), (end, cpu_end) = marks[0], marks[-1]
    print((cpu_end - cpu) / (end - begin) if end > begin else 0.0)


@contextmanager
def near_ends(settings: Settings, groups: Sequence[Sequence[UdpPath]]) -> Iterator[list[Near]]:
    with ExitStack() as stack:
        yield [stack.enter_context(closing(Near(settings, paths))) for paths in groups]


async def spawn(interval_ms: int, timeout_ms: int, groups: Sequence[Sequence[UdpPath]]) -> asyncio.subprocess.Process:
    plan = {
        "interval_ms": interval_ms,
        "timeout_ms": timeout_ms,
        "groups": [[[path.name, path.local, path.peer] for path in paths] for paths in groups],
    }
    pipe = asyncio.subprocess.PIPE
    arguments = [sys.executable, __file__, "--peer", json.dumps(plan)]
    return await asyncio.create_subprocess_exec(*arguments, stdin=pipe, stdout=pipe)


async def wait_all(events: Sequence[asyncio.Event]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        for event in events:
            await event.wait()


async def detect(interval_ms: int, timeout_ms: int, kills: int, count: int, stall_ms: int) -> Detection:
    """Kills the peers so many times."""
    times: list[float] = []
    false = 0
    ends = make_pairs(count)
    with near_ends(settings_of("a", interval_ms, timeout_ms), [[near] for near, _ in ends]) as nears:
        for _ in range(kills):
            process = await spawn(interval_ms, timeout_ms, [[far] for _, far in ends])
            try:
                await wait_all([near.alive for near in nears])
                await asyncio.sleep(random.uniform(0.2, 0.2 + 2 * interval_ms / 1e3))
                before = sum(near.deaths for near in nears)
                process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(stall_ms / 1e3)
                process.send_signal(signal.SIGCONT)
                await asyncio.sleep(timeout_ms / 1e3 + random.uniform(0.1, 0.1 + 2 * interval_ms / 1e3))
                false += sum(near.deaths for near in nears) - before
                await wait_all([near.alive for near in nears])
                killed = time.monotonic_ns()
                process.kill()
                await wait_all([near.dead for near in nears])
                times += [(near.died - killed) / MS for near in nears if near.died > killed]
            finally:
                if process.returncode is None:
                    process.kill()
                await process.wait()
    times.sort()
    p50, p99 = (times[min(len(times) - 1, int(len(times) * part))] for part in (0.5, 0.99))
    return Detection(
        interval_ms,
        timeout_ms,
        kills,
        len(times),
        times[0],
        p50,
        p99,
        times[-1],
        stall_ms,
        kills * count,
        false,
    )


async def cpu_of(interval_ms: int, paths: int, seconds: float) -> Cpu:
    """One heartbeat in a process of its own, against one of ours."""
    ends = make_pairs(paths)
    with near_ends(settings_of("a", interval_ms, 20 * interval_ms), [[near for near, _ in ends]]) as nears:
        process = await spawn(interval_ms, 20 * interval_ms, [[far for _, far in ends]])
        try:
            await wait_all([near.alive for near in nears])
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"x")
            await asyncio.sleep(seconds)
            process.stdin.close()
            share = float(await process.stdout.readline())
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
    return Cpu(interval_ms, paths, 100 * share, share * interval_ms * 1000 / paths)


def messages(count: int) -> dict[str, float]:
    """Microseconds of one Detector.receive, by kind; the state is 500 bytes long."""
    state = {"x": "y" * 490}
    a = Detector(settings_of("a", 50, 400), ["one"], 0, state=state)
    b = Detector(settings_of("b", 50, 400), ["one"], 0, state=state)

    def exchange(now: int) -> None:
        a.tick(now)
        b.tick(now)
        for _ in range(4):
            for source, target in ((a, b), (b, a)):
                for _, data in source.datagrams():
                    target.receive(0, data, now)

    exchange(0)
    assert a.alive
    assert b.alive
    beats = []
    for _ in range(count):
        b.tick(b.deadline)
        beats += [data for _, data in b.datagrams()]
    last = beats[-1]
    kinds = {
        "accepted": beats,
        "forged": [last[:-1] + bytes([last[-1] ^ 1])] * count,
        "replayed": [last] * count,
        "malformed": [b"x" * 200] * count,
    }
    figures = {}
    for kind, datagrams in kinds.items():
        begin = time.perf_counter()
        for data in datagrams:
            a.receive(0, data, 0)
        figures[kind] = (time.perf_counter() - begin) * 1e6 / len(datagrams)
        a.datagrams()
    assert a.stats(0).paths[0].received >= count
    return figures


def tables(detection: Sequence[Detection], cpu: Sequence[Cpu], cost: dict[str, float]) -> str:
    lines = [
        "| interval / timeout ms | dead after, ms: min | p50 | max | kills x pairs | false deaths by a stall |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {d.interval_ms} / {d.timeout_ms} | {d.min_ms:.0f} | {d.p50_ms:.0f} | {d.max_ms:.0f} "
        f"| {d.samples} | {d.false_deaths} of {d.stalled} ({d.stall_ms} ms) |"
        for d in detection
    ]
    lines += ["", "| interval ms | paths | CPU, % of a core | microseconds a beat |", "|---|---:|---:|---:|"]
    lines += [f"| {c.interval_ms} | {c.paths} | {c.core_percent:.2f} | {c.us_a_beat:.0f} |" for c in cpu]
    lines += ["", "| one message in the core | microseconds |", "|---|---:|"]
    lines += [f"| {kind} | {us:.1f} |" for kind, us in cost.items()]
    return "\n".join(lines)


def processor() -> str:
    with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default=SETTINGS, help="interval/timeout in ms, with commas between")
    parser.add_argument("--kills", type=int, default=10, help="of the peers' process, for each setting")
    parser.add_argument("--pairs", type=int, default=10, help="heartbeats at the same time")
    parser.add_argument("--stall", type=int, default=200, help="ms that the peers are stopped before each kill")
    parser.add_argument("--cpu-seconds", type=float, default=10.0, help="for each measurement of CPU time")
    parser.add_argument("--quick", action="store_true", help="whether it works; its figures are no figures")
    parser.add_argument("--json", type=Path, help="where to write the document")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    return parser.parse_args()


async def measure(options: argparse.Namespace) -> None:
    pairs = [tuple(map(int, text.split("/"))) for text in options.settings.split(",")]
    kills, count, seconds = options.kills, options.pairs, options.cpu_seconds
    if options.quick:
        pairs, kills, count, seconds = pairs[:1], 1, 2, 1.0
    detection = [await detect(interval, timeout, kills, count, options.stall) for interval, timeout in pairs]
    cpu = [await cpu_of(interval, paths, seconds) for interval, paths in ((50, 1), (50, 2), (20, 2))]
    cost = messages(1000 if options.quick else 20_000)
    print(tables(detection, cpu, cost))
    if options.json is not None:
        document = {
            "schema": "coloproxy-heartbeat/1",
            "command": sys.argv,
            "machine": {
                "processor": processor(),
                "processors": len(os.sched_getaffinity(0)),
                "kernel": platform.release(),
                "python": platform.python_version(),
            },
            "detection": [asdict(each) for each in detection],
            "cpu": [asdict(each) for each in cpu],
            "messages": cost,
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    options = parse()
    asyncio.run(peer(options.peer) if options.peer else measure(options))


if __name__ == "__main__":
    main()
