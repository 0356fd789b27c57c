# SPDX-License-Identifier: Apache-2.0
"""What may differ by the operator's word, row by row; and that nothing else may."""

from __future__ import annotations

import http.server
import itertools
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path as FilePath

import pytest
import wire
from chaos import make_chaos, make_garbage
from conversation import Conversation, Sent, Tcp, make_conversation
from model.core import Core
from model.flow import PRIMARY, SECONDARY
from model.oracle import Oracle
from model.run import Commit, Feed, Run, Stop
from model.table import (
    MILLISECOND,
    NUMBERS,
    OPEN,
    TIMEOUT_MS,
    WINDOW_MS,
    Row,
    Table,
    alone,
    commit,
    p,
    p_raw,
    p_syn,
    resume,
    s,
    s_raw,
    s_syn,
    stop,
    wait,
)
from model.verdict import Config, Event
from strategies import seeded, seeds
from wire import Path

from coloproxy import Comparator, Discarded, Divergence, Released, Side, Tolerated
from coloproxy.errors import MisuseError, RulesError
from coloproxy.rules import Rules, ToleranceRule, load_rules, parse_rules

CONFIG = Config(compare_timeout=TIMEOUT_MS * MILLISECOND, reorder_window=WINDOW_MS * MILLISECOND, reorder_frames=4)
DOCUMENT = FilePath(__file__).resolve().parent.parent / "docs" / "rules.md"

DATE = "[[tolerance]]\nafter = '\\nDate: '\nlength = 4".replace("'", '"')
TOKEN = "[[tolerance]]\nafter = 'token='\nlength = 8\nuntil = ';'"


def ruled(text: str) -> Config:
    return replace(CONFIG, rules=parse_rules(text))


A = "x\nDate: 1111\ny"  # the window is 8 to 11
B = "x\nDate: 2222\ny"

