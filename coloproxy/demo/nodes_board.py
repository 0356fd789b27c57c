# SPDX-License-Identifier: Apache-2.0
"""How the two nodes and their clients stand, for the live screen; and the nodes' journals in words."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from coloproxy.control.view import listed, plain, size, state_text
from coloproxy.demo.acts import JOURNAL_SECONDS
from coloproxy.demo.journal import JournalFollower, Record, describe
from coloproxy.demo.view import View
from coloproxy.testbed.errors import TestbedError
from coloproxy.testbed.node_bed import NodeBed
from coloproxy.testbed.node_net import HOSTS, Host
from coloproxy.testbed.node_traffic import Traffic, WriteLog

_POLL_SECONDS: Final = 0.1
_STATUS_SECONDS: Final = 1.0
_SILENCE_SECONDS: Final = 0.2  # that one would notice
_BAR: Final = 24
_QUARTERS: Final = 4
_TOLD: Final = frozenset({"divergence", "checkpoint-committed"})


class NodesBoard:
    """Asks both nodes for their status, and reads their journals, until cancelled."""

    def __init__(self, bed: NodeBed, view: View) -> None:
        self.journals = {host: JournalFollower(bed.hosts[host].journal, self._teller(host)) for host in HOSTS}
        self.dead: Host | None = None
        self.traffic: Traffic | None = None
        self.log: WriteLog | None = None
        self._bed = bed
        self._view = view
        self._statuses: dict[Host, Mapping[str, Any] | None] = dict.fromkeys(HOSTS)
        self._quarter = 0

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.gather(*(journal.run() for journal in self.journals.values()), *map(self._ask, HOSTS))

    async def told(self, host: Host, state: str, since: float) -> list[tuple[str, float]]:
        """That host's way to that state, as its journal has it: states, and seconds from *since* (time.monotonic())."""
        journal = self.journals[host]

        def way() -> list[tuple[str, float]]:
            steps = [record for record in journal.records if _is_step(record)]
            ways = [(str(record["after"]), record["monotonic_ns"] / 1e9 - since) for record in steps]
            return [(after, seconds) for after, seconds in ways if seconds >= 0]

        await journal.wait_for(lambda: state in (after for after, _ in way()), JOURNAL_SECONDS)
        return way()

    def render(self) -> RenderableType:
        """The board."""
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold", expand=True)
        table.add_column("", style="cyan", no_wrap=True)
        for host in HOSTS:
            table.add_column(f"host {host}", ratio=1, overflow="ellipsis", no_wrap=True)
        table.add_row("node", *map(self._state, HOSTS))
        table.add_row("why", *map(self._reason, HOSTS))
        table.add_row("VM", *map(self._vm, HOSTS))
        table.add_row("disk", *map(self._disk, HOSTS))
        return Group(table, self._clients())

    # ------------------------------------------------------------------ inside

    async def _ask(self, host: Host) -> None:
        while True:
            status: Mapping[str, Any] | None = None
            with contextlib.suppress(TestbedError):
                status = await self._bed.ask(host, "status", deadline=_STATUS_SECONDS)
            self._statuses[host] = status
            self._tell_copied()
            await asyncio.sleep(_POLL_SECONDS)

    def _copied(self) -> tuple[int, int] | None:
        """Of a disk that is being copied now: bytes that are there, and all of it."""
        for status in self._statuses.values():
            for disk in listed(status.get("disks")) if status is not None else []:
                resync = disk.get("resync")
                if isinstance(resync, Mapping) and resync.get("total"):
                    return min(resync["offset"], resync["total"]), resync["total"]
        return None

    def _tell_copied(self) -> None:
        """Each quarter of a disk, for those who have no live screen."""
        copied = None if self._view.live else self._copied()
        if copied is None:
            self._quarter = 0
            return
        done, total = copied
        quarter = done * _QUARTERS // total
        if quarter > self._quarter:
            self._quarter = quarter
            self._view.note("disk", f"{done / total:.0%} of {size(total)} copied")

    def _teller(self, host: Host) -> Any:
        def tell(record: Record) -> None:
            if line := _words(record):
                self._view.note(host, line)

        return tell

    def _clients(self) -> Text:
        """What they have done so far, and for how long one of them has heard nothing."""
        words: list[str] = []
        silence = 0.0
        for moving in self.traffic.moving() if self.traffic is not None else []:
            words.append(f"{moving.kind} {moving.bytes / 1e6:.1f} of {moving.size / 1e6:.0f} MB")
            silence = max(silence, moving.stalled or 0.0)
        if self.log is not None:
            words.append(f"write log {self.log.acknowledged:,} records")
            silence = max(silence, self.log.stalled)
        style = "bold red" if silence >= _SILENCE_SECONDS else "bold green"
        text = Text.assemble(("clients  ", "cyan"), ", ".join(words) or "none yet")
        return text.append(f"  silent for {silence:.2f} s", style) if words else text

    def _state(self, host: Host) -> Text:
        status = self._statuses[host]
        if host == self.dead:
            return Text("dead", "bold red")
        if status is None:
            return Text("no answer", "dim")
        text = Text(*state_text(status.get("state")))
        return text.append(f"  {plain(status.get('role'))}, generation {plain(status.get('generation'))}", "dim")

    def _reason(self, host: Host) -> Text:
        status = self._statuses[host]
        return Text("kill -9" if host == self.dead else plain(status.get("reason")) if status else "")

    def _vm(self, host: Host) -> Text:
        status = self._statuses[host] or {}
        vm = status.get("vm")
        if host == self.dead or not isinstance(vm, Mapping):
            return Text("-", "dim")
        text = Text(plain(vm.get("state")))
        if "checkpoints" in vm:
            text.append(f"  {vm['checkpoints']:,} checkpoints")
        comparator = vm.get("comparator")
        if isinstance(comparator, Mapping):
            released = comparator.get("released", {})
            text.append(
                f", {released.get('matched', 0):,} frames equal, {released.get('committed', 0):,} by checkpoint"
            )
        return text

    def _disk(self, host: Host) -> Text:
        status = self._statuses[host] or {}
        for disk in listed(status.get("disks")) if host != self.dead else []:
            copied = self._copied() if disk.get("resync") else None
            if copied is not None:
                share = copied[0] / copied[1]
                return Text(f"to the other host {'#' * int(share * _BAR):.<{_BAR}} {share:.0%} of {size(copied[1])}")
            return Text(plain(disk.get("state")))
        return Text("-", "dim")


def _is_step(record: Record) -> bool:
    """A record of a node that has gone to another state, or has another place in the pair."""
    return "standing" in record and "generation" in record


def _words(record: Record) -> str:
    if _is_step(record):
        before, after = record["before"], record["after"]
        return f"{after if after == before else f'{before} -> {after}'}: {record['reason']}"
    if record.get("event") == "took-over":
        return f"the network is this host's now: {record['addresses']} addresses announced"
    return describe(record) if record.get("event") in _TOLD else ""
