# SPDX-License-Identifier: Apache-2.0
"""TCP's states, ends and oddities, row by row: opens, resets, probes, overlaps, ports used again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import wire
from model.core import Core
from model.table import (
    NUMBERS,
    OPEN,
    SYN_OPTIONS,
    TIMEOUT_MS,
    WINDOW_MS,
    Numbers,
    Row,
    Table,
    commit,
    p,
    p_syn,
    s,
    s_syn,
    wait,
)
from model.verdict import Config
from wire import Noise, Options

CONFIG = Config(compare_timeout=TIMEOUT_MS * 10**6, reorder_window=WINDOW_MS * 10**6)
NEW = 100_000_000
TIMES = replace(SYN_OPTIONS, timestamps=True)
COOKIE = replace(SYN_OPTIONS, extra=b"\x22\x0a" + bytes(range(8)))
OTHER_COOKIE = replace(SYN_OPTIONS, extra=b"\x22\x0a" + bytes(range(8, 16)))
AO = Options(extra=b"\x1d\x10" + bytes(14))
ECE, CWR = 0x40, 0x80

# RFC 9293, 3.5: the VM is the client, or both ends call at once (its SYN-ACK then has the SYN's own number).
OPENS: dict[str, list[Row]] = {
    "active open": [
        (p_syn(ack=None), ""),
        (s_syn(ack=None), "p1"),
        (p(0, ack=0), ""),
        (s(0, ack=0), "p2"),
    ],
    "active open, the secondary first": [
        (s_syn(ack=None), ""),
        (p_syn(ack=None), "p1"),
        (s(0, "GET", ack=0), ""),
        (p(0, "GET", ack=0), "p2"),
    ],
    "simultaneous open": [
        (p_syn(ack=None), ""),
        (s_syn(ack=None), "p1"),
        (p_syn(ack=0), ""),
        (s_syn(ack=0), "p2"),
        (p(0, "abc"), ""),
        (s(0, "abc"), "p3"),
    ],
    "simultaneous open, the secondary first": [
        (s_syn(ack=None), ""),
        (s_syn(ack=0), ""),
        (p_syn(ack=None), "p1"),
        (p_syn(ack=0), "p2"),
    ],
}

# RFC 7413: data on a SYN is the stream's beginning; cookies are of a client and a server's secret, and are ignored.
FAST_OPEN: dict[str, list[Row]] = {
    "data on a SYN": [
        (p_syn(ack=None, data=b"GET"), ""),
        (s_syn(ack=None, data=b"GET"), "p1"),
        (p(3, "x"), ""),
        (s(3, "x"), "p2"),
    ],
    "data on a SYN-ACK": [
        (p_syn(data=b"abc"), ""),
        (s_syn(data=b"abc"), "p1"),
    ],
    "... against data behind it": [
        (p_syn(data=b"abc"), ""),
        (s_syn(), ""),
        (s(0, "abc"), "p1"),
    ],
    "... that differ": [
        (p_syn(data=b"abc"), ""),
        (s_syn(data=b"aBc"), "!payload@1 want:payload"),
        (commit(), "p1"),
    ],
    "a SYN repeated without its data, as RFC 7413 has it where the first was lost": [
        (p_syn(ack=None, data=b"GET"), ""),
        (p_syn(ack=None), ""),
        (s_syn(ack=None, data=b"GET"), "p1 p2"),
    ],
    "cookies don't bind": [
        (p_syn(COOKIE), ""),
        (s_syn(OTHER_COOKIE), "p1"),
    ],
}

# RFC 9293, 3.6: each direction ends by itself.
HALF_CLOSE: dict[str, list[Row]] = {
    "the VM has ended, and acknowledges what comes": [
        *OPEN,
        (p(0, "abc", fin=True), ""),
        (s(0, "abc", fin=True), "p2"),
        (p(4, ack=100), ""),
        (s(4, ack=100), "p3"),
    ],
    "the client has ended: its FIN is a position of the ACK number, and the VM goes on": [
        *OPEN,
        (p(0, ack=1), ""),
        (s(0, ack=1), "p2"),
        (p(0, "abc", ack=1), ""),
        (s(0, "abc", ack=1), "p3"),
        (p(3, fin=True, ack=1), ""),
        (s(3, fin=True, ack=1), "p4"),
    ],
    "the FIN of the client is told only when both have it": [
        *OPEN,
        (p(0, "abc", ack=1), ""),
        (s(0, "abc", ack=0), "p2^0"),
        (s(3, ack=1), "ack1"),
    ],
}

# RFC 9293, 3.5.2 and 3.10.7: an RST with ACK where no connection is, without one where there is.
RESETS: dict[str, list[Row]] = {
    "SYN sent: the VM gives up its call": [
        (p_syn(ack=None), ""),
        (s_syn(ack=None), "p1"),
        (p(0, rst=True, ack=None), ""),
        (s(0, rst=True, ack=None), "p2"),
    ],
    "SYN received": [
        *OPEN,
        (p(0, rst=True), ""),
        (s(0, rst=True), "p2"),
    ],
    "SYN received, the SYN-ACK still held": [
        (p_syn(), ""),
        (p(0, rst=True), ""),
        (s_syn(), "p1"),
        (s(0, rst=True), "p2"),
    ],
    "established, with data held before it": [
        *OPEN,
        (p(0, "abc"), ""),
        (p(3, rst=True), ""),
        (s(0, "abc"), "p2"),
        (s(3, rst=True), "p3"),
    ],
    "after FIN": [
        *OPEN,
        (p(0, fin=True), ""),
        (s(0, fin=True), "p2"),
        (p(1, rst=True), ""),
        (s(1, rst=True), "p3"),
    ],
    "TIME-WAIT: the answer to a segment that came late": [
        *OPEN,
        (p(0, fin=True, ack=1), ""),
        (s(0, fin=True, ack=1), "p2"),
        (p(1, rst=True, ack=None), ""),
        (s(1, rst=True, ack=None), "p3"),
    ],
    "the answer to a half-open probe: a reset, with other numbers on each side": [
        (p(500, rst=True, ack=None), ""),
        (s(900, rst=True, ack=None), "p1"),
    ],
    "with ACK against without": [
        *OPEN,
        (p(0, rst=True), ""),
        (s(0, rst=True, ack=None), "p2"),
    ],
    "the same once more": [
        *OPEN,
        (p(0, rst=True, ack=5), ""),
        (s(0, rst=True, ack=5), "p2"),
        (s(0, rst=True, ack=5), ""),
        (p(0, rst=True, ack=5), "p3"),
    ],
    "a second one with another ACK number needs a second of the secondary's": [
        *OPEN,
        (p(0, rst=True, ack=5), ""),
        (s(0, rst=True, ack=5), "p2"),
        (p(0, rst=True, ack=6), ""),
        (s(0, rst=True, ack=7), "p3"),
    ],
    "its ACK number tells nothing: what waits above the secondary's goes on waiting": [
        *OPEN,
        (p(0, ack=9), ""),
        (s(0, rst=True, ack=9), "!rst@0 want:rst"),
        (commit(), "p2"),
    ],
}

# RFC 9293, 3.8.4 and 3.8.6.1; RFC 1122, 4.2.3.6.
PROBES: dict[str, list[Row]] = {
    "keep-alive without a byte": [
        *OPEN,
        (p(0, "abc"), ""),
        (s(0, "abc"), "p2"),
        (p(2), "p3"),
        (s(2), ""),
    ],
    "keep-alive with the last byte": [
        *OPEN,
        (p(0, "abc"), ""),
        (s(0, "abc"), "p2"),
        (p(2, "c"), "p3"),
        (s(2, "c"), ""),
    ],
    "zero-window probe with the next byte": [
        *OPEN,
        (p(0, "a"), ""),
        (s(0, "a"), "p2"),
        (p(1, "b"), ""),
        (s(1, "bc"), "p3"),
        (p(1, "bc"), "p4"),
    ],
    "zero-window probe without one": [
        *OPEN,
        (p(0, "a"), ""),
        (s(0, "a"), "p2"),
        (p(0, ack=0), "p3"),
    ],
}

# RFC 9293, 3.4 and 3.10: a segment may repeat what was sent, and must not say otherwise.
OVERLAPS: dict[str, list[Row]] = {
    "a primary's overlap that agrees": [
        *OPEN,
        (p(0, "abcd"), ""),
        (p(2, "cdef"), ""),
        (s(0, "abcdef"), "p2 p3"),
    ],
    "... and one that doesn't: at once, with no word of the secondary's": [
        *OPEN,
        (p(0, "abcd"), ""),
        (p(2, "cXef"), "!conflict@3 want:conflict"),
        (commit(), "p2 p3"),
    ],
    "... over several frames": [
        *OPEN,
        (p(0, "ab"), ""),
        (p(2, "cd"), ""),
        (p(4, "ef"), ""),
        (p(1, "bcdeX"), "!conflict@5 want:conflict"),
    ],
    "... beyond a gap": [
        *OPEN,
        (p(6, "ghi"), ""),
        (p(3, "deXX"), "!conflict@6 want:conflict"),
    ],
    "a secondary's overlap that doesn't agree": [
        *OPEN,
        (s(0, "abcd"), ""),
        (s(2, "cXef"), "!conflict@3 want:conflict"),
        (p(0, "abcd"), ""),
        (commit(), "p2"),
    ],
    "a reset behind it waits for the checkpoint too": [
        *OPEN,
        (p(0, ack=9), ""),
        (p(7, rst=True), ""),
        (s(2, "cd"), ""),
        (s(7, rst=True), ""),
        (s(2, "cX"), "!conflict@3 want:conflict"),
        (s(4, ack=9), "p2"),
        (commit(), "p3"),
    ],
    "... inside what is held": [
        *OPEN,
        (s(0, "abcd"), ""),
        (s(1, "X"), "!conflict@1 want:conflict"),
    ],
    "... around what is held": [
        *OPEN,
        (s(2, "c"), ""),
        (s(0, "abXd"), "!conflict@2 want:conflict"),
    ],
    "a byte against a FIN of the same side's": [
        *OPEN,
        (p(0, "abc", fin=True), ""),
        (p(2, "cd"), "!conflict@3 want:conflict"),
    ],
    "a FIN against a byte of the same side's": [
        *OPEN,
        (s(0, "abcd"), ""),
        (s(2, "c", fin=True), "!conflict@3 want:conflict"),
    ],
    "two FINs at one place": [
        *OPEN,
        (p(0, "abc", fin=True), ""),
        (p(3, fin=True), ""),
        (s(0, "abc", fin=True), "p2 p3"),
    ],
    "bytes beyond a FIN are compared like others": [
        *OPEN,
        (p(0, fin=True), ""),
        (p(1, "x"), ""),
        (s(0, fin=True), "p2"),
        (s(1, "x"), "p3"),
    ],
    "a SYN repeated with other options": [
        (p_syn(), ""),
        (p_syn(replace(SYN_OPTIONS, wscale=None)), "!conflict@-1 want:conflict"),
        (commit(), "p1 p2"),
    ],
}

# RFC 6093: the byte before the mark is read apart by the receiver's program.
URGENT: dict[str, list[Row]] = {
    "the same mark, in segments cut in other places": [
        *OPEN,
        (p(0, "abcd", urg=True, urgent=4), ""),
        (s(0, "ab", urg=True, urgent=4), ""),
        (s(2, "cd", urg=True, urgent=2), "p2"),
        (p(2, "cd", urg=True, urgent=2), "p3"),
    ],
    "the primary's mark alone waits": [
        *OPEN,
        (p(0, "abcd", urg=True, urgent=4), ""),
        (s(0, "abcd"), ""),
        (wait(TIMEOUT_MS), "!primary-timeout want:primary-timeout"),
        (commit(), "p2"),
    ],
    "another mark": [
        *OPEN,
        (p(0, "abcd", urg=True, urgent=4), ""),
        (s(0, "abcd", urg=True, urgent=3), ""),
        (commit(), "p2"),
    ],
    "the secondary's mark alone: the byte waits": [
        *OPEN,
        (s(0, "abcd", urg=True, urgent=4), ""),
        (p(0, "abc"), "p2"),
        (p(3, "d"), ""),
        (wait(TIMEOUT_MS), "!primary-timeout want:primary-timeout"),
        (commit(), "p3"),
    ],
    "on an ACK without payload": [
        *OPEN,
        (p(0, urg=True, urgent=4), ""),
        (s(0, urg=True, urgent=4), "p2"),
    ],
    "repeated after a commit": [
        *OPEN,
        (p(0, "abcd", urg=True, urgent=4), ""),
        (commit(), "p2"),
        (p(0, "abcd", urg=True, urgent=4), "p3"),
        (p(4, "ef"), ""),
        (s(4, "ef"), "p4"),
    ],
}

# RFC 9293, 3.10.7.4; RFC 6191.
PORTS_AGAIN: dict[str, list[Row]] = {
    "after a reset": [
        *OPEN,
        (p(0, rst=True), ""),
        (s(0, rst=True), "p2"),
        (p_syn(shift=NEW), ""),
        (s_syn(shift=NEW), "p3"),
    ],
    "TIME-WAIT is left early: a new SYN with timestamps": [
        (p_syn(TIMES), ""),
        (s_syn(TIMES), "p1"),
        (p(0, fin=True, ack=1), ""),
        (s(0, fin=True, ack=1), "p2"),
        (p_syn(TIMES, shift=NEW), ""),
        (s_syn(TIMES, shift=NEW), "p3"),
        (p(0, "abc", shift=NEW), ""),
        (s(0, "abc", shift=NEW), "p4"),
    ],
    "while the old SYN is held": [
        (p_syn(), ""),
        (p_syn(shift=NEW), ""),
        (s_syn(), "p1"),
        (s_syn(shift=NEW), "p2"),
    ],
    "a commit meets both": [
        *OPEN,
        (p(0, "abc"), ""),
        (p_syn(shift=NEW), ""),
        (commit(), "p2 p3"),
        (p(0, "new", shift=NEW), ""),
        (s(0, "new", shift=NEW), "p4"),
    ],
}

HEADERS: dict[str, list[Row]] = {
    "a segment signed by TCP-AO is never lowered": [
        *OPEN,
        (p(0, "abc", ack=9, options=AO), ""),
        (s(0, "abc", ack=5, options=AO), ""),
        (s(3, ack=9, options=AO), "p2"),
    ],
    "ECN's flags don't bind": [
        *OPEN,
        (replace(p(0, "abc"), flags=wire.ACK | ECE), ""),
        (replace(s(0, "abc"), flags=wire.ACK | CWR), "p2"),
    ],
    "nor do they on a SYN": [
        (replace(p_syn(ack=None), flags=wire.SYN | ECE | CWR), ""),
        (s_syn(ack=None), "p1"),
    ],
    "nor does AccECN's flag, nor a reserved bit": [
        *OPEN,
        (replace(p(0, "abc"), flags=wire.ACK | 0x100), ""),
        (replace(s(0, "abc"), flags=wire.ACK | 0xE00), "p2"),
    ],
    "timestamps that one side drops later": [
        (p_syn(TIMES), ""),
        (s_syn(TIMES), "p1"),
        (p(0, "abc", options=Options(timestamps=True)), ""),
        (s(0, "abc"), "p2"),
    ],
    "SACK blocks, window and unknown options": [
        *OPEN,
        (p(0, "abc", options=Options(sack=((7, 9),)), noise=Noise(window=1)), ""),
        (s(0, "abc", options=Options(extra=b"\xfd\x04\x12\x34"), noise=Noise(window=9)), "p2"),
    ],
}

MID_STREAM: dict[str, list[Row]] = {
    "after a FIN that nobody saw": [
        (p(100, fin=True, ack=7), ""),
        (s(100, fin=True, ack=7), "p1"),
    ],
    "never answered": [
        (p(100, "abc", ack=7), ""),
        (wait(TIMEOUT_MS), "!primary-timeout want:primary-timeout"),
        (commit(), "p1"),
    ],
}

GROUPS = {
    "opens": OPENS,
    "fast open": FAST_OPEN,
    "half close": HALF_CLOSE,
    "resets": RESETS,
    "probes": PROBES,
    "overlaps": OVERLAPS,
    "urgent": URGENT,
    "ports again": PORTS_AGAIN,
    "headers": HEADERS,
    "mid-stream": MID_STREAM,
}
CASES = [pytest.param(rows, id=f"{group}: {name}") for group, cases in GROUPS.items() for name, rows in cases.items()]


@pytest.mark.parametrize("numbers", NUMBERS, ids=str)
@pytest.mark.parametrize("rows", CASES)
def test_core(rows: list[Row], numbers: Numbers) -> None:
    Table(Core, numbers, CONFIG).play(rows)


@pytest.mark.parametrize("numbers", NUMBERS, ids=str)
def test_a_stream_of_more_than_eight_gibibytes(numbers: Numbers) -> None:
    """32-bit numbers wrap twice and more, of both directions; steps of 1 GiB stand for what was sent between, and a
    commit covers each."""
    rows: list[Row] = list(OPEN)
    step = 2**30
    for turn in range(10):
        frame = f"p{turn + 2}"
        rows += [(p(turn * step, "abc", ack=turn * step), ""), (commit(), frame)]
    last = 9 * step + 3
    rows += [
        (p(last, "def", ack=9 * step + 5), ""),
        (s(last, "def", ack=9 * step + 2), f"p12^{(9 * step + 2 + 2**31) % 2**32 - 2**31}"),
        (s(last + 3, ack=9 * step + 5), f"ack{(9 * step + 5 + 2**31) % 2**32 - 2**31}"),
        (p(last + 3, "ghi", ack=9 * step + 5), ""),
        (s(last + 3, "gHi", ack=9 * step + 5), f"!payload@{last + 4} want:payload"),
    ]
    Table(Core, numbers, CONFIG).play(rows)
