# SPDX-License-Identifier: Apache-2.0
"""The heartbeat's datagrams, without I/O. docs/heartbeat.md has the bytes.

A key for each host is derived from the pair's pre-shared key, so what host a has signed never passes for host b's: a
message sent back to where it came from is refused, as is one of another pair with the same pre-shared key. The path's
number is signed too, so a message of one path is none of another's.

Source: HMAC is RFC 2104, as a key derivation RFC 5869 (one block, the extraction left out: the key is a random one).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, NoReturn

from coloproxy.errors import LimitError, MisuseError

VERSION: Final = 1
STATE_MAX: Final = 1024  # bytes of JSON
NONCE: Final = 16  # bytes
BOOT: Final = 8  # bytes
MAX_PATHS: Final = 16
PSK_LEAST: Final = 16  # bytes

Host = Literal["a", "b"]

_MAGIC: Final = b"cpHB"
_TAG: Final = 8
_MAC: Final = 32
_HEAD: Final = struct.Struct(f"!4sBcBx{_TAG}s{BOOT}sQ{NONCE}s{NONCE}sQQQQQH")
MESSAGE_MAX: Final = _HEAD.size + STATE_MAX + _MAC
_LEAST: Final = _HEAD.size + _MAC
_TOP: Final = 2**64 - 1


class Reason(StrEnum):
    """Why a datagram was refused; in the order in which it is looked at. Up to FORGED anybody can have sent it."""

    MALFORMED = "malformed"  # too short, too long, or no heartbeat at all
    VERSION = "version"
    PAIR = "pair"
    REFLECTED = "reflected"  # it says to be of our own host
    PATH = "path"  # it belongs to another path of the pair
    FORGED = "forged"  # the signature doesn't fit: another key, or a forgery
    OLD_BOOT = "old-boot"  # a process of the peer's that has been replaced by a newer one
    REPLAY = "replay"  # seen before, or too old to tell
    UNPROVEN = "unproven"  # it has not (yet) echoed our nonce; answered by a challenge
    STATE = "state"  # no JSON object


@dataclass(frozen=True, slots=True)
class Refusal:
    """text: the reason, in words that an operator can act on."""

    reason: Reason
    text: str


@dataclass(frozen=True, slots=True)
class Message:
    """One heartbeat.

    boot: of the sender's process, random. seq: from 1, per boot and path.
    nonce: the sender's challenge on this path; echo: the challenge that it answers, or zeros.
    sent: the sender's clock. echo_sent: `sent` of the last message that it had on this path, 0: none; it had that for
        echo_held when this one was sent. interval: between its beats. All in ns.
    number: of its state, grows with each change. state: JSON.
    """

    path: int
    boot: bytes
    seq: int
    nonce: bytes
    echo: bytes
    sent: int
    echo_sent: int
    echo_held: int
    interval: int
    number: int
    state: bytes


class Codec:
    """Signs our messages, and opens the peer's. Immutable."""

    def __init__(self, psk: bytes, pair: str, host: Host) -> None:
        """psk: the pair's key as coloproxy.path.tls.read_psk gives it. Raises MisuseError."""
        if host not in ("a", "b"):
            raise MisuseError(f"host {host!r}: it must be a or b")
        if len(psk) < PSK_LEAST:
            raise MisuseError(f"a pre-shared key of {len(psk)} bytes; {PSK_LEAST} are the least")
        if not pair:
            raise MisuseError("the pair has no name")
        self._pair = pair
        self._us, self._them = (b"a", b"b") if host == "a" else (b"b", b"a")
        self._tag = hashlib.sha256(pair.encode()).digest()[:_TAG]
        self._own_key, self._peer_key = (_derive(psk, pair, name) for name in (self._us, self._them))

    def seal(self, m: Message) -> bytes:
        """The datagram."""
        body = (
            _HEAD.pack(
                _MAGIC,
                VERSION,
                self._us,
                m.path,
                self._tag,
                m.boot,
                m.seq,
                m.nonce,
                m.echo,
                m.sent,
                m.echo_sent,
                min(m.echo_held, _TOP),
                m.interval,
                m.number,
                len(m.state),
            )
            + m.state
        )
        return body + hmac.digest(self._own_key, body, "sha256")

    def open(self, data: bytes, path: int) -> Message | Refusal:
        """A message of the peer's that came on `path`. Cheap things are looked at first; the signature is one HMAC."""
        if len(data) < _LEAST or len(data) > MESSAGE_MAX or not data.startswith(_MAGIC):
            # A later version may be of any length, and must be told as what it is.
            if data.startswith(_MAGIC) and len(data) > len(_MAGIC) and data[len(_MAGIC)] != VERSION:
                return self._version(data[len(_MAGIC)])
            return Refusal(Reason.MALFORMED, f"{len(data)} bytes that are no heartbeat")
        _, version, host, number, tag, *fields, length = _HEAD.unpack_from(data)
        if version != VERSION:
            return self._version(version)
        if tag != self._tag:
            return Refusal(Reason.PAIR, f"a heartbeat of another pair than {self._pair!r}; is the address right?")
        if host == self._us:
            name = self._us.decode()
            return Refusal(Reason.REFLECTED, f"a heartbeat of host {name}, which is us; are both hosts called {name}?")
        if host != self._them or length != len(data) - _LEAST:
            return Refusal(Reason.MALFORMED, "a heartbeat that is wrong in itself")
        if number != path:
            text = f"a heartbeat of path {number} on path {path}; the paths must be listed alike on both hosts"
            return Refusal(Reason.PATH, text)
        body = memoryview(data)[:-_MAC]
        if not hmac.compare_digest(hmac.digest(self._peer_key, body, "sha256"), data[-_MAC:]):
            return Refusal(Reason.FORGED, "the signature doesn't fit; do both hosts have the same pre-shared key?")
        state = data[_HEAD.size : -_MAC]
        boot, seq, nonce, echo, sent, echo_sent, echo_held, interval, state_number = fields
        return Message(number, boot, seq, nonce, echo, sent, echo_sent, echo_held, interval, state_number, state)

    def _version(self, theirs: int) -> Refusal:
        return Refusal(Reason.VERSION, f"heartbeat version {theirs} on the other side, {VERSION} on this one")


def _derive(psk: bytes, pair: str, host: bytes) -> bytes:
    return hmac.digest(psk, b"coloproxy heartbeat 1\0" + host + b"\0" + pair.encode(), "sha256")


def encode_state(state: Mapping[str, object]) -> bytes:
    """JSON of a state. Raises MisuseError: it can't be JSON; LimitError: longer than STATE_MAX bytes."""
    try:
        text = json.dumps(dict(state), separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise MisuseError(f"a state that can't be sent: {error}") from error
    if len(text) > STATE_MAX:
        raise LimitError(f"a state of {len(text)} bytes; {STATE_MAX} are the limit")
    return text


def decode_state(text: bytes) -> dict[str, object] | None:
    """The JSON object, or None: it is none. At most STATE_MAX bytes, so of bounded cost."""
    try:
        state = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return state if isinstance(state, dict) else None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)
