# SPDX-License-Identifier: Apache-2.0
"""The control socket of a running coloproxy."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from coloproxy.address import remove_stale_socket, why
from coloproxy.errors import ColoproxyError, ControlError, ControlRefused, MisuseError

from .protocol import (
    BUSY,
    FAILED,
    INTERNAL,
    MAX_REQUEST,
    PROTOCOL,
    REFUSED,
    Lines,
    Request,
    encode_error,
    encode_return,
    parse_request,
)

log = logging.getLogger(__name__)

Handler = Callable[[Mapping[str, Any]], Awaitable[object]]
"""Takes a command's arguments and gives JSON. Raises ControlRefused, or another ColoproxyError, for an error."""

_READ: Final = 64 << 10
_UCRED: Final = struct.Struct("iII")


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may cost.

    Attributes:
        clients: connections at a time; one more is told so and closed.
        idle: s that a client may be quiet between requests.
        write: s that a client may take to read an answer.
        backlog: of the socket.
    """

    clients: int = 32
    idle: float = 600.0
    write: float = 10.0
    backlog: int = 16


DEFAULT_LIMITS: Final = Limits()


class ControlServer:
    """`async with ControlServer(path, handlers):` listens there; handlers run in this event loop.

    A handler that has begun is not cancelled when its client goes away: a failover must not stop half-way. Requests of
    one connection are handled one after the other.

    Args:
        path: of the unix socket. One that a killed process left behind is replaced.
        handlers: by the name of their command.
        mode: file mode of the socket.
        group: that it is given to, name or number; None: the process's own.
        limits: what clients may cost.
    """

    def __init__(
        self,
        path: Path,
        handlers: Mapping[str, Handler],
        *,
        mode: int = 0o660,
        group: str | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.path = path
        self._handlers = dict(handlers)
        self._mode = mode
        self._group = group
        self._limits = limits
        self._server: asyncio.Server | None = None
        self._inode: tuple[int, int] | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.Task[None]] = set()  # those of them that no handler runs for

    async def __aenter__(self) -> ControlServer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listens. Raises AddressError: another process does there, or it is no socket; MisuseError: it can't be."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            remove_stale_socket(str(self.path), "control socket")
            listener.setblocking(False)
            listener.bind(str(self.path))
            status = self.path.lstat()
            self._inode = (status.st_dev, status.st_ino)
            # Nobody can connect before it listens, so nobody does with the mode that the umask has left.
            os.chown(self.path, -1, -1 if self._group is None else _group_id(self._group))
            self.path.chmod(self._mode)
            self._server = await asyncio.start_unix_server(self._serve, sock=listener, backlog=self._limits.backlog)
        except (OSError, MisuseError) as error:
            listener.close()
            self._unlink()
            if isinstance(error, MisuseError):
                raise
            raise MisuseError(f"control socket: can't listen on {self.path}: {why(error)}") from error

    async def stop(self, grace: float = 2.0) -> None:
        """Stops listening, lets handlers that run end for up to `grace` seconds, and closes all. Idempotent."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        self._unlink()
        for task in self._waiting:
            task.cancel()
        if self._clients:
            _, late = await asyncio.wait(self._clients, timeout=grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _unlink(self) -> None:
        if self._inode is not None:
            with contextlib.suppress(OSError):
                status = self.path.lstat()
                if (status.st_dev, status.st_ino) == self._inode:  # not somebody else's by now
                    self.path.unlink()
            self._inode = None

    # -------------------------------------------------------------- one client

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # asyncio runs it in one
        who = _peer(writer)
        try:
            if len(self._clients) >= self._limits.clients:
                writer.write(encode_error(BUSY, f"there are {self._limits.clients} connections already"))
                return
            self._clients.add(task)
            await self._talk(reader, writer, who)
        except (TimeoutError, ConnectionError):
            log.debug("control: %s is gone, or reads too slowly", who)
        except asyncio.CancelledError:
            log.warning("control: stopped while a command of %s ran", who)
        finally:
            self._clients.discard(task)
            writer.close()
            if writer.transport.get_write_buffer_size() and not writer.transport.is_closing():
                writer.transport.abort()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, who: str) -> None:
        lines = Lines(MAX_REQUEST)
        while data := await self._read(reader):
            try:
                whole = lines.feed(data)
            except ControlError as error:
                await self._write(writer, encode_error(PROTOCOL, str(error)))
                return
            for line in whole:
                await self._write(writer, await self._answer(line, who))

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        """What came; nothing when the client has gone, or when it is time to stop."""
        if self._server is None:
            return b""
        task = asyncio.current_task()
        assert task is not None
        self._waiting.add(task)
        try:
            async with asyncio.timeout(self._limits.idle):
                return await reader.read(_READ)
        except asyncio.CancelledError:
            if self._server is not None:
                raise
            return b""
        finally:
            self._waiting.discard(task)

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        try:
            async with asyncio.timeout(self._limits.write):
                await writer.drain()
        except TimeoutError:
            writer.transport.abort()
            raise

    async def _answer(self, line: bytes, who: str) -> bytes:
        try:
            request = parse_request(line, self._handlers)
            log.log(_level(request), "control: %s, asked by %s", request.command, who)
            return encode_return(await self._handlers[request.command](request.arguments))
        except ControlRefused as error:
            return encode_error(error.kind, str(error))
        except MisuseError as error:
            return encode_error(REFUSED, str(error))
        except ColoproxyError as error:
            return encode_error(FAILED, str(error))
        except Exception as error:
            # Whatever it is, it must not end the daemon, nor leave the client without an answer.
            log.exception("control: a command of %s failed", who)
            return encode_error(INTERNAL, f"{type(error).__name__}: {error}")


def _level(request: Request) -> int:
    return logging.DEBUG if request.command == "status" else logging.INFO  # monitoring asks for it all the time


def _peer(writer: asyncio.StreamWriter) -> str:
    sock = writer.get_extra_info("socket")
    try:
        pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    except OSError as error:
        return f"somebody ({why(error)})"
    return f"pid {pid}, uid {uid}, gid {gid}"


def _group_id(group: str) -> int:
    if group.isdigit():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise MisuseError(f"control socket: there is no group {group!r}") from None
