# SPDX-License-Identifier: Apache-2.0
"""The heartbeat with real sockets on loopback, real clocks, and a peer in a process of its own that is stopped.

Events are waited for; how long they take says nothing about pass or fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coloproxy.errors import AddressError, LimitError, MisuseError
from coloproxy.heartbeat import STATE_MAX, Heartbeat, Reason, Settings, UdpPath
from coloproxy.heartbeat.message import Codec, Host, Message

PSK = b"0123456789abcdef"
PATIENCE_S = 60.0
ROOMY = 1_500_000_000  # ns; where a process of ours that the machine doesn't run would spoil the test
PEER = Path(__file__).with_name("heartbeat_peer.py")
Address = tuple[str, int]


def free(host: str, count: int = 1) -> list[Address]:
    """Addresses of loopback that nobody has now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)) for _ in range(count)]
        for sock in socks:
            sock.bind((host, 0))
        return [(host, sock.getsockname()[1]) for sock in socks]


class Watched:
    """A heartbeat, and all that it has said."""

    def __init__(self, host: Host, paths: list[UdpPath], **settings: int) -> None:
        self.said: list[tuple[str, Any]] = []
        self._changed = asyncio.Event()
        self.heartbeat = Heartbeat(
            Settings("web", host, PSK, **settings),
            paths,
            on_alive=lambda boot: self._say("alive", boot),
            on_dead=lambda reason: self._say("dead", reason),
            on_state=lambda state: self._say("state", state),
            on_path=lambda name, up: self._say("path", (name, up)),
            state={"host": host},
        )

    def _say(self, kind: str, what: object) -> None:
        self.said.append((kind, what))
        self._changed.set()

    def all(self, *kinds: str) -> list[tuple[str, Any]]:
        return [entry for entry in self.said if entry[0] in kinds]

    async def until(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not what():
                self._changed.clear()
                await self._changed.wait()

    async def heard(self, kind: str, times: int = 1) -> Any:
        """What was said with the so-manieth of a kind."""
        await self.until(lambda: len(self.all(kind)) >= times)
        return self.all(kind)[times - 1][1]


@contextlib.contextmanager
def running(*watched: Watched) -> Iterator[None]:
    try:
        for each in watched:
            each.heartbeat.start()
        yield
    finally:
        for each in watched:
            each.heartbeat.close()


async def counted(what: Callable[[], bool]) -> None:
    """Waits for a counter: nobody tells of those."""
    async with asyncio.timeout(PATIENCE_S):
        while not what():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def ends(name: str, host: str) -> tuple[UdpPath, UdpPath]:
    a, b = free(host, 2)
    return UdpPath(name, a, b), UdpPath(name, b, a)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_alive_dead_and_again(host: str) -> None:
    near, far = ends("link", host)
    a, b = Watched("a", [near]), Watched("b", [far])
    with running(a):
        assert "never heard" in await a.heard("dead")  # and nobody listens there: the system says so at each send
        with running(b):
            assert await a.heard("alive") == b.heartbeat.boot
            assert await b.heard("alive") == a.heartbeat.boot
            assert await a.heard("state") == {"host": "b"}
            b.heartbeat.set_state({"role": "secondary"})
            assert await a.heard("state", 2) == {"role": "secondary"}
            state = a.heartbeat.peer_state
            assert state is not None
            assert (state.state, state.number) == ({"role": "secondary"}, 1)
            assert state.since <= state.confirmed <= time.monotonic_ns()
        assert "silent on all paths: link" in await a.heard("dead", 2)
        again = Watched("b", [far])
        with running(again):
            assert await a.heard("alive", 2) == again.heartbeat.boot != b.heartbeat.boot
        stats = a.heartbeat.stats()
        assert stats.boots == 2
        assert stats.paths[0].rtt.count > 0


class Relay:
    """Between two addresses that both take it for the peer; may be cut."""

    def __init__(self, host: str, a: Address, b: Address) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.cut = False
        self._loop = asyncio.get_running_loop()
        self._socks = [socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) for _ in range(2)]
        for sock in self._socks:
            sock.bind((host, 0))
        self.for_a, self.for_b = ((host, sock.getsockname()[1]) for sock in self._socks)
        to_a, to_b = self._socks
        self._loop.add_reader(to_a, self._pass, to_a, to_b, b)
        self._loop.add_reader(to_b, self._pass, to_b, to_a, a)

    def _pass(self, source: socket.socket, way: socket.socket, target: Address) -> None:
        data = source.recv(65536)
        if not self.cut:
            way.sendto(data, target)

    def close(self) -> None:
        for sock in self._socks:
            self._loop.remove_reader(sock)
            sock.close()


