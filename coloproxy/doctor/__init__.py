# SPDX-License-Identifier: Apache-2.0
"""`coloproxy doctor`: what of this host does not fit, and what to do about it. docs/doctor.md has the list."""

from __future__ import annotations

from . import clock, kernel, network, qemu, software, storage, subject
from .check import CHECKS, Check, Finding, Level, Subject, examine

__all__ = [
    "CHECKS",
    "Check",
    "Finding",
    "Level",
    "Subject",
    "clock",
    "examine",
    "kernel",
    "network",
    "qemu",
    "software",
    "storage",
    "subject",
]
