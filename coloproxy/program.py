# SPDX-License-Identifier: Apache-2.0
"""Runs a program to its end: with a time-out, its output in bounded lines, and nothing of it left behind.

The program leads a process group of its own. Its end is seen by a pidfd, so its pid can't be another's while the group
is killed: it is reaped only afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

log = logging.getLogger(__name__)

MAX_LINE: Final = 500  # bytes of a line that are kept
MAX_LINES: Final = 200  # of one stream of one run that are passed on; the rest is counted
TAIL: Final = 5  # last lines of stderr that a failure is told with
_READ: Final = 1 << 16
_LAST_READS: Final = 16  # of what a pipe still holds when the program has ended: 1 MiB, as much as pipes hold
_NOT_STARTED: Final = 127  # as shells say it

OnLine = Callable[[str, str], None]
"""Called with "stdout" or "stderr", and a line."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program has ended.

    Attributes:
        code: its exit code; negative: the signal that ended it.
        timed_out: it was ended by us, for it took too long.
        errors: the last lines of its stderr.
    """

    code: int
    timed_out: bool
    errors: tuple[str, ...]

    @property
    def failure(self) -> str | None:
        """Why it failed, for people; None: it did not."""
        if self.timed_out:
            what = "it took too long and was ended"
        elif self.code == 0:
            return None
        elif self.code < 0:
            what = f"it was ended by signal {-self.code}"
        else:
            what = f"exit code {self.code}"
        return what + (f": {' | '.join(self.errors)}" if self.errors else "")


class _Stream:
    """One of its pipes: lines go to `on_line`, the last ones stay in `tail`."""

    def __init__(self, name: str, pipe: IO[bytes], on_line: OnLine) -> None:
        self.tail: deque[str] = deque(maxlen=TAIL)
        self._name = name
        self._pipe = pipe
        self._on_line = on_line
        self._part = bytearray()
        self._lines = 0
        os.set_blocking(pipe.fileno(), False)
        asyncio.get_running_loop().add_reader(pipe.fileno(), self.read)

    def read(self) -> bool:
        """What is there, 64 KiB at most; False: nothing more comes, or nothing is there."""
        try:
            data = os.read(self._pipe.fileno(), _READ)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            return False
        first, *rest = data.split(b"\n")
        self._add(first)
        for piece in rest:
            self._line()
            self._add(piece)
        return True

    def close(self) -> None:
        """The program has ended: what is left, and how much was not passed on. Idempotent."""
        if self._pipe.closed:
            return
        for _ in range(_LAST_READS):
            if not self.read():
                break
        asyncio.get_running_loop().remove_reader(self._pipe.fileno())
        self._pipe.close()
        if self._part:
            self._line()
        if self._lines > MAX_LINES:
            self._on_line(self._name, f"... and {self._lines - MAX_LINES} lines more")

    def _add(self, piece: bytes) -> None:
        self._part += piece[: MAX_LINE - len(self._part)]

    def _line(self) -> None:
        text = "".join(c if c.isprintable() else "?" for c in self._part.decode(errors="replace"))
        self._part.clear()
        self._lines += 1
        self.tail.append(text)
        if self._lines <= MAX_LINES:
            self._on_line(self._name, text)


class _Running:
    """A program that was started; `ended` is done as soon as it is a zombie."""

    def __init__(self, process: subprocess.Popen[bytes], on_line: OnLine) -> None:
        assert process.stdout is not None and process.stderr is not None
        self._process = process
        self._pidfd = os.pidfd_open(process.pid)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.streams = (_Stream("stdout", process.stdout, on_line), _Stream("stderr", process.stderr, on_line))
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_end)

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        if not self.ended.done():
            self.ended.set_result(None)

    def signal_group(self, number: signal.Signals) -> None:
        """The program and what it has started. It is not reaped yet, so the group is still its own."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def reap(self, patience_s: float) -> int:
        """Its exit code. It has ended, or was killed: then this blocks, as long as the kernel takes for that."""
        asyncio.get_running_loop().remove_reader(self._pidfd)
        try:
            return self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            log.warning("%s (pid %d) does not die of SIGKILL", self._process.args, self._process.pid)
            return -signal.SIGKILL
        finally:
            os.close(self._pidfd)
            for stream in self.streams:
                stream.close()


async def run_program(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    timeout_s: float,
    grace_s: float = 2.0,
    on_line: OnLine,
    stdin: bytes = b"",
) -> Ended:
    """Runs `command` (a program and its arguments) until it ends.

    After ``timeout_s`` its process group gets SIGTERM, and SIGKILL ``grace_s`` later; the same when this is cancelled,
    and SIGKILL at once when it is cancelled again. What a program that failed has left running is killed; what one that
    ended with 0 has left is its own business, but nothing reads its output any more.

    Args:
        environment: besides our own.
        stdin: all that its standard input holds; it is kept in memory, never in a file that has a name.
    """
    try:
        with _source(stdin) as source:
            process = subprocess.Popen(  # noqa: ASYNC220 -- it returns at exec; asyncio's own does the same
                list(command),
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **environment},
                start_new_session=True,
                bufsize=0,
            )
    except (OSError, ValueError) as error:
        return Ended(_NOT_STARTED, timed_out=False, errors=(f"{command[0]}: {error}",))
    running = _Running(process, on_line)
    timed_out = failed = True
    try:
        await asyncio.wait([running.ended], timeout=timeout_s)
        timed_out = not running.ended.done()
        failed = timed_out or _peek(process.pid) != 0
    finally:
        try:
            if not running.ended.done():
                running.signal_group(signal.SIGTERM)
                await asyncio.wait([running.ended], timeout=grace_s)
        finally:
            if failed:
                running.signal_group(signal.SIGKILL)
            code = running.reap(grace_s)
    return Ended(code, timed_out, tuple(running.streams[1].tail))


def _source(data: bytes) -> IO[bytes]:
    """A file without a name that holds `data`, to be read from its beginning."""
    if not data:
        return Path(os.devnull).open("rb")
    file = os.fdopen(os.memfd_create("stdin"), "w+b")  # a pipe could block us, if the program doesn't read
    file.write(data)
    file.seek(0)
    return file


def _peek(pid: int) -> int:
    """The exit status of a zombie of ours, which stays one."""
    info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    if info is None:
        return 0
    return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status
