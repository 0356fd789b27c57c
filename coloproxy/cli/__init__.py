# SPDX-License-Identifier: Apache-2.0
"""The command line: one module a command, registered in the order of `coloproxy --help`."""

from __future__ import annotations

import sys

from coloproxy.cli import (
    bench,
    bench_policies,
    compare,
    config,
    ctl,
    demo,
    doctor,
    mutate,
    node,
    replay,
    run,
    status,
    top,
)
from coloproxy.cli.app import FAILED, app

__all__ = [
    "app",
    "bench",
    "bench_policies",
    "compare",
    "config",
    "ctl",
    "demo",
    "doctor",
    "main",
    "mutate",
    "node",
    "replay",
    "run",
    "status",
    "top",
]


def main() -> None:
    """Entry point of the `coloproxy` command."""
    try:
        app()
    except BrokenPipeError:  # `coloproxy --help | head`
        sys.exit(FAILED)
