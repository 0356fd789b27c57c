# SPDX-License-Identifier: Apache-2.0
"""The hello without I/O: tables of what each side says to what comes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coloproxy import errors
from coloproxy.path.hello import (
    MAX_HELLO,
    Agreement,
    LinkState,
    Nic,
    PrimaryHello,
    Refusal,
    SecondaryHello,
    Step,
    Us,
    encode,
    new_session,
)
from coloproxy.path.refusals import Kind

NICS = (Nic("net0", 1500, True), Nic("net1", 9000, False))
PRIMARY = Us("web", "vm1", "primary", NICS)
SECONDARY = Us("web", "vm1", "secondary", NICS)
OLD = "0" * 31 + "a"
NEW = "0" * 31 + "b"
FRESH = LinkState(None, 0, lambda _: False)


def state(session: str | None = OLD, received: int = 700, kept: range = range(100, 200)) -> LinkState:
    return LinkState(session, received, kept.__contains__)


def secondary(us: Us = SECONDARY) -> SecondaryHello:
    known = {(us.pair, us.vm): us}
    return SecondaryHello(lambda pair, vm: known.get((pair, vm)), lambda: frozenset({us.pair}))


def decode(data: bytes) -> dict[str, Any]:
    assert int.from_bytes(data[:4]) == len(data) - 4
    result: dict[str, Any] = json.loads(data[4:])
    return result


def feed(machine: PrimaryHello | SecondaryHello, data: bytes, piece: int = MAX_HELLO + 4) -> Step:
    """Gives `data` as it is asked for; all but the last step say nothing."""
    while True:
        n = min(machine.want, piece, len(data))
        assert n
        step, data = machine.feed(data[:n]), data[n:]
        if not data or step != Step():
            assert not data
            return step


def primary_says(**changes: object) -> bytes:
    message = decode(PrimaryHello(PRIMARY, FRESH).start())
    message.update(changes)
    return encode({key: value for key, value in message.items() if value != "absent"})


# ------------------------------------------------------------------ agreement


@pytest.mark.parametrize("piece", [1, 3, MAX_HELLO])
@pytest.mark.parametrize(
    ("ours", "theirs", "resumed", "primary_from", "secondary_from"),
    [
        pytest.param(FRESH, FRESH, False, 0, 0, id="both new"),
        pytest.param(state(received=150), state(received=160), True, 160, 150, id="both can go on"),
        pytest.param(state(received=150), state(NEW, received=160), False, 0, 0, id="other session"),
        pytest.param(FRESH, state(received=160), False, 0, 0, id="the primary is new"),
        pytest.param(state(received=150), FRESH, False, 0, 0, id="the secondary is new"),
        pytest.param(state(received=99), state(received=160), False, 0, 0, id="the secondary has let go of it"),
        pytest.param(state(received=150), state(received=99), False, 0, 0, id="the primary has let go of it"),
    ],
)
def test_agreement(
    ours: LinkState, theirs: LinkState, resumed: bool, primary_from: int, secondary_from: int, piece: int
) -> None:
    p, s = PrimaryHello(PRIMARY, ours, lambda: "f" * 32), secondary()
    asked = feed(s, p.start(), piece)
    assert asked == Step(asked=SECONDARY)
    decided = feed(p, s.answer(theirs), piece)
    session = OLD if resumed else "f" * 32
    assert decided.agreement == Agreement(session, resumed, primary_from)
    assert feed(s, decided.send, piece) == Step(agreement=Agreement(session, resumed, secondary_from))


def test_bytes_of_the_hello() -> None:
    message = decode(PrimaryHello(PRIMARY, state()).start())
    assert message == {
        "coloproxy": 1,
        "software": "0.1.0",
        "pair": "web",
        "vm": "vm1",
        "role": "primary",
        "session": OLD,
        "received": 700,
        "nics": [
            {"name": "net0", "mtu": 1500, "vnet_hdr": True},
            {"name": "net1", "mtu": 9000, "vnet_hdr": False},
        ],
    }


def test_sessions_are_random() -> None:
    sessions = {new_session() for _ in range(100)}
    assert len(sessions) == 100
    assert all(len(bytes.fromhex(name)) == 16 for name in sessions)


def test_no_byte_behind_the_hello_is_wanted() -> None:
    p, s = PrimaryHello(PRIMARY, FRESH), secondary()
    feed(s, p.start())
    decision = feed(p, s.answer(FRESH)).send
    data = decision + b"the link's"
    taken = 0
    while True:
        n = s.want
        step = s.feed(data[taken : taken + n])
        taken += n
        if step != Step():
            break
    assert data[taken:] == b"the link's"
    with pytest.raises(errors.MisuseError):
        secondary().feed(b"12345")


# -------------------------------------------------------------------- refusals

WRONG_TYPES = "a hello that is wrong: "


@pytest.mark.parametrize(
    ("message", "kind", "text"),
    [
        (primary_says(coloproxy=2), Kind.VERSION, "link protocol 2 on one side, 1 on the other"),
        (primary_says(coloproxy=2, vm="absent"), Kind.VERSION, "link protocol 2 on one side, 1 on the other"),
        (primary_says(coloproxy=True), Kind.MALFORMED, "not a hello of coloproxy's"),
        (primary_says(coloproxy="absent"), Kind.MALFORMED, "not a hello of coloproxy's"),
        (primary_says(pair="mail"), Kind.PAIR, "the secondary has no pair 'mail'"),
        (primary_says(vm="vm2"), Kind.VM, "the secondary has no VM 'vm2' in pair 'web'"),
        (primary_says(vm="vm\n2"), Kind.VM, r"the secondary has no VM 'vm\n2' in pair 'web'"),
        (primary_says(role="secondary"), Kind.ROLE, "both sides are secondary"),
        (primary_says(role="boss"), Kind.MALFORMED, WRONG_TYPES + "role: Input should be 'primary' or 'secondary'"),
        (
            primary_says(nics=[]),
            Kind.NICS,
            "NICs differ: secondary 'net0' (mtu 1500, vnet_hdr on), 'net1' (mtu 9000, vnet_hdr off), primary none",
        ),
        (
            primary_says(nics=[{"name": "net0", "mtu": 1400, "vnet_hdr": True}]),
            Kind.NICS,
            "NICs differ: secondary 'net0' (mtu 1500, vnet_hdr on), 'net1' (mtu 9000, vnet_hdr off), "
            "primary 'net0' (mtu 1400, vnet_hdr on)",
        ),
        (
            primary_says(nics=[{"name": "net0", "mtu": "1400", "vnet_hdr": True}]),
            Kind.MALFORMED,
            WRONG_TYPES + "nics.0.mtu: Input should be a valid integer",
        ),
        (
            primary_says(received=-1),
            Kind.MALFORMED,
            WRONG_TYPES + "received: Input should be greater than or equal to 0",
        ),
        (
            primary_says(received=2**64),
            Kind.MALFORMED,
            WRONG_TYPES + "received: Input should be less than 18446744073709551616",
        ),
        (primary_says(received="absent"), Kind.MALFORMED, WRONG_TYPES + "received: Field required"),
        (
            primary_says(session="abc"),
            Kind.MALFORMED,
            WRONG_TYPES + "session: String should match pattern '^[0-9a-f]{32}$'",
        ),
        (
            primary_says(session=OLD + "\n"),
            Kind.MALFORMED,
            WRONG_TYPES + "session: String should match pattern '^[0-9a-f]{32}$'",
        ),
        (encode({"refused": "no\x1b[31m"}), Kind.BY_PEER, "no?[31m"),
        (encode({"refused": {"a": 1}}), Kind.BY_PEER, "{'a': 1}"),
        (b"\0\0\0\0", Kind.MALFORMED, "a hello that is no JSON"),
        (b"\0\0\0\1{", Kind.MALFORMED, "a hello that is no JSON"),
        (b"\0\0\0\2\xff\xff", Kind.MALFORMED, "a hello that is no JSON"),
        (b"\0\0\0\2[]", Kind.MALFORMED, "a hello that is no JSON object"),
        (b"\0\0\x10\0" + b"[" * 4096, Kind.MALFORMED, "a hello that is no JSON"),
        (b"\0\0\x10\0" + b"9" * 4096, Kind.MALFORMED, "a hello that is no JSON object"),
        (b"\0\0\x10\1", Kind.OVERSIZE, "a hello of 4097 bytes; 4096 are the limit"),
        (b"GET ", Kind.OVERSIZE, "a hello of 1195725856 bytes; 4096 are the limit"),
        (b"\x16\x03\x01\x02", Kind.PLAIN, "the peer speaks TLS, this side plain text"),
    ],
)
@pytest.mark.parametrize("piece", [1, MAX_HELLO])
def test_the_secondary_refuses(message: bytes, kind: Kind, text: str, piece: int) -> None:
    step = feed(secondary(), message, piece)
    assert step.refusal == Refusal(kind, text)
    assert step.asked is None
    assert step.agreement is None
    told = kind not in (Kind.BY_PEER, Kind.PLAIN)
    assert step.send == (encode({"refused": text}) if told else b"")
    if told:  # and the primary logs the same words
        assert feed(PrimaryHello(PRIMARY, FRESH), step.send).refusal == Refusal(Kind.BY_PEER, text[:200])


@pytest.mark.parametrize(
    ("us", "kind", "text"),
    [
        (Us("mail", "vm1", "secondary", NICS), Kind.PAIR, "pair 'mail' on one side, 'web' on the other"),
        (Us("web", "vm2", "secondary", NICS), Kind.VM, "VM 'vm2' on one side, 'vm1' on the other"),
        (Us("web", "vm1", "primary", NICS), Kind.ROLE, "both sides are primary"),
    ],
)
def test_the_primary_refuses(us: Us, kind: Kind, text: str) -> None:
    step = feed(PrimaryHello(PRIMARY, FRESH), PrimaryHello(us, FRESH).start())
    assert step == Step(encode({"refused": text}), refusal=Refusal(kind, text))


@pytest.mark.parametrize(
    ("message", "kind", "text"),
    [
        ({}, Kind.MALFORMED, "a decision must have either resume or session"),
        ({"resume": True, "session": NEW}, Kind.MALFORMED, "a decision must have either resume or session"),
        ({"resume": True}, Kind.MALFORMED, "the primary resumes what can't be resumed"),
        ({"resume": False}, Kind.MALFORMED, "a decision that is wrong: resume: Input should be True"),
        ({"session": "x"}, Kind.MALFORMED, None),
        ({"refused": "no more"}, Kind.BY_PEER, "no more"),
    ],
)
def test_a_decision_that_is_refused(message: dict[str, object], kind: Kind, text: str | None) -> None:
    s = secondary()
    feed(s, PrimaryHello(PRIMARY, state(received=99)).start())
    assert decode(s.answer(state(received=160)))["resume"] is False
    step = feed(s, encode(message))
    assert step.refusal is not None
    assert step.refusal.kind is kind
    assert text is None or step.refusal.text == text
    assert step.send == b""


def test_misuse() -> None:
    with pytest.raises(errors.MisuseError):
        secondary().answer(FRESH)
    many = tuple(Nic(f"{n:060}", 1500, True) for n in range(64))
    with pytest.raises(errors.MisuseError, match="4096 are the limit"):
        PrimaryHello(Us("web", "vm1", "primary", many), FRESH).start()
