# SPDX-License-Identifier: Apache-2.0
"""The survivor of a failover becomes the primary of a new pair, on the same host and with its VM running."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from coloproxy.errors import MisuseError

from .primary import PrimaryVm
from .secondary import SecondaryVm


async def succeed(old: SecondaryVm, running: asyncio.Task[None], make: Callable[[], PrimaryVm]) -> PrimaryVm:
    """Ends the secondary's path and returns the primary's, open but for its `run`, which must follow at once.

    The TAPs stay open and keep their carrier: what clients send meanwhile waits in them. The VM's sockets are closed
    and opened again: what the VM says meanwhile its VMM drops, or keeps, and TCP sends again.

    Args:
        old: has taken over.
        running: the task of its `run`, which ends.
        make: the new one, of the same VM with the roles swapped; called while the old one still works.

    Raises:
        MisuseError: it has not taken over.
        ColoproxyError: the new one could not be opened; the TAPs are closed then, and the old one is over.
    """
    if old.state != "taken-over":
        raise MisuseError(f"{old.vm.name} has not taken over: it has nothing to hand over")
    new = make()
    began = time.monotonic_ns()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    estate = await old.give_up()
    try:
        new.inherit(estate.table)
    except BaseException:
        estate.close()
        raise
    new.adopt(estate.taps)
    await new.open()
    new.silent_since = began
    return new
