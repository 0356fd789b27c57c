# SPDX-License-Identifier: Apache-2.0
"""A third of a short checkpoint is spent waiting for delayed ACKs, with KVM as under TCG. One route cures it."""

from __future__ import annotations


def quickack_route(subnet: str, device: str) -> str:
    """The ip(8) command that makes the primary acknowledge at once what comes over the replication link.

    A checkpoint is a conversation of short messages over the migration's TCP connection.  QEMU doesn't switch off
    Nagle's algorithm there, so the secondary's next message waits until the primary has acknowledged the last, and the
    primary delays that by up to 40 ms: 33 ms of a median pause of 47.
    """
    return f"route replace {subnet} dev {device} quickack 1"
