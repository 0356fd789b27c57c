# SPDX-License-Identifier: Apache-2.0
"""One path's UDP socket: bound, connected to the peer, opened again when the network has changed under it.

Connected, so that the kernel keeps strangers' datagrams out of our queue. An address or a route that is not there
(yet) is no error: the path is silent until it is, and tried again each RETRY_NS.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from dataclasses import dataclass
from typing import Any, Final

from coloproxy.errors import AddressError

from .message import MESSAGE_MAX

RETRY_NS: Final = 10**9
_QUEUE: Final = 1 << 18  # bytes asked for; the kernel's limit applies
_CS6: Final = 0xC0  # DSCP "network control": ahead of the checkpoints' bulk where the network looks at it
_PRIORITY: Final = 6  # the same for our own host's queueing discipline; the most without CAP_NET_ADMIN
_FATAL: Final = frozenset({errno.EADDRINUSE, errno.EACCES, errno.EINVAL, errno.EAFNOSUPPORT})
_ERRORS_IN_A_ROW: Final = 1000


@dataclass(frozen=True, slots=True)
class UdpPath:
    """A path: our address and the peer's, as (IPv4 or IPv6 literal, port). A link-local one needs its %interface.

    name: for people, such as "client" or "link".
    """

    name: str
    local: tuple[str, int]
    peer: tuple[str, int]


def _resolve(path: UdpPath, address: tuple[str, int]) -> tuple[socket.AddressFamily, Any]:
    """Raises AddressError: no literal; OSError: an interface that is not there."""
    host, port = address
    if not 1 <= port <= 65535:
        raise AddressError(f"heartbeat path {path.name}: port {port}: it must be 1 to 65535")
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=flags)
    except socket.gaierror as error:
        if "%" in host:  # the same error as for nonsense; the interface may come later
            raise OSError(errno.ENODEV, f"{host}: no such interface") from error
        raise AddressError(f"heartbeat path {path.name}: {host!r} is no IPv4 or IPv6 address") from error
    return found[0][0], found[0][4]


def _bound_and_connected(path: UdpPath) -> socket.socket:
    """Raises AddressError: it can never work, or the port is taken; OSError: perhaps later."""
    family, local = _resolve(path, path.local)
    peer_family, peer = _resolve(path, path.peer)
    if family != peer_family:
        raise AddressError(f"heartbeat path {path.name}: one address is IPv4, the other IPv6")
    with contextlib.ExitStack() as undo:
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            undo.callback(sock.close)
            _tune(sock, family)
            sock.bind(local)
        except OSError as error:
            if error.errno in _FATAL:
                host, port = path.local
                raise AddressError(f"heartbeat path {path.name}: {host} port {port}: {error.strerror}") from error
            raise
        sock.connect(peer)
        undo.pop_all()
    return sock


class UdpSocket:
    """The socket of one path. Never blocks."""

    def __init__(self, path: UdpPath) -> None:
        self.path = path
        self.error: str | None = None  # why it is not open, or why the last send failed
        self._socket: socket.socket | None = None
        self._tried = 0

    def fileno(self) -> int | None:
        return None if self._socket is None else self._socket.fileno()

    def open(self, now: int) -> None:
        """Tries to. Raises AddressError: it can never work, or the port is taken; else see `error`."""
        self.close()
        self._tried = now
        try:
            self._socket = _bound_and_connected(self.path)
            self.error = None
        except OSError as error:
            self.error = error.strerror or str(error)

    def due(self, now: int) -> bool:
        """Should it be opened (again)?"""
        return self.error is not None and now - self._tried >= RETRY_NS

    def close(self) -> None:
        """Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def send(self, data: bytes) -> bool:
        """False: the system didn't take it."""
        if self._socket is None:
            return False
        try:
            self._socket.send(data)
        except BlockingIOError:
            return False  # a full queue is no reason to open a new one
        except ConnectionRefusedError:
            # It speaks of a datagram before this one: nobody listens there, which is what silence says too. Reading
            # the error has cleared it; this one was not sent.
            with contextlib.suppress(OSError):
                self._socket.send(data)
                return True
            return False
        except OSError as error:
            self.error = error.strerror or str(error)
            return False
        self.error = None
        return True

    def receive(self) -> bytes | None:
        """One datagram; None: there is none. Cut behind MESSAGE_MAX, one byte too long to be right."""
        if self._socket is None:
            return None
        for _ in range(_ERRORS_IN_A_ROW):
            try:
                return self._socket.recv(MESSAGE_MAX + 1)
            except ConnectionRefusedError:
                continue  # the kernel tells it once, and then what is behind it
            except OSError:  # BlockingIOError among them
                return None
        return None


def _tune(sock: socket.socket, family: socket.AddressFamily) -> None:
    """Better with than without; a system that refuses any of it is none the worse."""
    options = [(socket.SOL_SOCKET, socket.SO_RCVBUF, _QUEUE), (socket.SOL_SOCKET, socket.SO_PRIORITY, _PRIORITY)]
    if family == socket.AF_INET6:
        options += [(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1), (socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _CS6)]
    else:
        options.insert(1, (socket.IPPROTO_IP, socket.IP_TOS, _CS6))  # before SO_PRIORITY, which it sets as well
    for level, name, value in options:
        with contextlib.suppress(OSError):
            sock.setsockopt(level, name, value)
