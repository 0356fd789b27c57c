# SPDX-License-Identifier: Apache-2.0
"""Listener and Dialer over real sockets on loopback: who gets in, who doesn't, and what either costs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from coloproxy.address import Address, parse_address
from coloproxy.errors import LinkError, MisuseError
from coloproxy.path import session as session_module
from coloproxy.path.hello import LinkState, Nic, PrimaryHello, Us, encode
from coloproxy.path.refusals import INTERVAL_S, Kind, Refusals
from coloproxy.path.session import Connected, Dialer, Endpoint, Listener, backoff
from coloproxy.path.tls import Keys, Transport, read_psk

KEY = bytes(range(32))
NICS = (Nic("net0", 1500, True),)
LONG = 20.0  # seconds after which a test is stuck; nothing that passes waits for it


def keys(key: bytes = KEY, identity: str = "pair") -> Keys:
    return Keys.psk(identity, key)


@dataclass
class End:
    """One VM's end: remembers what it was told."""

    us: Us
    state: LinkState = field(default_factory=lambda: LinkState(None, 0, lambda _: False))
    got: asyncio.Queue[Connected] = field(default_factory=asyncio.Queue)
    log: list[str] = field(default_factory=list)
    current: Connected | None = None
    hold: asyncio.Event | None = None

    async def before_hello(self) -> None:
        self.log.append("before")
        if self.hold is not None:
            await self.hold.wait()
        if self.current is not None:
            self.current.transport.close()
            self.current = None

    def _state(self) -> LinkState:
        self.log.append("state")
        return self.state

    def _connected(self, connected: Connected) -> None:
        self.log.append("connected")
        self.current = connected
        self.got.put_nowait(connected)

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.us, self.before_hello, self._state, self._connected)

    async def next(self) -> Connected:
        async with asyncio.timeout(LONG):
            return await self.got.get()

    def close(self) -> None:
        if self.current is not None:
            self.current.transport.close()


def primary(vm: str = "vm1", pair: str = "web", nics: tuple[Nic, ...] = NICS) -> End:
    return End(Us(pair, vm, "primary", nics))


def secondary(vm: str = "vm1", pair: str = "web") -> End:
    return End(Us(pair, vm, "secondary", NICS))


class Bench:
    """A listener, and dialers that end with the test."""

    def __init__(self) -> None:
        self.listener: Listener
        self.where: Address
        self.tasks: list[asyncio.Task[Any]] = []
        self.sockets: list[socket.socket] = []
        self.ends: list[End] = []

    async def listen(self, use: Keys | None, *ends: End, **options: Any) -> None:
        self.ends += ends
        self.listener = Listener(parse_address("127.0.0.1:0"), use, [end.endpoint for end in ends], **options)
        await self.listener.start()
        self.where = parse_address("connect:" + self.listener.bound()[0])

    def dial(self, use: Keys | None, end: End, **options: Any) -> Dialer:
        self.ends.append(end)
        dialer = Dialer(self.where, use, end.endpoint, **options)
        self.tasks.append(asyncio.create_task(dialer.run()))
        return dialer

    async def stranger(self) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        self.sockets.append(sock)
        await asyncio.get_running_loop().sock_connect(sock, (self.where.host, self.where.port))
        return sock

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(LONG):
            while True:
                if true():
                    return
                await asyncio.sleep(0.002)

    async def refused(self, kind: Kind, count: int = 1) -> None:
        await self.until(lambda: self.listener.refusals.get(kind, 0) >= count)

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.listener.close()
        for end in self.ends:
            end.close()
        for sock in self.sockets:
            sock.close()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    await made.close()


async def at_end(sock: socket.socket) -> bytes:
    """What the other side says until it closes, in order or not."""
    said = b""
    async with asyncio.timeout(LONG):
        with contextlib.suppress(ConnectionResetError):
            while data := await asyncio.get_running_loop().sock_recv(sock, 65536):
                said += data
    return said


async def carries(one: Transport, other: Transport) -> None:
    async with asyncio.timeout(LONG):
        await one.send(b"ping")
        assert await other.receive(100) == b"ping"
        await other.send(b"pong")
        assert await one.receive(100) == b"pong"


async def meet(bench: Bench, p: End, s: End) -> tuple[Connected, Connected]:
    both = await p.next(), await s.next()
    assert both[0].session == both[1].session
    await carries(both[0].transport, both[1].transport)
    return both


