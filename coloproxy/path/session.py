# SPDX-License-Identifier: Apache-2.0
"""Brings two coloproxies together: listens or dials, TLS, hello; then hands the connection on.

    endpoint = Endpoint(us, before_hello, state, connected)
    listener = Listener(address, keys, [endpoint, ...])   # the secondary, for any number of VMs
    dialer = Dialer(address, keys, endpoint)              # the primary, one for each VM

A peer that has proved who it is and fits an endpoint replaces that endpoint's connection, which may be half dead:
`before_hello` is awaited, and must close the old one; `state` tells what the streams have then; `connected` gets the
new one. A stranger gets as far as none of them, whatever it sends, and costs one of a few places for a few seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

from coloproxy.address import Address, PeerSource, connect_once
from coloproxy.errors import AddressError, LinkError, MisuseError, NativeError

from .hello import Agreement, LinkState, PrimaryHello, SecondaryHello, Step, Us
from .refusals import Kind, Refusals
from .tls import Keys, Transport

log = logging.getLogger(__name__)

MAX_PENDING: Final = 16  # connections of a listener that are not through their hello
DEADLINE_S: Final = 5.0  # from accept (or dial) to the end of the hello
BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 1.0
STABLE_S: Final = 1.0  # a connection that lived so long is dialled again without a wait


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection that both sides have agreed on.

    transport: whoever gets this owns it; `transport.release()` is for the C thread.
    session: 32 hex digits. Not resumed: colo_link_restart first.
    peer_received: what colo_link_connect must go on with.
    peer: who it proved to be ("" in plain text); where: its address; cipher: for people.
    """

    transport: Transport
    session: str
    resumed: bool
    peer_received: int
    peer: str
    where: str
    cipher: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One VM's end of the link.

    before_hello: closes the connection that there may be. Awaited before `state` is asked; may come without a
        `connected` after it, and again.
    state: the streams, now that nothing is connected.
    connected: takes the new connection; must not block.
    """

    us: Us
    before_hello: Callable[[], Awaitable[None]]
    state: Callable[[], LinkState]
    connected: Callable[[Connected], None]


def backoff(attempt: int, chance: float) -> float:
    """Seconds before dialling again. attempt: failures so far, from 0; chance: 0 to 1, so that pairs don't march."""
    longest = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(attempt, 10))
    return BACKOFF_FIRST_S + (longest - BACKOFF_FIRST_S) * chance


async def _step(transport: Transport, hello: PrimaryHello | SecondaryHello) -> Step:
    """Reads until something follows, and sends what does. Raises LinkError: refused, by either."""
    while True:
        step = hello.feed(await transport.receive(hello.want))
        if step.refusal is not None:
            if step.send:
                with contextlib.suppress(LinkError):  # our own reason is the better one
                    await transport.send(step.send)
            raise LinkError(step.refusal.kind, step.refusal.text)
        if step.send:
            await transport.send(step.send)
        if step.asked is not None or step.agreement is not None:
            return step


def _connected(transport: Transport, agreement: Agreement, where: str) -> Connected:
    return Connected(
        transport,
        agreement.session,
        agreement.resumed,
        agreement.peer_received,
        transport.peer,
        where,
        transport.cipher,
    )


# ------------------------------------------------------------------ secondary


