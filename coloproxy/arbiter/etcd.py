# SPDX-License-Identifier: Apache-2.0
"""etcd decides: the owner's key is changed by compare-and-set, and whoever has changed it has won. docs/arbiter.md."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Mapping
from functools import partial

import httpx

from ..errors import EtcdError, MisuseError
from .claim import HOSTS, Claim, Host, Ruling, Verdict, check_name, check_pair
from .etcd_alive import Alive
from .etcd_gateway import EtcdOptions, Gateway
from .etcd_record import (
    Owner,
    alive_key,
    decide_claim,
    decide_record,
    encode,
    owner_key,
    read_one,
    read_owner,
    read_set,
    set_owner,
)

log = logging.getLogger(__name__)


class EtcdArbiter:
    """An arbiter that is an etcd cluster.

    A request whose answer was lost is followed by a look at the key: what stands there is the truth, whether our
    request came in before, comes in later, or never. A late one can't do harm: it is bound to the key as it was read.
    """

    def __init__(self, options: EtcdOptions, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """transport: instead of the network; it then sees to TLS as well. Raises MisuseError."""
        self._options = options
        self._gateway = Gateway(options, transport)
        self._alive: Alive | None = None

    async def claim(self, claim: Claim) -> Ruling:
        loop = asyncio.get_running_loop()
        began = loop.time()
        deadline = began + self._options.deadline_s
        key = owner_key(self._options.prefix, claim.pair)
        claim_id = secrets.token_hex(8)
        try:
            found = await self._read(key, deadline)
            while (decided := decide_claim(claim, claim_id, found)) is None:
                found = await self._write(key, found, claim.host, claim.generation, claim_id, deadline)
        except EtcdError as error:
            log.warning("etcd: host %s, generation %d: %s", claim.host, claim.generation, error)
            return Ruling(Verdict.UNKNOWN, None, None, f"etcd: {error}", loop.time() - began)
        why = f"etcd: {decided.reason}"
        return Ruling(decided.verdict, found.host, found.generation, why, loop.time() - began)

    async def record(self, pair: str, host: Host, generation: int) -> bool:
        check_name(pair, host, generation)
        deadline = asyncio.get_running_loop().time() + self._options.deadline_s
        key = owner_key(self._options.prefix, pair)
        claim_id = secrets.token_hex(8)
        try:
            found = await self._read(key, deadline)
            while (done := decide_record(host, generation, found)) is None:
                found = await self._write(key, found, host, generation, claim_id, deadline)
        except EtcdError as error:
            log.warning("etcd: that host %s is at generation %d was not recorded: %s", host, generation, error)
            return False
        if not done:
            log.warning("etcd: host %s says it is at generation %d, but the owner is %s", host, generation, found)
        return done

    async def owner(self, pair: str) -> Ruling:
        check_pair(pair)
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            found = await self._read(owner_key(self._options.prefix, pair), began + self._options.deadline_s)
        except EtcdError as error:
            return Ruling(Verdict.UNKNOWN, None, None, f"etcd: {error}", loop.time() - began)
        why = f"etcd: the owner is {found}"
        return Ruling(Verdict.UNKNOWN, found.host, found.generation, why, loop.time() - began)

    def keep_alive(self, pair: str, host: Host, value: Mapping[str, object] | None = None) -> None:
        """Keeps `alive/<host>` there from now on, for people: until `close`, or until we are gone for alive_ttl_s.

        Args:
            value: what the key says besides the host, small and made of what JSON has.
        """
        check_name(pair, host, 1)
        if self._alive is not None:
            raise MisuseError("the liveness key is kept already")
        key = alive_key(self._options.prefix, pair, host)
        known: dict[str, object] = {**(value or {}), "host": host}
        try:
            json.dumps(known)
        except (TypeError, ValueError, RecursionError) as error:
            raise MisuseError(f"the liveness key can't hold {known!r:.200}: {error}") from error
        self._alive = Alive(self._gateway, key, known, self._options.alive_ttl_s, self._options.deadline_s)

    async def alive(self, pair: str) -> dict[str, Mapping[str, object]]:
        """What the liveness keys say, by host; a host that has none is not there. For people only.

        Raises:
            EtcdError: it can't be told.
        """
        check_pair(pair)
        deadline = asyncio.get_running_loop().time() + self._options.deadline_s
        said: dict[str, Mapping[str, object]] = {}
        for host in HOSTS:
            key = alive_key(self._options.prefix, pair, host)
            read = partial(read_one, key=key, place="answer")
            found = await self._gateway.ask("/v3/kv/range", {"key": encode(key)}, deadline, read)
            if found is not None:
                said[host] = found[0]
        return said

    async def close(self) -> None:
        alive, self._alive = self._alive, None
        if alive is not None:
            await alive.close()
        await self._gateway.close()

    async def _read(self, key: bytes, deadline: float) -> Owner:
        read = partial(read_owner, key=key, place="answer")
        return await self._gateway.ask("/v3/kv/range", {"key": encode(key)}, deadline, read)

    async def _write(
        self, key: bytes, found: Owner, host: str, generation: int, claim_id: str, deadline: float
    ) -> Owner:
        """Writes it if the key is still as it was found. What stands there then, ours or not."""
        body = set_owner(key, found, host, generation, claim_id)
        other = await self._gateway.ask("/v3/kv/txn", body, deadline, partial(read_set, key=key))
        return Owner(generation, host, claim_id, found.revision + 1) if other is None else other
