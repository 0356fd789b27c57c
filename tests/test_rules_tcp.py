# SPDX-License-Identifier: Apache-2.0
"""TCP, row by row; model/table.py has the language. Each case runs across 2^31 and 2^32, on the core and on the toy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import wire
from model.core import Core
from model.packet import parse
from model.table import (
    GAP_MS,
    NUMBERS,
    OPEN,
    SYN_OPTIONS,
    TIMEOUT_MS,
    WINDOW_MS,
    Numbers,
    Row,
    Table,
    abort,
    alone,
    commit,
    p,
    p_raw,
    p_syn,
    s,
    s_raw,
    s_syn,
    stop,
    wait,
)
from model.toy import Toy
from model.verdict import NEVER, Cause, Config, Diverged, Emit, Release, Subject, Want
from wire import Noise, Options, Path

from coloproxy import events

MSS = "x" * 1448
BULK = bytes(range(251)) * 12
V6 = Path.v6()
MD5 = Options(md5=True)
PART_MAX = 752  # of a part of a held frame: COLO_OWN_BODY_MAX

HANDSHAKE: dict[str, list[Row]] = {
    "a SYN-ACK is held until the secondary's has come, whatever its initial number": [
        (p_syn(), ""),
        (s_syn(), "p1"),
    ],
    "the secondary's SYN-ACK may come first": [
        (s_syn(), ""),
        (p_syn(), "p1"),
    ],
    "a SYN-ACK that both send again, the secondary's translated by now, is no other connection": [
        (p_syn(), ""),
        (s_syn(), "p1"),
        (p_syn(), "p2"),
        (s_syn(translated=True), ""),
        (wait(TIMEOUT_MS + 1), ""),
        (p(0, "GET"), ""),
        (s(0, "GET"), "p3"),
        (s_syn(), ""),
        (s_syn(translated=True), ""),
        (wait(TIMEOUT_MS + 1), ""),
        (p(3, "x"), ""),
        (s(3, "x"), "p4"),
    ],
    "a SYN without ACK, of a VM that calls out": [
        (p_syn(ack=None), ""),
        (s_syn(ack=None), "p1"),
        (p(0, "GET", ack=0), ""),
        (s(0, "GET", ack=0), "p2"),
    ],
    "a repeated SYN-ACK leaves at once": [
        *OPEN,
        (p_syn(), "p2"),
    ],
    "a repeated SYN-ACK of the secondary's changes nothing": [
        (s_syn(), ""),
        (s_syn(), ""),
        (p_syn(), "p1"),
        (s_syn(), ""),
        (p(0, "abc"), ""),
        (s(0, "abc"), "p2"),
    ],
    "MSS binds": [
        (p_syn(replace(SYN_OPTIONS, mss=1460)), ""),
        (s_syn(replace(SYN_OPTIONS, mss=1400)), "!syn-options@-1 want:syn-options"),
        (commit(), "p1"),
    ],
    "window scale binds": [
        (p_syn(replace(SYN_OPTIONS, wscale=7)), ""),
        (s_syn(replace(SYN_OPTIONS, wscale=8)), "!syn-options@-1 want:syn-options"),
    ],
    "a window scale of 0 is not the same as none": [
        (p_syn(replace(SYN_OPTIONS, wscale=0)), ""),
        (s_syn(replace(SYN_OPTIONS, wscale=None)), "!syn-options@-1 want:syn-options"),
    ],
    "a signature binds by being there": [
        (p_syn(replace(SYN_OPTIONS, md5=True)), ""),
        (s_syn(), "!syn-options@-1 want:syn-options"),
    ],
    "and on the secondary alone": [
        (p_syn(), ""),
        (s_syn(replace(SYN_OPTIONS, md5=True)), "!syn-options@-1 want:syn-options"),
    ],
    "SACK-permitted binds": [
        (p_syn(replace(SYN_OPTIONS, sack_ok=True)), ""),
        (s_syn(replace(SYN_OPTIONS, sack_ok=False)), "!syn-options@-1 want:syn-options"),
    ],
    "timestamps bind by being there": [
        (p_syn(replace(SYN_OPTIONS, timestamps=True)), ""),
        (s_syn(replace(SYN_OPTIONS, timestamps=False)), "!syn-options@-1 want:syn-options"),
    ],
    "timestamp values don't bind": [
        (p_syn(replace(SYN_OPTIONS, timestamps=True), noise=Noise(tsval=1)), ""),
        (s_syn(replace(SYN_OPTIONS, timestamps=True), noise=Noise(tsval=2**32 - 1)), "p1"),
    ],
    "IP ID, TTL, TOS and window don't bind": [
        (p_syn(noise=Noise(ip_id=1, ttl=64, tos=0, window=1)), ""),
        (s_syn(noise=Noise(ip_id=9, ttl=63, tos=2, window=9)), "p1"),
    ],
    "an option that nobody knows does not bind": [
        (p_syn(replace(SYN_OPTIONS, extra=b"\xfe\x04\x01\x02")), ""),
        (s_syn(SYN_OPTIONS), "p1"),
    ],
    "a SYN-ACK is never lowered: it waits": [
        (p_syn(ack=5), ""),
        (s_syn(ack=0), ""),
        (s(0, ack=5), "p1"),
    ],
}

STREAM: dict[str, list[Row]] = {
    "equal segments": [
        *OPEN,
        (p(0, "hello"), ""),
        (s(0, "hello"), "p2"),
    ],
    "the secondary may be first": [
        *OPEN,
        (s(0, "hello"), ""),
        (p(0, "hello"), "p2"),
    ],
    "1448 bytes against 1000 and 448": [
        *OPEN,
        (p(0, MSS), ""),
        (s(0, MSS[:1000]), ""),
        (s(1000, MSS[:448]), "p2"),
    ],
    "1000 and 448 bytes against 1448": [
        *OPEN,
        (p(0, MSS[:1000]), ""),
        (p(1000, MSS[:448]), ""),
        (s(0, MSS), "p2 p3"),
    ],
    "1448 against 1000, on and on": [
        *OPEN,
        (p(0, BULK[:1448]), ""),
        (s(0, BULK[:1000]), ""),
        (p(1448, BULK[1448:2896]), ""),
        (s(1000, BULK[1000:2000]), "p2"),
        (s(2000, BULK[2000:3000]), "p3"),
        (p(2896, BULK[2896:3000]), "p4"),
    ],
    "coalesced on the primary": [
        *OPEN,
        (s(0, "ab"), ""),
        (s(2, "cd"), ""),
        (s(4, "ef"), ""),
        (p(0, "abcdef"), "p2"),
    ],
    "overlapping segments": [
        *OPEN,
        (p(0, "abcdef"), ""),
        (p(3, "defghi"), ""),
        (s(0, "abcd"), ""),
        (s(2, "cdefgh"), "p2"),
        (s(1, "bcdefghi"), "p3"),
    ],
    "a retransmission after the release leaves at once": [
        *OPEN,
        (p(0, "abcdef"), ""),
        (s(0, "abcdef"), "p2"),
        (p(0, "abcdef"), "p3"),
        (p(2, "cd"), "p4"),
        (s(0, "abcdef"), ""),
    ],
    "a retransmission with new bytes waits for those": [
        *OPEN,
        (p(0, "abc"), ""),
        (s(0, "abc"), "p2"),
        (p(0, "abcdef"), ""),
        (s(3, "def"), "p3"),
    ],
    "a held frame's retransmission leaves behind it": [
        *OPEN,
        (p(0, "abc"), ""),
        (p(0, "abc"), ""),
        (s(0, "abc"), "p2 p3"),
    ],
    "out of order on the secondary": [
        *OPEN,
        (p(0, "abcdef"), ""),
        (s(3, "def"), ""),
        (s(0, "abc"), "p2"),
    ],
    "out of order on the primary: each leaves when its own bytes are matched": [
        *OPEN,
        (p(3, "def"), ""),
        (s(3, "def"), "p2"),
        (p(0, "abc"), ""),
        (s(0, "abc"), "p3"),
    ],
    "out of order on the primary: order within the flow stays": [
        *OPEN,
        (p(3, "def"), ""),
        (p(0, "abc"), ""),
        (s(0, "abc"), ""),
        (s(3, "def"), "p2 p3"),
    ],
    "one byte at a time": [
        *OPEN,
        (p(0, "abc"), ""),
        (s(0, "a"), ""),
        (s(1, "b"), ""),
        (s(2, "c"), "p2"),
    ],
    "a frame is not released by a part": [
        *OPEN,
        (p(0, "abc"), ""),
        (s(0, "ab"), ""),
        (s(3, "d"), ""),
        (s(1, "bcd"), "p2"),
    ],
    "Ethernet padding is no payload": [
        *OPEN,
        (p(0, "ab", path=Path(pad=True)), ""),
        (s(0, "ab"), "p2"),
        (p(2), "p3"),
        (s(2, path=Path(pad=True)), ""),
        (p(2, "c"), ""),
        (s(2, "c"), "p4"),
    ],
    "met in mid-stream": [
        (p(100, "abc", ack=7), ""),
        (s(100, "abc", ack=7), "p1"),
        (p(103, "d", ack=7), ""),
        (s(103, "d", ack=7), "p2"),
    ],
    "met in mid-stream, the secondary first": [
        (s(100, "abcd", ack=7), ""),
        (p(100, "abc", ack=7), "p1"),
    ],
    "met in mid-stream, without any ACK of the secondary's: waits": [
        (p(100, "abc", ack=7), ""),
        (s(100, "abc", ack=None), ""),
        (s(103, ack=7), "p1"),
    ],
    "bytes before a meeting in mid-stream wait for a checkpoint": [
        (p(100, "abc"), ""),
        (s(100, "abc"), "p1"),
        (p(90, "klm"), "!mid-stream@-10 want:mid-stream"),
        (commit(), "p2"),
    ],
    "a GSO super-frame": [
        *OPEN,
        (p(0, BULK), ""),
        (s(0, BULK[:1448]), ""),
        (s(1448, BULK[1448:2896]), ""),
        (s(2896, BULK[2896:]), "p2"),
    ],
    "urgent, push and odd flags don't bind": [
        *OPEN,
        (p(0, "abc", psh=True), ""),
        (s(0, "abc"), "p2"),
    ],
}

PARTS: dict[str, list[Row]] = {
    "what both have said of a held frame leaves when the primary says it again": [
        *OPEN,
        (p(0, "abcdef"), ""),
        (s(0, "abcd"), ""),
        (p(0, "abcdef"), "part0-4"),
        (s(4, "ef"), "p2 p3"),
    ],
    "each time it does": [
        *OPEN,
        (p(0, "abcdef"), ""),
        (s(0, "ab"), ""),
        (p(0, "abcdef"), "part0-2"),
        (s(2, "cd"), ""),
        (p(2, "cdef"), "part2-4"),
        (p(0, "abc"), "part0-3"),
        (s(4, "ef"), "p2 p3 p4 p5"),
    ],
    "with the ACK that the client has been told": [
        *OPEN,
        (p(0, "abcdef", ack=9), ""),
        (s(0, "abcd", ack=5), ""),
        (p(0, "abcdef", ack=9), "part0-4"),
        (s(4, "ef", ack=7), "p2^7 p3^7"),
        (s(6, ack=9), "ack9"),
    ],
    "behind what has left already": [
        *OPEN,
        (p(0, "abc"), ""),
        (s(0, "abc"), "p2"),
        (p(3, "defghi"), ""),
        (s(3, "de"), ""),
        (p(0, "abcdef"), "part0-5"),
        (s(5, "fghi"), "p3 p4"),
    ],
    "what has left already, too": [
        *OPEN,
        (p(0, "abc"), ""),
        (s(0, "abc"), "p2"),
        (p(3, "def"), ""),
        (p(0, "abc"), "part0-3"),
        (s(3, "def"), "p3 p4"),
    ],
    "a probe of the tail, of which nothing is said by both, waits": [
        *OPEN,
        (p(0, "abcdef"), ""),
        (s(0, "abc"), ""),
        (p(3, "def"), ""),
        (s(3, "def"), "p2 p3"),
    ],
    "no more than fits a small frame": [
        *OPEN,
        (p(0, BULK), ""),
        (s(0, BULK[:2000]), ""),
        (p(0, BULK[:1448]), f"part0-{PART_MAX}"),
        (p(PART_MAX, BULK[PART_MAX : PART_MAX + 1448]), f"part{PART_MAX}-{2 * PART_MAX}"),
        (s(2000, BULK[2000:]), "p2 p3 p4"),
    ],
    "the FIN stays behind": [
        *OPEN,
        (p(0, "abc", fin=True), ""),
        (s(0, "abc"), ""),
        (p(0, "abc", fin=True), "part0-3"),
        (s(3, fin=True), "p2 p3"),
    ],
    "not where a frame waits for its ACK number only": [
        *OPEN,
        (p(0, "abc", ack=9, options=MD5), ""),
        (s(0, "abc", ack=5), ""),
        (p(0, "abc", ack=9, options=MD5), ""),
        (s(3, ack=9), "p2 p3"),
    ],
    "not of what is signed": [
        *OPEN,
        (p(0, "abcdef", options=MD5), ""),
        (s(0, "abcd"), ""),
        (p(0, "abcdef", options=MD5), ""),
        (s(4, "ef"), "p2 p3"),
    ],
    "not of what is urgent": [
        *OPEN,
        (p(0, "abcdef", urg=True, urgent=3), ""),
        (s(0, "abcd", urg=True, urgent=3), ""),
        (p(0, "abcdef", urg=True, urgent=3), ""),
        (s(4, "ef"), "p2 p3"),
    ],
    "not of what the primary contradicts": [
        *OPEN,
        (p(0, "abcdef"), ""),
        (s(0, "abcd"), ""),
        (p(0, "abXdef"), "!conflict@2 want:conflict"),
        (commit(), "p2 p3"),
    ],
    "not of a flow that has diverged": [
        *OPEN,
        (p(0, "abcdef"), ""),
        (s(0, "abcX"), "!payload@3 want:payload"),
        (p(0, "abc"), ""),
        (commit(), "p2 p3"),
    ],
    "not while the VMs stand still": [
        *OPEN,
        (p(0, "abcdef"), ""),
        (s(0, "abcd"), ""),
        (stop(), ""),
        (p(0, "abcdef"), ""),
        (abort(), "part0-4"),
        (s(4, "ef"), "p2 p3"),
    ],
    "nothing of the last epoch's": [
        *OPEN,
        (p(0, "abcdef"), ""),
        (s(0, "abcd"), ""),
        (commit(), "p2"),
        (p(6, "ghi"), ""),
        (p(6, "ghi"), ""),
        (s(6, "ghi"), "p3 p4"),
    ],
}

DIFFERENCES: dict[str, list[Row]] = {
    "the first byte": [
        *OPEN,
        (p(0, "abc"), ""),
        (s(0, "Abc"), "!payload@0 want:payload"),
        (commit(), "p2"),
    ],
    "the last byte": [
        *OPEN,
        (p(0, "abc"), ""),
        (s(0, "abC"), "!payload@2 want:payload"),
    ],
    "in the middle of segments cut in other places": [
        *OPEN,
        (p(0, "abcdef"), ""),
        (s(0, "abcd"), ""),
        (s(4, "eF"), "!payload@5 want:payload"),
    ],
    "what is equal before it has left": [
        *OPEN,
        (p(0, "abc"), ""),
        (s(0, "abcd"), "p2"),
        (p(3, "Def"), "!payload@3 want:payload"),
        (commit(), "p3"),
    ],
    "one divergence a flow and epoch": [
        *OPEN,
        (p(0, "abc"), ""),
        (s(0, "Abc"), "!payload@0 want:payload"),
        (p(3, "def"), ""),
        (s(3, "Def"), ""),
        (s(0, "Abc"), ""),
        (commit(), "p2 p3"),
    ],
    "one checkpoint is wanted for two flows": [
        (p(0, "a", path=Path(dport=1)), ""),
        (p(0, "a", path=Path(dport=2)), ""),
        (s(0, "b", path=Path(dport=1)), "!payload@0 want:payload"),
        (s(0, "b", path=Path(dport=2)), "!payload@0"),
        (commit(), "p1 p2"),
    ],
    "other flows go on": [
        (p(0, "a", path=Path(dport=1)), ""),
        (s(0, "b", path=Path(dport=1)), "!payload@0 want:payload"),
        (p(0, "a", path=Path(dport=2)), ""),
        (s(0, "a", path=Path(dport=2)), "p2"),
        (commit(), "p1"),
    ],
    "the same divergence again in the next epoch": [
        *OPEN,
        (p(0, "abc"), ""),
        (s(0, "Abc"), "!payload@0 want:payload"),
        (commit(), "p2"),
        (p(3, "def"), ""),
        (s(3, "Def"), "!payload@3 want:payload"),
        (commit(), "p3"),
    ],
    "a VLAN is a flow of its own": [
        (p(0, "a", path=Path(vlans=(1,))), ""),
        (s(0, "a", path=Path(vlans=(2,))), ""),
        (s(0, "a"), ""),
        (s(0, "a", path=Path(vlans=(1,))), "p1"),
    ],
}

ACKS: dict[str, list[Row]] = {
    "a pure ACK that the secondary has given leaves at once": [
        *OPEN,
        (s(0, ack=5), ""),
        (p(0, ack=5), "p2"),
    ],
    "a pure ACK above the secondary's waits": [
        *OPEN,
        (p(0, ack=5), ""),
        (s(0, ack=4), "ack4"),
        (s(0, ack=5), "p2"),
    ],
    "a pure ACK below the secondary's leaves": [
        *OPEN,
        (s(0, ack=9), ""),
        (p(0, ack=5), "p2"),
    ],
    "the ACK of any secondary frame counts": [
        *OPEN,
        (p(0, ack=5), ""),
        (s(0, "abc", ack=5), "p2"),
    ],
    "data never wait for the ACK: they leave with it lowered, and the rest follows": [
        *OPEN,
        (p(0, "abc", ack=9), ""),
        (s(0, "abc", ack=5), "p2^5"),
        (s(3, ack=7), "ack7"),
        (s(3, ack=9), "ack9"),
        (s(3, ack=12), ""),
    ],
    "a lowered frame owes no more than the primary acknowledged": [
        *OPEN,
        (p(0, "abc", ack=9), ""),
        (s(0, "abc", ack=5), "p2^5"),
        (s(3, ack=20), "ack9"),
    ],
    "the debt is paid by the primary's own next frame": [
        *OPEN,
        (p(0, "abc", ack=9), ""),
        (s(0, "abc", ack=5), "p2^5"),
        (s(3, "def", ack=5), ""),
        (p(3, "def", ack=12), "p3^5"),
        (s(6, ack=12), "ack12"),
    ],
    "data behind a waiting pure ACK take it along, lowered": [
        *OPEN,
        (p(0, ack=9), ""),
        (p(0, "abc", ack=9), ""),
        (s(0, "abc", ack=5), "p2^5 p3^5"),
        (s(3, ack=9), "ack9"),
    ],
    "data beyond a gap take a waiting pure ACK along too": [
        *OPEN,
        (p(6, ack=9), ""),
        (p(6, "ghi", ack=9), ""),
        (s(0, "abcdefghi", ack=5), "p2^5 p3^5"),
    ],
    "a pure ACK behind waiting data waits with them": [
        *OPEN,
        (p(0, "abc", ack=0), ""),
        (p(3, ack=5), ""),
        (s(0, ack=5), ""),
        (s(0, "abc", ack=5), "p2 p3"),
    ],
    "duplicate ACKs leave one by one": [
        *OPEN,
        (s(0, ack=5), ""),
        (p(0, ack=5), "p2"),
        (p(0, ack=5), "p3"),
        (p(0, ack=5), "p4"),
        (p(0, ack=5), "p5"),
    ],
    "duplicate ACKs wait together": [
        *OPEN,
        (p(0, ack=5), ""),
        (p(0, ack=5), ""),
        (s(0, ack=5), "p2 p3"),
    ],
    "a keep-alive leaves at once": [
        *OPEN,
        (p(0, "abc"), ""),
        (s(0, "abc"), "p2"),
        (p(2), "p3"),
        (s(2), ""),
    ],
    "a keep-alive with a byte, as old BSDs send it": [
        *OPEN,
        (p(0, "abc"), ""),
        (s(0, "abc"), "p2"),
        (p(2, "c"), "p3"),
    ],
    "a zero-window probe with a new byte waits for it": [
        *OPEN,
        (p(0, "a"), ""),
        (s(0, "abc"), "p2"),
        (p(1, "b"), "p3"),
    ],
    "a window update is an ACK like others": [
        *OPEN,
        (p(0, ack=0, noise=Noise(window=1000)), "p2"),
    ],
    "an old ACK number is not raised": [
        *OPEN,
        (s(0, ack=9), ""),
        (p(0, ack=9), "p2"),
        (p(0, "abc", ack=3), ""),
        (s(0, "abc", ack=9), "p3"),
    ],
    "a signed frame that waits for its ACK does not leave any more once it was contradicted": [
        *OPEN,
        (p(0, "abc", ack=9, options=MD5), ""),
        (s(0, "abc", ack=5, options=MD5), ""),
        (p(0, "abX", ack=9, options=MD5), "!conflict@2 want:conflict"),
        (s(3, ack=9, options=MD5), ""),
        (commit(), "p2 p3"),
    ],
    "a frame of a signed connection is not lowered": [
        *OPEN,
        (p(0, "abc", ack=9, options=MD5), ""),
        (s(0, "abc", ack=5, options=MD5), ""),
        (s(3, ack=9, options=MD5), "p2"),
    ],
    "the secondary misses a segment: its duplicate ACKs with SACK are repeated": [
        *OPEN,
        (s(0, ack=5), ""),
        (p(0, ack=5), "p2"),
        (p(0, ack=9), ""),
        (s(0, ack=5, options=Options(sack=((7, 9),))), "ack5"),
        (s(0, ack=9), "p3"),
    ],
    "after a commit all that the primary acknowledged is told": [
        *OPEN,
        (p(0, "abc", ack=9), ""),
        (s(0, "abc", ack=5), "p2^5"),
        (commit(), "ack9"),
        (p(3, ack=9), "p3"),
    ],
    "an ACK that never comes asks for a checkpoint": [
        *OPEN,
        (p(0, ack=9), ""),
        (wait(TIMEOUT_MS), "!primary-timeout want:primary-timeout"),
        (commit(), "p2"),
    ],
    "an ACK that was lowered and never follows does too": [
        *OPEN,
        (p(0, "abc", ack=9), ""),
        (s(0, "abc", ack=5), "p2^5"),
        (wait(TIMEOUT_MS), "!ack-timeout want:ack-timeout"),
        (commit(), "ack9"),
    ],
}

ENDINGS: dict[str, list[Row]] = {
    "FIN": [
        *OPEN,
        (p(0, fin=True), ""),
        (s(0, fin=True), "p2"),
    ],
    "FIN with data against FIN alone": [
        *OPEN,
        (p(0, "abc", fin=True), ""),
        (s(0, "abc"), ""),
        (s(3, fin=True), "p2"),
    ],
    "FIN alone against FIN with data": [
        *OPEN,
        (p(0, "abc"), ""),
        (p(3, fin=True), ""),
        (s(0, "abc", fin=True), "p2 p3"),
    ],
    "a FIN waits for its own match": [
        *OPEN,
        (p(0, "abc", fin=True), ""),
        (s(0, "abc"), ""),
        (wait(1), ""),
        (s(0, "abc", fin=True), "p2"),
    ],
    "half closed: ACKs go on": [
        *OPEN,
        (p(0, fin=True), ""),
        (s(0, fin=True), "p2"),
        (p(1, ack=5), ""),
        (s(1, ack=5), "p3"),
        (p(1, ack=6), ""),
        (s(1, ack=6), "p4"),
    ],
    "a repeated FIN leaves at once": [
        *OPEN,
        (p(0, fin=True), ""),
        (s(0, fin=True), "p2"),
        (p(0, fin=True), "p3"),
    ],
    "a FIN with an ACK above the secondary's is lowered": [
        *OPEN,
        (p(0, fin=True, ack=4), ""),
        (s(0, fin=True, ack=2), "p2^2"),
        (s(1, ack=4), "ack4"),
    ],
    "the primary ends, the secondary goes on": [
        *OPEN,
        (p(0, "abc", fin=True), ""),
        (s(0, "abcd"), "!fin@3 want:fin"),
        (commit(), "p2"),
    ],
    "the secondary ends, the primary goes on": [
        *OPEN,
        (p(0, "abcd"), ""),
        (s(0, "abc", fin=True), "!fin@3 want:fin"),
        (commit(), "p2"),
    ],
    "a FIN is not matched by a byte": [
        *OPEN,
        (p(0, fin=True), ""),
        (s(0, "x"), "!fin@0 want:fin"),
    ],
    "RST": [
        *OPEN,
        (p(0, rst=True), ""),
        (s(0, rst=True), "p2"),
    ],
    "RST, the secondary first": [
        *OPEN,
        (s(0, rst=True), ""),
        (p(0, rst=True), "p2"),
    ],
    "an RST's payload does not bind": [
        *OPEN,
        (p(0, "closed for lunch", rst=True), ""),
        (s(0, rst=True), "p2"),
    ],
    "an RST stays behind data": [
        *OPEN,
        (p(0, "abc"), ""),
        (p(3, rst=True), ""),
        (s(0, "abc"), "p2"),
        (s(3, rst=True), "p3"),
    ],
    "an RST on a closed port": [
        (p(0, rst=True, ack=1), ""),
        (s(0, rst=True, ack=1), "p1"),
    ],
    "an RST alone waits": [
        *OPEN,
        (p(0, rst=True), ""),
        (wait(TIMEOUT_MS - 1), ""),
        (commit(), "p2"),
    ],
    "an RST against data": [
        *OPEN,
        (p(0, rst=True), ""),
        (s(0, "abc"), "!rst@0 want:rst"),
        (commit(), "p2"),
    ],
    "data against an RST": [
        *OPEN,
        (p(0, "abc"), ""),
        (s(0, rst=True), "!rst@0 want:rst"),
        (commit(), "p2"),
    ],
}

NEW = 100_000_000
PORTS_AGAIN: dict[str, list[Row]] = {
    "a new connection on the same ports": [
        *OPEN,
        (p(0, fin=True), ""),
        (s(0, fin=True), "p2"),
        (p_syn(shift=NEW), ""),
        (s_syn(shift=NEW), "p3"),
        (p(0, "abc", shift=NEW), ""),
        (s(0, "abc", shift=NEW), "p4"),
    ],
    "the new connection's stream is compared from its own start": [
        *OPEN,
        (p(0, "abc"), ""),
        (s(0, "abc"), "p2"),
        (p_syn(shift=NEW), ""),
        (s_syn(shift=NEW), "p3"),
        (p(0, "abc", shift=NEW), ""),
        (s(0, "aBc", shift=NEW), "!payload@1 want:payload"),
    ],
    "the secondary opens it first": [
        *OPEN,
        (s_syn(shift=NEW), ""),
        (p_syn(shift=NEW), "p2"),
    ],
    "it waits while frames of the old one are held": [
        *OPEN,
        (p(0, "abc"), ""),
        (p_syn(shift=NEW), ""),
        (p(0, "new", shift=NEW), ""),
        (s(0, "abc"), "p2"),
        (s_syn(shift=NEW), "p3"),
        (s(0, "new", shift=NEW), "p4"),
    ],
}

SILENCE: dict[str, list[Row]] = {
    "the secondary says nothing": [
        *OPEN,
        (p(0, "abc"), ""),
        (wait(TIMEOUT_MS - 1), ""),
        (wait(1), "!primary-timeout want:primary-timeout"),
        (wait(TIMEOUT_MS), ""),
        (commit(), "p2"),
    ],
    "the primary says nothing": [
        *OPEN,
        (s(0, "abc"), ""),
        (wait(TIMEOUT_MS - 1), ""),
        (wait(1), "!secondary-timeout want:secondary-timeout"),
        (commit(), ""),
    ],
    "a time-out is no reason to give the flow up": [
        *OPEN,
        (p(0, "abc"), ""),
        (wait(TIMEOUT_MS), "!primary-timeout want:primary-timeout"),
        (s(0, "abc"), "p2"),
    ],
    "what is held at a commit begins a new time": [
        *OPEN,
        (p(0, "abc"), ""),
        (wait(TIMEOUT_MS - 1), ""),
        (commit(), "p2"),
        (p(3, "def"), ""),
        (wait(TIMEOUT_MS - 1), ""),
        (wait(1), "!primary-timeout want:primary-timeout"),
    ],
}

OTHER = Path(dport=40001)

# The secondary leaves out bytes and goes on.
GAPS: dict[str, list[Row]] = {
    "bytes that stay out ask for a checkpoint": [
        *OPEN,
        ([p(0, "abc"), p(3, "def")], ""),
        (s(3, "def"), ""),
        (wait(GAP_MS - 1), ""),
        (wait(1), "!gap want:gap"),
        (wait(TIMEOUT_MS), ""),
        (commit(), "p2 p3"),
    ],
    "the secondary was first": [
        *OPEN,
        (s(3, "def"), ""),
        (wait(GAP_MS), ""),
        (p(0, "abcdef"), ""),
        (wait(GAP_MS - 1), ""),
        (wait(1), "!gap want:gap"),
    ],
    "and has sent half of it": [
        *OPEN,
        ([s(0, "ab"), s(4, "ef")], ""),
        (p(0, "abcdef"), ""),
        (wait(GAP_MS), "!gap want:gap"),
        (s(2, "cd"), "p2"),
    ],
    "a FIN is a position too": [
        *OPEN,
        (p(0, "abc", fin=True), ""),
        (s(3, fin=True), ""),
        (wait(GAP_MS), "!gap want:gap"),
    ],
    "re-ordered within the window: no matter": [
        *OPEN,
        ([p(0, "abc"), p(3, "def")], ""),
        (s(3, "def"), ""),
        (wait(GAP_MS - 1), ""),
        (s(0, "abc"), "p2 p3"),
        (wait(GAP_MS), ""),
    ],
    "it does not give the flow up": [
        *OPEN,
        ([p(0, "abc"), p(3, "def")], ""),
        (s(3, "def"), ""),
        (wait(GAP_MS), "!gap want:gap"),
        (s(0, "abc"), "p2 p3"),
        (p(6, "ghi"), ""),
        (s(6, "ghi"), "p4"),
    ],
    "the next missing byte has a window of its own": [
        *OPEN,
        (p(0, "abcdefghi"), ""),
        ([s(1, "bc"), s(4, "ef"), s(7, "hi")], ""),
        (wait(GAP_MS - 1), ""),
        (s(0, "a"), ""),
        (wait(GAP_MS - 1), ""),
        (s(3, "d"), ""),
        (wait(GAP_MS - 1), ""),
        (wait(1), "!gap want:gap"),
    ],
    "more of the secondary's beyond it begins nothing anew": [
        *OPEN,
        (p(0, "abcdefghi"), ""),
        (s(3, "def"), ""),
        (wait(GAP_MS - 1), ""),
        (s(6, "ghi"), ""),
        (p(9, "jkl"), ""),
        (wait(1), "!gap want:gap"),
    ],
    "a silent secondary has no gap": [
        *OPEN,
        ([p(0, "abc"), p(3, "def")], ""),
        (s(0, "abc"), "p2"),
        (wait(GAP_MS), ""),
    ],
    "nor has one that is ahead of the primary": [
        *OPEN,
        ([s(0, "abc"), s(6, "ghi")], ""),
        (wait(GAP_MS), ""),
        (p(0, "abc"), "p2"),
        (wait(GAP_MS), ""),
    ],
    "bytes that both leave out are no gap, but they become one when the primary has said them": [
        *OPEN,
        (p(3, "def"), ""),
        (s(3, "def"), "p2"),
        (wait(GAP_MS), ""),
        (p(0, "abc"), ""),
        (wait(GAP_MS - 1), ""),
        (wait(1), "!gap want:gap"),
        (s(0, "abc"), "p3"),
    ],
    "two flows: the older gap first, and one wish": [
        (p_syn(path=OTHER), ""),
        (s_syn(path=OTHER), "p1"),
        (p_syn(), ""),
        (s_syn(), "p2"),
        ([p(0, "abc"), p(0, "abc", path=OTHER)], ""),
        (s(2, "c", path=OTHER), ""),
        (wait(GAP_MS - 2), ""),
        (s(2, "c"), ""),
        (wait(2), "!gap want:gap"),
        (wait(GAP_MS), ""),
    ],
    "two flows: the older one closes, the younger one asks": [
        (p_syn(path=OTHER), ""),
        (s_syn(path=OTHER), "p1"),
        (p_syn(), ""),
        (s_syn(), "p2"),
        ([p(0, "abc"), p(0, "abc", path=OTHER)], ""),
        (s(2, "c", path=OTHER), ""),
        (wait(GAP_MS - 2), ""),
        (s(2, "c"), ""),
        (s(0, "ab", path=OTHER), "p4"),
        (wait(GAP_MS - 1), ""),
        (wait(1), "!gap want:gap"),
    ],
    "not where a checkpoint is wanted already": [
        *OPEN,
        (p(0, "abc"), ""),
        (s(2, "c"), ""),
        (p_syn(path=OTHER), ""),
        (s_syn(replace(SYN_OPTIONS, mss=1400), path=OTHER), "!syn-options@-1 want:syn-options"),
        (wait(GAP_MS), ""),
    ],
    "a commit closes it": [
        *OPEN,
        (p(0, "abc"), ""),
        (s(2, "c"), ""),
        (wait(GAP_MS - 1), ""),
        (commit(), "p2"),
        (wait(GAP_MS), ""),
        (p(3, "def"), ""),
        (s(5, "f"), ""),
        (wait(GAP_MS - 1), ""),
        (wait(1), "!gap want:gap"),
    ],
    "time runs on while the VMs stand still for a checkpoint that fails": [
        *OPEN,
        (p(0, "abc"), ""),
        (s(2, "c"), ""),
        (stop(), ""),
        (wait(GAP_MS), ""),
        (abort(), "!gap want:gap"),
    ],
    "without a secondary there is none": [
        *OPEN,
        (p(0, "abc"), ""),
        (s(2, "c"), ""),
        (alone(), "p2"),
        (wait(GAP_MS), ""),
    ],
    "a difference closes it": [
        *OPEN,
        (p(0, "abcdef"), ""),
        (s(4, "ef"), ""),
        (wait(GAP_MS - 1), ""),
        (s(0, "aXcd"), "!payload@1 want:payload"),
        (wait(GAP_MS), ""),
        (commit(), "p2"),
        (p(6, "ghi"), ""),
        (wait(GAP_MS), ""),
        (s(6, "ghi"), "p3"),
    ],
    "a gap of the connection before is none of the next one's": [
        *OPEN,
        (p(0, "abc"), ""),
        (s(2, "c"), ""),
        (p_syn(shift=NEW), ""),
        (p(0, "xyz", shift=NEW), ""),
        (s(0, "ab"), "p2"),
        (wait(GAP_MS - 1), ""),
        (s_syn(shift=NEW), "p3"),
        (s(2, "z", shift=NEW), ""),
        (wait(GAP_MS - 1), ""),
        (wait(1), "!gap want:gap"),
    ],
}

# Where connections on the same ports, or their ends, meet.
CORNERS: dict[str, list[Row]] = {
    "R1: ACKs of the secondary's next connection tell nothing about this one": [
        *OPEN,
        (p(0, ack=9), ""),
        (p(0, "abc", ack=9), ""),
        (s(0, "Abc", ack=0), "!payload@0 want:payload"),
        (s_syn(shift=NEW), ""),
        (s(0, ack=0, shift=NEW), ""),
        (commit(), "p2 p3"),
    ],
    "R1: a SYN of the old connection, repeated, is no match for the new one": [
        (p_syn(ack=None), ""),
        (s_syn(ack=None), "p1"),
        (p_syn(ack=None, shift=NEW), ""),
        (s_syn(ack=None), ""),
        (s_syn(ack=None, shift=NEW), "p2"),
    ],
    "live: ... nor does it keep the new one's from matching": [
        *OPEN,
        (p_syn(shift=NEW), ""),
        (s_syn(), ""),
        (s_syn(shift=NEW), "p2"),
    ],
    "a reset of the old connection is none of the new": [
        *OPEN,
        (p_syn(shift=NEW), ""),
        (p(0, rst=True, shift=NEW), ""),
        (s(0, rst=True), ""),
        (s_syn(shift=NEW), "p2"),
        (s(0, rst=True, shift=NEW), "p3"),
    ],
}

GROUPS = {
    "handshake": HANDSHAKE,
    "stream": STREAM,
    "parts": PARTS,
    "differences": DIFFERENCES,
    "acks": ACKS,
    "endings": ENDINGS,
    "ports again": PORTS_AGAIN,
    "silence": SILENCE,
    "gaps": GAPS,
    "corners": CORNERS,
}
CASES = [pytest.param(rows, id=f"{group}: {name}") for group, cases in GROUPS.items() for name, rows in cases.items()]
CONFIG = Config(compare_timeout=TIMEOUT_MS * 10**6, reorder_window=WINDOW_MS * 10**6, gap_window=GAP_MS * 10**6)
# With `any_scale`: a side that contradicts itself still does.
SCALES: dict[str, list[Row]] = {
    "another scale factor is no difference": [
        (p_syn(replace(SYN_OPTIONS, wscale=7)), ""),
        (s_syn(replace(SYN_OPTIONS, wscale=8)), "p1"),
        (p(0, "abc"), ""),
        (s(0, "abc"), "p2"),
    ],
    "nor is 0, nor one beyond the greatest; the secondary first": [
        (s_syn(replace(SYN_OPTIONS, wscale=0)), ""),
        (p_syn(replace(SYN_OPTIONS, wscale=254)), "p1"),
    ],
    "of a VM that calls out": [
        (p_syn(replace(SYN_OPTIONS, wscale=7), ack=None), ""),
        (s_syn(replace(SYN_OPTIONS, wscale=8), ack=None), "p1"),
    ],
    "the primary's alone": [
        (p_syn(replace(SYN_OPTIONS, wscale=7)), ""),
        (s_syn(replace(SYN_OPTIONS, wscale=None)), "!syn-options@-1 want:syn-options"),
        (commit(), "p1"),
    ],
    "the secondary's alone": [
        (p_syn(replace(SYN_OPTIONS, wscale=None)), ""),
        (s_syn(replace(SYN_OPTIONS, wscale=0)), "!syn-options@-1 want:syn-options"),
    ],
    "neither's": [
        (p_syn(replace(SYN_OPTIONS, wscale=None)), ""),
        (s_syn(replace(SYN_OPTIONS, wscale=None)), "p1"),
    ],
    "the other options bind as ever": [
        (p_syn(replace(SYN_OPTIONS, wscale=7, mss=1460)), ""),
        (s_syn(replace(SYN_OPTIONS, wscale=8, mss=1400)), "!syn-options@-1 want:syn-options"),
    ],
    "a side that repeats its SYN with another factor contradicts itself": [
        (p_syn(replace(SYN_OPTIONS, wscale=7)), ""),
        (p_syn(replace(SYN_OPTIONS, wscale=8)), "!conflict@-1 want:conflict"),
        (commit(), "p1 p2"),
    ],
}
SCALE_CASES = [pytest.param(rows, id=name) for name, rows in SCALES.items()]
# What the toy does not know: repeating duplicate ACKs, resets as differences, evidence for time-outs.
CORE_ONLY = ("!rst@", "-timeout", "!gap", "ack5")


@pytest.mark.parametrize("numbers", NUMBERS, ids=str)
@pytest.mark.parametrize("rows", CASES)
def test_core(rows: list[Row], numbers: Numbers) -> None:
    Table(Core, numbers, CONFIG).play(rows)


@pytest.mark.parametrize("rows", CASES)
def test_toy(rows: list[Row]) -> None:
    if any(word in expected for _, expected in rows for word in CORE_ONLY):
        return
    Table(Toy, NUMBERS[1], CONFIG).play([(step, _without_offsets(expected)) for step, expected in rows], live=True)


@pytest.mark.parametrize("rows", SCALE_CASES)
def test_any_scale(rows: list[Row]) -> None:
    config = replace(CONFIG, any_scale=True)
    for numbers in NUMBERS:
        Table(Core, numbers, config).play(rows)
    Table(Toy, NUMBERS[1], config).play([(step, _without_offsets(expected)) for step, expected in rows], live=True)


def test_windows_that_leave_are_the_primarys() -> None:
    """In its own scale: of a frame that leaves with its ACK lowered, and of an ACK of the proxy's own."""
    rows: list[Row] = [
        (p_syn(replace(SYN_OPTIONS, wscale=7)), ""),
        (s_syn(replace(SYN_OPTIONS, wscale=8)), "p1"),
        (p(0, "abc", ack=9, noise=Noise(window=1000)), ""),
        (s(0, "abc", ack=5, noise=Noise(window=500)), "p2^5"),
        (s(3, ack=9, noise=Noise(window=501)), "ack9"),
    ]
    oracle = Table(Core, NUMBERS[0], replace(CONFIG, any_scale=True)).play(rows).oracle
    left = [data for _, data, _ in oracle.released] + oracle.emitted
    assert [parse(data).window for data in left[1:]] == [1000, 1000]


