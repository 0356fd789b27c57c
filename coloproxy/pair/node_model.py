# SPDX-License-Identifier: Apache-2.0
"""The tables of a pair's file that `coloproxy node` alone reads. As model.py's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, StrictBool

from coloproxy.address import Address

from .table import Example, PerHost, Problem, Table
from .units import MS, SECOND, Account, Count, Duration, FilePath, Ip, Name, Place, Size, Text


class HeartbeatPath(Table):
    """One way for heartbeats. Two that share no cable and no switch are better than one."""

    name: Annotated[str, Name(), Example('"link"')] = Field(description="For people.")
    address: Annotated[
        Address, Place(unix=False), PerHost(), Example('{ a = "192.0.2.1:9820", b = "192.0.2.2:9820" }')
    ] = Field(description="Where each host sends from and receives (UDP).")


class Heartbeat(Table):
    """How the loss of a host is noticed."""

    interval: Annotated[int, Duration(5 * MS, 60 * SECOND)] = Field(
        default=50 * MS, description="One goes out on each path so often."
    )
    timeout: Annotated[int, Duration(20 * MS, 600 * SECOND)] = Field(
        default=400 * MS,
        description="A peer that was silent on all paths for so long is dead. At least three intervals.",
    )
    paths: Annotated[tuple[HeartbeatPath, ...], Field(min_length=1, max_length=8)] = Field(
        alias="path", description="The ways."
    )

    def problems(self) -> Iterator[Problem]:
        if self.timeout < 3 * self.interval:
            yield ("timeout",), "must be at least three intervals"


class Etcd(Table):
    """A register in etcd: who goes on has won there."""

    endpoints: Annotated[
        tuple[Annotated[str, Text()], ...], Field(min_length=1), PerHost(), Example('["https://192.0.2.9:2379"]')
    ] = Field(description="Its URLs; each is tried.")
    prefix: Annotated[str, Text()] = Field(default="coloproxy", description="Keys begin with it.")
    deadline: Annotated[int, Duration(100 * MS, 60 * SECOND)] = Field(
        default=2 * SECOND, description="No answer by then: not known who may go on; it is asked again."
    )
    ca: Annotated[str | None, FilePath(), PerHost(), Example('"/etc/coloproxy/etcd-ca.pem"')] = Field(
        default=None, description="The authority that signed etcd's certificate (PEM); left out: the system's."
    )
    certificate: Annotated[str | None, FilePath(), PerHost(), Example('"/etc/coloproxy/etcd.pem"')] = Field(
        default=None, description="Our certificate for etcd (PEM)."
    )
    key: Annotated[str | None, FilePath(), PerHost(), Example('"/etc/coloproxy/etcd.key"')] = Field(
        default=None, description="Its key (PEM)."
    )


class Fence(Table):
    """Turns the other host off before going on."""

    agent: Annotated[str, Text(), PerHost(), Example('"fence_ipmilan"')] = Field(
        description="The fence agent that turns off the *other* host: a program of fence-agents, or a path."
    )
    options: Annotated[
        tuple[Annotated[str, Text()], ...], PerHost(), Example('{ a = ["ip=192.0.2.102"], b = ["ip=192.0.2.101"] }')
    ] = Field(default=(), description="Its options, NAME=VALUE each, as its man page has them.")
    deadline: Annotated[int, Duration(100 * MS, 600 * SECOND)] = Field(
        default=60 * SECOND, description="Not off by then: not known who may go on."
    )
    secondary_delay: Annotated[int, Duration(0, 60 * SECOND)] = Field(
        default=2 * SECOND, description="The secondary waits for so long, or both would shoot at once."
    )

    def problems(self) -> Iterator[Problem]:
        for index, option in enumerate(self.options):
            if "=" not in option:
                yield ("options", index), f"must be NAME=VALUE, not {option!r}"


class Arbiter(Table):
    """Who goes on when the two hosts have lost each other. docs/arbiter.md."""

    kind: Literal["none", "etcd", "fence", "command"] = Field(
        default="none",
        description="etcd: who wins there. fence: who turned the other one off. command: a program says. none: "
        "on_partition.",
    )
    on_partition: Literal["primary", "stop"] = Field(
        default="stop",
        description="none: primary: the primary goes on, the secondary never does without the primary's word. stop: "
        "neither does.",
    )
    command: Annotated[tuple[Annotated[str, Text()], ...] | None, Example('["/usr/local/sbin/arbiter"]')] = Field(
        default=None, description="command: the program and its arguments; exit status 0: we, 1: not we."
    )
    etcd: Etcd | None = Field(default=None, description="etcd.")
    fence: Fence | None = Field(default=None, description="fence.")

    def problems(self) -> Iterator[Problem]:
        for key in ("etcd", "fence", "command"):
            if self.kind == key and not getattr(self, key):
                yield (key,), f'is missing: kind = "{key}" needs it'
            elif self.kind != key and getattr(self, key):
                yield (key,), f'is only used with kind = "{key}"'
        if self.kind != "none":
            yield from self._only_with(("on_partition",), 'kind = "none"')


class Qemu(Table):
    """How QEMU is started. docs/vmm.md has the rest of its command line."""

    binary: Annotated[str, Text()] = Field(default="qemu-system-x86_64", description="The program.")
    options: Annotated[
        tuple[Annotated[str, Text()], ...], PerHost(), Example('["-machine", "pc", "-m", "1024"]', shown=True)
    ] = Field(default=(), description="The machine, word by word: the same on both hosts, but for names of files.")
    extra: Annotated[tuple[Annotated[str, Text()], ...], PerHost(), Example('["-vnc", ":1"]')] = Field(
        default=(), description="More words, behind the disks and NICs."
    )
    acceleration: Literal["auto", "kvm", "tcg"] = Field(
        default="auto", description="auto: KVM where it can be used. Both hosts must come to the same."
    )
    user: Annotated[str | None, Account(), PerHost(), Example('"qemu"')] = Field(
        default=None,
        description="QEMU runs as that user, whom the image must belong to where it is; left out: as the node.",
    )


class Disk(Table):
    """A disk of the VM."""

    image: Annotated[str, FilePath(), PerHost(), Example('"/var/lib/vms/web.qcow2"')] = Field(
        description="Its image. On the host that joins it is made, or written over if the node made it."
    )
    format: Literal["qcow2", "raw"] = Field(default="qcow2", description="Of the image, on both hosts.")
    device: Annotated[str, Name()] = Field(default="virtio-blk-pci", description="QEMU's device model.")
    overwrite: StrictBool = Field(
        default=False, description="The host that joins may write over an image that it has not made itself."
    )


class Node(Table):
    """`coloproxy node`: starts the VM, keeps it protected, fails over, protects again. docs/node.md."""

    address: Annotated[str, Ip(), PerHost(), Example('{ a = "192.0.2.1", b = "192.0.2.2" }')] = Field(
        description="This host's, for NBD and migration, in a network of the two alone."
    )
    security: Literal["psk", "plain"] = Field(
        default="psk",
        description="Of NBD and migration. psk: TLS with a key that is made of link.psk_file's. plain: none, whoever "
        "reaches those ports writes the disks.",
    )
    attach: Literal["tap", "filters"] = Field(
        default="tap",
        description="tap: coloproxy owns the VM's TAPs and moves its frames. filters: QEMU owns the TAP, its own net "
        "filters carry the frames; one NIC. docs/node.md compares them.",
    )
    nbd_port: Annotated[int, Count(1, 65535)] = Field(default=9830, description="Disks are written to there.")
    migration_port: Annotated[int, Count(1, 65535)] = Field(default=9831, description="The VM's state goes to there.")
    state_dir: Annotated[str | None, FilePath(), PerHost(), Example('"/var/lib/coloproxy/web"')] = Field(
        default=None, description="The node's record, overlays, logs and sockets. Left out: /var/lib/coloproxy/NAME."
    )
    resync_speed: Annotated[int, Size(0, 1 << 40)] = Field(
        default=0, description="Bytes a second at most, when a disk is copied; 0B: as many as go."
    )
    retry: Annotated[int, Duration(100 * MS, 600 * SECOND)] = Field(
        default=SECOND, description="What could not be done, or decided, is tried again so often."
    )
    heartbeat: Heartbeat = Field(description="The heartbeat.")
    arbiter: Arbiter = Field(default_factory=Arbiter, description="Who goes on.")
    qemu: Qemu = Field(default_factory=Qemu, description="QEMU.")
    disks: Annotated[tuple[Disk, ...], Field(max_length=16)] = Field(
        default=(), alias="disk", description="The VM's disks."
    )


__all__ = ["Arbiter", "Disk", "Etcd", "Fence", "Heartbeat", "HeartbeatPath", "Node", "Qemu"]
