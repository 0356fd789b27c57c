# SPDX-License-Identifier: Apache-2.0
"""What a check is. Each is a function that looks, changes nothing, and says what it has found; the modules beside this
one have them.
"""

from __future__ import annotations

import enum
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coloproxy.vmm.acceleration import QEMU

PROGRAM_S: Final = 20.0


class Level(enum.IntEnum):
    """How bad; also the exit status."""

    OK = 0
    WARN = 1
    FAIL = 2

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Port:
    """One that is used between the hosts.

    Attributes:
        what: for people: "link", "heartbeat", ...
        protocol: "tcp" or "udp".
        host: to listen on, or the peer's; "": every address of this host's.
        ours: we listen there; else the peer does.
    """

    what: str
    protocol: str
    host: str
    number: int
    ours: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.what} {self.protocol}:{host}:{self.number}"


@dataclass(frozen=True, slots=True)
class Subject:
    """What is examined: this machine, and what a pair's file says of it.

    Attributes:
        qemu, qemu_img, ip: programs.
        peer: the other host's address; None: checks of the way to it are left out.
        ports: that must be free here, or reachable there.
        qemu_user: whom QEMU runs as; None: as we do.
        images: the VM's disks.
        raw: those of them whose format is raw: what their guest has written there says nothing of their format.
        made: images that are not there are made by the node.
        overlays: where the disks' overlays are put.
        ram_bytes: of the guest.
        control_socket: of a coloproxy that may be running: its ports are in use, and rightly so.
        needs_raw: a NIC is of kind packet.
        file_problems: of what the pair's file names; None: there is no file.
        root: below which /dev, /proc and /sys are looked for.
    """

    qemu: str = QEMU
    qemu_img: str = "qemu-img"
    ip: str = "ip"
    peer: str | None = None
    ports: tuple[Port, ...] = ()
    qemu_user: str | None = None
    images: tuple[Path, ...] = ()
    raw: frozenset[Path] = frozenset()
    made: bool = False
    overlays: Path | None = None
    ram_bytes: int | None = None
    control_socket: Path | None = None
    needs_raw: bool = False
    file_problems: tuple[str, ...] | None = None
    root: Path = Path("/")


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found. `do`: what to do about it, "" where nothing is to be done."""

    level: Level
    text: str
    do: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """`looks_at` is for people. `run` gives nothing for what does not concern the subject."""

    name: str
    looks_at: str
    run: Callable[[Subject], Iterable[Finding]]


CHECKS: Final[dict[str, Check]] = {}
"""All, by name, in the order of their modules."""

Run = Callable[[Subject], Iterable[Finding]]


def check(name: str, looks_at: str) -> Callable[[Run], Run]:
    """Puts a function into CHECKS."""

    def register(run: Run) -> Run:
        CHECKS[name] = Check(name, looks_at, run)
        return run

    return register


def examine(subject: Subject, names: Iterable[str] | None = None) -> Iterator[tuple[Check, Finding]]:
    """Runs the checks, all or those named. One that breaks is a finding too: the others are still of use."""
    for name in CHECKS if names is None else names:
        each = CHECKS[name]
        try:
            yield from ((each, finding) for finding in each.run(subject))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            yield (
                each,
                Finding(Level.WARN, f"can't be looked at: {error}", "see to that, then run coloproxy doctor again"),
            )


def ok(text: str) -> Finding:
    return Finding(Level.OK, text)


def warn(text: str, do: str) -> Finding:
    return Finding(Level.WARN, text, do)


def fail(text: str, do: str) -> Finding:
    return Finding(Level.FAIL, text, do)


def output_of(argv: Sequence[str], stdin: str = "") -> str | None:
    """What a program writes; None: it is not there. Raises SubprocessError: it failed, or took too long."""
    try:
        with tempfile.TemporaryFile("w+") as output:  # QEMU that is told to quit drops what a pipe had no room for
            done = subprocess.run(
                argv, input=stdin, stdout=output, stderr=subprocess.PIPE, text=True, timeout=PROGRAM_S, check=False
            )
            output.seek(0)
            text = output.read()
    except (FileNotFoundError, PermissionError):
        return None
    if done.returncode:
        raise subprocess.SubprocessError(f"{argv[0]}: {(done.stderr or text).strip()[:300]}")
    return text
