# SPDX-License-Identifier: Apache-2.0
"""For the arbiter's tests: etcd in memory, a network that loses answers, and a loop whose time passes by itself."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import selectors
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx


class _Selector(selectors.DefaultSelector):
    """Never waits: the time that it should wait has passed."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("nothing will ever happen again")
            self.passed += max(0.0, timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop for what needs no file descriptor: its clock goes on to the next timer at once."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.passed


@dataclass
class _Entry:
    value: bytes
    create: int
    mod: int
    version: int


@dataclass
class MemoryEtcd(httpx.AsyncBaseTransport):
    """One key-value store behind the JSON gateway's form: ranges of one key, puts, transactions with one compare.

    compares: False: a broken one, for which each transaction succeeds. So tests show that they would see it.
    """

    compares: bool = True
    revision: int = 1
    entries: dict[bytes, _Entry] = field(default_factory=dict)
    history: list[tuple[bytes, dict[str, Any]]] = field(default_factory=list)
    """All that was ever written."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(await request.aread())
        match request.url.path:
            case "/v3/kv/range":
                answer = self._range(body)
            case "/v3/kv/txn":
                answer = self._txn(body)
            case path:
                raise AssertionError(path)
        header = {"cluster_id": "77", "member_id": "1", "revision": str(self.revision), "raft_term": "2"}
        return httpx.Response(200, json={"header": header, **answer})

    def _range(self, body: dict[str, Any]) -> dict[str, Any]:
        entry = self.entries.get(base64.b64decode(body["key"]))
        if entry is None:
            return {}  # as the gateway does: no kvs, no count
        found = {"key": body["key"], "value": base64.b64encode(entry.value).decode()}
        numbers = {"create_revision": entry.create, "mod_revision": entry.mod, "version": entry.version}
        return {"kvs": [found | {name: str(value) for name, value in numbers.items()}], "count": "1"}

    def _txn(self, body: dict[str, Any]) -> dict[str, Any]:
        (compare,) = body["compare"]
        assert compare["result"] == "EQUAL"
        entry = self.entries.get(base64.b64decode(compare["key"]))
        if compare["target"] == "MOD":
            equal = (entry.mod if entry else 0) == int(compare["mod_revision"])
        else:
            assert compare["target"] == "CREATE"
            equal = (entry.create if entry else 0) == int(compare["create_revision"])
        if equal or not self.compares:
            (request,) = body["success"]
            self._put(request["request_put"])
            return {"succeeded": True, "responses": [{"response_put": {"header": {"revision": str(self.revision)}}}]}
        (request,) = body["failure"]
        return {"responses": [{"response_range": self._range(request["request_range"])}]}

    def _put(self, body: dict[str, Any]) -> None:
        self.revision += 1
        key, value = base64.b64decode(body["key"]), base64.b64decode(body["value"])
        old = self.entries.get(key)
        create, version = (old.create, old.version + 1) if old else (self.revision, 1)
        self.entries[key] = _Entry(value, create, self.revision, version)
        self.history.append((key, json.loads(value)))


How = Literal["well", "refused", "lost", "broken", "twice"]


@dataclass(frozen=True)
class Fate:
    """What becomes of a request.

    how: well; refused: it never arrives, and that shows at once; lost: it arrives, the answer never does; broken: it
        arrives, the connection ends instead of an answer; twice: it arrives once more, `after` later.
    before: it takes until it arrives, whether or not anybody still waits for it then.
    after: the answer takes.
    """

    how: How
    before: float
    after: float


WELL = Fate("well", 0.0, 0.0)


class Network(httpx.AsyncBaseTransport):
    """Between a client and etcd."""

    def __init__(self, inner: httpx.AsyncBaseTransport, fates: Sequence[Fate]) -> None:
        self._inner = inner
        self._fates: Iterator[Fate] = itertools.chain(fates, itertools.repeat(WELL))
        self._late: set[asyncio.Task[httpx.Response]] = set()

    def heal(self) -> None:
        """All goes well from now on; what is under way stays what it is."""
        self._fates = itertools.repeat(WELL)

    async def settled(self) -> None:
        """All has arrived that ever will."""
        while self._late:
            await asyncio.wait(self._late)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        content = await request.aread()
        fate = next(self._fates)
        if fate.how == "refused":
            await asyncio.sleep(fate.before)
            raise httpx.ConnectError("refused")
        first = self._start(fate.before, request, content)
        if fate.how == "twice":
            self._start(fate.before + fate.after, request, content)
        response = await asyncio.shield(first)  # who has waited may be gone: the request goes on
        if fate.how == "lost":
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(fate.after)
        if fate.how == "broken":
            raise httpx.ReadError("broken")
        return response

    def _start(self, before: float, request: httpx.Request, content: bytes) -> asyncio.Task[httpx.Response]:
        task = asyncio.create_task(self._deliver(before, request, content))
        self._late.add(task)
        task.add_done_callback(self._late.discard)
        return task

    async def _deliver(self, before: float, request: httpx.Request, content: bytes) -> httpx.Response:
        await asyncio.sleep(before)
        copy = httpx.Request(request.method, request.url, headers=request.headers, content=content)
        response = await self._inner.handle_async_request(copy)
        data = await response.aread()
        await response.aclose()
        return httpx.Response(response.status_code, content=data)
