# SPDX-License-Identifier: Apache-2.0
"""The operator's rules: which flows are compared, and how. docs/rules.md explains the file.

A file that has a mistake is refused as a whole. Errors name the file, the line where it can be told, the rule and the
key::

    rules.toml:7: [[policy]] 2 "quic": vm_port = "high": not a port (0 to 65535) or a range such as "8000-8099"
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from coloproxy._native import ffi, lib
from coloproxy.errors import RulesError
from coloproxy.events import FrameClass

__all__ = [
    "NO_RULES",
    "Match",
    "Policy",
    "PolicyRule",
    "Prefix",
    "Rules",
    "ToleranceRule",
    "fill_rules",
    "load_rules",
    "parse_rules",
    "rules_document",
    "rules_from_document",
]

Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network

PROTOCOLS: Final = {
    "icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "gre": 47, "esp": 50, "ah": 51, "icmp6": 58, "ospf": 89, "vrrp": 112,
    "sctp": 132, "udplite": 136,
}  # fmt: skip
"""Names for IP protocol numbers (IANA's); every other one can be given as a number."""


class Policy(IntEnum):
    """What is done with a flow's frames; values as in ``enum colo_policy``."""

    COMPARE = 0
    PASS = 1
    DROP_SECONDARY = 2

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True, slots=True)
class Match:
    """Which flows a rule is about: those that fit in every field that is not None.

    Attributes:
        classes: frame classes, any of them.
        protocol: IP protocol number.
        vm_port, client_port: first and last port, both included; TCP and UDP only.
        vm, client: prefixes of the VM's and the client's address; ``client`` may be a multicast group.
        vlan: one of the frame's VLAN ids.
    """

    classes: frozenset[FrameClass] | None = None
    protocol: int | None = None
    vm_port: tuple[int, int] | None = None
    client_port: tuple[int, int] | None = None
    vm: Prefix | None = None
    client: Prefix | None = None
    vlan: int | None = None


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """The flows of ``match`` are treated by ``action``, unless an earlier rule says something."""

    name: str
    action: Policy
    match: Match = Match()


@dataclass(frozen=True, slots=True)
class ToleranceRule:
    """Behind ``after``, where both VMs say it, up to ``length`` bytes may differ in the flows of ``match``.

    Attributes:
        name: for people.
        after: 4 to 64 bytes of ASCII: printable, CR or LF, at least four of them printable.
        length: 1 to 256 bytes.
        until: one byte that ends the tolerance before that, None: none does. What isn't printable always does.
        match: the flows.
    """

    name: str
    after: bytes
    length: int
    until: int | None = None
    match: Match = Match()


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules of a file, in its order; the first that fits decides."""

    policies: tuple[PolicyRule, ...] = ()
    tolerances: tuple[ToleranceRule, ...] = ()


NO_RULES: Final = Rules()


# ------------------------------------------------------------------ the file


def load_rules(path: Path | str) -> Rules:
    """Reads a rules file. Raises RulesError: it can't be read, or has a mistake."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RulesError(f"{path}: {error}") from error
    return parse_rules(text, str(path))


def parse_rules(text: str, source: str = "rules") -> Rules:
    """Parses the text of a rules file; ``source`` is its name in errors. Raises RulesError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RulesError(f"{source}: {error}") from error
    return rules_from_document(document, source, text)


def rules_from_document(document: Mapping[str, Any], source: str = "rules", text: str = "") -> Rules:
    """Rules from a rules file's tables, as TOML or JSON give them; ``text``: for lines in errors. Raises RulesError."""
    for key in document:
        if key not in _KINDS:
            raise RulesError(f"{source}: {key!r}: unknown, it must be one of {', '.join(_KINDS)}")
    made: dict[str, tuple[Any, ...]] = {}
    for kind, (make, limit) in _KINDS.items():
        tables = document.get(kind, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise RulesError(f"{source}: {kind}: write each rule as a table of its own, [[{kind}]]")
        if len(tables) > limit:
            raise RulesError(f"{source}: {len(tables)} [[{kind}]] rules, {limit} at most")
        places = [_Place(source, text, kind, number) for number in range(1, len(tables) + 1)]
        made[kind] = tuple(make(_Table(place, table)) for place, table in zip(places, tables, strict=True))
    return Rules(policies=made["policy"], tolerances=made["tolerance"])


def rules_document(rules: Rules) -> dict[str, list[dict[str, Any]]]:
    """The tables of a file with these rules, for JSON: ``rules_from_document`` gives the same rules again."""
    policies = [{"name": rule.name, "action": str(rule.action)} | _fields(rule.match) for rule in rules.policies]
    tolerances = [
        {"name": rule.name, "after": rule.after.decode(), "length": rule.length}
        | ({} if rule.until is None else {"until": chr(rule.until)})
        | _fields(rule.match)
        for rule in rules.tolerances
    ]
    return {"policy": policies, "tolerance": tolerances}


def _fields(match: Match) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "class": None if match.classes is None else sorted(str(member) for member in match.classes),
        "protocol": match.protocol,
        "vm_port": None if match.vm_port is None else f"{match.vm_port[0]}-{match.vm_port[1]}",
        "client_port": None if match.client_port is None else f"{match.client_port[0]}-{match.client_port[1]}",
        "vm": None if match.vm is None else str(match.vm),
        "client": None if match.client is None else str(match.client),
        "vlan": match.vlan,
    }
    return {key: value for key, value in fields.items() if value is not None}


