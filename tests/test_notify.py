# SPDX-License-Identifier: Apache-2.0
"""Xen's messages: whole, byte by byte, with trailing bytes, every truncation; and the port that speaks them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloproxy.address import PeerSource, parse_address
from coloproxy.errors import PeerError
from coloproxy.notify import Decoder, FromXen, NotifyPort, ToXen, encode

# As QEMU 7.2 puts them on the wire.
WIRE = [
    (b"\0\0\0\x19COLO_USERSPACE_PROXY_INIT", FromXen.INIT),
    (b"\0\0\0\x0fCOLO_CHECKPOINT", FromXen.CHECKPOINT),
    (b"\0\0\0\x10COLO_CHECKPOINT\0", b"COLO_CHECKPOINT\0"),  # QEMU compares without a NUL, too
    (b"\0\0\0\x0fCOLO_CHECKPOINX", b"COLO_CHECKPOINX"),
    (b"\0\0\0\0", b""),
]


def with_vnet(wire: bytes) -> bytes:
    return wire[:4] + b"\0\0\0\x0c" + wire[4:]


@pytest.mark.parametrize("vnet", [False, True])
@pytest.mark.parametrize(("wire", "message"), WIRE)
def test_decoding(wire: bytes, message: FromXen | bytes, vnet: bool) -> None:
    if vnet:
        wire = with_vnet(wire)
    assert Decoder(vnet_hdr=vnet).feed(wire) == [message]
    assert Decoder(vnet_hdr=vnet).feed(wire + wire + b"\0\0") == [message, message]
    decoder = Decoder(vnet_hdr=vnet)
    assert [found for byte in wire for found in decoder.feed(bytes([byte]))] == [message]
    for cut in range(len(wire)):
        decoder = Decoder(vnet_hdr=vnet)
        assert decoder.feed(wire[:cut]) == []
        assert decoder.feed(wire[cut:]) == [message]


def test_encoding_has_no_nul_and_no_vnet_word() -> None:
    assert encode(ToXen.DO_CHECKPOINT) == b"\0\0\0\x0dDO_CHECKPOINT"
    assert encode(ToXen.INIT_ANSWER) == b"\0\0\0\x19COLO_COMPARE_GET_XEN_INIT"


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"\xff" * 4, b"\0\0\x10\x01"])
def test_another_protocol(data: bytes) -> None:
    with pytest.raises(PeerError, match="not Xen's COLO frame"):
        Decoder().feed(data)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_decoded_or_refused(data: bytes, vnet: bool) -> None:
    with contextlib.suppress(PeerError):
        Decoder(vnet_hdr=vnet).feed(data)


@contextlib.asynccontextmanager
async def port(path: Path, flushed: list[str]) -> AsyncIterator[NotifyPort]:
    source = PeerSource(parse_address(f"unix:{path}"), "--notify-dev")
    await source.open()
    made = NotifyPort(source, lambda: flushed.append("commit"))
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        source.close()


async def test_a_conversation(tmp_path: Path) -> None:
    flushed: list[str] = []
    async with port(tmp_path / "n", flushed) as notify:
        assert not notify.ask()  # nobody there
        reader, writer = await asyncio.open_unix_connection(tmp_path / "n")
        writer.write(WIRE[0][0])
        answer = encode(ToXen.INIT_ANSWER)
        assert await reader.readexactly(len(answer)) == answer
        assert notify.ask()
        wish = encode(ToXen.DO_CHECKPOINT)
        assert await reader.readexactly(len(wish)) == wish
        writer.write(WIRE[1][0] + WIRE[3][0] + WIRE[1][0] + WIRE[0][0])
        assert await reader.readexactly(len(answer)) == answer
        assert flushed == ["commit", "commit"]
        writer.close()


async def test_a_peer_that_breaks_the_protocol_makes_room_for_the_next(tmp_path: Path) -> None:
    async with port(tmp_path / "n", []):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "n")
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        reader, writer = await asyncio.open_unix_connection(tmp_path / "n")
        writer.write(WIRE[0][0])
        assert await reader.readexactly(29) == encode(ToXen.INIT_ANSWER)
        writer.close()


async def test_a_peer_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    async with port(tmp_path / "n", []) as notify:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as peer:
            peer.setblocking(False)
            await loop.sock_connect(peer, str(tmp_path / "n"))
            await loop.sock_sendall(peer, WIRE[0][0])
            while len(await loop.sock_recv(peer, 1)) == 0:
                pass
            for _ in range(100_000):
                if not notify.ask():
                    break
            else:
                raise AssertionError("the socket never filled")
