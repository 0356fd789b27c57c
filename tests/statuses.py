# SPDX-License-Identifier: Apache-2.0
"""Statuses for tests: of `coloproxy run` by the code that makes them, of a node as docs/observability.md has it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from pair_files import ANOTHER_VM, PAIR

from coloproxy.pair import Role, load
from coloproxy.run.host import Host


def run_status(directory: Path, role: Role, text: str = PAIR + ANOTHER_VM) -> dict[str, Any]:
    """What `coloproxy run` says before anything has happened."""
    file = directory / "pair.toml"
    file.write_text(text)

    async def ask() -> dict[str, Any]:
        host = Host(file, role, load(file, role))
        try:
            return host.status()
        finally:
            for vm in host.vms:
                vm.path.close()

    return asyncio.run(ask())


def vm_status(directory: Path, role: Role) -> dict[str, Any]:
    vm: dict[str, Any] = run_status(directory, role)["vms"][0]
    return vm


def node_status(host: str = "a", role: str = "primary", state: str = "protected", **more: Any) -> dict[str, Any]:
    """A node's, in the middle of everything."""
    other = "b" if host == "a" else "a"
    return {
        "pair": "web",
        "host": host,
        "role": role,
        "state": state,
        "since_s": 4711.5,
        "generation": 7,
        "reason": "COLO runs",
        "peer": {"host": other, "alive": True, "age_ms": 31.5, "state": "standby", "generation": 6, "rtt_ms": 0.412},
        "heartbeat": {
            "paths": [
                {
                    "name": name,
                    "sent": 10_001 + index,
                    "received": 9_991 + index,
                    "lost": 11 + index,
                    "refused": {"signature": 3 + index, "replay": 21 + index},
                    "rtt_ms": {"min": 0.2, "avg": 0.412, "max": 9.5},
                    "histogram": [[0.5, 9000], [1.0, 900], [10.0, 91], [None, 0]],
                }
                for index, name in enumerate(("link", "clients"))
            ]
        },
        "arbiter": {"kind": "etcd", "owner": "a", "generation": 8, "reachable": True},
        "vm": None,
        "qemu": {"pid": 31337, "state": "running", "hung": False, "halted": False, "halt_reason": None},
        "disks": [
            {"name": "disk0", "size": 268_435_456, "state": "replicated", "resync": None},
            {
                "name": "disk1",
                "size": 1_073_741_824,
                "state": "resync",
                "resync": {"offset": 536_870_912, "total": 1_073_741_823, "rate": 104_857_600, "eta_s": 5.12},
            },
        ],
        "resync": {
            "state": "done",
            "mode": "bitmap",
            "reason": "576 KiB were written since",
            "copied": 589_824,
            "seconds": 0.144,
            "pause_s": 0.055,
        },
        "history": [
            {"at": 1_925_089_445.678, "from": "protecting", "to": "protected", "event": "resumed",
             "reason": "COLO runs"},
        ],
        **more,
    }  # fmt: skip
