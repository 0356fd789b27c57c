# SPDX-License-Identifier: Apache-2.0
"""KVM where it really works, else TCG (QEMU's emulator) with the cures that COLO needs under it.

Nobody protects a service with two machines that emulate their processors; but it needs no special hardware to show
and to test. Traps of QEMU 7.2's COLO under TCG, none of which exists with KVM:

- the first checkpoint deadlocks: QEMU's COLO thread waits on a condition whose mutex it doesn't own. A preloaded
  library turns such a wait into a short, correct one (csrc/tcg_colo_shim.c tells all of it): `Acceleration.preload`;
- the secondary crashes after a checkpoint if the RAM is a multiple of 256 KiB: QEMU takes a fast path through the
  dirty bitmap (64 pages to a word) that forgets to tell TCG's TLB about pages that were cleaned, so it misses
  writes: `ram_problem`.
"""

from __future__ import annotations

import functools
import itertools
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from coloproxy.errors import VmmError

from .detached import Account

QEMU: Final = "qemu-system-x86_64"

TCG_BAD_MULTIPLE: Final = 256 << 10
"""Bytes: RAM under TCG must not be a multiple of it."""
RAM_GRAIN: Final = 8 << 10
"""Bytes: QEMU rounds the RAM up to a multiple of it."""
DEFAULT_RAM: Final = 128 << 20
"""Bytes: QEMU's own, if no -m is given."""

_PROBE_SECONDS: Final = 2.0
_PROBE_ROM_BYTES: Final = 0x10000
_PROBE_EXIT_PORT: Final = 0xF4
_PROBE_VALUE: Final = 0x10
_PROBE_LOOPS: Final = 50_000_000
_UNITS: Final[Mapping[str, int]] = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}

Wanted = Literal["auto", "kvm", "tcg"]