def _without_offsets(expected: str) -> str:
    """The toy finds FINs and options that differ, but not where."""
    return " ".join(
        word.split("@")[0] + "@0" if word.startswith(("!fin", "!syn", "!mid")) else word for word in expected.split()
    )


@pytest.mark.parametrize(
    "path",
    [Path(), Path(vlans=(7,)), Path(vlans=(7, 9)), V6, Path.v6(vlans=(7,)), Path.v6(extensions=(0,)),
     Path.v6(extensions=(0, 43, 60))],
    ids=["IPv4", "802.1Q", "QinQ", "IPv6", "IPv6 802.1Q", "hop-by-hop", "three extension headers"],
)  # fmt: skip
@pytest.mark.parametrize("timestamps", [False, True], ids=["", "timestamps"])
def test_lowered_and_emitted_acks_on_all_paths(path: Path, timestamps: bool) -> None:
    """The patch and the emitted frame fit the frame's layout; the oracle checks lengths and checksums."""
    more: dict[str, Any] = {"path": path, "options": Options(timestamps=timestamps)}
    syn: dict[str, Any] = {"path": path, "options": replace(SYN_OPTIONS, timestamps=timestamps)}
    rows: list[Row] = [
        (p_syn(**syn), ""),
        (s_syn(**syn), "p1"),
        (p(0, "abc", ack=9, **more), ""),
        (s(0, "abc", ack=5, **more), "p2^5"),
        (s(3, ack=9, **more), "ack9"),
    ]
    run = Table(Core, NUMBERS[1], CONFIG).play(rows)
    emitted = parse(run.oracle.emitted[0])
    assert emitted.key.vlans == path.vlans
    assert (emitted.timestamps is not None) == timestamps


