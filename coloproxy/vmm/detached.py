# SPDX-License-Identifier: Apache-2.0
"""Starts a program that survives us: a session of its own, none of our descriptors, output to a file."""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from coloproxy.errors import VmmError


@dataclass(frozen=True, slots=True)
class Account:
    """A user to run as, with its groups (kvm, say). `Account.named("qemu")`."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]

    @classmethod
    def named(cls, name: str) -> Account:
        """Raises VmmError: there is no such user."""
        try:
            entry = pwd.getpwnam(name)
        except KeyError as error:
            raise VmmError(f"there is no user {name!r}") from error
        groups = {entry.pw_gid, *(group.gr_gid for group in grp.getgrall() if name in group.gr_mem)}
        return cls(name, entry.pw_uid, entry.pw_gid, tuple(sorted(groups)))


def start_detached(
    argv: Sequence[str],
    output: int,
    *,
    environment: Mapping[str, str],
    directory: Path,
    account: Account | None = None,
    oom_score_adj: int | None = None,
) -> int:
    """Starts `argv` with *environment* added to ours; its process id. It stays our child, to be reaped by its pidfd.

    output: a descriptor for stdout and stderr; remains the caller's.
    oom_score_adj: -1000 (never killed for want of memory) to 1000; None: as ours. Below ours it takes a privilege.

    Raises VmmError: it can't be started, or not so.
    """
    try:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd=directory,
            env={**os.environ, **environment},
            umask=0o077,
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else account.groups,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise VmmError(f"can't start {argv[0]}: {error}\n{shlex.join(argv)}") from error
    # Popen must neither reap it, which pidfd's owner does, nor complain that we left it.
    child.returncode = 0
    if oom_score_adj is not None:
        try:
            Path(f"/proc/{child.pid}/oom_score_adj").write_text(str(oom_score_adj))
        except ProcessLookupError:
            pass  # it has ended already, which its pidfd tells
        except OSError as error:
            os.kill(child.pid, signal.SIGKILL)  # a zombie at the most: nobody has reaped it
            os.waitpid(child.pid, 0)
            raise VmmError(f"oom_score_adj = {oom_score_adj}: {error.strerror}") from error
    return child.pid
