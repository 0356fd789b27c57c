# SPDX-License-Identifier: Apache-2.0
"""The node's own QEMU: its command line, its process, its monitors. docs/vmm.md."""

from __future__ import annotations

from .acceleration import Acceleration, choose_acceleration, kvm_problem, ram_problem
from .argv import Disk, Machine, Role, blockdev_arguments, command_line
from .bus import Connected, Event, Exit, Item, Lost, Subscription
from .detached import Account
from .explain import Cause, explain_event, explain_exit, explain_status, shutdown_cause
from .files import Files, StateDirectory, give
from .health import Health, Probe
from .process import QemuProcess
from .quickack import quickack_route
from .tls import Credentials

__all__ = [
    "Acceleration",
    "Account",
    "Cause",
    "Connected",
    "Credentials",
    "Disk",
    "Event",
    "Exit",
    "Files",
    "Health",
    "Item",
    "Lost",
    "Machine",
    "Probe",
    "QemuProcess",
    "Role",
    "StateDirectory",
    "Subscription",
    "blockdev_arguments",
    "choose_acceleration",
    "command_line",
    "explain_event",
    "explain_exit",
    "explain_status",
    "give",
    "kvm_problem",
    "quickack_route",
    "ram_problem",
    "shutdown_cause",
]
