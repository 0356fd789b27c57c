# SPDX-License-Identifier: Apache-2.0
"""The networks of a pair of namespaces that stand for VMs: what net.py is for a pair of QEMUs.

              client                     eth0 10.99.0.1/24, fd99::1/64
                |       <- relay "client"
               lan                       bridge br0
              /   \\     <- relays "primary", "secondary"
          hostP    hostS                 bridge br0 = uplink0 (+ the TAP that the proxy makes)
           |  \\____/ |  <- relay "link"  link0 10.98.0.1/30 ---- link0 10.98.0.2/30
           |         |
          vmP       vmS                  eth0 10.99.0.2/24, fd99::2/64, the same MAC in both

A VM's eth0 is either one end of a veth pair, whose other end `vm0` is in its host ("packet": the proxy opens it as a
packet socket), or a TAP that the proxy makes and puts there ("tap").  Nothing joins a VM to its host's bridge: that is
the proxy's work.  A relay (impair.py) is put into a cable by cutting it: its two ends are `left`, towards the client
or the primary, and `right`, in a namespace of their own.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from .errors import NetworkError
from .guest_files import GUEST_IPV4, GUEST_IPV6, GUEST_MAC
from .net import LINK_PRIMARY, LINK_SECONDARY, batch, bridge_lines, client_lines, ip
from .process import in_namespace
from .qemu import Role

VmKind = Literal["packet", "tap"]
Place = Literal["client", "primary", "secondary", "link"]
Blackout = Literal["down", "delete"]

PLACES: Final[tuple[Place, ...]] = ("client", "primary", "secondary", "link")
VM_INTERFACE = "eth0"
"""The VM's network card, in the VM's namespace."""
HOST_INTERFACE = "vm0"
"""The host's end of it, with the kind "packet"."""
RELAY_LEFT = "left"
RELAY_RIGHT = "right"

_COMMAND_SECONDS = 10.0
_indices = itertools.count(101)
_OFFLOADS = ("tx", "sg", "tso", "gso", "gro")


@dataclass(frozen=True, slots=True)
class Stack:
    """How the TCP of one machine is set."""

    timestamps: Literal[0, 1, 2] = 1
    """0: none; 1: the kernel's usual ones, with a random offset a connection; 2: without the offset.  All namespaces of
    one kernel draw the same offset for the same connection: two machines whose clocks differ are a 1 and a 2."""
    sack: bool = True
    window_scaling: bool = True
    receive_buffer: int = 6291456
    """Bytes; decides the window's scale factor, see window_scale: 7 at the kernel's usual 6 MiB, 9 at 16 MiB."""

    @property
    def window_scale(self) -> int:
        """The scale factor that it announces.  This machine's net.core.rmem_max sets the least."""
        space = max(self.receive_buffer, int(Path("/proc/sys/net/core/rmem_max").read_text()))
        return min(max(space.bit_length() - 16, 0), 14)  # tcp_select_initial_window()

    def sysctls(self) -> dict[str, str]:
        """By their name below /proc/sys."""
        return {
            "net/ipv4/tcp_timestamps": str(self.timestamps),
            "net/ipv4/tcp_sack": str(int(self.sack)),
            "net/ipv4/tcp_window_scaling": str(int(self.window_scaling)),
            "net/ipv4/tcp_rmem": f"4096 131072 {self.receive_buffer}",
        }


_QUIET = {
    **{f"net/ipv6/conf/{which}/accept_dad": "0" for which in ("all", "default")},
    **{f"net/ipv6/conf/{which}/accept_ra": "0" for which in ("all", "default")},
    **{f"net/ipv6/conf/{which}/router_solicitations": "0" for which in ("all", "default")},
    **{f"net/ipv4/conf/{which}/rp_filter": "0" for which in ("all", "default")},
}
# A proxy learns the VM's addresses from what it says, and may bring a TAP up before we have given it its MAC.
_SILENT_AT_FIRST = {"net/ipv6/conf/default/disable_ipv6": "1"}
_UNPRIVILEGED_PORTS = {"net/ipv4/ip_unprivileged_port_start": "0"}  # servers needn't be root


