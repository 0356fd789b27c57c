# SPDX-License-Identifier: Apache-2.0
"""Compiles workload.c together with the core, by the package's own flags, and runs workloads.

In this process (`Workload`, by cffi's ABI mode; the cdef is the marked part of workload.h) or in one of their own
(`run_driver`, for callgrind and wherever memory counts).
"""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from cffi import FFI

HERE: Final = Path(__file__).resolve().parent
TOP: Final = HERE.parents[1]
OUT: Final = TOP / "build" / "bench"

# What setuptools adds of the interpreter's own flags and changes code; said here, so that counts of instructions don't
# depend on who built Python.
_AS_SETUPTOOLS: Final = ("-DNDEBUG", "-fwrapv", "-fPIC")
_LIBRARY, _DRIVER = "workload.so", "driver"


@dataclass(frozen=True, slots=True)
class Spec:
    """struct workload_spec. `kind` in small letters."""

    kind: str = "tcp"
    flows: int = 1
    length: int = 1448
    recut: int = 0
    burst: int = 16
    frames: int = 2048
    turn: int = 64
    skew: int = 0
    vnet_len: int = 0
    evict: int = 0


@dataclass(frozen=True, slots=True)
class Built:
    """Both ways to run a workload."""

    library: Path
    driver: Path


@cache
def _package_build() -> dict[str, Any]:
    """The package's own build script. By its path: the installed one has no sources beside it."""
    return runpy.run_path(str(TOP / "coloproxy" / "_cffi_build.py"))


def compiler() -> str:
    """The command, as setuptools would choose it."""
    return os.environ.get("CC", "cc")


def flags() -> list[str]:
    """Those of the package."""
    return [*_package_build()["CFLAGS"], *_AS_SETUPTOOLS, f"-I{TOP / 'csrc'}"]


def _sources() -> list[Path]:
    return [*(TOP / name for name in _package_build()["core_sources"]()), HERE / "workload.c", HERE / "driver.c"]


def _cc(*arguments: str) -> str:
    done = subprocess.run([compiler(), *arguments], capture_output=True, text=True, check=False, cwd=TOP)
    if done.returncode:
        raise RuntimeError(f"{compiler()} {' '.join(arguments)}:\n{done.stderr}")
    return done.stdout


def _fingerprint(sources: Sequence[Path]) -> str:
    """Of all that decides what comes out."""
    seen = hashlib.sha256("\0".join([compiler(), _cc("--version"), *flags()]).encode())
    headers = [*(TOP / "csrc").glob("*.h"), *HERE.glob("*.h")]
    for path in sorted([*sources, *headers]):
        seen.update(f"{path.relative_to(TOP)}\0".encode() + path.read_bytes())
    return seen.hexdigest()[:16]


def build(out: Path = OUT) -> Built:
    """Builds both, unless they are there from the same sources, compiler and flags. Raises RuntimeError."""
    sources = _sources()
    directory = out / f"core-{_fingerprint(sources)}"
    built = Built(directory / _LIBRARY, directory / _DRIVER)
    if directory.exists():
        return built
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix="building-") as name:
        work, result = Path(name), Path(name) / "result"
        result.mkdir()

        def compile_one(source: Path) -> str:
            target = work / f"{source.stem}.o"
            _cc(*flags(), "-c", "-o", str(target), str(source))
            return str(target)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, sources))
        _cc("-shared", "-o", str(result / _LIBRARY), *objects[:-1], "-lpthread")
        _cc("-o", str(result / _DRIVER), *objects, "-lpthread")
        if not directory.exists():  # somebody else may have been quicker
            result.rename(directory)
    return built


@cache
def _load(library: Path) -> tuple[FFI, Any]:
    ffi = FFI()
    ffi.cdef(_package_build()["marked_cdef"](HERE / "workload.h"))
    return ffi, ffi.dlopen(str(library))


class Workload:
    """One workload in this process. fill() and run() in turns; `with` frees it."""

    def __init__(self, spec: Spec, built: Built) -> None:
        ffi, self._lib = _load(built.library)
        fields = asdict(spec) | {"kind": getattr(self._lib, f"WORKLOAD_{spec.kind.upper()}")}
        self._pointer = self._lib.workload_create(ffi.new("struct workload_spec *", fields))
        if not self._pointer:
            raise ValueError(f"no memory, or a workload that makes no sense: {spec}")
        self.frames = int(self._lib.workload_frames(self._pointer))
        self.bytes = int(self._lib.workload_bytes(self._pointer))

    def fill(self) -> None:
        """Frames for the next pass."""
        self._lib.workload_fill(self._pointer)

    def run(self) -> None:
        """One pass. Raises AssertionError: not all frames were released in it."""
        released = self._lib.workload_pass(self._pointer)
        if released != self.frames:
            raise AssertionError(f"{released} of {self.frames} frames were released")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lib.workload_destroy(self._pointer)
        self._pointer = None


def driver_command(spec: Spec, passes: int, built: Built) -> list[str]:
    """The driver's command line."""
    words = {"vnet" if name == "vnet_len" else name: value for name, value in asdict(spec).items()}
    return [str(built.driver), *(f"{name}={value}" for name, value in words.items()), f"passes={passes}"]


def run_driver(spec: Spec, passes: int, built: Built) -> dict[str, Any]:
    """A workload in a process of its own: what the driver prints. Raises RuntimeError."""
    command = driver_command(spec, passes, built)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result
