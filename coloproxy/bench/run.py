# SPDX-License-Identifier: Apache-2.0
"""One run: sockets, the generator, a snapshot each interval."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Final

from coloproxy.bench.affinity import on, split_cpus
from coloproxy.bench.attach import attach, set_window
from coloproxy.bench.comparators import Running, started
from coloproxy.bench.cpu import CpuTime, cpu_of, own_cpu
from coloproxy.bench.options import BenchOptions, Role
from coloproxy.bench.result import Interval, Latency, Result, Snapshot
from coloproxy.bench.traffic import End, Traffic
from coloproxy.errors import MisuseError

SLICE_NS: Final = 50_000_000  # so long may a signal have to wait
NEVER: Final = 1 << 62
SETTLE_S: Final = 0.3  # a comparator that runs already: it takes connections in its own time

Told = Callable[[Interval], None]


@contextlib.contextmanager
def _attached(options: BenchOptions) -> Iterator[Running]:
    traffic = options.traffic
    if options.sockets is None:
        split = split_cpus() if options.affinity else None
        one = started(
            options.comparator,
            unix=options.unix,
            notify=options.notify,
            vnet_hdr=traffic.vnet_hdr,
            options=options.comparator_options,
            cpus=split.comparator if split else None,
            # The secondary's comes last, so what passes it on has the latency of the sockets' hops alone.
            passes_secondary=traffic.request_response,
        )
        with one as running, on(split.generator) if split else contextlib.nullcontext():
            yield running
        return
    socks = attach(options.sockets.given(), wait=options.connect_timeout)
    time.sleep(SETTLE_S)
    try:
        yield Running(options.pid or 0, (), socks)
    finally:
        for sock in socks.values():
            sock.close()


class _Interrupt:
    """SIGINT and SIGTERM end a run instead of the process."""

    def __init__(self) -> None:
        self.seen = False

    def __enter__(self) -> _Interrupt:
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._on_signal) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, *_: object) -> None:
        if self.seen:
            raise KeyboardInterrupt  # the second time: at once
        self.seen = True


class _Run:
    def __init__(self, options: BenchOptions, running: Running, tell: Told) -> None:
        self._options = options
        self._pid = running.pid
        self._tell = tell
        fds = {name: sock.fileno() for name, sock in running.socks.items()}
        self._traffic = Traffic(
            options.traffic,
            primary_in=fds.get("primary_in", -1),
            secondary_in=fds.get("secondary_in", -1),
            outdev=fds.get("outdev", -1),
            notify=fds.get("notify_dev", -1),
        )
        self._intervals: list[Interval] = []
        self._start = 0

    def _snapshot(self) -> Snapshot:
        comparator: CpuTime | None = None
        if self._pid:
            with contextlib.suppress(MisuseError):  # it has ended
                comparator = cpu_of(self._pid)
        at = time.monotonic_ns() - self._start
        return Snapshot(at, self._traffic.counters(), comparator, own_cpu())

    def _until(self, until: int, interrupt: _Interrupt) -> End:
        """ns since the start."""
        end = End.TIME
        while end in (End.TIME, End.INTERRUPTED) and not interrupt.seen:
            now = time.monotonic_ns() - self._start
            if now >= until:
                return End.TIME
            end = self._traffic.run(self._start + min(until, now + SLICE_NS))
        return end

    def go(self) -> Result:
        options = self._options
        omit = round(options.omit * 1e9)
        stop = NEVER if options.time is None else round((options.omit + options.time) * 1e9)
        step = round(options.interval * 1e9)
        with _Interrupt() as interrupt:
            self._start = time.monotonic_ns()
            before = first = self._snapshot()
            latency_before: dict[int, int] = {}
            end = End.TIME
            while end is End.TIME and before.at < stop and not interrupt.seen:
                omitted = before.at < omit
                until = min(stop, (before.at // step + 1) * step if step else stop)
                if omitted:
                    until = min(until, omit)
                end = self._until(until, interrupt)
                now = self._snapshot()
                interval = Interval(before, now, omitted)
                self._intervals.append(interval)
                self._tell(interval)
                before = now
                if omitted and now.at >= omit:
                    first, latency_before = now, self._traffic.latency()
            total = Interval(first, before)
            self._traffic.stop()
            if end in (End.TIME, End.INTERRUPTED):
                # What is under way, to the end; a second Ctrl-C gives that up.
                while (end := self._traffic.run(time.monotonic_ns() + SLICE_NS)) in (End.TIME, End.INTERRUPTED):
                    pass
            if options.role is Role.CLIENT and not interrupt.seen:
                time.sleep(options.traffic.drain / 1e9)  # a comparator must not lose its primary before it is through
            counts = self._traffic.latency()
            for value, count in latency_before.items():
                counts[value] -= count
            return Result(
                intervals=tuple(self._intervals),
                total=total,
                last=self._snapshot(),
                latency=Latency.of({value: count for value, count in counts.items() if count}),
                end=end,
                fault=self._traffic.fault,
                interrupted=interrupt.seen,
                sink=options.traffic.sink,
                role=options.role,
                may_lose=options.may_lose,
            )

    def close(self) -> None:
        self._traffic.close()


def run(
    options: BenchOptions,
    tell: Told = lambda _interval: None,
    commanded: Callable[[tuple[str, ...]], None] = lambda _command: None,
) -> Result:
    """Runs it. Raises ColoproxyError: it could not begin.

    tell: called after each interval.
    commanded: called with the command of the comparator that was started, once all is connected.
    """
    with _attached(options) as running:
        commanded(running.command)
        if options.window is not None:
            for sock in running.socks.values():
                set_window(sock, options.window)
        one = _Run(options, running, tell)
        try:
            return one.go()
        finally:
            one.close()
