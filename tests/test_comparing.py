# SPDX-License-Identifier: Apache-2.0
"""The comparator as a part of another program: what it does for that one beyond `coloproxy compare`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from test_compare_cli import DEADLINE, FakeQemu, Wire, frame

from coloproxy.address import Address
from coloproxy.comparing import Comparing, _set_silence
from coloproxy.engine import EngineCounters
from coloproxy.engine_events import Port
from coloproxy.errors import MisuseError
from coloproxy.events import Mode
from coloproxy.journal import Journal
from coloproxy.options import CompareOptions
from coloproxy.reports import Alone, Protected, QmpConnected, Report, Trouble

PLACES = {Port.PRIMARY_IN: "p", Port.SECONDARY_IN: "s", Port.OUTDEV: "o"}


class Bed:
    """One comparator, its peers, and the primary's QMP, which the test speaks."""

    def __init__(self, directory: Path, qemu: FakeQemu) -> None:
        self.directory = directory
        self.qemu = qemu
        self.reports: list[Report] = []
        self.failures: list[str] = []
        self.wires: dict[Port, Wire] = {}

    def options(self) -> CompareOptions:
        primary, secondary, out = (Address(False, path=str(self.directory / name)) for name in PLACES.values())
        qmp = Address(True, path=str(self.qemu.path))
        return CompareOptions(primary, secondary, out, qmp=qmp, out_redirector="none")

    async def begin(self, *, hold_when_over: bool, in_colo: bool) -> None:
        self.comparing = Comparing(
            self.options(),
            Journal(None),
            self.reports.append,
            self.failures.append,
            hold_when_over=hold_when_over,
            in_colo=in_colo,
        )
        await self.comparing.open()
        self.comparing.start()
        for port, name in PLACES.items():
            self.wires[port] = await Wire.to(self.directory / name)
            async with asyncio.timeout(DEADLINE):
                await self.comparing.until_connected(port)

    async def told(self, kind: type[Report]) -> None:
        await self.until(lambda _: any(isinstance(report, kind) for report in self.reports))

    async def until(self, condition: Callable[[EngineCounters], bool]) -> None:
        end = time.monotonic() + DEADLINE
        while not condition(self.comparing.counters()):
            assert time.monotonic() < end, (self.reports, self.comparing.counters())
            await asyncio.sleep(0.001)

    async def held(self, text: str, frames: int = 1) -> None:
        """The primary says that, and it is held."""
        self.wires[Port.PRIMARY_IN].send(frame(text))
        await self.until(lambda n: n.comparator.held_frames[0] == frames)

    async def released(self, text: str) -> None:
        assert await self.wires[Port.OUTDEV].receive() == frame(text)


@contextlib.asynccontextmanager
async def bed(
    directory: Path, *, colo: bool = False, hold_when_over: bool = True, in_colo: bool = False
) -> AsyncIterator[Bed]:
    qemu = FakeQemu(directory / "qmp")
    qemu.migration = "colo" if colo else "none"
    await qemu.start()
    made = Bed(directory, qemu)
    try:
        await made.begin(hold_when_over=hold_when_over, in_colo=in_colo)
        await made.told(QmpConnected)
        yield made
        assert made.failures == []
    finally:
        for wire in made.wires.values():
            wire.close()
        await made.comparing.stop(0.0)
        made.comparing.close()
        qemu.stop()


@pytest.mark.parametrize("hold", [False, True])
async def test_whether_the_end_of_colo_lets_all_go(hold: bool, tmp_path: Path) -> None:
    """For `coloproxy compare` it does; for a node only its own word, when it knows that the secondary doesn't go on."""
    async with bed(tmp_path, hold_when_over=hold) as made:
        made.wires[Port.PRIMARY_IN].send(frame("before"))  # there is no secondary yet
        await made.released("before")
        made.qemu.enter_colo()
        await made.told(Protected)
        await made.held("one")
        made.qemu.migration = "none"
        made.qemu.event("COLO_EXIT", mode="primary", reason="error")
        await made.told(Trouble if hold else Alone)
        if hold:
            await made.until(lambda n: n.comparator.mode is Mode.STOPPED)
            await made.held("two", 2)
            made.comparing.alone()
            await made.released("one")
            await made.released("two")
        else:
            await made.released("one")
        made.qemu.event("COLO_EXIT", mode="primary", reason="request")  # once more, after the word
        made.wires[Port.PRIMARY_IN].send(frame("three"))
        await made.released("three")


@pytest.mark.parametrize("in_colo", [False, True])
async def test_a_pair_whose_colo_ended_while_nobody_looked(in_colo: bool, tmp_path: Path) -> None:
    async with bed(tmp_path, in_colo=in_colo) as made:
        assert not made.comparing.protected()
        if in_colo:
            await made.held("one")
            made.comparing.alone()
        else:
            made.wires[Port.PRIMARY_IN].send(frame("one"))
        await made.released("one")


async def test_a_lease_is_that_of_the_next_engine_too(tmp_path: Path) -> None:
    """The primary's QEMU dies: what follows is another engine, and must not speak either."""
    async with bed(tmp_path) as made:
        made.comparing.lease(0)
        made.qemu.stop()
        made.wires[Port.PRIMARY_IN].close()
        await made.until(lambda n: n.attached == (0, 0, 0))
        await made.qemu.start()
        made.wires[Port.PRIMARY_IN] = await Wire.to(tmp_path / "p")
        made.wires[Port.OUTDEV] = await Wire.to(tmp_path / "o")
        made.wires[Port.PRIMARY_IN].send(frame("one"))
        await made.until(lambda n: n.lease_waits == 1)
        made.comparing.lease(None)
        await made.released("one")


async def test_a_checkpoint_needs_a_secondary(tmp_path: Path) -> None:
    async with bed(tmp_path) as made:
        with pytest.raises(MisuseError, match="not protected"):
            made.comparing.want("the test's")
        made.qemu.enter_colo()
        await made.told(Protected)
        made.comparing.want("the test's")
        assert "x-checkpoint-delay" in await made.qemu.request()


def test_how_long_a_secondarys_host_may_be_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        for limit, count in ((50_000_000, 1), (2_000_000_000, 1), (2_000_000_001, 2), (5_000_000_000, 4)):
            _set_silence(sock, limit)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == count
    with socket.socket(socket.AF_UNIX) as sock:
        _set_silence(sock, 1)  # of no effect
