# SPDX-License-Identifier: Apache-2.0
"""What the demo does, step by step, with a real pair from coloproxy.testbed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from coloproxy.demo.journal import JournalFollower
from coloproxy.demo.view import View
from coloproxy.errors import ColoproxyError
from coloproxy.testbed import PairOptions, VmPair, install_missing
from coloproxy.testbed.client import Transfer
from coloproxy.testbed.pair import Endpoints, coloproxy_compare
from coloproxy.testbed.pair_toml import journal_file
from coloproxy.testbed.qemu import Nic
from coloproxy.testbed.tap_pair import TapOptions, TapPair

_PAGES = 20
_KILL_AT = 0.4  # of the download
_DETECTION_SECONDS = 0.3
_STEP_DEADLINE = 60.0
_JOURNAL = "events.jsonl"
_JOURNAL_DEADLINE = 5.0


class DemoError(ColoproxyError):
    """The demo did not show what it promises: a wrong byte, a lost connection."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """How to run it."""

    attach: Literal["tap", "filters"] = "tap"
    """`coloproxy run` on both hosts, or `coloproxy compare` behind QEMU's own filters."""
    nic: Nic = "e1000"
    allow_kvm: bool = True
    keep_logs: Path | None = None
    plain: bool = False
    """Lines instead of a live screen, also on a terminal."""


@dataclass(slots=True)
class _Summary:
    rows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, what: str, result: str) -> None:
        self.rows.append((what, result))

    def table(self) -> Table:
        table = Table(title="What you have just seen", title_justify="left", show_header=False, expand=False)
        table.add_column(style="bold")
        table.add_column()
        for row in self.rows:
            table.add_row(*row)
        return table


async def run_demo(options: DemoOptions, console: Console) -> None:
    """The whole demo. Leaves nothing behind, in whatever way it ends.

    Raises:
        DemoError: it did not show what it promises.
        ColoproxyError: this machine can't run it, or a part of the test bed failed.
    """
    summary = _Summary()
    started = time.monotonic()
    with View(console, live=False if options.plain else None) as view:
        view.step("looking at what this machine lacks")
        await asyncio.to_thread(install_missing)
        view.done("nothing")
        view.step("booting the guest: a Linux kernel with busybox, its web server, 192 MB")

        async with _pair(options) as pair:
            view.done(f"up after {pair.boot_seconds:.1f} s under {pair.acceleration.name.upper()}")
            follower = JournalFollower(_journal_of(pair), view.event)
            task = asyncio.create_task(follower.run())
            try:
                await _Scenario(pair, view, follower, summary).run()
            finally:
                task.cancel()
    summary.add("everything took", f"{time.monotonic() - started:.0f} s; all processes, namespaces and files are gone")
    console.print()
    console.print(summary.table())
    console.print("Next: README.md says how to put coloproxy beside your own QEMU.")


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


class _Scenario:
    def __init__(self, pair: VmPair | TapPair, view: View, journal: JournalFollower, summary: _Summary) -> None:
        self.pair = pair
        self.view = view
        self.journal = journal
        self.summary = summary

    async def run(self) -> None:
        await self._protect()
        await self._equal_answers()
        await self._download("a 50 MB download through the protected pair")
        await self._divergence()
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
            _expect(await client.get("/hello.txt") == guest.hello, "a static page came back wrong")
            done += 1
            answer = await client.get(f"/cgi-bin/dynamic?page={number}")
            _expect(answer.startswith(f"query: page={number}\n".encode()), "a dynamic page came back wrong")
            done += 1
        each = (time.monotonic() - begin) / done
        view.done(f"all right, {each * 1000:.0f} ms each")
        self.summary.add("equal answers", f"{done} pages, each compared byte by byte before it left")

    async def _download(self, what: str) -> None:
        transfer = await self.pair.client.download()
        self.view.step(what, _progress(transfer, self.pair.guest.large_bytes))
        result = await transfer.result(_STEP_DEADLINE)
        _expect(result.sha256 == self.pair.guest.large_sha256, "the download's checksum is wrong")
        self.view.done(f"right checksum, {result.rate / 1e6:.1f} MB/s")
        self.summary.add(
            "large download", f"{result.bytes / 1e6:.0f} MB at {result.rate / 1e6:.1f} MB/s, right SHA-256"
        )

    async def _divergence(self) -> None:
        view = self.view
        view.explain("Now a page that differs on the two VMs on purpose: it names the host and draws a random token.")
        self.journal.poll()
        seen = len(self.journal.records)
        view.step("asking for the page that differs")
        begin = time.monotonic()
        answer = (await self.pair.client.get("/cgi-bin/diverge")).decode()
        took = time.monotonic() - begin
        _expect("host: host-a\n" in answer, "the answer is not the primary's")
        noticed = await self.journal.wait("divergence", seen, _JOURNAL_DEADLINE)
        _expect(noticed, "the proxy did not notice that the answers differ")
        committed = await self.journal.wait("checkpoint-committed", seen, _JOURNAL_DEADLINE)
        _expect(committed, "no checkpoint was taken for it")
        view.done(f"the client got the primary's answer, once, after a checkpoint: {took * 1000:.0f} ms")
        view.show(Panel(answer.strip(), title="what the client got", border_style="green", expand=False))
        self.summary.add(
            "a divergence", f"withheld, one checkpoint, then released: {took * 1000:.0f} ms for the client"
        )

    async def _kill_in_mid_download(self) -> None:
        view, pair = self.view, self.pair
        view.explain("The same download again; at 40 % all that runs on the primary's host gets a SIGKILL.")
        transfer = await pair.client.download()
        size = pair.guest.large_bytes
        view.step("second download, primary about to die", _progress(transfer, size))
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
        _expect(result.returncode == 0, f"the download broke: curl says {result.error}")
        _expect(result.sha256 == pair.guest.large_sha256, "the download's checksum is wrong")
        _expect(result.connections == 1, "the client had to open another connection")
        view.done(f"all {result.bytes:,} bytes, right checksum; longest stall {result.longest_stall:.2f} s")
        after = (await pair.client.get("/cgi-bin/diverge")).decode()
        _expect("host: host-b\n" in after, "the survivor is not the secondary")
        self.summary.add("primary killed with SIGKILL", f"in the middle of a download, at {_KILL_AT:.0%}")
        self.summary.add(
            "the client saw", f"a pause of {result.longest_stall:.2f} s: same TCP connection, all bytes, right SHA-256"
        )
        self.summary.add("who answers now", "the former secondary, alone (unprotected until it has a new partner)")


def _progress(transfer: Transfer, size: int) -> Callable[[], str]:
    return lambda: f"{transfer.bytes / 1e6:5.1f} of {size / 1e6:.0f} MB"


def _expect(condition: bool, complaint: str) -> None:
    if not condition:
        raise DemoError(complaint)
