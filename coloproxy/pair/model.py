# SPDX-License-Identifier: Apache-2.0
"""What a pair's file says, for one of its two hosts. docs/configuration.md is for people.

Every key's type, default, bounds and line of help stand here and nowhere else: the checks, `coloproxy config
show-defaults` and the table in the docs are made of these models. Durations are in ns and sizes in bytes, whatever
unit the file had. `PerHost` marks keys that may differ between the hosts; config.py has chosen the host's value before
a model sees it.

A model's `problems` are the checks of one key against another, each with the key that it is about.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, PrivateAttr, StrictBool

from coloproxy._native import ffi, lib
from coloproxy.address import Address
from coloproxy.checkpoint_actions import ON_DEMAND_ONLY, Timing
from coloproxy.checkpoint_policy import PolicyOptions
from coloproxy.config import ComparatorOptions
from coloproxy.path.path import NICS_MAX, QUEUES_MAX
from coloproxy.recording import RecordOptions, RingOptions

from .node_model import Node
from .table import Example, PerHost, Problem, Table
from .units import (
    GIB,
    KIB,
    MIB,
    MS,
    SECOND,
    Account,
    Count,
    Duration,
    Endpoint,
    EndpointText,
    FilePath,
    Interface,
    Ip,
    Mac,
    Name,
    Namespace,
    Place,
    Size,
    Text,
)

Role = Literal["primary", "secondary"]
ROLES: Final[tuple[Role, Role]] = ("primary", "secondary")

HOST_NAMES: Final[dict[Role, Literal["a", "b"]]] = {"primary": "a", "secondary": "b"}
"""Of the two hosts, where roles change: by the role in which each of them begins."""

RUNTIME_DIRECTORY: Final = Path("/run/coloproxy")
STATE_DIRECTORY: Final = Path("/var/lib/coloproxy")
VM_PLACE: Final = "{vm}"
"""In a recording's path: the name of the VM."""


def _defaults() -> Any:
    config = ffi.new("struct colo_config *")
    lib.colo_config_default(config)
    return config


_CORE: Final = _defaults()


# ----------------------------------------------------------------------- link


