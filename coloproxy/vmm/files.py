# SPDX-License-Identifier: Apache-2.0
"""The files of one VM's QEMU in the node's state directory, and who may use them.

With `user` the directory is QEMU's user's, whereas we may be root: so nothing here follows a symbolic link, or opens
what is no ordinary file. A QEMU that its guest has broken out of would get more than it has otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coloproxy.address import UNIX_PATH_MAX
from coloproxy.errors import VmmError

LOG_LIMIT: Final = 1 << 20
"""Bytes of qemu.log; what was before is kept in qemu.log.1, so both together take twice as much."""


@dataclass(frozen=True, slots=True)
class Files:
    """Where things are. `Files.below(directory)`."""

    directory: Path
    lock: Path
    """Locked by the coloproxy that owns the directory. Never removed."""
    pidfile: Path
    """Written by QEMU, which holds a lock on it as long as it lives."""
    control: Path
    """QMP: commands and events."""
    oob: Path
    """QMP: for out-of-band commands, while an in-band one hangs on the other."""
    proxy: Path
    """QMP: for the data path's checkpoint guide. Each monitor serves one peer at a time."""
    log: Path
    """What QEMU writes to stdout and stderr."""

    @classmethod
    def below(cls, directory: Path) -> Files:
        """The files in that directory. Raises VmmError: its path is too long for a socket."""
        directory = directory.absolute()
        files = cls(
            directory,
            lock=directory / "lock",
            pidfile=directory / "qemu.pid",
            control=directory / "control.qmp",
            oob=directory / "oob.qmp",
            proxy=directory / "proxy.qmp",
            log=directory / "qemu.log",
        )
        longest = max(len(os.fsencode(path)) for path in files.sockets)
        if longest > UNIX_PATH_MAX:
            raise VmmError(
                f"{directory}: the path is too long: sockets in it need {longest} bytes of {UNIX_PATH_MAX}; "
                "take another state_dir"
            )
        return files

    @property
    def sockets(self) -> tuple[Path, ...]:
        """The monitors."""
        return self.control, self.oob, self.proxy

    @property
    def old_log(self) -> Path:
        """The log before the present one."""
        return self.log.with_name(self.log.name + ".1")


class StateDirectory:
    """A state directory that is ours alone, from `StateDirectory.open()` to `close()` (or our end, however it comes).

    A context manager. The lock goes with us, not with QEMU: QEMU doesn't inherit it.
    """

    def __init__(self, files: Files, lock: int) -> None:
        self.files = files
        self._lock = lock

    @classmethod
    def open(cls, directory: Path) -> StateDirectory:
        """Makes the directory (mode 0700) if it isn't there, and locks it.

        Raises VmmError: another process has it, or it can't be used.
        """
        files = Files.below(directory)
        try:
            files.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = open_plain(files.lock, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise VmmError(f"{files.directory}: can't be used: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            with contextlib.suppress(OSError, ValueError):
                holder = int(os.pread(lock, 32, 0))
                os.close(lock)
                raise VmmError(f"{files.directory}: another coloproxy (process {holder}) uses it already") from error
            os.close(lock)
            raise VmmError(f"{files.directory}: another coloproxy uses it already: {error.strerror}") from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)  # for people; the lock is what counts
        return cls(files, lock)

    def close(self) -> None:
        """Gives the directory free."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def held(self) -> bool:
        """True until `close()`."""
        return self._lock >= 0

    def __enter__(self) -> StateDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_plain(path: Path, flags: int) -> int:
    """A descriptor of an ordinary file, made with mode 0600 if `flags` say so. Raises OSError: it is anything else."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no ordinary file")
    return fd


def give(path: Path, uid: int, gid: int) -> None:
    """An ordinary file becomes that user's. Raises OSError: it is anything else."""
    fd = open_plain(path, os.O_RDONLY)
    try:
        os.fchown(fd, uid, gid)
    finally:
        os.close(fd)


def open_log(files: Files) -> int:
    """A descriptor to append to qemu.log, after rotation if it is too long. The caller closes it. Raises VmmError."""
    try:
        with contextlib.suppress(FileNotFoundError):
            if files.log.stat().st_size > LOG_LIMIT:
                files.log.replace(files.old_log)
        return open_plain(files.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    except OSError as error:
        raise VmmError(f"{files.log}: {error.strerror}") from error


def trim_log(files: Files) -> bool:
    """Keeps qemu.log of a running QEMU within its limit. A guest can make QEMU write to it, as often as it likes.

    The end of the log goes to qemu.log.1 and the log is emptied; QEMU appends, so it goes on at the new end. What it
    writes between the two steps is lost. True if that was needed. Raises VmmError.
    """
    try:
        with os.fdopen(open_plain(files.log, os.O_RDWR), "r+b") as log:
            size = log.seek(0, os.SEEK_END)
            if size <= LOG_LIMIT:
                return False
            log.seek(size - LOG_LIMIT)
            files.old_log.unlink(missing_ok=True)
            with os.fdopen(open_plain(files.old_log, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as old:
                old.write(log.read(LOG_LIMIT))
            log.truncate(0)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise VmmError(f"{files.log}: {error.strerror}") from error
    return True


def log_tail(files: Files, offset: int = 0, limit: int = 2000) -> str:
    """The last `limit` bytes of qemu.log from `offset` on, as text; "" if there is no log."""
    try:
        with os.fdopen(open_plain(files.log, os.O_RDONLY), "rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(size - limit, min(offset, size), 0))
            return log.read(limit).decode(errors="replace").strip()
    except OSError:
        return ""
