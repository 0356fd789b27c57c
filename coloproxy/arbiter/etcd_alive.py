# SPDX-License-Identifier: Apache-2.0
"""A host's liveness key in etcd: for people to look at, never a reason to take over."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Final

from ..errors import EtcdError
from .etcd_gateway import Answer, Gateway
from .etcd_record import an_object, number, put

log = logging.getLogger(__name__)

_AGAIN: Final = 1.0  # s, after a failure
_LAST: Final = 1.0  # s, for the lease's end: it ends anyway


class Alive:
    """Keeps one key there, bound to a lease, until it is closed: with a new lease whenever the old one was lost."""

    def __init__(
        self, gateway: Gateway, key: bytes, value: Mapping[str, object], ttl_s: int, deadline_s: float
    ) -> None:
        self._gateway = gateway
        self._key = key
        self._value = value
        self._ttl_s = ttl_s
        self._deadline_s = deadline_s
        self._lease = 0
        self._well = True  # of the log: what goes on failing is told once
        self._task = asyncio.create_task(self._run(), name="etcd liveness")

    async def close(self) -> None:
        """The key goes at once if etcd can be reached, else with its lease."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if self._lease:
            with contextlib.suppress(EtcdError):
                await self._ask("/v3/lease/revoke", {"ID": str(self._lease)}, lambda _: 0, _LAST)
            self._lease = 0

    async def _run(self) -> None:
        while True:
            try:
                await self._once()
            except EtcdError as error:
                if self._well:
                    log.warning("etcd: our liveness key can't be kept: %s", error)
                self._well = False
                await asyncio.sleep(min(_AGAIN, self._ttl_s / 3))
                continue
            if not self._well:
                log.info("etcd: our liveness key is kept again")
            self._well = True
            await asyncio.sleep(self._ttl_s / 3)

    async def _once(self) -> None:
        if self._lease:
            known = {"ID": str(self._lease)}
            if await self._ask("/v3/lease/keepalive", known, _ttl, self._deadline_s) > 0:
                return
            self._lease = 0
        ttl = {"TTL": str(self._ttl_s)}
        lease = await self._ask("/v3/lease/grant", ttl, lambda answer: number(answer, "ID", "answer"), self._deadline_s)
        await self._ask("/v3/kv/put", put(self._key, self._value, lease), lambda _: 0, self._deadline_s)
        self._lease = lease

    async def _ask(self, path: str, body: Mapping[str, object], read: Callable[[Answer], int], seconds: float) -> int:
        deadline = asyncio.get_running_loop().time() + seconds
        return await self._gateway.ask(path, body, deadline, read, ordered=False)


def _ttl(answer: Answer) -> int:
    """What a lease has left, s; 0: it has ended."""
    return number(an_object(answer.get("result"), "result"), "TTL", "result")