@pytest.mark.parametrize("length", [10, 12])
@pytest.mark.parametrize("partial", [False, True], ids=["full checksum", "partial checksum"])
def test_virtio_net_headers(length: int, partial: bool) -> None:
    """A partial checksum is left alone by lowering; an emitted ACK has a whole one and asks for no offload."""
    more: dict[str, Any] = {"vnet": length, "partial": partial}
    rows: list[Row] = [
        (p_syn(**more), ""),
        (s_syn(**more), "p1"),
        (p(0, "abc", ack=9, **more), ""),
        (s(0, "abc", ack=5, vnet=10), "p2^5"),
        (s(3, ack=9), "ack9"),
    ]
    run = Table(Core, NUMBERS[0], CONFIG).play(rows)
    assert run.oracle.emitted[0][:length] == bytes(length)


def test_a_wrong_checksum_stays_wrong() -> None:
    """The comparator neither judges nor heals checksums: the client must see what the guest sent."""
    table = Table(Core, NUMBERS[0], CONFIG)
    rows: list[Row] = [*OPEN, (p(0, "abc", ack=9, spoil=True), ""), (s(0, "abc", ack=5), "p2^5")]
    run = table.play(rows)
    (_, data, _) = run.oracle.released[-1]
    assert not parse(data).checksums_ok


