# SPDX-License-Identifier: Apache-2.0
"""Values of the pair's file that TOML has no type of its own for: durations, sizes, addresses, names.

Each is a marker for `Annotated`, which pydantic asks for its validator and `describe` for how to write the value. The
convention of the file: a quantity is a text with its unit, "250ms" or "32MiB"; a number without unit is a count.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any, Final

from pydantic import GetCoreSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

from coloproxy.address import UNIX_PATH_MAX, Address, parse_address
from coloproxy.errors import AddressError

MS: Final = 1_000_000
SECOND: Final = 1_000_000_000
KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

_DURATIONS: Final = {"ns": 1, "us": 1000, "ms": MS, "s": SECOND, "min": 60 * SECOND, "h": 3600 * SECOND}
_SIZES: Final = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}
_SHORT_SIZES: Final = {"K": KIB, "M": MIB, "G": GIB}  # as QEMU has them
_NUMBER: Final = re.compile(r"(\d{1,12}(?:\.\d{1,9})?) ?([A-Za-z]*)", re.ASCII)
_INTERFACE: Final = re.compile(r"[^\s/:%\x00-\x1f\x7f-\U0010ffff]{1,15}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)
_ACCOUNT: Final = re.compile(r"[a-z_][a-z0-9_-]{0,30}\$?|[0-9]{1,10}", re.ASCII)
_MAC: Final = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")


def refuse(text: str) -> PydanticCustomError:
    """The error of a validator here; `text` is told to people as it is."""
    return PydanticCustomError("coloproxy", "{text}", {"text": text})


def format_duration(ns: int) -> str:
    """`"250ms"` of 250,000,000."""
    return _format(ns, _DURATIONS, "s")


def format_size(size: int) -> str:
    """`"32MiB"` of 33,554,432."""
    return _format(size, _SIZES, "B")


def _format(value: int, units: dict[str, int], zero: str) -> str:
    if value == 0:
        return f"0{zero}"
    whole = {unit: scale for unit, scale in units.items() if value % scale == 0}
    unit = max(whole, key=whole.__getitem__)
    return f"{value // whole[unit]}{unit}"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "a text")
    return value


class _Plain:
    """A marker whose `parse` makes the value of what the file says."""

    def parse(self, value: object) -> Any:
        raise NotImplementedError

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self.parse)


@dataclass(frozen=True)
class Duration(_Plain):
    """A text such as "250ms"; the value is in ns, from `least` to `most`."""

    least: int = MS
    most: int = 24 * 3600 * SECOND

    def parse(self, value: object) -> int:
        return _quantity(value, _DURATIONS, {}, '"250ms" or "3s"', self.least, self.most, format_duration)


@dataclass(frozen=True)
class Size(_Plain):
    """A text such as "32MiB", or "32M" as QEMU has it; the value is in bytes, from `least` to `most`."""

    least: int = 1
    most: int = 1 << 40

    def parse(self, value: object) -> int:
        return _quantity(value, _SIZES, _SHORT_SIZES, '"32MiB" or "64KiB"', self.least, self.most, format_size)


def _quantity(
    value: object,
    units: dict[str, int],
    more: dict[str, int],
    example: str,
    least: int,
    most: int,
    show: Callable[[int], str],
) -> int:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise refuse(f"needs a unit: write a text such as {example}")
    found = _NUMBER.fullmatch(_text(value))
    scale = None if found is None else units.get(found[2], more.get(found[2]))
    if found is None or scale is None:
        raise refuse(f"must be a number with a unit ({', '.join(units)}), such as {example}")
    exact = Fraction(found[1]) * scale
    result = exact.numerator
    if exact.denominator != 1:
        raise refuse(f"is finer than {show(1)}")
    if not least <= result <= most:
        raise refuse(f"must be between {show(least)} and {show(most)}")
    return result


@dataclass(frozen=True)
class Count(_Plain):
    """A whole number from `least` to `most`; `octal`: that is how people write it (0o660)."""

    least: int
    most: int
    octal: bool = False

    def parse(self, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise PydanticCustomError("int_type", "a whole number")
        if not self.least <= value <= self.most:
            form = "0o{:o}" if self.octal else "{}"
            raise refuse(f"must be between {form.format(self.least)} and {form.format(self.most)}")
        return value


@dataclass(frozen=True)
class Name(_Plain):
    """A name of ours, that is safe in file names and in QEMU's options."""

    def parse(self, value: object) -> str:
        text = _text(value)
        if not _NAME.fullmatch(text):
            raise refuse("must be 1 to 63 letters, digits, '_', '.' or '-', and begin with a letter or digit")
        return text


@dataclass(frozen=True)
class Text(_Plain):
    """Any text but an empty one, on one line."""

    def parse(self, value: object) -> str:
        text = _text(value)
        if not text or not text.isprintable():
            raise refuse("must be a text of printable characters, and not empty")
        return text


@dataclass(frozen=True)
class Account(_Plain):
    """A user or a group: its name or number."""

    def parse(self, value: object) -> str:
        text = _text(value)
        if not _ACCOUNT.fullmatch(text):
            raise refuse(f"{text!r} can't be the name or number of a user or group")
        return text


