# SPDX-License-Identifier: Apache-2.0
"""How two coloproxies meet, without I/O: who they are, and where their streams go on. docs/link.md has the bytes.

    primary                         secondary
    hello          ---------------->            who I am, my session, what I have received
                   <----------------  hello     the same, and whether I can go on from there
    decision       ---------------->            resume, or the name of a new session

Whoever refuses says why instead, so that both logs have the same words, and closes.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coloproxy import __version__
from coloproxy.errors import MisuseError

from .refusals import Kind, printable

PROTOCOL_VERSION: Final = 1
MAX_HELLO: Final = 4096  # bytes of JSON
_HEAD: Final = 4
_TLS_HANDSHAKE: Final = b"\x16\x03"  # how a TLS client's first bytes look

Role = Literal["primary", "secondary"]
_Name = Annotated[str, Field(min_length=1, max_length=64)]
_Session = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
_Offset = Annotated[int, Field(ge=0, lt=2**64)]


@dataclass(frozen=True, slots=True)
class Nic:
    """One NIC of the VM; both sides must have the same ones in the same order. mtu: bytes."""

    name: str
    mtu: int
    vnet_hdr: bool


@dataclass(frozen=True, slots=True)
class Us:
    """Who this side is, for one VM."""

    pair: str
    vm: str
    role: Role
    nics: tuple[Nic, ...]


@dataclass(frozen=True, slots=True)
class LinkState:
    """The streams as they are while nothing is connected.

    session: their name, 32 hex digits; None: there are none.
    received: colo_link_received.
    can_resume: colo_link_can_resume, for the offset that the peer asks for.
    """

    session: str | None
    received: int
    can_resume: Callable[[int], bool]


@dataclass(frozen=True, slots=True)
class Agreement:
    """What both sides now know. Not resumed: both restart their streams, and peer_received is 0."""

    session: str
    resumed: bool
    peer_received: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """kind: for counters. text: the reason, in the words that the other side logs too."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Step:
    """What follows from bytes that came: send `send`; then at most one of the others is set.

    asked: (secondary) a peer that fits us: call `answer`.
    refusal: close.
    """

    send: bytes = b""
    asked: Us | None = None
    agreement: Agreement | None = None
    refusal: Refusal | None = None


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")  # a later minor version may say more


class _Nic(_Model):
    name: _Name
    mtu: Annotated[int, Field(ge=68, le=65535)]
    vnet_hdr: bool


class _Hello(_Model):
    coloproxy: int
    software: Annotated[str, Field(max_length=64)]
    pair: _Name
    vm: _Name
    role: Role
    session: _Session | None
    received: _Offset
    nics: Annotated[list[_Nic], Field(max_length=64)]
    resume: bool = False


class _Decision(_Model):
    resume: Literal[True] | None = None
    session: _Session | None = None


class _Refused(Exception):
    """Carries a refusal out of the checks below."""

    def __init__(self, kind: Kind, text: str, *, tell: bool = True) -> None:
        super().__init__(text)
        self.refusal = Refusal(kind, text)
        self.tell = tell


def new_session() -> str:
    """A name that no other session has: 128 random bits."""
    return secrets.token_hex(16)


def encode(message: dict[str, object]) -> bytes:
    """Length and JSON. Raises MisuseError: longer than MAX_HELLO, which too many NICs may be."""
    text = json.dumps(message, separators=(",", ":")).encode()
    if len(text) > MAX_HELLO:
        raise MisuseError(f"a hello of {len(text)} bytes; {MAX_HELLO} are the limit")
    return len(text).to_bytes(_HEAD) + text


def _hello_of(us: Us, state: LinkState, **more: object) -> bytes:
    return encode(
        {
            "coloproxy": PROTOCOL_VERSION,
            "software": __version__,
            "pair": us.pair,
            "vm": us.vm,
            "role": us.role,
            "session": state.session,
            "received": state.received,
            "nics": [{"name": nic.name, "mtu": nic.mtu, "vnet_hdr": nic.vnet_hdr} for nic in us.nics],
            **more,
        }
    )


class _Reader:
    """Puts one message together. `want`: bytes still missing, as far as is known; never more than its own."""

    def __init__(self) -> None:
        self._data = b""
        self.want = _HEAD

    def feed(self, data: bytes) -> dict[str, object] | None:
        """A message, or None: more is wanted. Raises _Refused."""
        if len(data) > self.want:
            raise MisuseError(f"{len(data)} bytes, {self.want} are wanted")
        self._data += data
        if len(self._data) < _HEAD:
            self.want = _HEAD - len(self._data)
            return None
        length = int.from_bytes(self._data[:_HEAD])
        if length > MAX_HELLO:
            if self._data.startswith(_TLS_HANDSHAKE):
                raise _Refused(Kind.PLAIN, "the peer speaks TLS, this side plain text", tell=False)
            raise _Refused(Kind.OVERSIZE, f"a hello of {length} bytes; {MAX_HELLO} are the limit")
        self.want = _HEAD + length - len(self._data)
        if self.want:
            return None
        text, self._data, self.want = self._data[_HEAD:], b"", _HEAD
        return _parse(text)


def _parse(text: bytes) -> dict[str, object]:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise _Refused(Kind.MALFORMED, "a hello that is no JSON") from None
    if not isinstance(message, dict):
        raise _Refused(Kind.MALFORMED, "a hello that is no JSON object")
    if "refused" in message:
        raise _Refused(Kind.BY_PEER, printable(str(message["refused"])), tell=False)
    return message


