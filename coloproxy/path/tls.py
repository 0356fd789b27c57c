# SPDX-License-Identifier: Apache-2.0
"""Keys and transports of the link, over csrc/path/tls.h (OpenSSL: TLS 1.3 only, both sides authenticated).

keys = Keys.psk("pair", read_psk(Path("/etc/coloproxy/pair.psk")))
transport = Transport(sock, keys, server=False)
await transport.handshake()
pointer = transport.release()  # a C thread's from here on
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import socket
import stat
from pathlib import Path
from typing import Any, Final

from coloproxy.errors import LinkError, MisuseError, NativeError

from ._native import ffi, lib
from .refusals import Kind

PSK_FILE_MAX: Final = 4096  # bytes
PSK_LEAST: Final = 16  # bytes of the key itself
_TEXT: Final = 256


def read_psk(path: Path) -> bytes:
    """The key in a file: hex or base64 of 16 to 256 bytes, as `openssl rand -hex 32` writes it.

    Raises:
        MisuseError: there is no such file, others than its owner may read it, or it holds no key.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise MisuseError(f"psk_file {path}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise MisuseError(f"psk_file {path}: not a regular file")
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise MisuseError(f"psk_file {path}: others than its owner may use it (mode {mode:04o}); chmod 600 it")
        text = os.read(descriptor, PSK_FILE_MAX + 1)
    finally:
        os.close(descriptor)
    key = _decode(text.strip())
    if key is None:
        raise MisuseError(f"psk_file {path}: neither hex nor base64; `openssl rand -hex 32` makes a key")
    if len(key) < PSK_LEAST:
        raise MisuseError(f"psk_file {path}: {len(key)} bytes of key; 16 are the least, 32 are good")
    return key


def _decode(text: bytes) -> bytes | None:
    try:
        return binascii.unhexlify(text)
    except ValueError:
        pass
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return None


class Keys:
    """What proves who we are, and the peer. One object serves both directions and any number of connections."""

    def __init__(self, client: Any, server: Any) -> None:
        """Not for callers: see psk() and certificates()."""
        self._client = client
        self._server = server

    @classmethod
    def psk(cls, identity: str, key: bytes) -> Keys:
        """One pre-shared key that both sides have, under one name. Raises MisuseError: unusable ones."""
        if "\0" in identity:
            raise MisuseError("the identity of a pre-shared key can't contain a NUL byte")
        name = ffi.new("char[]", identity.encode())
        secret = ffi.from_buffer("uint8_t[]", key)
        return cls(*(_made(lib.colo_tls_psk, server, name, secret, len(key)) for server in (False, True)))

    @classmethod
    def certificates(cls, certificate: Path, key: Path, ca: Path, peer_name: str | None = None) -> Keys:
        """PEM files. The peer's must be signed by `ca`, and be of the DNS name `peer_name` if that is given.

        Raises MisuseError: files that are missing, broken, or don't belong together.
        """
        files = [ffi.new("char[]", os.fsencode(path)) for path in (certificate, key, ca)]
        name = ffi.NULL if peer_name is None else ffi.new("char[]", peer_name.encode())
        return cls(*(_made(lib.colo_tls_certificates, server, *files, name) for server in (False, True)))

    def native(self, *, server: bool) -> Any:
        """The colo_tls of one direction; ours, so for as long as this object lives."""
        return self._server if server else self._client


def _made(function: Any, *arguments: Any) -> Any:
    text = ffi.new("char[]", _TEXT)
    tls = function(*arguments, text, _TEXT)
    if tls == ffi.NULL:
        raise MisuseError(ffi.string(text).decode(errors="replace"))
    return ffi.gc(tls, lib.colo_tls_destroy)


def _kind(text: str) -> Kind:
    """What csrc/path/tls.c and tlsreason.c say, sorted for the counters."""
    if "plain text?" in text:
        return Kind.PLAIN
    if "certificate" in text:
        return Kind.CERTIFICATE
    if "pre-shared key" in text:
        return Kind.KEY
    return Kind.TLS if "TLS" in text or "prove" in text else Kind.CUT


class Transport:
    """One connection, driven by asyncio until `release`. Not for two tasks at once.

    Takes the socket over; keys None: plain text. Raises NativeError, and the socket stays the caller's then.
    """

    def __init__(self, sock: socket.socket, keys: Keys | None, *, server: bool) -> None:
        native = ffi.NULL if keys is None else keys.native(server=server)
        self._transport = lib.colo_transport_create(native, sock.fileno())
        if self._transport == ffi.NULL:
            raise NativeError("a connection of the link can't be set up: no memory, or no socket")
        self._fd = sock.detach()

    @property
    def peer(self) -> str:
        """Who the peer has proved to be: the key's identity, or its certificate's subject; "" in plain text."""
        return str(ffi.string(lib.colo_transport_peer(self._alive())).decode(errors="replace"))

    @property
    def cipher(self) -> str:
        """For people, e.g. "TLSv1.3 TLS_AES_128_GCM_SHA256" or "plain text"."""
        return str(ffi.string(lib.colo_transport_cipher(self._alive())).decode())

    async def handshake(self) -> None:
        """Until both sides have proved who they are. Raises LinkError."""
        while (result := lib.colo_transport_handshake(self._alive())) != 0:
            await self._wait(result)

    async def receive(self, n: int) -> bytes:
        """1 to n bytes; what comes behind them stays in the transport. Raises LinkError."""
        data = ffi.new("uint8_t[]", n)
        while (result := lib.colo_transport_read(self._alive(), data, n)) <= 0:
            await self._wait(result)
        return bytes(ffi.buffer(data, result))

    async def send(self, data: bytes) -> None:
        """All of `data`. Raises LinkError."""
        buffer = ffi.from_buffer("uint8_t[]", data)
        at = 0
        while at < len(data):
            result = lib.colo_transport_write(self._alive(), buffer + at, len(data) - at)
            if result > 0:
                at += result
            else:
                await self._wait(result)

    def release(self) -> Any:
        """The colo_transport, the caller's from now on.

        It may hold decrypted bytes that no poll tells of (colo_transport_pending): read it once before waiting.
        """
        transport = self._alive()
        self._transport = None
        return transport

    def close(self) -> None:
        """Says goodbye if that doesn't block, and closes the socket. Idempotent; nothing after release()."""
        if self._transport is not None:
            lib.colo_transport_destroy(self._transport)
            self._transport = None

    def _alive(self) -> Any:
        if self._transport is None:
            raise MisuseError("the transport was closed or released")
        return self._transport

    async def _wait(self, result: int) -> None:
        loop = asyncio.get_running_loop()
        if result == lib.COLO_TRANSPORT_READ:
            add, remove = loop.add_reader, loop.remove_reader
        elif result == lib.COLO_TRANSPORT_WRITE:
            add, remove = loop.add_writer, loop.remove_writer
        elif result == lib.COLO_TRANSPORT_CLOSED:
            raise LinkError(Kind.CUT, "the peer closed the connection")
        else:
            text = ffi.string(lib.colo_transport_error(self._alive())).decode(errors="replace")
            raise LinkError(_kind(text), text or "misuse of a transport")
        ready = asyncio.Event()
        add(self._fd, ready.set)
        try:
            await ready.wait()
        finally:
            remove(self._fd)
