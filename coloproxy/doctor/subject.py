# SPDX-License-Identifier: Apache-2.0
"""What of a pair's file the checks are about."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from coloproxy.pair.files import file_problems
from coloproxy.pair.model import Pair
from coloproxy.pair.node_model import Node
from coloproxy.vmm.acceleration import QEMU, ram_of

from .check import Finding, Port, Subject, check, fail, ok


def of_pair(pair: Pair, base: Subject, other: Pair | None = None) -> Subject:
    """`base` with what the file says. other: the pair as the other host sees it; only needed with [node]."""
    metrics = pair.process.metrics
    subject = dataclasses.replace(
        base,
        ports=base.ports
        if metrics is None
        else (*base.ports, Port("metrics", "tcp", metrics.host or "127.0.0.1", metrics.port, ours=True)),
        control_socket=pair.control_socket,
        needs_raw=any(nic.vm.kind == "packet" for vm in pair.vms for nic in vm.nics),
        file_problems=tuple(file_problems(pair)),
    )
    if pair.node is not None and other is not None and other.node is not None:
        return _of_node(pair, pair.node, other, other.node, subject)
    link = pair.link
    primary = pair.role == "primary"
    port = Port("link", "tcp", link.secondary.host, link.secondary.port, ours=not primary)
    return dataclasses.replace(
        subject,
        peer=base.peer or ((link.secondary.host if primary else link.primary) or None),
        ports=(*subject.ports, port),
    )


def _of_node(pair: Pair, node: Node, other: Pair, its: Node, subject: Subject) -> Subject:
    """Either host may be the secondary, which listens."""
    disks = tuple(Path(disk.image) for disk in node.disks)
    return dataclasses.replace(
        subject,
        peer=subject.peer or its.address,
        ports=(*subject.ports, *_ports(pair, node, ours=True), *_ports(other, its, ours=False)),
        images=subject.images or disks,
        raw=frozenset(Path(disk.image) for disk in node.disks if disk.format == "raw"),
        made=pair.host == "b",
        overlays=subject.overlays or pair.state_directory,
        ram_bytes=subject.ram_bytes or ram_of([*node.qemu.options, *node.qemu.extra]),
        qemu=node.qemu.binary if subject.qemu == QEMU else subject.qemu,
        qemu_user=node.qemu.user,
    )


def _ports(pair: Pair, node: Node, *, ours: bool) -> Iterator[Port]:
    link = pair.link.secondary
    yield Port("link", "tcp", link.host, link.port, ours)
    yield Port("nbd", "tcp", node.address, node.nbd_port, ours)
    yield Port("migration", "tcp", node.address, node.migration_port, ours)
    for path in node.heartbeat.paths:
        yield Port(f"heartbeat {path.name}", "udp", path.address.host, path.address.port, ours)


@check("files", "what the pair's file names: keys, rules, directories")
def files(subject: Subject) -> list[Finding]:
    if subject.file_problems is None:
        return []
    if not subject.file_problems:
        return [ok("all are there, and secrets are secret")]
    return [fail(problem, "see docs/configuration.md") for problem in subject.file_problems]
