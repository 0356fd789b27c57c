# SPDX-License-Identifier: Apache-2.0
"""The node's own QEMU: launched detached, adopted after a restart of ours, watched, asked, ended.

    with StateDirectory.open(path) as state:
        qemu = await QemuProcess.adopt(state, "web")
        if qemu is None:
            argv = command_line(machine, state.files, "primary")
            qemu = await QemuProcess.launch(state, "web", argv, environment=machine.acceleration.environment)
        with qemu.watch("RESUME") as events:
            await qemu.execute("cont")
            await events.next("RESUME", 1.0)
        exit = await asyncio.shield(qemu.exited)

Nothing here ends QEMU but `kill()`, `quit()`, and a launch that did not succeed. `close()` leaves it running.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import shlex
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Final

from coloproxy.errors import QmpError, VmmBusy, VmmError, VmmExited

from .bus import LIMIT, Bus, Connected, Event, Exit, Item, Lost, Subscription
from .detached import Account, start_detached
from .explain import explain_exit
from .files import Files, StateDirectory, log_tail, open_log, trim_log
from .health import Health, Probe, probe
from .holder import command_line, listener, pidfile_holder
from .monitor import DEADLINE_S, Monitor
from .pidfd import Pidfd

log = logging.getLogger(__name__)

LAUNCH_S: Final = 30.0
ADOPT_S: Final = 2.0
PROBE_S: Final = 0.3
KILL_S: Final = 10.0
QUIT_S: Final = 5.0
TRIM_S: Final = 5.0
_LAST_WORDS_S: Final = 1.0  # QEMU's sockets close at its end, so this is never waited for, unless the loop is starved


class QemuProcess:
    """A running QEMU. Make it with `launch()` or `adopt()`.

    Implements `async execute(name, arguments=None, *, out_of_band=False)`.

    Attributes:
        name: the VM's.
        files: its files.
        adopted: True: an earlier coloproxy launched it.
        argv: its command line, as the kernel knows it.
        exited: done when it has ended: how. Await it shielded. Cancelled by `close()`.
    """

    def __init__(self, name: str, files: Files, process: Pidfd, argv: Sequence[str], *, adopted: bool) -> None:
        self.name = name
        self.files = files
        self.adopted = adopted
        self.argv = tuple(argv)
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._process = process
        self._bus = Bus()
        self._shutdown: Event | None = None
        self._control = Monitor(
            files.control, on_event=self._on_event, on_connected=self._on_connected, on_lost=self._on_lost
        )
        self._oob = Monitor(files.oob)
        self._tasks = [asyncio.create_task(self._watch_exit()), asyncio.create_task(self._trim_log())]
        self._control.start()
        self._oob.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    # ------------------------------------------------------------------ begin

    @classmethod
    async def launch(
        cls,
        state: StateDirectory,
        name: str,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
        oom_score_adj: int | None = None,
        deadline_s: float = LAUNCH_S,
    ) -> QemuProcess:
        """Starts QEMU, and returns when both monitors answer.

        argv: of `command_line()`, for the same name and files.
        environment: added to ours, for QEMU alone.
        user: to run as; the state directory becomes that user's.
        oom_score_adj: see start_detached().

        Raises VmmBusy: one runs here already; also if one that an earlier coloproxy started just before its own end
        was quicker than this one. VmmExited: it ended at once; its last words and its command line are in the message.
        VmmError: it can't be started; its monitors don't answer in time (it is killed then).
        """
        files = _of(state)
        if (holder := pidfile_holder(files.pidfile)) is not None:
            raise _busy(files, holder)
        account = None if user is None else Account.named(user)
        if account is not None:
            _give(files, account)
        # Nobody holds the pidfile, so nobody listens on them. The pidfile itself is QEMU's to take over.
        for path in files.sockets:
            path.unlink(missing_ok=True)
        output = open_log(files)
        try:
            os.write(output, f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} $ {shlex.join(argv)}\n".encode())
            offset = os.lseek(output, 0, os.SEEK_END)
            pid = start_detached(
                argv,
                output,
                environment=environment or {},
                directory=files.directory,
                account=account,
                oom_score_adj=oom_score_adj,
            )
            process = _watch_child(pid)
        finally:
            os.close(output)
        qemu = cls(name, files, process, argv, adopted=False)
        try:
            await qemu._come_up(offset, deadline_s)
        except BaseException:
            await asyncio.shield(qemu._give_up())
            raise
        return qemu

    @classmethod
    async def adopt(cls, state: StateDirectory, name: str, *, deadline_s: float = ADOPT_S) -> QemuProcess | None:
        """The QEMU that an earlier coloproxy left running in this directory; None: there is none.

        What is proven: docs/vmm.md. A QEMU that does not answer is adopted, too: it may have to be killed, and
        `probe()` tells. But what answers and is another VM, or is no QEMU of this directory, is refused.

        Raises VmmError: something runs here that can't be proven to be ours; nothing is done to it.
        """
        files = _of(state)
        process = _hold(files)
        if process is None:
            return None
        try:
            argv = _prove(process.pid, name, files)
        except BaseException:
            process.close()
            raise
        qemu = cls(name, files, process, argv, adopted=True)
        try:
            await qemu._check_name(deadline_s)
        except BaseException:
            await qemu.close()
            raise
        return qemu

    # -------------------------------------------------------------------- use

    async def execute(
        self,
        name: str,
        arguments: Mapping[str, object] | None = None,
        *,
        out_of_band: bool = False,
        deadline_s: float = DEADLINE_S,
    ) -> object:
        """The return value of a QMP command. Out-of-band ones go by a monitor of their own.

        Raises QmpError: refused, not answered within `deadline_s` seconds (60 at most), QMP lost, QEMU gone.
        """
        if self.exited.done():
            raise QmpError(f"{name}: QEMU has ended: {self.exited.result().text}")
        monitor = self._oob if out_of_band else self._control
        return await monitor.execute(name, arguments, out_of_band=out_of_band, deadline_s=deadline_s)

    def watch(self, *names: str, limit: int = LIMIT) -> contextlib.AbstractContextManager[Subscription]:
        """Events of the control monitor from now on (see Bus.watch), with what else befalls QEMU."""
        return self._bus.watch(*names, limit=limit)

    async def status(self, deadline_s: float = DEADLINE_S) -> str:
        """The VM's run state: "running", "colo" (a checkpoint), "paused" (an operator's stop) ... Raises QmpError."""
        answer = await self.execute("query-status", deadline_s=deadline_s)
        if not isinstance(answer, Mapping) or not isinstance(answer.get("status"), str):
            raise QmpError(f"query-status: not an answer: {answer!r}")
        return str(answer["status"])

    async def probe(self, deadline_s: float = PROBE_S) -> Probe:
        """Whether QEMU still answers, within `deadline_s` seconds. Never raises."""
        found = None
        if self._process.alive():
            found = await probe(self._control, self._oob, deadline_s)
            if found.health is Health.RESPONSIVE or self._process.alive():
                return found
        return Probe(Health.GONE, None, None, None)

    # -------------------------------------------------------------------- end

    async def kill(self, deadline_s: float = KILL_S) -> Exit:
        """SIGKILL, and its end. Also of a QEMU that hangs or is stopped.

        Raises VmmError: not permitted, or it is still there after `deadline_s` seconds: then it hangs in the kernel,
        mostly on storage, and still may write to its disks.
        """
        self._process.kill()
        return await self._ended(deadline_s)

    async def quit(self, grace_s: float = QUIT_S) -> Exit:
        """QMP `quit`, which flushes and closes the disks; SIGKILL if it has not ended within `grace_s` seconds.

        The guest isn't asked. Raises VmmError as kill() does.
        """
        until = time.monotonic() + grace_s
        with contextlib.suppress(QmpError):  # "QMP lost" is what success looks like
            await self.execute("quit", deadline_s=grace_s)
        try:
            return await self._ended(max(until - time.monotonic(), 0.0))
        except VmmError:
            log.warning("%s: QEMU (process %d) did not quit within %g s: killed", self.name, self.pid, grace_s)
            return await self.kill()

    async def close(self) -> None:
        """Lets go of QEMU, which runs on; `adopt()` finds it again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._control.close()
        await self._oob.close()
        self._process.close()
        self.exited.cancel()

    # ---------------------------------------------------------------- inside

    async def _come_up(self, offset: int, deadline_s: float) -> None:
        """Waits for both monitors, and checks that they are this QEMU's. Raises VmmExited, VmmError."""
        up = asyncio.gather(self._control.wait_connected(), self._oob.wait_connected())
        try:
            async with asyncio.timeout(deadline_s):
                await asyncio.wait((up, self.exited), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError as error:
            problem = self._control.problem or self._oob.problem
            raise VmmError(f"QEMU does not answer within {deadline_s:g} s: {problem}; {self._story(offset)}") from error
        finally:
            up.cancel()
            await asyncio.gather(up, return_exceptions=True)
        if self.exited.done():
            ended = self.exited.result()
            holder = pidfile_holder(self.files.pidfile)
            if holder is not None and os.getsid(holder) != self.pid:
                raise _busy(self.files, holder)
            raise VmmExited(ended.status, f"QEMU ended at once: {ended.text}; {self._story(offset)}")
        holder = pidfile_holder(self.files.pidfile)
        if holder != self.pid:
            raise VmmError(
                f"{self.argv[0]} started as process {self.pid}, but {holder} holds {self.files.pidfile}; "
                "is it a wrapper that does not exec QEMU, or does the command line lack our options?"
            )
        await self._check_name(deadline_s)

    async def _give_up(self) -> None:
        """Ends what launch() has started: the process, and a QEMU that it has started in its turn (a wrapper)."""
        self._process.kill()
        with contextlib.suppress(VmmError, ProcessLookupError):
            holder = _hold(self.files)
            if holder is not None and holder.pid != self.pid and os.getsid(holder.pid) == self.pid:
                holder.kill()
                await asyncio.shield(holder.exited)
            if holder is not None:
                holder.close()
        with contextlib.suppress(VmmError):
            await self._ended(KILL_S)
        await self.close()

    async def _check_name(self, deadline_s: float) -> None:
        """Raises VmmError if QEMU answers and says that it is another VM."""
        try:
            answer = await self.execute("query-name", deadline_s=deadline_s)
        except QmpError as error:
            log.warning("%s: QEMU (process %d) does not answer: %s", self.name, self.pid, error)
            return
        said = answer.get("name") if isinstance(answer, Mapping) else None
        if said != self.name:
            raise VmmError(f"{self.files.control}: QEMU says that its VM is {said!r}, not {self.name!r}")

    def _story(self, offset: int) -> str:
        """Its last words, which are in the log from `offset` on, and where its command line is: that is long."""
        said = " | ".join(log_tail(self.files, offset).splitlines())
        return f"it said: {said or 'nothing'}; its command line is in {self.files.log}"

    async def _ended(self, deadline_s: float) -> Exit:
        if self.exited.cancelled():
            raise VmmError(f"QEMU (process {self.pid}) was let go of: adopt it")
        try:
            async with asyncio.timeout(deadline_s):
                return await asyncio.shield(self.exited)
        except TimeoutError as error:
            raise VmmError(f"QEMU (process {self.pid}) is still there after {deadline_s:g} s") from error

    async def _watch_exit(self) -> None:
        status = await asyncio.shield(self._process.exited)
        # Its end is seen before what it said last is read: SHUTDOWN, which tells a wish from a crash.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._control.wait_lost()
        shutdown = self._shutdown
        cause, text = explain_exit(status, None if shutdown is None else shutdown.data)
        ended = Exit(status, shutdown, cause, text, time.monotonic_ns())
        if not self.exited.done():
            self.exited.set_result(ended)
        self._bus.publish(ended)
        await self._control.close()
        await self._oob.close()

    async def _trim_log(self) -> None:
        while True:
            await asyncio.sleep(TRIM_S)
            try:
                trim_log(self.files)
            except VmmError as error:
                log.warning("%s: %s", self.name, error)

    def _on_event(self, name: str, data: Mapping[str, object], at: int | None, now: int) -> None:
        event = Event(name, data, at, now)
        if name == "SHUTDOWN":
            self._shutdown = event
        self._publish(event)

    def _on_connected(self, now: int) -> None:
        self._publish(Connected(now))

    def _on_lost(self, reason: str) -> None:
        self._publish(Lost(reason, time.monotonic_ns()))

    def _publish(self, item: Item) -> None:
        self._bus.publish(item)


def _of(state: StateDirectory) -> Files:
    if not state.held:
        raise VmmError(f"{state.files.directory} is not locked any more")
    return state.files


def _busy(files: Files, holder: int) -> VmmBusy:
    return VmmBusy(f"{files.directory}: a QEMU runs here already, process {holder}: adopt it")


def _watch_child(pid: int) -> Pidfd:
    """A process that we have just started: if it can't be watched, it must not be left. Raises VmmError."""
    try:
        return Pidfd(pid)
    except OSError as error:
        os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
        os.waitpid(pid, 0)
        raise VmmError(f"can't watch process {pid}: pidfd_open: {error.strerror}") from error


def _hold(files: Files) -> Pidfd | None:
    """The process that holds the pidfile's lock; None: nobody. Raises VmmError."""
    for _ in range(3):
        pid = pidfile_holder(files.pidfile)
        if pid is None:
            return None
        try:
            process = Pidfd(pid)
        except ProcessLookupError:
            continue  # it ended just now
        # From here on the number can't change hands; so what is true of it now is true of the process.
        if pidfile_holder(files.pidfile) == pid and process.alive():
            return process
        process.close()
    raise VmmError(f"{files.pidfile}: its holder changes all the time")


def _prove(pid: int, name: str, files: Files) -> list[str]:
    """The command line of the pidfile's holder, if it is the QEMU of that VM, monitors included. Raises VmmError."""
    argv = command_line(pid)
    if not _is_named(argv, name):
        raise VmmError(f"process {pid} holds {files.pidfile}, but is no QEMU of VM {name}: {shlex.join(argv)}")
    for path in (files.control, files.oob):
        owner = listener(path)
        if owner not in (None, pid):
            raise VmmError(f"{path} is not process {pid}'s, which holds {files.pidfile}, but {owner}'s")
    return argv


def _give(files: Files, account: Account) -> None:
    """Lets a QEMU that runs as that user make its sockets, and take over a stale pidfile of another user's."""
    try:
        os.chown(files.directory, account.uid, account.gid)
        with contextlib.suppress(FileNotFoundError):
            os.chown(files.pidfile, account.uid, account.gid, follow_symlinks=False)
    except OSError as error:
        raise VmmError(f"{files.directory}: can't be given to user {account.name}: {error.strerror}") from error


def _is_named(argv: Sequence[str], name: str) -> bool:
    """True if that command line is a QEMU's with `-name guest=NAME`."""
    given = [value for option, value in itertools.pairwise(argv) if option == "-name"]
    parts = given[-1].replace(",,", "\0").split(",") if given else []
    names = [part.removeprefix("guest=").replace("\0", ",") for part in parts if part.startswith("guest=")]
    return names == [name]
