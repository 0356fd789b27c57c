# SPDX-License-Identifier: Apache-2.0
"""ADDR: where a socket of QEMU's meets a socket of ours, and how the two find each other.

    HOST:PORT   [IPV6]:PORT   unix:PATH          we listen
    connect:HOST:PORT   connect:unix:PATH ...    we connect, and try again until it works

`parse_address` is pure. `PeerSource` is the adapter: `await source.next()` gives one connected socket. As with a
QEMU chardev there is one peer at a time: whoever else connects waits in the kernel's backlog until the owner of the
source asks for the next peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import AddressError

log = logging.getLogger(__name__)

UNIX_PATH_MAX: Final = 107  # bytes; sockaddr_un.sun_path of unix(7) less its final NUL
BACKLOG: Final = 8

# A host that vanished sends nothing. Keepalive notices while we are quiet, TCP_USER_TIMEOUT while we are writing
# (tcp(7)); both free the place for a peer that comes back after 5 s.
KEEPALIVE_IDLE_S: Final = 2
KEEPALIVE_INTERVAL_S: Final = 1
KEEPALIVE_COUNT: Final = 3
USER_TIMEOUT_MS: Final = 5000

CONNECT_BACKOFF_FIRST_S: Final = 0.05
CONNECT_BACKOFF_MAX_S: Final = 1.0
CONNECT_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Address:
    """One parsed ADDR. Either `path` is set (unix) or `port` (TCP; host "" = every local address)."""

    connect: bool
    host: str = ""
    port: int = 0
    path: str | None = None

    @property
    def is_unix(self) -> bool:
        return self.path is not None

    def __str__(self) -> str:
        prefix = "connect:" if self.connect else ""
        if self.path is not None:
            return f"{prefix}unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{prefix}{host}:{self.port}"


def parse_address(text: str, option: str = "ADDR", *, may_listen: bool = True) -> Address:
    """Parses ADDR. `option` names the command-line option in the message of the AddressError.

    With `may_listen=False` (the QMP socket, where QEMU is the server) the prefix connect: is implied.
    """

    def refuse(what: str) -> AddressError:
        return AddressError(f"{option}: {text!r}: {what} (use HOST:PORT, [IPV6]:PORT or unix:PATH)")

    rest = text.removeprefix("connect:")
    connect = rest != text or not may_listen
    if rest.startswith("unix:"):
        path = rest.removeprefix("unix:")
        if not path:
            raise refuse("the path is missing")
        if "\0" in path:
            raise refuse("a path can't contain a NUL byte")
        if len(os.fsencode(path)) > UNIX_PATH_MAX:
            raise refuse(f"the path is longer than the {UNIX_PATH_MAX} bytes that unix sockets allow")
        return Address(connect=connect, path=path)
    if rest.startswith("tcp:"):
        raise refuse("leave the tcp: out")
    if rest.startswith("["):
        host, bracket, tail = rest[1:].partition("]")
        if not bracket:
            raise refuse("the ] is missing")
        if ":" not in host:
            raise refuse("brackets are for IPv6 addresses")
        if not tail.startswith(":"):
            raise refuse("the port is missing")
        port_text = tail[1:]
    else:
        host, colon, port_text = rest.rpartition(":")
        if not colon:
            raise refuse("the port is missing")
        if ":" in host:
            raise refuse("an IPv6 address needs brackets")
    if not port_text.isascii() or not port_text.isdigit():
        raise refuse(f"{port_text!r} is not a port number" if port_text else "the port is missing")
    port = int(port_text)
    if port > 65535:
        raise refuse("a port is at most 65535")
    if any(c.isspace() or c in ",/\0" for c in host):
        raise refuse("the host name has a character that none can have")
    if connect and not host:
        raise refuse("the host to connect to is missing")
    if connect and not port:
        raise refuse("port 0 can't be connected to")
    return Address(connect=connect, host=host, port=port)


def tune(sock: socket.socket) -> None:
    """Non-blocking; for TCP without delay, and such that the loss of the peer's host shows within seconds."""
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


def why(error: OSError) -> str:
    """The reason in an OSError, in the system's words (asyncio puts others in their place)."""
    return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else error.strerror or str(error)


