# SPDX-License-Identifier: Apache-2.0
"""The demo as a whole: which one, and what is said before and after it."""

from __future__ import annotations

import asyncio
import time

from rich.console import Console

from coloproxy.demo.acts import DemoOptions, Summary
from coloproxy.demo.nodes import play_nodes
from coloproxy.demo.pair import play_pair
from coloproxy.demo.view import View
from coloproxy.testbed import install_missing
from coloproxy.testbed.node_guest import PROGRAMS


async def run_demo(options: DemoOptions, console: Console) -> None:
    """The whole demo. Leaves nothing behind, in whatever way it ends.

    Raises:
        DemoError: it did not show what it promises.
        ColoproxyError: this machine can't run it, or a part of the test bed failed.
    """
    summary = Summary()
    started = time.monotonic()
    with View(console, live=False if options.plain else None) as view:
        installed: list[str] = []
        view.step("looking at what this machine lacks")
        await asyncio.to_thread(install_missing, installed.append, {} if options.attach else PROGRAMS)
        view.done("; ".join(installed) or "nothing")
        await (play_pair if options.attach else play_nodes)(options, view, summary)
    summary.add("everything took", f"{time.monotonic() - started:.0f} s; all processes, namespaces and files are gone")
    console.print()
    console.print(summary.table())
    console.print("Next: README.md says how to put coloproxy beside your own QEMU.")
