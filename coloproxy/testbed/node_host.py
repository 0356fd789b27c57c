# SPDX-License-Identifier: Apache-2.0
"""All processes of one host of the bed, whoever started them: found by their network namespace, which is the bed's own.

A node starts QEMU so that it outlives the node, and its parent is then nobody of ours; but it can't leave its network
namespace unasked.  Each process is taken by a pidfd and looked at again before a signal goes out by it, so that a
number that has got another owner in between harms nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Self

from .errors import DeadlineError, ProcessError

_NAMESPACES: Final = Path("/run/netns")
_POLL_SECONDS: Final = 0.002
_DEADLINE_SECONDS: Final = 10.0
_STOPPED: Final = frozenset("tTZX")


class HostProcesses:
    """The processes in a named network namespace."""

    def __init__(self, namespace: str) -> None:
        """Raises OSError if there is no such namespace, ProcessError if it is the one that we live in."""
        self.namespace = namespace
        self._inode = (_NAMESPACES / namespace).stat().st_ino
        if self._is_ours(os.getpid()):
            raise ProcessError(f"{namespace} is this program's own network namespace")

    def pids(self, program: str = "") -> list[int]:
        """All of them now, or those whose program's file has a name that this regular expression matches in full.

        A process that has ended and waits for its parent is none.
        """
        found = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in found if self._is_ours(pid) and (not program or re.fullmatch(program, _program(pid)))]

    def signal(self, number: signal.Signals, pids: Iterable[int] | None = None) -> None:
        """To those of *pids* that are in the namespace, by default to all."""
        for pid in self.pids() if pids is None else pids:
            with contextlib.suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
                try:
                    if self._is_ours(pid):
                        signal.pidfd_send_signal(fd, number)
                finally:
                    os.close(fd)

    def kill_now(self, deadline: float = _DEADLINE_SECONDS) -> list[int]:
        """kill(), for those who can't await."""
        until = time.monotonic() + deadline
        with _Killing(self) as killing:
            while not killing.done():
                if time.monotonic() >= until:
                    raise DeadlineError(f"{self.namespace}: {self.pids()} outlive SIGKILL by {deadline:g} s")
                time.sleep(_POLL_SECONDS)
            return sorted(killing.victims)

    async def kill(self, deadline: float = _DEADLINE_SECONDS) -> list[int]:
        """SIGKILL to all, until none is left and what they had open is closed; returns whom it met.

        Raises DeadlineError.
        """
        with _Killing(self) as killing:
            await _until(killing.done, f"{self.namespace}: processes outlive SIGKILL", deadline)
            return sorted(killing.victims)

    async def freeze(self, deadline: float = _DEADLINE_SECONDS) -> list[int]:
        """SIGSTOP to all, until all stand still, what they started meanwhile included.  Raises DeadlineError."""

        def stopped() -> bool:
            moving = [pid for pid in self.pids() if not _stands(pid)]
            self.signal(signal.SIGSTOP, moving)
            return not moving

        await _until(stopped, f"{self.namespace}: processes don't stop", deadline)
        return self.pids()

    def thaw(self) -> None:
        """SIGCONT to all."""
        self.signal(signal.SIGCONT)

    def _is_ours(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            return str(Path(f"/proc/{pid}/ns/net").readlink()) == f"net:[{self._inode}]"
        return False


class _Killing:
    """The end of all processes of a namespace.

    One that ends leaves its namespace while other threads of it may still hold its files; so each is watched by a pidfd
    until all of it is gone.
    """

    def __init__(self, processes: HostProcesses) -> None:
        self.victims: dict[int, int] = {}
        """Their pidfds."""
        self._processes = processes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self.victims.values():
            os.close(fd)

    def done(self) -> bool:
        """Kills those that are there; True if nobody is, and all that were are gone."""
        pids = self._processes.pids()
        for pid in pids:
            if pid not in self.victims:
                with contextlib.suppress(ProcessLookupError):
                    self.victims[pid] = os.pidfd_open(pid)
        self._processes.signal(signal.SIGKILL, pids)
        return not pids and all(_is_over(fd) for fd in self.victims.values())


def _is_over(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


async def _until(done: Callable[[], bool], what: str, deadline: float) -> None:
    until = time.monotonic() + deadline
    while not done():
        if time.monotonic() >= until:
            raise DeadlineError(f"{what} after {deadline:g} s")
        await asyncio.sleep(_POLL_SECONDS)


def _program(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/exe").readlink().name
    return ""


def _stands(pid: int) -> bool:
    """True if every thread of it is stopped, or gone."""
    with contextlib.suppress(OSError):
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return all(_state(task) in _STOPPED for task in tasks)
    return True


def _state(task: Path) -> str:
    with contextlib.suppress(OSError):
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    return "X"
