# SPDX-License-Identifier: Apache-2.0
"""`coloproxy compare`: the service that stands in the place of QEMU's `-object colo-compare`.

The comparator itself is in comparing.py; here are its life as a process and what it tells: log lines, --json-events,
--stats-interval.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import signal
import time

from .comparing import Comparing
from .errors import ColoproxyError
from .journal import Journal
from .lines import LineWriter
from .options import CompareOptions
from .reports import Report
from .stats import Snapshot, Stats

log = logging.getLogger(__name__)

CLEAN, FAILED = 0, 1  # exit codes; 2 is the command line's


class Compare:
    """One comparator beside one primary. `await run()` returns the exit code."""

    def __init__(self, options: CompareOptions) -> None:
        options.check()
        self._options = options
        self._journal = Journal(options.json_events)
        self._stdout: LineWriter | None = None
        self._failure: str | None = None
        self._stop = asyncio.Event()
        self._comparing = Comparing(options, self._journal, self._tell, self._fail)
        if options.stats_interval_s is not None:
            self._stdout = LineWriter(2 if options.json_events == "-" else 1, "coloproxy-stats")

    async def run(self) -> int:
        """Until SIGINT or SIGTERM (0), or something failed for good (1). Raises AddressError at the start."""
        loop = asyncio.get_running_loop()
        printing: asyncio.Task[None] | None = None
        stats = Stats(time.monotonic_ns(), Snapshot())
        try:
            await self._comparing.open()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._stop.set)
            self._journal.write("started", {"addresses": self._comparing.addresses()})
            self._comparing.start()
            if self._options.stats_interval_s is not None:
                printing = loop.create_task(self._print_stats(stats, self._options.stats_interval_s))
                printing.add_done_callback(self._stats_ended)
            await self._stop.wait()
            log.info("stopping")
        finally:
            await self._end(printing, stats)
        return CLEAN if self._failure is None else FAILED

    async def _end(self, printing: asyncio.Task[None] | None, stats: Stats) -> None:
        if printing is not None:
            printing.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):  # told by _stats_ended
                await printing
        await self._comparing.stop(self._options.linger_s)
        with contextlib.suppress(ColoproxyError):
            totals = self._comparing.snapshot()
            self._print(stats.total(time.monotonic_ns(), totals))
            self._journal.write("stopped", {"failure": self._failure, "totals": dataclasses.asdict(totals)})
        self._comparing.close()
        self._journal.close()
        if self._stdout is not None:
            self._stdout.close()

    def _fail(self, reason: str) -> None:
        if self._failure is None:
            self._failure = reason
            log.error("%s", reason)
        self._stop.set()

    # --------------------------------------------------------------- telling

    def _tell(self, report: Report) -> None:
        log.log(report.level, "%s", report)
        self._journal.report(report)

    async def _print_stats(self, stats: Stats, interval_s: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due += interval_s
            await asyncio.sleep(due - loop.time())
            now = self._comparing.snapshot()
            self._print(stats.interval(time.monotonic_ns(), now))
            self._journal.write("stats", dataclasses.asdict(now))

    def _stats_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(f"statistics: {error!r}")

    def _print(self, lines: list[str]) -> None:
        if self._stdout is not None:
            for line in lines:
                self._stdout.put(line)