# -------------------------------------------------------------- the right peer


@pytest.mark.parametrize("use", [True, False], ids=["psk", "plain"])
async def test_the_right_peer(bench: Bench, use: bool) -> None:
    p, s = primary(), secondary()
    await bench.listen(keys() if use else None, s)
    bench.dial(keys() if use else None, p)
    ours, theirs = await meet(bench, p, s)
    assert not ours.resumed
    assert not theirs.resumed
    assert (ours.peer_received, theirs.peer_received) == (0, 0)
    assert ours.peer == theirs.peer == ("pair" if use else "")
    assert ours.cipher == ("TLSv1.3 TLS_AES_128_GCM_SHA256" if use else "plain text")
    assert theirs.where.startswith("127.0.0.1:")
    assert p.log == s.log == ["before", "state", "connected"]
    assert not bench.listener.refusals
    assert bench.listener.pending == 0


async def test_bytes_behind_the_hello_stay_in_the_transport(bench: Bench) -> None:
    """The primary may write records right behind its decision: they are the link's, wherever they are buffered."""
    s = secondary()
    await bench.listen(keys(), s)
    sock = await bench.stranger()
    transport = Transport(sock, keys(), server=False)
    await transport.handshake()
    hello = PrimaryHello(primary().us, LinkState(None, 0, lambda _: False))
    await transport.send(hello.start())
    while not (step := hello.feed(await transport.receive(hello.want))).send:
        pass
    await transport.send(step.send + b"first record")
    connected = await s.next()
    assert await connected.transport.receive(100) == b"first record"
    transport.close()


async def test_resumption_and_replacement(bench: Bench) -> None:
    p, s = primary(), secondary()
    await bench.listen(keys(), s)
    dialer = bench.dial(keys(), p, chance=lambda: 0.0)
    first, _ = await meet(bench, p, s)
    p.state = LinkState(first.session, 300, lambda offset: offset == 500)
    s.state = LinkState(first.session, 500, lambda offset: offset == 300)
    # The secondary does not know that the old connection is dead: the same peer, proven anew, replaces it.
    dialer.redial()
    second, theirs = await meet(bench, p, s)
    assert second.session == first.session
    assert (second.resumed, second.peer_received) == (True, 500)
    assert (theirs.resumed, theirs.peer_received) == (True, 300)
    s.state = LinkState(first.session, 501, lambda offset: offset == 300)
    dialer.redial()
    third, theirs = await meet(bench, p, s)
    assert third.session != first.session
    assert (third.resumed, theirs.resumed, third.peer_received, theirs.peer_received) == (False, False, 0, 0)
    assert s.log == ["before", "state", "connected"] * 3


async def test_the_dialer_comes_back(bench: Bench) -> None:
    """No listener at first; then one that goes and comes again."""
    p, s = primary(), secondary()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    bench.where = parse_address(f"connect:127.0.0.1:{port}")
    dialer = bench.dial(keys(), p, chance=lambda: 0.0)
    await bench.until(lambda: dialer.refusals.get(Kind.CUT, 0) > 1)
    bench.listener = Listener(parse_address(f"127.0.0.1:{port}"), keys(), [s.endpoint])
    bench.ends.append(s)
    await bench.listener.start()
    await meet(bench, p, s)
    await bench.listener.close()
    failed = dialer.refusals[Kind.CUT]
    dialer.redial()
    await bench.until(lambda: dialer.refusals[Kind.CUT] > failed)
    bench.listener = Listener(parse_address(f"127.0.0.1:{port}"), keys(), [s.endpoint])
    await bench.listener.start()
    await meet(bench, p, s)


async def test_several_vms_share_a_listener(bench: Bench) -> None:
    ends = [(primary(vm, pair), secondary(vm, pair)) for vm, pair in (("vm1", "web"), ("vm2", "web"), ("vm1", "mail"))]
    await bench.listen(keys(), *(s for _, s in ends))
    for p, _ in reversed(ends):
        bench.dial(keys(), p)
    sessions = {(await meet(bench, p, s))[0].session for p, s in ends}
    assert len(sessions) == 3
    with pytest.raises(MisuseError):
        bench.listener.add(secondary().endpoint)
    await bench.listener.remove(ends[0][1].endpoint)
    late = primary()
    dialer = bench.dial(keys(), late)
    await bench.until(lambda: dialer.refusals.get(Kind.BY_PEER, 0) > 0)
    assert bench.listener.refusals[Kind.VM] > 0


