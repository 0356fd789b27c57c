# SPDX-License-Identifier: Apache-2.0
"""pair.toml of the bed for `coloproxy node`: one file for both hosts.  All that is written is decided here."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from .guest_files import GUEST_IPV4, GUEST_IPV6, GUEST_MAC
from .net import TAP
from .node_net import (
    ARBITER_ADDRESSES,
    CLIENT_ADDRESSES,
    CLIENT_BRIDGE,
    ETCD_PORT,
    HOSTS,
    LINK_ADDRESSES,
    Host,
)
from .pair_toml import LINK_PORT, PAIR, VM, toml_keys
from .qemu import Nic

Attach = Literal["tap", "filters"]

HEARTBEAT_PORT: Final = 9820
_MODELS: Final[Mapping[Nic, str]] = {"e1000": "e1000", "virtio": "virtio-net-pci"}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFile:
    """What pair.toml says besides what the bed decides: keys of its tables, written as they are, over the bed's own."""

    node: Mapping[str, Any] = field(default_factory=dict)
    heartbeat: Mapping[str, Any] = field(default_factory=dict)
    """Besides its paths."""
    link: Mapping[str, Any] = field(default_factory=lambda: {"keepalive": "50ms", "timeout": "500ms"})
    checkpoint: Mapping[str, Any] = field(default_factory=lambda: {"back_end": "qmp"})
    compare: Mapping[str, Any] = field(default_factory=dict)
    process: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """More tables by their names."""
    vm: Mapping[str, Any] = field(default_factory=dict)
    nic: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePaths:
    """Where one host has what."""

    directory: Path
    """The host's own: its file system, as far as the bed is concerned."""

    @property
    def state(self) -> Path:
        """state_dir."""
        return self.directory / "state"

    @property
    def image(self) -> Path:
        """The VM's disk, or its copy."""
        return self.directory / "image.qcow2"

    @property
    def control(self) -> Path:
        """The control socket."""
        return self.directory / "control.sock"

    @property
    def journal(self) -> Path:
        """Events, a line of JSON each."""
        return self.directory / "events.jsonl"

    @property
    def operator(self) -> Path:
        """A QMP monitor of QEMU's that no node uses."""
        return self.directory / "operator.qmp"

    @property
    def console(self) -> Path:
        """What the guest wrote to its serial console; of the last QEMU."""
        return self.directory / "console.log"


def etcd_arbiter() -> dict[str, Any]:
    """[node.arbiter]: the bed's etcd (NodeOptions.arbiter)."""
    urls = {host: [f"http://{address}:{ETCD_PORT}"] for host, address in ARBITER_ADDRESSES.items()}
    return {"kind": "etcd", "etcd": {"endpoints": urls}}


def node_toml(
    path: Path,
    file: NodeFile,
    hosts: Mapping[Host, NodePaths],
    *,
    nic: Nic,
    options: Mapping[Host, Sequence[str]],
    attach: Attach = "tap",
) -> None:
    """Write it, and the key of the link beside it.

    *options*: of QEMU's command line, what makes the machine: qemu.guest_options() and the console.
    """
    key = path.with_name("link.psk")
    key.touch(mode=0o600)
    key.write_text(secrets.token_hex(32))
    addresses = {host: LINK_ADDRESSES[host] for host in HOSTS}
    tables: dict[str, Mapping[str, Any]] = {
        "link": {
            "secondary": {host: f"{addresses[host]}:{LINK_PORT}" for host in HOSTS},
            "security": "psk",
            "psk_file": str(key),
            **file.link,
        },
        "checkpoint": file.checkpoint,
        "compare": file.compare,
        "control": {"socket": {host: str(hosts[host].control) for host in HOSTS}},
        "process": {"json_events": {host: str(hosts[host].journal) for host in HOSTS}, **file.process},
        **file.tables,
    }
    vm: dict[str, Any] = {
        "name": VM,
        **file.vm,
    }
    card = {
        "name": "nic0",
        "mac": GUEST_MAC,
        "model": _MODELS[nic],
        "announce": [GUEST_IPV4, GUEST_IPV6],
        "vm": {"kind": "stream", "address": {host: f"unix:{hosts[host].state}/nic0.sock" for host in HOSTS}},
        "tap": {"name": TAP, "bridge": CLIENT_BRIDGE},
        **file.nic,
    }
    node: dict[str, Any] = {
        "address": addresses,
        "state_dir": {host: str(hosts[host].state) for host in HOSTS},
        "heartbeat": {
            "path": [
                {"name": name, "address": {host: f"{where[host]}:{HEARTBEAT_PORT}" for host in HOSTS}}
                for name, where in (("link", addresses), ("client", CLIENT_ADDRESSES))
            ],
            **file.heartbeat,
        },
        "attach": attach,
        "qemu": {"options": {host: list(options[host]) for host in HOSTS}},
        "disk": [{"image": {host: str(hosts[host].image) for host in HOSTS}}],
        **file.node,
    }
    tables["node"] = node
    lines = [f'name = "{PAIR}"']
    for name, table in tables.items():
        lines += ["", f"[{name}]", *toml_keys(table)]
    lines += ["", "[[vm]]", *toml_keys(vm), "", "[[vm.nic]]", *toml_keys(card)]
    path.write_text("\n".join(lines) + "\n")
