# SPDX-License-Identifier: Apache-2.0
"""The work that is measured, the same for every set-up: real clients, run in the client's namespace."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from coloproxy.testbed.client import Client
from coloproxy.testbed.errors import DeadlineError, ProcessError
from coloproxy.testbed.guest_files import GUEST_IPV4

from . import services

Figures = dict[str, float | int | None]

_HTTP_CLIENT = Path(__file__).with_name("http_client.py")
_REQUEST_SECONDS = 10.0  # a request that takes longer is an error
_HTTP_SECONDS = 120.0  # no request begins later
_IPERF_SECONDS = 30.0  # that a test may take longer than it should
_UP_SECONDS = 30.0
_WARM_UP_REQUESTS = 40
_WARM_UP_BYTES = "2M"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a client measured, and what went wrong."""

    figures: Figures
    errors: dict[str, int]


@dataclass(frozen=True, slots=True)
class Page:
    """What is asked for, and must come."""

    port: int
    path: str
    content: bytes


_GUESTS_PAGE = Page(services.NGINX_PORT, services.PAGE, services.PAGE_CONTENT)


@dataclass(frozen=True, slots=True)
class HttpWork:
    """So many GETs of one small page."""

    mode: Literal["keep", "new"]
    requests: int
    connections: int
    page: Page = _GUESTS_PAGE

    @property
    def name(self) -> str:
        """Key in the results."""
        return "http_keep_alive" if self.mode == "keep" else "http_new_connection"

    @property
    def title(self) -> str:
        """For people."""
        how = "on kept connections" if self.mode == "keep" else "with a new connection each"
        return f"HTTP: {self.requests} requests {how}, {self.connections} at a time"

    async def run(self, client: Client) -> Outcome:
        """Raises ProcessError or DeadlineError."""
        argv = [sys.executable, "-P", str(_HTTP_CLIENT), "--host", GUEST_IPV4, "--port", str(self.page.port)]
        argv += ["--path", self.page.path, "--requests", str(self.requests), "--connections", str(self.connections)]
        argv += ["--mode", self.mode, "--timeout", f"{_REQUEST_SECONDS:g}", "--deadline", f"{_HTTP_SECONDS:g}"]
        deadline = _HTTP_SECONDS + 2 * _REQUEST_SECONDS
        done = (await client.run(*argv, stdin=self.page.content, deadline=deadline)).check()
        result: dict[str, Any] = json.loads(done.stdout)
        times = sorted(nanoseconds / 1e6 for nanoseconds in result["latencies_ns"])
        figures: Figures = {
            "p50_ms": _percentile(times, 50),
            "p99_ms": _percentile(times, 99),
            "max_ms": times[-1] if times else None,
            "mean_ms": fmean(times) if times else None,
            "answered": len(times),
            "errors": sum(result["errors"].values()),
            "connects": result["connects"],
            "seconds": result["seconds"],
        }
        return Outcome(figures, result["errors"])

    def amount(self, figures: Figures) -> float:
        """Work done, in thousands of requests."""
        return float(figures["answered"] or 0) / 1000


@dataclass(frozen=True, slots=True)
class IperfWork:
    """iperf3 for so many seconds; the guest is the server."""

    direction: Literal["guest_to_client", "client_to_guest"]
    streams: int
    seconds: int

    @property
    def name(self) -> str:
        """Key in the results."""
        return f"iperf3_{self.direction}_{self.streams}"

    @property
    def title(self) -> str:
        """For people."""
        streams = f"{self.streams} stream{'s' if self.streams > 1 else ''}"
        return f"iperf3: {self.direction.replace('_', ' ')}, {streams}, {self.seconds} s"

    async def run(self, client: Client) -> Outcome:
        """Raises ProcessError or DeadlineError."""
        report = await _iperf(client, ["--time", str(self.seconds)], self.direction, self.streams, self.seconds)
        end = report["end"]
        received, sent = end["sum_received"], end["sum_sent"]
        figures: Figures = {
            "mbit_per_second": received["bits_per_second"] / 1e6,
            "bytes": received["bytes"],
            "retransmits": sent.get("retransmits"),
            "seconds": received["seconds"],
            "errors": 0,
        }
        return Outcome(figures, {})

    def amount(self, figures: Figures) -> float:
        """Work done, in hundreds of MB."""
        return float(figures["bytes"] or 0) / 1e8


Work = HttpWork | IperfWork


def all_works(
    requests: int, connections: int, seconds: int, streams: int, page: Page = _GUESTS_PAGE
) -> tuple[Work, ...]:
    """Everything that is measured, in its order."""
    return (
        HttpWork("keep", requests, connections, page),
        HttpWork("new", requests, connections, page),
        *(
            IperfWork(direction, count, seconds)
            for direction in ("guest_to_client", "client_to_guest")
            for count in (1, streams)
        ),
    )


async def warm_up(client: Client) -> None:
    """Waits for the servers, and lets the emulator translate what they run.  Raises DeadlineError."""
    until = time.monotonic() + _UP_SECONDS
    for mode in ("keep", "new"):
        work = HttpWork(mode, _WARM_UP_REQUESTS, 4)
        while (outcome := await work.run(client)).errors:
            if time.monotonic() > until:
                raise DeadlineError(f"the guest's nginx doesn't answer: {', '.join(outcome.errors)}")
            await asyncio.sleep(0.2)
    for direction in ("guest_to_client", "client_to_guest"):
        while True:
            try:
                await _iperf(client, ["--bytes", _WARM_UP_BYTES], direction, 1, 0)
                break
            except ProcessError:
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(0.2)


async def _iperf(client: Client, limit: Sequence[str], direction: str, streams: int, seconds: int) -> dict[str, Any]:
    argv = ["iperf3", "--client", GUEST_IPV4, "--port", str(services.IPERF_PORTS[direction]), "--json"]
    argv += ["--connect-timeout", "3000", "--parallel", str(streams), *limit]
    if direction == "guest_to_client":
        argv.append("--reverse")
    done = await client.run(*argv, deadline=seconds + _IPERF_SECONDS)
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        report = {}
    error = report.get("error")
    if error or "end" not in report or "sum_received" not in report["end"]:
        said = error or done.stderr.decode(errors="replace").strip() or "no result"
        raise ProcessError(f"iperf3: {said}")
    return report


def _percentile(ordered: Sequence[float], percent: int) -> float | None:
    """Nearest rank: the smallest that at least that part of all is not above."""
    if not ordered:
        return None
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
