# SPDX-License-Identifier: Apache-2.0
"""Reviving QEMU's deaf filter-redirector, against a real QEMU with a real netdev."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from qemu_process import Qemu, monitor, needs_qemu

from coloproxy.address import PeerSource, parse_address
from coloproxy.errors import QmpError
from coloproxy.redirector import Chardev, Peer, Redirector, objects, recreation, revive

TCP = Peer(local=("127.0.0.1", 7003), remote=("127.0.0.1", 50000))
TCP6 = Peer(local=("::1", 7003), remote=("::1", 50000))
UNIX = Peer(path="/run/o")

FILENAMES = [
    ("tcp:127.0.0.1:50000 <-> 127.0.0.1:7003", TCP, True),
    ("tcp:127.0.0.1:50000,server=on <-> 127.0.0.1:7003", TCP, True),
    ("tcp:127.0.0.1:50001 <-> 127.0.0.1:7003", TCP, False),
    ("disconnected:tcp:127.0.0.1:7003", TCP, False),
    ("unix:", TCP, False),
    ("tcp:[::1]:50000 <-> [::1]:7003", TCP6, True),
    ("tcp:[::1]:50000 <-> [::1]:7003", TCP, False),
    ("unix:", UNIX, True),  # QEMU knows no name of a client's end
    ("unix:/run/o,server=on", UNIX, True),
    ("unix:/run/other,server=on", UNIX, False),
    ("disconnected:unix:/run/o", UNIX, False),
    ("tcp:127.0.0.1:50000 <-> 127.0.0.1:7003", UNIX, False),
    ("tcp:127.0.0.1:50000 <-> 127.0.0.1:7003", Peer(), False),
    ("null", UNIX, False),
    ("", UNIX, False),
]


@pytest.mark.parametrize(("filename", "peer", "expected"), FILENAMES)
def test_whose_connection_a_chardev_has(filename: str, peer: Peer, expected: bool) -> None:
    assert Chardev("x", filename, False).may_be(peer) is expected


def make(ident: str, **more: Any) -> Redirector:
    values: dict[str, Any] = {
        "indev": "",
        "outdev": "",
        "netdev": "hn0",
        "queue": "rx",
        "position": "tail",
        "insert": "behind",
        "status": "on",
        "vnet_hdr_support": False,
    }
    return Redirector(ident=ident, **(values | more))


IN = make("redire0", indev="compare_out")
OUT = make("redire1", outdev="compare0")

PLACES = [
    ("before the one that takes output", IN, [IN, OUT], ("id=redire1", "before")),
    ("not another netdev's", IN, [IN, make("r", outdev="x", netdev="hn1")], ("tail", "behind")),
    ("not another queue's", IN, [IN, make("r", outdev="x", queue="tx")], ("tail", "behind")),
    ("a queue that contains it", IN, [IN, make("r", outdev="x", queue="all")], ("id=r", "before")),
    ("nobody else", make("r", indev="c", position="head", insert="before"), [], ("head", "before")),
    (
        "where it was told to be",
        make("r", indev="c", position="id=rew0", insert="before"),
        [OUT],
        ("id=rew0", "before"),
    ),
    ("told to be at one that is gone", make("r", indev="c", position="id=x", insert="before"), [], ("tail", "before")),
]


@pytest.mark.parametrize(("found", "others", "place"), [row[1:] for row in PLACES], ids=[row[0] for row in PLACES])
def test_its_place(found: Redirector, others: list[Redirector], place: tuple[str, str]) -> None:
    arguments = recreation(found, others, {"redire0", "redire1", "rew0", "r"})
    assert (arguments["position"], arguments["insert"]) == place


def test_its_properties() -> None:
    found = make("r", indev="c", status="off", vnet_hdr_support=True, queue="all")
    assert recreation(found, [], set()) == {
        "qom-type": "filter-redirector",
        "id": "r",
        "netdev": "hn0",
        "queue": "all",
        "indev": "c",
        "status": "off",
        "vnet_hdr_support": True,
        "position": "tail",
        "insert": "behind",
    }


# ------------------------------------------------------------- a real QEMU


class Bed:
    """A QEMU whose netdev's other end and whose redirector's peer are we."""

    def __init__(self, directory: Path, outdev: str) -> None:
        self.directory = directory
        self.source = PeerSource(parse_address(outdev), "--outdev")
        self.stack = contextlib.AsyncExitStack()

    async def start(self, *extra: str) -> None:
        await self.source.open()
        self.stack.callback(self.source.close)
        where = parse_address(self.source.bound()[0])
        target = f"path={where.path}" if where.is_unix else f"host={where.host},port={where.port}"
        # the net's other end: a hub would do for the filters, but shows no frames
        self.net = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.stack.callback(self.net.close)
        self.net.bind(str(self.directory / "net"))
        self.net.setblocking(False)
        netdev = (
            f"dgram,id=hn0,local.type=unix,local.path={self.directory}/qemu-net,"
            f"remote.type=unix,remote.path={self.directory}/net"
        )
        self.qemu = self.stack.enter_context(
            Qemu(
                self.directory,
                # a running machine with a network card, or nothing would pass the filters; its BIOS finds nothing to do
                *("-m", "16", "-accel", "tcg"),
                *("-netdev", netdev, "-device", "e1000,netdev=hn0,romfile="),
                *("-chardev", f"socket,id=compare_out,{target},reconnect=1"),
                *("-chardev", "null,id=compare0"),
                *("-object", "filter-redirector,id=redire0,netdev=hn0,queue=rx,indev=compare_out"),
                *("-object", "filter-redirector,id=redire1,netdev=hn0,queue=rx,outdev=compare0"),
                *extra,
                machine="pc",
            )
        )
        self.link = await self.stack.enter_async_context(monitor(self.qemu))

    async def execute(self, name: str, arguments: Mapping[str, object]) -> object:
        return await self.link.execute(name, arguments or None)

    async def peer(self) -> tuple[socket.socket, Peer]:
        sock = await self.source.next()
        if sock.family == socket.AF_UNIX:
            return sock, Peer(path=str(sock.getsockname()))
        return sock, Peer(local=sock.getsockname()[:2], remote=sock.getpeername()[:2])

    async def chain(self) -> list[str]:
        """The filters in the order of QEMU's list."""
        text = await self.execute("human-monitor-command", {"command-line": "info network"})
        return re.findall(r"- (\w+): type=filter", str(text))

    async def released(self, sock: socket.socket, frame: bytes) -> bytes:
        """What the net gets when `frame` is released through outdev."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, len(frame).to_bytes(4, "big") + frame)
        async with asyncio.timeout(20):
            return await loop.sock_recv(self.net, 2000)


@contextlib.asynccontextmanager
async def bed(directory: Path, outdev: str, *extra: str) -> AsyncIterator[Bed]:
    made = Bed(directory, outdev)
    async with made.stack:
        await made.start(*extra)
        yield made


FRAME = bytes(12) + b"\x88\xb5" + bytes(range(60))


@needs_qemu
@pytest.mark.parametrize("outdev", ["127.0.0.1:0", "[::1]:0", "unix:{}/out"])
@pytest.mark.parametrize("ident", [None, "redire0"])
async def test_a_deaf_redirector_hears_again(tmp_path: Path, outdev: str, ident: str | None) -> None:
    async with bed(tmp_path, outdev.format(tmp_path)) as made:
        sock, peer = await made.peer()
        assert await revive(made.execute, peer, ident) is None  # all is well
        assert await made.released(sock, FRAME) == FRAME
        sock.close()

        sock, peer = await made.peer()  # QEMU has come back, deaf
        before = await made.chain()
        waiting = asyncio.create_task(made.released(sock, FRAME))
        assert await revive(made.execute, peer, ident) == "redire0"
        assert await waiting == FRAME  # what was written meanwhile is not lost
        assert await made.chain() == before == ["redire0", "redire1"]
        assert await revive(made.execute, peer, ident) is None
        sock.close()

        sock, peer = await made.peer()  # and again, with the place it has now
        assert await revive(made.execute, peer, ident) == "redire0"
        assert await made.released(sock, FRAME) == FRAME
        assert await made.chain() == ["redire0", "redire1"]
        sock.close()


@needs_qemu
async def test_properties_survive_in_a_real_qemu(tmp_path: Path) -> None:
    extra = ["-object", "filter-redirector,id=other,netdev=hn0,queue=tx,outdev=nul,position=head,insert=before"]
    async with bed(tmp_path, "127.0.0.1:0", "-chardev", "null,id=nul", *extra) as made:
        (await made.peer())[0].close()
        sock, peer = await made.peer()
        await revive(made.execute, peer)
        found, _ = await objects(made.execute)
        (ours,) = [redirector for redirector in found if redirector.ident == "redire0"]
        assert ours == make("redire0", indev="compare_out", position="id=redire1", insert="before")
        assert await made.chain() == ["other", "redire0", "redire1"]
        sock.close()


@needs_qemu
async def test_a_stranger_at_outdev_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coloproxy.redirector.LOOKS", 2)
    async with bed(tmp_path, "127.0.0.1:0") as made:
        (await made.peer())[0].close()
        sock, _ = await made.peer()
        assert await revive(made.execute, Peer(local=("127.0.0.1", 1), remote=("127.0.0.1", 2))) is None
        sock.close()


@needs_qemu
async def test_a_name_that_qemu_does_not_know(tmp_path: Path) -> None:
    async with bed(tmp_path, "127.0.0.1:0") as made:
        sock, peer = await made.peer()
        with pytest.raises(QmpError, match="--out-redirector: QEMU has no filter-redirector 'nobody'"):
            await revive(made.execute, peer, "nobody")
        sock.close()


async def test_two_deaf_ones_that_may_be_ours() -> None:
    async def execute(name: str, arguments: Mapping[str, object]) -> object:
        if name == "query-chardev":
            return [{"label": label, "filename": "unix:", "frontend-open": False} for label in ("a", "b")]
        if name == "qom-list":
            return [{"name": ident, "type": "child<filter-redirector>"} for ident in ("r0", "r1")]
        assert name == "qom-get"
        return {"indev": "a" if str(arguments["path"]).endswith("r0") else "b"}.get(str(arguments["property"]), "")

    with pytest.raises(QmpError, match=r"several redirectors are deaf and may be ours \(r0, r1\): name it"):
        await revive(execute, UNIX)


async def test_one_that_cant_be_added_again_is_told_with_its_command() -> None:
    async def execute(name: str, arguments: Mapping[str, object]) -> object:
        if name == "query-chardev":
            return [{"label": "a", "filename": "unix:", "frontend-open": False}]
        if name == "qom-list":
            return [{"name": "r0", "type": "child<filter-redirector>"}]
        if name == "object-add":
            raise QmpError("object-add: no")
        return {"indev": "a"}.get(str(arguments.get("property")), "")

    with pytest.raises(QmpError, match=r"object-add: no; the redirector 'r0' is gone now and the guest mute: add it"):
        await revive(execute, UNIX)
