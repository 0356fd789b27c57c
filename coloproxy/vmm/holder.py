# SPDX-License-Identifier: Apache-2.0
"""Which process is the QEMU of a pidfile. The number in the file proves nothing: it may be somebody else's by now.

QEMU holds a POSIX record lock on its pidfile as long as it lives (util/oslib-posix.c, qemu_write_pidfile). The
kernel says who holds a lock, and drops it at the end of the process, SIGKILL and crash included. A second QEMU with
the same pidfile ends before it touches anything else.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

from coloproxy.errors import VmmError

_FLOCK: Final = "hhqqi4x"  # struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid
_UCRED: Final = "3i"  # struct ucred: pid, uid, gid


def pidfile_holder(pidfile: Path) -> int | None:
    """The process that holds the pidfile's lock; None: nobody does, or there is no such file, so no QEMU runs.

    Raises VmmError: it is held, but the kernel does not say by whom (another PID namespace).
    """
    try:
        fd = os.open(pidfile, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise VmmError(f"{pidfile}: {error.strerror}") from error
    try:
        # A read lock suffices to meet a writer's, and F_GETLK takes none.
        asked = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, asked))
        if kind == fcntl.F_UNLCK:
            return None
        if pid <= 0:  # an "open file description" lock names no process: does the one of that number have it?
            pid = _number(pidfile)
            if pid is None or not _has_lock(pid, os.fstat(fd)):
                raise VmmError(f"{pidfile}: a process holds it, but it can't be seen which; is it in a container?")
    finally:
        os.close(fd)
    return int(pid)


def listener(path: Path) -> int | None:
    """The process that listens on a unix socket; None: nobody, or it is frozen and others wait before us.

    The kernel keeps it from the time of listen(), so it is the one that made the socket. A frozen process is found,
    too. Raises VmmError.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            return None
        except OSError as error:
            raise VmmError(f"{path}: {error.strerror or error}") from error
        pid, _, _ = struct.unpack(_UCRED, sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)


def command_line(pid: int) -> list[str]:
    """The arguments that a process was started with; [] if they can't be read."""
    with suppress(OSError):
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
        return [part.decode(errors="replace") for part in raw.split(b"\0")[:-1]]
    return []


def _number(pidfile: Path) -> int | None:
    try:
        return int(pidfile.read_text())
    except (OSError, ValueError):
        return None


def _has_lock(pid: int, file: os.stat_result) -> bool:
    """True if one of the process's descriptors of that file holds a lock (proc(5), fdinfo)."""
    with suppress(OSError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if os.path.samestat(fd.stat(), file) and "\nlock:" in Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text():
                    return True
    return False
