# SPDX-License-Identifier: Apache-2.0
"""QEMU: is it there, and was it built with what COLO needs?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from coloproxy.vmm.acceleration import RAM_GRAIN, TCG_BAD_MULTIPLE, kvm_problem

from .check import Finding, Subject, check, fail, ok, output_of, warn

OLDEST: Final = (7, 2)
"""-netdev stream is of 7.2; older ones were not tried."""
_INSTALL: Final = "install QEMU for x86-64 (Debian: qemu-system-x86), 7.2 or later"
_COMMANDS: Final = ("x-colo-lost-heartbeat", "query-colo-status", "x-blockdev-change", "blockdev-mirror",
                    "nbd-server-start", "block-export-add", "yank")  # fmt: skip
_BLOCK_DRIVERS: Final = ("replication", "quorum", "nbd", "qcow2")


def probe(subject: Subject) -> dict[str, Any] | None:
    """Version and QMP schema; None: there is no such program. Raises SubprocessError, ValueError."""
    requests = [{"execute": name} for name in ("qmp_capabilities", "query-version", "query-qmp-schema", "quit")]
    argv = [subject.qemu, "-M", "none", "-nodefaults", "-display", "none", "-qmp", "stdio"]
    text = output_of(argv, "\n".join(json.dumps(request) for request in requests) + "\n")
    if text is None:
        return None
    answers = [json.loads(line) for line in text.splitlines() if line.strip()]
    returns = [answer["return"] for answer in answers if "return" in answer]
    if len(returns) < 3:
        raise ValueError(f"{subject.qemu} gives no schema over QMP")
    return {"version": returns[1]["qemu"], "schema": returns[2]}


@check("qemu", "QEMU's version")
def version(subject: Subject) -> Iterator[Finding]:
    found = probe(subject)
    if found is None:
        yield fail(f"there is no {subject.qemu}", _INSTALL)
        return
    number = tuple(int(found["version"][part]) for part in ("major", "minor", "micro"))
    text = ".".join(map(str, number))
    if number[:2] < OLDEST:
        yield fail(f"QEMU {text} is too old: its -netdev stream is missing", _INSTALL)
    elif number[:2] > OLDEST:
        yield warn(f"QEMU {text}: coloproxy was tested with 7.2", "try a failover before you rely on it (docs/qemu.md)")
    else:
        yield ok(f"QEMU {text}")


@check("qemu-features", "COLO, replication, quorum, NBD, yank, TLS and -netdev stream in QEMU")
def features(subject: Subject) -> Iterator[Finding]:
    found = probe(subject)
    if found is None:
        return
    lacking = missing_features(found["schema"])
    if lacking:
        yield fail(
            f"QEMU was built without {', '.join(lacking)}",
            "take a QEMU with them (configure --enable-replication; Debian's has all)",
        )
    else:
        yield ok("COLO, replication, quorum, NBD, yank, TLS and -netdev stream are in it")


def missing_features(schema: list[dict[str, Any]]) -> list[str]:
    """What COLO needs and the QMP schema does not have."""
    commands = {entry["name"] for entry in schema if entry["meta-type"] == "command"}
    enums = [set(entry["values"]) for entry in schema if entry["meta-type"] == "enum"]
    drivers = next((values for values in enums if {"raw", "file", "qcow2"} <= values), set())
    nets = next((values for values in enums if {"tap", "socket", "user"} & values and "nic" in values), set())
    lacking = [name for name in _COMMANDS if name not in commands]
    lacking += [f"block driver {name}" for name in _BLOCK_DRIVERS if name not in drivers]
    lacking += [] if any("x-colo" in values for values in enums) else ["migration capability x-colo"]
    lacking += [] if any("tls-creds-psk" in values for values in enums) else ["TLS with pre-shared keys"]
    return lacking + ([] if "stream" in nets else ["-netdev stream"])


@check("qemu-img", "qemu-img, for overlays and checks of images")
def image_tool(subject: Subject) -> Iterator[Finding]:
    text = output_of([subject.qemu_img, "--version"])
    if text is None:
        yield fail(f"there is no {subject.qemu_img}", "install it (Debian: qemu-utils)")
    else:
        yield ok(text.splitlines()[0])


@check("kvm", "hardware support for the guests' processors")
def kvm(subject: Subject) -> Iterator[Finding]:
    why = _kvm_problem(subject)
    if why is None:
        yield ok("KVM works")
        return
    yield warn(
        f"{why}: QEMU would emulate (TCG), some ten times slower",
        "load kvm_intel or kvm_amd, turn VT-x/AMD-V on in the firmware (or nesting, in a VM). With TCG for a trial: "
        "QEMU needs the preload library (see tcg-shim), and RAM that is no multiple of 256 KiB (see ram)",
    )


@check("ram", "the guest's RAM, for a trap of TCG")
def ram(subject: Subject) -> Iterator[Finding]:
    if subject.ram_bytes is None:
        return
    if subject.ram_bytes % TCG_BAD_MULTIPLE:
        yield ok(f"{subject.ram_bytes >> 10} KiB is no multiple of 256 KiB")
    elif _kvm_problem(subject) is None:
        yield ok("a multiple of 256 KiB, which does no harm with KVM")
    else:
        yield fail(
            f"{subject.ram_bytes >> 10} KiB is a multiple of 256 KiB: under TCG the secondary crashes",
            f"take -m {(subject.ram_bytes + RAM_GRAIN) >> 10}k",
        )


def _kvm_problem(subject: Subject) -> str | None:
    return kvm_problem(subject.qemu, subject.qemu_user, subject.root)
