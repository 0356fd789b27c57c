# SPDX-License-Identifier: Apache-2.0
"""etcd v3 through its JSON gateway: several endpoints within one deadline, TLS, users, and answers that are checked.

httpx: asyncio, client certificates, connections that are kept, transports that can be exchanged; aiohttp does as much
with a server and four more packages; the gRPC clients for etcd are not kept any more, or bring grpcio.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

import httpx

from ..errors import EtcdError, MisuseError
from .etcd_record import Malformed, an_object, number

log = logging.getLogger(__name__)

MAX_ANSWER: Final = 1 << 16  # bytes; what we ask for is answered in less than 1 KiB
_PAUSE: Final = 0.05  # s, after all endpoints have failed; doubled each time
_MAX_PAUSE: Final = 0.4
_TOKEN_REFUSED: Final = ("invalid auth token", "revision of auth store is old")  # a new one is to be had

# OSError: httpx lets a TLS alert through that comes after the handshake, as TLS 1.3's "bad certificate" does.
_FAILURES: Final = (httpx.HTTPError, httpx.StreamError, OSError, UnicodeError)

Answer = Mapping[str, object]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """Where etcd is, and who we are there.

    Attributes:
        endpoints: client URLs of one cluster's members: "https://192.0.2.5:2379". The one that answered last is asked
            first.
        prefix: of our keys.
        deadline_s: for a claim, a record or a question, all endpoints together.
        attempt_s: for one request to one endpoint; None: so that each is asked twice before the deadline.
        ca: file with the CA's certificate; None: the system's.
        cert, key: files of our client certificate.
        user, password: of etcd; a token is got by them. A client certificate alone authenticates nobody: the gateway
            doesn't pass it on to etcd's users.
        cluster_id: what the answers' header.cluster_id must be, as the decimal number that it is there; None: the
            first that is seen.
        alive_ttl_s: seconds that our liveness key outlives us, whole ones.
    """

    endpoints: tuple[str, ...]
    prefix: str = "coloproxy"
    deadline_s: float = 3.0
    attempt_s: float | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    cluster_id: int | None = None
    alive_ttl_s: int = 10

    def check(self) -> None:
        """Raises MisuseError for what can't work."""
        if not self.endpoints:
            raise MisuseError("etcd needs an endpoint at least")
        for endpoint in self.endpoints:
            _check_endpoint(endpoint)
        if not self.prefix or "\0" in self.prefix or self.prefix.endswith("/"):
            raise MisuseError(f"etcd's prefix can't be {self.prefix!r}")
        if self.deadline_s <= 0 or (self.attempt_s is not None and self.attempt_s <= 0) or self.alive_ttl_s < 1:
            raise MisuseError("etcd's times must be above 0")
        if (self.cert is None) != (self.key is None):
            raise MisuseError("a client certificate and its key are given together")
        if (self.user is None) != (self.password is None):
            raise MisuseError("etcd's user and password are given together")
        if self.ca or self.cert:
            for endpoint in self.endpoints:
                if not endpoint.startswith("https://"):
                    raise MisuseError(f"certificates are given, but {endpoint} is not https://")

    def tls(self) -> ssl.SSLContext | bool:
        """For httpx. Raises MisuseError for files that can't be used."""
        if not any(endpoint.startswith("https://") for endpoint in self.endpoints):
            return False  # and no time is spent to load the system's certificates
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key)
        except (OSError, ssl.SSLError) as error:
            raise MisuseError(f"etcd's certificates ({self.ca}, {self.cert}, {self.key}): {error}") from error
        return context


def _check_endpoint(endpoint: str) -> None:
    try:
        url = httpx.URL(endpoint)
    except (httpx.InvalidURL, ValueError) as error:
        raise MisuseError(f"etcd's endpoint {endpoint!r}: {error}") from error
    bare = url.path in ("", "/") and not url.query and not url.fragment and not url.userinfo
    if url.port is not None and not 0 < url.port < 65536:
        raise MisuseError(f"etcd's endpoint {endpoint!r}: there is no port {url.port}")
    if url.scheme not in ("http", "https") or not url.host or not bare:
        raise MisuseError(f"etcd's endpoint {endpoint!r} is not like https://192.0.2.5:2379")


class Refused(EtcdError):
    """etcd has answered with an error.

    Attributes:
        status: of HTTP.
        message: etcd's own.
    """

    def __init__(self, where: str, status: int, message: str) -> None:
        super().__init__(f"{where}: HTTP status {status}: {message}")
        self.status = status
        self.message = message