TCP: dict[str, tuple[str, list[Row]]] = {
    "nothing is tolerated without a rule": ("", [*OPEN, (p(0, A), ""), (s(0, B), "!payload@8 want:payload")]),
    "a window": (DATE, [*OPEN, (p(0, A), ""), (s(0, B), "p2 tolerated@8")]),
    "the secondary first": (DATE, [*OPEN, (s(0, B), ""), (p(0, A), "p2 tolerated@8")]),
    "the event is at the first byte that differs": (
        DATE,
        [*OPEN, (p(0, "x\nDate: 1111"), ""), (s(0, "x\nDate: 1121"), "p2 tolerated@10")],
    ),
    "equal bytes in a window are no event": (DATE, [*OPEN, (p(0, A), ""), (s(0, A), "p2")]),
    "cut in the text, and in the window, elsewhere on each side": (
        DATE,
        [
            *OPEN,
            (p(0, A[:4]), ""),
            (p(4, A[4:9]), ""),
            (p(9, A[9:]), ""),
            (s(0, B[:6]), "p2"),
            (s(6, B[6:11]), "p3 tolerated@8"),
            (s(11, B[11:]), "p4"),
        ],
    ),
    "one super-frame against small ones": (
        DATE,
        [*OPEN, (p(0, A), ""), (s(0, B[:5]), ""), (s(5, B[5:9]), "tolerated@8"), (s(9, B[9:]), "p2")],
    ),
    "each side retransmits what it said": (
        DATE,
        [
            *OPEN,
            (p(0, A), ""),
            (s(0, B), "p2 tolerated@8"),
            (p(0, A), "p3"),
            (s(0, B), ""),
            (s(14, "more"), ""),
            (p(9, A[9:] + "more"), "p4"),
        ],
    ),
    "the byte behind the window binds": (
        DATE,
        [*OPEN, (p(0, "\nDate: 11111"), ""), (s(0, "\nDate: 22222"), "tolerated@7 !payload@11 want:payload")],
    ),
    "... in a frame of its own too": (
        DATE,
        [
            *OPEN,
            (p(0, "\nDate: 1111"), ""),
            (s(0, "\nDate: 2222"), "p2 tolerated@7"),
            (p(11, "1"), ""),
            (s(11, "2"), "!payload@11 want:payload"),
        ],
    ),
    "bytes before the text bind": (DATE, [*OPEN, (p(0, A), ""), (s(0, "y" + B[1:]), "!payload@0 want:payload")]),
    "the text binds": (
        DATE,
        [*OPEN, (p(0, "\nDate: 11"), ""), (s(0, "\nDatf: 22"), "!payload@4 want:payload")],
    ),
    "the text must be whole": (
        DATE,
        [*OPEN, (p(0, "Date: 11"), ""), (s(0, "Date: 22"), "!payload@6 want:payload")],
    ),
    "a text that begins within itself": (
        "[[tolerance]]\nafter = 'aabaac'\nlength = 1",
        [*OPEN, (p(0, "aabaabaac1"), ""), (s(0, "aabaabaac2"), "p2 tolerated@9")],
    ),
    "a value that is shorter on one side": (
        DATE,
        [*OPEN, (p(0, "\nDate: 111\nz"), ""), (s(0, "\nDate: 2222\n"), "tolerated@7 !payload@10 want:payload")],
    ),
    "a value that is as short on both sides": (
        DATE,
        [*OPEN, (p(0, "\nDate: 1\nDate: 2"), ""), (s(0, "\nDate: 3\nDate: 4"), "p2 tolerated@7")],
    ),
    "the end of the stream ends a window": (
        DATE,
        [*OPEN, (p(0, "\nDate: 11", fin=True), ""), (s(0, "\nDate: 22", fin=True), "p2 tolerated@7")],
    ),
    "a stream that ends in a window on one side": (
        DATE,
        [*OPEN, (p(0, "\nDate: 11", fin=True), ""), (s(0, "\nDate: 222"), "tolerated@7 !fin@9 want:fin")],
    ),
    "what can't be printed is not tolerated": (
        DATE,
        [*OPEN, (p(0, b"\nDate: 1\x01"), ""), (s(0, b"\nDate: 2\x02"), "tolerated@7 !payload@8 want:payload")],
    ),
    "... on the primary's side": (
        DATE,
        [*OPEN, (p(0, b"\nDate: \x801"), ""), (s(0, b"\nDate: 22"), "!payload@7 want:payload")],
    ),
    "... on the secondary's side": (
        DATE,
        [*OPEN, (p(0, b"\nDate: 11"), ""), (s(0, b"\nDate: \x7f2"), "!payload@7 want:payload")],
    ),
    "a byte that ends the value": (
        TOKEN,
        [*OPEN, (p(0, "token=ab;1"), ""), (s(0, "token=cd;1"), "p2 tolerated@6")],
    ),
    "... on one side only": (
        TOKEN,
        [*OPEN, (p(0, "token=ab;1"), ""), (s(0, "token=abc;"), "!payload@8 want:payload")],
    ),
    "... ends it for what follows too": (
        TOKEN,
        [*OPEN, (p(0, "token=ab;1"), ""), (s(0, "token=cd;2"), "tolerated@6 !payload@9 want:payload")],
    ),
    "a text within a window opens none": (
        "[[tolerance]]\nafter = 'token='\nlength = 6",
        [*OPEN, (p(0, "token=token=1"), ""), (s(0, "token=token=2"), "!payload@12 want:payload")],
    ),
    "the first rule of two that fit decides": (
        "[[tolerance]]\nafter = 'xtoken='\nlength = 1\n[[tolerance]]\nafter = 'token='\nlength = 2",
        [
            *OPEN,
            (p(0, "token=11 xtoken=11"), ""),
            (s(0, "token=22 xtoken=22"), "tolerated@6 tolerated@16 !payload@17 want:payload"),
        ],
    ),
    "a text that ends within another one": (
        "[[tolerance]]\nafter = 'xtoken=yyy'\nlength = 1\n[[tolerance]]\nafter = 'token='\nlength = 1",
        [*OPEN, (p(0, "xtoken=1"), ""), (s(0, "xtoken=2"), "p2 tolerated@7")],
    ),
    "a text does not go on behind a window": (
        "[[tolerance]]\nafter = 'aaaa'\nlength = 1",
        [*OPEN, (p(0, "aaaa1a1"), ""), (s(0, "aaaa2a2"), "tolerated@4 !payload@6 want:payload")],
    ),
    "a rule for other flows, beside one that fits": (
        "[[tolerance]]\nafter = 'token='\nlength = 1\nvm_port = 81\n[[tolerance]]\nafter = 'other='\nlength = 1",
        [*OPEN, (p(0, "token=1"), ""), (s(0, "token=2"), "!payload@6 want:payload")],
    ),
    "a rule for other flows": (
        DATE + "\nvm_port = 81",
        [*OPEN, (p(0, A), ""), (s(0, B), "!payload@8 want:payload")],
    ),
    "a sample a second": (
        DATE,
        [
            *OPEN,
            (p(0, "\nDate: 1" * 3), ""),
            (s(0, "\nDate: 2" * 3), "p2 tolerated@7"),
            (wait(999), ""),
            (p(24, "\nDate: 3"), ""),
            (s(24, "\nDate: 4"), "p3"),
            (wait(1), ""),
            (p(32, "\nDate: 5"), ""),
            (s(32, "\nDate: 6"), "p4 tolerated@39"),
        ],
    ),
    "beyond a gap nothing leaves": (
        DATE,
        [
            *OPEN,
            (p(7, A[7:]), ""),
            (s(0, B), ""),
            (s(14, "z"), ""),
            (p(14, "z"), ""),
            (p(0, A[:7]), "p2 p3 p4 tolerated@8"),
        ],
    ),
    "met in mid-stream before the text": (DATE, [(p(0, A), ""), (s(0, B), "p1 tolerated@8")]),
    "met in mid-stream within the text": (
        DATE,
        [(p(0, "Date: 11"), ""), (s(0, "Date: 22"), "!payload@6 want:payload")],
    ),
    "a text on both sides of a commit": (
        DATE,
        [*OPEN, (p(0, A[:5]), ""), (commit(), "p2"), (p(5, A[5:]), ""), (s(5, B[5:]), "p3 tolerated@8")],
    ),
    "a window on both sides of a commit": (
        DATE,
        [*OPEN, (p(0, A[:9]), ""), (commit(), "p2"), (p(9, A[9:]), ""), (s(9, B[9:]), "p3 tolerated@9")],
    ),
    "a text of which a part was read while the VMs stood still": (
        DATE,
        [
            *OPEN,
            (p(0, A[:3]), ""),
            (s(0, B[:3]), "p2"),
            (stop(), ""),
            (p(3, A[3:6]), ""),
            (resume(), ""),
            (p(6, A[6:]), ""),
            (commit(), "p3"),
            (s(6, B[6:]), "p4 tolerated@8"),
        ],
    ),
    "a text of which a commit covers a part unseen": (
        DATE,
        [
            *OPEN,
            (p(4, A[4:7]), ""),
            (commit(), "p2"),
            (p(7, A[7:]), ""),
            (s(7, B[7:]), "!payload@8 want:payload"),
        ],
    ),
    "a text of which the middle is unseen": (
        DATE,
        [
            *OPEN,
            (p(0, "x\nDa"), ""),
            (s(0, "x\nDa"), "p2"),
            (p(6, "zz"), ""),
            (commit(), "p3"),
            (p(8, "te: 1"), ""),
            (s(8, "te: 2"), "!payload@12 want:payload"),
        ],
    ),
    "a connection that opened while the VMs stood still": (
        DATE,
        [
            (stop(), ""),
            (p_syn(), ""),
            (p(0, A[:5]), ""),
            (resume(), ""),
            (commit(), "p1 p2"),
            (p(5, A[5:]), ""),
            (s(5, B[5:]), "p3 tolerated@8"),
        ],
    ),
    "a commit releases what differs outside": (
        DATE,
        [
            *OPEN,
            (p(0, "x"), ""),
            (s(0, "y"), "!payload@0 want:payload"),
            (p(1, A[1:]), ""),
            (commit(), "p2 p3"),
            (p(14, A), ""),
            (s(14, B), "p4 tolerated@22"),
        ],
    ),
    "the text of one connection, the value of the next": (
        DATE,
        [
            *OPEN,
            (p(0, A[:8]), ""),
            (s(0, B[:8]), "p2"),
            (p_syn(shift=9999), ""),
            (s_syn(shift=9999), "p3"),
            (p(0, "1", shift=9999), ""),
            (s(0, "2", shift=9999), "!payload@0 want:payload"),
        ],
    ),
    "without a secondary, and then with one": (
        DATE,
        [
            *OPEN,
            (alone(), ""),
            (p(0, A[:8]), "p2"),
            (commit(), ""),
            (p(8, "1"), ""),
            (s(8, "2"), "!payload@0 want:payload"),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("numbers", NUMBERS, ids=str)
@pytest.mark.parametrize("case", TCP)
def test_tcp(case: str, numbers: object) -> None:
    text, rows = TCP[case]
    Table(Core, numbers, ruled(text)).play(rows)  # type: ignore[arg-type]


TLS_HELLO = b"\x16\x03\x03\x00\x5a\x02\x00\x00\x56\x03\x03"


@pytest.mark.parametrize("before", ["hello", "\r\nDate: "], ids=["a word before it", "a header before it"])
def test_a_tls_random_is_not_tolerated(before: str) -> None:
    """No text that a rule may have stands right before it: the bytes there, the record's, can't be printed."""
    random = [bytes((i * 41 + side * 13 + 5) & 0xFF for i in range(32)) for side in (0, 1)]
    said = [before.encode() + TLS_HELLO + random[side] for side in (0, 1)]
    rows: list[Row] = [*OPEN, (p(0, said[0]), ""), (s(0, said[1]), f"!payload@{len(said[0]) - 32} want:payload")]
    rules = Rules(tolerances=(ToleranceRule("all that may be", before.encode(), 256),))
    Table(Core, NUMBERS[0], replace(CONFIG, rules=rules)).play(rows)


def test_a_random_right_behind_the_text_is_not_tolerated() -> None:
    """Were it to begin with bytes that can be printed, those alone are; it has 32, and one in three can be."""
    random = [bytes((i * 41 + side * 13 + 65) & 0xFF for i in range(32)) for side in (0, 1)]
    said = [b"hello" + random[side] for side in (0, 1)]
    bad = next(i for i in range(32) if not all(32 <= r[i] < 127 for r in random))
    assert bad > 0
    rows: list[Row] = [*OPEN, (p(0, said[0]), ""),
                       (s(0, said[1]), f"tolerated@5 !payload@{5 + bad} want:payload")]  # fmt: skip
    Table(Core, NUMBERS[0], ruled("[[tolerance]]\nafter = 'hello'\nlength = 256")).play(rows)


RESPONSE = [f"HTTP/1.1 200 OK\r\nDate: {date}\r\nServer: x\r\n\r\nthe Date: 7" for date in ("12:00:07", "12:00:08")]
HTTP = '[[tolerance]]\nafter = "\\r\\nDate: "\nlength = 29\n'


def check_cuts(cuts: tuple[list[int], list[int]], other: str = RESPONSE[1]) -> list[Event]:
    """Both sides say their answer, each cut its own way; returns the events."""
    config = ruled(HTTP)
    run = Run(Core(config), Oracle(config))
    run.step(Stop(0))
    run.step(Commit(1, 2))
    syn = wire.tcp(Path(), 99, 9, wire.SYN | wire.ACK)
    run.step(Feed(PRIMARY, (syn,), 3))
    run.step(Feed(SECONDARY, (syn,), 4))
    events: list[Event] = []
    for side, said in ((PRIMARY, RESPONSE[0]), (SECONDARY, other)):
        edges = [0, *cuts[side], len(said)]
        for now, (start, end) in enumerate(itertools.pairwise(edges), 10 + side * 1000):
            frame = wire.tcp(Path(), 100 + start, 9, wire.ACK, said[start:end].encode())
            events += run.step(Feed(side, (frame,), now))[1]
    assert not run.held or events
    return events


def test_wherever_it_is_cut() -> None:
    length = len(RESPONSE[0])
    for ours in range(1, length, 2):
        for theirs in range(1, length, 5):
            (event,) = check_cuts(([ours], [theirs]))
            assert type(event).__name__ == "Tolerated"
    every = list(range(1, length))
    for cuts in ((every, []), ([], every), (every, every)):
        (event,) = check_cuts(cuts)
        assert type(event).__name__ == "Tolerated"


def test_every_other_byte_binds_wherever_it_is_cut() -> None:
    window = range(RESPONSE[0].index("12:"), RESPONSE[0].index("12:") + 8)
    for at in range(len(RESPONSE[0])):
        other = RESPONSE[1][:at] + ("#" if RESPONSE[1][at] != "#" else "+") + RESPONSE[1][at + 1 :]
        for cuts in (([], []), ([at], [at]), ([], list(range(1, len(other))))):
            if 0 not in cuts[0]:
                events = check_cuts(cuts, other)
                names = {type(event).__name__ for event in events}
                assert ("Diverged" in names) == (at not in window), at


# ------------------------------------------------------------------ datagrams


def pu(body: bytes, **more: int) -> Row:
    return p_raw(wire.udp(Path(**more), body)), ""  # type: ignore[arg-type]


def su(body: bytes, expected: str) -> Row:
    return s_raw(wire.udp(Path(), body)), expected


DATAGRAMS: dict[str, tuple[str, list[Row]]] = {
    "without a rule": ("", [pu(b"time=1"), su(b"time=2", ""), (wait(WINDOW_MS), "!datagram@5 want:datagram")]),
    "a window": ("length = 1", [pu(b"time=1"), su(b"time=2", "p1 tolerated@5")]),
    "the secondary first": (
        "length = 1",
        [su(b"time=2", ""), (p_raw(wire.udp(Path(), b"time=1")), "p1 tolerated@5")],
    ),
    "an equal one goes before one that is tolerated": (
        "length = 1",
        [su(b"time=2", ""), su(b"time=1", ""), (p_raw(wire.udp(Path(), b"time=1")), "p1")],
    ),
    "each serves once": (
        "length = 1",
        [pu(b"time=1"), pu(b"time=1"), su(b"time=2", "p1 tolerated@5"), su(b"time=3", "p2")],
    ),
    "lengths bind": (
        "length = 9",
        [pu(b"time=1"), su(b"time=22", ""), (wait(WINDOW_MS), "!datagram@6 want:datagram")],
    ),
    "the difference told is not the tolerated one": (
        "length = 1",
        [pu(b"time=1 a"), su(b"time=2 b", ""), (wait(WINDOW_MS), "!datagram@7 want:datagram")],
    ),
    "a window does not reach into the next datagram": (
        "length = 9",
        [pu(b"time="), su(b"time=", "p1"), pu(b"1"), su(b"2", ""), (wait(WINDOW_MS), "!datagram@0 want:datagram")],
    ),
    "what can't be printed": (
        "length = 9",
        [pu(b"time=\x01"), su(b"time=\x02", ""), (wait(WINDOW_MS), "!datagram@5 want:datagram")],
    ),
    "another class": (
        "length = 1\nclass = 'tcp'",
        [pu(b"time=1"), su(b"time=2", ""), (wait(WINDOW_MS), "!datagram@5 want:datagram")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DATAGRAMS)
def test_datagrams(case: str) -> None:
    text, rows = DATAGRAMS[case]
    Table(Core, NUMBERS[0], ruled(f"[[tolerance]]\nafter = 'time='\n{text}" if text else "")).play(rows)


def test_an_echo_reply_is_compared_around_its_checksum() -> None:
    rows: list[Row] = [
        (p_raw(wire.echo_reply(Path(), 7, 1, b"time=1")), ""),
        (s_raw(wire.echo_reply(Path(), 7, 1, b"time=2")), "p1 tolerated@13"),
    ]
    Table(Core, NUMBERS[0], ruled("[[tolerance]]\nafter = 'time='\nlength = 1")).play(rows)


# ------------------------------------------------------------------ any conversation

HEAD, VALUE = b"\r\nDate: ", 12
RULE = ToleranceRule("date", HEAD, VALUE)


def with_dates(conversation: Conversation, seed: int, beyond: bool = False) -> Conversation:
    """Each stream has values at some places that are another on each side; `beyond`: one byte more than may be."""
    dice = seeded(seed)
    places: dict[Path, list[int]] = {}
    for c in conversation.connections:
        starts = range(dice.pick(0, 9), max(len(c.stream) - 24, 1), dice.pick(24, 60))
        places[c.path] = [start for start in starts if c.opened]

    def change(sent: Sent) -> Sent:
        if not isinstance(sent, Tcp):
            return sent
        payload = bytearray(sent.payload)
        for place in places.get(sent.connection.path, []):
            value = bytes(48 + (place + i * 3 + 5 * sent.side) % 60 for i in range(VALUE + beyond))
            for at, byte in enumerate(HEAD + value + b"\r\n"[beyond:], place):
                if sent.start <= at < sent.end:
                    payload[at - sent.start] = byte
        return sent.with_payload(bytes(payload))

    return conversation.alter(change)


def test_values_that_differ_never_diverge_however_cut_reordered_or_repeated() -> None:
    config = Config(rules=Rules(tolerances=(RULE,)))
    tolerated = 0
    for seed in seeds(50):
        conversation = with_dates(make_conversation(seeded(seed), 3, 1), seed)
        core = Core(config)
        run = Run(core, Oracle(config))
        try:
            run.play(conversation.schedule())
            assert not run.oracle.divergences
            assert not run.held
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
        tolerated += core.comparator.counters().tolerated
    assert tolerated > 100


def test_a_byte_behind_the_value_always_diverges() -> None:
    config = Config(rules=Rules(tolerances=(RULE,)))
    diverged = 0
    for seed in seeds(40):
        conversation = with_dates(make_conversation(seeded(seed), 2, 1), seed, beyond=True)
        run = Run(Core(config), Oracle(config)).play(conversation.schedule())
        diverged += len(run.oracle.divergences)
        for event in run.oracle.divergences:
            behind = event.primary[: event.context][-VALUE - len(HEAD) : -VALUE]
            assert behind == HEAD or event.context < VALUE + len(HEAD)
    assert diverged > 10


def test_safety_with_checkpoints_and_in_chaos() -> None:
    for seed in seeds(50):
        conversation = with_dates(make_conversation(seeded(seed)), seed, beyond=seed % 4 == 0)
        config = Config(keep_gap=conversation.keep_gap, rules=Rules(tolerances=(RULE,)))
        chaos = Config(rules=Rules(tolerances=(ToleranceRule("any", make_text(seed), 1 + seed % 9),)))
        try:
            Run(Core(config), Oracle(config)).play(conversation.schedule())
            Run(Core(chaos), Oracle(chaos, live=False)).play(make_chaos(seeded(seed)))
            Run(Core(chaos), Oracle(chaos, strict=False)).play(make_garbage(seeded(seed)))
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise


def make_text(seed: int) -> bytes:
    """Four printable bytes in a row of chaos.py's stream."""
    from conversation import text

    stream = text(1, 24) + text(2, 24)
    found = [stream[i : i + 4] for i in range(len(stream) - 4) if all(32 <= byte < 127 for byte in stream[i : i + 4])]
    return found[seed % len(found)] if found else b"none"


# ------------------------------------------------------------------ counters, mistakes, the real thing


def test_counters_and_the_event() -> None:
    rules = parse_rules("[[tolerance]]\nafter = 'none'\nlength = 1\n[[tolerance]]\nafter = 'time='\nlength = 2")
    comparator = Comparator(rules=rules)
    comparator.commit(0, 0)
    for now in range(1, 6):
        comparator.feed(Side.PRIMARY, [wire.udp(Path(), b"a time=11")], now)
        comparator.feed(Side.SECONDARY, [wire.udp(Path(), b"a time=12")], now)
    (event,) = comparator.events()
    assert isinstance(event, Tolerated)
    assert (event.rule, event.offset, event.context) == (1, 8, 8)
    assert (event.primary, event.secondary) == (b"a time=11", b"a time=12")
    counters = comparator.counters()
    assert (counters.tolerated, counters.tolerated_by[:3]) == (5, (0, 5, 0))


def test_a_flow_in_the_place_of_another_has_its_own_rules() -> None:
    comparator = Comparator(rules=parse_rules("[[tolerance]]\nafter = 'time='\nlength = 1\nvm_port = 53"), max_flows=2)
    comparator.commit(0, 0)
    for now, port in enumerate((53, 54, 55, 56, 53, 57, 58), 1):
        comparator.feed(Side.PRIMARY, [wire.udp(Path(sport=port), b"time=1")], now)
        comparator.feed(Side.SECONDARY, [wire.udp(Path(sport=port), b"time=2")], now)
        released = any(isinstance(action, Released) for action in comparator.actions())
        assert released == (port == 53)
        comparator.commit(now + 1, now + 1)
        comparator.actions()


BAD = {
    "no text": ("length = 3", "rules:1: [[tolerance]] 1: after is missing"),
    "no length": ("after = 'time='", "rules:1: [[tolerance]] 1: length is missing: a number of bytes (1 to 256)"),
    "a text too short": ("after = 'abc'\nlength = 1", "rules:2: [[tolerance]] 1: after = \"abc\": not 4 to 64"),
    "a text of line ends": ("after = \"\\r\\n\\r\\n\"\nlength = 1", "rules:2: "),
    "a binary text": ("after = \"abcd\\u0001\"\nlength = 1", "rules:2: "),
    "a text that is not ASCII": ("after = 'größe='\nlength = 1", "rules:2: "),
    "a text too long": (f"after = '{'a' * 65}'\nlength = 1", "rules:2: "),
    "a length of 0": ("after = 'time='\nlength = 0", "rules:3: [[tolerance]] 1: length = 0: not a number"),
    "a length too high": ("after = 'time='\nlength = 257", "rules:3: "),
    "an end of two": ("after = 'time='\nlength = 2\nuntil = 'ab'", "rules:4: [[tolerance]] 1: until = "),
    "a binary end": ("after = 'time='\nlength = 2\nuntil = \"\\u0000\"", "rules:4: "),
    "an action": ("after = 'time='\nlength = 2\naction = 'pass'", "rules:4: [[tolerance]] 1: action: unknown key"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_mistake_is_told_with_its_place(what: str) -> None:
    text, error = BAD[what]
    with pytest.raises(RulesError) as caught:
        parse_rules(f"[[tolerance]]\n{text}")
    assert str(caught.value).startswith(error)


@pytest.mark.parametrize(
    "rule",
    [
        ToleranceRule("no text", b"", 1),
        ToleranceRule("binary", b"abc\x00", 1),
        ToleranceRule("line ends", b"abc\r\n", 1),
        ToleranceRule("no length", b"time=", 0),
        ToleranceRule("too much", b"time=", 257),
        ToleranceRule("binary end", b"time=", 1, until=7),
    ],
    ids=lambda rule: rule.name,
)
def test_the_core_refuses_what_makes_no_sense(rule: ToleranceRule) -> None:
    with pytest.raises(MisuseError):
        Comparator(rules=Rules(tolerances=(rule,)))


def test_too_many() -> None:
    many = (ToleranceRule("x", b"time=", 1),) * 33
    with pytest.raises(MisuseError):
        Comparator(rules=Rules(tolerances=many))
    with pytest.raises(RulesError, match=r"33 .*32 at most"):
        parse_rules("[[tolerance]]\nafter = 'time='\nlength = 1\n" * 33)


@contextmanager
def http_server(date: str) -> Iterator[int]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(timestamp) if timestamp is not None else date

        def log_message(self, *_: object) -> None:
            pass

    def make(*arguments: object) -> Handler:
        return Handler(*arguments, directory=str(DOCUMENT.parent))  # type: ignore[arg-type]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), make) as server:  # type: ignore[arg-type]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def fetch(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /rules.md HTTP/1.1\r\nHost: vm\r\nConnection: close\r\n\r\n")
        out = b""
        while part := client.recv(65536):
            out += part
    return out


def test_two_real_answers_that_differ_in_their_date() -> None:
    """Two HTTP servers of Python's, a second apart; with the rule that docs/rules.md has for it, and without."""
    with http_server("Tue, 24 Nov 2026 12:00:07 GMT") as one, http_server("Tue, 24 Nov 2026 12:00:08 GMT") as other:
        answers = [fetch(one), fetch(other)]
    assert answers[0] != answers[1]
    assert DOCUMENT.read_bytes() in answers[0]
    example = DOCUMENT.read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0]
    for rules, kinds in ((parse_rules(example), [Tolerated]), (Rules(), [Divergence])):
        comparator = Comparator(rules=rules)
        comparator.commit(0, 0)
        for side, size in ((Side.PRIMARY, 1448), (Side.SECONDARY, 536)):
            frames = [wire.tcp(Path(), 99, 9, wire.SYN | wire.ACK)]
            frames += [wire.tcp(Path(), 100 + at, 9, wire.ACK, answers[side][at : at + size])
                       for at in range(0, len(answers[side]), size)]  # fmt: skip
            comparator.feed(side, frames, 1 + side)
        actions, events = comparator.actions(), comparator.events()
        assert [type(event) for event in events][:1] == kinds
        released = b"".join(action.data[54:] for action in actions if isinstance(action, Released))
        if rules.tolerances:
            assert answers[0] == released[-len(answers[0]) :]
            assert not comparator.counters().held_frames[0]
        else:
            assert len(released) < len(answers[0])
        assert any(isinstance(action, Discarded) for action in actions)


def test_load_the_documented_example(tmp_path: FilePath) -> None:
    example = DOCUMENT.read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0]
    (tmp_path / "rules.toml").write_text(example, encoding="utf-8")
    rules = load_rules(tmp_path / "rules.toml")
    assert rules.tolerances
    assert rules.policies
