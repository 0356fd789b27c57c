# SPDX-License-Identifier: Apache-2.0
"""What all demos have in common: options, the summary at the end, and the page that differs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from rich.panel import Panel
from rich.table import Table

from coloproxy.demo.journal import JournalFollower
from coloproxy.demo.view import View
from coloproxy.errors import ColoproxyError
from coloproxy.testbed import Client
from coloproxy.testbed.qemu import Nic

JOURNAL_SECONDS: Final = 5.0
DIFFERENT: Final = "/cgi-bin/diverge"
"""The page that names the host that it is made on, and draws a token."""


class DemoError(ColoproxyError):
    """The demo did not show what it promises: a wrong byte, a lost connection."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """How to run it."""

    attach: Literal["tap", "filters"] | None = None
    """None: `coloproxy node`. A pair without disk that fails over once: under `coloproxy run` on both hosts, or with
    `coloproxy compare` behind QEMU's own filters."""
    nic: Nic = "virtio"
    allow_kvm: bool = True
    fast: bool = False
    """Less of everything: for slow machines."""
    etcd: bool = True
    """False: no arbiter, even if there could be one."""
    keep_logs: Path | None = None
    plain: bool = False
    """Lines instead of a live screen, also on a terminal."""


@dataclass(slots=True)
class Summary:
    """What is left on the screen in the end."""

    rows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, what: str, result: str) -> None:
        """One more line."""
        self.rows.append((what, result))

    def table(self) -> Table:
        """All of them."""
        table = Table(title="What you have just seen", title_justify="left", show_header=False, expand=False)
        table.add_column(style="bold")
        table.add_column()
        for row in self.rows:
            table.add_row(*row)
        return table


def expect(condition: bool, complaint: str) -> None:
    """Raises DemoError if it isn't so."""
    if not condition:
        raise DemoError(complaint)


async def ask_what_differs(view: View, client: Client, journal: JournalFollower, guest: str, summary: Summary) -> None:
    """A request that the two VMs answer differently.

    Args:
        journal: of the primary's coloproxy.
        guest: how the guest calls the host that the primary runs on.

    Raises:
        DemoError: another answer, or no divergence, or no checkpoint.
    """
    view.explain("Now a page that differs on the two VMs on purpose: it names the host and draws a random token.")
    journal.poll()
    seen = len(journal.records)
    view.step("asking for the page that differs")
    begin = time.monotonic()
    answer = (await client.get(DIFFERENT)).decode()
    took = f"{(time.monotonic() - begin) * 1000:.0f} ms"
    expect(f"host: {guest}\n" in answer, "the answer is not the primary's")
    expect(await journal.wait("divergence", seen, JOURNAL_SECONDS), "coloproxy did not notice that the answers differ")
    expect(await journal.wait("checkpoint-committed", seen, JOURNAL_SECONDS), "no checkpoint was taken for it")
    view.done(f"the client got the primary's answer, once, after a checkpoint: {took}")
    view.show(Panel(answer.strip(), title="what the client got", border_style="green", expand=False))
    summary.add("a divergence", f"withheld, one checkpoint, then released: {took} for the client")