class Link(Table):
    """The connection between the two coloproxies. The secondary listens, the primary connects."""

    primary: Annotated[str | None, Ip(), Example('"192.0.2.1"', shown=True)] = Field(
        default=None, description="The primary's own address on this connection; left out: the kernel chooses."
    )
    secondary: Annotated[Address, Place(unix=False, any_host=True), PerHost(), Example('"192.0.2.2:9810"')] = Field(
        description="Where the secondary listens (there the host may be left out) and the primary connects to."
    )
    security: Literal["psk", "certificates", "plain"] = Field(
        default="psk",
        description="How the two prove who they are (TLS 1.3). plain: not at all; for a cable between the two only.",
    )
    psk_file: Annotated[str | None, FilePath(), PerHost(), Example('"/etc/coloproxy/web.psk"', shown=True)] = Field(
        default=None, description="psk: the file with the key, the same on both hosts, readable by nobody else."
    )
    certificate: Annotated[str | None, FilePath(), PerHost(), Example('"/etc/coloproxy/host.pem"')] = Field(
        default=None, description="certificates: this host's, with its chain (PEM)."
    )
    key: Annotated[str | None, FilePath(), PerHost(), Example('"/etc/coloproxy/host.key"')] = Field(
        default=None, description="certificates: this host's private key (PEM)."
    )
    ca: Annotated[str | None, FilePath(), PerHost(), Example('"/etc/coloproxy/ca.pem"')] = Field(
        default=None, description="certificates: the authority that must have signed the peer's (PEM)."
    )
    peer_name: Annotated[
        str | None, Text(), PerHost(), Example('{ primary = "host-b.example", secondary = "host-a.example" }')
    ] = Field(default=None, description="certificates: the DNS name in the peer's. Left out: whatever the CA signed.")
    keepalive: Annotated[int, Duration(10 * MS, 60 * SECOND)] = Field(
        default=250 * MS, description="After so long without sending anything, a ping goes out."
    )
    timeout: Annotated[int, Duration(50 * MS, 600 * SECOND)] = Field(
        default=3 * SECOND, description="A peer that was silent for so long counts as gone. At least two keepalives."
    )
    send_buffer: Annotated[int, Size(MIB, 4 * GIB)] = Field(
        default=32 * MIB,
        description="Kept for the peer until it has acknowledged it: what a reconnect can go on from.",
    )
    stall_timeout: Annotated[int, Duration(MS, 600 * SECOND)] = Field(
        default=SECOND,
        description="So long a full link may hold the clients' frames up; then the mirror is given up until the next "
        "checkpoint.",
    )
    on_loss: Literal["hold", "alone"] = Field(
        default="hold",
        description="When the link is lost. hold: wait for the operator or a cluster manager, output held. alone: the "
        "primary goes on alone by itself; with a secondary that is failed over too there are two of them.",
    )
    alone_after: Annotated[int, Duration(0, 3600 * SECOND)] = Field(
        default=5 * SECOND, description="on_loss = alone: so long after the loss."
    )

    def problems(self) -> Iterator[Problem]:
        psk, certificates = ("psk_file",), ("certificate", "key", "ca")
        needed = {"psk": psk, "certificates": certificates, "plain": ()}[self.security]
        for key in needed:
            if getattr(self, key) is None:
                yield (key,), f'is missing: security = "{self.security}" needs it'
        if self.security != "psk":
            yield from self._only_with(psk, 'security = "psk"')
        if self.security != "certificates":
            yield from self._only_with((*certificates, "peer_name"), 'security = "certificates"')
        if self.on_loss != "alone":
            yield from self._only_with(("alone_after",), 'on_loss = "alone"')
        if self.timeout < 2 * self.keepalive:
            at = "timeout" if self.given("timeout") else "keepalive"
            yield (at,), "timeout must be at least two keepalives, or a single lost ping ends the connection"


# ----------------------------------------------------------------- checkpoint


