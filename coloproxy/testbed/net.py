# SPDX-License-Identifier: Apache-2.0
"""The networks of a test bed: four namespaces that stand for two hosts, a switch and a client.

              client namespace                 eth0 10.99.0.1/24, fd99::1/64
                    |
              switch namespace                 bridge br0
               /          \\
      uplink0 /            \\ uplink0
     primary namespace     secondary namespace
       br0 = uplink0 + tap0    br0 = uplink0 (+ tap0 only after a failover)
       link0 10.98.0.1/30 ---- link0 10.98.0.2/30      the replication link

Set up with ip(8), one batch a namespace, rather than with pyroute2: pyroute2 enters another namespace by a thread or
process of its own, which an asyncio program must then keep out of its way; a batch is one short child process, reports
the failing line, and can be read, printed and typed in by somebody who looks for a fault.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from . import tcg
from .errors import NetworkError
from .guest_files import CLIENT_IPV4, CLIENT_IPV6

TAP = "tap0"
"""The VM's network card, in each host's namespace."""

LINK_PRIMARY = "10.98.0.1"
LINK_SECONDARY = "10.98.0.2"
_LINK_SUBNET = "10.98.0.0/30"
_COMMAND_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Network:
    """Names of the four namespaces."""

    primary: str
    secondary: str
    client: str
    switch: str

    @property
    def namespaces(self) -> tuple[str, ...]:
        """All four, in the order of their making."""
        return (self.switch, self.client, self.primary, self.secondary)

    def connect_tap(self, namespace: str) -> None:
        """Put the VM's TAP on the bridge of its host: from now on it takes part in the client network."""
        batch(namespace, [f"link set {TAP} master br0"])

    def disconnect_tap(self, namespace: str) -> None:
        """Take the VM's TAP off the bridge of its host."""
        batch(namespace, [f"link set {TAP} nomaster"])

    def swapped(self) -> Network:
        """The hosts change their roles: each has the other one's address on the replication link from now on."""
        new = Network(self.secondary, self.primary, self.client, self.switch)
        for namespace, old, address in (
            (self.primary, LINK_PRIMARY, LINK_SECONDARY),
            (self.secondary, LINK_SECONDARY, LINK_PRIMARY),
        ):
            batch(namespace, [f"addr del {old}/30 dev link0", f"addr add {address}/30 dev link0"])
        batch(new.primary, [tcg.quickack_route(_LINK_SUBNET, "link0")])
        return new

    def black_out(self, namespace: str) -> None:
        """Cut every cable of a host: nothing goes in or out any more."""
        batch(namespace, ["link set uplink0 down", "link set link0 down"])

    def set_link(self, namespace: str, *, up: bool) -> None:
        """Cut the replication link at one host, or mend it."""
        lines = [f"link set link0 {'up' if up else 'down'}"]
        if up and namespace == self.primary:
            lines.append(tcg.quickack_route(_LINK_SUBNET, "link0"))
        batch(namespace, lines)


@contextlib.contextmanager
def network(name: str, *, vnet_hdr: bool, taps: bool = True) -> Iterator[Network]:
    """Make the namespaces, and remove them in the end.

    *name* is the prefix of their names (leftovers.new_name).  With *vnet_hdr* the TAPs carry virtio-net headers; else
    the kernel computes checksums and cuts large segments before a frame gets to the TAP.  Without *taps* there are
    none: `coloproxy run` makes its own.
    Raises NetworkError.
    """
    made = Network(f"{name}-primary", f"{name}-secondary", f"{name}-client", f"{name}-switch")
    try:
        for namespace in made.namespaces:
            ip(["netns", "add", namespace])
        batch(made.switch, _switch(made))
        batch(made.client, client_lines())
        for namespace, address in ((made.primary, LINK_PRIMARY), (made.secondary, LINK_SECONDARY)):
            batch(namespace, [*_host(address), *(_tap(vnet_hdr) if taps else [])])
        if taps:
            made.connect_tap(made.primary)
        batch(made.primary, [tcg.quickack_route(_LINK_SUBNET, "link0")])
        yield made
    finally:
        for namespace in made.namespaces:
            with contextlib.suppress(NetworkError):
                ip(["netns", "delete", namespace])


def _switch(made: Network) -> list[str]:
    lines = ["link set lo up", *bridge_lines()]
    for port, (peer, namespace) in {
        "client0": ("eth0", made.client),
        "primary0": ("uplink0", made.primary),
        "secondary0": ("uplink0", made.secondary),
    }.items():
        lines += [
            f"link add {port} type veth peer name {peer} netns {namespace}",
            f"link set {port} addrgenmode none master br0 up",
        ]
    # Both ends of the replication link begin in hosts; it is made here because each end has the same name.
    lines.append(f"link add link1 type veth peer name link0 netns {made.primary}")
    lines.append(f"link set link1 name link0 netns {made.secondary}")
    return lines


def client_lines() -> list[str]:
    """The client's side of its eth0, for batch()."""
    return [
        "link set lo up",
        "link set eth0 up",
        f"addr add {CLIENT_IPV4}/24 dev eth0",
        f"addr add {CLIENT_IPV6}/64 dev eth0 nodad",
    ]


def _host(address: str) -> list[str]:
    return [
        "link set lo up",
        *bridge_lines(),
        "link set uplink0 addrgenmode none master br0 up",
        "link set link0 addrgenmode none up",
        f"addr add {address}/30 dev link0",
    ]


def _tap(vnet_hdr: bool) -> list[str]:
    return [
        f"tuntap add dev {TAP} mode tap{' vnet_hdr' if vnet_hdr else ''}",
        f"link set {TAP} addrgenmode none up",
    ]


def bridge_lines() -> list[str]:
    """A bridge br0 of a host or a switch, for batch()."""
    # A host has no address on the client network, not even a link-local one: whatever the guest receives then
    # comes from the client.  Without snooping, the bridge sends no queries of its own either.
    return [
        "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
        "link set br0 addrgenmode none",  # by itself: in one line with `up` it comes too late
        "link set br0 up",
    ]


def batch(namespace: str, lines: Sequence[str]) -> None:
    """Run lines of ip(8) inside a namespace, in one child process.  Raises NetworkError, with the line that failed."""
    ip(["-n", namespace, "-batch", "-"], "".join(f"{line}\n" for line in lines))


def ip(arguments: Sequence[str], stdin: str = "") -> None:
    """Run ip(8).  Raises NetworkError."""
    argv = ["ip", *arguments]
    try:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, timeout=_COMMAND_SECONDS, start_new_session=True
        )
    except FileNotFoundError as error:
        raise NetworkError("no ip(8) here; install the package iproute2") from error
    except subprocess.TimeoutExpired as error:
        raise NetworkError(f"{' '.join(argv)}: not done after {_COMMAND_SECONDS:g} s") from error
    if done.returncode != 0:
        raise NetworkError(f"{' '.join(argv)}: {done.stderr.strip()}")
