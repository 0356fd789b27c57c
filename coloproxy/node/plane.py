# SPDX-License-Identifier: Apache-2.0
"""The data path of the node's VM, in the role of the moment: what the node wants of it, whichever attach does it.

tap_plane.py: coloproxy owns the TAPs and moves the frames. filter_plane.py: QEMU owns the TAP, its net filters carry
frames to and from a comparator in this process. docs/node.md says when to take which.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from coloproxy import vmm
from coloproxy.disks import Monitor


class Plane(Protocol):
    """Methods are called one at a time. Those that may fail raise ColoproxyError, and may be called again.

    The constructor's `failed` is told when the data path has ended by itself, with a reason.
    """

    # -------------------------------------------------------------------- QEMU

    def qemu_arguments(self, role: vmm.Role) -> list[str]:
        """The VM's NICs on QEMU's command line. Raises MisuseError: a NIC that QEMU can't have."""

    async def before_launch(self) -> None:
        """What must be there when QEMU starts, in whatever role. Nothing of it speaks to clients yet."""

    # ------------------------------------------------------------------- roles

    async def serve_alone(self) -> None:
        """A VM of its own, whose output passes. A survivor's connections go on to be translated. Idempotent."""

    async def become_primary(self) -> None:
        """The VM runs; from now on all it says is compared with the secondary's, as soon as COLO runs."""

    async def become_secondary(self) -> None:
        """Fed and heard by the primary; nothing of this VM reaches a client."""

    async def break_off(self) -> None:
        """Whatever of the data path QEMU's main loop may hang in, because the peer reads no more: out of band.

        Before any question in band, when the peer is given up. Never an error: there may be nothing.
        """

    async def take_over(
        self, reason: str, run_alone: Callable[[], Awaitable[None]], before_heard: Callable[[], Awaitable[None]]
    ) -> None:
        """`run_alone` makes the secondary's VM run by itself; its connections are kept; open, announce, translate on.

        before_heard: done before a client hears the VM, too; beside the keeping, for each waits for a disk. Never
        raises. Idempotent.
        """

    async def go_alone(self, reason: str) -> None:
        """A primary's that has lost its secondary: release what is held, and pass. Of no effect on others."""

    async def forget(self) -> None:
        """The VM is dead, and with it its connections: nothing of them is for the one that is booted next."""

    async def end(self) -> None:
        """No data path: nothing of the VM, which is about to end, reaches a client. Idempotent."""

    async def let_go(self) -> None:
        """This process ends, QEMU lives on: what the next one needs is kept. Idempotent, never raises."""

    # --------------------------------------------------------------- who hears

    def lease(self, until_ns: int | None) -> None:
        """A primary's: nothing reaches a client from then on, CLOCK_MONOTONIC; None: no limit. Also of one to come."""

    def mute(self) -> None:
        """Nothing of this VM reaches a client, until a role says otherwise."""

    # ------------------------------------------------------------------ status

    @property
    def knows_connections(self) -> bool:
        """How the secondary VM's TCP connections are numbered for clients, as of its last checkpoint."""

    @property
    def link_up(self) -> bool:
        """False: there is a secondary, or a primary, to whom frames should go, and they don't."""

    def checkpoint(self, reason: str) -> asyncio.Future[None]:
        """Asks for one: as Checkpoints.next(). Raises MisuseError: not a primary's, or not protected."""

    def status(self) -> dict[str, Any] | None:
        """As `coloproxy ctl status` has a VM; None: nothing runs."""


FindQemu = Callable[[], Monitor | None]
"""The VM's QEMU of the moment."""