def _validate(message: dict[str, object]) -> _Hello:
    version = message.get("coloproxy")
    if type(version) is not int:
        raise _Refused(Kind.MALFORMED, "not a hello of coloproxy's")
    if version != PROTOCOL_VERSION:
        raise _Refused(Kind.VERSION, f"link protocol {version} on one side, {PROTOCOL_VERSION} on the other")
    try:
        return _Hello.model_validate(message)
    except ValidationError as error:
        raise _Refused(Kind.MALFORMED, f"a hello that is wrong: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    one = error.errors(include_url=False, include_input=False)[0]
    return printable(f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}")


def _check_fit(us: Us, hello: _Hello) -> None:
    """Raises _Refused: the peer is not this side's other half."""
    if hello.pair != us.pair:
        raise _Refused(Kind.PAIR, printable(f"pair {hello.pair!r} on one side, {us.pair!r} on the other"))
    if hello.vm != us.vm:
        raise _Refused(Kind.VM, printable(f"VM {hello.vm!r} on one side, {us.vm!r} on the other"))
    if hello.role == us.role:
        raise _Refused(Kind.ROLE, f"both sides are {us.role}")
    theirs = tuple(Nic(nic.name, nic.mtu, nic.vnet_hdr) for nic in hello.nics)
    if theirs != us.nics:
        raise _Refused(Kind.NICS, printable(f"NICs differ: {us.role} {_list(us.nics)}, {hello.role} {_list(theirs)}"))


def _list(nics: tuple[Nic, ...]) -> str:
    words = [f"{nic.name!r} (mtu {nic.mtu}, vnet_hdr {'on' if nic.vnet_hdr else 'off'})" for nic in nics]
    return ", ".join(words) or "none"


def _refused(error: _Refused) -> Step:
    return Step(encode({"refused": error.refusal.text}) if error.tell else b"", refusal=error.refusal)


class PrimaryHello:
    """The primary's side. `start`, then feed what comes, `want` bytes at most at a time."""

    def __init__(self, us: Us, state: LinkState, make_session: Callable[[], str] = new_session) -> None:
        self._us = us
        self._state = state
        self._make_session = make_session
        self._reader = _Reader()

    @property
    def want(self) -> int:
        """Bytes to read next, at most: what is behind them belongs to the link."""
        return self._reader.want

    def start(self) -> bytes:
        """The first bytes to send."""
        return _hello_of(self._us, self._state)

    def feed(self, data: bytes) -> Step:
        """What follows from bytes that came."""
        try:
            message = self._reader.feed(data)
            if message is None:
                return Step()
            hello = _validate(message)
            _check_fit(self._us, hello)
        except _Refused as error:
            return _refused(error)
        state = self._state
        same = state.session is not None and state.session == hello.session
        if same and hello.resume and state.can_resume(hello.received):
            return Step(encode({"resume": True}), agreement=Agreement(str(state.session), True, hello.received))
        session = self._make_session()
        return Step(encode({"session": session}), agreement=Agreement(session, False, 0))


class SecondaryHello:
    """The secondary's side. Feed what comes; where a Step asks, call `answer` and send what it gives.

    find: gives this side's identity for a pair and VM; None: it has none of that name.
    """

    def __init__(self, find: Callable[[str, str], Us | None], pairs: Callable[[], frozenset[str]]) -> None:
        self._find = find
        self._pairs = pairs
        self._reader = _Reader()
        self._hello: _Hello | None = None
        self._us: Us | None = None
        self._session: str | None = None
        self._can_resume = False

    @property
    def want(self) -> int:
        """Bytes to read next, at most: what is behind them belongs to the link."""
        return self._reader.want

    def feed(self, data: bytes) -> Step:
        """What follows from bytes that came. Not between an `asked` and its `answer`."""
        try:
            message = self._reader.feed(data)
            if message is None:
                return Step()
            return self._meet(message) if self._hello is None else self._decided(message)
        except _Refused as error:
            return _refused(error)

    def answer(self, state: LinkState) -> bytes:
        """This side's hello; `state` is what it has now that an older connection is closed."""
        if self._hello is None or self._us is None:
            raise MisuseError("nobody has asked")
        same = state.session is not None and state.session == self._hello.session
        self._session = state.session
        self._can_resume = same and state.can_resume(self._hello.received)
        return _hello_of(self._us, state, resume=self._can_resume)

    def _meet(self, message: dict[str, object]) -> Step:
        hello = _validate(message)
        us = self._find(hello.pair, hello.vm)
        if us is None:
            if hello.pair not in self._pairs():
                raise _Refused(Kind.PAIR, printable(f"the secondary has no pair {hello.pair!r}"))
            raise _Refused(Kind.VM, printable(f"the secondary has no VM {hello.vm!r} in pair {hello.pair!r}"))
        _check_fit(us, hello)
        self._hello, self._us = hello, us
        return Step(asked=us)

    def _decided(self, message: dict[str, object]) -> Step:
        assert self._hello is not None
        try:
            decision = _Decision.model_validate(message)
        except ValidationError as error:
            raise _Refused(Kind.MALFORMED, f"a decision that is wrong: {_first(error)}", tell=False) from None
        if (decision.resume is None) == (decision.session is None):
            raise _Refused(Kind.MALFORMED, "a decision must have either resume or session", tell=False)
        if decision.session is not None:
            return Step(agreement=Agreement(decision.session, False, 0))
        if not self._can_resume:
            raise _Refused(Kind.MALFORMED, "the primary resumes what can't be resumed", tell=False)
        assert self._session is not None
        return Step(agreement=Agreement(self._session, True, self._hello.received))