class Checkpoint(Table):
    """How the secondary VM is made a copy of the primary again."""

    back_end: Literal["qmp", "command", "none"] = Field(
        default="qmp",
        description="qmp: QEMU's COLO. command: a program, for other VMMs and containers. none: nothing can; what "
        "differs stays held.",
    )
    command: Annotated[tuple[Annotated[str, Text()], ...] | None, Example('["/usr/local/sbin/checkpoint", "web"]')] = (
        Field(
            default=None, description="command: the program and its arguments; run on the primary, exit status 0: done."
        )
    )
    initial: Literal["checkpoint", "assume-equal"] = Field(
        default="checkpoint",
        description="command: how protection begins. checkpoint: output passes until a first one has been made. "
        "assume-equal: the operator says that both VMs are equal when the two coloproxies meet.",
    )
    timeout: Annotated[int, Duration(10 * MS, 3600 * SECOND)] = Field(
        default=30 * SECOND, description="command: a program that runs longer is killed, and the checkpoint has failed."
    )
    period: Annotated[int, Duration(0, (ON_DEMAND_ONLY - 1) * MS)] = Field(
        default=0, description="Also a checkpoint at least so often; 0s: only when the VMs differ."
    )
    min_interval: Annotated[int, Duration(0, 3600 * SECOND)] = Field(
        default=Timing().min_interval, description="From a commit to the next request."
    )
    policy: Literal["fixed", "adaptive"] = Field(
        default="fixed",
        description="fixed: when the VMs differ, and by period. adaptive: also when the network is quiet and many "
        "pages are dirty, so that the next one that a client waits for is short; see docs/checkpoints.md.",
    )
    quiet: Annotated[int, Duration(MS, 60 * SECOND)] = Field(
        default=PolicyOptions().quiet,
        description="adaptive: the network is quiet when neither VM has sent a frame for so long, and none is held.",
    )
    budget: Annotated[int, Count(1, 50)] = Field(
        default=PolicyOptions().budget,
        description="adaptive: percent of the time that the VMs may stand still for such checkpoints.",
    )
    qmp_deadline: Annotated[int, Duration(50 * MS, 600 * SECOND)] = Field(
        default=Timing().deadline, description="qmp: QEMU should have answered by then."
    )
    qmp_patience: Annotated[int, Count(1, 1000)] = Field(
        default=Timing().patience, description="qmp: so many missed deadlines in a row are reported. We keep trying."
    )

    def problems(self) -> Iterator[Problem]:
        if self.back_end == "command" and not self.command:
            what = "is empty" if self.given("command") else "is missing"
            yield ("command",), f'{what}: back_end = "command" needs a program'
        elif self.back_end == "command" and self.command and not self.command[0].startswith("/"):
            yield ("command", 0), f"must be the program's absolute path, not {self.command[0]!r}"
        if self.back_end != "command":
            yield from self._only_with(("command", "initial", "timeout"), 'back_end = "command"')
        if self.back_end != "qmp":
            yield from self._only_with(("qmp_deadline", "qmp_patience"), 'back_end = "qmp"')
        if self.back_end == "none":
            yield from self._only_with(("period", "min_interval", "policy"), "a back end that can make checkpoints")
        if self.policy != "adaptive":
            yield from self._only_with(("quiet", "budget"), 'policy = "adaptive"')
        if self.period % MS:
            yield ("period",), "must be whole milliseconds"

    def pacing(self) -> PolicyOptions:
        """For the checkpoint policy. With QMP the period is QEMU's own."""
        return PolicyOptions(
            mode="fixed" if self.back_end == "none" else self.policy,
            period=self.period if self.back_end == "command" else 0,
            min_interval=self.min_interval,
            quiet=self.quiet,
            budget=self.budget,
        )

    def timing(self) -> Timing:
        """For the checkpoint controller."""
        return Timing(
            checkpoint_delay_ms=self.period // MS or ON_DEMAND_ONLY,
            min_interval=self.min_interval,
            deadline=self.qmp_deadline,
            patience=self.qmp_patience,
        )


# -------------------------------------------------------------------- compare