# -------------------------------------------------------------- the wrong peer


@pytest.mark.parametrize(
    ("listens", "dials", "ours", "theirs"),
    [
        (keys(), keys(b"x" * 32), Kind.KEY, Kind.KEY),
        (keys(), keys(identity="other"), Kind.KEY, Kind.KEY),
        (keys(), None, Kind.PLAIN, None),  # the dialer sees an alert where a length should be, or a close
        (None, keys(), Kind.PLAIN, Kind.CUT),
    ],
    ids=["key", "identity", "plain text to TLS", "TLS to plain text"],
)
async def test_wrong_keys(bench: Bench, listens: Keys | None, dials: Keys | None, ours: Kind, theirs: Kind) -> None:
    p, s = primary(), secondary()
    await bench.listen(listens, s)
    dialer = bench.dial(dials, p)
    await bench.refused(ours)
    await bench.until(lambda: sum(dialer.refusals.values()) > 0)
    if theirs is not None:
        assert theirs in dialer.refusals
    assert s.log == []
    assert "connected" not in p.log
    if dials is not None:
        assert p.log == []  # the secondary has proved nothing


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (primary(pair="mail"), Kind.PAIR),
        (primary(vm="vm2"), Kind.VM),
        (secondary(), Kind.ROLE),
        (primary(nics=()), Kind.NICS),
    ],
    ids=["pair", "vm", "role", "nics"],
)
async def test_wrong_hello(bench: Bench, end: End, kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    s = secondary()
    await bench.listen(keys(), s)
    dialer = bench.dial(keys(), end)
    await bench.until(lambda: dialer.refusals.get(Kind.BY_PEER, 0) > 0)
    assert bench.listener.refusals[kind] > 0
    assert s.log == []  # an established connection would not have noticed
    lines = {record.getMessage().partition(": refused: ")[2] for record in caplog.records}
    assert len(lines) == 1  # both sides say the same


async def test_unreadable_state_does_not_end_the_listener(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    s, p = secondary(), primary()
    await bench.listen(keys(), s)
    s.state = None  # type: ignore[assignment]
    dialer = bench.dial(keys(), p, chance=lambda: 0.0)
    await bench.until(lambda: dialer.refusals.get(Kind.CUT, 0) > 0)
    s.state = LinkState(None, 0, lambda _: False)
    await meet(bench, p, s)
    assert "the hello failed" in caplog.text


def run_commands(name: str, directory: Path) -> None:
    """The commands of that name in docs/link.md."""
    text = (Path(__file__).parent.parent / "docs" / "link.md").read_text(encoding="utf-8")
    block = text.partition(f"<!-- {name} -->\n```sh\n")[2].partition("```")[0]
    assert "openssl" in block
    subprocess.run(["sh", "-e", "-c", block], cwd=directory, check=True, capture_output=True)


async def test_certificates(bench: Bench, tmp_path: Path) -> None:
    run_commands("certificates", tmp_path)
    one, two = (
        Keys.certificates(tmp_path / f"{name}.pem", tmp_path / f"{name}.key", tmp_path / "ca.pem", peer)
        for name, peer in (("host-a", "host-b"), ("host-b", "host-a"))
    )
    p, s = primary(), secondary()
    await bench.listen(two, s)
    bench.dial(one, p)
    ours, theirs = await meet(bench, p, s)
    assert (ours.peer, theirs.peer) == ("/CN=host-b", "/CN=host-a")
    refused = bench.dial(two, primary())  # of the right authority, but not host-a
    await bench.refused(Kind.CERTIFICATE)
    await bench.until(lambda: refused.refusals.get(Kind.CERTIFICATE, 0) > 0)
    await carries(ours.transport, theirs.transport)
    with pytest.raises(MisuseError, match="private key"):
        Keys.certificates(tmp_path / "host-a.pem", tmp_path / "host-b.key", tmp_path / "ca.pem")


# ---------------------------------------------------------------- hostile peers

GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\0" * 100,
    b"\xff" * 70000,
    b"\x16\x03\x01\x00\x05" + b"\x01\x00\x00\x01\x00",
    b"\x16\x03\x01\xff\xff" + b"\0" * 70000,
    encode({"coloproxy": 1}),
    b"",
]


@pytest.mark.parametrize("use", [True, False], ids=["psk", "plain"])
async def test_garbage(bench: Bench, use: bool) -> None:
    p, s = primary(), secondary()
    await bench.listen(keys() if use else None, s)
    bench.dial(keys() if use else None, p)
    ours, theirs = await meet(bench, p, s)
    for number, garbage in enumerate(GARBAGE, 1):
        sock = await bench.stranger()
        with contextlib.suppress(ConnectionError):
            await asyncio.get_running_loop().sock_sendall(sock, garbage)
            sock.shutdown(socket.SHUT_WR)
        await at_end(sock)
        await bench.until(lambda number=number: sum(bench.listener.refusals.values()) == number)  # type: ignore[misc]
    assert bench.listener.pending == 0
    await carries(ours.transport, theirs.transport)
    assert s.log == ["before", "state", "connected"]


async def test_slow_loris(bench: Bench) -> None:
    """Of 32 that connect and say nothing, or one byte, 16 stay; the peer gets in all the same."""
    p, s = primary(), secondary()
    await bench.listen(keys(), s, deadline_s=LONG)
    for number in range(32):
        sock = await bench.stranger()
        if number % 2:
            await asyncio.get_running_loop().sock_sendall(sock, b"\x16")
    await bench.refused(Kind.CROWDED, 16)
    assert bench.listener.pending == 16
    bench.dial(keys(), p)
    ours, theirs = await meet(bench, p, s)
    assert bench.listener.refusals == {Kind.CROWDED: 17}
    assert bench.listener.pending == 15
    await carries(ours.transport, theirs.transport)


async def test_silent_peers_run_out_of_time(bench: Bench) -> None:
    p, s = primary(), secondary()
    await bench.listen(keys(), s)
    bench.dial(keys(), p)
    ours, theirs = await meet(bench, p, s)
    bench.listener._deadline_s = 0.1
    strangers = [await bench.stranger() for _ in range(5)]
    for sock in strangers:
        assert await at_end(sock) == b""
    await bench.refused(Kind.TIMEOUT, 5)
    assert bench.listener.pending == 0
    await carries(ours.transport, theirs.transport)


async def test_who_has_proved_himself_is_not_pushed_out(bench: Bench) -> None:
    p, s = primary(), secondary()
    s.hold = asyncio.Event()
    await bench.listen(keys(), s, max_pending=2)
    bench.dial(keys(), p)
    await bench.until(lambda: s.log == ["before"])
    for number in range(5):
        await bench.stranger()
        await bench.refused(Kind.CROWDED, number)
    s.hold.set()
    await meet(bench, p, s)


async def test_the_same_peer_comes_again_in_the_middle(bench: Bench) -> None:
    """Its first connection may hang in the hello because the network was cut: the second need not wait for it."""
    p, again, s = primary(), primary(), secondary()
    s.hold = asyncio.Event()
    await bench.listen(keys(), s)
    bench.dial(keys(), p)
    await bench.until(lambda: s.log == ["before"])
    bench.dial(keys(), again)
    await bench.refused(Kind.REPLACED)
    s.hold.set()
    await s.next()


class Wire:
    """A man in the middle who passes on what he hears, and keeps the client's part."""

    def __init__(self, where: Address) -> None:
        self.where = where
        self.heard: list[bytes] = []
        self.server: asyncio.Server

    async def start(self) -> Address:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return parse_address(f"connect:127.0.0.1:{self.server.sockets[0].getsockname()[1]}")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self.where.host, self.where.port)

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter, keep: list[bytes]) -> None:
            while data := await source.read(65536):
                keep.append(data)
                target.write(data)
            target.close()

        with contextlib.suppress(ConnectionError):
            await asyncio.gather(pump(reader, back, self.heard), pump(there, writer, []))


