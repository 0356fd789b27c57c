# SPDX-License-Identifier: Apache-2.0
"""QEMU options that an operator can't give, for they are the node's, or would break what it promises. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from coloproxy.errors import MisuseError

OUR_NODES: Final = re.compile(r"(colo-disk|pd|pf|parent|sf|hidden|hf|active|af|childs|replication|nbd|rs)\d+")
"""Names of block nodes that are the node's. See docs/vmm.md."""

_REFUSED: Final[Mapping[str, str]] = {
    "S": "when the VM begins to run is the node's to say",
    "accel": 'set acceleration = "kvm" or "tcg" instead: TCG needs more than the option',
    "daemonize": "QEMU is started as a process of its own anyway, and its process id must stay the same",
    "enable-kvm": 'set acceleration = "kvm" instead',
    "incoming": "the node says when a VM takes in a copy",
    "loadvm": "a saved state does not belong to what is on the disks",
    "name": "the node knows its QEMU by its name",
    "no-shutdown": "a checkpoint would turn a VM that was shut down back into a running one",
    "pidfile": "the node knows its QEMU by the file",
    "preconfig": "the node expects a VM that is complete",
    "qmp": "for a monitor of your own give -chardev socket,id=mine,... -mon chardev=mine,mode=control",
    "qmp-pretty": "for a monitor of your own give -chardev socket,id=mine,... -mon chardev=mine,mode=control",
    "runas": "set the user to run as instead: QEMU must be able to remove its own files",
    "snapshot": "the VM's writes would go to a temporary file and never to the other host",
}
_NODE_NAME: Final = re.compile(r"(?:^|[,.])node-name=([^,]*)")
_DRIVE_ID: Final = re.compile(r"(?:^|,)id=([^,]*)")
# Their value is free text, and may begin with a dash.
_FREE_TEXT: Final = {"append"}


def check_options(options: Sequence[str]) -> None:
    """Looks through options that an operator has given. Raises MisuseError, with what to do instead."""
    for option, value in _pairs(options):
        shown = f"-{option} {value}".rstrip() if option != "append" else f"-{option}"
        if option in _REFUSED:
            raise MisuseError(f"QEMU option {shown}: {_REFUSED[option]}")
        if option in ("M", "machine") and re.search(r"(?:^|,)accel=", value):
            raise MisuseError(f"QEMU option {shown}: accel: {_REFUSED['accel']}")
        if option == "action" and re.search(r"(?:^|,)shutdown=pause", value):
            raise MisuseError(f"QEMU option {shown}: {_REFUSED['no-shutdown']}")
        names = _node_names(value) if option in ("blockdev", "drive") else ()
        for name in names:
            if OUR_NODES.fullmatch(name):
                raise MisuseError(f"QEMU option {shown}: the name {name} is the node's; take another")


def _pairs(options: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(option without its dashes, the word after it). Most options have a value; for those without, it is ignored."""
    skip = False
    for index, word in enumerate(options):
        if skip or len(word) < 2 or not word.startswith("-"):
            skip = False
            continue
        name = word[2:] if word.startswith("--") else word[1:]
        skip = name in _FREE_TEXT
        yield name, options[index + 1] if index + 1 < len(options) else ""


def _node_names(value: str) -> Iterator[str]:
    if value.lstrip().startswith("{"):
        try:
            yield from _json_names(json.loads(value))
        except ValueError:
            return  # QEMU refuses it in its own words
    else:
        yield from _NODE_NAME.findall(value)
        yield from _DRIVE_ID.findall(value)


def _json_names(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        name = value.get("node-name")
        if isinstance(name, str):
            yield name
        for inner in value.values():
            yield from _json_names(inner)
