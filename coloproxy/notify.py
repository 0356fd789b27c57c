# SPDX-License-Identifier: Apache-2.0
"""--notify-dev: the messages between Xen's COLO frame and a comparator, as QEMU 7.2's net/colo-compare.c speaks them.

On the wire: a 4-byte big-endian length and that many bytes of text, without a NUL. From Xen, with vnet_hdr_support=on,
a 4-byte word (a vnet header length, of no meaning here) stands between the two; towards Xen never.

    COLO_USERSPACE_PROXY_INIT    from Xen    is anybody there?
    COLO_COMPARE_GET_XEN_INIT    to Xen      the answer
    COLO_CHECKPOINT              from Xen    a checkpoint has committed: flush
    DO_CHECKPOINT                to Xen      the VMs differ: a checkpoint is wanted
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from enum import Enum
from typing import Final

from .address import PeerSource
from .errors import PeerError

log = logging.getLogger(__name__)

MAX_MESSAGE: Final = 4096  # bytes; the longest known is 25


class FromXen(Enum):
    INIT = b"COLO_USERSPACE_PROXY_INIT"
    CHECKPOINT = b"COLO_CHECKPOINT"


class ToXen(Enum):
    INIT_ANSWER = b"COLO_COMPARE_GET_XEN_INIT"
    DO_CHECKPOINT = b"DO_CHECKPOINT"


def encode(message: ToXen) -> bytes:
    """The bytes on the wire."""
    return len(message.value).to_bytes(4, "big") + message.value


class Decoder:
    """Bytes in, messages out; of one connection."""

    def __init__(self, *, vnet_hdr: bool = False) -> None:
        self._head = 8 if vnet_hdr else 4
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[FromXen | bytes]:
        """What is complete by now; text that is none of Xen's comes as bytes. Raises PeerError: not this protocol."""
        self._buffer += data
        found: list[FromXen | bytes] = []
        while len(self._buffer) >= 4:
            length = int.from_bytes(self._buffer[:4], "big")
            if length > MAX_MESSAGE:
                raise PeerError(f"a message of {length} bytes: not Xen's COLO frame (or vnet_hdr_support differs)")
            end = self._head + length
            if len(self._buffer) < end:
                break
            text = bytes(self._buffer[self._head : end])
            del self._buffer[:end]
            try:
                found.append(FromXen(text))
            except ValueError:
                found.append(text)
        return found


class NotifyPort:
    """Serves one peer after the other. `on_checkpoint` is called for each COLO_CHECKPOINT."""

    def __init__(self, source: PeerSource, on_checkpoint: Callable[[], None], *, vnet_hdr: bool = False) -> None:
        self._source = source
        self._on_checkpoint = on_checkpoint
        self._vnet_hdr = vnet_hdr
        self._sock: socket.socket | None = None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._sock = await self._source.next()
            log.info("notify_dev: connected")
            reason = "closed by its peer"
            try:
                await self._serve(self._sock)
            except PeerError as error:
                reason = str(error)
            except OSError as error:
                reason = error.strerror or str(error)
            finally:
                self._sock.close()
                self._sock = None
            log.warning("notify_dev: lost: %s", reason)

    async def _serve(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        decoder = Decoder(vnet_hdr=self._vnet_hdr)
        while data := await loop.sock_recv(sock, 4096):
            for message in decoder.feed(data):
                if message is FromXen.INIT:
                    self._send(ToXen.INIT_ANSWER)
                elif message is FromXen.CHECKPOINT:
                    self._on_checkpoint()
                else:
                    log.warning("notify_dev: unknown message %r", message)

    def ask(self) -> bool:
        """Sends DO_CHECKPOINT; False: there is no peer, or it does not read."""
        return self._send(ToXen.DO_CHECKPOINT)

    def _send(self, message: ToXen) -> bool:
        if self._sock is None:
            return False
        data = encode(message)
        try:
            complete = self._sock.send(data, socket.MSG_NOSIGNAL) == len(data)
        except BlockingIOError:
            return False  # nothing was written; the wish is repeated
        except OSError:
            return False  # the reader finds out
        if not complete:  # half a message can't be taken back
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        return complete
