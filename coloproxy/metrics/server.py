# SPDX-License-Identifier: Apache-2.0
"""GET /metrics. A thread of its own, so that an event loop which is busy can't be held up by whoever reads slowly."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from coloproxy.address import Address, why
from coloproxy.errors import AddressError

from .collector import StatusCollector

log = logging.getLogger(__name__)

LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may cost.

    Attributes:
        clients: at a time; one more is closed.
        client_s: s between two packets of a client.
        request_s: s that a client may take in all, so that one that says a letter now and then keeps no place.
        status_s: s that the event loop may take to give the status.
    """

    clients: int = 8
    client_s: float = 5.0
    request_s: float = 20.0
    status_s: float = 5.0


DEFAULT_LIMITS: Final = Limits()


class MetricsServer:
    """`open()` while there are rights, `start()` in the event loop, `close()`.

    Args:
        address: where to listen; without a host, on this host's loopback alone. Port 0: any.
        status: what to show. Called in the event loop's thread.
        limits: what clients may cost.
    """

    def __init__(
        self, address: Address, status: Callable[[], Mapping[str, Any]], limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self._host, self._port = address.host or LOOPBACK, address.port
        self._status = status
        self._limits = limits
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def where(self) -> tuple[str, int]:
        """Host and port that it listens on."""
        return self._host, self._port

    def open(self) -> None:
        """Listens; nobody is answered yet. Raises AddressError."""
        place = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
        registry = CollectorRegistry(auto_describe=False)
        registry.register(StatusCollector(self._snapshot))
        try:
            family = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)[0][0]
            server = _Server((self._host, self._port), family, self._limits)
        except (OSError, UnicodeError) as error:
            text = why(error) if isinstance(error, OSError) else str(error)
            raise AddressError(f"metrics: can't listen on {place}: {text}") from error
        server.set_app(_only_metrics(make_wsgi_app(registry)))
        self._server, self._port = server, server.server_address[1]

    def start(self) -> None:
        """Answers from now on."""
        if self._server is None:
            self.open()
        assert self._server is not None
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="coloproxy-metrics", daemon=True
        )
        self._thread.start()
        log.info("metrics at http://%s:%d/metrics", f"[{self._host}]" if ":" in self._host else self._host, self._port)

    async def close(self) -> None:
        """Idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        if self._thread is not None:
            await asyncio.to_thread(server.shutdown)
        server.server_close()

    def _snapshot(self) -> Mapping[str, Any]:
        """The status, taken where it changes: in the event loop. Raises TimeoutError: that hangs."""

        async def take() -> Mapping[str, Any]:
            return self._status()

        assert self._loop is not None  # requests are served after start
        future = asyncio.run_coroutine_threadsafe(take(), self._loop)
        try:
            return future.result(self._limits.status_s)
        except TimeoutError:
            future.cancel()
            raise


def _only_metrics(metrics: WSGIApplication) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        def answer(status: str, text: str) -> list[bytes]:
            start(status, [("Content-Type", "text/plain; charset=utf-8")])
            return [text.encode() + b"\n"]

        if environ.get("PATH_INFO") != "/metrics":
            return answer("404 Not Found", "metrics are at /metrics")
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            return answer("405 Method Not Allowed", "GET only")
        try:
            return list(metrics(environ, start))
        except TimeoutError:
            return answer("503 Service Unavailable", "coloproxy does not answer")
        except RuntimeError:  # the loop has ended
            return answer("503 Service Unavailable", "coloproxy is stopping")

    return app


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        log.debug("%s: %s", self.client_address[0], format % args)

    def address_string(self) -> str:
        return str(self.client_address[0])  # no question to a name server


def _cut(request: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has just ended
        request.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, place: tuple[str, int], family: socket.AddressFamily, limits: Limits) -> None:
        self.address_family = family
        self._free = threading.BoundedSemaphore(limits.clients)
        self._limits = limits
        super().__init__(place, _Handler)

    def server_bind(self) -> None:
        """Without http.server's question to a name server for our own name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        request.settimeout(self._limits.client_s)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        end = threading.Timer(self._limits.request_s, _cut, (request,))
        end.daemon = True
        end.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            end.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        with contextlib.suppress(IndexError, TypeError):
            log.debug("metrics: %s", client_address[0], exc_info=True)
