# SPDX-License-Identifier: Apache-2.0
"""The networks of the bed for `coloproxy node`: two hosts, their clients' network, their link, an arbiter.

              client                     eth0 10.99.0.1/24, fd99::1/64
                |
               lan                       bridge br0; the ownership watch listens at its ports a0 and b0
              /   \\     <- relays "a", "b"
             a     b                     bridge cbr 10.99.0.11 and .12 = uplink0 (+ the TAP that the node makes)
             |\\   /|
             | wire|    <- relay "link"  link0 10.98.0.1/30 and .2
             |     |
             arbiter                     arb0 10.97.1.2/30 and 10.97.2.2/30; the arbiter is 10.97.1.1 and 10.97.2.1

A cable is cut at its far end, never at the host's: the host loses the carrier, as if somebody had pulled the plug, and
keeps its addresses and routes; mended, all is as before.  Without a relay `wire` is a bridge.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from . import tcg
from .errors import NetworkError
from .namespace_net import RELAY_LEFT, RELAY_RIGHT, set_offloads, set_sysctls, veth
from .net import LINK_PRIMARY, LINK_SECONDARY, batch, bridge_lines, client_lines, ip

Host = Literal["a", "b"]
Cable = Literal["client", "link", "arbiter"]
Wire = Literal["a", "b", "link"]
"""Where a relay may be: in a host's cable to the clients' network, or in the link."""

HOSTS: Final[tuple[Host, ...]] = ("a", "b")
CABLES: Final[tuple[Cable, ...]] = ("client", "link", "arbiter")
CLIENT_BRIDGE: Final = "cbr"
CLIENT_ADDRESSES: Final[Mapping[Host, str]] = {"a": "10.99.0.11", "b": "10.99.0.12"}
"""Of the hosts themselves on the clients' network: a second path for the heartbeat."""
LINK_ADDRESSES: Final[Mapping[Host, str]] = {"a": LINK_PRIMARY, "b": LINK_SECONDARY}
ARBITER_ADDRESSES: Final[Mapping[Host, str]] = {"a": "10.97.1.1", "b": "10.97.2.1"}
"""Where each host finds the arbiter."""
ETCD_PORT: Final = 2379
"""Of the arbiter there."""
LAN_PORTS: Final[Mapping[Host, str]] = {"a": "a0", "b": "b0"}

_HOST_ARBITER: Final[Mapping[Host, str]] = {"a": "10.97.1.2", "b": "10.97.2.2"}
_LINK_SUBNET: Final = "10.98.0.0/30"
_QUIET: Final = {
    **{f"net/ipv6/conf/{which}/disable_ipv6": "1" for which in ("all", "default")},
    **{f"net/ipv4/conf/{which}/rp_filter": "0" for which in ("all", "default")},
}


def other(host: Host) -> Host:
    """The peer of that host."""
    return "b" if host == "a" else "a"


@dataclass(frozen=True, slots=True)
class NodeNetwork:
    """Names of the namespaces."""

    client: str
    lan: str
    wire: str
    hosts: Mapping[Host, str]
    arbiter: str | None
    relays: Mapping[Wire, str]

    @classmethod
    def named(cls, prefix: str, *, arbiter: bool, impaired: frozenset[Wire]) -> NodeNetwork:
        """All names begin with *prefix* (leftovers.new_name)."""
        return cls(
            client=f"{prefix}-client",
            lan=f"{prefix}-lan",
            wire=f"{prefix}-wire",
            hosts={host: f"{prefix}-{host}" for host in HOSTS},
            arbiter=f"{prefix}-arbiter" if arbiter else None,
            relays={wire: f"{prefix}-{'wire' if wire == 'link' else f'relay-{wire}'}" for wire in sorted(impaired)},
        )

    @property
    def namespaces(self) -> tuple[str, ...]:
        """All of them, in the order of their making."""
        relays = [name for name in self.relays.values() if name != self.wire]
        return (self.client, self.lan, self.wire, *self.hosts.values(), *filter(None, [self.arbiter]), *relays)

    def cables(self) -> tuple[Cable, ...]:
        """Those that each host has."""
        return tuple(cable for cable in CABLES if cable != "arbiter" or self.arbiter is not None)

    def set_cable(self, cable: Cable, host: Host, *, up: bool) -> None:
        """Cut that cable of that host, or mend it.  Raises NetworkError."""
        namespace, interface = self._far_end(cable, host)
        batch(namespace, [f"link set {interface} {'up' if up else 'down'}"])

    def has_interface(self, namespace: str, name: str) -> bool:
        """True if there is an interface of that name."""
        with contextlib.suppress(NetworkError):
            ip(["-n", namespace, "link", "show", "dev", name])
            return True
        return False

    def _far_end(self, cable: Cable, host: Host) -> tuple[str, str]:
        if cable == "link":
            return self.wire, _wire_end(host)
        if cable == "arbiter":
            if self.arbiter is None:
                raise NetworkError("this bed has no arbiter")
            return self.arbiter, f"host-{host}"
        return (self.relays[host], RELAY_RIGHT) if host in self.relays else (self.lan, LAN_PORTS[host])


