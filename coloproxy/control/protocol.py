# SPDX-License-Identifier: Apache-2.0
"""What is said on the control socket, without the socket. docs/control.md is for people.

One JSON object a line, UTF-8, each request answered in order by one line::

    {"command": "status", "arguments": {}}
    {"return": {"pair": "web", ...}}
    {"error": {"class": "unknown-command", "text": "there is no command ..."}}

A line that is no request is answered by an error too; only one that is too long, or no UTF-8, ends the connection,
because it can't be told where the next one begins.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from coloproxy.errors import ControlError, ControlRefused

MAX_REQUEST: Final = 64 << 10
"""Bytes of a request's line, its end not counted."""
MAX_ANSWER: Final = 4 << 20
"""Bytes of an answer's: a status of many VMs and NICs is long."""
MAX_WAIT_S: Final = 86400

# Classes of errors
PROTOCOL: Final = "protocol"  # the line is no request
UNKNOWN_COMMAND: Final = "unknown-command"
ARGUMENTS: Final = "arguments"  # the command doesn't take these
REFUSED: Final = "refused"  # not possible now
FAILED: Final = "failed"  # tried, and it did not work
BUSY: Final = "busy"  # too many connections
INTERNAL: Final = "internal"  # a mistake of coloproxy's; its log has more


@dataclass(frozen=True, slots=True)
class Request:
    """A command and its arguments."""

    command: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The line, with its end. Raises ControlError: too long."""
        return _line({"command": self.command, "arguments": dict(self.arguments)}, MAX_REQUEST)


class Lines:
    """Cuts what comes from a connection into lines of at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are whole now, without their ends. Raises ControlError: a line is too long."""
        searched = len(self._kept)
        self._kept += data
        lines = []
        start = 0
        while (end := self._kept.find(b"\n", max(start, searched))) >= 0:
            self._check(end - start)
            lines.append(bytes(self._kept[start:end]))
            start = end + 1
        del self._kept[:start]
        self._check(len(self._kept))
        return lines

    def _check(self, length: int) -> None:
        if length > self._limit:
            raise ControlError(f"a line is longer than {self._limit} bytes")


def wait_of(arguments: Mapping[str, Any]) -> float | None:
    """`wait_s` of a command's arguments: for how long what was asked for is waited for, s. None: it is not.

    Raises ControlRefused: it is no such number.
    """
    wait = arguments.get("wait_s")
    if wait is None:
        return None
    if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait <= MAX_WAIT_S:
        raise ControlRefused(ARGUMENTS, f"wait_s is a number of seconds from 0 to {MAX_WAIT_S}, not {wait!r:.40}")
    return float(wait)


def parse_request(line: bytes, known: Collection[str]) -> Request:
    """The request in a line, if its command is one of `known`. Raises ControlRefused: what to answer."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ControlRefused(PROTOCOL, f"the line is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise ControlRefused(PROTOCOL, "the line is no JSON object")
    command, arguments = document.pop("command", None), document.pop("arguments", {})
    if not isinstance(command, str):
        raise ControlRefused(PROTOCOL, 'a request needs "command", a text')
    if not isinstance(arguments, dict):
        raise ControlRefused(PROTOCOL, '"arguments" must be an object')
    if document:
        raise ControlRefused(PROTOCOL, f'a request has "command" and "arguments" only, not {min(document)!r}')
    if command not in known:
        raise ControlRefused(
            UNKNOWN_COMMAND, f"there is no command {command[:100]!r}; there are {', '.join(sorted(known))}"
        )
    return Request(command, arguments)


def encode_return(value: object) -> bytes:
    """The line of an answer. Raises ControlError: too long, or no JSON."""
    return _line({"return": value}, MAX_ANSWER)


def encode_error(kind: str, text: str) -> bytes:
    """The line of an answer that is an error."""
    return _line({"error": {"class": kind, "text": text[:4000]}}, MAX_ANSWER)


def parse_answer(line: bytes) -> Any:
    """What is returned. Raises ControlRefused for an error, ControlError for what is no answer."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ControlError(f"the answer is no JSON: {error}") from error
    if isinstance(document, dict) and set(document) == {"return"}:
        return document["return"]
    if isinstance(document, dict) and set(document) == {"error"} and isinstance(document["error"], dict):
        error_ = document["error"]
        raise ControlRefused(str(error_.get("class", FAILED)), str(error_.get("text", "")))
    raise ControlError('the answer has neither "return" nor "error"')


def _line(document: object, limit: int) -> bytes:
    try:
        line = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ControlError(f"can't be said in JSON: {error}") from error
    if len(line) > limit:
        raise ControlError(f"a line of {len(line)} bytes is longer than {limit}")
    return line + b"\n"