class Compare(Table):
    """What counts as equal and how much may be held; as the options of `coloproxy compare`, for each VM."""

    compare_timeout: Annotated[int, Duration(MS, 3600 * SECOND)] = Field(
        default=int(_CORE.compare_timeout),
        description="A frame that waited so long for the other VM's asks for a checkpoint.",
    )
    gap_timeout: Annotated[int, Duration(MS, 3600 * SECOND)] = Field(
        default=int(_CORE.gap_window),
        description="TCP bytes that the secondary has left out for so long, while it has gone on beyond them, ask for "
        "one.",
    )
    rules: Annotated[str | None, FilePath(), Example('"/etc/coloproxy/web.rules.toml"')] = Field(
        default=None, description="TOML file with the operator's rules, see docs/rules.md."
    )
    max_queue_size: Annotated[int, Count(1, 1 << 28)] = Field(
        default=int(_CORE.max_flow_frames), description="Unmatched frames of one side of one flow."
    )
    max_flow_bytes: Annotated[int, Size(64 * KIB, 1 << 40)] = Field(
        default=int(_CORE.max_flow_bytes), description="Bytes of those frames."
    )
    max_flows: Annotated[int, Count(1, 1 << 24)] = Field(
        default=int(_CORE.max_flows), description="Flows; idle ones make room. At most 512 bytes each."
    )
    max_fragments: Annotated[int, Count(1, 1 << 24)] = Field(
        default=int(_CORE.max_fragments), description="Fragments of one side that wait for the rest of their datagram."
    )
    max_frames: Annotated[int, Count(2, 1 << 28)] = Field(
        default=int(_CORE.max_frames), description="Frames held, both sides together."
    )
    max_bytes: Annotated[int, Size(MIB, 1 << 40)] = Field(
        default=int(_CORE.max_bytes), description="Bytes held, both sides together."
    )
    record: Annotated[str | None, FilePath(), Example('"/var/lib/coloproxy/{vm}.pcapng"')] = Field(
        default=None,
        description="Write all frames with their verdicts to this pcapng file, see docs/recording.md. {vm}: the VM's "
        "name.",
    )
    record_size: Annotated[int | None, Size(64 * KIB, 1 << 50), Example('"1GiB"')] = Field(
        default=None, description="Go on in a new file when one has grown to that."
    )
    record_time: Annotated[int | None, Duration(10 * MS, 366 * 24 * 3600 * SECOND), Example('"1h"')] = Field(
        default=None, description="The same after so long."
    )
    record_files: Annotated[int | None, Count(1, 1_000_000), Example("10")] = Field(
        default=None, description="Keep so many of the newest files; left out: all."
    )
    record_ring: Annotated[int | None, Duration(10 * MS, 3600 * SECOND), Example('"10s"')] = Field(
        default=None, description="Keep the last frames in memory; when the VMs differ they go to a file in record_dir."
    )
    record_dir: Annotated[str | None, FilePath(), Example('"/var/lib/coloproxy/{vm}"')] = Field(
        default=None, description="For those files, divergence-TIME-N.pcapng. {vm}: the VM's name."
    )
    record_ring_bytes: Annotated[int, Size(64 * KIB, 1 << 40)] = Field(
        default=64 * MIB, description="Memory for those frames; the oldest make room."
    )

    def problems(self) -> Iterator[Problem]:
        if self.record is None:
            yield from self._only_with(("record_size", "record_time", "record_files"), "record")
        elif self.record_files is not None and self.record_size is None and self.record_time is None:
            yield ("record_files",), "needs record_size or record_time: what ends a file"
        if self.record_ring is None:
            yield from self._only_with(("record_dir", "record_ring_bytes"), "record_ring")
        elif self.record_dir is None:
            yield ("record_ring",), "needs record_dir: where its files go"

    def options(self) -> ComparatorOptions:
        """For the comparator; without the rules, which are a file of their own."""
        return ComparatorOptions(
            max_flows=self.max_flows,
            max_frames=self.max_frames,
            max_bytes=self.max_bytes,
            max_flow_frames=self.max_queue_size,
            max_flow_bytes=self.max_flow_bytes,
            max_fragments=self.max_fragments,
            compare_timeout=self.compare_timeout,
            gap_window=self.gap_timeout,
        )

    def recording(self, vm: str) -> RecordOptions | None:
        """The recording of that VM, if one is wanted."""
        if self.record is None:
            return None
        path = Path(self.record.replace(VM_PLACE, vm))
        return RecordOptions(path, max_bytes=self.record_size, max_time=self.record_time, keep=self.record_files)

    def ring(self, vm: str) -> RingOptions | None:
        """The recording ring of that VM, if one is wanted."""
        if self.record_ring is None or self.record_dir is None:
            return None
        directory = Path(self.record_dir.replace(VM_PLACE, vm))
        return RingOptions(directory, self.record_ring, max_bytes=self.record_ring_bytes)


# ------------------------------------------------------------------------- VM


class Tap(Table):
    """The client side of a NIC: a TAP device of coloproxy's own."""

    name: Annotated[str, Interface(), PerHost(), Example('"web0"')] = Field(
        description="Its name, up to 15 characters. It is made if it isn't there."
    )
    bridge: Annotated[str | None, Interface(), PerHost(), Example('"br0"', shown=True)] = Field(
        default=None, description="The bridge it is put on. Left out: somebody else sees to that."
    )
    mtu: Annotated[int, Count(68, 65521)] = Field(default=1500, description="Bytes of IP in a frame, as in the guest.")
    queues: Annotated[int, Count(1, QUEUES_MAX)] = Field(default=1, description="Queues of the device (multi-queue).")
    vnet_hdr: StrictBool = Field(
        default=False,
        description="Frames carry a virtio-net header: checksums and segmentation are left to others. The VM's side "
        "must too.",
    )


