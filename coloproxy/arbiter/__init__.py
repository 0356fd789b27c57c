# SPDX-License-Identifier: Apache-2.0
"""Who may go on when the two hosts have lost each other. docs/arbiter.md."""

from __future__ import annotations

from .both import Both
from .claim import Arbiter, Claim, Ruling, Verdict
from .command import CommandArbiter, CommandOptions
from .etcd import EtcdArbiter
from .etcd_gateway import EtcdOptions
from .fence import FenceArbiter, FenceOptions
from .policy import PolicyArbiter

__all__ = [
    "Arbiter",
    "Both",
    "Claim",
    "CommandArbiter",
    "CommandOptions",
    "EtcdArbiter",
    "EtcdOptions",
    "FenceArbiter",
    "FenceOptions",
    "PolicyArbiter",
    "Ruling",
    "Verdict",
]