async def test_a_replayed_handshake_is_refused(bench: Bench) -> None:
    p, s = primary(), secondary()
    await bench.listen(keys(), s)
    direct, wire = bench.where, Wire(bench.where)
    bench.where = await wire.start()
    bench.dial(keys(), p)
    ours, theirs = await meet(bench, p, s)
    recorded = list(wire.heard)
    assert len(b"".join(recorded)) > 300
    bench.where = direct
    for take_turns in (True, False):
        sock = await bench.stranger()
        loop = asyncio.get_running_loop()
        count = sum(bench.listener.refusals.values())
        with contextlib.suppress(ConnectionError):
            for number, part in enumerate(recorded):
                await loop.sock_sendall(sock, part)
                if take_turns and number == 0:
                    await loop.sock_recv(sock, 65536)
            sock.shutdown(socket.SHUT_WR)
        await at_end(sock)
        await bench.until(lambda count=count: sum(bench.listener.refusals.values()) > count)  # type: ignore[misc]
    assert set(bench.listener.refusals) == {Kind.TLS}
    assert s.log == ["before", "state", "connected"]
    await carries(ours.transport, theirs.transport)
    wire.server.close()


async def test_an_ordinary_tls_client_is_refused(bench: Bench) -> None:
    s = secondary()
    await bench.listen(keys(), s)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for newest in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
        context.maximum_version = newest
        with pytest.raises(ssl.SSLError):
            await asyncio.open_connection(bench.where.host, bench.where.port, ssl=context)
    await bench.refused(Kind.KEY)
    await bench.refused(Kind.TLS)
    assert s.log == []


