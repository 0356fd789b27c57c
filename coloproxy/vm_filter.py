# SPDX-License-Identifier: Apache-2.0
"""The VM's own frames told from the client's, in a capture that has both: `--vm`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Final

from coloproxy.describe import FrameDescription
from coloproxy.errors import MisuseError

__all__ = ["VmFilter"]

_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


class VmFilter:
    """Which frames a VM sent, by its MAC or IP addresses.

    A frame that carries IP is the VM's if its source address is one of those, whatever else it carries; one without IP
    (ARP ...) if it comes from a MAC that has sent such a frame.

    Raises:
        MisuseError: an address is neither MAC nor IP.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._macs: set[bytes] = set()
        self._addresses: set[str] = set()
        for text in addresses:
            mac = text.lower().replace("-", ":")
            if _MAC.fullmatch(mac):
                self._macs.add(bytes.fromhex(mac.replace(":", "")))
                continue
            try:
                self._addresses.add(str(ipaddress.ip_address(text)))
            except ValueError:
                raise MisuseError(f"--vm {text}: neither a MAC address (52:54:00:12:34:56) nor an IP address") from None
        self._learned: set[bytes] = set()

    def sent(self, data: bytes, what: FrameDescription) -> bool:
        """Whether the VM sent this frame."""
        mac = data[6:12]
        if mac in self._macs:
            return True
        if not what.flow.family:
            return mac in self._learned
        if what.flow.source not in self._addresses:
            return False
        if len(self._learned) < 64:
            self._learned.add(mac)
        return True