def test_evidence_of_a_difference() -> None:
    """Both sides' bytes, with what came before, and where in them the difference is."""
    rows: list[Row] = [
        *OPEN,
        (p(0, BULK[:200]), ""),
        (s(0, BULK[:100]), ""),
        (s(100, b"?" + BULK[101:200]), "!payload@100 want:payload"),
    ]
    run = Table(Core, NUMBERS[1], CONFIG).play(rows)
    (event,) = run.oracle.divergences
    assert event.primary[event.context :] == BULK[100 : 100 + len(event.primary) - event.context]
    assert event.secondary[event.context] == ord("?")
    assert len(event.primary) <= 96


def test_a_gap_is_told_when_its_window_is_over_to_the_nanosecond() -> None:
    core = Core(Config(gap_window=7))
    core.commit(0, 0)
    ours, theirs = (wire.tcp(Path(), 9 + at, 9, wire.ACK, b"abcdef"[at:]) for at in (0, 2))
    core.feed(0, [(1, ours)], 10)
    core.feed(1, [(2, theirs)], 12)
    assert core.deadline() == 12 + 7
    core.tick(18)
    assert core.take() == ([], [])
    core.tick(19)
    told, want = core.take()[1]
    assert isinstance(told, Diverged)
    assert (told.cause, told.offset, told.primary, told.secondary) == (Cause.GAP, 0, b"abcdef", b"")
    assert want == Want(Cause.GAP, told.epoch)
    assert core.deadline() == NEVER, "the checkpoint answers all time-outs"
    assert core.comparator.counters().divergences[events.Cause.GAP] == 1


