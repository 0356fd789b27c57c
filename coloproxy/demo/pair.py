# SPDX-License-Identifier: Apache-2.0
"""A pair without disk, protected, its primary killed in mid-download: under `coloproxy run`, or QEMU's own filters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from coloproxy.demo.acts import DIFFERENT, DemoOptions, Summary, ask_what_differs, expect
from coloproxy.demo.journal import JournalFollower, Record, describe
from coloproxy.demo.view import View
from coloproxy.testbed import PairOptions, VmPair
from coloproxy.testbed.client import Transfer
from coloproxy.testbed.pair import Endpoints, coloproxy_compare
from coloproxy.testbed.pair_toml import journal_file
from coloproxy.testbed.tap_pair import TapOptions, TapPair

_PAGES = 20
_KILL_AT = 0.4  # of the download
_DETECTION_SECONDS = 0.3
_STEP_DEADLINE = 60.0
_JOURNAL = "events.jsonl"


async def play_pair(options: DemoOptions, view: View, summary: Summary) -> None:
    """From start to the end. Raises DemoError, TestbedError."""
    view.step("booting the guest: a Linux kernel with busybox, its web server, 192 MB")
    async with _pair(options) as pair:
        view.done(f"up after {pair.boot_seconds:.1f} s under {pair.acceleration.name.upper()}")
        board = _Board(view)
        view.board = board.render
        follower = JournalFollower(_journal_of(pair), board.take)
        task = asyncio.create_task(follower.run())
        try:
            await _Scenario(pair, view, follower, summary, fast=options.fast).run()
        finally:
            task.cancel()


def _pair(options: DemoOptions) -> VmPair | TapPair:
    if options.attach == "tap":
        return TapPair(TapOptions(nic=options.nic, allow_kvm=options.allow_kvm, keep_logs=options.keep_logs))

    def compare(endpoints: Endpoints) -> list[str]:
        journal = str(endpoints.directory / _JOURNAL)
        command = coloproxy_compare("--json-events", journal, "--stats-interval", "0.5", "--quiet")
        return list(command(endpoints))

    return VmPair(
        PairOptions(comparator=compare, nic=options.nic, allow_kvm=options.allow_kvm, keep_logs=options.keep_logs)
    )


def _journal_of(pair: VmPair | TapPair) -> Path:
    return journal_file(pair.directory, "primary") if isinstance(pair, TapPair) else pair.directory / _JOURNAL


class _Board:
    """The proxy's counters."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._stats: Record = {}

    def take(self, record: Record) -> None:
        if record.get("event") == "stats":
            self._stats = record
        elif line := describe(record):
            self._view.note("proxy", line)

    def render(self) -> RenderableType:
        table = Table(title="the proxy's counters", title_justify="left", expand=True)
        rows = counter_rows(self._stats)
        for name, _ in rows:
            table.add_column(name, justify="right")
        table.add_row(*(value for _, value in rows))
        return table


def counter_rows(stats: Record) -> list[tuple[str, str]]:
    """The counters worth a column, from a `stats` record (empty before the first)."""

    def number(name: str) -> str:
        value: Any = stats.get(name)
        return f"{value:,}" if isinstance(value, int) else "-"

    return [
        ("primary frames", number("primary_frames")),
        ("secondary frames", number("secondary_frames")),
        ("released: equal", number("released_matched")),
        ("by checkpoint", number("released_committed")),
        ("ACKs lowered", number("acks_lowered")),
        ("ACKs sent later", number("acks_emitted")),
        ("held now", number("held_frames")),
        ("checkpoints", number("checkpoints")),
    ]