@dataclass(frozen=True, slots=True)
class _Place:
    """A rule's table in the file, counted from 1 among its kind."""

    source: str
    text: str
    kind: str
    number: int

    def line_of(self, key: str | None) -> int | None:
        """Of the key, else of the table; None where the rule is not written as a table of its own."""
        found, seen = None, 0
        for number, line in enumerate(self.text.splitlines(), 1):
            if re.match(r"\s*\[", line):
                if seen == self.number:
                    break
                seen += bool(re.match(rf"\s*\[\[\s*\"?{self.kind}\"?\s*\]\]", line))
                found = number if seen == self.number else found
            elif seen == self.number and key is not None and re.match(rf"\s*\"?{re.escape(key)}\"?\s*=", line):
                return number
        return found


class _Table:
    """One rule's table while it is taken apart."""

    def __init__(self, place: _Place, table: Mapping[str, Any]) -> None:
        self.place = place
        self.left = dict(table)
        self.name = ""
        name = self.take("name", "text of 1 to 64 printable characters", _name)
        self.name = str(place.number) if name is None else name

    def error(self, key: str | None, text: str) -> RulesError:
        line = self.place.line_of(key)
        where = self.place.source if line is None else f"{self.place.source}:{line}"
        rule = f"[[{self.place.kind}]] {self.place.number}"
        if self.name not in ("", str(self.place.number)):
            rule += f' "{self.name}"'
        return RulesError(f"{where}: {rule}: {text}")

    def take(self, key: str, wanted: str, parse: Any, required: bool = False) -> Any:
        """The parsed value of a key, None without it. ``parse`` raises ValueError for what is not ``wanted``."""
        if key not in self.left:
            if required:
                raise self.error(None, f"{key} is missing: {wanted}")
            return None
        value = self.left.pop(key)
        try:
            return parse(value)
        except ValueError as error:
            raise self.error(key, f"{key} = {_shown(value)}: not {wanted}") from error

    def match(self) -> Match:
        return Match(
            classes=self.take("class", f"a frame class, or a list of them: {', '.join(_CLASSES)}", _classes),
            protocol=self.take("protocol", f"a number from 0 to 255, or one of {', '.join(PROTOCOLS)}", _protocol),
            vm_port=self.take("vm_port", _PORT, _ports),
            client_port=self.take("client_port", _PORT, _ports),
            vm=self.take("vm", _PREFIX, _prefix),
            client=self.take("client", _PREFIX, _prefix),
            vlan=self.take("vlan", "a VLAN id (0 to 4095)", lambda value: _number(value, 4095)),
        )

    def finish(self) -> None:
        """Whatever is left is unknown."""
        for key in self.left:
            raise self.error(key, f"{key}: unknown key")


_CLASSES = {str(member): member for member in FrameClass}
_PORT = 'a port (0 to 65535) or a range such as "8000-8099"'
_PREFIX = "an IPv4 or IPv6 address or prefix, host bits zero"


