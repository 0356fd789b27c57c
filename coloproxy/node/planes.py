# SPDX-License-Identifier: Apache-2.0
"""Which data path the pair's file wants. Nobody else asks."""

from __future__ import annotations

from collections.abc import Callable

from coloproxy.journal import Journal
from coloproxy.run.host import keys_of

from .filter_plane import FilterPlane
from .plane import FindQemu, Plane
from .setting import Setting
from .tap_plane import TapPlane


def make_plane(setting: Setting, journal: Journal, failed: Callable[[str], None], qemu: FindQemu) -> Plane:
    """Raises ColoproxyError: the link's key, or the rules, can't be read."""
    if setting.node.attach == "filters":
        return FilterPlane(setting, journal, failed, qemu)
    return TapPlane(setting, keys_of(setting.pair), journal, failed)