SOCKET_KINDS: Final = ("stream", "dgram", "socket")
"""Kinds of the VM's side that are sockets of QEMU's `-netdev`; the others are interfaces."""


class VmSide(Table):
    """The VM's side of a NIC: QEMU's socket back end, or an interface that another VMM or a namespace is behind."""

    kind: Literal["stream", "dgram", "socket", "tap", "packet"] = Field(
        default="stream",
        description="stream, dgram, socket: QEMU's -netdev of that name. tap: a second TAP of ours, for the VMM to "
        "use. packet: an interface that is there (veth, macvtap), by a packet socket.",
    )
    address: Annotated[
        Endpoint | None, EndpointText(), PerHost(), Example('"unix:/run/coloproxy/web-nic0.sock"', shown=True)
    ] = Field(
        default=None,
        description="Sockets: where QEMU listens, or we do (listen); dgram: where QEMU receives. unix:/PATH, "
        "tcp:HOST:PORT, or for dgram udp:HOST:PORT.",
    )
    local: Annotated[Endpoint | None, EndpointText(), PerHost(), Example('"unix:/run/coloproxy/web-us.sock"')] = Field(
        default=None, description="dgram: where we receive. unix:/PATH or udp:HOST:PORT."
    )
    listen: StrictBool = Field(
        default=False,
        description="stream, socket: we listen and QEMU connects. QEMU 7.2 does not connect again when we restart, so "
        "leave it off.",
    )
    name: Annotated[str | None, Interface(), PerHost(), Example('"veth0"')] = Field(
        default=None, description="tap, packet: the interface."
    )
    netns: Annotated[str | None, Namespace(), PerHost(), Example('"web"')] = Field(
        default=None, description="tap, packet: the network namespace it is in (ip netns), or that one's file."
    )
    vnet_hdr: StrictBool = Field(default=False, description="tap, packet: as the client side's.")

    @property
    def is_socket(self) -> bool:
        return self.kind in SOCKET_KINDS

    def problems(self) -> Iterator[Problem]:
        kind = f'kind = "{self.kind}"'
        if not self.is_socket:
            if self.name is None:
                yield ("name",), f"is missing: {kind} needs an interface"
            yield from self._only_with(("address", "local", "listen"), "sockets: stream, dgram and socket")
            return
        yield from self._only_with(("name", "netns"), "interfaces: tap and packet")
        schemes = {"stream": ("unix", "tcp"), "socket": ("tcp",), "dgram": ("unix", "udp")}[self.kind]
        for key in ("address", "local"):
            place = getattr(self, key)
            if place is not None and place.scheme not in schemes:
                yield (key,), f"must begin with {' or '.join(f'{scheme}:' for scheme in schemes)} for {kind}"
        if self.address is None:
            yield ("address",), f"is missing: {kind} needs one"
        if self.kind == "socket" and self.address is not None and ":" in self.address.host:
            yield ("address",), "must not be IPv6: QEMU's -netdev socket can't do that, use kind = \"stream\""
        if self.kind != "dgram":
            yield from self._only_with(("local",), 'kind = "dgram"')
        else:
            yield from self._only_with(("listen",), 'kind = "stream" and "socket"')
            if self.local is None:
                yield ("local",), f"is missing: {kind} needs it, where we receive"
            elif self.address is not None and self.address.scheme != self.local.scheme:
                yield ("local",), "must begin as address does"
        if self.vnet_hdr:
            yield ("vnet_hdr",), f"must be false: QEMU's -netdev {self.kind} carries no virtio-net header"


