# SPDX-License-Identifier: Apache-2.0
"""Traps of running COLO without KVM, each cured in one named place.  For test beds only.

Nobody protects a service with two machines that emulate their processors; but it needs no special hardware to show
and to test.  TCG, QEMU's emulator, brings these traps (found with QEMU 7.2):

- the first checkpoint deadlocks: `Acceleration.preload`
- the secondary crashes after a checkpoint if the RAM is a multiple of 256 KiB: `TCG_RAM_KIB`

and one that real hardware has too:

- a third of a short checkpoint is spent waiting for delayed ACKs: `quickack_route`
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .errors import RequirementError

QEMU = "qemu-system-x86_64"

TCG_RAM_KIB = 196616
"""RAM of a guest under TCG, in KiB: 192 MiB and 8 KiB.

Never a multiple of 256 KiB.  With one, QEMU takes a fast path through the dirty bitmap (64 pages to a word) that
forgets to tell TCG's TLB about pages that were cleaned; the secondary then misses writes, and crashes.
"""

KVM_RAM_KIB = 192 * 1024
"""RAM of a guest under KVM, in KiB."""

_PROBE_SECONDS = 2.0
_PROBE_ROM_BYTES = 0x10000
_PROBE_EXIT_PORT = 0xF4
_PROBE_VALUE = 0x10
_PROBE_LOOPS = 50_000_000


@dataclass(frozen=True, slots=True)
class Acceleration:
    """How the guests' processors run, and what that asks for."""

    name: str
    """`kvm` or `tcg`, as in QEMU's -accel."""
    ram_kib: int
    preload: Path | None
    """A library to preload into QEMU, for TCG only.

    QEMU's COLO thread waits on a condition whose mutex it doesn't own; harmless with KVM, a deadlock under TCG.  The
    library turns such a wait into a short, correct one (csrc/tcg_colo_shim.c tells all of it).
    """

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables for QEMU."""
        return {"LD_PRELOAD": str(self.preload)} if self.preload else {}


def choose_acceleration(*, allow_kvm: bool = True, shim: Path | None = None) -> Acceleration:
    """KVM where it really works, else TCG with what it needs.

    *shim* is the preload library, by default the one built with this package.  Raises RequirementError if TCG is
    needed and the library isn't there.
    """
    if allow_kvm and kvm_works():
        return Acceleration("kvm", KVM_RAM_KIB, None)
    return Acceleration("tcg", TCG_RAM_KIB, shim or find_shim())


def find_shim() -> Path:
    """The preload library that was built with this package.  Raises RequirementError."""
    package = Path(__file__).resolve().parent.parent
    for path in sorted(package.glob("_tcg_colo_shim*.so")):
        return path
    raise RequirementError(
        f"{package} has no _tcg_colo_shim*.so; build it with `pip install .`, "
        "or by hand: gcc -std=c11 -O2 -fPIC -shared -o coloproxy/_tcg_colo_shim.so csrc/tcg_colo_shim.c"
    )


@functools.cache
def kvm_works() -> bool:
    """True if KVM runs guest code at the speed of a processor.

    That /dev/kvm exists and opens proves little: inside another virtual machine it may refuse to make a VM, or emulate
    instruction by instruction and never get through a kernel's boot.  So a small ROM counts to fifty million and
    reports by way of QEMU's exit status: some 20 ms with hardware support, minutes without.  The answer is kept.
    """
    if not Path("/dev/kvm").exists() or not _has_virtualization_extensions():
        return False
    with tempfile.NamedTemporaryFile(prefix="colotb-kvm-probe-") as rom:
        rom.write(_probe_rom())
        rom.flush()
        argv = [QEMU, "-accel", "kvm", "-M", "pc", "-m", "1", "-nodefaults", "-display", "none", "-bios", rom.name]
        argv += ["-device", f"isa-debug-exit,iobase={_PROBE_EXIT_PORT:#x},iosize=1"]
        try:
            done = subprocess.run(
                argv, capture_output=True, timeout=_PROBE_SECONDS, stdin=subprocess.DEVNULL, start_new_session=True
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
    return done.returncode == (_PROBE_VALUE << 1 | 1)


def _has_virtualization_extensions() -> bool:
    """True if the processor says that it has VT-x or AMD-V; spares the probe where there can be no KVM to speak of."""
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return flags is not None and not {"vmx", "svm"}.isdisjoint(flags[1].split())


def _probe_rom() -> bytes:
    """64 KiB of firmware: count down in real mode from the reset vector, then write to the exit device."""
    reset_vector = _PROBE_ROM_BYTES - 16
    program = (
        b"\x66\xb9"
        + _PROBE_LOOPS.to_bytes(4, "little")  # mov ecx, loops
        + b"\x66\x49"  # dec ecx
        + b"\x75\xfc"  # jnz back to dec
        + bytes((0xB0, _PROBE_VALUE, 0xE6, _PROBE_EXIT_PORT))  # mov al, value; out port, al
        + b"\xf4"  # hlt
    )
    return (b"\x90" * reset_vector + program).ljust(_PROBE_ROM_BYTES, b"\x90")


def quickack_route(subnet: str, device: str) -> str:
    """The ip(8) command that makes the primary acknowledge at once what comes over the replication link.

    A checkpoint is a conversation of short messages over the migration's TCP connection.  QEMU doesn't switch off
    Nagle's algorithm there, so the secondary's next message waits until the primary has acknowledged the last, and the
    primary delays that by up to 40 ms: 33 ms of a median pause of 47.  Not a matter of TCG, and as useful on real
    hosts.
    """
    return f"route replace {subnet} dev {device} quickack 1"
