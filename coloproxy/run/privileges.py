# SPDX-License-Identifier: Apache-2.0
"""From root to a user that can do little, for good.

A daemon that reads what hostile guests and clients send must not be root while it does. Devices and sockets are opened
first; then `drop` leaves the user and the few capabilities that are still needed, and nothing can bring more back:
no-new-privileges is set, and the bounding set is as small.

Why no library: pyprctl and python-prctl had their last releases in 2021 and 2020; what is needed are five kinds of
prctl(2) and one capset(2), all of them in libc.

Why no seccomp filter of our own: which system calls Python, OpenSSL and libc make is theirs to change with each
version, and a list that is too short kills the proxy in the middle of a failover. systemd's SystemCallFilter has lists
(@system-service) that its people keep, with an errno instead of a kill; packaging/systemd uses it.
"""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coloproxy.errors import MisuseError, NativeError

__all__ = ["CAPABILITIES", "DEFAULT_KEEP", "Identity", "drop", "identity", "no_new_privileges"]

CAPABILITIES: Final = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip
"""By their number (linux/capability.h), without CAP_."""

DEFAULT_KEEP: Final = frozenset({"NET_ADMIN"})
"""A failover puts TAPs on bridges."""

# linux/prctl.h, linux/capability.h
_PR_SET_KEEPCAPS: Final = 8
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION_3: Final = 0x20080522


@dataclass(frozen=True, slots=True)
class Identity:
    """Who to become.

    Attributes:
        uid, gid: of the user and the main group.
        name: of the user, whose other groups it gets too; None: it has none.
    """

    uid: int
    gid: int
    name: str | None = None


@dataclass(frozen=True, slots=True)
class _Caps:
    """Of a thread, as bit masks; from /proc/.../status."""

    permitted: int
    effective: int
    bounding: int
    ambient: int
    no_new_privs: bool


def identity(user: str, group: str | None = None) -> Identity:
    """Looks the names (or numbers) up. Raises MisuseError: there is no such user or group."""
    name: str | None
    try:
        entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
        uid, gid, name = entry.pw_uid, entry.pw_gid, entry.pw_name
    except KeyError:
        if not user.isdigit() or group is None:
            raise MisuseError(f"process.user: there is no user {user!r}") from None
        uid, gid, name = int(user), -1, None
    if group is not None:
        try:
            gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise MisuseError(f"process.group: there is no group {group!r}") from None
    return Identity(uid, gid, name)


def no_new_privileges() -> None:
    """No program that is executed gets more than we have. Call it before the first thread: each has a flag of its own.

    Raises NativeError.
    """
    _prctl("set no-new-privileges", _PR_SET_NO_NEW_PRIVS, 1)


def drop(to: Identity | None, keep: Collection[str] = DEFAULT_KEEP) -> None:
    """Becomes that user and keeps these capabilities only; None: stays the user, but loses the others.

    Call it before the engine's thread begins: capabilities are a thread's own. Threads that are there already lose all
    of them with the change of user; that no thread has more than `keep` afterwards is checked.

    What it can't do without the right to (as when systemd has cut the bounding set, or as no root) is left, as long as
    nothing remains that is not in `keep`. As the process isn't dumpable any more, its /proc/self/fd is root's.

    Raises:
        MisuseError: it has not the capabilities that are to be kept, or may not become that user. Nothing is changed.
        NativeError: a system call failed half-way; end the process then.
    """
    wanted = _mask(keep)
    before = _caps("thread-self")
    if wanted & ~before.permitted:
        lacking = _names(wanted & ~before.permitted)
        raise MisuseError(f"run as root, or with the capabilities {_names(wanted)}: {lacking} is missing")
    changes = to is not None and (os.getresuid() != (to.uid,) * 3 or os.getresgid() != (to.gid,) * 3)
    needed = _mask({"SETUID", "SETGID"})
    if changes and needed & ~before.permitted:
        raise MisuseError(f"process.user: run as root to become another user; {_names(needed)} is needed")
    if to is not None and to.uid == 0 and changes:
        raise MisuseError("process.user: root is no unprivileged user")
    _bound(wanted, before)
    _prctl("keep capabilities over the change of user", _PR_SET_KEEPCAPS, 1)
    if changes and to is not None:
        _become(to)
    _prctl("clear ambient capabilities", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _capset(wanted)
    _prctl("keep no capabilities from now on", _PR_SET_KEEPCAPS, 0)
    no_new_privileges()
    _check(to, wanted)


def _bound(wanted: int, before: _Caps) -> None:
    if not before.permitted & _mask({"SETPCAP"}):
        return  # what the bounding set still has can't be got by exec either, with no-new-privileges
    if not before.effective & _mask({"SETPCAP"}):
        _capset(before.permitted)
    for number in range(64):
        if before.bounding >> number & 1 and not wanted >> number & 1:
            _prctl("shrink the bounding set", _PR_CAPBSET_DROP, number)


def _become(to: Identity) -> None:
    try:
        if to.name is not None:
            os.initgroups(to.name, to.gid)
        else:
            os.setgroups([])
        os.setresgid(to.gid, to.gid, to.gid)
        os.setresuid(to.uid, to.uid, to.uid)
    except OSError as error:
        raise NativeError(f"can't become user {to.uid}, group {to.gid}: {error.strerror}") from error


def _check(to: Identity | None, wanted: int) -> None:
    """Looks at what the kernel says, of each thread."""
    if to is not None and (os.getresuid() != (to.uid,) * 3 or os.getresgid() != (to.gid,) * 3):
        raise NativeError("the change of user did not happen")
    ours = _caps("thread-self")
    if ours.permitted != wanted or ours.effective != wanted or ours.ambient or not ours.no_new_privs:
        raise NativeError("the change of capabilities did not happen")
    for task in Path("/proc/self/task").iterdir():
        more = _caps(f"self/task/{task.name}").permitted & ~wanted
        if more:
            raise NativeError(f"a thread that ran before has {_names(more)} still")


def _caps(task: str) -> _Caps:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{task}/status").read_text().splitlines() if ":" in line)
    permitted, effective, bounding, ambient = (
        int(fields[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")
    )
    return _Caps(permitted, effective, bounding, ambient, fields["NoNewPrivs"].strip() == "1")


def _mask(names: Collection[str]) -> int:
    mask = 0
    for name in names:
        try:
            mask |= 1 << CAPABILITIES.index(name.upper().removeprefix("CAP_"))
        except ValueError:
            raise MisuseError(f"there is no capability {name!r}") from None
    return mask


def _names(mask: int) -> str:
    known = [f"CAP_{name}" for number, name in enumerate(CAPABILITIES) if mask >> number & 1]
    return ", ".join(known) or f"{mask:#x}"


# ---------------------------------------------------------------- system calls

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _prctl(what: str, option: int, argument: int) -> None:
    arguments = [ctypes.c_ulong(value) for value in (argument, 0, 0, 0)]
    if _libc.prctl(ctypes.c_int(option), *arguments) < 0:
        raise NativeError(f"can't {what}: {os.strerror(ctypes.get_errno())}")


def _capset(mask: int) -> None:
    """Sets permitted and effective to `mask`, inheritable to none; of the calling thread."""
    header = _Header(_CAPABILITY_VERSION_3, 0)
    data = (_Data * 2)(*(_Data(part, part, 0) for part in (mask & 0xFFFFFFFF, mask >> 32)))
    if _libc.capset(ctypes.byref(header), data) < 0:
        raise NativeError(f"can't set capabilities: {os.strerror(ctypes.get_errno())}")
