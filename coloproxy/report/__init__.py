# SPDX-License-Identifier: Apache-2.0
"""The report of a replay, for people: on the terminal, and as one HTML file that stands alone.

Both take a `coloproxy.replay.Result`. Scapy decodes the packets where it is installed (``coloproxy[report]``).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from coloproxy.replay import Result

__all__ = ["render_terminal", "write_html"]


def render_terminal(result: Result, console: Console) -> None:
    """Prints the first difference of a `coloproxy.replay.Result`; nothing where there is none."""
    from coloproxy.report.build import build
    from coloproxy.report.terminal import print_view

    print_view(build(result), console)


def write_html(result: Result, directory: str | Path) -> Path:
    """Writes ``report.html`` into `directory`, which is made if need be, and returns its path. Raises OSError."""
    from coloproxy.report.build import build
    from coloproxy.report.page import write_view

    return write_view(build(result), Path(directory))
