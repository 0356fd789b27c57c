# SPDX-License-Identifier: Apache-2.0
"""One frame of a capture."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CapturedFrame"]


@dataclass(frozen=True, slots=True)
class CapturedFrame:
    """An Ethernet frame, as it lies in a capture.

    Attributes:
        number: of the packet in the file, from 1 as Wireshark counts.
        time: when it was captured, ns since the Unix epoch. A pcapng simple packet block carries no time: it takes
            that of the packet before it (0 for the first).
        data: the frame, without FCS where the file tells that there is one.
        wire_len: its length on the wire; greater than ``len(data)``: cut by the snap length.
        interface: number of the interface in the file, from 0; always 0 in a pcap. A later section of a pcapng that
            describes an interface of the same place and name goes on with its number.
        interface_name: what a pcapng calls it, None where it says nothing.
        comments: of the packet (pcapng).
    """

    number: int
    time: int
    data: bytes
    wire_len: int
    interface: int = 0
    interface_name: str | None = None
    comments: tuple[str, ...] = ()

    @property
    def cut(self) -> bool:
        """The snap length cut it: its end is not known."""
        return self.wire_len > len(self.data)