async def test_one_of_two_paths_dies_and_comes_again() -> None:
    direct_a, direct_b = ends("client", "127.0.0.1")
    own_a, own_b = free("::1", 2)
    with contextlib.closing(Relay("::1", own_a, own_b)) as relay:
        a = Watched("a", [direct_a, UdpPath("link", own_a, relay.for_a)])
        b = Watched("b", [direct_b, UdpPath("link", own_b, relay.for_b)])
        with running(a, b):
            for each in (a, b):
                await each.until(lambda each=each: len(each.all("path")) == 2)  # type: ignore[misc]
            relay.cut = True
            for each in (a, b):
                assert await each.heard("path", 3) == ("link", False)
            relay.cut = False
            for each in (a, b):
                assert await each.heard("path", 4) == ("link", True)
                assert each.all("dead") == []
                assert len(each.all("alive")) == 1
            stats = a.heartbeat.stats()
            assert [path.downs for path in stats.paths] == [0, 1]
            assert stats.paths[1].lost > 0


class Child:
    """tests/heartbeat_peer.py, and its lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[list[Any]] = []

    async def heard(self, *what: object) -> list[Any]:
        """The next line that begins so."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            while line := await self.process.stdout.readline():
                self.lines.append(json.loads(line))
                if self.lines[-1][: len(what)] == list(what):
                    return self.lines[-1]
        raise AssertionError(f"the peer ended; it said {self.lines}")

    def set_state(self, state: dict[str, object]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(state).encode() + b"\n")


@contextlib.asynccontextmanager
async def child(*paths: UdpPath, **settings: int) -> AsyncIterator[Child]:
    plan = {"psk": PSK.hex(), "settings": settings, "paths": [[path.name, path.local, path.peer] for path in paths]}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PEER),
        json.dumps(plan),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Child(process)
    finally:
        if process.returncode is None:
            process.kill()  # a stopped one too
        await process.wait()


async def test_a_stopped_process_is_dead_to_us_and_never_takes_us_for_dead() -> None:
    """SIGSTOP for longer than the timeout, twice."""
    near, far = ends("link", "127.0.0.1")
    a = Watched("a", [near], timeout=ROOMY, start_timeout=4 * ROOMY)
    with running(a):
        async with child(far, timeout=ROOMY, start_timeout=ROOMY) as b:
            (_, boot) = await b.heard("boot")
            for turn in (1, 2):
                await a.until(lambda turn=turn: [what for _, what in a.all("alive")] == [boot] * turn)  # type: ignore[misc]
                deaths = len(a.all("dead"))
                b.process.send_signal(signal.SIGSTOP)
                assert "silent on all paths" in await a.heard("dead", deaths + 1)
                await asyncio.sleep(0.2)  # now it has missed more than its own timeout as well
                a.heartbeat.set_state({"turn": turn})
                b.process.send_signal(signal.SIGCONT)
                assert await b.heard("state", {"turn": turn})
            await a.until(lambda: len(a.all("alive")) == 3)
            assert b.process.stdin is not None
            b.process.stdin.close()
            (_, stalls) = await b.heard("stalls")
            assert stalls >= 2
            assert [line for line in b.lines if line[0] == "dead"] == []
            assert len([line for line in b.lines if line[0] == "alive"]) == 1


