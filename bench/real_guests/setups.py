# SPDX-License-Identifier: Apache-2.0
"""The set-ups that are compared: the same guest, unprotected, behind colo-compare, behind coloproxy."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from coloproxy.demo.journal import JournalFollower
from coloproxy.testbed import (
    Addition,
    BedOptions,
    ComparatorCommand,
    Endpoints,
    PairOptions,
    SingleVm,
    TestBed,
    VmPair,
    coloproxy_compare,
)
from coloproxy.testbed.errors import DeadlineError
from coloproxy.testbed.process import Daemon
from coloproxy.testbed.qemu import Nic

from . import work

UNPROTECTED: Final = "unprotected"
STOCK: Final = "stock"
COLOPROXY: Final = "coloproxy"
SET_UPS: Final = (UNPROTECTED, STOCK, COLOPROXY)

_LARGE_BYTES = 100_000  # of the test bed's own large file, which nobody loads here
_PROTECTED_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Ground:
    """What all set-ups have in common."""

    nic: Nic
    allow_kvm: bool
    addition: Addition
    coloproxy_options: Sequence[str] = ()
    keep_logs: Path | None = None


@dataclass(slots=True)
class Subject:
    """A set-up that runs and may be measured."""

    bed: TestBed
    processes: dict[str, Daemon] = field(default_factory=dict)
    """primary, and where there are such: secondary, comparator."""
    journal: JournalFollower | None = None
    protect_seconds: float | None = None
    """What it took to start COLO."""


@contextlib.asynccontextmanager
async def running(set_up: str, ground: Ground, name: str) -> AsyncIterator[Subject]:
    """Boots it, waits until its services are up and warm, protects it, and removes all of it in the end.

    *name* is for kept logs.  Raises TestbedError.
    """
    logs = ground.keep_logs / name if ground.keep_logs else None
    common = BedOptions(
        nic=ground.nic,
        allow_kvm=ground.allow_kvm,
        addition=ground.addition,
        large_bytes=_LARGE_BYTES,
        keep_logs=logs,
    )
    if set_up == UNPROTECTED:
        async with SingleVm(common) as single:
            await work.warm_up(single.client)
            yield Subject(single, {"primary": single.primary.process})
        return
    options = PairOptions(
        _coloproxy(ground) if set_up == COLOPROXY else None,
        nic=common.nic,
        allow_kvm=common.allow_kvm,
        addition=common.addition,
        large_bytes=common.large_bytes,
        keep_logs=common.keep_logs,
    )
    async with VmPair(options) as pair:
        await work.warm_up(pair.client)
        begin = time.monotonic()
        await pair.start_colo()
        subject = Subject(pair, {"primary": pair.primary.process, "secondary": pair.secondary.process})
        if pair.comparator is not None:
            subject.processes["comparator"] = pair.comparator
            subject.journal = await _protected(pair)
        subject.protect_seconds = time.monotonic() - begin
        yield subject


def _coloproxy(ground: Ground) -> ComparatorCommand:
    def command(endpoints: Endpoints) -> Sequence[str]:
        journal = str(_journal(endpoints.directory))
        return coloproxy_compare("--json-events", journal, *ground.coloproxy_options)(endpoints)

    return command


def _journal(directory: Path) -> Path:
    return directory / "events.log"  # named like the logs that a test bed keeps


async def _protected(pair: VmPair) -> JournalFollower:
    journal = JournalFollower(_journal(pair.directory), lambda _: None)
    if not await journal.wait("protected", 0, _PROTECTED_SECONDS):
        raise DeadlineError(f"coloproxy didn't say that it protects within {_PROTECTED_SECONDS:g} s")
    return journal
