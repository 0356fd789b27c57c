# SPDX-License-Identifier: Apache-2.0
"""How large a workload must be to lie in the caches, or outside of them."""

from __future__ import annotations

from collections.abc import Callable

from core.library import Spec
from suite.machine import caches, last_cache, memory

Measure = Callable[[Spec], None]
"""The fixture `measure`."""


def warm_frames(length: int) -> int:
    """So many that both sides' arenas fill half of the second-level cache."""
    return max(64, caches().get("L2", 1 << 20) // 4 // (length + 64))


def cold_frames(length: int, quick: bool) -> int:
    """So many that each side's arena is larger than the last cache, on a machine that has the memory."""
    if quick:
        return 2048
    return max(1024, min(last_cache() * 3 // 2, memory() // 16) // (length + 64))
