# SPDX-License-Identifier: Apache-2.0
"""A real QEMU without a guest, for tests of what we say to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from coloproxy.address import parse_address
from coloproxy.qmp import QmpLink

QEMU = shutil.which("qemu-system-x86_64")

needs_qemu = pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")


class Qemu:
    """`with Qemu(directory, *arguments) as qemu:`; its monitor listens at `qemu.qmp` once `with` is entered."""

    def __init__(self, directory: Path, *arguments: str, monitor: str = "qmp", machine: str = "none") -> None:
        self.qmp = directory / monitor
        self._log = (directory / "qemu.log").open("ab")
        self._command = [
            *(str(QEMU), "-M", machine, "-nodefaults", "-display", "none", "-daemonize"),
            *("-pidfile", str(directory / f"{monitor}.pid")),
            *("-qmp", f"unix:{self.qmp},server=on,wait=off"),
            *arguments,
        ]
        self._pidfile = directory / f"{monitor}.pid"

    @property
    def pid(self) -> int:
        return int(self._pidfile.read_text())

    def start(self) -> None:
        # -daemonize: returns when the monitor listens, so nobody has to wait and look.
        subprocess.run(self._command, check=True, stdout=self._log, stderr=self._log)

    def kill(self) -> None:
        if self._pidfile.exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._pidfile.unlink(missing_ok=True)

    def __enter__(self) -> Qemu:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._log.close()


class _Quiet:
    """A QMP handler that only waits for the connection."""

    def __init__(self) -> None:
        self.up = asyncio.Event()

    def qmp_connected(self, now: int) -> None:
        self.up.set()

    def qmp_event(self, name: str, data: Mapping[str, object], at: int | None, now: int) -> None:
        pass

    def qmp_lost(self, reason: str) -> None:
        pass

    def qmp_unreachable(self, reason: str) -> None:
        pass


@contextlib.asynccontextmanager
async def monitor(qemu: Qemu) -> AsyncIterator[QmpLink]:
    """Of that QEMU; nobody hears its events."""
    handler = _Quiet()
    link = QmpLink(parse_address(f"unix:{qemu.qmp}", may_listen=False), handler)
    task = asyncio.create_task(link.run())
    try:
        await handler.up.wait()
        yield link
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
