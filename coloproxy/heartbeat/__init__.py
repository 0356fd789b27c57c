# SPDX-License-Identifier: Apache-2.0
"""The heartbeat between the two hosts of a pair: is the other one there, and what does it say of itself?

`Heartbeat` is what a node uses; `Detector` the same without I/O. docs/heartbeat.md.
"""

from .detector import INTERVAL, START_TIMEOUT, TIMEOUT, Detector, PeerState, Settings
from .endpoint import Heartbeat
from .message import STATE_MAX, Reason
from .statistics import BUCKETS_NS, PathStats, RoundTrips, Stats
from .udp import UdpPath

__all__ = [
    "BUCKETS_NS",
    "INTERVAL",
    "START_TIMEOUT",
    "STATE_MAX",
    "TIMEOUT",
    "Detector",
    "Heartbeat",
    "PathStats",
    "PeerState",
    "Reason",
    "RoundTrips",
    "Settings",
    "Stats",
    "UdpPath",
]
