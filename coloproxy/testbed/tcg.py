# SPDX-License-Identifier: Apache-2.0
"""How the guests' processors run in a test bed: coloproxy.vmm chooses, here is the RAM that goes with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import vmm
from ..errors import VmmError
from ..vmm.acceleration import QEMU
from ..vmm.quickack import quickack_route
from .errors import RequirementError

__all__ = ["KVM_RAM_KIB", "QEMU", "TCG_RAM_KIB", "Acceleration", "choose_acceleration", "quickack_route"]

TCG_RAM_KIB = 196616
"""RAM of a guest under TCG, in KiB: 192 MiB and 8 KiB.  Never a multiple of 256 KiB, see coloproxy.vmm.acceleration."""

KVM_RAM_KIB = 192 * 1024
"""RAM of a guest under KVM, in KiB."""


@dataclass(frozen=True, slots=True)
class Acceleration:
    """How the guests' processors run, and what that asks for."""

    name: str
    """`kvm` or `tcg`, as in QEMU's -accel."""
    ram_kib: int
    preload: Path | None
    """A library to preload into QEMU, for TCG only."""

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables for QEMU."""
        return {"LD_PRELOAD": str(self.preload)} if self.preload else {}


def choose_acceleration(*, allow_kvm: bool = True, shim: Path | None = None) -> Acceleration:
    """KVM where it really works, else TCG with what it needs.

    *shim* is the preload library, by default the one built with this package.  Raises RequirementError if TCG is
    needed and the library isn't there.
    """
    try:
        found = vmm.choose_acceleration("auto" if allow_kvm else "tcg", shim=shim)
    except VmmError as error:
        raise RequirementError(str(error)) from error
    return Acceleration(found.name, KVM_RAM_KIB if found.name == "kvm" else TCG_RAM_KIB, found.preload)