# ------------------------------------------------------------------ small parts


def test_backoff() -> None:
    rows = [
        (0, 0.0, 0.1),
        (0, 1.0, 0.1),
        (1, 1.0, 0.2),
        (3, 1.0, 0.8),
        (4, 1.0, 1.0),
        (4, 0.5, 0.55),
        (10**6, 1.0, 1.0),
    ]
    for attempt, chance, seconds in rows:
        assert backoff(attempt, chance) == pytest.approx(seconds)


def test_lines_are_few_and_counters_exact(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals(session_module.log, "link")
    for number in range(1000):
        refusals.note(Kind.TLS, f"[::1]:{number}", "why", now=5.0 + number / 1000)
    refusals.note(Kind.CUT, "[::1]:1", "cut", now=6.0)
    refusals.note(Kind.TLS, "[::1]:2", "why", now=5.0 + INTERVAL_S)
    assert refusals.counts == {Kind.TLS: 1001, Kind.CUT: 1}
    assert [record.getMessage() for record in caplog.records] == [
        "link: [::1]:0: refused: why",
        "link: [::1]:1: refused: cut",
        "link: [::1]:2: refused: why (and 999 more like it)",
    ]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("00112233445566778899aabbccddeeff\n", bytes.fromhex("00112233445566778899aabbccddeeff")),
        ("  AAECAwQFBgcICQoLDA0ODw==\n\n", bytes(range(16))),
    ],
)
def test_psk_files(tmp_path: Path, text: str, key: bytes) -> None:
    path = tmp_path / "psk"
    path.write_text(text)
    path.chmod(0o600)
    assert read_psk(path) == key
    path.chmod(0o400)
    assert read_psk(path) == key


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("00" * 32, 0o640, "mode 0640"),
        ("00" * 32, 0o604, "mode 0604"),
        ("00" * 15, 0o600, "15 bytes of key"),
        ("", 0o600, "0 bytes of key"),
        ("correct horse battery staple", 0o600, "neither hex nor base64"),
    ],
)
def test_psk_files_refused(tmp_path: Path, text: str, mode: int, words: str) -> None:
    path = tmp_path / "psk"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(MisuseError, match=words):
        read_psk(path)


def test_psk_as_the_documentation_makes_it(tmp_path: Path) -> None:
    run_commands("psk", tmp_path)
    assert len(read_psk(tmp_path / "pair.psk")) == 32


def test_psk_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="No such file"):
        read_psk(tmp_path / "missing")
    with pytest.raises(MisuseError, match="not a regular file"):
        read_psk(tmp_path)


def test_keys_without_sense(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="16 to 256 bytes"):
        Keys.psk("pair", b"short")
    with pytest.raises(MisuseError, match="1 to 128 bytes"):
        Keys.psk("", KEY)
    with pytest.raises(MisuseError, match="NUL"):
        Keys.psk("a\0b", KEY)
    with pytest.raises(MisuseError, match=r"certificate .*a.pem: No such file"):
        Keys.certificates(tmp_path / "a.pem", tmp_path / "a.key", tmp_path / "ca.pem")


async def test_a_transport_after_its_end() -> None:
    one, other = socket.socketpair()
    transport = Transport(one, None, server=False)
    other.close()
    with pytest.raises(LinkError, match="closed the connection"):
        await transport.receive(1)
    transport.close()
    transport.close()
    with pytest.raises(MisuseError):
        await transport.receive(1)
    with pytest.raises(MisuseError):
        transport.release()
