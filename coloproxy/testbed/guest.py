# SPDX-License-Identifier: Apache-2.0
"""Builds the guest once and keeps it.

A guest is a kernel and an initial file system with busybox, a web server and a large file.  It is built in a second
or two, stored under a name that is the hash of all that went into it, and put in place by a rename: two builds at
once do no harm, and neither does one that is killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from . import guest_files
from .addition import NO_ADDITION, Addition, needs_interpreter
from .cpio import CpioWriter
from .errors import GuestError
from .kernel import Kernel, find_kernel, read_image, read_module

LARGE_FILE_BYTES = 50 * 1000 * 1000
_FORMAT = 2  # of a cached guest; to be raised when what is made of the same inputs changes
_KEPT_GUESTS = 3
_DRAFT_SECONDS = 3600.0
_USED_SECONDS = 36 * 3600.0  # a soak of a day starts QEMU from it again and again
_LARGE_FILE_SEED = b"coloproxy large file"
_DIRECTORIES = ("bin", "dev", "proc", "sys", "tmp", "modules", "www", "www/cgi-bin")


@dataclass(frozen=True, slots=True)
class Guest:
    """A built guest: what QEMU boots, and what the host must know to check its answers."""

    kernel: Path
    initrd: Path
    kernel_version: str
    hello: bytes
    """Content of /hello.txt."""
    large_bytes: int
    """Size of /large.bin."""
    large_sha256: str
    """Digest of /large.bin.  The file is pseudo-random: no block of it can stand in for another."""


def cache_directory() -> Path:
    """Where built guests are kept: $XDG_CACHE_HOME/coloproxy, by default ~/.cache/coloproxy."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "coloproxy"


def build_guest(
    cache: Path | None = None, large_bytes: int = LARGE_FILE_BYTES, addition: Addition = NO_ADDITION
) -> Guest:
    """The guest, from the cache if it is there, else built now.

    *large_bytes* is the size of /large.bin; packed and unpacked it must fit into the guest's RAM at once, as must
    what *addition* adds.
    Blocks for a second or two when it builds, for longer if a kernel must be downloaded.  Raises GuestError.
    """
    cache = cache or cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    kernel = find_kernel(cache)
    modules = {path: read_module(path) for path in kernel.module_files()}
    parts = _Parts(kernel, _busybox(), modules, large_bytes, addition)
    place = cache / f"guest-{parts.key()}"
    if not (place / "guest.json").exists():
        _build(place, parts)
    os.utime(place)
    _prune(cache)
    return _load(place)


def large_file(size: int) -> bytes:
    """The first *size* bytes of the guest's /large.bin: SHAKE-256 of a fixed seed."""
    return hashlib.shake_256(_LARGE_FILE_SEED).digest(size)


def _busybox() -> bytes:
    """The static busybox of this machine."""
    for path in (Path("/bin/busybox"), Path("/usr/bin/busybox")):
        if path.exists():
            data = path.read_bytes()
            if needs_interpreter(path, data):
                raise GuestError(f"{path} is not linked statically; install the package busybox-static")
            return data
    raise GuestError("no busybox here; install the package busybox-static")


@dataclass(frozen=True, slots=True)
class _Parts:
    """What goes into a guest."""

    kernel: Kernel
    busybox: bytes
    modules: Mapping[Path, bytes]
    large_bytes: int
    addition: Addition

    def key(self) -> str:
        """Hash of all of it, this package's own part included."""
        digest = hashlib.sha256()
        texts = [guest_files.INIT, guest_files.UPLOAD, guest_files.CGI, _DIRECTORIES]
        facts = json.dumps([*texts, self.kernel.version, self.large_bytes, _FORMAT])
        parts = [facts.encode(), guest_files.HELLO, _LARGE_FILE_SEED, self.kernel.image.read_bytes(), self.busybox]
        for part in (*parts, *self.modules.values(), *self.addition.fingerprint()):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        return digest.hexdigest()[:16]


def _build(place: Path, parts: _Parts) -> None:
    large = large_file(parts.large_bytes)
    draft = Path(tempfile.mkdtemp(prefix="building-", dir=place.parent))
    try:
        with (draft / "initrd").open("wb") as out:
            _write_initrd(out, parts, large)
        (draft / "kernel").write_bytes(read_image(parts.kernel.image))
        facts = {
            "kernel_version": parts.kernel.version,
            "large_bytes": parts.large_bytes,
            "large_sha256": hashlib.sha256(large).hexdigest(),
        }
        (draft / "guest.json").write_text(json.dumps(facts, indent=2) + "\n")
        with contextlib.suppress(OSError):  # somebody else was quicker
            draft.rename(place)
        if not (place / "guest.json").exists():
            raise GuestError(f"can't put the built guest into {place}")
    except OSError as error:
        raise GuestError(f"can't write the guest below {place.parent}: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _prune(cache: Path) -> None:
    """Remove guests that weren't used lately, and what killed builds left: each takes over 100 MB."""
    dated: list[tuple[float, Path]] = []
    for path in cache.glob("*-*"):
        with contextlib.suppress(OSError):  # another process prunes, too
            dated.append((path.stat().st_mtime, path))
    guests = sorted((item for item in dated if item[1].name.startswith("guest-")), reverse=True)
    now = time.time()
    stale = [path for used, path in guests[_KEPT_GUESTS:] if now - used > _USED_SECONDS]
    stale += [path for made, path in dated if path.name.startswith("building-") and now - made > _DRAFT_SECONDS]
    for path in stale:
        shutil.rmtree(path, ignore_errors=True)


def _write_initrd(out: BinaryIO, parts: _Parts, large: bytes) -> None:
    archive = CpioWriter(out)
    for directory in _DIRECTORIES:
        archive.directory(directory)
    archive.file("bin/busybox", parts.busybox, 0o755)
    archive.symlink("bin/sh", "busybox")
    names = [f"{path.name.partition('.')[0]}.ko" for path in parts.modules]
    for name, data in zip(names, parts.modules.values(), strict=True):
        archive.file(f"modules/{name}", data)
    archive.file("modules/order", "".join(f"{name}\n" for name in names).encode())
    archive.file("init", guest_files.INIT.encode(), 0o755)
    archive.file("upload", guest_files.UPLOAD.encode(), 0o755)
    archive.file("www/hello.txt", guest_files.HELLO)
    archive.file("www/large.bin", large)
    for name, text in guest_files.CGI.items():
        archive.file(f"www/cgi-bin/{name}", text.encode(), 0o755)
    parts.addition.write(archive)
    archive.file(guest_files.LAST_FILE, b"")
    archive.finish()


def _load(place: Path) -> Guest:
    try:
        facts = json.loads((place / "guest.json").read_text())
        return Guest(
            kernel=place / "kernel",
            initrd=place / "initrd",
            kernel_version=str(facts["kernel_version"]),
            hello=guest_files.HELLO,
            large_bytes=int(facts["large_bytes"]),
            large_sha256=str(facts["large_sha256"]),
        )
    except (OSError, ValueError, KeyError) as error:
        raise GuestError(f"the cached guest in {place} is damaged ({error}); remove that directory") from error
