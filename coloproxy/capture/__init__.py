# SPDX-License-Identifier: Apache-2.0
"""Packet captures: pcap and pcapng in, pcapng out.

Reading rests on dpkt (pcap) and python-pcapng (pcapng); here is what both leave open: integer time stamps, damaged
files, compression, and errors that name the file and the packet.
"""

from __future__ import annotations

from coloproxy.capture.frame import CapturedFrame
from coloproxy.capture.reader import CaptureReader, read_capture
from coloproxy.capture.writer import CaptureWriter
from coloproxy.errors import CaptureError

__all__ = ["CaptureError", "CaptureReader", "CaptureWriter", "CapturedFrame", "read_capture"]