@contextlib.contextmanager
def node_network(prefix: str, *, arbiter: bool, impaired: frozenset[Wire]) -> Iterator[NodeNetwork]:
    """Make the namespaces and the cables between them; remove them in the end.  Raises NetworkError."""
    made = NodeNetwork.named(prefix, arbiter=arbiter, impaired=impaired)
    try:
        for namespace in made.namespaces:
            ip(["netns", "add", namespace])
        for namespace in (made.lan, made.wire, *made.hosts.values()):
            set_sysctls(namespace, _QUIET)
        _make_bridges(made)
        _make_cables(made)
        batch(made.client, client_lines())
        for host, namespace in made.hosts.items():
            batch(
                namespace,
                [
                    f"addr add {CLIENT_ADDRESSES[host]}/24 dev {CLIENT_BRIDGE}",
                    f"addr add {LINK_ADDRESSES[host]}/30 dev link0",
                    tcg.quickack_route(_LINK_SUBNET, "link0"),
                ],
            )
        yield made
    finally:
        for namespace in made.namespaces:
            with contextlib.suppress(NetworkError):
                ip(["netns", "delete", namespace])


def _make_bridges(made: NodeNetwork) -> None:
    batch(made.lan, ["link set lo up", *bridge_lines()])
    for namespace in made.hosts.values():
        lines = [line.replace("br0", CLIENT_BRIDGE) for line in bridge_lines()]
        batch(namespace, ["link set lo up", *lines])
    if "link" not in made.relays:
        batch(made.wire, bridge_lines())


def _make_cables(made: NodeNetwork) -> None:
    veth((made.client, "eth0", ""), (made.lan, "client0", "master br0"))
    wire_master = "" if "link" in made.relays else "master br0"
    for host, namespace in made.hosts.items():
        uplink = (namespace, "uplink0", f"master {CLIENT_BRIDGE}")
        port = (made.lan, LAN_PORTS[host], "master br0")
        relay = made.relays.get(host)
        if relay is None:
            veth(port, uplink)
        else:
            veth(port, (relay, RELAY_LEFT, ""))
            veth(uplink, (relay, RELAY_RIGHT, ""))
            _no_offloads(port[:2], uplink[:2], (relay, RELAY_LEFT), (relay, RELAY_RIGHT))
        end = (made.wire, _wire_end(host))
        veth((*end, wire_master), (namespace, "link0", ""))
        if "link" in made.relays:
            _no_offloads(end, (namespace, "link0"))
        if made.arbiter is not None:
            veth((made.arbiter, f"host-{host}", ""), (namespace, "arb0", ""))
            batch(made.arbiter, ["link set lo up", f"addr add {ARBITER_ADDRESSES[host]}/30 dev host-{host}"])
            batch(namespace, [f"addr add {_HOST_ARBITER[host]}/30 dev arb0"])


def _wire_end(host: Host) -> str:
    return RELAY_LEFT if host == "a" else RELAY_RIGHT


def _no_offloads(*ends: tuple[str, str]) -> None:
    for namespace, interface in ends:
        set_offloads(namespace, interface, on=False)