class Nic(Table):
    """A network card of the VM."""

    name: Annotated[str, Name(), Example('"nic0"')] = Field(description="For people, and for QEMU's ids.")
    mac: Annotated[str | None, Mac(), Example('"52:54:00:12:34:56"', shown=True)] = Field(
        default=None, description="The guest's Ethernet address, the same on both hosts; qemu-args needs it."
    )
    model: Annotated[str, Name()] = Field(
        default="virtio-net-pci", description="QEMU's device model; for qemu-args only."
    )
    tap: Annotated[Tap, PerHost()] = Field(description="The client side.")
    vm: Annotated[VmSide, PerHost()] = Field(description="The VM's side.")
    announce: Annotated[tuple[Annotated[str, Ip()], ...], Example('["203.0.113.7", "2001:db8::7"]')] = Field(
        default=(), description="Addresses to announce at a failover, besides those that were seen."
    )
    vlans: Annotated[tuple[Annotated[int, Count(1, 4094)], ...], Example("[10, 20]")] = Field(
        default=(), description="VLANs to announce on, besides those that were seen."
    )

    def problems(self) -> Iterator[Problem]:
        if not self.vm.is_socket and self.tap.vnet_hdr != self.vm.vnet_hdr:
            side = "vm" if self.vm.given("vnet_hdr") or not self.tap.given("vnet_hdr") else "tap"
            yield (side, "vnet_hdr"), "must be the same for tap and vm: frames go through as they are"
        elif self.vm.is_socket and self.tap.vnet_hdr:
            yield ("tap", "vnet_hdr"), f"must be false: QEMU's -netdev {self.vm.kind} carries no virtio-net header"
        for key in ("announce", "vlans"):
            seen: set[object] = set()
            for index, value in enumerate(getattr(self, key)):
                if value in seen:
                    yield (key, index), f"{value} stands here twice"
                seen.add(value)


class Filters(Table):
    """TCP ports of the other attach, in which QEMU's own filters meet the comparator.

    For qemu-args, whose hosts' addresses are the link's; and for the node with attach = "filters", where they are
    node.address.
    """

    primary_in: Annotated[int, Count(1, 65535)] = Field(
        default=9001, description="The primary VM's output, on its host."
    )
    secondary_in: Annotated[int, Count(1, 65535)] = Field(
        default=9002, description="The secondary VM's output, on the primary's host."
    )
    mirror: Annotated[int, Count(1, 65535)] = Field(
        default=9003, description="What clients send, on the secondary's host."
    )
    outdev: Annotated[int, Count(1, 65535)] = Field(
        default=9004, description="What is released, on the primary's host."
    )
    migration: Annotated[int, Count(1, 65535)] = Field(
        default=9998, description="QEMU's migration, on the secondary's host; the node has node.migration_port."
    )

    def problems(self) -> Iterator[Problem]:
        yield from _twice(((key,), f"port {getattr(self, key)}") for key in type(self).model_fields)


class Vm(Table):
    """One VM, that runs on both hosts."""

    name: Annotated[str, Name(), Example('"web"')] = Field(description="For people, files and `coloproxy ctl`.")
    qmp: Annotated[
        Address | None,
        Place(),
        PerHost(),
        Example('"unix:/run/coloproxy/web.qmp"', shown=True),
    ] = Field(
        default=None,
        description="back_end = qmp: QEMU's monitor, for coloproxy alone; QEMU listens. unix:/PATH or HOST:PORT.",
    )
    filters: Filters = Field(default_factory=Filters, description="Ports of the filter attach.")
    nics: Annotated[tuple[Nic, ...], Field(min_length=1, max_length=NICS_MAX)] = Field(
        alias="nic", description="Its network cards."
    )

    def problems(self) -> Iterator[Problem]:
        yield from _twice((("nic", index, "name"), nic.name) for index, nic in enumerate(self.nics))


# ------------------------------------------------------------ control, process