@dataclass(frozen=True)
class Interface(_Plain):
    """A network interface's name, as the kernel takes it (dev_valid_name; % would make it choose a number)."""

    def parse(self, value: object) -> str:
        text = _text(value)
        if len(text) > 15:
            raise refuse(f"{text!r} is longer than the 15 characters that an interface's name may have")
        if not _INTERFACE.fullmatch(text) or text in (".", ".."):
            raise refuse(f"{text!r} can't be the name of an interface: no blanks, '/', ':' or '%', and ASCII only")
        return text


@dataclass(frozen=True)
class Namespace(_Plain):
    """A network namespace: its name below /run/netns (`ip netns`), or the absolute path of its file."""

    def parse(self, value: object) -> str:
        text = _text(value)
        if text.startswith("/"):
            path: str = FilePath().parse(text)
            return path
        if not text or "/" in text or not text.isprintable() or text in (".", ".."):
            raise refuse(f"{text!r} is neither a namespace's name (ip netns list) nor an absolute path")
        return text


@dataclass(frozen=True)
class Mac(_Plain):
    """An Ethernet address of one station; lower case."""

    def parse(self, value: object) -> str:
        text = _text(value)
        if not _MAC.fullmatch(text):
            raise refuse('must be written as "52:54:00:12:34:56"')
        if int(text[:2], 16) & 1:
            raise refuse("is a multicast address; the lowest bit of a station's first byte is 0")
        if int(text.replace(":", ""), 16) == 0:
            raise refuse("is no station's address")
        return text.lower()


@dataclass(frozen=True)
class Ip(_Plain):
    """An IPv4 or IPv6 address in its usual form, of one host."""

    def parse(self, value: object) -> str:
        text = _text(value)
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            raise refuse(f"{text!r} is no IPv4 or IPv6 address") from None
        if address.is_multicast or address.is_unspecified or getattr(address, "scope_id", None):
            raise refuse(f"{value!r} is not the address of one host")
        return str(address)


@dataclass(frozen=True)
class FilePath(_Plain):
    """An absolute path, for a daemon has no directory of its own.

    Attributes:
        socket: of a unix socket, which must be short.
        or_dash: "-" too (standard output).
    """

    socket: bool = False
    or_dash: bool = False

    def parse(self, value: object) -> str:
        text = _text(value)
        if self.or_dash and text == "-":
            return text
        if "\0" in text or not PurePosixPath(text).is_absolute() or text.endswith("/"):
            raise refuse(f"must be an absolute path{' or -' if self.or_dash else ''}, not {text!r}")
        if self.socket and len(text.encode()) > UNIX_PATH_MAX:
            raise refuse(f"is longer than the {UNIX_PATH_MAX} bytes that the path of a unix socket may have")
        return text


@dataclass(frozen=True)
class Place(_Plain):
    """An ADDR (coloproxy.address) without connect:, for the file says elsewhere who connects.

    Attributes:
        unix: whether "unix:/PATH" may be given, or "HOST:PORT" alone.
        any_host: whether the host may be left out (where one listens).
    """

    unix: bool = True
    any_host: bool = False

    def parse(self, value: object) -> Address:
        text = _text(value)
        form = '"HOST:PORT" or "unix:/PATH"' if self.unix else '"HOST:PORT"'
        if text.startswith("connect:") or (text.startswith("unix:") and not self.unix):
            raise refuse(f"must be {form}, not {text!r}")
        return _address(text, text, form, any_host=self.any_host)


@dataclass(frozen=True, slots=True)
class Endpoint(Address):
    """An address with its transport: "unix", "tcp" or "udp"."""

    scheme: str = "unix"

    def __str__(self) -> str:
        plain = Address(connect=False, host=self.host, port=self.port, path=self.path)
        return str(plain) if self.is_unix else f"{self.scheme}:{plain}"


@dataclass(frozen=True)
class EndpointText(_Plain):
    """One end of a NIC's socket, written much as QEMU does: "unix:/PATH", "tcp:HOST:PORT" or "udp:HOST:PORT"."""

    def parse(self, value: object) -> Endpoint:
        text = _text(value)
        form = '"unix:/PATH", "tcp:HOST:PORT" or "udp:HOST:PORT"'
        scheme, _, rest = text.partition(":")
        if scheme not in ("unix", "tcp", "udp") or rest.startswith("connect:"):
            raise refuse(f"must be {form}, not {text!r}")
        address = _address(text, text if scheme == "unix" else rest, form, any_host=False)
        return Endpoint(connect=False, host=address.host, port=address.port, path=address.path, scheme=scheme)


def _address(text: str, bare: str, form: str, *, any_host: bool) -> Address:
    if bare.startswith("unix:"):
        return Address(connect=False, path=FilePath(socket=True).parse(bare.removeprefix("unix:")))
    try:
        address = parse_address(bare, may_listen=any_host)
    except AddressError as error:
        why = str(error).removeprefix(f"ADDR: {bare!r}: ").partition(" (use ")[0]
        raise refuse(f"{text!r}: {why}; write {form}") from error
    if address.port == 0:
        raise refuse(f"{text!r}: port 0 is no port that the other side could know")
    return Address(connect=False, host=address.host, port=address.port)
