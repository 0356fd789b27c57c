# SPDX-License-Identifier: Apache-2.0
"""Which CPUs the generator runs on, and which a comparator that it starts.

Over loopback the scheduler likes to put whoever wakes and whoever is woken on one CPU. Then the two take turns, and a
comparator seems to be half as fast, or not, by chance.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Split:
    """Two sets of CPUs that have none in common."""

    generator: frozenset[int]
    comparator: frozenset[int]


def split_cpus() -> Split | None:
    """One CPU of those that we may use for the generator, the others for the comparator; None: there is only one."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        return None
    return Split(frozenset(cpus[-1:]), frozenset(cpus[:-1]))


@contextlib.contextmanager
def on(cpus: frozenset[int]) -> Iterator[None]:
    """This thread runs there for the time being."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
