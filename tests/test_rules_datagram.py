# SPDX-License-Identifier: Apache-2.0
"""Everything that is not TCP, row by row; model/table.py has the language."""

from __future__ import annotations

import pytest
import wire
from model.core import Core
from model.packet import Cls, parse
from model.table import (
    MILLISECOND,
    NUMBERS,
    TIMEOUT_MS,
    WINDOW_MS,
    Row,
    Send,
    Table,
    commit,
    p_raw,
    s_raw,
    stop,
    wait,
)
from model.verdict import Config
from wire import Noise, Path

from coloproxy import Comparator, Side
from coloproxy.comparator import Released
from coloproxy.events import FrameClass, Reason

CONFIG = Config(compare_timeout=TIMEOUT_MS * MILLISECOND, reorder_window=WINDOW_MS * MILLISECOND, reorder_frames=4)


def pu(body: str, path: Path = wire.PLAIN, **noise: int) -> Send:
    return p_raw(wire.udp(path, body.encode(), Noise(**noise)))


def su(body: str, path: Path = wire.PLAIN, **noise: int) -> Send:
    return s_raw(wire.udp(path, body.encode(), Noise(**noise)))


UDP: dict[str, list[Row]] = {
    "equal datagrams": [
        (pu("a"), ""),
        (su("a"), "p1"),
    ],
    "the secondary first": [
        (su("a"), ""),
        (pu("a"), "p1"),
    ],
    "IP ID, TTL and TOS don't bind": [
        (pu("a", ip_id=1, ttl=64, tos=0), ""),
        (su("a", ip_id=2, ttl=63, tos=8), "p1"),
    ],
    "ports make the flow": [
        (pu("a", Path(sport=53)), ""),
        (su("a", Path(sport=54)), ""),
        (su("a", Path(sport=53)), "p1"),
    ],
    "addresses make the flow": [
        (pu("a", Path(client=bytes([10, 0, 0, 9]))), ""),
        (su("a"), ""),
        (su("a", Path(client=bytes([10, 0, 0, 9]))), "p1"),
    ],
    "VLANs make the flow": [
        (pu("a", Path(vlans=(1,))), ""),
        (su("a"), ""),
        (su("a", Path(vlans=(1,))), "p1"),
    ],
    "IPv6, with extension headers or without": [
        (pu("a", Path.v6()), ""),
        (su("a", Path.v6(extensions=(0, 60))), "p1"),
    ],
    "Ethernet padding is no payload": [
        (pu("a", Path(pad=True)), ""),
        (su("a"), "p1"),
    ],
    "an empty datagram": [
        (pu(""), ""),
        (su(""), "p1"),
    ],
    "a longer datagram is another": [
        (pu("a"), ""),
        (su("aa"), ""),
        (su("a"), "p1"),
    ],
    "another order is no difference, and the primary's order stays": [
        (pu("a"), ""),
        (pu("b"), ""),
        (su("b"), ""),
        (su("a"), "p1 p2"),
    ],
    "a matched datagram waits for an earlier one": [
        (pu("a"), ""),
        (pu("b"), ""),
        (pu("c"), ""),
        (su("c"), ""),
        (su("b"), ""),
        (su("a"), "p1 p2 p3"),
    ],
    "each serves once": [
        (su("a"), ""),
        (pu("a"), "p1"),
        (pu("a"), ""),
        (su("a"), "p2"),
    ],
    "duplicates on both sides": [
        (pu("a"), ""),
        (pu("a"), ""),
        (su("a"), "p1"),
        (su("a"), "p2"),
    ],
    "a duplicate that the secondary never sends": [
        (pu("a"), ""),
        (pu("a"), ""),
        (su("a"), "p1"),
        (wait(TIMEOUT_MS), "!primary-timeout want:primary-timeout"),
        (commit(), "p2"),
    ],
    "a duplicate that the primary never sends": [
        (pu("a"), ""),
        (su("a"), "p1"),
        (su("a"), ""),
        (wait(TIMEOUT_MS), "!secondary-timeout want:secondary-timeout"),
        (commit(), ""),
    ],
    "overtaken within the window: no difference": [
        (pu("a"), ""),
        (pu("b"), ""),
        (su("b"), ""),
        (wait(WINDOW_MS - 1), ""),
        (su("a"), "p1 p2"),
        (wait(WINDOW_MS), ""),
    ],
    "overtaken for longer: a difference": [
        (pu("a"), ""),
        (pu("b"), ""),
        (su("b"), ""),
        (wait(WINDOW_MS), "!datagram@0 want:datagram"),
        (commit(), "p1 p2"),
    ],
    "other bytes: a difference when the window is over": [
        (pu("answer 1"), ""),
        (su("answer 2"), ""),
        (wait(WINDOW_MS), "!datagram@7 want:datagram"),
        (commit(), "p1"),
    ],
    "one divergence, however many differ": [
        (pu("a"), ""),
        (pu("b"), ""),
        (su("x"), ""),
        (su("y"), ""),
        (wait(WINDOW_MS), "!datagram@0 want:datagram"),
        (wait(TIMEOUT_MS), ""),
        (commit(), "p1 p2"),
    ],
    "the secondary says nothing: a matter of the time-out": [
        (pu("a"), ""),
        (wait(WINDOW_MS), ""),
        (wait(TIMEOUT_MS - WINDOW_MS), "!primary-timeout want:primary-timeout"),
    ],
    "a match is looked for among reorder_frames only": [
        ([su(c) for c in "abcd"], ""),
        (su("e"), ""),
        (pu("e"), ""),
        (wait(WINDOW_MS), "!datagram@0 want:datagram"),
        (commit(), "p1"),
    ],
    "in step, any number may be under way": [
        ([pu(str(n)) for n in range(20)], ""),
        ([su(str(n)) for n in range(20)], " ".join(f"p{n}" for n in range(1, 21))),
    ],
    "the new epoch begins with an empty bag": [
        (su("a"), ""),
        (stop(), ""),
        (commit(), ""),
        (pu("a"), ""),
        (su("a"), "p1"),
    ],
}


