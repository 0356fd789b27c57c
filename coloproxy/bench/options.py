# SPDX-License-Identifier: Apache-2.0
"""What a run is asked to do: numbers as iperf3 writes them, checked together, and turned into the generator's terms."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from coloproxy.address import Address
from coloproxy.bench.traffic import MAX_BURST, MAX_FLOWS, MAX_LENGTH, MAX_TURN, MIN_DATAGRAM, Sink, TrafficConfig
from coloproxy.errors import MisuseError

MILLISECOND: Final = 1_000_000  # ns
DEFAULT_TIME_S: Final = 10.0  # iperf3's

_SUFFIXES: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


class Kind(StrEnum):
    """Comparators that a run can start by itself."""

    COLOPROXY = "coloproxy"
    QEMU = "qemu"
    RELAY = "relay"


class Role(StrEnum):
    """Which ends a run has: all of them, the VMs' only, the client network's only."""

    BOTH = "both"
    CLIENT = "client"
    SERVER = "server"


def parse_number(text: str, option: str, *, base: int = 1000) -> int:
    """`64K`, `1.5G`: K, M, G and T are powers of `base` (1000 for rates, 1024 for sizes, as iperf3 has it).

    Raises MisuseError.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text.strip(), re.IGNORECASE)
    if found is None:
        raise MisuseError(f"{option} {text}: no number (use digits, and K, M, G or T behind them)")
    factor: int = base ** _SUFFIXES[found[2].upper()]
    return round(float(found[1]) * factor)


@dataclass(frozen=True, slots=True)
class Sockets:
    """Where a comparator that runs already is to be found."""

    primary_in: Address | None = None
    secondary_in: Address | None = None
    outdev: Address | None = None
    notify_dev: Address | None = None

    def given(self) -> dict[str, Address]:
        """Those that there are, by name: the client's network first, so that nothing comes out that nobody reads."""
        pairs = (
            ("outdev", self.outdev),
            ("primary_in", self.primary_in),
            ("secondary_in", self.secondary_in),
            ("notify_dev", self.notify_dev),
        )
        return {name: address for name, address in pairs if address is not None}


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """All options of `coloproxy bench`. Times in seconds unless named otherwise."""

    traffic: TrafficConfig
    role: Role = Role.BOTH
    sockets: Sockets | None = None  # None: a comparator of our own
    pid: int | None = None
    comparator: Kind = Kind.COLOPROXY
    comparator_options: tuple[str, ...] = ()
    unix: bool = False
    notify: bool = False  # our own comparator: with notify_dev
    may_lose: bool = False  # frames that are lost or out of order are a result, not a fault
    window: int | None = None
    affinity: bool = True  # our own comparator and the generator run on CPUs of their own
    time: float | None = DEFAULT_TIME_S  # None: until the bytes are sent, or the peer closes
    omit: float = 0.0
    interval: float = 1.0
    connect_timeout: float = 10.0


def check_traffic(config: TrafficConfig) -> None:
    """Says what is wrong with it, by the options' names. Raises MisuseError."""
    least = MIN_DATAGRAM if config.udp else 1
    rules = (
        (1 <= config.flows <= MAX_FLOWS, f"--flows must be 1 to {MAX_FLOWS:,}"),
        (least <= config.length <= MAX_LENGTH, f"--length must be {least} to {MAX_LENGTH:,} bytes"),
        (config.recut <= MAX_LENGTH, f"--recut must be at most {MAX_LENGTH:,} bytes"),
        (1 <= config.burst <= MAX_BURST, f"--burst must be 1 to {MAX_BURST:,}"),
        (1 <= config.turn <= MAX_TURN, f"--turn must be 1 to {MAX_TURN:,} bytes"),
        (not (config.udp and config.recut), "--recut cuts streams: not with --udp"),
        (not (config.udp and config.timestamps), "--timestamps is an option of TCP: not with --udp"),
        (not (config.udp and config.loss_ppm), "--loss repeats what was lost, as TCP does: not with --udp"),
        (
            not (config.udp and config.divergence_ppm) or config.length >= MIN_DATAGRAM + 2,
            f"--divergence with --udp needs a --length of {MIN_DATAGRAM + 2}: a datagram's number stays right",
        ),
        (
            not config.request_response or config.sink is Sink.VERIFY,
            "--request-response waits for each response: it needs --sink verify",
        ),
        (not (config.request_response and config.skew), "--skew and --request-response contradict one another"),
        (
            not config.think_time or config.request_response,
            "--think-time is the time between a response and the next: it needs --request-response",
        ),
    )
    for right, message in rules:
        if not right:
            raise MisuseError(message)


def check_sockets(role: Role, sockets: Sockets | None, config: TrafficConfig) -> None:
    """Whether they are those of the role. Raises MisuseError."""
    given = sockets.given() if sockets is not None else {}
    senders = {"primary_in", "secondary_in"}
    needed = {Role.BOTH: senders | {"outdev"}, Role.CLIENT: senders, Role.SERVER: {"outdev"}}[role]
    allowed = needed | (set() if role is Role.SERVER else {"notify_dev"})

    def options(names: set[str]) -> str:
        return ", ".join(sorted(f"--{name.replace('_', '-')}" for name in names))

    if role is not Role.BOTH or given:
        if needed - set(given):
            whose = f"--{role} needs" if role is not Role.BOTH else "a comparator that runs already needs"
            raise MisuseError(f"{whose} {options(needed - set(given))} too")
        if set(given) - allowed:
            raise MisuseError(f"--{role} has no use for {options(set(given) - allowed)}")
    if config.divergence_ppm and given and "notify_dev" not in given:
        raise MisuseError("--divergence needs --notify-dev: somebody must answer the comparator's wish for checkpoints")
    if config.request_response and role is not Role.BOTH:
        raise MisuseError("--request-response waits for what is released: not with --client or --server")
