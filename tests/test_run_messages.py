# SPDX-License-Identifier: Apache-2.0
"""The control planes' messages: as they are written, and what of a hostile peer's is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coloproxy.errors import PeerError
from coloproxy.run.messages import Message, decode, encode

WRITTEN = [
    (Message("sync", number=(1 << 63) - 1), {"kind": "sync", "token": (1 << 63) - 1}),
    (Message("epoch", number=0), {"kind": "epoch", "number": 0}),
    (Message("alone", text="the link is down"), {"kind": "alone", "reason": "the link is down"}),
    (Message("lost-track", text=""), {"kind": "lost-track", "reason": ""}),
    (Message("took-over", text="ö\n"), {"kind": "took-over", "reason": "ö\n"}),
    (Message("left-out", text="nic0, TAP"), {"kind": "left-out", "place": "nic0, TAP"}),
]


@pytest.mark.parametrize(("message", "fields"), WRITTEN, ids=[message.kind for message, _ in WRITTEN])
def test_written_and_read(message: Message, fields: dict[str, object]) -> None:
    data = encode(message)
    assert json.loads(data) == fields
    assert decode(data) == message
    assert decode(json.dumps({**fields, "later": [1]}).encode()) == message  # of a newer version


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\xff\xfe",
        b"{",
        b"null",
        b"17",
        b'"sync"',
        b"[]",
        b"{}",
        b'{"kind": "sync"}',
        b'{"kind": "Sync", "token": 1}',
        b'{"kind": null, "token": 1}',
        b'{"kind": ["sync"], "token": 1}',
        b'{"kind": {"sync": 1}, "token": 1}',
        b'{"kind": "sync", "token": "1"}',
        b'{"kind": "sync", "token": true}',
        b'{"kind": "sync", "token": 1.0}',
        b'{"kind": "sync", "token": -1}',
        b'{"kind": "sync", "token": 18446744073709551616}',
        b'{"kind": "sync", "token": NaN}',
        b'{"kind": "sync", "token": ' + b"9" * 5000 + b"}",
        b'{"kind": "sync", "number": 1}',
        b'{"kind": "alone", "reason": 1}',
        b'{"kind": "alone", "reason": null}',
        b'{"kind": "alone", "text": "x"}',
        b'{"kind": "took-over"}',
        b"[" * 60000,
        b'{"kind":' * 9000,
    ],
    ids=lambda data: repr(data[:45]),
)
def test_refused(data: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        decode(data)
    assert len(str(caught.value)) < 400  # it goes into a log


def test_every_cut() -> None:
    for message, _ in WRITTEN:
        data = encode(message)
        for cut in range(len(data)):
            with pytest.raises(PeerError):
                decode(data[:cut])


def test_texts_are_bounded_both_ways() -> None:
    long = "x" * 100_000
    assert len(encode(Message("alone", text=long))) < 600
    assert len(decode(json.dumps({"kind": "alone", "reason": long}).encode()).text) == 500


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    try:
        message = decode(data)
    except PeerError:
        return
    assert decode(encode(message)) == message


@given(st.sampled_from(["alone", "lost-track", "took-over", "left-out"]), st.text(max_size=700))
def test_any_text(kind: str, text: str) -> None:
    assert decode(encode(Message(kind, text=text))).text == text[:500]