def test_a_batch_is_like_single_frames() -> None:
    rows: list[Row] = [
        *OPEN,
        ([p(0, "abc"), p(3, "def", ack=4), p(6, ack=4)], ""),
        ([s(0, "ab"), s(2, "cdef", ack=2), s(6, ack=4)], "p2 p3^2 p4"),
    ]
    Table(Core, NUMBERS[2], CONFIG).play(rows)


def test_frames_on_the_wire_are_not_touched_but_for_the_patch() -> None:
    """What leaves is byte for byte what came, headers and padding included."""
    frame = wire.tcp(Path(pad=True), 5, 6, wire.ACK, b"ab", noise=Noise(ip_id=77, tos=3))
    rows: list[Row] = [(p_raw(frame), ""), (s_raw(wire.tcp(Path(), 5, 6, wire.ACK, b"ab")), "p1")]
    run = Table(Core, NUMBERS[0], CONFIG).play(rows)
    assert run.oracle.released[-1][1] == frame


def test_subjects_and_actions_are_what_the_driver_knows() -> None:
    """Both implementations speak the driver's language (a guard for the harness itself)."""
    subjects: list[Subject] = [Core(CONFIG), Toy(CONFIG)]
    for subject in subjects:
        subject.commit(0, 0)
        assert subject.feed(0, [(1, wire.arp())], 1) == 1
        (action,), events = subject.take()
        assert isinstance(action, Release)
        assert not isinstance(action, Emit)
        assert not events
