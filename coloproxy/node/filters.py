# SPDX-License-Identifier: Apache-2.0
"""QEMU's net filters of the filter attach, added to and taken from a QEMU that runs. Each may be begun again.

The order of the filters on a netdev counts. What comes in from the TAP runs through them from the first to the last,
what the guest says from the last to the first:

    rew0      a survivor's: translates the connections that it has taken over. First, so that inbound frames are copied
              in the guest's own numbering, and its output is compared in it and translated after that
    m0        copies what comes in to the secondary
    redire0   brings in what the comparator has released, which goes on to the filters before it
    redire1   takes out what the guest says

Names as in docs/qemu.md. Source: QEMU, net/filter.c, net/filter-mirror.c, net/filter-rewriter.c.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from coloproxy import redirector
from coloproxy.disks import Monitor
from coloproxy.errors import PeerError, QmpError
from coloproxy.pair.qemu import LOOPBACK, NETDEV

PRIMARY: Final = {"m0": "mirror0", "redire0": "compare_out", "redire1": "compare0"}
"""The primary's, in the order of their making, each with its chardev."""

SECONDARY: Final = {"f2": "red1", "f1": "red0"}
"""The secondary's, in the order of their removal. rew0 has no chardev, and stays."""

_POLL_S: Final = 0.02
_YANK_S: Final = 0.3


@dataclass(frozen=True, slots=True)
class Places:
    """Where the primary's chardevs connect to."""

    secondary: str
    mirror: int
    primary_in: int
    outdev: int
    vnet_hdr: bool

    def addresses(self) -> dict[str, tuple[str, int]]:
        """Of each chardev."""
        return {
            "mirror0": (self.secondary, self.mirror),
            "compare0": (LOOPBACK, self.primary_in),
            "compare_out": (LOOPBACK, self.outdev),
        }


async def present(qemu: Monitor) -> set[str]:
    """All of QEMU's objects that were made by somebody. Raises QmpError."""
    listed = await qemu.execute("qom-list", {"path": "/objects"})
    return (
        {str(entry.get("name")) for entry in listed if isinstance(entry, Mapping)}
        if isinstance(listed, list)
        else set()
    )


async def are_complete(qemu: Monitor) -> bool:
    """The primary's are all there. Raises QmpError."""
    return PRIMARY.keys() <= await present(qemu)


async def add_primary(qemu: Monitor, places: Places, deadline_s: float) -> None:
    """From now on all that the guest says goes to the comparator. What an earlier attempt has left is removed.

    Raises QmpError; PeerError: one of the chardevs found nobody. The guest's output is free then, as before.
    """
    await remove_primary(qemu)
    try:
        for chardev, (host, port) in places.addresses().items():
            address = {"type": "inet", "data": {"host": host, "port": str(port)}}
            data = {"addr": address, "server": False, "reconnect": 1, "nodelay": True}
            await qemu.execute("chardev-add", {"id": chardev, "backend": {"type": "socket", "data": data}})
        await _until_connected(qemu, set(PRIMARY.values()), places, deadline_s)
        support = {"vnet_hdr_support": True} if places.vnet_hdr else {}
        for name, queue, end in (("m0", "tx", "outdev"), ("redire0", "rx", "indev"), ("redire1", "rx", "outdev")):
            kind = "filter-mirror" if name == "m0" else "filter-redirector"
            made = {"qom-type": kind, "id": name, "netdev": NETDEV, "queue": queue, end: PRIMARY[name], **support}
            await qemu.execute("object-add", made)  # at the end of the list: rew0 stays first
    except BaseException:
        with contextlib.suppress(QmpError):
            await asyncio.shield(remove_primary(qemu))
        raise


async def remove_mirror(qemu: Monitor) -> None:
    """Also while QEMU's main loop hangs in it, because the secondary reads no more. Raises QmpError."""
    removing = asyncio.ensure_future(_remove(qemu, {"m0": "mirror0"}))
    try:
        while not removing.done():
            await yank(qemu, "mirror0")
            await asyncio.wait((removing,), timeout=_YANK_S)
        removing.result()
    finally:
        removing.cancel()


async def remove_output(qemu: Monitor) -> None:
    """What the guest says goes out by itself again. Raises QmpError."""
    await _remove(qemu, {"redire1": PRIMARY["redire1"]})


async def remove_primary(qemu: Monitor) -> None:
    """All of the primary's. Raises QmpError."""
    await remove_output(qemu)  # first: without redire0 nothing of what it takes out comes back
    await remove_mirror(qemu)
    await _remove(qemu, PRIMARY)


async def remove_secondary(qemu: Monitor) -> None:
    """All of the secondary's but rew0. Raises QmpError."""
    await _remove(qemu, SECONDARY)


async def yank(qemu: Monitor, chardev: str) -> None:
    """Breaks its connection, out of band. Never an error: there may be none."""
    with contextlib.suppress(QmpError):
        await qemu.execute("yank", {"instances": [{"type": "chardev", "id": chardev}]}, out_of_band=True)


async def until_read(qemu: Monitor, chardev: str, deadline_s: float) -> None:
    """Until QEMU has read to the end of a connection that we have closed, or for so long. Raises QmpError."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(deadline_s):
            while chardev in await _connected(qemu):  # noqa: ASYNC110 - QEMU does not tell
                await asyncio.sleep(_POLL_S)


async def _remove(qemu: Monitor, filters: Mapping[str, str]) -> None:
    there = await present(qemu)
    for name in filters:
        if name in there:
            await qemu.execute("object-del", {"id": name})
    chardevs = await redirector.chardevs(_executing(qemu))
    for chardev in filters.values():
        if chardev in chardevs:
            await qemu.execute("chardev-remove", {"id": chardev})


async def _connected(qemu: Monitor) -> set[str]:
    found = await redirector.chardevs(_executing(qemu))
    return {label for label, device in found.items() if not device.filename.startswith("disconnected:")}


async def _until_connected(qemu: Monitor, wanted: set[str], places: Places, deadline_s: float) -> None:
    missing = wanted
    try:
        async with asyncio.timeout(deadline_s):
            while missing := wanted - await _connected(qemu):  # noqa: ASYNC110 - QEMU does not tell
                await asyncio.sleep(_POLL_S)
    except TimeoutError as error:
        known = places.addresses()
        where = ", ".join(f"{name} at {known[name][0]} port {known[name][1]}" for name in sorted(missing))
        raise PeerError(f"QEMU's chardevs found nobody within {deadline_s:g} s: {where}") from error


def _executing(qemu: Monitor) -> redirector.Execute:
    async def execute(name: str, arguments: Mapping[str, object]) -> object:
        return await qemu.execute(name, arguments or None)

    return execute
