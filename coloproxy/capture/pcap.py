# SPDX-License-Identifier: Apache-2.0
"""pcap, either byte order, micro- or nanoseconds, and Kuznetzov's modified one.

dpkt knows the headers. Its Reader is not used: it makes floats of the times, takes a truncated packet for a short one
and hides the length on the wire.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import dpkt
from dpkt import pcap

from coloproxy.capture.frame import CapturedFrame
from coloproxy.capture.link import check_link
from coloproxy.capture.stream import BoundedStream

__all__ = ["MAGICS", "read_pcap"]

MAGICS: Final = {magic.to_bytes(4, "big"): magic for magic in pcap.MAGIC_TO_PKT_HDR}
_LITTLE: Final = {pcap.PMUDPCT_MAGIC, pcap.PMUDPCT_MAGIC_NANO, pcap.PACPDOM_MAGIC}
_NANO: Final = {pcap.TCPDUMP_MAGIC_NANO, pcap.PMUDPCT_MAGIC_NANO}


def read_pcap(stream: BoundedStream) -> Iterator[CapturedFrame]:
    """The packets of a pcap. Raises CaptureError."""
    raw = stream.read(pcap.FileHdr.__hdr_len__)
    if len(raw) < pcap.FileHdr.__hdr_len__:
        raise stream.error(f"the file header is truncated: {len(raw)} of {pcap.FileHdr.__hdr_len__} bytes")
    magic = MAGICS[raw[:4]]
    header = (pcap.LEFileHdr if magic in _LITTLE else pcap.FileHdr)(raw)
    if header.v_major != pcap.PCAP_VERSION_MAJOR:
        raise stream.error(f"is pcap of version {header.v_major}.{header.v_minor}; 2.4 can be read")
    # The field's upper half tells of an FCS: draft-ietf-opsawg-pcap, "LinkType and additional information".
    fcs = 2 * (header.linktype >> 28) if header.linktype & 0x0400_0000 else 0
    check_link(stream, header.linktype & 0xFFFF, None)
    packet_header = pcap.MAGIC_TO_PKT_HDR[magic]
    size = packet_header.__hdr_len__
    unit = 1 if magic in _NANO else 1000
    number = 0
    while True:
        number += 1
        stream.packet = number
        raw = stream.read(size)
        if not raw:
            return
        try:
            record = packet_header(raw)
        except dpkt.UnpackError as error:
            raise stream.error(f"its header is truncated: {len(raw)} of {size} bytes") from error
        data = stream.read(record.caplen)
        if len(data) < record.caplen:
            raise stream.error(f"is truncated: {len(data)} of {record.caplen} bytes")
        wire_len = max(record.len, record.caplen)
        if fcs and wire_len == len(data):
            data = data[: max(len(data) - fcs, 0)]
            wire_len = len(data)
        time = record.tv_sec * 1_000_000_000 + record.tv_usec * unit
        yield CapturedFrame(number, time, data, wire_len)
