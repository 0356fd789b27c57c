# SPDX-License-Identifier: Apache-2.0
"""Lines to a file, pipe or terminal, written by a thread of their own.

A terminal in Ctrl-S, a full disk or a stalled pipe must not hold up the control plane: while it waits the epoch gate
is closed, and no frame moves. So the queue is bounded, and what finds it full is lost and counted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable
from typing import Final

MAX_LINES: Final = 10_000


class LineWriter:
    """Writes to `fd`, in order. `on_error` is called once, from the thread, with the first OSError.

    name: of the thread.
    owned: close the descriptor at the end.
    """

    def __init__(
        self,
        fd: int,
        name: str,
        *,
        owned: bool = False,
        on_error: Callable[[OSError], None] | None = None,
        max_lines: int = MAX_LINES,
    ) -> None:
        self.lost = 0  # lines that found the queue full, or could not be written
        self._fd = fd
        self._owned = owned
        self._on_error = on_error
        self._queue: queue.Queue[bytes | None] = queue.Queue(max_lines)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, line: str) -> bool:
        """Queues one line (without its newline); False if there is no room."""
        try:
            self._queue.put_nowait(line.encode(errors="replace") + b"\n")
        except queue.Full:
            self.lost += 1
            return False
        return True

    def close(self, timeout: float = 2.0) -> None:
        """Waits up to `timeout` seconds until all is written. Idempotent."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=timeout)
            self._thread.join(timeout)

    def _run(self) -> None:
        while (line := self._queue.get()) is not None:
            try:
                while line:
                    line = line[os.write(self._fd, line) :]
            except OSError as error:
                self.lost += 1
                if self._on_error is not None:
                    self._on_error(error)
                    self._on_error = None
        if self._owned:
            os.close(self._fd)


class LineHandler(logging.Handler):
    """A logging handler that never blocks."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.put(self.format(record))
        except Exception:
            self.handleError(record)