@dataclass(frozen=True, slots=True)
class NamespaceNetwork:
    """Names of the namespaces."""

    client: str
    lan: str
    hosts: Mapping[Role, str]
    vms: Mapping[Role, str]
    relays: Mapping[Place, str] = field(default_factory=dict)

    @classmethod
    def named(cls, prefix: str, impaired: frozenset[Place]) -> NamespaceNetwork:
        """All names begin with *prefix* (leftovers.new_name)."""
        return cls(
            client=f"{prefix}-client",
            lan=f"{prefix}-lan",
            hosts={"primary": f"{prefix}-hostP", "secondary": f"{prefix}-hostS"},
            vms={"primary": f"{prefix}-vmP", "secondary": f"{prefix}-vmS"},
            relays={place: f"{prefix}-relay-{place}" for place in PLACES if place in impaired},
        )

    @property
    def namespaces(self) -> tuple[str, ...]:
        """All of them, in the order of their making."""
        return (self.client, self.lan, *self.hosts.values(), *self.vms.values(), *self.relays.values())

    def black_out(self, role: Role, how: Blackout) -> None:
        """Take every cable out of that host at once; it stays as it is otherwise, and hears no more.

        "down": its ends lose their carrier and can be mended; "delete": the interfaces go, on the other side too.
        Raises NetworkError.
        """
        verb = "set {} down" if how == "down" else "delete {}"
        batch(self.hosts[role], ["link " + verb.format(name) for name in ("uplink0", "link0")])

    def mend(self, role: Role) -> None:
        """Undo black_out(role, "down")."""
        batch(self.hosts[role], ["link set uplink0 up", "link set link0 up"])

    def set_link(self, role: Role, *, up: bool) -> None:
        """Cut the link between the hosts at one of them, or mend it."""
        batch(self.hosts[role], [f"link set link0 {'up' if up else 'down'}"])

    def has_interface(self, namespace: str, name: str) -> bool:
        """True if there is an interface of that name."""
        try:
            ip(["-n", namespace, "link", "show", "dev", name])
        except NetworkError:
            return False
        return True

    def configure_vm(self, role: Role, *, offloads: bool) -> None:
        """Give the VM's eth0, which must be there, its MAC and addresses, and bring it up.  Raises NetworkError."""
        vm = self.vms[role]
        batch(vm, [f"link set {VM_INTERFACE} down", f"link set {VM_INTERFACE} address {GUEST_MAC}"])
        set_sysctls(vm, {f"net/ipv6/conf/{VM_INTERFACE}/disable_ipv6": "0"})
        set_offloads(vm, VM_INTERFACE, on=offloads)
        batch(
            vm,
            [
                f"link set {VM_INTERFACE} up",
                f"addr replace {GUEST_IPV4}/24 dev {VM_INTERFACE}",
                f"addr replace {GUEST_IPV6}/64 dev {VM_INTERFACE} nodad",
            ],
        )


@contextlib.contextmanager
def namespace_network(
    prefix: str, *, kind: VmKind, client_stack: Stack, vm_stacks: Mapping[Role, Stack], impaired: frozenset[Place]
) -> Iterator[NamespaceNetwork]:
    """Make the namespaces and the cables between them; remove them in the end.  Raises NetworkError."""
    made = NamespaceNetwork.named(prefix, impaired)
    try:
        for namespace in made.namespaces:
            ip(["netns", "add", namespace])
        set_sysctls(made.client, _QUIET | client_stack.sysctls())
        for role, vm in made.vms.items():
            set_sysctls(vm, _QUIET | _SILENT_AT_FIRST | _UNPRIVILEGED_PORTS | vm_stacks[role].sysctls())
            batch(vm, ["link set lo up"])
        _make_bridges(made)
        _make_cables(made, kind)
        batch(made.client, client_lines())
        for role, address in (("primary", LINK_PRIMARY), ("secondary", LINK_SECONDARY)):
            batch(made.hosts[role], [f"addr add {address}/30 dev link0"])
        yield made
    finally:
        for namespace in made.namespaces:
            with contextlib.suppress(NetworkError):
                ip(["netns", "delete", namespace])


