# SPDX-License-Identifier: Apache-2.0
"""Finds a Linux kernel for the guest, and its modules.

The kernel is Debian's own: the newest in /boot that has all drivers the guest needs, else the linux-image package,
downloaded into the cache.  It is never installed: installing a kernel package changes what somebody's
machine boots next time.
"""

from __future__ import annotations

import contextlib
import gzip
import lzma
import re
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .debian import command, unpack_package, update_index
from .errors import GuestError

NEEDED_MODULES: tuple[str, ...] = ("virtio_pci", "virtio_net", "e1000", "qemu_fw_cfg")
"""Drivers of the guest: both kinds of network card, and QEMU's firmware configuration (guest_files.HOST_NAME_KEY)."""

DISK_MODULES: tuple[str, ...] = ("crc32c_generic", "virtio_blk", "ext4")
"""Drivers of a guest with a disk (node_guest.py) besides; ext4 asks for crc32c by a name that no dependency tells."""

# docs/x86/boot.rst: offsets in the header of a bzImage.
_SETUP_SECTORS_AT = 0x1F1
_SETUP_MAGIC_AT = 0x202
_PAYLOAD_AT = 0x248
# An ELF note of the owner "Xen", type 18 (XEN_ELFNOTE_PHYS32_ENTRY), with a value of four or eight bytes.
_PVH_NOTES = tuple(struct.pack("<III", 4, size, 18) + b"Xen\0" for size in (4, 8))

_PACKAGE = "linux-image-amd64"
_INDEX_FILES = ("modules.dep", "modules.builtin")
_ALL_MODULES = (*NEEDED_MODULES, *DISK_MODULES)
_UNPACKED = "linux-image-2"  # to be changed when more of the package is kept


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel image and the directory with its modules."""

    version: str
    image: Path
    modules: Path

    def module_files(self, names: Sequence[str] = NEEDED_MODULES) -> list[Path]:
        """Files of the named modules and all that they depend on, each after what it depends on.

        Modules that are built into the kernel are left out.  Raises GuestError for one that exists nowhere.
        """
        depends = _read_dependencies(self.modules / "modules.dep")
        builtin = {_module_name(line) for line in _lines(self.modules / "modules.builtin")}
        by_name = {_module_name(path): path for path in depends}
        ordered: list[str] = []
        for name in names:
            if name in by_name:
                path = by_name[name]
                # modules.dep lists the direct dependency first and the deepest last: load them backwards.
                ordered += [file for file in (*reversed(depends[path]), path) if file not in ordered]
            elif name not in builtin:
                raise GuestError(f"kernel {self.version} has no module {name} (looked in {self.modules})")
        return [self.modules / file for file in ordered]


def read_module(path: Path) -> bytes:
    """The module as the kernel loads it, decompressed if the distribution packs its modules."""
    data = path.read_bytes()
    match path.suffix:
        case ".ko":
            return data
        case ".xz":
            return lzma.decompress(data)
        case ".gz":
            return gzip.decompress(data)
        case other:
            raise GuestError(f"{path}: don't know how to unpack a module that ends in {other}")


def read_image(path: Path) -> bytes:
    """The kernel as QEMU boots it: unpacked where possible.

    An emulated processor takes two to three seconds for the kernel to unpack itself; here it is done once, and faster.
    QEMU boots an ELF kernel that has a PVH entry point (docs/x86/boot.rst in Linux, elfnote.h in Xen)
    directly.  Any other is left as it is.
    """
    image = path.read_bytes()
    if image[_SETUP_MAGIC_AT : _SETUP_MAGIC_AT + 4] != b"HdrS":
        raise GuestError(f"{path} is no x86 Linux kernel")
    setup_sectors = image[_SETUP_SECTORS_AT] or 4
    offset, length = struct.unpack_from("<II", image, _PAYLOAD_AT)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if payload.startswith(b"\xfd7zXZ\0"):
        unpacked = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(b"\x1f\x8b"):
        unpacked = zlib.decompressobj(wbits=31).decompress(payload)
    else:
        return image
    has_pvh_entry = any(note in unpacked for note in _PVH_NOTES)
    return unpacked if unpacked.startswith(b"\x7fELF") and has_pvh_entry else image


def find_kernel(scratch: Path) -> Kernel:
    """The newest usable kernel of this machine, else one downloaded into *scratch*.

    Raises GuestError if there is neither.
    """
    for kernel in _installed(Path("/")):
        return kernel
    unpacked = scratch / _UNPACKED
    for kernel in _installed(unpacked):
        return kernel
    try:
        _download(unpacked)
    except GuestError as error:
        raise GuestError(f"no usable kernel in /boot, and none to be fetched: {error}") from error
    for kernel in _installed(unpacked):
        return kernel
    raise GuestError(f"package {_PACKAGE} holds no kernel with the modules {', '.join(_ALL_MODULES)}")


def _installed(root: Path) -> Iterator[Kernel]:
    """Kernels below *root* that have every driver the guest needs, newest first."""
    images = sorted((root / "boot").glob("vmlinuz-*"), key=lambda path: _version_key(path.name), reverse=True)
    for image in images:
        version = image.name.removeprefix("vmlinuz-")
        for modules in (root / "lib/modules" / version, root / "usr/lib/modules" / version):
            kernel = Kernel(version, image, modules)
            if not (modules / "modules.dep").exists():
                continue
            try:
                kernel.module_files(_ALL_MODULES)
            except GuestError:
                continue  # for example a "cloud" flavour, which lacks e1000
            yield kernel
            break


def _download(place: Path) -> None:
    """Fetch the kernel package that the meta package stands for, and keep the few files of it that a guest needs."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="downloading-", dir=place.parent) as scratch:
        whole, kept = Path(scratch) / "whole", Path(scratch) / "kept"
        whole.mkdir()
        update_index()
        names = re.findall(r"Depends:\s*(linux-image-\S+)", command(["apt-cache", "depends", "--important", _PACKAGE]))
        if not names:
            raise GuestError(f"apt knows no package {_PACKAGE}; is there a Debian mirror in its sources?")
        unpack_package(names[0], whole)
        for modules in (*whole.glob("lib/modules/*"), *whole.glob("usr/lib/modules/*")):
            # depmod runs when a kernel is installed, which this one is not.
            command(["depmod", "-b", str(modules.parents[2]), modules.name])
        for kernel in _installed(whole):
            files = [
                kernel.image,
                *(kernel.modules / name for name in _INDEX_FILES),
                *kernel.module_files(_ALL_MODULES),
            ]
            for file in files:
                target = kept / file.relative_to(whole)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
        with contextlib.suppress(OSError):  # somebody else was quicker
            kept.rename(place)


def _read_dependencies(modules_dep: Path) -> dict[str, list[str]]:
    """Each module's file, by its path below the module directory, with the files that it depends on."""
    depends: dict[str, list[str]] = {}
    for line in _lines(modules_dep):
        path, _, needed = line.partition(":")
        depends[path] = needed.split()
    return depends


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _module_name(path: str) -> str:
    """`kernel/drivers/net/virtio_net.ko.xz` is the module `virtio_net`; `-` and `_` are the same."""
    return Path(path).name.partition(".")[0].replace("-", "_")


def _version_key(name: str) -> list[tuple[int, str]]:
    """Sorts 6.1.0-9 before 6.1.0-56: runs of digits by value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
