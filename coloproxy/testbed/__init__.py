# SPDX-License-Identifier: Apache-2.0
"""A real protected pair of virtual machines on one computer, for the demo and the end-to-end tests."""

from __future__ import annotations

from .addition import AddedFile, Addition, program_files
from .bed import BedOptions, SingleVm, TestBed
from .client import Client, Transfer, TransferResult
from .colo import Checkpoint, Failover, Start
from .errors import TestbedError
from .guest import Guest, build_guest, large_file
from .pair import ComparatorCommand, Endpoints, PairOptions, VmPair, coloproxy_compare
from .process import Completed
from .requirements import install_missing, missing

__all__ = [
    "AddedFile",
    "Addition",
    "BedOptions",
    "Checkpoint",
    "Client",
    "ComparatorCommand",
    "Completed",
    "Endpoints",
    "Failover",
    "Guest",
    "PairOptions",
    "SingleVm",
    "Start",
    "TestBed",
    "TestbedError",
    "Transfer",
    "TransferResult",
    "VmPair",
    "build_guest",
    "coloproxy_compare",
    "install_missing",
    "large_file",
    "missing",
    "program_files",
]
