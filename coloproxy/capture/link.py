# SPDX-License-Identifier: Apache-2.0
"""Only Ethernet is compared; the refusal of anything else says what to do."""

from __future__ import annotations

from typing import Final

from pcapng.constants import link_types

from coloproxy.capture.stream import BoundedStream

__all__ = ["ETHERNET", "check_link"]

ETHERNET: Final = link_types.LINKTYPE_ETHERNET
_NAMES: Final = {
    value: name.removeprefix("LINKTYPE_")
    for name, value in sorted(vars(link_types).items())
    if name.startswith("LINKTYPE_") and isinstance(value, int)
}
_NAMES[276] = "LINUX_SLL2"
_COOKED: Final = (113, 276)


def check_link(stream: BoundedStream, link: int, interface: str | None) -> None:
    """Raises CaptureError unless `link` (a LINKTYPE_ number of tcpdump.org) is Ethernet."""
    if link == ETHERNET:
        return
    what = f"is of link type {_NAMES.get(link, 'unknown')} ({link})"
    if interface is not None:
        what += f", captured on {interface}"
    what += "; only Ethernet (1) can be compared"
    if link in _COOKED:
        what += ". `tcpdump -i any` cooks packets so: capture on the VM's tap itself"
    raise stream.error(what)
