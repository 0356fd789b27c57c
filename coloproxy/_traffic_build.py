# SPDX-License-Identifier: Apache-2.0
"""Builds coloproxy._traffic, the traffic generator, from csrc/traffic/ and the parts of the core that it uses."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # setuptools runs this file by its path
from _cffi_build import CFLAGS, marked_cdef  # type: ignore[import-not-found,unused-ignore]
from cffi import FFI

_ROOT = Path(__file__).resolve().parent.parent
_CORE = ("csum.c", "framing.c")


def traffic_sources() -> list[str]:
    """The C files, relative to the top of the tree."""
    own = [f"csrc/traffic/{p.name}" for p in sorted((_ROOT / "csrc" / "traffic").glob("*.c"))]
    return own + [f"csrc/{name}" for name in _CORE]


ffibuilder = FFI()
ffibuilder.cdef(marked_cdef(_ROOT / "csrc" / "traffic" / "traffic.h"))
ffibuilder.set_source(
    "coloproxy._traffic",
    '#include "traffic.h"',
    sources=traffic_sources(),
    include_dirs=["csrc", "csrc/traffic"],
    depends=[f"csrc/{p.relative_to(_ROOT / 'csrc')}" for p in sorted((_ROOT / "csrc").rglob("*.h"))],
    extra_compile_args=CFLAGS,
)
