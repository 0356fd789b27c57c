# SPDX-License-Identifier: Apache-2.0
"""Clocks. coloproxy counts time by CLOCK_MONOTONIC alone; logs of two hosts are compared by the time of day."""

from __future__ import annotations

import ctypes
import datetime
import os
import secrets
import socket
import struct
import time
from collections.abc import Iterator
from typing import Final

from .check import Finding, Subject, check, fail, ok, warn

_SLOW_SOURCES: Final = frozenset({"hpet", "acpi_pm", "pit", "jiffies", "refined-jiffies"})
_STA_UNSYNC: Final = 0x40
_TIME_ERROR: Final = 5
_STATUS_AT: Final = 40  # struct timex of 64 bit: modes, 4 longs, then status
_MAXERROR_AT: Final = 24
_EARLIEST: Final = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
_SKEW_MS: Final = 50
_ANSWER_S: Final = 1.0
_DAY_MS: Final = 86_400_000


@check("clock-source", "the kernel's clock source: one that is slow to read costs time for each batch of frames")
def source(subject: Subject) -> Iterator[Finding]:
    path = subject.root / "sys/devices/system/clocksource/clocksource0/current_clocksource"
    try:
        name = path.read_text().strip()
    except FileNotFoundError:
        return
    if name in _SLOW_SOURCES:
        yield warn(f"{name}, which is slow to read", "find out why the kernel does not trust the TSC (dmesg)")
    else:
        yield ok(name)


@check("clock", "the time of day, and whether NTP keeps it")
def synchronised(subject: Subject) -> Iterator[Finding]:
    yield from judge_clock(datetime.datetime.now(datetime.UTC), *_adjtimex())


def judge_clock(now: datetime.datetime, unsynchronised: bool, error_us: int) -> Iterator[Finding]:
    """`error_us`: the kernel's own bound."""
    if now < _EARLIEST:
        yield fail(
            f"it is {now:%Y-%m-%d} by the clock", "set the clock: certificates of the link would not be valid yet"
        )
    elif unsynchronised:
        yield warn(
            "not synchronised", "start chrony or systemd-timesyncd: the logs of both hosts are read side by side"
        )
    else:
        yield ok(f"synchronised, within {error_us / 1000:.0f} ms")


def _adjtimex() -> tuple[bool, int]:
    """(unsynchronised, largest error in us), as the kernel has it."""
    libc = ctypes.CDLL(None, use_errno=True)
    timex = ctypes.create_string_buffer(512)
    state = libc.adjtimex(timex)
    if state < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    status = struct.unpack_from("i", timex, _STATUS_AT)[0]
    return state == _TIME_ERROR or bool(status & _STA_UNSYNC), struct.unpack_from("l", timex, _MAXERROR_AT)[0]


@check("clock-skew", "this host's time of day against the other's (ICMP timestamp)")
def skew(subject: Subject) -> Iterator[Finding]:
    if subject.peer is None:
        return
    try:
        found = skew_ms(subject.peer)
    except PermissionError:
        yield warn("can't be measured without CAP_NET_RAW", "run doctor as root")
        return
    if found is None:
        yield warn(
            f"{subject.peer} does not answer ICMP timestamps (only IPv4 has them)",
            "compare `date +%s.%N` of both hosts",
        )
    elif abs(found) > _SKEW_MS:
        yield warn(
            f"{found:+d} ms", "synchronise both: their logs are read side by side. Failover does not depend on it"
        )
    else:
        yield ok(f"{found:+d} ms")


def skew_ms(peer: str) -> int | None:
    """How much the peer's clock is ahead, ms; None: no answer (RFC 792: ms since midnight UTC).

    Raises OSError, PermissionError: a raw socket needs CAP_NET_RAW.
    """
    try:
        address = socket.getaddrinfo(peer, None, socket.AF_INET)[0][4][0]
    except socket.gaierror:
        return None
    identifier = secrets.randbelow(1 << 16)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sent = _since_midnight()
        body = struct.pack("!BBHHHIII", 13, 0, 0, identifier, 1, sent, 0, 0)
        body = body[:2] + struct.pack("!H", _checksum(body)) + body[4:]
        sock.sendto(body, (str(address), 0))
        until = time.monotonic() + _ANSWER_S
        while (left := until - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                packet = sock.recv(1500)
            except TimeoutError:
                return None
            answer = packet[(packet[0] & 15) * 4 :]
            if len(answer) >= 20 and answer[0] == 14 and answer[4:6] == identifier.to_bytes(2, "big"):
                theirs: int = struct.unpack("!I", answer[12:16])[0]
                if theirs >> 31:  # not in ms since midnight UTC
                    return None
                middle = (sent + _since_midnight()) // 2
                return (theirs - middle + _DAY_MS // 2) % _DAY_MS - _DAY_MS // 2
    return None


def _since_midnight() -> int:
    return time.time_ns() // 1_000_000 % _DAY_MS


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