class Control(Table):
    """The socket of `coloproxy ctl`."""

    socket: Annotated[str | None, FilePath(socket=True), PerHost(), Example('"/run/coloproxy/web.sock"')] = Field(
        default=None,
        description="Its path. Left out: /run/coloproxy/NAME-ROLE.sock; with [node] NAME-a.sock, NAME-b.sock.",
    )
    mode: Annotated[int, Count(0o600, 0o777, octal=True)] = Field(
        default=0o660, description="Who may use it: its file mode."
    )
    group: Annotated[str | None, Account(), PerHost(), Example('"coloproxy"')] = Field(
        default=None, description="The group it is given to."
    )


class Process(Table):
    """The process itself."""

    user: Annotated[str | None, Account(), PerHost(), Example('"coloproxy"')] = Field(
        default=None, description="Becomes that user once its devices are open. Left out: stays who it is."
    )
    group: Annotated[str | None, Account(), PerHost(), Example('"coloproxy"')] = Field(
        default=None, description="And that group; left out: the user's own."
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], PerHost()] = Field(
        default="info", description="What is logged (standard error)."
    )
    json_events: Annotated[str | None, FilePath(or_dash=True), PerHost(), Example('"/var/log/coloproxy/web.jsonl"')] = (
        Field(default=None, description="Append each event to that file as a line of JSON; -: standard output.")
    )
    stats_interval: Annotated[int | None, Duration(50 * MS, 24 * 3600 * SECOND), PerHost(), Example('"10s"')] = Field(
        default=None, description="Log a line of statistics so often; left out: never."
    )

    metrics: Annotated[Address | None, Place(unix=False, any_host=True), PerHost(), Example('":9811"')] = Field(
        default=None,
        description="Prometheus finds its metrics there (/metrics, plain HTTP, no password); left out: nowhere. "
        "Without a host: for this host's own programs only.",
    )

    def problems(self) -> Iterator[Problem]:
        if self.user is None:
            yield from self._only_with(("group",), "user")


# ----------------------------------------------------------------------- pair


