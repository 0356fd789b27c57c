# SPDX-License-Identifier: Apache-2.0
"""With which versions it was measured; on what, coloproxy.bench.facts knows."""

from __future__ import annotations

from pathlib import Path

from coloproxy.bench import facts
from coloproxy.bench.facts import said

from . import services

_TOP = Path(__file__).resolve().parent.parent.parent


def versions() -> dict[str, str]:
    """Of all that takes part but the guest's kernel, which is known once a guest is built."""
    return {
        **facts.versions(),
        "coloproxy_commit": _commit(),
        **services.versions(),
    }


def _commit() -> str:
    """Of the source tree beside this file; what runs is the installed package, made from it."""
    commit = said(["git", "-C", str(_TOP), "rev-parse", "--short=12", "HEAD"]).strip()
    changed = said(["git", "-C", str(_TOP), "status", "--porcelain", "--untracked-files=no"]).strip()
    return f"{commit}, changed" if commit and changed else commit