async def test_a_killed_process() -> None:
    near, far = ends("link", "::1")
    a = Watched("a", [near])
    with running(a):
        async with child(far) as b:
            (_, boot) = await b.heard("boot")
            assert await a.heard("alive") == boot
            b.set_state({"x": 1})
            await a.until(lambda: ("state", {"x": 1}) in a.said)
            deaths = len(a.all("dead"))
            b.process.kill()
            assert "silent on all paths" in await a.heard("dead", deaths + 1)


async def test_our_own_busy_loop_is_not_the_peers_silence(caplog: pytest.LogCaptureFixture) -> None:
    near, far = ends("link", "127.0.0.1")
    a = Watched("a", [near], timeout=ROOMY, start_timeout=4 * ROOMY)
    with running(a):
        async with child(far) as b:
            await b.heard("alive")
            await a.heard("alive")
            before = len(a.said)
            for turn in range(2):
                time.sleep(ROOMY / 1e9 + 0.2)  # noqa: ASYNC251 -- what is tested
                a.heartbeat.set_state({"turn": turn})
                await b.heard("state", {"turn": turn})
            b.set_state({"done": True})
            await a.until(lambda: ("state", {"done": True}) in a.said)
            assert [entry for entry in a.said[before:] if entry[0] != "state"] == []
            assert a.heartbeat.stats().stalls >= 2
    assert "this process did not run for" in caplog.text


def strange(pair: str, psk: bytes, host: Host = "b", **more: Any) -> bytes:
    fields = {"path": 0, "boot": b"strange!", "seq": 1, "nonce": bytes(16), "echo": bytes(16), "sent": 1}
    message = {**fields, "echo_sent": 0, "echo_held": 0, "interval": 50_000_000, "number": 0, "state": b"{}", **more}
    return Codec(psk, pair, host).seal(Message(**message))


STRANGE = {
    Reason.MALFORMED: b"hello",
    Reason.VERSION: b"cpHB\x02" + bytes(200),
    Reason.PAIR: strange("mail", PSK),
    Reason.REFLECTED: strange("web", PSK, "a"),
    Reason.PATH: strange("web", PSK, path=3),
    Reason.FORGED: strange("web", PSK[::-1]),
}


async def test_strange_messages_are_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    near, far = ends("link", "127.0.0.1")
    a, times = Watched("a", [near]), 20
    with running(a), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(far.local)
        for data in STRANGE.values():
            for _ in range(times):
                sock.sendto(data, near.local)
        await counted(lambda: sum(a.heartbeat.stats().paths[0].refused.values()) >= times * len(STRANGE))
        refused = a.heartbeat.stats().paths[0].refused
        assert {reason: refused[reason] for reason in STRANGE} == dict.fromkeys(STRANGE, times)
        assert a.all("alive", "state", "path") == []
    lines = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert len(lines) == len(STRANGE), lines
    assert all("heartbeat web: path link from 127.0.0.1: refused: " in line for line in lines)
    assert any("heartbeat version 2 on the other side, 1 on this one" in line for line in lines)
    assert any("another pair than 'web'" in line for line in lines)
    assert any("the same pre-shared key?" in line for line in lines)


async def test_others_than_the_peers_address_are_kept_out_by_the_kernel() -> None:
    near, far = ends("link", "127.0.0.1")
    (other,) = free("127.0.0.1")
    a = Watched("a", [near])
    with running(a), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(other)
        for _ in range(10):
            stranger.sendto(STRANGE[Reason.FORGED], near.local)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(far.local)
            peer.sendto(STRANGE[Reason.PATH], near.local)  # comes after the others, and from the right address
            await counted(lambda: a.heartbeat.stats().paths[0].refused[Reason.PATH] > 0)
        assert a.heartbeat.stats().paths[0].refused[Reason.FORGED] == 0


