# SPDX-License-Identifier: Apache-2.0
"""Which data path the pair's file wants. Nobody else asks."""

from __future__ import annotations

from collections.abc import Callable

from coloproxy.journal import Journal
from coloproxy.run.host import keys_of

from .plane import FindQemu, Plane
from .setting import Setting
from .tap_plane import TapPlane


def make_plane(setting: Setting, journal: Journal, failed: Callable[[str], None], qemu: FindQemu) -> Plane:
    """Raises ColoproxyError: the link's key can't be read."""
    return TapPlane(setting, keys_of(setting.pair), journal, failed)