class Gateway:
    """One etcd cluster. Requests may run side by side."""

    def __init__(self, options: EtcdOptions, transport: httpx.AsyncBaseTransport | None = None) -> None:
        options.check()
        self._options = options
        self._endpoints = [endpoint.rstrip("/") for endpoint in options.endpoints]  # the best first
        self._attempt_s = options.attempt_s or options.deadline_s / (2 * len(self._endpoints))
        self._cluster = options.cluster_id
        self._revision = 0  # the highest that was seen: nothing older may be answered
        self._token: str | None = None
        # trust_env: the environment's proxies are not for this.
        self._client = httpx.AsyncClient(
            verify=True if transport is not None else options.tls(),
            transport=transport,
            trust_env=False,
            timeout=self._attempt_s,
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def ask(
        self,
        path: str,
        body: Mapping[str, object],
        deadline: float,
        read: Callable[[Answer], T],
        *,
        ordered: bool = True,
    ) -> T:
        """Asks one endpoint after the other, again and again, until one has answered.

        The request may have been carried out more than once, or be so later, when no answer came.

        Args:
            deadline: by the loop's clock.
            read: makes of an answer what is returned; raises Malformed.
            ordered: its revision can't be older than what was answered before (linearizable requests).

        Raises:
            EtcdError: none has, until the deadline.
        """
        loop = asyncio.get_running_loop()
        failures: dict[str, str] = {}
        pause = _PAUSE
        while True:
            for endpoint in list(self._endpoints):
                left = deadline - loop.time()
                if left <= 0 or self._client.is_closed:
                    why = "no time was left to ask" if left <= 0 else "not asked: the arbiter was closed"
                    raise EtcdError("; ".join(failures.values()) or f"{endpoint}{path}: {why}")
                try:
                    answer = read(await self._once(endpoint, path, body, min(left, self._attempt_s), ordered))
                except (EtcdError, Malformed) as error:
                    failure = f"{endpoint}{path}: {error}" if isinstance(error, Malformed) else str(error)
                    log.debug("etcd: %s", failure)
                    if left >= self._attempt_s and not self._client.is_closed:
                        failures[endpoint] = failure
                    else:  # it was cut short: what is known from before says more
                        failures.setdefault(endpoint, failure)
                    continue
                if self._endpoints[0] != endpoint:
                    self._endpoints.remove(endpoint)
                    self._endpoints.insert(0, endpoint)
                return answer
            await asyncio.sleep(min(pause, max(0.0, deadline - loop.time())))
            pause = min(2 * pause, _MAX_PAUSE)

    async def _once(
        self, endpoint: str, path: str, body: Mapping[str, object], seconds: float, ordered: bool
    ) -> Answer:
        where = endpoint + path
        floor = self._revision if ordered else 0
        try:
            async with asyncio.timeout(seconds):
                try:
                    answer = await self._request(endpoint, path, body)
                except Refused as error:
                    if self._options.user is None or not any(text in error.message for text in _TOKEN_REFUSED):
                        raise
                    self._token = None
                    answer = await self._request(endpoint, path, body)
        except TimeoutError:
            raise EtcdError(f"{where}: no answer within {seconds:.3g} s") from None
        self._check_header(answer, floor, ordered)
        return answer

    def _check_header(self, answer: Answer, floor: int, ordered: bool) -> None:
        """Whether the answer comes from the cluster, and is not older than what it has said before."""
        holder = answer.get("result", answer)  # streams have their answers in "result"
        header = an_object(an_object(holder, "result").get("header"), "header")
        cluster, revision = number(header, "cluster_id", "header"), number(header, "revision", "header")
        if cluster == 0:
            raise Malformed("header.cluster_id is missing")
        if self._cluster is None:
            self._cluster = cluster
        if cluster != self._cluster:
            raise Malformed(f"it is of another cluster: header.cluster_id is {cluster}, not {self._cluster}")
        if revision < floor:
            raise Malformed(f"its data are older than they were: header.revision is {revision}, and was {floor}")
        if ordered:
            self._revision = max(self._revision, revision)

    async def _request(self, endpoint: str, path: str, body: Mapping[str, object]) -> Answer:
        headers = {}
        if self._options.user is not None:
            headers["Authorization"] = self._token or await self._authenticate(endpoint)
        return await self._post(endpoint + path, body, headers)

    async def _authenticate(self, endpoint: str) -> str:
        where = f"{endpoint}/v3/auth/authenticate"
        user = {"name": self._options.user, "password": self._options.password}
        token = (await self._post(where, user, {})).get("token")
        if not isinstance(token, str) or not token or not token.isprintable() or not token.isascii():
            raise EtcdError(f"{where}: token is missing, or no text")
        self._token = token
        return token

    async def _post(self, where: str, body: Mapping[str, object], headers: Mapping[str, str]) -> Answer:
        """One request to one endpoint. Raises EtcdError."""
        content = json.dumps(body).encode()
        try:
            request = self._client.build_request("POST", where, content=content, headers=headers)
            reply = await self._client.send(request, stream=True)
            try:
                data = b""
                async for part in reply.aiter_bytes():
                    data += part
                    if len(data) > MAX_ANSWER:
                        raise EtcdError(f"{where}: the answer is longer than {MAX_ANSWER} bytes")
            finally:
                await reply.aclose()
        except _FAILURES as error:
            raise EtcdError(f"{where}: {str(error) or type(error).__name__}") from error
        if reply.status_code != 200:
            raise Refused(where, reply.status_code, _message(data))
        try:
            return an_object(json.loads(data), "the answer")
        except (ValueError, RecursionError) as error:
            raise EtcdError(f"{where}: the answer is no JSON: {_shown(data)}") from error
        except Malformed as error:
            raise EtcdError(f"{where}: {error}") from None


def _message(data: bytes) -> str:
    """etcd's own words, out of an answer that is an error."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return _shown(data)
    text = value.get("error", value.get("message")) if isinstance(value, dict) else None
    return _printable(text[:200]) if isinstance(text, str) else _shown(data)


def _shown(data: bytes) -> str:
    return repr(data[:100].decode(errors="replace"))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
