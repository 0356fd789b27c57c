# SPDX-License-Identifier: Apache-2.0
"""Builds coloproxy._core from csrc/. The cdef is the marked part of the public header, so it can't drift."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

_ROOT = Path(__file__).resolve().parent.parent
_HEADER = _ROOT / "csrc" / "coloproxy.h"
_NOT_CORE = {"tcg_colo_shim.c"}


CFLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O3", "-g", "-Wall", "-Wextra", "-fvisibility=hidden"]


def marked_cdef(header: Path) -> str:
    """The part of a public header that is also the cdef of its binding."""
    text = header.read_text(encoding="utf-8")
    begin, end = "/* cffi:begin */", "/* cffi:end */"
    return text[text.index(begin) + len(begin) : text.index(end)]


def core_sources() -> list[str]:
    """The C files of the core, relative to the top of the tree (setuptools wants them so)."""
    return [f"csrc/{p.name}" for p in sorted((_ROOT / "csrc").glob("*.c")) if p.name not in _NOT_CORE]


ffibuilder = FFI()
ffibuilder.cdef(marked_cdef(_HEADER))
ffibuilder.set_source(
    "coloproxy._core",
    '#include "coloproxy.h"',
    sources=core_sources(),
    include_dirs=["csrc"],
    depends=[f"csrc/{p.name}" for p in sorted((_ROOT / "csrc").glob("*.h"))],
    extra_compile_args=CFLAGS,
    libraries=["pthread"],
)
