# SPDX-License-Identifier: Apache-2.0
"""A guest with a disk, and that disk: what a client was told is on it can be looked for afterwards.

The guest is the ordinary one (guest.py) with the drivers, a mount and one more service: the write log.  A client's
first line names a log, every other one is a record, a line that begins with its number; the guest appends it to the
log's file, has it written (fsync), and only then answers with the number.  One shell and one `sync` a record: slow, and
nothing in it that could be wrong.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .addition import AddedFile, Addition
from .errors import GuestError
from .guest import Guest, build_guest, cache_directory, large_file
from .kernel import DISK_MODULES, find_kernel, read_module

LOG_PORT: Final = 7777
POWER_PORT: Final = 7778
"""A client's line there is `reboot` or `poweroff`: the guest writes all to its disk, and does so."""
LOG_DIRECTORY: Final = "log"
"""On the disk."""
LOG_PATH: Final = "/log"
"""Of the web server: the logs, as the guest has them."""
LARGE_PATH: Final = "/disk/large.bin"
"""Of the web server; the file is on the disk."""
LARGE_FILE: Final = "www/large.bin"
"""The same, on the disk."""
SMALL_PATH: Final = "/disk/small.txt"
SMALL_FILE: Final = "www/small.txt"
PROGRAMS: Final = {
    **dict.fromkeys(("mkfs.ext4", "e2fsck", "debugfs"), "e2fsprogs"),
    "qemu-img": "qemu-utils",
    "ethtool": "ethtool",
}
"""Programs that must be installed here besides those of every test bed, each with its Debian package."""

DISK_FAILED: Final = "start: no disk"
"""What the guest says on its console then; its write log refuses connections."""

_SMALL_BYTES: Final = 100_000  # of the web server's file that isn't on the disk
_COMMAND_SECONDS: Final = 60.0
_MODULES: Final = "modules-disk"

_START: Final = f"""
while read -r module; do
    insmod "/{_MODULES}/$module" || echo "start: insmod $module failed"
done < /{_MODULES}/order
mkdir /disk
if mount -t ext4 -o noatime /dev/vda /disk; then
    nc -ll -p {LOG_PORT} -e /writelog &
    nc -ll -p {POWER_PORT} -e /power &
    ln -s /disk/{LOG_DIRECTORY} /www/log
    ln -s /disk/www /www/disk
else
    echo "{DISK_FAILED}"
fi
"""

_WRITELOG: Final = f"""#!/bin/sh
# One client of the write log.
IFS= read -r name
case $name in ''|*[!a-z0-9-]*) exit 1 ;; esac
file=/disk/{LOG_DIRECTORY}/$name
while IFS= read -r record; do
    echo "$record" >> "$file" && sync "$file" || exit 1
    echo "${{record%% *}}"
done
"""

_POWER: Final = """#!/bin/sh
IFS= read -r wish
case $wish in reboot|poweroff) sync; exec "$wish" -f ;; esac
"""


@dataclass(frozen=True, slots=True)
class DiskImage:
    """A disk as it was made."""

    path: Path
    """qcow2."""
    virtual_bytes: int
    large_bytes: int
    """Size of LARGE_FILE, whose content is guest.large_file()."""
    large_sha256: str


def build_disk_guest() -> Guest:
    """The guest, from the cache if it is there.  Blocks; raises GuestError."""
    kernel = find_kernel(cache_directory())
    ordinary = kernel.module_files()
    modules = {path.name.partition(".")[0]: path for path in kernel.module_files(DISK_MODULES) if path not in ordinary}
    files = {f"{_MODULES}/{name}.ko": AddedFile(read_module(path)) for name, path in modules.items()}
    files[f"{_MODULES}/order"] = AddedFile("".join(f"{name}.ko\n" for name in modules).encode())
    files["writelog"] = AddedFile(_WRITELOG.encode(), 0o755)
    files["power"] = AddedFile(_POWER.encode(), 0o755)
    return build_guest(large_bytes=_SMALL_BYTES, addition=Addition(files, _START))


def make_disk(path: Path, *, mebibytes: int = 96, large_bytes: int = 32_000_000) -> DiskImage:
    """A disk with an ext4 file system, a large file for the web server, and an empty directory for logs.

    Blocks for a second; raises GuestError.
    """
    content = large_file(large_bytes)
    with tempfile.TemporaryDirectory(prefix="making-", dir=path.parent) as scratch:
        root, raw = Path(scratch) / "root", Path(scratch) / "raw"
        (root / LOG_DIRECTORY).mkdir(parents=True)
        (root / LARGE_FILE).parent.mkdir()
        (root / LARGE_FILE).write_bytes(content)
        (root / SMALL_FILE).write_bytes(b"small\n")
        with raw.open("wb") as file:
            file.truncate(mebibytes << 20)
        program(["mkfs.ext4", "-q", "-F", "-E", "root_owner=0:0,lazy_itable_init=0", "-d", str(root), str(raw)])
        program(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path)])
    return DiskImage(path, mebibytes << 20, large_bytes, hashlib.sha256(content).hexdigest())


def program(argv: Sequence[str], *, accepted: Sequence[int] = (0,)) -> subprocess.CompletedProcess[str]:
    """Run a program to its end.  Raises GuestError unless it ends with an accepted status."""
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_COMMAND_SECONDS,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GuestError(f"{' '.join(argv)}: {error}") from error
    if done.returncode not in accepted:
        said = (done.stderr.strip() + "\n" + done.stdout.strip()).strip()
        raise GuestError(f"{' '.join(argv)}: exit status {done.returncode}: {said[-2000:]}")
    return done
