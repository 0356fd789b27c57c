# SPDX-License-Identifier: Apache-2.0
"""What a pair is: its TOML file, checked, and what follows from it."""

from __future__ import annotations

from .config import ROLES, Pair, Role, load, parse

__all__ = ["ROLES", "Pair", "Role", "load", "parse"]