def echo(identifier: int, number: int, data: bytes = b"ping", family: int = 4) -> bytes:
    return wire.echo_reply(Path() if family == 4 else Path.v6(), identifier, number, data)


OTHERS: dict[str, list[Row]] = {
    "ICMP echo": [
        (p_raw(echo(1, 1)), ""),
        (s_raw(echo(1, 1)), "p1"),
    ],
    "an echo's identifier makes the flow": [
        (p_raw(echo(1, 1)), ""),
        (p_raw(echo(2, 1)), ""),
        (s_raw(echo(2, 1)), "p2"),
        (s_raw(echo(1, 1)), "p1"),
    ],
    "an echo's number binds": [
        (p_raw(echo(1, 1)), ""),
        (s_raw(echo(1, 2)), ""),
        (wait(WINDOW_MS), "!datagram@7 want:datagram"),
    ],
    "an echo's data bind": [
        (p_raw(echo(1, 1, b"ping")), ""),
        (s_raw(echo(1, 1, b"pong")), ""),
        (wait(WINDOW_MS), "!datagram@9 want:datagram"),
    ],
    "ICMP checksums don't bind": [
        (p_raw(wire.ip(Path(), wire.ICMP, bytes.fromhex("0000ffff00010001"))), ""),
        (s_raw(wire.ip(Path(), wire.ICMP, bytes.fromhex("0000eeee00010001"))), "p1"),
    ],
    "ICMP errors": [
        (p_raw(wire.icmp(Path(), 3, 3, bytes(4) + b"original")), ""),
        (s_raw(wire.icmp(Path(), 3, 3, bytes(4) + b"original")), "p1"),
    ],
    "an ICMP code binds": [
        (p_raw(wire.icmp(Path(), 3, 3, bytes(4))), ""),
        (s_raw(wire.icmp(Path(), 3, 1, bytes(4))), ""),
        (wait(WINDOW_MS), "!datagram@1 want:datagram"),
    ],
    "ICMPv6 echo": [
        (p_raw(echo(1, 1, family=6)), ""),
        (s_raw(echo(1, 1, family=6)), "p1"),
    ],
    "GRE": [
        (p_raw(wire.ip(Path(), wire.GRE, b"tunnel")), ""),
        (s_raw(wire.ip(Path(), wire.GRE, b"tunnel")), "p1"),
    ],
    "SCTP": [
        (p_raw(wire.ip(Path.v6(), wire.SCTP, b"chunks")), ""),
        (s_raw(wire.ip(Path.v6(), wire.SCTP, b"chunks")), "p1"),
    ],
    "a protocol that nobody knows": [
        (p_raw(wire.ip(Path(), 253, b"new")), ""),
        (s_raw(wire.ip(Path(), 253, b"new")), "p1"),
    ],
    "an ethertype that nobody knows": [
        (p_raw(wire.ethernet(0x88B5, b"experiment")), ""),
        (s_raw(wire.ethernet(0x88B5, b"experimenT")), ""),
        (s_raw(wire.ethernet(0x88B5, b"experiment")), "p1"),
    ],
    "a malformed frame is compared as a whole": [
        (p_raw(wire.udp(Path(), b"abc")[:30]), ""),
        (s_raw(wire.udp(Path(), b"abc")[:29]), ""),
        (s_raw(wire.udp(Path(), b"abc")[:30]), "p1"),
    ],
    "an empty frame": [
        (p_raw(b""), ""),
        (s_raw(b""), "p1"),
    ],
    "a UDP length beyond the packet makes it malformed": [
        (p_raw(wire.ip(Path(), wire.UDP, bytes.fromhex("0035003500640000") + b"abc")), ""),
        (s_raw(wire.ip(Path(), wire.UDP, bytes.fromhex("0035003500640000") + b"abc")), "p1"),
    ],
}

