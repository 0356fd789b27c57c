# SPDX-License-Identifier: Apache-2.0
"""What systemd is told, and asks to be told: sd_notify(3), by a datagram to $NOTIFY_SOCKET.

The protocol is one datagram of KEY=VALUE lines. The packages for it either bind libsystemd (cysystemd, systemd-python),
which would make it a thing to install, or are from 2017 (sdnotify) and know no reload. So these few lines are ours.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Final

log = logging.getLogger(__name__)

__all__ = ["Service"]

_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Service:
    """Talks to the service manager, if there is one; else each call does nothing.

    Nothing here raises or blocks: a service manager that doesn't listen must not harm what is served.

    Args:
        environment: the process's; systemd's variables are taken out of it, so that no program we start has them.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        values = {name: environment.pop(name, "") for name in _VARIABLES}
        self._where = _address(values["NOTIFY_SOCKET"])
        self._socket: socket.socket | None = None
        self._watchdog_us = _watchdog(values["WATCHDOG_USEC"], values["WATCHDOG_PID"])
        self._complained = False
        if self._where is not None:
            # Now, for a socket can be refused later on by a sandbox.
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    @property
    def is_managed(self) -> bool:
        """Whether somebody wants to be told."""
        return self._socket is not None

    @property
    def watchdog_interval(self) -> float | None:
        """s from one sign of life to the next: half of what systemd waits for. None: it doesn't wait for any."""
        return None if self._watchdog_us is None or not self.is_managed else self._watchdog_us / 2e6

    def ready(self, status: str = "") -> None:
        """It has started, or a reload is done."""
        self._tell("READY=1", *_status(status))

    def status(self, text: str) -> None:
        """A line for `systemctl status`."""
        self._tell(*_status(text))

    def reloading(self, status: str = "") -> None:
        """A reload begins; `ready` ends it, whether it worked or not."""
        self._tell(
            "RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}", *_status(status)
        )

    def stopping(self, status: str = "") -> None:
        """The end begins."""
        self._tell("STOPPING=1", *_status(status))

    def alive(self) -> None:
        """One sign of life."""
        self._tell("WATCHDOG=1")

    async def watch(self, healthy: Callable[[], bool] = lambda: True) -> None:
        """Gives signs of life for ever, as long as `healthy` says so; returns at once if nobody waits for them.

        It runs in the event loop, so a loop that hangs gives none. `healthy` should look at the engine's thread.
        """
        interval = self.watchdog_interval
        if interval is None:
            return
        while True:
            if healthy():
                self.alive()
            await asyncio.sleep(interval)

    def close(self) -> None:
        """Idempotent; later calls do nothing."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell(self, *lines: str) -> None:
        if self._socket is None or self._where is None or not lines:
            return
        try:
            self._socket.sendto("\n".join(lines).encode(), socket.MSG_NOSIGNAL, self._where)
        except OSError as error:
            log.log(logging.DEBUG if self._complained else logging.WARNING, "can't tell systemd: %s", error.strerror)
            self._complained = True


def _address(text: str) -> str | bytes | None:
    if text.startswith("@"):
        return b"\0" + os.fsencode(text[1:])
    if text.startswith("/"):
        return text
    if text:
        log.warning("NOTIFY_SOCKET: %r is no unix socket that can be used", text)
    return None


def _watchdog(microseconds: str, pid: str) -> int | None:
    if not microseconds.isascii() or not microseconds.isdigit() or int(microseconds) == 0:
        return None
    return int(microseconds) if pid in ("", str(os.getpid())) else None  # else it is meant for another process


def _status(text: str) -> tuple[str, ...]:
    return (f"STATUS={' '.join(text.split())}",) if text else ()
