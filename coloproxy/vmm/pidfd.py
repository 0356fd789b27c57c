# SPDX-License-Identifier: Apache-2.0
"""One process, held by a pidfd: a number may be given to another process, a pidfd never is."""

from __future__ import annotations

import asyncio
import os
import select
import signal

from coloproxy.errors import VmmError


class Pidfd:
    """A process that is ours to watch and to end; need not be our child. `close()` leaves it alone.

    Attributes:
        pid: its number, valid as long as `alive()`.
        exited: done when it has ended: its exit status, -N if signal N ended it, None if it wasn't our child (only a
            parent learns the status). Whoever awaits it must not cancel it: `asyncio.shield`.
    """

    def __init__(self, pid: int) -> None:
        """Must be called in the event loop. Raises ProcessLookupError: no such process; OSError: the kernel won't."""
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int | None] = self._loop.create_future()
        self._loop.add_reader(self._fd, self._on_exit)

    def alive(self) -> bool:
        """False from the moment of its end on, even if the event loop has not noticed yet."""
        if self._fd < 0:
            return False
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return not poll.poll(0)

    def kill(self) -> None:
        """SIGKILL. A process that has ended is no error. Raises VmmError: not permitted."""
        if self._fd < 0:
            return
        try:
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)
        except ProcessLookupError:
            return
        except OSError as error:
            raise VmmError(f"can't kill process {self.pid}: {error.strerror}") from error

    def close(self) -> None:
        """Stops to watch. The process goes on, and `exited` is cancelled if it was not done."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        self.exited.cancel()

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._fd)
        status = self._reap()
        if not self.exited.done():
            self.exited.set_result(status)

    def _reap(self) -> int | None:
        try:
            result = os.waitid(os.P_PIDFD, self._fd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return None
        if result is None:
            return None
        return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