def _make_bridges(made: NamespaceNetwork) -> None:
    for namespace in (made.lan, *made.hosts.values()):
        batch(namespace, ["link set lo up", *bridge_lines()])


def _make_cables(made: NamespaceNetwork, kind: VmKind) -> None:
    primary, secondary = made.hosts["primary"], made.hosts["secondary"]
    _cable(made, "client", (made.client, "eth0", ""), (made.lan, "client0", "master br0"))
    _cable(made, "primary", (made.lan, "primary0", "master br0"), (primary, "uplink0", "master br0"))
    _cable(made, "secondary", (made.lan, "secondary0", "master br0"), (secondary, "uplink0", "master br0"))
    _cable(made, "link", (primary, "link0", ""), (secondary, "link0", ""))
    if kind == "packet":
        for role, host in made.hosts.items():
            # Not up before it has its MAC: a proxy learns the VM's addresses from what it says.
            veth((host, HOST_INTERFACE, ""), (made.vms[role], VM_INTERFACE, _LATER))


_End = tuple[str, str, str]  # namespace, interface, what to set besides
_LATER = "later"  # for that: somebody else brings it up


def _cable(made: NamespaceNetwork, place: Place, one: _End, other: _End) -> None:
    relay = made.relays.get(place)
    if relay is None:
        veth(one, other)
        return
    veth(one, (relay, RELAY_LEFT, ""))
    veth(other, (relay, RELAY_RIGHT, ""))
    for namespace, interface in ((one[0], one[1]), (other[0], other[1]), (relay, RELAY_LEFT), (relay, RELAY_RIGHT)):
        set_offloads(namespace, interface, on=False)  # the relay passes frames as they were on a real wire


def veth(one: _End, other: _End) -> None:
    """A cable between two namespaces; its ends are up unless they are said to be for later.  Raises NetworkError."""
    # Indices that differ: where both ends have the same, the kernel takes the pair for something else than a veth's two
    # ends, and lets up to a second pass before it believes in their carrier (linkwatch_urgent_event).
    index = next(_indices)
    peer = f"peer name {other[1]} index {next(_indices)} netns {other[0]}"
    batch(one[0], [f"link add name {one[1]} index {index} type veth {peer}"])
    for namespace, interface, more in (one, other):
        if more == _LATER:
            continue
        lines = [f"link set {interface} up"]
        if interface != "eth0":  # only the client and the VMs are to say anything of their own
            lines.insert(0, f"link set {interface} addrgenmode none {more}")
        batch(namespace, lines)


def set_offloads(namespace: str, interface: str, *, on: bool) -> None:
    """Checksums and segmentation by the "hardware": what leaves there has partial checksums and is cut late, or not.

    Raises NetworkError.
    """
    words = [word for name in _OFFLOADS for word in (name, "on" if on else "off")]
    _run(in_namespace(namespace, ["ethtool", "-K", interface, *words]))


def set_sysctls(namespace: str, values: Mapping[str, str]) -> None:
    """Write those files below /proc/sys as the namespace sees them.  Raises NetworkError."""
    script = "".join(f"echo '{value}' > /proc/sys/{name} &&\n" for name, value in values.items()) + ":"
    _run(in_namespace(namespace, ["sh", "-c", script]))


def _run(argv: list[str]) -> None:
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NetworkError(f"{' '.join(argv)}: {error}") from error
    if done.returncode != 0:
        raise NetworkError(f"{' '.join(argv)}: {done.stderr.strip()}")
