# SPDX-License-Identifier: Apache-2.0
"""The way between the hosts: ports, MTU, and a route that saves 33 ms of each checkpoint."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any, Final

from coloproxy.control.client import ask
from coloproxy.errors import ControlError

from .check import Finding, Port, Subject, check, fail, ok, output_of, warn

_CONNECT_S: Final = 2.0
_MTU: Final = 1500
_INSTALL_IP: Final = "install iproute2"


@check("ports-free", "ports of this host's that coloproxy and QEMU listen on")
def free(subject: Subject) -> Iterator[Finding]:
    running = _is_running(subject)
    for port in subject.ports:
        if not port.ours:
            continue
        error = _bind(port)
        if error is None:
            yield ok(f"{port} is free")
        elif error.errno == errno.EADDRINUSE and running:
            yield ok(f"{port} is in use, and coloproxy runs")
        elif error.errno == errno.EADDRINUSE:
            yield fail(f"{port} is in use", f"find who: ss -lnp 'sport = :{port.number}'")
        elif error.errno == errno.EADDRNOTAVAIL:
            yield fail(f"{port}: this host has no such address", "give it the address, or correct pair.toml")
        else:
            yield fail(f"{port}: {error.strerror}", "ports below 1024 need CAP_NET_BIND_SERVICE")


def _bind(port: Port) -> OSError | None:
    kind = socket.SOCK_STREAM if port.protocol == "tcp" else socket.SOCK_DGRAM
    try:
        family, _, _, _, address = socket.getaddrinfo(port.host or "0.0.0.0", port.number, type=kind)[0]
        with socket.socket(family, kind) as sock:
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            if kind == socket.SOCK_STREAM:
                sock.listen(1)
    except OSError as error:
        return error
    return None


def _is_running(subject: Subject) -> bool:
    if subject.control_socket is None:
        return False
    try:
        ask(subject.control_socket, "status", timeout=_CONNECT_S)
    except ControlError:
        return False
    return True


@check("ports-reachable", "ports of the other host's that we connect to")
def reachable(subject: Subject) -> Iterator[Finding]:
    """TCP only: of UDP the heartbeat itself tells."""
    for port in subject.ports:
        if port.ours or port.protocol != "tcp":
            continue
        try:
            socket.create_connection((port.host, port.number), _CONNECT_S).close()
            yield ok(f"{port} answers")
        except ConnectionRefusedError:
            yield ok(f"{port}: the host is reached, nobody listens there at the moment")
        except TimeoutError:
            yield fail(f"{port}: no answer", "is the host up, and does a firewall drop it (nft list ruleset)?")
        except OSError as error:
            yield fail(f"{port}: {error.strerror or error}", "see ip route get, and the cable")


def _route(subject: Subject) -> dict[str, Any] | None:
    """The way to the peer: `ip route get`'s."""
    if subject.peer is None:
        return None
    text = output_of([subject.ip, "-j", "route", "get", _address(subject.peer)])
    return None if text is None else dict(json.loads(text)[0])


def _address(host: str) -> str:
    return str(socket.getaddrinfo(host, None)[0][4][0])


@check("link-mtu", "MTU of the link between the hosts")
def mtu(subject: Subject) -> Iterator[Finding]:
    if subject.peer is None:
        return
    route = _route(subject)
    if route is None:
        yield warn(f"there is no {subject.ip} to ask", _INSTALL_IP)
        return
    text = output_of([subject.ip, "-j", "link", "show", "dev", route["dev"]])
    size = int(json.loads(text or "[{}]")[0]["mtu"])
    if size < _MTU:
        yield warn(
            f"{route['dev']} has MTU {size}",
            f"at least {_MTU}: each frame of the guest becomes more than one on the link otherwise; 9000 is better",
        )
    else:
        yield ok(f"{route['dev']} has MTU {size}")


@check("quickack", "the route to the other host: 33 ms of each checkpoint are a delayed ACK")
def quickack(subject: Subject) -> Iterator[Finding]:
    if subject.peer is None:
        return
    route = _route(subject)
    if route is None:
        yield warn(f"there is no {subject.ip} to ask", _INSTALL_IP)
        return
    address = _address(subject.peer)
    family = "-6" if ip_address(address).version == 6 else "-4"
    text = output_of([subject.ip, family, "-j", "route", "show", "match", address]) or "[]"
    routes = [each for each in json.loads(text) if each.get("dev") == route["dev"]]
    best: dict[str, Any] = max(routes, key=lambda each: _length(each.get("dst", "default")), default={})
    if any(metric.get("quickack") for metric in best.get("metrics", [])):
        yield ok(f"the route to {address} has quickack 1")
        return
    if route["dev"] == "lo":
        yield ok("this host's own loopback")
        return
    where = best.get("dst", address)
    yield warn(
        f"the route to {address} has no quickack: each checkpoint takes 33 ms longer",
        f"on both hosts: ip route replace {where} dev {route['dev']} quickack 1 (and where it is kept for good)",
    )


def _length(destination: str) -> int:
    if destination == "default":
        return -1
    _, _, length = destination.partition("/")
    return int(length) if length else 128