@dataclass(frozen=True, slots=True)
class Acceleration:
    """How the VM's processors run, and what that asks for. Both hosts of a pair need the same."""

    name: Literal["kvm", "tcg"]
    """As in QEMU's -accel."""
    preload: Path | None = None
    """A library to preload into QEMU; under TCG only."""

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables for QEMU, and for nobody else."""
        return {"LD_PRELOAD": str(self.preload)} if self.preload is not None else {}


def choose_acceleration(
    wanted: Wanted = "auto", *, binary: str = QEMU, user: str | None = None, shim: Path | None = None
) -> Acceleration:
    """KVM where it works and is allowed, else TCG with what it needs. Blocks for up to two seconds.

    user: whom QEMU will run as; None: as we do.
    shim: the preload library, by default the one built with this package.

    Raises VmmError: "kvm" was asked for and doesn't work here; TCG is needed and the library isn't there.
    """
    if wanted != "tcg":
        problem = kvm_problem(binary, user)
        if problem is None:
            return Acceleration("kvm")
        if wanted == "kvm":
            raise VmmError(f"KVM can't be used: {problem}")
    return Acceleration("tcg", shim or find_shim())


def find_shim() -> Path:
    """The preload library that was built with this package. Raises VmmError.

    It is built by setup.py, not at first use: a host that runs VMs needs no compiler, and a library that root preloads
    should not lie where a service writes at run time.
    """
    package = Path(__file__).resolve().parent.parent
    for path in sorted(package.glob("_tcg_colo_shim*.so")):
        return path
    raise VmmError(
        f"{package} has no _tcg_colo_shim*.so; build it with `pip install .`, "
        "or by hand: gcc -std=c11 -O2 -fPIC -shared -o coloproxy/_tcg_colo_shim.so csrc/tcg_colo_shim.c"
    )


@functools.cache
def kvm_problem(binary: str = QEMU, user: str | None = None, root: Path = Path("/")) -> str | None:
    """Why KVM can't be used; None: it runs guest code at the speed of a processor. The answer is kept.

    root: below which /dev and /proc are looked for.

    That /dev/kvm exists and opens proves little: inside another virtual machine it may refuse to make a VM, or emulate
    instruction by instruction and never get through a kernel's boot. So QEMU itself is started with it, as the user
    that it will run as, and a small ROM counts to fifty million and reports by way of QEMU's exit status: some 20 ms
    with hardware support, minutes without.
    """
    if not (root / "dev/kvm").exists():
        return "there is no /dev/kvm (module kvm_intel or kvm_amd, and virtualization switched on in the firmware)"
    if not _has_virtualization_extensions(root):
        return "the processor offers neither VT-x nor AMD-V (inside a VM: nested virtualization is off)"
    account = None if user is None else Account.named(user)
    with tempfile.NamedTemporaryFile(prefix="coloproxy-kvm-probe-") as rom:
        rom.write(probe_rom())
        rom.flush()
        Path(rom.name).chmod(0o644)
        argv = [binary, "-accel", "kvm", "-M", "pc", "-m", "1", "-nodefaults", "-display", "none", "-bios", rom.name]
        argv += ["-device", f"isa-debug-exit,iobase={_PROBE_EXIT_PORT:#x},iosize=1"]
        try:
            done = subprocess.run(
                argv,
                capture_output=True,
                timeout=_PROBE_SECONDS,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                user=None if account is None else account.uid,
                group=None if account is None else account.gid,
                extra_groups=None if account is None else account.groups,
            )
        except subprocess.TimeoutExpired:
            return f"it is too slow: a count to fifty million took more than {_PROBE_SECONDS:g} s"
        except (OSError, subprocess.SubprocessError) as error:
            return f"{binary} can't be started{f' as {user}' if user else ''}: {error}"
    if done.returncode == (_PROBE_VALUE << 1 | 1):
        return None
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return f"{binary} -accel kvm: {said[-1] if said else f'exit status {done.returncode}'}"


def ram_problem(acceleration: Acceleration, arguments: Sequence[str]) -> str | None:
    """What is wrong with the RAM of that command line under that acceleration, and what to take; None: nothing."""
    if acceleration.name != "tcg":
        return None
    given = _ram_option(arguments)
    size = ram_of(arguments)
    if size is None or size % TCG_BAD_MULTIPLE:
        return None  # a size that can't be read: QEMU refuses it in its own words
    return (
        f"{'the default of 128 MiB' if given is None else f'-m {given}'}: under TCG the RAM must not be a multiple of "
        f"256 KiB, or the secondary crashes after a checkpoint; take -m {(size + RAM_GRAIN) >> 10}k, on both hosts"
    )


def ram_of(arguments: Sequence[str]) -> int | None:
    """The RAM of that command line in bytes; None if it can't be read."""
    given = _ram_option(arguments)
    return DEFAULT_RAM if given is None else ram_bytes(given)


def _ram_option(arguments: Sequence[str]) -> str | None:
    given = [value for option, value in itertools.pairwise(arguments) if option in ("-m", "--m")]
    return given[-1] if given else None


def ram_bytes(text: str) -> int | None:
    """The size in an -m option, as QEMU rounds it; None if it can't be read. The unit is MiB if none is given."""
    for part in text.split(","):
        key, equals, value = part.rpartition("=")
        if equals and key != "size":
            continue
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([bkmgtp]?)", value.strip().lower())
        if match is None:
            return None
        size = (
            int(float(match[1]) * _UNITS[match[2] or "m"])
            if "." in match[1]
            else int(match[1]) * _UNITS[match[2] or "m"]
        )
        return -(-size // RAM_GRAIN) * RAM_GRAIN
    return DEFAULT_RAM


def _has_virtualization_extensions(root: Path) -> bool:
    """True if the processor says that it has VT-x or AMD-V; spares the probe where there can be no KVM to speak of."""
    flags = re.search(r"^flags\s*:(.*)$", (root / "proc/cpuinfo").read_text(), re.MULTILINE)
    return flags is not None and not {"vmx", "svm"}.isdisjoint(flags[1].split())


def probe_rom() -> bytes:
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
