# SPDX-License-Identifier: Apache-2.0
"""ADDR: what is accepted, what is refused and how, and the sockets that come of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloproxy.address import Address, PeerSource, connect_once, parse_address
from coloproxy.errors import AddressError

GOOD = [
    ("127.0.0.1:9001", Address(False, "127.0.0.1", 9001)),
    ("host.example:1", Address(False, "host.example", 1)),
    (":9001", Address(False, "", 9001)),
    ("127.0.0.1:0", Address(False, "127.0.0.1", 0)),
    ("[::1]:9001", Address(False, "::1", 9001)),
    ("[fe80::1%eth0]:65535", Address(False, "fe80::1%eth0", 65535)),
    ("unix:/run/a b", Address(False, path="/run/a b")),
    ("unix:relative", Address(False, path="relative")),
    ("unix:connect:x", Address(False, path="connect:x")),
    ("connect:127.0.0.1:9001", Address(True, "127.0.0.1", 9001)),
    ("connect:[::1]:9001", Address(True, "::1", 9001)),
    ("connect:unix:/run/x", Address(True, path="/run/x")),
    ("unix:" + "x" * 107, Address(False, path="x" * 107)),
]


@pytest.mark.parametrize(("text", "address"), GOOD)
def test_accepted(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text
    assert parse_address(str(address)) == address


BAD = [
    ("", "the port is missing"),
    ("localhost", "the port is missing"),
    ("localhost:", "the port is missing"),
    ("localhost:http", "'http' is not a port number"),
    ("localhost:-1", "'-1' is not a port number"),
    ("localhost:٣", "is not a port number"),
    ("localhost:65536", "at most 65535"),
    ("::1:9001", "needs brackets"),
    ("[::1:9001", "] is missing"),
    ("[::1]", "the port is missing"),
    ("[::1]9001", "the port is missing"),
    ("[localhost]:1", "brackets are for IPv6"),
    ("tcp:127.0.0.1:1", "leave the tcp: out"),
    ("unix:", "the path is missing"),
    ("unix:" + "x" * 108, "longer than the 107 bytes"),
    ("unix:a\0b", "NUL"),
    ("connect::9001", "the host to connect to is missing"),
    ("connect:127.0.0.1:0", "port 0 can't be connected to"),
    ("connect:", "the port is missing"),
    ("a host:1", "a character that none can have"),
    ("127.0.0.1:9001,server=on", "is not a port number"),
]


@pytest.mark.parametrize(("text", "what"), BAD)
def test_refused_with_the_options_name_and_the_reason(text: str, what: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_address(text, "--primary-in")
    message = str(caught.value)
    assert message.startswith("--primary-in: ")
    assert what in message
    assert "\n" not in message


def test_where_only_connecting_makes_sense_it_is_implied() -> None:
    assert parse_address("unix:/q", may_listen=False) == Address(True, path="/q")
    assert parse_address("connect:unix:/q", may_listen=False) == Address(True, path="/q")
    with pytest.raises(AddressError):
        parse_address(":1", may_listen=False)


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        address = parse_address(text)
    except AddressError:
        return
    assert parse_address(str(address)) == address


# ------------------------------------------------------------------- sockets


@pytest.fixture
def sources() -> Iterator[list[PeerSource]]:
    made: list[PeerSource] = []
    yield made
    for source in made:
        source.close()


async def listening(sources: list[PeerSource], text: str) -> PeerSource:
    source = PeerSource(parse_address(text, "--outdev"), "--outdev")
    sources.append(source)
    await source.open()
    return source


def client(where: str) -> socket.socket:
    address = parse_address(where)
    family = socket.AF_UNIX if address.is_unix else socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family)
    sock.connect(address.path if address.is_unix else (address.host, address.port))
    return sock


@pytest.mark.parametrize("text", ["127.0.0.1:0", "[::1]:0", "unix:{}/s", ":0"])
async def test_peers_one_after_the_other(sources: list[PeerSource], tmp_path: Path, text: str) -> None:
    source = await listening(sources, text.format(tmp_path))
    where = source.bound()[0]
    first, second = client(where), client(where)
    first.sendall(b"first")
    second.sendall(b"second")  # waits in the backlog until we want it
    loop = asyncio.get_running_loop()
    for expected, sender in ((b"first", first), (b"second", second)):
        peer = await source.next()
        assert not peer.getblocking()
        assert await loop.sock_recv(peer, 10) == expected
        if not source.address.is_unix:
            assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000
            assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        peer.close()
        sender.close()


async def test_all_local_addresses_share_the_port(sources: list[PeerSource]) -> None:
    source = await listening(sources, ":0")
    ports = {parse_address(where).port for where in source.bound()}
    assert len(ports) == 1
    for host in ["127.0.0.1"] + ["[::1]"] * (len(source.bound()) - 1):
        with client(f"{host}:{ports.copy().pop()}"):
            (await source.next()).close()


async def test_waiting_can_be_cancelled(sources: list[PeerSource], tmp_path: Path) -> None:
    source = await listening(sources, f"unix:{tmp_path}/s")
    waiting = asyncio.create_task(source.next())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with client(f"unix:{tmp_path}/s"):
        (await source.next()).close()


async def test_a_stale_unix_socket_is_replaced_and_ours_removed(sources: list[PeerSource], tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as killed:  # closed without unlink, as by SIGKILL
        killed.bind(str(path))
    source = await listening(sources, f"unix:{path}")
    client(f"unix:{path}").close()
    source.close()
    assert not path.exists()
    source.close()


async def test_a_unix_socket_in_use_is_kept(sources: list[PeerSource], tmp_path: Path) -> None:
    await listening(sources, f"unix:{tmp_path}/s")
    with pytest.raises(AddressError, match=r"--outdev: .* is in use: another process listens there"):
        await listening(sources, f"unix:{tmp_path}/s")
    client(f"unix:{tmp_path}/s").close()


async def test_a_file_is_not_mistaken_for_a_stale_socket(sources: list[PeerSource], tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(AddressError, match="exists and is no socket"):
        await listening(sources, f"unix:{path}")
    assert path.read_text() == "data"


async def test_another_processs_socket_is_not_removed_at_the_end(sources: list[PeerSource], tmp_path: Path) -> None:
    path = tmp_path / "s"
    source = await listening(sources, f"unix:{path}")
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        source.close()
        assert path.exists()


async def test_a_port_in_use(sources: list[PeerSource]) -> None:
    source = await listening(sources, "127.0.0.1:0")
    with pytest.raises(AddressError, match=r"--outdev: can't listen on 127\.0\.0\.1:\d+: Address already in use"):
        await listening(sources, source.bound()[0])


@pytest.mark.parametrize("text", ["192.0.2.77:1", "unix:/nonexistent/s"])
async def test_what_cant_be_bound(sources: list[PeerSource], text: str) -> None:
    with pytest.raises(AddressError, match=r"--outdev: can't listen on "):
        await listening(sources, text)


async def test_a_name_that_does_not_resolve(sources: list[PeerSource]) -> None:
    with pytest.raises(AddressError, match="can't resolve"):
        await listening(sources, "no-such-host.invalid:1")


async def test_connecting_is_tried_until_it_works(
    sources: list[PeerSource], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    connector = PeerSource(parse_address(f"connect:unix:{tmp_path}/s"), "--outdev")
    await connector.open()
    assert connector.bound() == []
    told = asyncio.Event()
    caplog.handler.addFilter(lambda _: told.set() or True)
    waiting = asyncio.create_task(connector.next())
    await told.wait()
    source = await listening(sources, f"unix:{tmp_path}/s")
    peer = await source.next()
    ours = await waiting
    await asyncio.get_running_loop().sock_sendall(ours, b"x")
    assert await asyncio.get_running_loop().sock_recv(peer, 1) == b"x"
    assert [record.getMessage() for record in caplog.records] == [
        f"--outdev: can't connect to unix:{tmp_path}/s: No such file or directory; trying again"
    ]
    ours.close()
    peer.close()


async def test_connect_once_tells_why() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # not listening
        port = bound.getsockname()[1]
        with pytest.raises(AddressError, match=rf"--qmp: can't connect to 127\.0\.0\.1:{port}: Connection refused"):
            await connect_once(parse_address(f"connect:127.0.0.1:{port}"), "--qmp")


async def test_a_unix_listener_whose_queue_is_full_is_no_connection(tmp_path: Path) -> None:
    place = tmp_path / "full.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, contextlib.ExitStack() as held:
        listener.bind(str(place))
        listener.listen(0)
        address = parse_address(f"connect:unix:{place}", "--x")
        with pytest.raises(AddressError, match="can't connect"):
            for _ in range(8):  # none is accepted: the queue holds one or two
                held.enter_context(await connect_once(address, "--x"))


async def test_connects_from_the_address_that_is_wanted() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = parse_address(f"connect:127.0.0.1:{listener.getsockname()[1]}", "--x")
        with await connect_once(address, "--x", "127.0.0.7") as sock:
            assert sock.getsockname()[0] == "127.0.0.7"