class Pair(Table):
    """A pair, as one of its hosts sees it: `role`."""

    name: Annotated[str, Name(), Example('"web"')] = Field(
        description="Of the pair; both sides of the link must have the same one."
    )
    link: Link = Field(description="Between the two coloproxies.")
    checkpoint: Checkpoint = Field(default_factory=Checkpoint, description="Checkpoints.")
    compare: Compare = Field(default_factory=Compare, description="The comparator.")
    vms: Annotated[tuple[Vm, ...], Field(min_length=1, max_length=64)] = Field(alias="vm", description="The VMs.")
    control: Control = Field(default_factory=Control, description="`coloproxy ctl`.")
    process: Process = Field(default_factory=Process, description="The process.")
    node: Node | None = Field(default=None, description="What `coloproxy node` needs beyond that.")

    _role: Role = PrivateAttr(default="primary")
    _begins: Role = PrivateAttr(default="primary")

    def model_post_init(self, context: Any, /) -> None:
        if isinstance(context, dict):
            self._role = self._begins = context["role"]

    @property
    def role(self) -> Role:
        """The host this is resolved for."""
        return self._role

    def in_role(self, role: Role, listener: Pair) -> Pair:
        """For `coloproxy node`: this host in that role. `listener`: the secondary's host, where the link listens."""
        link = self.link.model_copy(update={"primary": None, "secondary": listener.link.secondary})
        pair = self.model_copy(update={"link": link})
        pair._role = role
        return pair

    @property
    def host(self) -> Literal["a", "b"]:
        """The host's name, which stays when roles change."""
        return HOST_NAMES[self._begins]

    @property
    def peer_role(self) -> Role:
        return "secondary" if self._role == "primary" else "primary"

    @property
    def control_socket(self) -> Path:
        """Where `coloproxy ctl` finds this coloproxy."""
        if self.control.socket is not None:
            return Path(self.control.socket)
        return RUNTIME_DIRECTORY / f"{self.name}-{self._role if self.node is None else self.host}.sock"

    @property
    def state_directory(self) -> Path:
        """The node's."""
        given = self.node.state_dir if self.node is not None else None
        return STATE_DIRECTORY / self.name if given is None else Path(given)

    def problems(self) -> Iterator[Problem]:
        if len(str(self.control_socket).encode()) > 107:
            yield ("name",), f"makes the control socket's path too long ({self.control_socket}); set control.socket"
        if (self._role == "primary" or self.node is not None) and not self.link.secondary.host:
            yield ("link", "secondary"), "the host is missing: the primary needs to know where to connect to"
        yield from _twice((("vm", index, "name"), vm.name) for index, vm in enumerate(self.vms))
        if self.node is not None:
            if len(self.vms) != 1:
                yield ("vm",), f"must be one with [node], not {len(self.vms)}"
            if self.checkpoint.back_end != "qmp":
                yield ("checkpoint", "back_end"), 'must be "qmp" with [node]'
            if self.node.attach == "filters":
                yield from self._filter_problems(self.node)
        elif self.checkpoint.back_end == "qmp":
            for index, vm in enumerate(self.vms):
                if vm.qmp is None:
                    yield ("vm", index, "qmp"), 'is missing: checkpoint.back_end = "qmp" needs it'
        for key in ("record", "record_dir"):
            path = getattr(self.compare, key)
            if path is not None and len(self.vms) > 1 and VM_PLACE not in path:
                yield ("compare", key), f"needs {VM_PLACE} in it: several VMs can't write to one place"
        yield from _twice(self._interfaces(), "interface ")
        yield from _twice(self._sockets())

    def _filter_problems(self, node: Node) -> Iterator[Problem]:
        filters = 'node.attach = "filters"'
        taken = {node.nbd_port: "node.nbd_port", node.migration_port: "node.migration_port"}
        for v, vm in enumerate(self.vms):
            if len(vm.nics) != 1:
                yield ("vm", v, "nic"), f"must be one with {filters}, not {len(vm.nics)}"
            for n, nic in enumerate(vm.nics):
                if nic.tap.queues != 1:
                    yield ("vm", v, "nic", n, "tap", "queues"), f"must be 1 with {filters}: QEMU's filters have no more"
                if nic.mac is None:
                    yield ("vm", v, "nic", n, "mac"), f"is missing: {filters} needs it"
            for key in ("primary_in", "secondary_in", "mirror", "outdev"):  # QEMU's migration has the node's port
                port = getattr(vm.filters, key)
                if port in taken:
                    yield ("vm", v, "filters", key), f"port {port} is {taken[port]}, too"

    def _interfaces(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        for v, vm in enumerate(self.vms):
            for n, nic in enumerate(vm.nics):
                at = ("vm", v, "nic", n)
                yield (*at, "tap", "name"), nic.tap.name
                if nic.vm.name is not None:
                    inside = f" in {nic.vm.netns}" if nic.vm.netns else ""
                    yield (*at, "vm", "name"), nic.vm.name + inside

    def _sockets(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        at: tuple[str | int, ...] = ("control", "socket") if self.control.socket else ("name",)
        yield at, f"unix:{self.control_socket}"
        for v, vm in enumerate(self.vms):
            if vm.qmp is not None:
                yield ("vm", v, "qmp"), f"{'' if vm.qmp.is_unix else 'tcp:'}{vm.qmp}"
            for n, nic in enumerate(vm.nics):
                for key in ("address", "local"):
                    address = getattr(nic.vm, key)
                    if address is not None:
                        yield ("vm", v, "nic", n, "vm", key), str(address)


def _twice(places: Iterator[tuple[tuple[str | int, ...], str]], what: str = "") -> Iterator[Problem]:
    """A problem for each value that was there before."""
    seen: dict[str, tuple[str | int, ...]] = {}
    for at, value in places:
        if value in seen:
            yield at, f"{what}{value} is used twice"
        seen.setdefault(value, at)
