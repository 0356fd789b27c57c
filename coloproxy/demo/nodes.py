# SPDX-License-Identifier: Apache-2.0
"""The whole life of a pair: `coloproxy node` on two hosts, of which first the primary's dies, then the secondary's."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from coloproxy.control.view import size
from coloproxy.demo.acts import DIFFERENT, DemoOptions, Summary, ask_what_differs, expect
from coloproxy.demo.nodes_board import NodesBoard
from coloproxy.demo.view import View
from coloproxy.testbed.errors import TestbedError
from coloproxy.testbed.node_bed import NodeBed, NodeOptions
from coloproxy.testbed.node_net import HOSTS, Host, other
from coloproxy.testbed.node_toml import NodeFile, etcd_arbiter
from coloproxy.testbed.node_traffic import Kept, Traffic, WriteLog
from coloproxy.testbed.programs import fetch_program

_FIRST: Final[Host] = "a"
_DEATH_AT: Final = 0.3  # of each transfer
_DEADLINE: Final = 60.0
_PROTECTED_DEADLINE: Final = 120.0
_PATIENCE: Final = 30.0
_RESYNC_SPEED: Final = "128MiB"  # a second; the copying is to be seen


async def play_nodes(options: DemoOptions, view: View, summary: Summary) -> None:
    """From two hosts and an image to the examination of the disk. Raises DemoError, TestbedError."""
    etcd = options.etcd and await _has_etcd(view)
    view.step("two hosts (network namespaces), clients, and a disk image on host a")
    bed_options = NodeOptions(
        nic=options.nic,
        file=NodeFile(
            node={"arbiter": _arbiter(etcd=etcd), **({} if options.fast else {"resync_speed": _RESYNC_SPEED})}
        ),
        arbiter=etcd,
        large_bytes=8_000_000 if options.fast else 32_000_000,
        disk_mebibytes=32 if options.fast else 96,
        allow_kvm=options.allow_kvm,
        keep_logs=options.keep_logs,
    )
    async with NodeBed(bed_options) as bed:
        view.done(f"{size(bed.disk.virtual_bytes)} of ext4, {bed.acceleration.name.upper()}")
        async with _watched(NodesBoard(bed, view), view) as board:
            upload = 5_000_000 if options.fast else 20_000_000
            await _Life(bed, board, view, summary, etcd=etcd, upload_bytes=upload).run()


async def _has_etcd(view: View) -> bool:
    view.step("etcd, who says who goes on when the hosts have lost each other")
    try:
        path = await asyncio.to_thread(fetch_program, "etcd")
    except TestbedError as error:
        view.done(f"can't be had here ({error}): the demo plays the operator who decides")
        return False
    view.done(str(path))
    return True


def _arbiter(*, etcd: bool) -> dict[str, Any]:
    if not etcd:
        return {"kind": "none", "on_partition": "primary"}
    return etcd_arbiter()


@contextlib.asynccontextmanager
async def _watched(board: NodesBoard, view: View) -> AsyncIterator[NodesBoard]:
    view.board = board.render
    task = asyncio.create_task(board.run())
    try:
        yield board
    finally:
        view.board = None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class _Life:
    def __init__(
        self, bed: NodeBed, board: NodesBoard, view: View, summary: Summary, *, etcd: bool, upload_bytes: int
    ) -> None:
        self.bed = bed
        self.board = board
        self.view = view
        self.summary = summary
        self.etcd = etcd
        self.upload_bytes = upload_bytes

    async def run(self) -> None:
        await self._begin()
        log = self.board.log = await self.bed.write_log("demo")
        await ask_what_differs(self.view, self.bed.client, self.board.journals[_FIRST], f"host-{_FIRST}", self.summary)
        survivor = other(_FIRST)
        self.view.explain("The primary's host dies: all that runs there gets a SIGKILL.")
        await self._death(_FIRST, survivor, log)
        page = (await self.bed.client.get(DIFFERENT)).decode()
        expect(f"host: host-{survivor}\n" in page, f"it is not host {survivor} that answers")
        await self._return(_FIRST, survivor)
        self.view.explain(
            "And once more, the secondary's host this time. Nothing to take over, but nobody to wait for."
        )
        await self._death(_FIRST, survivor, log)
        await self._return(_FIRST, survivor)
        await self._examine(survivor, log)

    async def _begin(self) -> None:
        view, bed = self.view, self.bed
        view.explain("One command on each host. Nothing else is typed from here on.")
        for host in HOSTS:
            view.explain(f"    host {host} # coloproxy node -c pair.toml --host {host}")
        view.step("from the image to a protected VM")
        begun = time.monotonic()
        for host in HOSTS:
            await bed.start_node(host)
        primary = await bed.protected(_PROTECTED_DEADLINE)
        took = f"{time.monotonic() - begun:.1f} s"
        await self._paired(primary, begun)
        expect(primary == _FIRST, f"host {primary} is the primary, but the image was on host {_FIRST}")
        view.done(f"protected after {took}: host {primary} primary, host {other(primary)} secondary")
        self.summary.add("from an image to a protected VM", f"{took}, one command a host")
        view.step("the guest boots, protected already, and mounts its disk")
        await bed.serves(_DEADLINE)
        view.done("its web server and its write log answer")

    async def _death(self, victim: Host, survivor: Host, log: WriteLog) -> None:
        """Of a host under load; the other one goes on."""
        view, bed, board = self.view, self.bed, self.board
        was_primary = await bed.protected(_PROTECTED_DEADLINE) == victim
        role = "primary" if was_primary else "secondary"
        log.longest_stall = 0.0
        traffic = board.traffic = bed.traffic(f"demo {role}")
        view.step(f"a download, an upload and a write log; at {_DEATH_AT:.0%} host {victim} dies")
        await traffic.start(upload_bytes=self.upload_bytes)
        await traffic.reached(_DEATH_AT, _DEADLINE)
        processes = len(bed.processes[victim].pids())
        killed = await bed.kill_host(victim)
        board.dead = victim
        view.done(f"kill -9 of its {processes} processes, coloproxy and QEMU")
        view.step(f"host {survivor} is to go on alone")
        if was_primary and not self.etcd:
            await bed.until_state(survivor, {"claim"}, _DEADLINE)
            reason = "the demo has switched the other host off itself"
            view.note("operator", f"coloproxy ctl failover --force: {reason}")
            await bed.ask(survivor, "failover", force=True, reason=reason)
        await bed.until_state(survivor, {"alone"}, _DEADLINE)
        alone = time.monotonic() - killed
        way = await board.told(survivor, "alone", killed)
        view.done(", ".join(f"{state} after {seconds:.2f} s" for state, seconds in way))
        await self._transfers(traffic, log, f"the {role}'s host killed", alone)

    async def _transfers(self, traffic: Traffic, log: WriteLog, what: str, alone: float) -> None:
        view = self.view
        view.step("the transfers go on, each on its TCP connection")
        outcomes = await traffic.finish(_PATIENCE)
        self.board.traffic = None
        await log.reached(log.acknowledged + 2, _DEADLINE)
        expect(all(kept.kept for kept in outcomes), "; ".join(f"{kept.kind}: {kept.text}" for kept in outcomes))
        stalls = f"{_stalls(outcomes)}, a record {log.longest_stall:.2f} s"
        view.done(f"right checksums; longest silence: {stalls}")
        self.summary.add(what, f"alone after {alone:.2f} s; clients heard nothing for: {stalls}; right checksums")

    async def _return(self, victim: Host, survivor: Host) -> None:
        """The host is back, its disk is copied, the pair protected again."""
        view, bed, board = self.view, self.bed, self.board
        begun = time.monotonic()
        view.step(f"host {victim} is back, its disk out of date")
        board.dead = None
        await bed.boot_host(victim)
        primary = await bed.protected(_PROTECTED_DEADLINE)
        took = f"{time.monotonic() - begun:.1f} s"
        await self._paired(primary, begun)
        expect(primary == survivor, f"host {survivor} went on, but {primary} is the primary now")
        view.done(f"disk copied, protected again after {took}: host {primary} primary, host {victim} secondary")
        self.summary.add(f"host {victim} came back", f"protected again after {took}; host {primary} is the primary")

    async def _paired(self, primary: Host, since: float) -> None:
        """Until both journals have it too: what the nodes say comes before what the demo says."""
        await self.board.told(primary, "protected", since)
        await self.board.told(other(primary), "standby", since)

    async def _examine(self, primary: Host, log: WriteLog) -> None:
        view, bed = self.view, self.bed
        view.step("switching all off, and looking at the disk without any VM")
        counted = await log.end(_DEADLINE)
        owners = (await bed.watch.seen()).faults([_FIRST, primary])
        for host in HOSTS:
            await bed.kill_host(host)
        found = await bed.verify(primary, [counted])
        expect(not owners, "; ".join(owners))
        expect(found.intact, f"host {primary}'s disk: {found}")
        records = found.logs[log.name].found
        view.done(f"file system clean, all {records:,} acknowledged records there, in order")
        self.summary.add("the disk in the end", f"file system clean; write log complete, {records:,} records")
        self.summary.add("the write log's TCP connection", "one, from the first record to the last")
        self.summary.add("two primaries at once", "never, as the clients' switch has seen each frame")


def _stalls(outcomes: Sequence[Kept]) -> str:
    return ", ".join(f"{kept.kind} {kept.stall:.2f} s" for kept in outcomes)
