# SPDX-License-Identifier: Apache-2.0
"""What a pair's file names on this host: is it there, and is it safe?"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from coloproxy.errors import RulesError
from coloproxy.rules import load_rules

from .model import Pair
from .node_model import Arbiter

_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))  # root's may lack these


def file_problems(pair: Pair) -> list[str]:
    """What is wrong, each with its key. Reads the rules; of secrets only who may read them."""
    return list(_problems(pair))


def _problems(pair: Pair) -> Iterator[str]:
    link = pair.link
    for key in ("psk_file", "certificate", "key", "ca"):
        path = getattr(link, key)
        if path is not None:
            yield from _file(f"link.{key}", Path(path), secret=key in ("psk_file", "key"))
    if pair.compare.rules is not None:
        try:
            load_rules(pair.compare.rules)
        except RulesError as error:
            yield f"compare.rules: {error}"
    command = pair.checkpoint.command
    if command is not None and pair.role == "primary" and not os.access(command[0], os.X_OK):
        yield f"checkpoint.command[0]: {command[0]} is no program that can be run"
    if pair.node is not None:
        yield from _of_arbiter(pair.node.arbiter)
    for vm in pair.vms:
        ring, recording = pair.compare.ring(vm.name), pair.compare.recording(vm.name)
        if ring is not None and not ring.directory.is_dir():
            yield f"compare.record_dir: {ring.directory} is no directory"
        if recording is not None and not recording.path.parent.is_dir():
            yield f"compare.record: {recording.path.parent} is no directory"


def _of_arbiter(arbiter: Arbiter) -> Iterator[str]:
    if arbiter.etcd is not None:
        for key in ("ca", "certificate", "key"):
            path = getattr(arbiter.etcd, key)
            if path is not None:
                yield from _file(f"node.arbiter.etcd.{key}", Path(path), secret=key == "key")
    programs = {
        "fence.agent": arbiter.fence.agent if arbiter.fence is not None else None,
        "command[0]": arbiter.command[0] if arbiter.command is not None else None,
    }
    for key, program in programs.items():
        if program is not None and shutil.which(program, path=_PATH) is None:
            yield f"node.arbiter.{key}: {program} is no program that can be run"


def _file(key: str, path: Path, *, secret: bool) -> Iterator[str]:
    try:
        status = path.stat()
    except OSError as error:
        yield f"{key}: {path}: {error.strerror}"
        return
    if not stat.S_ISREG(status.st_mode):
        yield f"{key}: {path} is no file"
    elif secret and status.st_mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        yield f"{key}: {path} is a secret, but others may read or change it (mode {stat.S_IMODE(status.st_mode):o})"
