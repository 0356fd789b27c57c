# SPDX-License-Identifier: Apache-2.0
"""What a reload may change: pure. Anything else would lose frames, or make the two sides disagree."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from coloproxy.pair import Pair

LIVE: Final = re.compile(
    r"process\.(log_level|stats_interval)|link\.(psk_file|certificate|key|ca|peer_name|on_loss|alone_after)"
    r"|vms\[\d+\]\.nics\[\d+\]\.(announce|vlans)"
)
"""Keys that take effect at once; those of the link at its next connection."""


def changes(before: Pair, after: Pair) -> list[str]:
    """The keys whose values differ, with dots."""
    return sorted(set(_differ(before.model_dump(), after.model_dump(), "")))


def live_only(key: str) -> bool:
    """Whether that key may change while frames move."""
    return LIVE.fullmatch(key) is not None


def _differ(a: Any, b: Any, at: str) -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            yield from _differ(a.get(key), b.get(key), f"{at}.{key}" if at else str(key))
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b) and _holds_tables(a):
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _differ(x, y, f"{at}[{index}]")
    elif a != b:
        yield at


def _holds_tables(items: list[Any] | tuple[Any, ...]) -> bool:
    return any(isinstance(item, dict) for item in items)
