# SPDX-License-Identifier: Apache-2.0
"""What the comparator sees in a frame: its flow, its place in the stream, what is compared of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from coloproxy._native import check, ffi, lib
from coloproxy.events import FlowId, FrameClass, flow_from_native

__all__ = ["FrameDescription", "TcpFlags", "describe", "flags_text", "reverse"]

_FLAGS = "FSRPAUEC"  # from the lowest bit: FIN SYN RST PSH ACK URG ECE CWR (RFC 9293, RFC 3168)


class TcpFlags:
    """Bits of :attr:`FrameDescription.flags`."""

    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    ACK = 0x10


@dataclass(frozen=True, slots=True)
class FrameDescription:
    """One frame, as the C core's parser sees it.

    Attributes:
        flow: of the frame, its source being the sender; ``reverse`` gives the other direction.
        flags: TCP's eight flags; 0 for other classes, as are seq and ack.
        seq, ack: TCP's numbers, unsigned 32 bits.
        payload_offset, payload_len: what is compared: the payload of TCP and UDP, that of IP for other protocols, the
            whole frame without IP.
    """

    flow: FlowId
    flags: int
    seq: int
    ack: int
    payload_offset: int
    payload_len: int

    @property
    def stream_len(self) -> int:
        """Positions that it takes in the sequence space: SYN and FIN count as one each."""
        return self.payload_len + bool(self.flags & TcpFlags.SYN) + bool(self.flags & TcpFlags.FIN)


@lru_cache(maxsize=4096)
def _flow(raw: bytes) -> FlowId:
    return flow_from_native(ffi.from_buffer("struct colo_flow_id *", raw))


def describe(data: bytes, vnet_len: int = 0, nic: int = 0) -> FrameDescription:
    """Describes a frame; any bytes can be described, those that make no sense as ``FrameClass.MALFORMED``.

    Args:
        data: ``vnet_len`` bytes of virtio-net header, then the Ethernet frame without FCS.
        nic: the NIC that it came by, 0 to 255: a frame does not say.

    Raises:
        MisuseError: vnet_len is beyond the data.
    """
    frame = ffi.new("struct colo_frame *")
    frame.data = buffer = ffi.from_buffer("uint8_t[]", data)
    frame.len = len(data)
    frame.vnet_len = vnet_len
    frame.nic = nic
    out = ffi.new("struct colo_description *")
    check(lib.colo_frame_describe(frame, out), "describe")
    del buffer
    return FrameDescription(
        flow=_flow(bytes(ffi.buffer(ffi.addressof(out, "flow")))),
        flags=out.tcp_flags,
        seq=out.seq,
        ack=out.ack,
        payload_offset=out.body,
        payload_len=out.body_len,
    )


def reverse(flow: FlowId) -> FlowId:
    """The other direction: what a frame of the client belongs to, seen from the VM."""
    if flow.frame_class in (FrameClass.TCP, FrameClass.UDP):
        ports = flow.destination_port, flow.source_port
    else:
        ports = flow.source_port, flow.destination_port  # an ICMP identifier is the same both ways
    return replace(
        flow,
        source=flow.destination,
        source_port=ports[0],
        destination=flow.source,
        destination_port=ports[1],
    )


def flags_text(flags: int) -> str:
    """TCP flags as one letter each, as tcpdump does: ``"S"``, ``"SA"``, ``"FPA"``; ACK alone is ``"A"``."""
    return "".join(letter for bit, letter in enumerate(_FLAGS) if flags >> bit & 1)
