# SPDX-License-Identifier: Apache-2.0
"""pair.toml of a test bed: one file for both hosts, and the key of the link beside it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from .net import LINK_PRIMARY, LINK_SECONDARY
from .qemu import Role

PAIR: Final = "bed"
VM: Final = "vm"
LINK_PORT: Final = 9810
_ROLES: Final[tuple[Role, ...]] = ("primary", "secondary")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFile:
    """What pair.toml says besides what the bed decides."""

    security: Literal["psk", "plain", "certificates"] = "psk"
    """certificates: `link` names their files."""
    checkpoint: Mapping[str, Any] = field(
        default_factory=lambda: {"back_end": "command", "command": ["/bin/true"], "min_interval": "0s"}
    )
    """Namespaces have no state that could be copied: a "checkpoint" only says that the two are equal, which holds for
    fresh ones and for whatever has not differed."""
    compare: Mapping[str, Any] = field(default_factory=dict)
    link: Mapping[str, Any] = field(default_factory=lambda: {"keepalive": "50ms", "timeout": "500ms"})
    process: Mapping[str, Any] = field(default_factory=dict)


def pair_toml(directory: Path, file: PairFile, nic: Mapping[str, Any], vm: Mapping[str, Any] | None = None) -> Path:
    """Writes it into the bed's directory.  *nic*, *vm*: keys of the VM's only network card, and of the VM besides."""
    link: dict[str, Any] = {"primary": LINK_PRIMARY, "secondary": f"{LINK_SECONDARY}:{LINK_PORT}", **file.link}
    link["security"] = file.security
    if file.security == "psk":
        key = directory / "link.psk"
        key.touch(mode=0o600)
        key.write_text(secrets.token_hex(32))
        link["psk_file"] = str(key)
    tables = {
        "link": link,
        "checkpoint": file.checkpoint,
        "compare": file.compare,
        "control": {"socket": {role: str(control_socket(directory, role)) for role in _ROLES}},
        "process": {"json_events": {role: str(journal_file(directory, role)) for role in _ROLES}, **file.process},
    }
    lines = [f'name = "{PAIR}"']
    for name, table in tables.items():
        lines += ["", f"[{name}]", *toml_keys(table)]
    lines += ["", "[[vm]]", *toml_keys({"name": VM, **(vm or {})}), "", "[[vm.nic]]", *toml_keys(nic)]
    path = directory / "pair.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def control_socket(directory: Path, role: Role) -> Path:
    """Of the coloproxy on that host."""
    return directory / f"control-{role}.sock"


def journal_file(directory: Path, role: Role) -> Path:
    """Its events, a line of JSON each."""
    return directory / f"events-{role}.jsonl"


def toml_keys(table: Mapping[str, Any]) -> list[str]:
    """A line a key; tables within it are written inline."""
    return [f"{key} = {_toml(value)}" for key, value in table.items()]


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value)  # texts, numbers, true and false are written alike