class _Scenario:
    def __init__(
        self, pair: VmPair | TapPair, view: View, journal: JournalFollower, summary: Summary, *, fast: bool
    ) -> None:
        self.pair = pair
        self.view = view
        self.journal = journal
        self.summary = summary
        self.fast = fast

    async def run(self) -> None:
        await self._protect()
        await self._equal_answers()
        if not self.fast:
            await self._download("a 50 MB download through the protected pair")
        await ask_what_differs(self.view, self.pair.client, self.journal, "host-a", self.summary)
        await self._kill_in_mid_download()

    async def _protect(self) -> None:
        view = self.view
        view.explain("COLO copies the primary VM to a second host and runs both in step on the same requests.")
        view.step("starting COLO: copying the VM's state to the secondary")
        start = await self.pair.start_colo()
        view.done(f"protected after {start.total:.1f} s, of which the guest stood still {start.pause:.2f} s")

    async def _equal_answers(self) -> None:
        view, client, guest = self.view, self.pair.client, self.pair.guest
        view.explain("What both VMs say alike goes to the client at once.")
        done = 0
        view.step(f"{_PAGES} static and {_PAGES} dynamic pages", lambda: f"{done} of {2 * _PAGES}")
        begin = time.monotonic()
        for number in range(_PAGES):
            expect(await client.get("/hello.txt") == guest.hello, "a static page came back wrong")
            done += 1
            answer = await client.get(f"/cgi-bin/dynamic?page={number}")
            expect(answer.startswith(f"query: page={number}\n".encode()), "a dynamic page came back wrong")
            done += 1
        each = (time.monotonic() - begin) / done
        view.done(f"all right, {each * 1000:.0f} ms each")
        self.summary.add("equal answers", f"{done} pages, each compared byte by byte before it left")

    async def _download(self, what: str) -> None:
        transfer = await self.pair.client.download()
        self.view.step(what, _progress(transfer, self.pair.guest.large_bytes))
        result = await transfer.result(_STEP_DEADLINE)
        expect(result.sha256 == self.pair.guest.large_sha256, "the download's checksum is wrong")
        self.view.done(f"right checksum, {result.rate / 1e6:.1f} MB/s")
        self.summary.add(
            "large download", f"{result.bytes / 1e6:.0f} MB at {result.rate / 1e6:.1f} MB/s, right SHA-256"
        )

    async def _kill_in_mid_download(self) -> None:
        view, pair = self.view, self.pair
        view.explain("A download of 50 MB; at 40 % all that runs on the primary's host gets a SIGKILL.")
        transfer = await pair.client.download()
        size = pair.guest.large_bytes
        view.step("the download, primary about to die", _progress(transfer, size))
        await transfer.reached(int(size * _KILL_AT), _STEP_DEADLINE)
        killed = time.monotonic()
        await (pair.lose_primary("kill") if isinstance(pair, TapPair) else pair.kill_primary())
        view.done(f"killed at {transfer.bytes / 1e6:.1f} MB")
        view.step("failing over: the secondary takes the VM's place on the network")
        await asyncio.sleep(max(0.0, _DETECTION_SECONDS - (time.monotonic() - killed)))
        begun = time.monotonic()
        await pair.fail_over()
        view.done(
            f"{(time.monotonic() - begun) * 1000:.0f} ms, after {_DETECTION_SECONDS:.1f} s of deliberate detection time"
        )
        view.step("the same TCP connection goes on", _progress(transfer, size))
        result = await transfer.result(_STEP_DEADLINE)
        expect(result.returncode == 0, f"the download broke: curl says {result.error}")
        expect(result.sha256 == pair.guest.large_sha256, "the download's checksum is wrong")
        expect(result.connections == 1, "the client had to open another connection")
        view.done(f"all {result.bytes:,} bytes, right checksum; longest stall {result.longest_stall:.2f} s")
        after = (await pair.client.get(DIFFERENT)).decode()
        expect("host: host-b\n" in after, "the survivor is not the secondary")
        self.summary.add("primary killed with SIGKILL", f"in the middle of a download, at {_KILL_AT:.0%}")
        self.summary.add(
            "the client saw", f"a pause of {result.longest_stall:.2f} s: same TCP connection, all bytes, right SHA-256"
        )
        self.summary.add("who answers now", "the former secondary, alone (unprotected until it has a new partner)")


def _progress(transfer: Transfer, size: int) -> Callable[[], str]:
    return lambda: f"{transfer.bytes / 1e6:5.1f} of {size / 1e6:.0f} MB"
