# SPDX-License-Identifier: Apache-2.0
"""Child processes that never outlive the test bed.

Each child runs in its own session, so that Ctrl-C in the terminal reaches only us and we decide the order in which
things end; and with PR_SET_PDEATHSIG, so that the kernel ends it if we die without a chance to do it ourselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import DeadlineError, ProcessError

_TAIL_BYTES = 2000


def in_namespace(namespace: str | None, argv: Sequence[str], env: Mapping[str, str] | None = None) -> list[str]:
    """The command line that runs *argv* in a named network namespace and dies with its parent.

    Every part of it ends in exec, so the process id stays the one that was started.  *env* reaches only the last
    program (a preload library has no business in the programs before it).
    """
    line = ["setpriv", "--pdeathsig", "KILL", "--"]
    if namespace is not None:
        line += ["nsenter", f"--net=/run/netns/{namespace}", "--"]
    if env:
        line += ["env", *(f"{name}={value}" for name, value in env.items())]
    return [*line, *argv]


@dataclass(frozen=True, slots=True)
class Completed:
    """How a client command ended."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes
    seconds: float

    def check(self) -> Completed:
        """Return self if the command succeeded, else raise ProcessError with what it wrote to stderr."""
        if self.returncode != 0:
            reason = self.stderr.decode(errors="replace").strip()[-_TAIL_BYTES:]
            raise ProcessError(f"{' '.join(self.argv)}: exit status {self.returncode}: {reason}")
        return self


async def run(
    argv: Sequence[str], *, namespace: str | None = None, stdin: bytes | None = None, deadline: float = 30.0
) -> Completed:
    """Run a command to its end and capture what it wrote.

    Raises DeadlineError, after killing it, if it takes longer than *deadline* seconds.
    """
    started = time.monotonic()
    child = await asyncio.create_subprocess_exec(
        *in_namespace(namespace, argv),
        stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(deadline):
            stdout, stderr = await child.communicate(stdin)
    except TimeoutError as error:
        raise DeadlineError(f"{' '.join(argv)}: not done after {deadline:g} s") from error
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await asyncio.shield(child.wait())
    assert child.returncode is not None
    return Completed(tuple(argv), child.returncode, stdout, stderr, time.monotonic() - started)


class Daemon:
    """A child that is meant to keep running; stdout and stderr go to a log file."""

    def __init__(self, name: str, child: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._child = child

    @classmethod
    async def start(
        cls,
        name: str,
        argv: Sequence[str],
        log: Path,
        *,
        namespace: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Daemon:
        """Start *argv*; its output is appended to *log*, behind a line with the command itself."""
        with log.open("ab") as output:
            output.write(f"$ {' '.join(argv)}\n".encode())
            output.flush()
            try:
                child = await asyncio.create_subprocess_exec(
                    *in_namespace(namespace, argv, env),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=asyncio.subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise ProcessError(f"{name}: can't start {argv[0]}: {error}") from error
        return cls(name, child, log)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, negative signal number, or None while it runs."""
        return self._child.returncode

    @property
    def running(self) -> bool:
        """True until the process has ended."""
        return self._child.returncode is None

    def cpu_seconds(self) -> float:
        """Processor time that all of its threads have used, in user mode and in the kernel.  Raises ProcessError."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError as error:
            raise ProcessError(f"{self.name} has ended: {error}") from error
        user, system = stat.rpartition(")")[2].split()[11:13]  # proc(5), fields 14 and 15
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def check(self) -> None:
        """Raise ProcessError, with the end of the log, if the process has ended."""
        if not self.running:
            raise ProcessError(f"{self.name} ended early, status {self.returncode}; its log ends:\n{self.tail()}")

    def tail(self) -> str:
        """The end of the log, as text."""
        with contextlib.suppress(OSError):
            return self.log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").strip()
        return ""

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if the process has ended."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def wait(self, deadline: float = 10.0) -> int:
        """Wait for the end of the process and return its status.  Raises DeadlineError."""
        try:
            async with asyncio.timeout(deadline):
                return await self._child.wait()
        except TimeoutError as error:
            raise DeadlineError(f"{self.name} (pid {self.pid}) still runs after {deadline:g} s") from error

    async def kill(self) -> None:
        """End the process with SIGKILL and wait until it is gone.  Also works on a stopped process."""
        self.signal(signal.SIGKILL)
        await asyncio.shield(self._child.wait())

    async def stop(self, grace: float = 3.0) -> None:
        """SIGTERM, up to *grace* seconds to end by itself, then SIGKILL; SIGKILL at once if we are cancelled."""
        if not self.running:
            return
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            await self.wait(grace)
        except DeadlineError:
            await self.kill()
        except asyncio.CancelledError:
            await self.kill()
            raise
