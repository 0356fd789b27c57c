# SPDX-License-Identifier: Apache-2.0
"""Asks a running coloproxy, and waits for its answer."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from coloproxy.address import why
from coloproxy.errors import ControlError, ControlUnreachable

from .protocol import MAX_ANSWER, Lines, Request, parse_answer

_READ: Final = 256 << 10
_PAUSE: Final = 0.05  # s, between attempts to connect


class ControlClient:
    """`with ControlClient(path) as client: client.request("status")`.

    Args:
        path: of the control socket.
        timeout: s, for the connection and for each answer.
        appear: s to wait for coloproxy to be there, if it isn't.
    """

    def __init__(self, path: Path | str, timeout: float = 10.0, appear: float = 0.0) -> None:
        self._path = str(path)
        self._lines = Lines(MAX_ANSWER)
        self._answers: deque[bytes] = deque()
        self._socket = self._connect(timeout, time.monotonic() + appear)

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def request(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """What the command returns.

        Raises:
            ControlRefused: coloproxy answered with an error.
            ControlUnreachable: it is gone, or did not answer in time.
            ControlError: the answer is no answer.
        """
        data = Request(command, arguments or {}).encode()
        try:
            with contextlib.suppress(BrokenPipeError):  # refused before we had said it; why is there to be read
                self._socket.sendall(data)
            while not self._answers:
                received = self._socket.recv(_READ)
                if not received:
                    raise ControlUnreachable(f"{self._path}: the connection was closed without an answer")
                self._answers.extend(self._lines.feed(received))
        except TimeoutError as error:
            raise ControlUnreachable(f"{self._path}: no answer in {self._socket.gettimeout():g} s") from error
        except OSError as error:
            raise ControlUnreachable(f"{self._path}: {why(error)}") from error
        return parse_answer(self._answers.popleft())

    def _connect(self, timeout: float, until: float) -> socket.socket:
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(timeout)
            try:
                sock.connect(os.fsencode(self._path))
            except (OSError, ValueError) as error:
                sock.close()
                if isinstance(error, FileNotFoundError | ConnectionRefusedError | BlockingIOError):
                    if time.monotonic() < until:
                        time.sleep(_PAUSE)
                        continue
                    what = "no coloproxy listens there" if not isinstance(error, BlockingIOError) else "it is too busy"
                    raise ControlUnreachable(f"{self._path}: {what}") from error
                text = why(error) if isinstance(error, OSError) else str(error)
                raise ControlUnreachable(f"{self._path}: {text}") from error
            return sock


def ask(path: Path | str, command: str, arguments: Mapping[str, Any] | None = None, *, timeout: float = 10.0) -> Any:
    """One command over a connection of its own; raises as ControlClient.request does."""
    with ControlClient(path, timeout) as client:
        return client.request(command, arguments)


__all__ = ["ControlClient", "ControlError", "ask"]