async def test_a_path_whose_address_is_not_there_yet(caplog: pytest.LogCaptureFixture) -> None:
    """The other path does its work; the missing one is tried again, and said once."""
    near, far = ends("link", "127.0.0.1")
    missing = UdpPath("client", ("192.0.2.1", 7100), ("192.0.2.2", 7100))
    gone = UdpPath("third", ("fe80::1%nonesuch0", 7100), ("fe80::2%nonesuch0", 7100))
    a, b = Watched("a", [near, missing, gone]), Watched("b", [far])
    with running(a, b):
        await a.heard("alive")
        await counted(lambda: a.heartbeat.stats().paths[1].send_errors >= 40)  # tried again meanwhile
        stats = a.heartbeat.stats()
        assert [path.up for path in stats.paths] == [True, False, False]
    lines = [record.getMessage() for record in caplog.records if "can't send" in record.getMessage()]
    assert [("client" in line, "third" in line) for line in lines] == [(True, False), (False, True)], lines


@pytest.mark.parametrize(
    ("local", "peer", "words"),
    [
        (("localhost", 7100), ("127.0.0.1", 7100), "'localhost' is no IPv4 or IPv6 address"),
        (("127.0.0.1", 7100), ("::1", 7100), "one address is IPv4, the other IPv6"),
        (("127.0.0.1", 0), ("127.0.0.1", 7100), "port 0"),
        (("127.0.0.1", 7100), ("127.0.0.1", 65536), "port 65536"),
    ],
)
async def test_addresses_that_cant_be_used(local: Address, peer: Address, words: str) -> None:
    a = Watched("a", [UdpPath("link", local, peer)])
    with pytest.raises(AddressError, match=words):
        a.heartbeat.start()


async def test_a_port_that_is_taken() -> None:
    near, _ = ends("link", "127.0.0.1")
    with running(Watched("a", [near])), pytest.raises(AddressError, match="Address already in use"):
        Watched("a", [near]).heartbeat.start()


async def test_misuse() -> None:
    near, _ = ends("link", "127.0.0.1")
    a = Watched("a", [near])
    assert (a.heartbeat.alive, a.heartbeat.peer_state, a.heartbeat.boot) == (None, None, None)
    a.heartbeat.set_state({"before": "start"})
    with pytest.raises(LimitError):
        a.heartbeat.set_state({"x": "y" * STATE_MAX})
    with pytest.raises(MisuseError):
        a.heartbeat.stats()
    with running(a), pytest.raises(MisuseError):
        a.heartbeat.start()
    a.heartbeat.close()


async def test_a_callback_that_fails_does_not_stop_the_beats(caplog: pytest.LogCaptureFixture) -> None:
    near, far = ends("link", "127.0.0.1")
    b = Watched("b", [far])

    def fail(_: object) -> None:
        raise ValueError("on purpose")

    a = Heartbeat(Settings("web", "a", PSK), [near], on_alive=fail, on_dead=fail, on_state=fail)
    a.start()
    try:
        with running(b):
            await b.heard("alive")
            a.set_state({"x": 1})
            await b.until(lambda: ("state", {"x": 1}) in b.said)
    finally:
        a.close()
    assert "telling of Alive failed" in caplog.text


async def test_closing_within_a_callback() -> None:
    near, far = ends("link", "127.0.0.1")
    b, said = Watched("b", [far]), []

    def stop(boot: str) -> None:
        said.append(boot)
        a.close()

    a = Heartbeat(Settings("web", "a", PSK), [near], on_alive=stop, on_dead=said.append, on_state=said.append)  # type: ignore[arg-type]
    a.start()
    with running(b):
        await b.heard("dead")
    assert said == [b.heartbeat.boot]


async def test_a_peer_that_beats_too_seldom_is_said(caplog: pytest.LogCaptureFixture) -> None:
    near, far = ends("link", "127.0.0.1")
    a, b = Watched("a", [near]), Watched("b", [far], interval=200_000_000, timeout=600_000_000)
    with caplog.at_level(logging.INFO), running(a, b):
        await a.heard("alive")
    assert "the peer beats each 200 ms, too seldom for a timeout of 400 ms" in caplog.text