CASES = [pytest.param(rows, id=name) for group in (UDP, OTHERS) for name, rows in group.items()]


@pytest.mark.parametrize("rows", CASES)
def test_core(rows: list[Row]) -> None:
    Table(Core, NUMBERS[0], CONFIG).play(rows)


CLASSES = {
    "ARP": Cls.ARP,
    "ND": Cls.ND,
    "DHCP": Cls.DHCP,
    "IGMP": Cls.MULTICAST,
    "MLD": Cls.MULTICAST,
    "LLDP": Cls.LINK,
    "STP": Cls.LINK,
}


@pytest.mark.parametrize("name", wire.PASS_FRAMES)
def test_classes_that_carry_no_service_state_pass(name: str) -> None:
    """Released at once; the secondary's copy is swallowed, whether it comes or not; also while the VMs stand still."""
    frame = wire.PASS_FRAMES[name]()
    assert parse(frame).cls == CLASSES[name]
    rows: list[Row] = [
        (p_raw(frame), "p1"),
        (s_raw(frame), ""),
        (s_raw(frame), ""),
        (stop(), ""),
        (p_raw(frame), "p2"),
        (commit(), ""),
        (p_raw(frame), "p3"),
        (wait(TIMEOUT_MS), ""),
    ]
    run = Table(Core, NUMBERS[0], CONFIG).play(rows)
    assert not run.oracle.inside, "all frames have come back"


def test_which_classes_pass_is_configuration() -> None:
    """With nothing passed, ARP is compared like any other frame; with UDP passed, UDP is not."""

    def released(passed: set[FrameClass], frame: bytes) -> list[Reason]:
        comparator = Comparator(pass_classes=passed)
        comparator.commit(0, 0)
        comparator.feed(Side.PRIMARY, [frame], 1)
        comparator.feed(Side.SECONDARY, [frame], 2)
        return [action.reason for action in comparator.actions() if isinstance(action, Released)]

    assert released(set(), wire.arp()) == [Reason.MATCHED]
    assert released({FrameClass.ARP}, wire.arp()) == [Reason.PASSED]
    assert released({FrameClass.UDP}, wire.udp(Path(), b"a")) == [Reason.PASSED]
    assert released({FrameClass.TCP}, wire.udp(Path(), b"a")) == [Reason.MATCHED]
