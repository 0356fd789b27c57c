# SPDX-License-Identifier: Apache-2.0
"""Builds coloproxy._path, the data path of the TAP attach, from csrc/path/ and the parts of the core that it uses."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # setuptools runs this file by its path
from _cffi_build import CFLAGS, marked_cdef  # type: ignore[import-not-found,unused-ignore]
from cffi import FFI

_ROOT = Path(__file__).resolve().parent.parent
_PATH = _ROOT / "csrc" / "path"
_CORE = ("csum.c", "gate.c", "hash.c", "name.c", "parse.c")
_HEADERS = ("rewriter.h", "link.h", "tls.h", "path.h")


def path_sources() -> list[str]:
    """The C files, relative to the top of the tree."""
    return [f"csrc/path/{p.name}" for p in sorted(_PATH.glob("*.c"))] + [f"csrc/{name}" for name in _CORE]


ffibuilder = FFI()
for header in _HEADERS:
    if (_PATH / header).exists():
        ffibuilder.cdef(marked_cdef(_PATH / header))
ffibuilder.set_source(
    "coloproxy._path",
    "".join(f'#include "{header}"\n' for header in _HEADERS if (_PATH / header).exists()),
    sources=path_sources(),
    include_dirs=["csrc", "csrc/path"],
    depends=[f"csrc/{p.relative_to(_ROOT / 'csrc')}" for p in sorted((_ROOT / "csrc").rglob("*.h"))],
    extra_compile_args=CFLAGS,
    libraries=["ssl", "crypto", "pthread"],
)
