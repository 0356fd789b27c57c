# SPDX-License-Identifier: Apache-2.0
"""Revives the filter-redirector that injects what we release.

A redirector with `indev` takes its handlers off its chardev when the peer closes, and never puts them back
(redirector_chr_event in QEMU's net/filter-mirror.c): after a restart of the proxy it is deaf, and the guest mute, for
good. It shows: `query-chardev` says "frontend-open": false. Deleting the object and adding it again, with the same
properties, at the same place in the netdev's chain of filters, cures it within milliseconds; what was written
meanwhile waits in the socket.

The place matters: frames it injects go on to the filters before it in the list, so it must stay before the redirector
that takes the guest's output out (`outdev`) on the same netdev, or they would come to us again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from .errors import QmpError

Execute = Callable[[str, Mapping[str, object]], Awaitable[object]]

QOM_TYPE: Final = "filter-redirector"
PROPERTIES: Final = ("indev", "outdev", "netdev", "queue", "position", "insert", "status", "vnet_hdr_support")
# QEMU learns of its connection a little later than we do.
LOOKS: Final = 20
LOOK_INTERVAL_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Peer:
    """Our end of outdev's connection. TCP: (host, port) of both ends. unix: the path, if it has one."""

    local: tuple[str, int] | None = None
    remote: tuple[str, int] | None = None
    path: str = ""


@dataclass(frozen=True, slots=True)
class Redirector:
    """One filter-redirector of a running QEMU."""

    ident: str
    indev: str
    outdev: str
    netdev: str
    queue: str
    position: str
    insert: str
    status: str
    vnet_hdr_support: bool


@dataclass(frozen=True, slots=True)
class Chardev:
    """One entry of query-chardev."""

    label: str
    filename: str
    frontend_open: bool

    def may_be(self, peer: Peer) -> bool:
        """Whether its connection is ours. Sure for TCP; a client's unix socket has no name on QEMU's side."""
        if self.filename.startswith("tcp:") and peer.local is not None and peer.remote is not None:
            ends = self.filename.removeprefix("tcp:").split(" <-> ")
            return [end.split(",")[0] for end in ends] == [_end(peer.remote), _end(peer.local)]
        if self.filename.startswith("unix:") and peer.local is None:
            return self.filename.removeprefix("unix:").split(",")[0] in ("", peer.path)
        return False


def _end(where: tuple[str, int]) -> str:
    host = f"[{where[0]}]" if ":" in where[0] else where[0]
    return f"{host}:{where[1]}"


def recreation(found: Redirector, others: list[Redirector], objects: set[str]) -> dict[str, object]:
    """The arguments of object-add that put `found` back."""
    arguments: dict[str, object] = {
        "qom-type": QOM_TYPE,
        "id": found.ident,
        "netdev": found.netdev,
        "queue": found.queue,
        "indev": found.indev,
        "status": found.status,
        "vnet_hdr_support": found.vnet_hdr_support,
    }
    if found.outdev:
        arguments["outdev"] = found.outdev
    if found.position.startswith("id=") and found.position.removeprefix("id=") in objects:
        return arguments | {"position": found.position, "insert": found.insert}
    for other in others:
        if (
            other.ident != found.ident
            and other.netdev == found.netdev
            and other.outdev
            and (other.queue == found.queue or "all" in (other.queue, found.queue))
        ):
            return arguments | {"position": f"id={other.ident}", "insert": "before"}
    position = "tail" if found.position.startswith("id=") else found.position
    return arguments | {"position": position, "insert": found.insert}


async def chardevs(execute: Execute) -> dict[str, Chardev]:
    """query-chardev, by label. Raises QmpError."""
    reply = await execute("query-chardev", {})
    found = [entry for entry in reply if isinstance(entry, Mapping)] if isinstance(reply, list) else []
    return {
        str(entry.get("label")): Chardev(
            str(entry.get("label")), str(entry.get("filename")), entry.get("frontend-open") is True
        )
        for entry in found
    }


async def objects(execute: Execute) -> tuple[list[Redirector], set[str]]:
    """All filter-redirectors, and the names of all user-created objects. Raises QmpError."""
    reply = await execute("qom-list", {"path": "/objects"})
    entries = [entry for entry in reply if isinstance(entry, Mapping)] if isinstance(reply, list) else []
    redirectors = []
    for entry in entries:
        if entry.get("type") != f"child<{QOM_TYPE}>":
            continue
        ident = str(entry.get("name"))
        raw = {name: await execute("qom-get", {"path": f"/objects/{ident}", "property": name}) for name in PROPERTIES}
        text = {name: value if isinstance(value, str) else "" for name, value in raw.items()}
        redirectors.append(
            Redirector(
                ident=ident,
                indev=text["indev"],
                outdev=text["outdev"],
                netdev=text["netdev"],
                queue=text["queue"],
                position=text["position"],
                insert=text["insert"],
                status=text["status"],
                vnet_hdr_support=raw["vnet_hdr_support"] is True,
            )
        )
    return redirectors, {str(entry.get("name")) for entry in entries}


async def find(execute: Execute, peer: Peer, ident: str | None) -> tuple[Redirector, bool] | None:
    """Our redirector and whether it is deaf; None while QEMU shows none that is connected to us.

    Raises QmpError: `ident` does not exist, or several deaf ones may be ours.
    """
    redirectors, _ = await objects(execute)
    devices = await chardevs(execute)  # after them: one that is being made is not taken for a deaf one
    if ident is not None:
        for redirector in redirectors:
            if redirector.ident == ident:
                device = devices.get(redirector.indev)
                return redirector, device is not None and not device.frontend_open
        raise QmpError(f"--out-redirector: QEMU has no filter-redirector {ident!r}")
    ours = [(r, devices[r.indev]) for r in redirectors if r.indev in devices and devices[r.indev].may_be(peer)]
    deaf = [redirector for redirector, device in ours if not device.frontend_open]
    if len(deaf) > 1:
        names = ", ".join(redirector.ident for redirector in deaf)
        raise QmpError(f"several redirectors are deaf and may be ours ({names}): name it with --out-redirector")
    if deaf:
        return deaf[0], True
    return (ours[0][0], False) if ours else None


async def revive(execute: Execute, peer: Peer, ident: str | None = None) -> str | None:
    """Re-creates the redirector that `peer` feeds, if it is deaf. Returns its id if it was, None if all is well.

    ident: its name, None: found by its connection. Raises QmpError, with the guest's fate in the text.
    """
    for _ in range(LOOKS):
        found = await find(execute, peer, ident)
        if found is not None:
            break
        await asyncio.sleep(LOOK_INTERVAL_S)
    else:
        return None  # no redirector of QEMU's is at the other end: nothing we could revive
    redirector, deaf = found
    if not deaf:
        return None
    others, names = await objects(execute)
    arguments = recreation(redirector, others, names)
    await execute("object-del", {"id": redirector.ident})
    try:
        await execute("object-add", arguments)
    except QmpError as error:
        raise QmpError(
            f"{error}; the redirector {redirector.ident!r} is gone now and the guest mute: add it by hand: {arguments}"
        ) from error
    return redirector.ident
