# SPDX-License-Identifier: Apache-2.0
"""`coloproxy node` that ends by SIGKILL at one step of a takeover, before the next one begins.  For tests.

    NodeOptions(command=COMMAND)           the bed's nodes are such ones
    fault = arm(bed.config, host, "told")  that host's node dies the next time it comes to that point, once
    await fault.struck(deadline)

With *qemu* its QEMU gets SIGKILL first: what is left is the disk, as after the host's death.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .errors import DeadlineError
from .node_net import Host

COMMAND: Final = (sys.executable, "-P", "-m", "coloproxy.testbed.node_fault", "node")

POINTS: Final = (
    "recorded",  # the record says OWNER
    "begun",  # takeover.json is there
    "reset",  # the NBD server is stopped
    "told",  # x-colo-lost-heartbeat
    "committed",  # QEMU's commit is done; takeover.json is there yet
    "noted",  # it is gone
    "kept",  # the clients' connections are on disk
    "open",  # the TAPs are
    "cleaned",  # the overlays' nodes are gone
    "settled",  # state.json says that QEMU's VM is one of its own
    "quit",  # the VM that is booted anew, since the connections are not known: QEMU has ended
    "recovered",  # and the overlays were written into the image by qemu-img
)
"""Each is just behind what it says, in the order in which a takeover mostly comes to them."""

_POLL_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True)
class Fault:
    """One that is armed."""

    path: Path

    async def struck(self, deadline: float) -> None:
        """Until it has.  Raises DeadlineError."""
        until = time.monotonic() + deadline
        while self.path.exists():
            if time.monotonic() >= until:
                raise DeadlineError(f"the node never came to {self.path.read_text()!r}")
            await asyncio.sleep(_POLL_SECONDS)


def arm(config: Path, host: Host, point: str, *, qemu: bool = False) -> Fault:
    """Before that host's node may come there."""
    assert point in POINTS
    path = _path(config, host)
    draft = path.with_suffix(".new")
    draft.write_text(f"{point} qemu" if qemu else point)
    draft.replace(path)
    return Fault(path)


def _path(config: Path, host: str) -> Path:
    return config.parent / f"fault-{host}"


class _Points:
    """Of this process."""

    def __init__(self, config: Path, host: str) -> None:
        self._fault = _path(config, host)
        self._pidfile = config.parent / host / "state" / "qemu.pid"

    def pass_by(self, point: str) -> None:
        """Dies here, if it is to."""
        try:
            armed, *qemu = self._fault.read_text().split()
        except (FileNotFoundError, ValueError):
            return
        if armed != point:
            return
        if qemu:
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(self._pidfile.read_text()), signal.SIGKILL)
        self._fault.unlink()
        os.kill(os.getpid(), signal.SIGKILL)

    def behind(self, owner: Any, name: str, point: str, counts: Callable[..., bool] = lambda *_, **__: True) -> None:
        """Behind each call of owner.name that counts, by its arguments."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def plain(*arguments: Any, **named: Any) -> Any:
            value = original(*arguments, **named)
            if counts(*arguments, **named):
                self.pass_by(point)
            return value

        @functools.wraps(original)
        async def coroutine(*arguments: Any, **named: Any) -> Any:
            value = await original(*arguments, **named)
            if counts(*arguments, **named):
                self.pass_by(point)
            return value

        setattr(owner, name, coroutine if inspect.iscoroutinefunction(original) else plain)


def _set_points(points: _Points) -> None:
    from coloproxy.disks import record, recover, secondary
    from coloproxy.node import tap_plane
    from coloproxy.node.facts import Record, Standing
    from coloproxy.node.record import RecordFile
    from coloproxy.run.secondary import SecondaryVm
    from coloproxy.vmm import QemuProcess

    def owner(_: RecordFile, written: Record) -> bool:
        return written.standing is Standing.OWNER

    def lost_heartbeat(_: QemuProcess, name: str, *__: object, **___: object) -> bool:
        return name == "x-colo-lost-heartbeat"

    def own(_: RecordFile, *, secondary: bool | None = None, **__: object) -> bool:
        return secondary is False

    points.behind(RecordFile, "write", "recorded", owner)
    points.behind(record, "begin_takeover", "begun")
    points.behind(secondary, "reset", "reset")
    points.behind(QemuProcess, "execute", "told", lost_heartbeat)
    points.behind(secondary, "wait_commit", "committed")
    points.behind(record, "end_takeover", "noted")
    points.behind(tap_plane, "save_table", "kept")
    points.behind(SecondaryVm, "take_over", "open")
    points.behind(secondary, "clean_up", "cleaned")
    points.behind(RecordFile, "note", "settled", own)
    points.behind(QemuProcess, "quit", "quit")
    points.behind(recover, "recover", "recovered")


def main() -> None:
    """As `coloproxy`, whose arguments it takes."""
    arguments = sys.argv[1:]
    config, host = (arguments[arguments.index(option) + 1] for option in ("-c", "--host"))
    _set_points(_Points(Path(config), host))
    from coloproxy.cli import main as coloproxy

    coloproxy()


if __name__ == "__main__":
    main()
