# SPDX-License-Identifier: Apache-2.0
"""The disk manager: a VM's disks, replicated between two hosts. docs/disks.md has pictures and tables.

images      image files: examined, made, refused with the reason
primary     attach() and detach() of the remote copy
secondary   prepare() for it; what follows a takeover
resync      the remote copy made equal, in full or by what was written since
record      what must be known of a host's images after a crash
recover     a takeover's commit that was interrupted
trouble     what QEMU's events mean for the disks
"""

from .graph import Blocks
from .model import Disk, Format, Kind, Monitor, Peer
from .primary import Via
from .record import Lineage, Takeover
from .resync import Mode, Outcome, Plan, Progress
from .trouble import Trouble, What, read_event

__all__ = [
    "Blocks",
    "Disk",
    "Format",
    "Kind",
    "Lineage",
    "Mode",
    "Monitor",
    "Outcome",
    "Peer",
    "Plan",
    "Progress",
    "Takeover",
    "Trouble",
    "Via",
    "What",
    "read_event",
]