class _Slot:
    """An endpoint and whoever is in its hello."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.task: asyncio.Task[None] | None = None
        self.lock = asyncio.Lock()


@dataclass(slots=True)
class _Pending:
    sock: socket.socket  # until its transport has taken it over
    where: str
    proven: bool = False
    dropped: bool = False  # cancelled by us, which was counted then


class Listener:
    """The secondary's end: accepts, and leads each peer to the endpoint that it names.

    keys: may be changed; for the next connections.
    refusals: counters per kind of refusal.
    """

    def __init__(
        self,
        address: Address,
        keys: Keys | None,
        endpoints: Iterable[Endpoint] = (),
        *,
        option: str = "link",
        max_pending: int = MAX_PENDING,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._source = PeerSource(address, option)
        self.keys = keys
        self._slots: dict[tuple[str, str], _Slot] = {}
        self._refusals = Refusals(log, option)
        self._max_pending = max_pending
        self._deadline_s = deadline_s
        self._pending: dict[asyncio.Task[None], _Pending] = {}
        self._tasks: dict[asyncio.Task[None], _Pending] = {}
        self._accepting: asyncio.Task[None] | None = None
        for endpoint in endpoints:
            self.add(endpoint)

    @property
    def refusals(self) -> Mapping[str, int]:
        """How many were refused, by refusals.Kind."""
        return self._refusals.counts

    @property
    def pending(self) -> int:
        """Connections that are not through their hello."""
        return len(self._pending)

    def add(self, endpoint: Endpoint) -> None:
        """Peers may ask for it from now on. Raises MisuseError: there is one of that name."""
        key = (endpoint.us.pair, endpoint.us.vm)
        if key in self._slots:
            raise MisuseError(f"two endpoints of pair {key[0]!r} and VM {key[1]!r}")
        self._slots[key] = _Slot(endpoint)

    async def remove(self, endpoint: Endpoint) -> None:
        """No peer may ask for it any more; none is in its hello when this returns."""
        slot = self._slots.pop((endpoint.us.pair, endpoint.us.vm))
        if slot.task is not None:
            self._drop(slot.task, Kind.REPLACED)
            await asyncio.wait([slot.task])

    async def start(self) -> None:
        """Binds and begins to accept. Raises AddressError."""
        await self._source.open()
        self._accepting = asyncio.create_task(self._accept(), name="coloproxy link")

    def bound(self) -> list[str]:
        """The addresses listened on, as ADDR."""
        return self._source.bound()

    async def close(self) -> None:
        """Stops; connections handed on are not ours any more. Idempotent."""
        tasks = list(self._tasks)
        if self._accepting is not None:
            tasks.append(self._accepting)
            self._accepting = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._source.close()

    async def _accept(self) -> None:
        while True:
            sock = await self._source.next()
            if not self._make_room():
                sock.close()
                continue
            pending = _Pending(sock, _name_of(sock))
            task = asyncio.create_task(self._serve(pending))
            self._pending[task] = self._tasks[task] = pending
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._pending.pop(task, None)
        self._tasks.pop(task).sock.close()  # it is still there if the task was cancelled before it began

    def _not_pending(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pending.pop(task, None)

    def _make_room(self) -> bool:
        """Drops the oldest peer that has proved nothing; False: all have."""
        if len(self._pending) < self._max_pending:
            return True
        for task, pending in self._pending.items():
            if not pending.proven:
                self._drop(task, Kind.CROWDED)
                return True
        self._note(Kind.CROWDED, "a new connection", f"{self._max_pending} peers are in their hello")
        return False

    def _drop(self, task: asyncio.Task[None], kind: Kind) -> None:
        pending = self._pending.pop(task, None)
        if pending is not None:
            words = "pushed out by newer ones" if kind is Kind.CROWDED else "the same peer came again"
            self._note(kind, pending.where, words)
            pending.dropped = True
            task.cancel()

    def _note(self, kind: str, where: str, text: str) -> None:
        self._refusals.note(kind, where, text, asyncio.get_running_loop().time())

    async def _serve(self, pending: _Pending) -> None:
        """One connection, from accept to the end of its hello."""
        transport: Transport | None = None
        try:
            transport = Transport(pending.sock, self.keys, server=True)
            async with asyncio.timeout(self._deadline_s):
                await transport.handshake()
                pending.proven = self.keys is not None
                slot, agreement = await self._greet(transport)
            connected = _connected(transport, agreement, pending.where)
            transport = None
            self._not_pending()
            slot.endpoint.connected(connected)
        except LinkError as error:
            self._note(error.kind, pending.where, error.text)
        except TimeoutError:
            self._note(Kind.TIMEOUT, pending.where, f"no hello within {self._deadline_s:g} s")
        except asyncio.CancelledError:
            if not pending.dropped:
                raise
        except Exception:
            log.exception("%s: the hello failed", pending.where)
        finally:
            if transport is not None:
                transport.close()

    async def _greet(self, transport: Transport) -> tuple[_Slot, Agreement]:
        hello = SecondaryHello(self._find, lambda: frozenset(pair for pair, _ in self._slots))
        asked = (await _step(transport, hello)).asked
        assert asked is not None
        slot = self._slots[asked.pair, asked.vm]
        before, slot.task = slot.task, asyncio.current_task()
        if before is not None:
            self._drop(before, Kind.REPLACED)
        try:
            async with slot.lock:
                await slot.endpoint.before_hello()
                await transport.send(hello.answer(slot.endpoint.state()))
                agreement = (await _step(transport, hello)).agreement
                assert agreement is not None
                return slot, agreement
        finally:
            if slot.task is asyncio.current_task():
                slot.task = None

    def _find(self, pair: str, vm: str) -> Us | None:
        slot = self._slots.get((pair, vm))
        return slot.endpoint.us if slot is not None else None


def _name_of(sock: socket.socket) -> str:
    try:
        name = sock.getpeername()
    except OSError:
        return "a peer that has left"
    return str(Address(False, name[0], name[1])) if isinstance(name, tuple) else "a unix socket's peer"


# -------------------------------------------------------------------- primary


class Dialer:
    """The primary's end: dials for ever, until a connection is agreed on; and again when it is told to.

    source: the IP address to connect from; None: the kernel chooses.
    keys: may be changed; for the next connection.
    refusals: counters per kind of refusal, ours and the peer's.
    """

    def __init__(
        self,
        address: Address,
        keys: Keys | None,
        endpoint: Endpoint,
        *,
        source: str | None = None,
        option: str = "link",
        deadline_s: float = DEADLINE_S,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._address = address
        self._source = source
        self.keys = keys
        self._endpoint = endpoint
        self._option = option
        self._refusals = Refusals(log, option)
        self._deadline_s = deadline_s
        self._chance = chance
        self._gone = asyncio.Event()

    @property
    def refusals(self) -> Mapping[str, int]:
        """How many attempts failed, by refusals.Kind."""
        return self._refusals.counts

    def redial(self) -> None:
        """The connection is gone: get another one. Without effect while none was handed on. Loop's thread only."""
        self._gone.set()

    async def run(self) -> NoReturn:
        """Dials until it is cancelled."""
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            connected = await self._dial()
            if connected is not None:
                since = loop.time()
                self._gone.clear()
                self._endpoint.connected(connected)
                await self._gone.wait()
                if loop.time() - since >= STABLE_S:
                    attempt = 0
                    continue
            await asyncio.sleep(backoff(attempt, self._chance()))
            attempt += 1

    async def _dial(self) -> Connected | None:
        """One attempt; a failure is counted and logged."""
        where = str(self._address).removeprefix("connect:")
        transport: Transport | None = None
        try:
            async with asyncio.timeout(self._deadline_s):
                with contextlib.closing(await connect_once(self._address, self._option, self._source)) as sock:
                    transport = Transport(sock, self.keys, server=False)
                await transport.handshake()
                agreement = await self._greet(transport)
            connected = _connected(transport, agreement, where)
        except LinkError as error:
            self._note(error.kind, where, error.text)
        except (AddressError, NativeError) as error:
            self._note(Kind.CUT, where, str(error))
        except TimeoutError:
            self._note(Kind.TIMEOUT, where, f"no answer within {self._deadline_s:g} s")
        else:
            transport = None
            return connected
        finally:
            if transport is not None:
                transport.close()
        return None

    async def _greet(self, transport: Transport) -> Agreement:
        await self._endpoint.before_hello()
        hello = PrimaryHello(self._endpoint.us, self._endpoint.state())
        await transport.send(hello.start())
        agreement = (await _step(transport, hello)).agreement
        assert agreement is not None
        return agreement

    def _note(self, kind: str, where: str, text: str) -> None:
        self._refusals.note(kind, where, text, asyncio.get_running_loop().time())