class PeerSource:
    """Gives the sockets of one ADDR's peers, one by one. `open` first, `close` at the end.

    option: the command-line option, for messages.
    """

    def __init__(self, address: Address, option: str) -> None:
        self.address = address
        self.option = option
        self._listeners: list[socket.socket] = []
        self._unix_inode: tuple[int, int] | None = None

    async def open(self) -> None:
        """Binds and listens (nothing to do for connect:). Raises AddressError."""
        if self.address.connect:
            return
        try:
            if self.address.path is not None:
                self._listen_unix(self.address.path)
            else:
                await self._listen_tcp()
        except OSError as error:
            self.close()
            raise AddressError(f"{self.option}: can't listen on {self.address}: {why(error)}") from error

    def bound(self) -> list[str]:
        """The addresses listened on, as ADDR; tells which port the kernel chose for port 0."""
        names = []
        for listener in self._listeners:
            name = listener.getsockname()
            names.append(f"unix:{name}" if isinstance(name, str) else str(Address(False, name[0], name[1])))
        return names

    async def next(self) -> socket.socket:
        """The next peer's connected socket, non-blocking and tuned; the caller's. Waits as long as it takes."""
        return await (self._connect() if self.address.connect else self._accept())

    def close(self) -> None:
        """Stops listening and removes our unix socket. Idempotent."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        if self._unix_inode is not None and self.address.path is not None:
            with contextlib.suppress(OSError):
                status = Path(self.address.path).lstat()
                if (status.st_dev, status.st_ino) == self._unix_inode:  # not somebody else's by now
                    Path(self.address.path).unlink()
            self._unix_inode = None

    # ------------------------------------------------------------ listening

    def _listen_unix(self, path: str) -> None:
        remove_stale_socket(path, self.option)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listeners.append(listener)
        listener.setblocking(False)
        listener.bind(path)
        status = Path(path).lstat()
        self._unix_inode = (status.st_dev, status.st_ino)
        listener.listen(BACKLOG)

    async def _listen_tcp(self) -> None:
        port = self.address.port
        for family, kind, proto, _, where in await resolve(self.address, self.option, passive=True):
            listener = socket.socket(family, kind, proto)
            self._listeners.append(listener)
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((where[0], port, *where[2:]))
            listener.listen(BACKLOG)
            port = listener.getsockname()[1]  # all families share the port that was chosen for 0

    async def _accept(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        for listener in self._listeners:
            loop.add_reader(listener, ready.set)
        try:
            while True:
                await ready.wait()
                ready.clear()
                for listener in self._listeners:
                    try:
                        sock, _ = listener.accept()
                    except (BlockingIOError, ConnectionAbortedError):
                        continue  # the peer left while it waited
                    except OSError as error:  # no descriptors left: it stays in the backlog
                        log.warning("%s: can't accept a connection: %s", self.option, why(error))
                        await asyncio.sleep(CONNECT_BACKOFF_MAX_S)
                        continue
                    try:
                        tune(sock)
                    except OSError:
                        sock.close()
                        continue
                    return sock
        finally:
            for listener in self._listeners:
                loop.remove_reader(listener)

    # ----------------------------------------------------------- connecting

    async def _connect(self) -> socket.socket:
        backoff = CONNECT_BACKOFF_FIRST_S
        last_reason = ""
        while True:
            try:
                return await connect_once(self.address, self.option)
            except AddressError as error:
                if str(error) != last_reason:
                    last_reason = str(error)
                    log.warning("%s; trying again", error)
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, CONNECT_BACKOFF_MAX_S)


_AddrInfo = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]


async def resolve(address: Address, option: str, *, passive: bool = False) -> list[_AddrInfo]:
    """getaddrinfo of a TCP address. Raises AddressError."""
    flags = socket.AI_PASSIVE if passive else 0
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            address.host or None, address.port, type=socket.SOCK_STREAM, flags=flags
        )
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else str(error)
        raise AddressError(f"{option}: {address}: can't resolve {address.host!r}: {reason}") from error
    return [(int(family), int(kind), proto, name, where) for family, kind, proto, name, where in found]  # type: ignore[misc]


async def connect_once(address: Address, option: str, source: str | None = None) -> socket.socket:
    """One attempt, over all addresses the name has. The socket is non-blocking and tuned. Raises AddressError.

    source: the IP address to connect from; None: the kernel chooses. Not for unix sockets.
    """
    loop = asyncio.get_running_loop()
    targets: list[tuple[int, str | tuple[str, int] | tuple[str, int, int, int]]]
    if address.path is not None:
        targets = [(socket.AF_UNIX, address.path)]
    else:
        targets = [(family, where) for family, _, _, _, where in await resolve(address, option)]
    failure: OSError | None = None
    for family, where in targets:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if source is not None:
                sock.bind((source, 0))
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await loop.sock_connect(sock, where)
            # asyncio takes EAGAIN for "under way"; of a unix socket it means that the listener's queue is full.
            sock.getpeername()
            tune(sock)
        except TimeoutError:
            sock.close()
            failure = OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    assert failure is not None
    bare = str(address).removeprefix("connect:")
    raise AddressError(f"{option}: can't connect to {bare}: {why(failure)}") from failure


def remove_stale_socket(path: str, option: str) -> None:
    """Removes what a killed process left behind: a unix socket that nobody listens on. Raises AddressError.

    Anything else at that place is kept and refused: a file that is no socket, or a socket in use.
    """
    try:
        status = Path(path).lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise AddressError(f"{option}: {path} exists and is no socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass  # its backlog is full, so somebody does listen
    raise AddressError(f"{option}: {path} is in use: another process listens there")
