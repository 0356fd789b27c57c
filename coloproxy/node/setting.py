# SPDX-License-Identifier: Apache-2.0
"""The pair's file, as one of the two nodes needs it: what the parts are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coloproxy import vmm
from coloproxy.address import Address
from coloproxy.arbiter import (
    Arbiter,
    CommandArbiter,
    CommandOptions,
    EtcdArbiter,
    EtcdOptions,
    FenceArbiter,
    FenceOptions,
    PolicyArbiter,
)
from coloproxy.disks import Disk, Peer
from coloproxy.errors import ConfigError
from coloproxy.heartbeat import START_TIMEOUT, Settings, UdpPath
from coloproxy.pair import Pair, Role
from coloproxy.pair.config import load_both
from coloproxy.pair.node_model import Node
from coloproxy.path.tls import read_psk

from .facts import Host, other


@dataclass(frozen=True, slots=True)
class Setting:
    """pairs: the file as each host sees it, in the role in which that host begins."""

    host: Host
    pairs: dict[Host, Pair]

    @classmethod
    def load(cls, path: Path, host: Host) -> Setting:
        """Raises ConfigError: mistakes in the file, or no [node] in it."""
        both = load_both(path)
        pairs: dict[Host, Pair] = {"a": both["primary"], "b": both["secondary"]}
        if pairs[host].node is None:
            raise ConfigError([f"{path}: [node] is missing: coloproxy node needs it"])
        return cls(host, pairs)

    # ----------------------------------------------------------------- views

    @property
    def pair(self) -> Pair:
        return self.pairs[self.host]

    @property
    def node(self) -> Node:
        return self._node(self.host)

    def _node(self, host: Host) -> Node:
        node = self.pairs[host].node
        assert node is not None  # load() has looked
        return node

    @property
    def directory(self) -> Path:
        return self.pair.state_directory

    @property
    def control_socket(self) -> Path:
        return self.pair.control_socket

    def in_role(self, role: Role) -> Pair:
        """For the data path: this host in that role, with the monitor that QEMU has for it."""
        listener = self.host if role == "secondary" else other(self.host)
        pair = self.pair.in_role(role, self.pairs[listener])
        monitor = Address(True, path=str(vmm.Files.below(self.directory).proxy))
        return pair.model_copy(update={"vms": (pair.vms[0].model_copy(update={"qmp": monitor}),)})

    # ----------------------------------------------------------------- parts

    def heartbeat(self) -> tuple[Settings, list[UdpPath]]:
        """Raises MisuseError: the key's file."""
        link, beat, theirs = self.pair.link, self.node.heartbeat, self._node(other(self.host)).heartbeat
        if link.psk_file is None:
            raise ConfigError(["link.psk_file is missing: the heartbeat is authenticated with it"])
        paths = [
            UdpPath(ours.name, (ours.address.host, ours.address.port), (its.address.host, its.address.port))
            for ours, its in zip(beat.paths, theirs.paths, strict=True)
        ]
        key = read_psk(Path(link.psk_file))
        settings = Settings(
            self.pair.name,
            self.host,
            key,
            interval=beat.interval,
            timeout=beat.timeout,
            start_timeout=max(START_TIMEOUT, beat.timeout),
        )
        return settings, paths

    def arbiter(self) -> tuple[Arbiter, bool]:
        """And whether it is a register: one that keeps who has won. Raises MisuseError."""
        given = self.node.arbiter
        if given.kind == "etcd":
            assert given.etcd is not None
            etcd = given.etcd
            options = EtcdOptions(
                endpoints=tuple(etcd.endpoints),
                prefix=etcd.prefix,
                deadline_s=etcd.deadline / 1e9,
                ca=etcd.ca,
                cert=etcd.certificate,
                key=etcd.key,
            )
            return EtcdArbiter(options), True
        if given.kind == "fence":
            assert given.fence is not None
            fence = given.fence
            return FenceArbiter(
                FenceOptions(
                    fence.agent,
                    dict(option.split("=", 1) for option in fence.options),
                    deadline_s=fence.deadline / 1e9,
                    secondary_delay_s=fence.secondary_delay / 1e9,
                )
            ), False
        if given.kind == "command":
            assert given.command is not None
            return CommandArbiter(CommandOptions(tuple(given.command))), False
        return PolicyArbiter(given.on_partition), False

    def machine(self, acceleration: vmm.Acceleration, nics: Sequence[str]) -> vmm.Machine:
        """nics: of the attach, on QEMU's command line."""
        qemu = self.node.qemu
        overlays = self.overlays
        disks = [
            vmm.Disk(
                Path(disk.image),
                disk.format,
                active=overlays / f"active{index}.qcow2",
                hidden=overlays / f"hidden{index}.qcow2",
                device=disk.device,
            )
            for index, disk in enumerate(self.node.disks)
        ]
        return vmm.Machine(
            self.pair.vms[0].name,
            acceleration,
            binary=qemu.binary,
            options=qemu.options,
            disks=disks,
            nics=nics,
            extra=qemu.extra,
        )

    @property
    def overlays(self) -> Path:
        return self.directory / "overlays"

    def disks(self, sizes: Sequence[int]) -> list[Disk]:
        """sizes: virtual, bytes."""
        return [
            Disk(index, Path(disk.image), disk.format, size, self.overlays)
            for index, (disk, size) in enumerate(zip(self.node.disks, sizes, strict=True))
        ]

    def address(self, host: Host) -> str:
        """That host's, on the network of the two."""
        return self._node(host).address

    def nbd(self, host: Host, tls: str) -> Peer:
        """Where that host exports its images, when it is the secondary. tls: our QEMU's credentials, or ""."""
        node = self._node(host)
        return Peer(node.address, node.nbd_port, tls)

    def credentials(self) -> vmm.Credentials | None:
        """For what our QEMU and the other one send each other; None: plain text. Raises MisuseError: the key's file."""
        if self.node.security == "plain":
            return None
        assert self.pair.link.psk_file is not None  # the heartbeat has asked
        key = read_psk(Path(self.pair.link.psk_file))
        return vmm.Credentials(self.directory / "tls", key, self.pair.name, self.node.qemu.user)

    def migration(self, host: Host) -> str:
        """QEMU's URI of that host, when it is the secondary."""
        node = self._node(host)
        return f"tcp:{Address(False, node.address, node.migration_port)}"