def _shown(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _number(value: object, limit: int, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= limit:
        raise ValueError
    return value


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError


def _name(value: object) -> str:
    if not 1 <= len(_text(value)) <= 64 or not _text(value).isprintable():
        raise ValueError
    return _text(value)


def _classes(value: object) -> frozenset[FrameClass]:
    names = [_text(name) for name in (value if isinstance(value, list) else [value])]
    if not names or not _CLASSES.keys() >= set(names):
        raise ValueError
    return frozenset(_CLASSES[name] for name in names)


def _protocol(value: object) -> int:
    if isinstance(value, str):
        if value not in PROTOCOLS:
            raise ValueError
        return PROTOCOLS[value]
    return _number(value, 255)


def _ports(value: object) -> tuple[int, int]:
    if isinstance(value, str):
        found = re.fullmatch(r"([0-9]{1,5})\s*-\s*([0-9]{1,5})", value)
        if found is None:
            raise ValueError
        first, last = _number(int(found[1]), 65535), _number(int(found[2]), 65535)
        if first > last:
            raise ValueError
        return first, last
    return _number(value, 65535), _number(value, 65535)


def _prefix(value: object) -> Prefix:
    return ipaddress.ip_network(_text(value))


def _action(value: object) -> Policy:
    actions = {str(member): member for member in Policy}
    if _text(value) not in actions:
        raise ValueError
    return actions[_text(value)]


def _policy(table: _Table) -> PolicyRule:
    action = table.take("action", f"one of {', '.join(map(str, Policy))}", _action, required=True)
    rule = PolicyRule(table.name, action, table.match())
    table.finish()
    return rule


def _ascii(value: object) -> bytes:
    text = _text(value).encode("ascii")  # a UnicodeEncodeError is a ValueError
    if not all(32 <= byte < 127 or byte in b"\r\n" for byte in text):
        raise ValueError
    return text


def _after(value: object) -> bytes:
    text = _ascii(value)
    if len(text) > 64 or sum(byte not in b"\r\n" for byte in text) < 4:
        raise ValueError
    return text


def _until(value: object) -> int:
    text = _ascii(value)
    if len(text) != 1:
        raise ValueError
    return text[0]


_AFTER = "4 to 64 characters of ASCII, printable, \\r or \\n, with at least four printable ones"


def _tolerance(table: _Table) -> ToleranceRule:
    most = int(lib.COLO_MAX_TOLERATED)
    rule = ToleranceRule(
        table.name,
        table.take("after", _AFTER, _after, required=True),
        table.take("length", f"a number of bytes (1 to {most})", lambda value: _number(value, most, 1), required=True),
        table.take("until", "one character, printable ASCII, \\r or \\n", _until),
        table.match(),
    )
    table.finish()
    return rule


_KINDS: Final = {
    "policy": (_policy, int(lib.COLO_MAX_RULES)),
    "tolerance": (_tolerance, int(lib.COLO_MAX_TOLERANCES)),
}


# ------------------------------------------------------------ for the C core


def _fill_prefix(native: Any, prefix: Prefix) -> None:
    native.family, native.bits = prefix.version, prefix.prefixlen
    packed = prefix.network_address.packed
    native.address[0 : len(packed)] = packed


def _fill_match(native: Any, match: Match) -> None:
    if match.classes is not None:
        native.has |= lib.COLO_MATCH_CLASS
        native.classes = sum(1 << member for member in match.classes)
    if match.protocol is not None:
        native.has |= lib.COLO_MATCH_PROTOCOL
        native.protocol = match.protocol
    if match.vm_port is not None:
        native.has |= lib.COLO_MATCH_VM_PORT
        native.vm_port.first, native.vm_port.last = match.vm_port
    if match.client_port is not None:
        native.has |= lib.COLO_MATCH_CLIENT_PORT
        native.client_port.first, native.client_port.last = match.client_port
    if match.vm is not None:
        native.has |= lib.COLO_MATCH_VM
        _fill_prefix(native.vm, match.vm)
    if match.client is not None:
        native.has |= lib.COLO_MATCH_CLIENT
        _fill_prefix(native.client, match.client)
    if match.vlan is not None:
        native.has |= lib.COLO_MATCH_VLAN
        native.vlan = match.vlan


def fill_rules(config: Any, rules: Rules) -> object:
    """Sets the rules of a ``struct colo_config``. Returns what must live until the comparator is made."""
    policies = ffi.new("struct colo_rule[]", max(len(rules.policies), 1))
    for native, rule in zip(policies, rules.policies, strict=False):
        native.action = rule.action
        _fill_match(native.match, rule.match)
    config.rules, config.rules_count = policies, len(rules.policies)
    tolerances = ffi.new("struct colo_tolerance_rule[]", max(len(rules.tolerances), 1))
    for native, tolerance in zip(tolerances, rules.tolerances, strict=False):
        native.length, native.after_len = tolerance.length, len(tolerance.after)
        native.after[0 : len(tolerance.after)] = tolerance.after
        native.has_until, native.until = tolerance.until is not None, tolerance.until or 0
        _fill_match(native.match, tolerance.match)
    config.tolerances, config.tolerances_count = tolerances, len(rules.tolerances)
    return policies, tolerances
